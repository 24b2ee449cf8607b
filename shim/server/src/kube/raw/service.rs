//! A Service, as far as variables are made of it. What else a Service may say changes none of them and is passed over.

use super::*;

/// Any value.
#[derive(Debug, Clone)]
pub struct Anything;

impl Raw for Anything {
    fn read(_node: &Node, _place: &Place) -> Result<Self, Fault> {
        Ok(Anything)
    }
}

raw! {
    /// A Service document.
    Service {
        api_version = "apiVersion": String,
        kind = "kind": String,
        metadata = "metadata": ServiceMeta,
        spec = "spec": ServiceSpec,
        status = "status": Anything,
    } later {}
}

raw! {
    /// `metadata`.
    ServiceMeta {
        name = "name": String,
        namespace = "namespace": String,
        labels = "labels": Anything,
        annotations = "annotations": Anything,
        created = "creationTimestamp": Anything,
        fields = "managedFields": Anything,
        owners = "ownerReferences": Anything,
        version = "resourceVersion": Anything,
        uid = "uid": Anything,
        finalizers = "finalizers": Anything,
    } later {}
}

raw! {
    /// `spec`.
    ServiceSpec {
        cluster_ip = "clusterIP": String,
        ports = "ports": List<ServicePort>,
        kind = "type": String,
        selector = "selector": Anything,
        cluster_ips = "clusterIPs": Anything,
        external_name = "externalName": Anything,
        external_ips = "externalIPs": Anything,
        families = "ipFamilies": Anything,
        family_policy = "ipFamilyPolicy": Anything,
        internal = "internalTrafficPolicy": Anything,
        external = "externalTrafficPolicy": Anything,
        affinity = "sessionAffinity": Anything,
        affinity_config = "sessionAffinityConfig": Anything,
        unready = "publishNotReadyAddresses": Anything,
        balancer_ip = "loadBalancerIP": Anything,
        balancer_ranges = "loadBalancerSourceRanges": Anything,
        balancer_class = "loadBalancerClass": Anything,
        balancer_ports = "allocateLoadBalancerNodePorts": Anything,
        health = "healthCheckNodePort": Anything,
        distribution = "trafficDistribution": Anything,
    } later {}
}

raw! {
    /// `spec.ports[]`.
    ServicePort {
        name = "name": String,
        port = "port": i64,
        protocol = "protocol": String,
        target = "targetPort": Anything,
        node = "nodePort": Anything,
        app = "appProtocol": Anything,
    } later {}
}
