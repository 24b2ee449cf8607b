//! cgroup v1: a directory in each hierarchy.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::{
    Cgroup, CgroupOptions, CgroupState, Group, Made, Place, Version,
    devices::{self, V1State},
    error::{Error, Result},
    mounts::{Hierarchy, OwnCgroups},
    plan, put, put_to,
};

/// Makes the directories, then writes the limits.
pub(super) fn create(
    hierarchies: &[Hierarchy],
    place: &Place,
    options: &CgroupOptions,
    resources: Option<&LinuxResources>,
    made: &mut Made,
) -> Result<Cgroup> {
    // Refusals that need no kernel come before anything is made.
    let steps = resources.map(plan::v1).transpose()?.unwrap_or_default();
    let rules = resources.and_then(|r| r.devices().as_deref());
    let mut own = OwnCgroups::default();
    let mut groups = Vec::with_capacity(hierarchies.len());
    for hierarchy in hierarchies {
        let directory = place.in_v1(hierarchy, &mut own)?;
        match make(hierarchy, place, &directory, made) {
            Ok(()) => groups.push(Group { controllers: hierarchy.controllers.clone(), path: directory }),
            // For a rootless container a hierarchy that it may not write is as one that is not mounted: it matters when
            // a field needs it, and then that field's error says so.
            Err(e) if e.denied() && options.may_go_without() => {}
            Err(e) => return Err(e),
        }
    }
    let cgroup = Cgroup::of(CgroupState::new(Version::V1, groups));
    cgroup.execute(&steps)?;
    if let Some(rules) = rules {
        match reset_devices(&cgroup, rules) {
            Err(e) if (e.denied() || cgroup.dir_of("devices").is_none()) && options.rootless.applies() => {}
            outcome => outcome?,
        }
    }
    Ok(cgroup)
}

fn make(hierarchy: &Hierarchy, place: &Place, directory: &Path, made: &mut Made) -> Result<()> {
    let before = made.0.len();
    let new = made.directory(directory).map_err(|e| Error::io("make cgroup", directory, e))?;
    if !new {
        place.require_empty(directory)?;
    }
    if hierarchy.controllers.iter().any(|c| c == "cpuset") {
        fill_cpuset(directory)?;
        // Directories made on the way to the container's hand theirs down by themselves from now on, so that of the many
        // containers beneath a parent only the first pays.
        for parent in made.0[before..].iter().filter(|made| made.as_path() != directory) {
            let path = parent.join("cgroup.clone_children");
            put(&path, "1").map_err(|e| Error::io("initialise", path, e))?;
        }
    }
    Ok(())
}

/// Gives a cpuset without cpus and nodes its parent's: without, no process can join it.
///
/// A parent may be empty, too: another process has made it a moment ago and is about to do the same as we. Both write
/// the same values. The hierarchy's root is never empty, so this ends there.
fn fill_cpuset(directory: &Path) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| Error::io("read", path, e));
    if !read(&directory.join("cpuset.mems"))?.trim().is_empty() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    fill_cpuset(parent)?;
    // The nodes last: they are what the check above looks at.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = read(&parent.join(file))?;
        let path = directory.join(file);
        put(&path, inherited.trim()).map_err(|e| Error::io("initialise", path, e))?;
    }
    Ok(())
}

/// Changes the limits of a living cgroup.
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources, steps: &[plan::Step]) -> Result<()> {
    cgroup.execute(steps)?;
    let Some(rules) = resources.devices() else { return Ok(()) };
    let (directory, wanted) = device_state(cgroup, rules)?;
    let path = directory.join("devices.list");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let current = V1State::parse(&text).ok_or(Error::Malformed { path, text })?;
    write_devices(directory, &wanted.changes_from(&current))
}

/// Does something that may write other device rules, and brings back those in force before; nobody runs meanwhile.
pub(super) fn with_devices_kept(cgroup: &Cgroup, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(directory) = cgroup.dir_of("devices") else { return change() };
    let read = || {
        let path = directory.join("devices.list");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        V1State::parse(&text).ok_or(Error::Malformed { path, text })
    };
    let thaw = cgroup.dir_of("freezer").is_some() && !cgroup.frozen()?;
    if thaw {
        cgroup.freeze()?;
    }
    let changed = read().and_then(|before| {
        change()?;
        write_devices(directory, &before.changes_from(&read()?))
    });
    let thawed = if thaw { cgroup.thaw() } else { Ok(()) };
    changed.and(thawed)
}

fn device_state<'a>(cgroup: &'a Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<(&'a Path, V1State)> {
    let wanted = V1State::from_rules(&devices::rules(rules)?)?;
    let directory = cgroup.dir_of("devices").ok_or_else(|| Error::MissingController {
        field: "linux.resources.devices".to_owned(),
        controller: "devices".to_owned(),
        why: "is not mounted (or not writable) on this host".to_owned(),
    })?;
    Ok((directory, wanted))
}

/// Device rules of a cgroup that nothing runs in yet: reset, then the exceptions.
fn reset_devices(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let (directory, wanted) = device_state(cgroup, rules)?;
    let mut writes = vec![(wanted.default_allow, "a".to_owned())];
    writes.extend(wanted.after_reset());
    write_devices(directory, &writes)
}

/// Performs device writes in their order, each file opened once.
fn write_devices(directory: &Path, writes: &[(bool, String)]) -> Result<()> {
    let paths = [directory.join("devices.deny"), directory.join("devices.allow")];
    let mut files = [None, None];
    for (allow, text) in writes {
        let (path, slot) = (&paths[usize::from(*allow)], &mut files[usize::from(*allow)]);
        let file = match slot {
            Some(file) => file,
            None => slot.insert(OpenOptions::new().write(true).open(path).map_err(|e| Error::io("open", path, e))?),
        };
        put_to(file, text).map_err(|cause| Error::Set {
            field: "linux.resources.devices".to_owned(),
            value: text.clone(),
            path: path.clone(),
            hint: device_hint(&cause),
            cause,
        })?;
    }
    Ok(())
}

fn device_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (the parent cgroup does not allow it)",
        _ => "",
    }
}
