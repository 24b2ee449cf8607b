//! The systemd driver: a container's cgroup is a transient scope, so that systemd knows of it, accounts for it, and does
//! not take its files for its own.
//!
//! ```text
//! create   a holder is forked; StartTransientUnit(scope, its pid, the limits); our files beneath; the init is born in it
//! update   the files, then SetUnitProperties with the same; taken back when either is refused
//! remove   StopUnit, ResetFailedUnit, and what systemd did not know of
//! ```
//!
//! systemd makes no scope without a process, and ours is to be born in its cgroup: so a [`Holder`] is the first, and ends
//! as soon as [`Cgroup`](super::Cgroup) is dropped, when the init is there. The scope's `Delegate` keeps systemd from the
//! cgroups beneath it.
//!
//! On v1 systemd makes the cgroup in the hierarchies it knows, we make it in the others (freezer, cpuset, hugetlb...). On
//! a hybrid host systemd follows a scope's processes in the v2 tree, so that the container joins there as well.

mod bus;
#[cfg(fuzzing)]
pub(super) mod fuzz;
mod properties;
mod text;
mod wire;

#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::mounts::{self, Layout, beneath_mount};
use super::{Cgroup, CgroupOptions, Group, Made, Place, Version, options, sys, v1, v2};
use bus::{Bus, Failure, Property};
use properties::{Properties, annotated};
use wire::Value;

/// The longest name of a unit.
const MAX_NAME: usize = 255;
/// The first word of a scope's name when the configuration gives none.
const PREFIX: &str = "coracle";

/// The unit of a cgroup: what a state file keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `PREFIX-NAME.scope`.
    pub name: String,
    /// The user's manager has it, not the system's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

/// A unit as it is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    slice: String,
    name: String,
}

impl Asked {
    /// Reads `slice:prefix:name`; each may be empty but the name.
    fn new(options: &CgroupOptions, user: bool) -> Result<Asked> {
        let text = options.path.unwrap_or(Path::new("")).as_os_str();
        let bad = |why| Error::BadPath { path: text.to_string_lossy().into_owned(), why };
        let text = std::str::from_utf8(text.as_bytes()).map_err(|_| bad("is not UTF-8"))?;
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = match (&parts[..], text) {
            (_, "") => ["", PREFIX, options.id],
            (&[slice, prefix, name], _) => [slice, prefix, name],
            _ => return Err(bad("with the systemd driver it must be slice:prefix:name")),
        };
        let slice = match slice {
            "" if user => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        if !is_slice(slice) {
            return Err(bad("the slice must be NAME.slice or NAME-NAME.slice, without `/`"));
        }
        if name.is_empty() || name.ends_with(".slice") {
            return Err(bad("the name must be a scope's: it is empty, or a slice's"));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if name.len() > MAX_NAME || !name.bytes().all(good) {
            return Err(bad("a unit's name has letters, digits and : - _ . \\ @, at most 255"));
        }
        Ok(Asked { slice: slice.to_owned(), name })
    }
}

/// `-.slice` is the root; dashes separate levels, none of which may be empty.
fn is_slice(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".slice") else { return false };
    stem == "-" || !stem.contains('/') && stem.split('-').all(|level| !level.is_empty())
}

/// A process that waits to be killed, so that a scope has one.
#[derive(Debug)]
pub(super) struct Holder {
    pid: i32,
}

impl Holder {
    fn fork() -> Result<Holder> {
        let forked = sys::fork_waiting();
        forked.map(|pid| Holder { pid }).map_err(|e| Error::io("fork a first process for", "the scope", e.into()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        sys::kill_and_reap(self.pid);
    }
}

/// Whether systemd is this host's init, as sd_booted(3) finds out.
fn runs() -> bool {
    fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
}

fn failed(what: String) -> impl FnOnce(Failure) -> Error {
    move |failure| Error::Systemd { what, why: failure.to_string() }
}

/// Connects to the manager that has, or shall have, the units.
fn connect(user: bool) -> Result<Bus> {
    let uid = user.then(options::owner_of_user_namespace);
    Bus::connect(uid).map_err(|failure| {
        let hint = match uid {
            Some(uid) => format!(" (has user {uid} a session, or `loginctl enable-linger`?)"),
            None => String::new(),
        };
        Error::Systemd { what: "reach systemd".to_owned(), why: format!("{failure}{hint}") }
    })
}

/// Makes a scope and what belongs to it.
pub(super) fn create(options: &CgroupOptions, resources: Option<&LinuxResources>) -> Result<Cgroup> {
    if !runs() {
        return Err(Error::Systemd {
            what: "use the systemd cgroup driver".to_owned(),
            why: "systemd does not run here (no /run/systemd/system); use the cgroupfs driver".to_owned(),
        });
    }
    let layout = Layout::detect()?;
    let user = options.rootless.applies();
    if user && matches!(layout, Layout::V1(_)) {
        return Err(Error::refused("--systemd-cgroup", "a rootless container needs cgroup v2 for the systemd driver"));
    }
    create_on(&layout, &mut connect(user)?, user, options, resources)
}

fn create_on(
    layout: &Layout,
    bus: &mut Bus,
    user: bool,
    options: &CgroupOptions,
    resources: Option<&LinuxResources>,
) -> Result<Cgroup> {
    let asked = Asked::new(options, user)?;
    let resources = resources.map(properties::rounded);
    let mut properties = common(&asked, options.id, layout.version());
    properties.extend(options.annotations.map(annotated).transpose()?.unwrap_or_default());
    if let Some(resources) = &resources {
        properties.extend(limits(bus, layout.version(), resources, true)?);
    }
    // Refused before anything is made, where no kernel is needed to tell.
    match (layout, &resources) {
        (Layout::V1(_), Some(resources)) => drop(super::plan::v1(resources)?),
        (Layout::V2(_), Some(resources)) => drop(super::plan::v2(resources)?),
        (_, None) => {}
    }
    let holder = Holder::fork()?;
    properties.push(("PIDs".to_owned(), Value::Array("u".to_owned(), vec![Value::U32(holder.pid as u32)])));
    start(bus, &asked.name, &properties)?;
    let mut made = Made::default();
    let filled = fill(layout, bus, &asked.name, options, resources.as_ref(), &holder, &mut made);
    match filled {
        Ok(mut cgroup) => {
            made.keep();
            cgroup.state.systemd = Some(Unit { name: asked.name, user });
            cgroup.holder = Some(holder);
            Ok(cgroup)
        }
        Err(error) => {
            drop(holder);
            // The error that led here is the one the caller gets.
            let _ = bus.stop(&asked.name).and_then(|()| bus.reset_failed(&asked.name));
            Err(error)
        }
    }
}

/// What every scope of ours has. Accounting is on from the start: a controller that comes later counts from then only.
fn common(asked: &Asked, id: &str, version: Version) -> Vec<Property> {
    let yes = |name: &str| (name.to_owned(), Value::Bool(true));
    let io = if version == Version::V1 { "BlockIOAccounting" } else { "IOAccounting" };
    let mut all: Vec<Property> = vec![
        ("Description".to_owned(), Value::Str(format!("coracle container {id}"))),
        ("Slice".to_owned(), Value::Str(asked.slice.clone())),
        ("DefaultDependencies".to_owned(), Value::Bool(false)),
    ];
    all.extend(["Delegate", "MemoryAccounting", "CPUAccounting", io, "TasksAccounting"].map(yes));
    all
}

fn limits(bus: &mut Bus, version: Version, resources: &LinuxResources, new: bool) -> Result<Vec<Property>> {
    let mut known = None;
    let mut ask = || match known {
        Some(version) => Ok(version),
        None => bus.version().map(|version| *known.insert(version)).map_err(failed("ask systemd's version".to_owned())),
    };
    let mut properties = Properties { list: Vec::new(), known_version: &mut ask };
    properties.resources(version, resources)?;
    if new {
        properties.oom_policy(resources)?;
    }
    Ok(properties.list)
}

/// Starts the scope. One of the same name that failed earlier is forgotten first.
fn start(bus: &mut Bus, unit: &str, properties: &[Property]) -> Result<()> {
    let what = || format!("start unit {unit}");
    let result = match bus.start(unit, properties) {
        Err(failure) if failure.is("UnitExists") => {
            let again = bus.reset_failed(unit).and_then(|()| bus.start(unit, properties));
            again.map_err(failed(format!("{}, which exists already", what())))?
        }
        outcome => outcome.map_err(failed(what()))?,
    };
    if result == "done" {
        return Ok(());
    }
    let _ = bus.reset_failed(unit);
    Err(Error::Systemd { what: what(), why: format!("the job's result is {result:?} (see the journal of the unit)") })
}

/// Makes the scope's cgroup where systemd does not, and writes the limits.
fn fill(
    layout: &Layout,
    bus: &mut Bus,
    unit: &str,
    options: &CgroupOptions,
    resources: Option<&LinuxResources>,
    holder: &Holder,
    made: &mut Made,
) -> Result<Cgroup> {
    let path = bus.control_group(unit).map_err(failed(format!("ask for the cgroup of {unit}")))?;
    if path.len() < 2 {
        return Err(Error::Systemd { what: format!("start unit {unit}"), why: "it has no cgroup".to_owned() });
    }
    let place = Place::Unit { path: PathBuf::from(&path), holder: holder.pid };
    match layout {
        Layout::V2(hierarchy) => v2::create(hierarchy, &place, options, resources, made),
        Layout::V1(hierarchies) => {
            let mut cgroup = v1::create(hierarchies, &place, options, resources, made)?;
            if let Some(hybrid) = mounts::unified()? {
                let path = beneath_mount(&hybrid, Path::new(&path));
                if path.is_dir() {
                    cgroup.state.groups.push(Group { controllers: vec![super::UNIFIED.to_owned()], path });
                }
            }
            Ok(cgroup)
        }
    }
}

/// Tells systemd of changed limits.
pub(super) fn update(cgroup: &Cgroup, unit: &Unit, resources: &LinuxResources) -> Result<()> {
    let bus = &mut connect(unit.user)?;
    let properties = limits(bus, cgroup.state.version, resources, false)?;
    if properties.is_empty() {
        return Ok(());
    }
    let set = |bus: &mut Bus| bus.set(&unit.name, &properties).map_err(failed(format!("limit unit {}", unit.name)));
    match cgroup.state.version {
        Version::V2 => set(bus),
        // systemd writes all that it knows of a unit, and device rules by denying all first.
        Version::V1 => v1::with_devices_kept(cgroup, || set(bus)),
    }
}

/// The resources as systemd will keep them.
pub(super) fn rounded(resources: &LinuxResources) -> LinuxResources {
    properties::rounded(resources)
}

/// Ends the unit. Its processes must be dead.
pub(super) fn remove(unit: &Unit) -> Result<()> {
    let mut bus = connect(unit.user)?;
    bus.stop(&unit.name).map_err(failed(format!("stop unit {}", unit.name)))?;
    bus.reset_failed(&unit.name).map_err(failed(format!("forget unit {}", unit.name)))
}

/// Has systemd move a process into the unit: it may where the process's owner may not.
pub(super) fn attach(unit: &Unit, pid: i32) -> Result<()> {
    let attached = connect(unit.user)?.attach(&unit.name, "/", pid as u32);
    attached.map_err(failed(format!("move process {pid} into unit {}", unit.name)))
}

/// Ends the unit that options name, if they can name one and systemd runs: for clearing up after a create that left no
/// record of its driver.
pub(super) fn remove_remains(options: &CgroupOptions) -> Result<()> {
    let user = options.rootless.applies();
    let (true, Ok(asked)) = (runs(), Asked::new(options, user)) else { return Ok(()) };
    let layout = Layout::detect()?;
    let ask = || connect(true)?.root().map_err(failed("ask for systemd's own cgroup".to_owned()));
    let root = match user.then(ask) {
        None => String::new(),
        Some(Ok(root)) => root,
        // Nothing says that it was systemd's; a user whose manager does not run has no unit.
        Some(Err(_)) if options.path.is_none() => return Ok(()),
        Some(Err(error)) => return Err(error),
    };
    let path = PathBuf::from(format!("/{root}{}/{}", expanded(&asked.slice), asked.name).replace("//", "/"));
    let (version, hierarchies) = match layout {
        Layout::V1(hierarchies) => (Version::V1, hierarchies),
        Layout::V2(hierarchy) => (Version::V2, vec![hierarchy]),
    };
    let group = |h: mounts::Hierarchy| {
        let path = beneath_mount(&h, &path);
        path.is_dir().then_some(Group { controllers: h.controllers, path })
    };
    let groups: Vec<Group> = hierarchies.into_iter().filter_map(group).collect();
    if groups.is_empty() {
        return Ok(());
    }
    let mut state = super::CgroupState::new(version, groups);
    state.systemd = Some(Unit { name: asked.name, user });
    Cgroup::of(state).remove()
}

/// The path of a slice: `/a.slice/a-b.slice` for `a-b.slice`.
fn expanded(slice: &str) -> String {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = String::new();
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        ends.for_each(|end| path += &format!("/{}.slice", &stem[..end]));
    }
    path
}
