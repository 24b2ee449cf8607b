//! The checkpoint: `criu dump`, or `criu pre-dump`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::criu::{Criu, directory};
use super::{CheckpointOptions, DESCRIPTORS, MOUNTS, external};
use crate::Runtime;
use crate::cgroup::Version;
use crate::create::cgroup_error;
use crate::error::{Context, Error, Result};
use crate::spec::{NamespaceKind, Spec};
use crate::state::{Record, Status};

pub(super) fn checkpoint(runtime: &Runtime, id: &str, options: &CheckpointOptions) -> Result<()> {
    let record = Record::load(&runtime.root, id)?;
    let status = record.status(&runtime.root)?;
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(Error::State(format!("cannot checkpoint container {id:?}: it is {status}")));
    }
    let spec = record.spec(&runtime.root)?;
    if spec.process.as_ref().is_some_and(|p| p.terminal) {
        return Err(refused_terminal(id));
    }
    let images = directory(&options.criu.images)?;
    if let Some(parent) = &options.parent {
        check_parent(&images, parent)?;
    }
    let verb = if options.pre_dump { "pre-dump" } else { "dump" };
    let mut criu = Criu::new(verb, "dump.log", &options.criu)?;
    criu.pair("--tree", record.pid.to_string());
    criu.pair("--root", &record.rootfs);
    freeze_by_cgroup(&mut criu, &record);
    external_namespaces(&mut criu, &record, &spec)?;
    criu.switch("--skip-in-flight", options.tcp_skip_in_flight);
    criu.switch("--link-remap", options.link_remap);
    criu.switch("--track-mem", options.pre_dump || options.parent.is_some());
    if let Some(parent) = &options.parent {
        criu.pair("--prev-images-dir", parent);
    }
    if let Some((address, port)) = &options.page_server {
        criu.word("--page-server");
        criu.pair("--address", address);
        criu.pair("--port", port.to_string());
    }
    if !options.pre_dump {
        criu.switch("--leave-running", options.leave_running);
        // What it has open must not change until CRIU sees it, too.
        let cgroup = record.cgroup();
        if status == Status::Running {
            cgroup.freeze().map_err(cgroup_error)?;
        }
        let dumped = describe(&mut criu, &record, &spec, &images).and_then(|()| criu.run());
        // One that was dumped and killed may have taken its cgroup with it.
        let thawed = if status == Status::Running { cgroup.thaw() } else { Ok(()) };
        return match options.leave_running {
            true => dumped.and(thawed.map_err(cgroup_error)),
            false => dumped,
        };
    }
    criu.run()
}

pub(super) fn refused_terminal(id: &str) -> Error {
    Error::Refused {
        field: "process.terminal".into(),
        reason: format!("container {id:?} cannot be checkpointed or restored: criu gives terminals over its RPC alone"),
    }
}

/// As runc: relative, and there.
fn check_parent(images: &Path, parent: &Path) -> Result<()> {
    if parent.is_absolute() {
        return Err(Error::invalid("--parent-path must be relative"));
    }
    let path = images.join(parent);
    match fs::metadata(&path).path("invalid --parent-path: open", &path)?.is_dir() {
        true => Ok(()),
        false => Err(Error::invalid(format!("invalid --parent-path: {} is not a directory", path.display()))),
    }
}

/// A frozen container cannot fork away from a dump.
fn freeze_by_cgroup(criu: &mut Criu, record: &Record) {
    let groups = &record.cgroup.groups;
    let freezer = match record.cgroup.version {
        Version::V2 => groups.first(),
        Version::V1 => groups.iter().find(|group| group.controllers.iter().any(|c| c == "freezer")),
    };
    if let Some(group) = freezer {
        criu.pair("--freeze-cgroup", &group.path);
    }
}

/// A network or a PID namespace that was joined is not the container's to save.
fn external_namespaces(criu: &mut Criu, record: &Record, spec: &Spec) -> Result<()> {
    for (kind, name, key) in super::restore::EXTERNAL_NAMESPACES {
        let joined = spec.namespace(*kind).is_some_and(|namespace| namespace.joins().is_some());
        if joined {
            // By the process: the path may have come to mean another namespace.
            let path = format!("/proc/{}/ns/{name}", record.pid);
            let inode = fs::metadata(&path).path("stat", Path::new(&path))?.ino();
            criu.pair("--external", format!("{name}[{inode}]:{key}"));
        }
    }
    if spec.namespace(NamespaceKind::Cgroup).is_some_and(|namespace| namespace.joins().is_some()) {
        return Err(Error::Refused {
            field: "linux.namespaces".into(),
            reason: "criu cannot join a cgroup namespace at the restore".into(),
        });
    }
    Ok(())
}

/// Names what is the host's, for CRIU and for the restore.
fn describe(criu: &mut Criu, record: &Record, spec: &Spec, images: &Path) -> Result<()> {
    let mounts = external::mounts_of(record.pid, spec)?;
    for point in &mounts {
        let point = point.display();
        criu.pair("--external", format!("mnt[{point}]:{point}"));
    }
    write_json(&images.join(MOUNTS), &mounts)?;
    let streams = external::streams_of(record.pid)?;
    for stream in streams.iter().filter(|stream| stream.external) {
        criu.pair("--external", &stream.name);
    }
    write_json(&images.join(DESCRIPTORS), &streams.iter().map(|stream| &stream.name).collect::<Vec<_>>())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::State(format!("{}: {e}", path.display())))?;
    fs::write(path, text).path("write", path)
}
