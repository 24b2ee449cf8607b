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
    } refused {
        "appArmorProfile": "is not honoured yet: remove it",
        "fsGroup": "is not honoured yet: remove it",
        "fsGroupChangePolicy": "is not honoured yet: remove it",
        "seLinuxChangePolicy": "is not honoured yet: remove it",
        "seLinuxOptions": "is not honoured yet: remove it",
        "supplementalGroupsPolicy": "is not honoured yet: remove it",
        "windowsOptions": "is not honoured yet: remove it",
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
    } refused {
        "appArmorProfile": "is not honoured yet: remove it",
        "procMount": "is not honoured yet: remove it",
        "seLinuxOptions": "is not honoured yet: remove it",
        "windowsOptions": "is not honoured yet: remove it",
    }
}

raw! {
    /// `securityContext.capabilities`.
    Capabilities {
        add = "add": List<String>,
        drop = "drop": List<String>,
    }
}

raw! {
    /// `seccompProfile`.
    SeccompProfile {
        kind = "type": String,
    } refused {
        "localhostProfile": "is not honoured yet: remove it",
    }
}

raw! {
    /// An item of `spec.securityContext.sysctls`.
    Sysctl {
        name = "name": String,
        value = "value": String,
    }
}
