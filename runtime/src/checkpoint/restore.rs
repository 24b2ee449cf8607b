//! The restore: `criu restore`, with all that a create makes around it. What it did is undone when a later step fails.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::criu::{Criu, directory};
use super::{DESCRIPTORS, MOUNTS, RestoreOptions, dump, external};
use crate::beneath::{self, Kind};
use crate::cgroup::{Cgroup, CgroupOptions, Version};
use crate::create::{cgroup_error, kill_and_reap, make_state_dir, rootfs_path, write_pid_file};
use crate::error::{Context, Error, Result};
use crate::spec::{NamespaceKind, Spec};
use crate::state::{self, CONFIG, Record};
use crate::undo::Undo;
use crate::{CreateOptions, Parent, Runtime, Stdio, hooks, init, refuse, sys};

/// Namespaces that a restore gets by descriptor: kind, name in /proc/PID/ns, and CRIU's key of it in the images.
pub(super) const EXTERNAL_NAMESPACES: &[(NamespaceKind, &str, &str)] =
    &[(NamespaceKind::Network, "net", "extRootNetNS"), (NamespaceKind::Pid, "pid", "extRootPidNS")];
/// Where the root filesystem is mounted for CRIU, which needs a mount point, in the state directory.
const ROOT: &str = "criu-root";
/// Where CRIU writes the pid.
const PID: &str = "criu.pid";
/// The descriptors given to CRIU start here, above all that are open when its process is made.
const FIRST_FD: i32 = 200;

pub(super) fn restore(runtime: &Runtime, id: &str, create: CreateOptions, options: &RestoreOptions) -> Result<i32> {
    let mut undo = Undo::default();
    refuse::check_id(id)?;
    let bundle = fs::canonicalize(&create.bundle).path("open bundle", &create.bundle)?;
    let (spec, config) = Spec::load(&bundle.join(CONFIG))?;
    refuse::check(&spec)?;
    check(&spec, id, &create)?;
    let rootfs = rootfs_path(&spec, &bundle)?;
    let images = fs::canonicalize(&options.criu.images).path("open images", &options.criu.images)?;
    let points: Vec<PathBuf> = read_json(&images.join(MOUNTS))?;
    let streams: Vec<String> = read_json(&images.join(DESCRIPTORS))?;

    let dir = make_state_dir(runtime, id)?;
    undo.push({
        let dir = dir.clone();
        move || drop(fs::remove_dir_all(dir))
    });
    fs::write(dir.join(CONFIG), &config).path("write", &dir.join(CONFIG))?;
    let root = directory(&dir.join(ROOT))?;

    let cgroup_options = CgroupOptions {
        systemd: create.systemd_cgroup,
        rootless: create.rootless,
        annotations: Some(&spec.annotations),
        ..CgroupOptions::new(spec.linux.cgroups_path.as_deref().map(Path::new), id)
    };
    let cgroup = Cgroup::create(&cgroup_options, spec.linux.resources.as_deref()).map_err(cgroup_error)?;
    undo.push({
        let cgroup = Cgroup::open(&cgroup.state());
        move || {
            // CRIU may have died with some processes made.
            let _ = cgroup.kill_all(libc::SIGKILL);
            let _ = cgroup.remove();
        }
    });

    make_mount_points(&spec, &rootfs)?;
    let mut criu = Criu::new("restore", "restore.log", &options.criu)?;
    criu.pair("--root", &root);
    criu.pair("--pidfile", dir.join(PID));
    for word in ["--restore-detached", "--restore-sibling", "--evasive-devices"] {
        criu.word(word);
    }
    for point in &points {
        let source = external::source_of(point, &spec, &bundle)?;
        criu.pair("--external", format!("mnt[{}]:{}", point.display(), source.display()));
    }
    if let Some(profile) = &options.lsm_profile {
        criu.pair("--lsm-profile", profile);
    }
    if let Some(context) = &options.lsm_mount_context {
        criu.pair("--lsm-mount-context", context);
    }
    cgroup_roots(&mut criu, &cgroup);
    let given = give(&mut criu, &spec, &streams, &create.stdio)?;
    prepare(&mut criu, &cgroup, given, rootfs.clone(), root.clone())?;
    criu.run()?;

    let path = dir.join(PID);
    let text = fs::read_to_string(&path).path("read", &path)?;
    let pid = text.trim().parse().map_err(|_| Error::Init(format!("criu wrote no pid but {text:?}")))?;
    undo.push(move || kill_and_reap(pid, Parent::Caller));
    fs::remove_file(&path).path("remove", &path)?;
    fs::remove_dir(&root).path("remove", &root)?;
    let mut record = Record::of(&spec, id, pid, bundle.clone(), rootfs, &cgroup)
        .ok_or_else(|| Error::Init("the restored process died at once".into()))?;
    record.namespaces |= time_namespace(pid);
    record.no_new_keyring = create.no_new_keyring;
    record.save(&dir)?;
    if let Some(path) = &create.pid_file {
        write_pid_file(path, pid)?;
    }
    let state = state::hook_state(&spec, id, &bundle, "running", pid);
    hooks::run("poststart", &spec.hooks.poststart, &state, &bundle)?;
    undo.disarm();
    Ok(pid)
}

/// What a restore cannot do, by name.
fn check(spec: &Spec, id: &str, create: &CreateOptions) -> Result<()> {
    let refused = |field: &str, reason: &str| Err(Error::Refused { field: field.into(), reason: reason.into() });
    if spec.process.as_ref().is_some_and(|p| p.terminal) || create.console_socket.is_some() {
        return Err(dump::refused_terminal(id));
    }
    if !spec.hooks.prestart.is_empty() || !spec.hooks.create_runtime.is_empty() {
        return refused("hooks", "prestart and createRuntime cannot run in the middle of a restore");
    }
    if spec.linux.intel_rdt.is_some() {
        return refused("linux.intelRdt", "not with a restore");
    }
    if !create.rootfs_mounts.is_empty() {
        return refused("root", "mounts for the root filesystem are not made for a restore: mount it before");
    }
    Ok(())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::State(format!(
                "{} is missing: the directory holds no checkpoint of ours",
                path.display()
            )));
        }
        result => result.path("read", path)?,
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::State(format!("parse {}: {e}", path.display())))
}

/// The root filesystem may be a fresh copy, without the mount points that a create makes.
fn make_mount_points(spec: &Spec, rootfs: &Path) -> Result<()> {
    let root = init::open_directory(rootfs)?;
    let is = |mount: &crate::spec::Mount, kind: &str| mount.kind.as_deref() == Some(kind);
    let binds =
        |mount: &crate::spec::Mount| is(mount, "bind") || mount.options.iter().any(|o| o == "bind" || o == "rbind");
    for mount in spec.mounts.iter().filter(|mount| !is(mount, "cgroup") && !is(mount, "cgroup2")) {
        // Beneath another mount the point is that one's: in its image, or on the host.
        let path = Path::new("/").join(&mount.destination);
        let covered = spec.mounts.iter().any(|m| {
            let above = Path::new("/").join(&m.destination);
            above != path && path.starts_with(&above)
        });
        let kind = match mount.source.as_deref().filter(|_| binds(mount)).map(fs::metadata) {
            Some(Ok(source)) if !source.is_dir() => Kind::File,
            _ => Kind::Directory,
        };
        if !covered {
            beneath::target(&root, &path, kind).path("make mount point", &path)?;
        }
    }
    Ok(())
}

/// Where in each hierarchy the saved cgroups are to be: in the one that was made now.
fn cgroup_roots(criu: &mut Criu, cgroup: &Cgroup) {
    let state = cgroup.state();
    for group in &state.groups {
        // /sys/fs/cgroup, and on v1 the hierarchy's directory.
        let mounted = if state.version == Version::V2 { 4 } else { 5 };
        let path: PathBuf = Path::new("/").join(group.path.components().skip(mounted).collect::<PathBuf>());
        match state.version {
            Version::V2 => criu.pair("--cgroup-root", path),
            Version::V1 => {
                let names = group.controllers.iter().map(|c| format!("{c}:{}", path.display()));
                names.for_each(|root| criu.pair("--cgroup-root", root));
            }
        }
    }
}

/// A descriptor, and its number in CRIU.
type Given = Vec<(OwnedFd, i32)>;

/// Streams and namespaces that CRIU inherits.
fn give(criu: &mut Criu, spec: &Spec, streams: &[String], stdio: &Stdio) -> Result<Given> {
    let mut given = Given::new();
    let mut add = |criu: &mut Criu, fd: OwnedFd, name: &str| {
        let number = FIRST_FD + given.len() as i32;
        criu.pair("--inherit-fd", format!("fd[{number}]:{name}"));
        given.push((fd, number));
    };
    let ours = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    for (number, (name, ours)) in streams.iter().zip(ours).enumerate() {
        // Two streams may be the same file.
        if external::is_inherited(name) && !streams[..number].contains(name) {
            let standard = sys::borrow(number as i32);
            let fd = ours.as_ref().map_or(standard, |fd| std::os::fd::AsFd::as_fd(fd));
            add(criu, duplicate(fd)?, name);
        }
    }
    for namespace in &spec.linux.namespaces {
        let Some(path) = namespace.joins() else { continue };
        match EXTERNAL_NAMESPACES.iter().find(|(kind, ..)| *kind == namespace.kind) {
            Some((_, _, key)) => add(criu, fs::File::open(path).path("open namespace", path)?.into(), key),
            None if matches!(namespace.kind, NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::User) => {
                criu.pair("--join-ns", format!("{}:{}", namespace.kind.name(), path.display()));
            }
            None => {
                let reason = format!("criu cannot join a {} namespace at the restore", namespace.kind.name());
                return Err(Error::Refused { field: "linux.namespaces".into(), reason });
            }
        }
    }
    Ok(given)
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().op(|| "duplicate a standard stream")
}

/// What CRIU's process does before it becomes CRIU: it joins the cgroup, has a mount namespace of its own with the root
/// filesystem at its place, and its descriptors at their numbers.
fn prepare(criu: &mut Criu, cgroup: &Cgroup, given: Given, rootfs: PathBuf, root: PathBuf) -> Result<()> {
    let mut files = cgroup.join_self_files().map_err(cgroup_error)?;
    if files.is_empty() {
        for group in cgroup.state().groups {
            let path = group.path.join("cgroup.procs");
            files.push(fs::OpenOptions::new().write(true).open(&path).path("open", &path)?.into());
        }
    }
    sys::before_exec(&mut criu.command, move || {
        for file in &files {
            fs::File::from(file.try_clone()?).write_all(b"0")?;
        }
        sys::unshare(libc::CLONE_NEWNS as u64)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
        mount(Some(&rootfs), &root, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        given.iter().try_for_each(|(fd, number)| sys::dup_to(fd.as_raw_fd(), *number, false))
    });
    Ok(())
}

/// CRIU restores processes into a time namespace, so that their monotonic clock goes on: exec has to join it.
fn time_namespace(pid: i32) -> u64 {
    let inode = |path: String| fs::read_link(path).ok();
    match inode("/proc/self/ns/time".into()) == inode(format!("/proc/{pid}/ns/time")) {
        true => 0,
        false => NamespaceKind::Time.flag(),
    }
}
