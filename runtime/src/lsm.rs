//! Labels of the Linux security modules: AppArmor's profile and SELinux's label of a container's program, and SELinux's
//! label of its mounts.
//!
//! A label takes effect at the exec of the program. The file that asks for it is opened while the host's /proc can be
//! seen, which no image can fake, and written as the very last thing before the system call filter: hooks run without.
//! A label that is asked for on a host without its module is an error, never ignored.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::beneath;
use crate::error::{Context, Error, Result};
use crate::options::Options;
use crate::spec::{Process, Spec};

const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// The profile that confines nothing.
const UNCONFINED: &str = "unconfined";
/// Filesystems made for a container whose files take their label from the mount. The kernel labels those of proc, sysfs
/// and cgroup itself.
const LABELLED: &[&str] = &["tmpfs", "ramfs", "devpts", "overlay"];

/// What is written where, for the next exec.
#[derive(Debug)]
pub(crate) struct Label {
    what: String,
    text: String,
    files: &'static [&'static str],
    pub file: Option<OwnedFd>,
}

fn set(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn refused(field: &str, wanted: &str, module: &str) -> Error {
    let reason = format!("{wanted:?} is asked for and this host runs without {module}");
    Error::Refused { field: field.into(), reason }
}

/// The labels of a process; an error where the host cannot give them.
pub(crate) fn plan(process: &Process) -> Result<Vec<Label>> {
    plan_on(process, Path::new("/"))
}

fn plan_on(process: &Process, root: &Path) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    if let Some(profile) = set(&process.apparmor_profile).filter(|profile| *profile != UNCONFINED) {
        let enabled = std::fs::read_to_string(root.join(APPARMOR.trim_start_matches('/')));
        if !enabled.is_ok_and(|text| text.starts_with('Y')) {
            return Err(refused("process.apparmorProfile", profile, "AppArmor"));
        }
        labels.push(Label {
            what: format!("apply AppArmor profile {profile:?} (is it loaded?)"),
            text: format!("exec {profile}"),
            files: &["thread-self/attr/apparmor/exec", "thread-self/attr/exec"],
            file: None,
        });
    }
    if let Some(label) = set(&process.selinux_label) {
        if !has_selinux(root) {
            return Err(refused("process.selinuxLabel", label, "SELinux"));
        }
        labels.push(Label {
            what: format!("apply SELinux label {label:?}"),
            text: label.to_owned(),
            files: &["thread-self/attr/selinux/exec", "thread-self/attr/exec"],
            file: None,
        });
    }
    Ok(labels)
}

fn has_selinux(root: &Path) -> bool {
    root.join(SELINUX.trim_start_matches('/')).exists()
}

impl Label {
    /// Opens the file, through the host's /proc.
    pub fn open(&mut self, proc: &OwnedFd) -> Result<()> {
        let mut result = Err(std::io::Error::from_raw_os_error(libc::ENOENT));
        for file in self.files {
            result = beneath::open(proc, Path::new(file), libc::O_WRONLY);
            if !result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT)) {
                break;
            }
        }
        self.file = Some(result.op(|| self.what.clone())?);
        Ok(())
    }

    /// Asks for the label at the next exec.
    pub fn apply(&self) -> Result<()> {
        let Some(file) = &self.file else { return Err(Error::Init(format!("{}: its file was not opened", self.what))) };
        crate::sys::retry(|| nix::unistd::write(file, self.text.as_bytes())).map(drop).op(|| self.what.clone())
    }
}

/// A label written to anything else than procfs would be lost without an error (CVE-2019-16884, CVE-2025-52881).
pub(crate) fn check_procfs(proc: &OwnedFd) -> Result<()> {
    if fstatfs(proc).op(|| "look at /proc of the host")?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(Error::invalid("/proc of the host is not a proc filesystem: mount one there"));
    }
    Ok(())
}

/// The mount label of the configuration, where the host knows such.
pub(crate) fn mount_label(spec: &Spec) -> Result<Option<&str>> {
    let label = set(&spec.linux.mount_label);
    match label {
        Some(label) if !has_selinux(Path::new("/")) => Err(refused("linux.mountLabel", label, "SELinux")),
        label => Ok(label),
    }
}

/// Gives a new filesystem the container's mount label, unless it has one of its own.
pub(crate) fn label_mount(options: &mut Options, fstype: &str, label: Option<&str>) {
    let labelled = options.data.iter().any(|option| option.contains("context="));
    if let Some(label) = label.filter(|_| LABELLED.contains(&fstype) && !labelled) {
        options.data.push(format!("context={label}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(apparmor: &str, selinux: &str) -> Process {
        Process { apparmor_profile: Some(apparmor.into()), selinux_label: Some(selinux.into()), ..Process::default() }
    }

    #[test]
    fn a_label_without_its_module_is_an_error_that_names_the_field() {
        let empty = tempfile::tempdir().unwrap();
        let error = |p| plan_on(&p, empty.path()).unwrap_err().to_string();
        assert!(error(process("p", "")).contains("process.apparmorProfile"));
        assert!(error(process("", "a:b:c:s0")).contains("process.selinuxLabel"));
        assert!(plan_on(&process("unconfined", ""), empty.path()).unwrap().is_empty());
    }

    #[test]
    fn with_its_module_a_label_is_what_the_kernel_wants() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [(APPARMOR, "Y\n"), (SELINUX, "1")] {
            let path = root.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let labels = plan_on(&process("p", "u:r:t:s0:c1,c2"), root.path()).unwrap();
        assert_eq!(labels.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["exec p", "u:r:t:s0:c1,c2"]);
        assert!(labels[0].apply().is_err(), "nothing is written before the file is open");
    }

    #[test]
    fn a_folder_that_looks_like_proc_is_none() {
        let fake = tempfile::tempdir().unwrap();
        let open = |path: &Path| std::fs::File::open(path).unwrap().into();
        assert!(check_procfs(&open(fake.path())).unwrap_err().to_string().contains("not a proc filesystem"));
        check_procfs(&open(Path::new("/proc"))).unwrap();
    }

    #[test]
    fn only_filesystems_without_labels_of_their_own_are_labelled() {
        let label = |fstype: &str, data: &[&str]| {
            let mut options = Options { data: data.iter().map(|d| (*d).to_owned()).collect(), ..Default::default() };
            label_mount(&mut options, fstype, Some("l"));
            options.data
        };
        assert_eq!(label("tmpfs", &["mode=755"]), ["mode=755", "context=l"]);
        assert_eq!(label("tmpfs", &["rootcontext=x"]), ["rootcontext=x"]);
        assert!(label("proc", &[]).is_empty());
    }
}
