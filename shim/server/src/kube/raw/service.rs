//! A Service.

use super::*;

const WRITTEN: &str = "is written by an API server and not taken over";

raw! {
    /// One address for the pods that a selector finds.
    Service {
        /// v1.
        api_version = "apiVersion": String,
        /// Service.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// What it leads to.
        spec = "spec": ServiceSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// What a Service leads to.
    ServiceSpec {
        /// Its address: one of the service network, None for a headless one, or left to be chosen.
        cluster_ip = "clusterIP": String,
        /// The same as a list; a second address, of the other family, is refused.
        cluster_ips = "clusterIPs": List<String>,
        /// Its ports.
        ports = "ports": List<ServicePort>,
        /// ClusterIP, NodePort, LoadBalancer (as NodePort) or ExternalName.
        class = "type": String,
        /// Labels of the pods behind it.
        selector = "selector": Map<String>,
        /// For ExternalName: the name that its name is another word for.
        external_name = "externalName": String,
        /// None, or ClientIP: a client keeps its pod.
        affinity = "sessionAffinity": String,
        /// For how long.
        affinity_config = "sessionAffinityConfig": SessionAffinityConfig,
        /// Whether pods that are not ready count too.
        publish_not_ready = "publishNotReadyAddresses": bool,
    } idle {
        "allocateLoadBalancerNodePorts": bool = "is for load balancers: there is none",
        "externalTrafficPolicy": String = "chooses between nodes: there is one",
        "healthCheckNodePort": i64 = "is for load balancers: there is none",
        "internalTrafficPolicy": String = "chooses between nodes: there is one",
        "ipFamilies": List<String> = "local pods have the families of their network",
        "ipFamilyPolicy": String = "local pods have the families of their network",
        "loadBalancerClass": String = "is for load balancers: there is none",
        "loadBalancerIP": String = "is for load balancers: there is none",
        "trafficDistribution": String = "chooses between nodes: there is one",
    } refused {
        "externalIPs": "would take over addresses of the machine: use a NodePort",
        "loadBalancerSourceRanges": "would have to be enforced by a load balancer: there is none",
    }
}

raw! {
    /// A port of a Service.
    ServicePort {
        /// Its name; needed where there are several.
        name = "name": String,
        /// Its number at the Service's address.
        port = "port": i64,
        /// TCP, UDP or SCTP.
        protocol = "protocol": String,
        /// The pods' port, a number or a name; the same as `port` where none is given.
        target_port = "targetPort": IntOrString,
        /// The machine's port that leads to it.
        node_port = "nodePort": i64,
    } idle {
        "appProtocol": String = "is a hint for proxies: there is none",
    }
}

raw! {
    /// How session affinity is kept.
    SessionAffinityConfig {
        /// By the client's address.
        client_ip = "clientIP": ClientIpConfig,
    }
}

raw! {
    /// Affinity by the client's address.
    ClientIpConfig {
        /// For how many seconds.
        timeout = "timeoutSeconds": i64,
    }
}
