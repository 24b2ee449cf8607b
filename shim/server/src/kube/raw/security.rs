//! The security contexts of a Pod and of a container.

use super::*;

const WINDOWS: &str = "is for Windows: remove it";

raw! {
    /// Identity and privileges of all containers of a pod.
    PodSecurityContext {
        /// The user id.
        run_as_user = "runAsUser": i64,
        /// The group id.
        run_as_group = "runAsGroup": i64,
        /// Whether a container that would run as root must not start.
        run_as_non_root = "runAsNonRoot": bool,
        /// Further groups.
        supplemental_groups = "supplementalGroups": List<i64>,
        /// Merge the image's groups with these, or Strict: only these.
        supplemental_policy = "supplementalGroupsPolicy": String,
        /// The group of the volumes, which all processes have.
        fs_group = "fsGroup": i64,
        /// Always, or OnRootMismatch: when the files of a volume get that group.
        fs_group_policy = "fsGroupChangePolicy": String,
        /// The system call filter.
        seccomp_profile = "seccompProfile": SeccompProfile,
        /// The AppArmor profile.
        app_armor = "appArmorProfile": AppArmorProfile,
        /// The SELinux label.
        selinux = "seLinuxOptions": SeLinuxOptions,
        /// Kernel settings of the pod's namespaces.
        sysctls = "sysctls": List<Sysctl>,
    } idle {
        "seLinuxChangePolicy": String = "chooses between two ways to the same labels",
    } refused {
        "windowsOptions": WINDOWS,
    }
}

raw! {
    /// Identity and privileges of a container.
    SecurityContext {
        /// The user id.
        run_as_user = "runAsUser": i64,
        /// The group id.
        run_as_group = "runAsGroup": i64,
        /// Whether it must not start as root.
        run_as_non_root = "runAsNonRoot": bool,
        /// All capabilities, all devices, nothing masked.
        privileged = "privileged": bool,
        /// Whether its filesystem can only be read.
        read_only_rootfs = "readOnlyRootFilesystem": bool,
        /// Whether setuid programs may give more privileges.
        allow_privilege_escalation = "allowPrivilegeEscalation": bool,
        /// Capabilities beyond and below the default.
        capabilities = "capabilities": Capabilities,
        /// The system call filter.
        seccomp_profile = "seccompProfile": SeccompProfile,
        /// The AppArmor profile.
        app_armor = "appArmorProfile": AppArmorProfile,
        /// The SELinux label.
        selinux = "seLinuxOptions": SeLinuxOptions,
        /// Default, or Unmasked: nothing of /proc is hidden.
        proc_mount = "procMount": String,
    } refused {
        "windowsOptions": WINDOWS,
    }
}

raw! {
    /// Capabilities, with or without CAP_.
    Capabilities {
        /// Beyond the default; ALL for all.
        add = "add": List<String>,
        /// Of the default; ALL for all.
        drop = "drop": List<String>,
    }
}

raw! {
    /// A system call filter.
    SeccompProfile {
        /// RuntimeDefault, Unconfined or Localhost.
        kind = "type": String,
        /// For Localhost: the profile's file.
        localhost = "localhostProfile": String,
    }
}

raw! {
    /// An AppArmor profile.
    AppArmorProfile {
        /// RuntimeDefault, Unconfined or Localhost.
        kind = "type": String,
        /// For Localhost: the loaded profile's name.
        localhost = "localhostProfile": String,
    }
}

raw! {
    /// An SELinux label.
    SeLinuxOptions {
        /// Its user.
        user = "user": String,
        /// Its role.
        role = "role": String,
        /// Its type.
        kind = "type": String,
        /// Its level.
        level = "level": String,
    }
}

raw! {
    /// A kernel setting.
    Sysctl {
        /// Its name.
        name = "name": String,
        /// Its value.
        value = "value": String,
    }
}
