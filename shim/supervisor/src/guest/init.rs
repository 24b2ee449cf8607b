//! From the kernel's first instruction of user space to a machine that containers can run in: one flat list.
//!
//! The kernel leaves its first process in the initial file system, which no pivot_root can leave, since it is mounted on
//! nothing. So a tmpfs is moved over it, as switch_root(8) does, and the initial files are removed: their memory is free.

use super::modules;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// Where the root is before it is the root.
const NEW_ROOT: &str = "/new";
/// Moved from the initial root into the new one.
const MOVED: [&str; 3] = ["proc", "sys", "dev"];
/// How the kernel looks for disks: `manual`, `sync` or `async`.
const DISK_SCAN: &str = "/sys/module/scsi_mod/parameters/scan";
/// Files that a process may open: as many as the processes of a machine's pods, whose supervisors a service began.
const OPEN_FILES: u64 = 1_048_576;

/// Mounts /proc, by which the program finds itself. Done once, since the program may be started anew after it.
pub fn mount_proc() -> Result<()> {
    if Path::new("/proc/self").exists() {
        return Ok(());
    }
    mount_at("proc", "/proc", "proc", NO_PROGRAMS, "")
}

/// Makes the machine ready.
pub fn prepare() -> Result<()> {
    umask(Mode::empty());
    mount_at("sysfs", "/sys", "sysfs", NO_PROGRAMS, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;
    // Their files are still at hand.
    modules::load()?;
    find_disks()?;
    switch_root().context("leave the initial file system")?;
    devices().context("fill /dev")?;
    control_groups()?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).context("allow open files")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Has disks be found as they are plugged in. The kernel was told to look for none while it boots: there are none yet, and
/// it would ask each of a bus' 256 places. A driver that comes as a module was not told, and says so here.
fn find_disks() -> Result<()> {
    match fs::write(DISK_SCAN, "async") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("write {DISK_SCAN}"))
        }
        _ => Ok(()),
    }
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounts a file system of the kernel's on a folder, which is made.
fn mount_at(source: &str, folder: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    mount(Some(source), folder, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {folder} (not in this kernel?)"))
}

fn switch_root() -> Result<()> {
    mount_at("tmpfs", NEW_ROOT, "tmpfs", MsFlags::empty(), "mode=0755")?;
    let new = Path::new(NEW_ROOT);
    for name in MOVED {
        let (from, to) = (Path::new("/").join(name), new.join(name));
        fs::create_dir(&to).with_context(|| format!("make {}", to.display()))?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("move {} to {}", from.display(), to.display()))?;
    }
    empty(Path::new("/"), new)?;
    chdir(new).context("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the new root over the old")?;
    chroot(".").context("enter the new root")?;
    chdir("/").context("enter the new root")?;
    fs::create_dir("/run").context("make /run")?;
    fs::create_dir("/tmp")
        .and_then(|()| fs::set_permissions("/tmp", Permissions::from_mode(0o1777)))
        .context("make /tmp")
}

/// Removes what is in the initial root; other file systems are left alone.
fn empty(root: &Path, but: &Path) -> Result<()> {
    let device = fs::metadata(root)?.dev();
    for entry in fs::read_dir(root).context("list the initial files")? {
        let path = entry?.path();
        let known = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        if path == but || known.dev() != device {
            continue;
        }
        let removed = if known.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn devices() -> Result<()> {
    mount_at("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", "mqueue", NO_PROGRAMS, "")?;
    for (target, name) in
        [("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr"), ("/proc/kcore", "core")]
    {
        match symlink(target, Path::new("/dev").join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context("link /dev/fd"),
            _ => {}
        }
    }
    Ok(())
}

/// Mounts cgroup v2 and lets the groups below the root have every controller.
fn control_groups() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", NO_PROGRAMS, "nsdelegate,memory_recursiveprot")?;
    let controllers =
        fs::read_to_string(root.join("cgroup.controllers")).context("read the control groups' controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("delegate the controller {controller}"))?;
    }
    Ok(())
}
