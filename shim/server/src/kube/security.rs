//! Identity and privileges: the pod's security context merged into each container's.

use coracle_engine::spec::caps;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::pod::{choice, required, value};
use super::raw::{self, At, List, Place};

/// A container's identity and privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Instead of the image's user.
    pub user: Option<u32>,
    /// Instead of the user's primary group.
    pub group: Option<u32>,
    /// Whether a container that would run as root must not start.
    pub non_root: bool,
    /// Further groups.
    pub groups: Vec<u32>,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Whether the root filesystem can only be read.
    pub read_only_rootfs: bool,
    /// Whether setuid programs may give more privileges (`no_new_privs` when not).
    pub allow_escalation: bool,
    /// Capabilities beyond the default ones, without `CAP_`; or ALL.
    pub cap_add: Vec<String>,
    /// Default capabilities to go without; or ALL.
    pub cap_drop: Vec<String>,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// The AppArmor profile.
    #[serde(default)]
    pub app_armor: Option<AppArmor>,
    /// The SELinux label.
    #[serde(default)]
    pub selinux: Option<SeLinux>,
    /// Whether nothing of /proc is hidden.
    #[serde(default)]
    pub proc_unmasked: bool,
}

/// What a pod's security context says beyond its containers' identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// The group of the volumes, which all processes have.
    pub fs_group: Option<u32>,
    /// Whether volumes whose root has that group already are left alone.
    pub fs_group_on_root_mismatch: bool,
    /// Whether the groups that the image gives its user are left out.
    pub strict_groups: bool,
    /// The SELinux label of volumes.
    pub selinux: Option<SeLinux>,
}

/// An AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// The runtime's.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A loaded one.
    Localhost(String),
}

/// An SELinux label; what is empty is left to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinux {
    /// Its user.
    pub user: String,
    /// Its role.
    pub role: String,
    /// Its type.
    pub kind: String,
    /// Its level.
    pub level: String,
}

/// The system call filter. Without a choice it is `RuntimeDefault`: kubelet's own default, no filter at all, is
/// kept for compatibility there and a bad default here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The list that all runtimes share.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The profile in this file.
    Localhost(String),
}

/// What the pod says for all its containers.
#[derive(Debug, Default)]
pub struct PodDefaults {
    user: Option<u32>,
    group: Option<u32>,
    non_root: Option<bool>,
    groups: Vec<u32>,
    seccomp: Option<Seccomp>,
    app_armor: Option<AppArmor>,
    selinux: Option<SeLinux>,
}

/// Kernel settings, by name.
type Sysctls = Vec<(String, String)>;

impl PodDefaults {
    /// Reads `spec.securityContext`; answers what is beside it: what counts for the pod, and the sysctls.
    pub fn convert(raw: raw::PodSecurityContext) -> Result<(PodDefaults, PodSecurity, Sysctls), Fault> {
        let groups = value(raw.supplemental_groups).unwrap_or_default();
        let defaults = PodDefaults {
            user: id(raw.run_as_user.as_ref())?,
            group: id(raw.run_as_group.as_ref())?,
            non_root: value(raw.run_as_non_root),
            groups: groups.iter().map(number).collect::<Result<_, _>>()?,
            seccomp: seccomp(raw.seccomp_profile)?,
            app_armor: app_armor(raw.app_armor)?,
            selinux: value(raw.selinux).map(SeLinux::convert),
        };
        let fs_groups = [("Always", false), ("OnRootMismatch", true)];
        let groups = [("Merge", false), ("Strict", true)];
        let pod = PodSecurity {
            fs_group: id(raw.fs_group.as_ref())?,
            fs_group_on_root_mismatch: picked(raw.fs_group_policy.as_ref(), &fs_groups)?,
            strict_groups: picked(raw.supplemental_policy.as_ref(), &groups)?,
            selinux: defaults.selinux.clone(),
        };
        let mut sysctls = Vec::new();
        for At { value: sysctl, place } in value(raw.sysctls).unwrap_or_default() {
            let name = required(sysctl.name, &place, "name")?;
            check_sysctl(&name)?;
            sysctls.push((name.value.replace('/', "."), required(sysctl.value, &place, "value")?.value));
        }
        Ok((defaults, pod, sysctls))
    }
}

fn picked(at: Option<&At<String>>, choices: &[(&str, bool)]) -> Result<bool, Fault> {
    Ok(at.map(|at| choice(at, choices)).transpose()?.unwrap_or(false))
}

/// The sysctls that belong to a namespace, so that setting one leaves the machine alone.
const NAMESPACED: [&str; 5] = ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

fn check_sysctl(at: &At<String>) -> Result<(), Fault> {
    let name = at.value.replace('/', ".");
    let words = name.split('.').all(|word| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    });
    match words && NAMESPACED.iter().any(|prefix| name.starts_with(prefix)) {
        true => Ok(()),
        false => Err(at.fault(format!(
            "{:?} is not a sysctl of a pod: those are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
            at.value
        ))),
    }
}

impl Security {
    /// Merges a container's context with its pod's.
    pub fn convert(raw: Option<At<raw::SecurityContext>>, pod: &PodDefaults) -> Result<Security, Fault> {
        let place = raw.as_ref().map(|at| at.place.clone());
        let raw = value(raw).unwrap_or_default();
        let privileged = value(raw.privileged).unwrap_or(false);
        let capabilities = value(raw.capabilities).unwrap_or_default();
        let cap_add = capability_names(capabilities.add)?;
        if let Some(at) = raw.allow_privilege_escalation.as_ref().filter(|at| !at.value) {
            if privileged {
                return Err(at.fault("cannot be false for a privileged container"));
            }
            if cap_add.iter().any(|name| name == "SYS_ADMIN") {
                return Err(at.fault("cannot be false for a container with CAP_SYS_ADMIN"));
            }
        }
        let user = id(raw.run_as_user.as_ref())?.or(pod.user);
        let non_root = value(raw.run_as_non_root).or(pod.non_root).unwrap_or(false);
        if let (true, Some(0), Some(place)) = (non_root, user, &place) {
            return Err(place.fault("runAsUser is 0, which runAsNonRoot forbids"));
        }
        Ok(Security {
            user,
            group: id(raw.run_as_group.as_ref())?.or(pod.group),
            non_root,
            groups: pod.groups.clone(),
            privileged,
            read_only_rootfs: value(raw.read_only_rootfs).unwrap_or(false),
            allow_escalation: value(raw.allow_privilege_escalation).unwrap_or(true),
            cap_add,
            cap_drop: capability_names(capabilities.drop)?,
            seccomp: seccomp(raw.seccomp_profile)?.or(pod.seccomp.clone()).unwrap_or(Seccomp::RuntimeDefault),
            app_armor: app_armor(raw.app_armor)?.or(pod.app_armor.clone()),
            selinux: value(raw.selinux).map(SeLinux::convert).or(pod.selinux.clone()),
            proc_unmasked: picked(raw.proc_mount.as_ref(), &[("Default", false), ("Unmasked", true)])?,
        })
    }
}

impl SeLinux {
    fn convert(raw: raw::SeLinuxOptions) -> SeLinux {
        let text = |at: Option<At<String>>| value(at).unwrap_or_default();
        SeLinux { user: text(raw.user), role: text(raw.role), kind: text(raw.kind), level: text(raw.level) }
    }
}

/// The types of a profile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

const PROFILES: [(&str, Profile); 3] = [
    ("RuntimeDefault", Profile::RuntimeDefault),
    ("Unconfined", Profile::Unconfined),
    ("Localhost", Profile::Localhost),
];

/// The name that goes with Localhost, and with it alone.
fn localhost(profile: Profile, name: Option<At<String>>, place: &Place) -> Result<String, Fault> {
    match (profile, name.filter(|at| !at.value.is_empty())) {
        (Profile::Localhost, Some(at)) => Ok(at.value),
        (Profile::Localhost, None) => Err(place.fault("localhostProfile is missing")),
        (_, Some(at)) => Err(at.fault("goes with the type Localhost alone")),
        (_, None) => Ok(String::new()),
    }
}

fn seccomp(at: Option<At<raw::SeccompProfile>>) -> Result<Option<Seccomp>, Fault> {
    let Some(At { value: raw, place }) = at else { return Ok(None) };
    let kind = required(raw.kind, &place, "type")?;
    let profile = choice(&kind, &PROFILES)?;
    let file = localhost(profile, raw.localhost, &place)?;
    if file.starts_with('/') || file.split('/').any(|part| part == "..") {
        return Err(place.fault("localhostProfile is a path below the folder of profiles"));
    }
    Ok(Some(match profile {
        Profile::RuntimeDefault => Seccomp::RuntimeDefault,
        Profile::Unconfined => Seccomp::Unconfined,
        Profile::Localhost => Seccomp::Localhost(file),
    }))
}

fn app_armor(at: Option<At<raw::AppArmorProfile>>) -> Result<Option<AppArmor>, Fault> {
    let Some(At { value: raw, place }) = at else { return Ok(None) };
    let profile = choice(&required(raw.kind, &place, "type")?, &PROFILES)?;
    let name = localhost(profile, raw.localhost, &place)?;
    Ok(Some(match profile {
        Profile::RuntimeDefault => AppArmor::RuntimeDefault,
        Profile::Unconfined => AppArmor::Unconfined,
        Profile::Localhost => AppArmor::Localhost(name),
    }))
}

fn id(at: Option<&At<i64>>) -> Result<Option<u32>, Fault> {
    at.map(number).transpose()
}

/// A user or group id: Kubernetes takes 0 to 2^31-1.
fn number(at: &At<i64>) -> Result<u32, Fault> {
    match i32::try_from(at.value) {
        Ok(id) if id >= 0 => Ok(id.unsigned_abs()),
        _ => Err(at.fault(format!("{} is not an id: 0 to 2147483647", at.value))),
    }
}

fn capability_names(list: Option<At<List<String>>>) -> Result<Vec<String>, Fault> {
    let mut out = Vec::new();
    for at in value(list).unwrap_or_default() {
        let upper = at.value.to_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name != "ALL" && !caps::NAMES.contains(&name) {
            let hint = super::fault::nearest(name, caps::NAMES).map(|near| format!(": did you mean {near}?"));
            return Err(at.fault(format!("unknown capability {:?}{}", at.value, hint.unwrap_or_default())));
        }
        out.push(name.to_owned());
    }
    Ok(out)
}
