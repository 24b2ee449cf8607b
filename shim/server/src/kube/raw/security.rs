//! The security contexts of a Pod and of a container.

use super::*;

raw! {
    /// `spec.securityContext`.
    PodSecurityContext {
        run_as_user = "runAsUser": i64,
        run_as_group = "runAsGroup": i64,
        run_as_non_root = "runAsNonRoot": bool,
        supplemental_groups = "supplementalGroups": List<i64>,
        seccomp_profile = "seccompProfile": SeccompProfile,
        sysctls = "sysctls": List<Sysctl>,
    } later {
        "appArmorProfile", "fsGroup", "fsGroupChangePolicy", "seLinuxChangePolicy", "seLinuxOptions",
        "supplementalGroupsPolicy", "windowsOptions",
    }
}

raw! {
    /// A container's `securityContext`.
    SecurityContext {
        run_as_user = "runAsUser": i64,
        run_as_group = "runAsGroup": i64,
        run_as_non_root = "runAsNonRoot": bool,
        privileged = "privileged": bool,
        read_only_rootfs = "readOnlyRootFilesystem": bool,
        allow_privilege_escalation = "allowPrivilegeEscalation": bool,
        capabilities = "capabilities": Capabilities,
        seccomp_profile = "seccompProfile": SeccompProfile,
    } later {
        "appArmorProfile", "procMount", "seLinuxOptions", "windowsOptions",
    }
}

raw! {
    /// `securityContext.capabilities`.
    Capabilities {
        add = "add": List<String>,
        drop = "drop": List<String>,
    } later {}
}

raw! {
    /// `seccompProfile`.
    SeccompProfile {
        kind = "type": String,
    } later {
        "localhostProfile",
    }
}

raw! {
    /// An item of `spec.securityContext.sysctls`.
    Sysctl {
        name = "name": String,
        value = "value": String,
    } later {}
}
