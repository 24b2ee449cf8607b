//! The Pod's `spec`.

use super::*;

raw! {
    /// `spec`.
    PodSpec {
        containers = "containers": List<Container>,
        init_containers = "initContainers": List<Container>,
        restart_policy = "restartPolicy": String,
        grace_seconds = "terminationGracePeriodSeconds": i64,
        hostname = "hostname": String,
        host_network = "hostNetwork": bool,
        host_pid = "hostPID": bool,
        share_process_namespace = "shareProcessNamespace": bool,
        host_aliases = "hostAliases": List<HostAlias>,
        dns_policy = "dnsPolicy": String,
        dns_config = "dnsConfig": PodDnsConfig,
        volumes = "volumes": List<Volume>,
        security = "securityContext": PodSecurityContext,
        automount_token = "automountServiceAccountToken": bool,
        service_links = "enableServiceLinks": bool,
    } later {
        "activeDeadlineSeconds", "affinity", "ephemeralContainers", "hostIPC", "hostUsers", "hostnameOverride",
        "imagePullSecrets", "nodeName", "nodeSelector", "os", "overhead", "preemptionPolicy", "priority",
        "priorityClassName", "readinessGates", "resourceClaims", "resources", "runtimeClassName", "schedulerName",
        "schedulingGates", "schedulingGroup", "serviceAccount", "serviceAccountName", "setHostnameAsFQDN", "subdomain",
        "tolerations", "topologySpreadConstraints", "workloadRef",
    }
}

raw! {
    /// An item of `spec.hostAliases`.
    HostAlias {
        ip = "ip": String,
        hostnames = "hostnames": List<String>,
    } later {}
}

raw! {
    /// `spec.dnsConfig`.
    PodDnsConfig {
        nameservers = "nameservers": List<String>,
        searches = "searches": List<String>,
        options = "options": List<PodDnsConfigOption>,
    } later {}
}

raw! {
    /// An item of `spec.dnsConfig.options`.
    PodDnsConfigOption {
        name = "name": String,
        value = "value": String,
    } later {}
}
