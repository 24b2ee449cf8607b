//! AppArmor profiles and SELinux labels: what a container gets on a host that has them, and errors where it was asked
//! for by name and cannot be had.
//!
//! AppArmor. RuntimeDefault is the first of [`DEFAULT_PROFILES`] that is loaded, ours before those that other runtimes
//! load; where none is, there is nothing to apply. An administrator loads ours at boot by `apparmor_parser -r`, from a
//! file that names its profile `coracle-default`.
//!
//! SELinux. The types are the host's own, of `contexts/lxc_contexts` in its policy, without which nothing is labelled
//! unless asked for; a pod without a level of its own gets
//! two categories made from its id, so that pods cannot read each other's files. Where a pod asks for something, that
//! replaces the parts it names.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::sys;
use crate::types::{AppArmor, Security, SelinuxOptions};

/// Profiles for containers, in the order of preference.
const DEFAULT_PROFILES: [&str; 3] = ["coracle-default", "cri-containerd.apparmor.d", "docker-default"];
/// Categories of SELinux's level.
const CATEGORIES: u16 = 1024;
/// Labels of containers' processes and files by the usual policy, where it does not name them.
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";
/// The extended attribute of a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// Volumes are labelled this deep.
const MAX_DEPTH: usize = 256;
/// Folders of the system, whose labels are not a container's to change, nor those of what lies directly in the first list.
const SYSTEM: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];
/// And all below these.
const SYSTEM_TREES: &[&str] = &["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// A container's labels; empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    /// The AppArmor profile.
    pub apparmor: String,
    /// The SELinux label of its processes.
    pub process: String,
    /// The SELinux label of its files.
    pub mount: String,
}

/// The host's security modules, below a root (`/`, but in tests).
pub(crate) struct Host {
    root: PathBuf,
}

impl Host {
    pub fn new(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn has_apparmor(&self) -> bool {
        fs::read_to_string(self.path("/sys/module/apparmor/parameters/enabled")).is_ok_and(|t| t.starts_with('Y'))
    }

    fn has_selinux(&self) -> bool {
        self.path("/sys/fs/selinux/enforce").exists()
    }

    /// Whether a profile is loaded; `None` if the list of them cannot be read.
    fn loaded(&self, profile: &str) -> Option<bool> {
        let text = fs::read_to_string(self.path("/sys/kernel/security/apparmor/profiles")).ok()?;
        Some(text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile)))
    }

    /// The labels of a container of the pod with this id.
    pub fn labels(&self, security: &Security, pod: Option<&SelinuxOptions>, id: &str) -> Result<Labels> {
        let asked = security.selinux.as_ref().or(pod);
        let (process, mount) = self.selinux(security.privileged, asked, id)?;
        Ok(Labels { apparmor: self.apparmor(security)?, process, mount })
    }

    fn apparmor(&self, security: &Security) -> Result<String> {
        const FIELD: &str = "apparmor";
        match &security.apparmor {
            AppArmor::Unconfined => Ok(String::new()),
            // Privileged means that nothing confines it but what it asks for itself.
            AppArmor::RuntimeDefault if security.privileged || !self.has_apparmor() => Ok(String::new()),
            AppArmor::RuntimeDefault => {
                let found = DEFAULT_PROFILES.iter().find(|profile| self.loaded(profile) == Some(true));
                Ok(found.map_or(String::new(), |profile| (*profile).to_owned()))
            }
            AppArmor::Localhost(profile) if profile.is_empty() || profile.contains(char::is_control) => {
                Err(Error::invalid(FIELD, format!("{profile:?} is no name of a profile")))
            }
            AppArmor::Localhost(profile) if !self.has_apparmor() => Err(Error::invalid(
                FIELD,
                format!("profile {profile:?} is asked for, and this host runs without AppArmor"),
            )),
            AppArmor::Localhost(profile) if self.loaded(profile) == Some(false) => {
                let why = format!("profile {profile:?} is not loaded on this host (apparmor_parser -r loads it)");
                Err(Error::invalid(FIELD, why))
            }
            AppArmor::Localhost(profile) => Ok(profile.clone()),
        }
    }

    fn selinux(&self, privileged: bool, asked: Option<&SelinuxOptions>, id: &str) -> Result<(String, String)> {
        let asked = asked.filter(|options| **options != SelinuxOptions::default());
        if !self.has_selinux() {
            return match asked {
                Some(options) => {
                    let why = format!("{} is asked for, and this host runs without SELinux", words(options));
                    Err(Error::invalid("selinux", why))
                }
                None => Ok(Default::default()),
            };
        }
        let contexts = self.contexts();
        // A policy without labels for containers confines none by itself.
        if asked.is_none() && (privileged || contexts.is_none()) {
            return Ok(Default::default());
        }
        let options = asked.cloned().unwrap_or_default();
        check(&options)?;
        let (process, mount) = contexts.unwrap_or_else(|| (PROCESS.to_owned(), FILE.to_owned()));
        let level = if options.level.is_empty() { level_of(id) } else { options.level.clone() };
        let mut process: Vec<&str> = process.split(':').take(3).collect();
        process.resize(3, "");
        for (part, wanted) in process.iter_mut().zip([&options.user, &options.role, &options.kind]) {
            if !wanted.is_empty() {
                *part = wanted;
            }
        }
        let mount: Vec<&str> = mount.split(':').take(3).collect();
        Ok((format!("{}:{level}", process.join(":")), format!("{}:{level}", mount.join(":"))))
    }

    /// The labels of processes and files of containers, as the host's policy names them, if it does.
    fn contexts(&self) -> Option<(String, String)> {
        let config = fs::read_to_string(self.path("/etc/selinux/config")).unwrap_or_default();
        let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted");
        let path = format!("/etc/selinux/{}/contexts/lxc_contexts", policy.trim());
        let contexts = fs::read_to_string(self.path(&path)).ok()?;
        let get = |key: &str, default: &str| {
            let line = contexts.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
            });
            line.unwrap_or_else(|| default.to_owned())
        };
        Some((get("process", PROCESS), get("file", FILE)))
    }

    /// Gives a volume the container's label, with all that is in it. On a host without SELinux there is nothing to give.
    pub fn relabel(&self, volume: &Path, label: &str) -> Result<()> {
        if label.is_empty() || !self.has_selinux() {
            return Ok(());
        }
        let path = volume.canonicalize().map_err(Error::io("resolve", volume))?;
        if is_systems(&path) {
            let why =
                format!("{} belongs to the system, and its labels are not a container's to change", path.display());
            return Err(Error::invalid("selinux_relabel", why));
        }
        relabel_tree(&path, label).map_err(Error::io("relabel", &path))
    }
}

/// Two categories made from a pod's id: the same for all its containers, and hardly another pod's.
fn level_of(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let category = |at: usize| u16::from_be_bytes([digest[at], digest[at + 1]]) % CATEGORIES;
    let (a, mut b) = (category(0), category(2));
    if a == b {
        b = (b + 1) % CATEGORIES;
    }
    format!("s0:c{},c{}", a.min(b), a.max(b))
}

fn check(options: &SelinuxOptions) -> Result<()> {
    let plain =
        |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || more.contains(c));
    for (field, text, more) in [
        ("selinux.user", &options.user, ".-"),
        ("selinux.role", &options.role, ".-"),
        ("selinux.type", &options.kind, ".-"),
        ("selinux.level", &options.level, ":,.-"),
    ] {
        if !plain(text, more) {
            return Err(Error::invalid(field, format!("{text:?} is no part of an SELinux label")));
        }
    }
    Ok(())
}

fn words(options: &SelinuxOptions) -> String {
    let SelinuxOptions { user, role, kind, level } = options;
    format!("label {:?}", [user, role, kind, level].map(String::as_str).join(":"))
}

/// Whether a path is the system's and not a volume.
fn is_systems(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path == Path::new(system)) || SYSTEM_TREES.iter().any(|tree| path.starts_with(tree))
}

/// Labels a tree without following a link anywhere in it.
fn relabel_tree(path: &Path, label: &str) -> std::io::Result<()> {
    sys::lsetxattr(path, ATTRIBUTE, label.as_bytes())?;
    if !path.symlink_metadata()?.is_dir() {
        return Ok(());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut folders: Vec<(OwnedFd, usize)> = vec![(open(path, flags, Mode::empty())?, 0)];
    while let Some((folder, depth)) = folders.pop() {
        let place = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        for entry in fs::read_dir(&place)? {
            let entry = entry?;
            sys::lsetxattr(&entry.path(), ATTRIBUTE, label.as_bytes())?;
            if entry.file_type()?.is_dir() && depth < MAX_DEPTH {
                folders.push((openat(&folder, entry.file_name().as_os_str(), flags, Mode::empty())?, depth + 1));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with these files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::new(dir.path());
        (dir, host)
    }

    const APPARMOR: (&str, &str) = ("/sys/module/apparmor/parameters/enabled", "Y\n");
    const SELINUX: (&str, &str) = ("/sys/fs/selinux/enforce", "1");

    fn profiles(text: &'static str) -> (&'static str, &'static str) {
        ("/sys/kernel/security/apparmor/profiles", text)
    }

    fn apparmor(host: &Host, apparmor: AppArmor) -> Result<String> {
        host.labels(&Security { apparmor, ..Default::default() }, None, "p").map(|l| l.apparmor)
    }

    #[test]
    fn the_default_profile_is_applied_only_where_one_is_loaded() {
        let (_dir, none) = host(&[]);
        assert_eq!(apparmor(&none, AppArmor::RuntimeDefault).unwrap(), "");
        let (_dir, bare) = host(&[APPARMOR, profiles("lsb_release (enforce)\n")]);
        assert_eq!(apparmor(&bare, AppArmor::RuntimeDefault).unwrap(), "");
        let (_dir, both) = host(&[APPARMOR, profiles("docker-default (enforce)\ncoracle-default (enforce)\n")]);
        assert_eq!(apparmor(&both, AppArmor::RuntimeDefault).unwrap(), "coracle-default");
        let privileged = Security { privileged: true, ..Default::default() };
        assert_eq!(both.labels(&privileged, None, "p").unwrap(), Labels::default());
    }

    #[test]
    fn a_profile_by_name_must_be_there() {
        let ask = |host: &Host, name: &str| apparmor(host, AppArmor::Localhost(name.into()));
        let (_dir, none) = host(&[]);
        assert!(ask(&none, "mine").unwrap_err().to_string().contains("without AppArmor"));
        let (_dir, some) = host(&[APPARMOR, profiles("mine (complain)\nmine//child (enforce)\n")]);
        assert_eq!(ask(&some, "mine").unwrap(), "mine");
        assert!(ask(&some, "other").unwrap_err().to_string().contains("\"other\" is not loaded"));
        assert!(ask(&some, "").is_err());
        assert_eq!(apparmor(&none, AppArmor::Unconfined).unwrap(), "");
    }

    #[test]
    fn selinux_is_asked_for_where_it_is_or_it_is_an_error() {
        let wanted = SelinuxOptions { kind: "my_t".into(), level: "s0:c1,c2".into(), ..Default::default() };
        let security = Security { selinux: Some(wanted), ..Default::default() };
        let (_dir, none) = host(&[]);
        let error = none.labels(&security, None, "p").unwrap_err().to_string();
        assert!(error.contains("my_t") && error.contains("without SELinux"), "{error}");
        assert_eq!(none.labels(&Security::default(), Some(&SelinuxOptions::default()), "p").unwrap().process, "");
        let contexts = "process = \"u:r:c_t:s0\"\nfile = \"u:object_r:f_t:s0\"\n";
        let (_dir, some) = host(&[SELINUX, ("/etc/selinux/targeted/contexts/lxc_contexts", contexts)]);
        let labels = some.labels(&security, None, "p").unwrap();
        assert_eq!((labels.process.as_str(), labels.mount.as_str()), ("u:r:my_t:s0:c1,c2", "u:object_r:f_t:s0:c1,c2"));
    }

    #[test]
    fn a_pods_containers_share_a_level_that_others_have_not() {
        let (_dir, bare) = host(&[SELINUX]);
        assert_eq!(
            bare.labels(&Security::default(), None, "p").unwrap(),
            Labels::default(),
            "no policy for containers"
        );
        let (_dir, some) = host(&[SELINUX, ("/etc/selinux/targeted/contexts/lxc_contexts", "")]);
        let label = |pod: &str| some.labels(&Security::default(), None, pod).unwrap().process;
        assert_eq!(label("a"), label("a"));
        assert_ne!(label("a"), label("b"));
        assert!(label("a").starts_with("system_u:system_r:container_t:s0:c"), "{}", label("a"));
    }

    #[test]
    fn parts_of_a_label_cannot_smuggle_others() {
        let (_dir, some) = host(&[SELINUX]);
        for bad in ["a:b", "a b", "a\n"] {
            let selinux = Some(SelinuxOptions { kind: bad.into(), ..Default::default() });
            let error = some.labels(&Security { selinux, ..Default::default() }, None, "p").unwrap_err();
            assert!(error.to_string().contains("selinux.type"), "{error}");
        }
    }

    #[test]
    fn folders_of_the_system_are_never_relabelled() {
        let (_dir, some) = host(&[SELINUX]);
        for path in ["/", "/etc", "/usr", "/usr/lib", "/var", "/proc/self"] {
            let error = some.relabel(Path::new(path), "u:r:t:s0").unwrap_err().to_string();
            assert!(error.contains("selinux_relabel") || error.contains("belongs to the system"), "{path}: {error}");
        }
        assert!(is_systems(Path::new("/home")) && !is_systems(Path::new("/home/x")));
        let (_dir, none) = host(&[]);
        none.relabel(Path::new("/etc"), "u:r:t:s0").unwrap();
    }
}
