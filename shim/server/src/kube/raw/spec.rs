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
    } refused {
        "activeDeadlineSeconds": "is not honoured yet: remove it",
        "affinity": "is not honoured yet: remove it",
        "ephemeralContainers": "is not honoured yet: remove it",
        "hostIPC": "is not honoured yet: remove it",
        "hostUsers": "is not honoured yet: remove it",
        "hostnameOverride": "is not honoured yet: remove it",
        "imagePullSecrets": "is not honoured yet: remove it",
        "nodeName": "is not honoured yet: remove it",
        "nodeSelector": "is not honoured yet: remove it",
        "os": "is not honoured yet: remove it",
        "overhead": "is not honoured yet: remove it",
        "preemptionPolicy": "is not honoured yet: remove it",
        "priority": "is not honoured yet: remove it",
        "priorityClassName": "is not honoured yet: remove it",
        "readinessGates": "is not honoured yet: remove it",
        "resourceClaims": "is not honoured yet: remove it",
        "resources": "is not honoured yet: remove it",
        "runtimeClassName": "is not honoured yet: remove it",
        "schedulerName": "is not honoured yet: remove it",
        "schedulingGates": "is not honoured yet: remove it",
        "schedulingGroup": "is not honoured yet: remove it",
        "serviceAccount": "is not honoured yet: remove it",
        "serviceAccountName": "is not honoured yet: remove it",
        "setHostnameAsFQDN": "is not honoured yet: remove it",
        "subdomain": "is not honoured yet: remove it",
        "tolerations": "is not honoured yet: remove it",
        "topologySpreadConstraints": "is not honoured yet: remove it",
        "workloadRef": "is not honoured yet: remove it",
    }
}

raw! {
    /// An item of `spec.hostAliases`.
    HostAlias {
        ip = "ip": String,
        hostnames = "hostnames": List<String>,
    }
}

raw! {
    /// `spec.dnsConfig`.
    PodDnsConfig {
        nameservers = "nameservers": List<String>,
        searches = "searches": List<String>,
        options = "options": List<PodDnsConfigOption>,
    }
}

raw! {
    /// An item of `spec.dnsConfig.options`.
    PodDnsConfigOption {
        name = "name": String,
        value = "value": String,
    }
}
