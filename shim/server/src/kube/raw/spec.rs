//! The Pod's `spec`.

use super::*;

/// Why what a scheduler reads has no effect.
const NODE: &str = "chooses a node: there is one";
/// Why what orders pods for a scheduler has no effect.
const ORDER: &str = "orders pods that wait for a node: none waits";

raw! {
    /// What a pod is made of.
    PodSpec {
        /// What runs side by side.
        containers = "containers": List<Container>,
        /// What runs before it, one after another; with restartPolicy Always: beside it, as a sidecar.
        init_containers = "initContainers": List<Container>,
        /// Directories and files for the containers.
        volumes = "volumes": List<Volume>,
        /// Always, OnFailure or Never.
        restart_policy = "restartPolicy": String,
        /// Seconds between being asked to stop and being killed; 30.
        grace_seconds = "terminationGracePeriodSeconds": i64,
        /// Seconds after which the pod is ended and has failed.
        deadline = "activeDeadlineSeconds": i64,
        /// The host name inside; the pod's name where none is given.
        hostname = "hostname": String,
        /// The name of a headless Service below which the pod has a DNS name.
        subdomain = "subdomain": String,
        /// Whether the host name inside is the full DNS name.
        hostname_as_fqdn = "setHostnameAsFQDN": bool,
        /// The host name inside, whatever the others say.
        hostname_override = "hostnameOverride": String,
        /// Whether the pod uses the machine's network.
        host_network = "hostNetwork": bool,
        /// Whether it sees the machine's processes.
        host_pid = "hostPID": bool,
        /// Whether it shares the machine's IPC.
        host_ipc = "hostIPC": bool,
        /// Whether it has the machine's user ids; false: ids of its own.
        host_users = "hostUsers": bool,
        /// Whether its containers see each other's processes.
        share_process_namespace = "shareProcessNamespace": bool,
        /// Lines for /etc/hosts.
        host_aliases = "hostAliases": List<HostAlias>,
        /// ClusterFirst, ClusterFirstWithHostNet, Default or None.
        dns_policy = "dnsPolicy": String,
        /// What its resolv.conf says besides.
        dns_config = "dnsConfig": PodDnsConfig,
        /// Identity and privileges of all its containers.
        security = "securityContext": PodSecurityContext,
        /// What all its containers together ask for and may take.
        resources = "resources": ResourceRequirements,
        /// The RuntimeClass, which names the handler that runs it.
        runtime_class = "runtimeClassName": String,
        /// What the handler takes: as the RuntimeClass says.
        overhead = "overhead": Map<Amount>,
        /// Secrets for pulling its images.
        pull_secrets = "imagePullSecrets": List<LocalReference>,
        /// The ServiceAccount whose imagePullSecrets it has.
        service_account_name = "serviceAccountName": String,
        /// The old name of serviceAccountName.
        service_account = "serviceAccount": String,
        /// Only false: there is no API server whose token could be mounted.
        automount_token = "automountServiceAccountToken": bool,
        /// Whether it gets variables for the Services of its namespace.
        service_links = "enableServiceLinks": bool,
        /// The operating system: linux.
        os = "os": PodOs,
    } idle {
        "affinity": Affinity = NODE,
        "nodeName": String = NODE,
        "nodeSelector": Map<String> = NODE,
        "preemptionPolicy": String = ORDER,
        "priority": i64 = ORDER,
        "priorityClassName": String = ORDER,
        "schedulerName": String = NODE,
        "schedulingGroup": Anything = NODE,
        "tolerations": List<Toleration> = NODE,
        "topologySpreadConstraints": List<TopologySpreadConstraint> = NODE,
        "workloadRef": Anything = NODE,
    } refused {
        "ephemeralContainers": "are added to a running pod: use `coracle exec`",
        "readinessGates": "wait for a controller that sets conditions: there is none",
        "resourceClaims": "need drivers of dynamic resource allocation, which are not run here: remove it",
        "schedulingGates": "wait for a controller that removes them: there is none",
    }
}

raw! {
    /// The operating system.
    PodOs {
        /// linux.
        name = "name": String,
    }
}

raw! {
    /// A line of /etc/hosts.
    HostAlias {
        /// The address.
        ip = "ip": String,
        /// Its names.
        hostnames = "hostnames": List<String>,
    }
}

raw! {
    /// What resolv.conf says.
    PodDnsConfig {
        /// Name servers.
        nameservers = "nameservers": List<String>,
        /// Search domains.
        searches = "searches": List<String>,
        /// Options.
        options = "options": List<PodDnsConfigOption>,
    }
}

raw! {
    /// An option of resolv.conf.
    PodDnsConfigOption {
        /// Its name.
        name = "name": String,
        /// Its value.
        value = "value": String,
    }
}

raw! {
    /// Wishes about the node.
    Affinity {
    } idle {
        "nodeAffinity": Anything = NODE,
        "podAffinity": Anything = NODE,
        "podAntiAffinity": Anything = NODE,
    }
}

raw! {
    /// Taints of nodes that do not matter.
    Toleration {
    } idle {
        "effect": String = NODE,
        "key": String = NODE,
        "operator": String = NODE,
        "tolerationSeconds": i64 = NODE,
        "value": String = NODE,
    }
}

raw! {
    /// How pods spread over nodes.
    TopologySpreadConstraint {
    } idle {
        "labelSelector": LabelSelector = NODE,
        "matchLabelKeys": List<String> = NODE,
        "maxSkew": i64 = NODE,
        "minDomains": i64 = NODE,
        "nodeAffinityPolicy": String = NODE,
        "nodeTaintsPolicy": String = NODE,
        "topologyKey": String = NODE,
        "whenUnsatisfiable": String = NODE,
    }
}
