//! cgroup v2: one directory, controllers handed down level by level.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxResources;

use super::{
    Cgroup, CgroupOptions, CgroupState, Group, Made, Place, Version, device_program, devices,
    error::{Error, Result},
    mounts::{Hierarchy, OwnCgroups},
    plan, put,
};

/// What a container's cgroup should have wherever the host offers it: limits may come later, and statistics need it.
const USUAL: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];
/// These too, when they have to be enabled anyway.
const EXTRA: &[&str] = &["hugetlb", "rdma", "misc"];

/// Makes the directory, gets the controllers into it, then writes the limits.
pub(super) fn create(
    hierarchy: &Hierarchy,
    place: &Place,
    options: &CgroupOptions,
    resources: Option<&LinuxResources>,
    made: &mut Made,
) -> Result<Cgroup> {
    // Refusals that need no kernel come before anything is made.
    let steps = resources.map(plan::v2).transpose()?.unwrap_or_default();
    let rules = resources.and_then(|r| r.devices().as_deref()).map(devices::rules).transpose()?;
    let directory = place.in_v2(hierarchy, &mut OwnCgroups::default())?;
    let new = match made.directory(&directory).map_err(|e| Error::io("make cgroup", &directory, e)) {
        Err(e) if e.denied() && options.may_go_without() => return go_without(&steps, e),
        outcome => outcome?,
    };
    if !new {
        place.require_empty(&directory)?;
    }
    enable_controllers(&hierarchy.mount, &directory, &steps)?;
    let groups = vec![Group { controllers: Vec::new(), path: directory.clone() }];
    let cgroup = Cgroup::of(CgroupState::new(Version::V2, groups));
    cgroup.execute(&steps)?;
    if let Some(rules) = rules {
        match device_program::install(&directory, &rules) {
            Err(e) if e.denied() && options.rootless.applies() => {}
            outcome => outcome?,
        }
    }
    if let Some(uid) = options.owner {
        match give_to(uid, &directory) {
            // An ordinary user can give nothing away: the cgroup stays his.
            Err(e) if e.denied() && options.rootless.applies() => {}
            outcome => outcome?,
        }
    }
    Ok(cgroup)
}

/// Lets a user make cgroups beneath this one: its directory and the files that the kernel says a delegate must own.
fn give_to(uid: u32, directory: &Path) -> Result<()> {
    let files = fs::read_to_string("/sys/kernel/cgroup/delegate");
    let files = files.unwrap_or_else(|_| "cgroup.procs cgroup.subtree_control cgroup.threads".to_owned());
    for path in std::iter::once(directory.to_owned()).chain(files.split_whitespace().map(|file| directory.join(file))) {
        match std::os::unix::fs::lchown(&path, Some(uid), None) {
            // Not every kernel and cgroup has all of them.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            outcome => outcome.map_err(|e| Error::io("give to the container's user", path, e))?,
        }
    }
    Ok(())
}

/// A rootless container without a cgroup: fine as long as nothing is asked of it.
fn go_without(steps: &[plan::Step], denied: Error) -> Result<Cgroup> {
    match steps.iter().flatten().find(|write| !write.optional) {
        Some(write) => Err(Error::refused(
            write.field.clone(),
            format!("a rootless container can only be limited in a cgroup that this user may write ({denied})"),
        )),
        None => Ok(Cgroup::of(CgroupState::new(Version::V2, Vec::new()))),
    }
}

/// Changes the limits of a living cgroup.
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources, steps: &[plan::Step]) -> Result<()> {
    let directory = &cgroup.state.groups[0].path;
    check_before_update(directory, resources)?;
    cgroup.execute(steps)?;
    if let Some(rules) = resources.devices() {
        device_program::install(directory, &devices::rules(rules)?)?;
    }
    Ok(())
}

/// `memory.checkBeforeUpdate`: v2 takes a limit below what is used and kills until it fits; asked to, we refuse instead.
fn check_before_update(directory: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory().filter(|m| m.check_before_update() == Some(true)) else { return Ok(()) };
    let limits = [("memory.limit", memory.limit()), ("memory.swap", memory.swap())];
    let Some((field, limit)) =
        limits.into_iter().filter_map(|(f, l)| Some((f, l.filter(|l| *l > 0)?))).min_by_key(|l| l.1)
    else {
        return Ok(());
    };
    let path = directory.join("memory.current");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    match text.trim().parse::<i64>() {
        Ok(used) if used >= limit => Err(Error::refused(
            format!("linux.resources.{field}"),
            format!("{limit} is not above the {used} bytes in use"),
        )),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Malformed { path, text }),
    }
}

fn controllers_in(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Whether a controller's files are in this directory.
pub(super) fn enabled(directory: &Path, controller: &str) -> bool {
    controllers_in(&directory.join("cgroup.controllers")).is_ok_and(|found| found.iter().any(|c| c == controller))
}

/// Gets controllers down to `directory`. Usually its parents hand them down already, and that costs one read.
///
/// A level that cannot hand one down is no error here: it is one when a field needs that controller.
fn enable_controllers(mount: &Path, directory: &Path, steps: &[plan::Step]) -> Result<()> {
    let needed = steps.iter().flatten().filter(|w| !w.optional).map(|w| w.controller).filter(|c| *c != "cgroup");
    let here = controllers_in(&directory.join("cgroup.controllers"))?;
    if USUAL.iter().copied().chain(needed).all(|wanted| here.iter().any(|c| c == wanted)) {
        return Ok(());
    }
    let above: Vec<PathBuf> =
        directory.ancestors().skip(1).take_while(|p| p.starts_with(mount)).map(Path::to_owned).collect();
    for level in above.iter().rev() {
        let offered = controllers_in(&level.join("cgroup.controllers"))?;
        let file = level.join("cgroup.subtree_control");
        let handed = controllers_in(&file)?;
        let wanted: Vec<String> = offered
            .into_iter()
            .filter(|c| !handed.contains(c) && (USUAL.contains(&c.as_str()) || EXTRA.contains(&c.as_str())))
            .map(|c| format!("+{c}"))
            .collect();
        // All at once; where one of them is refused (a realtime process keeps cpu from being enabled) each alone.
        if !wanted.is_empty() && put(&file, &wanted.join(" ")).is_err() {
            for controller in &wanted {
                let _ = put(&file, controller);
            }
        }
    }
    Ok(())
}
