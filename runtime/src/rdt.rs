//! `linux.intelRdt`: cache and memory bandwidth of Intel's Resource Director Technology, through the kernel's resctrl.
//!
//! ```text
//! <resctrl>/schemata, tasks, info/{L3,MB,last_cmd_status}
//! <resctrl>/<closID or the container's id>/schemata, tasks, mon_groups/<container's id>/tasks
//! ```
//! - A group named by closID is somebody's, perhaps shared: it is made when it is missing and there are schemata to
//!   write, it must hold the very l3CacheSchema and memBwSchema when it is there, and it is never removed.
//! - A group named by the container's id is removed with the container, when it was made for it.
//! - The monitoring group is the container's own, and always removed.
//!
//! The filesystem is mounted by the administrator. Where it is not, the field is refused by its name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::spec::IntelRdt;

/// Directories of resctrl itself, which are no groups.
const RESERVED: &[&str] = &["info", "mon_groups", "mon_data"];

/// A container's group, as state.json has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    dir: PathBuf,
    /// Made for the container, and removed with it.
    owned: bool,
    /// The monitoring group.
    monitor: Option<PathBuf>,
}

/// The mounted filesystem.
pub(crate) struct Tree {
    root: PathBuf,
}

/// What config.json says, wherever resctrl is.
pub(crate) fn check(wanted: &IntelRdt) -> Result<()> {
    let bad = |field: &str, why: &str| Err(Error::invalid(format!("config.json: linux.intelRdt.{field}: {why}")));
    let IntelRdt { clos_id, schemata, l3_cache_schema, mem_bw_schema, enable_monitoring: _ } = wanted;
    if clos_id == "." || clos_id == ".." || (clos_id.contains('/') && clos_id != "/") || clos_id.contains('\0') {
        return bad("closID", &format!("{clos_id:?} is not the name of a directory, nor /"));
    }
    if RESERVED.contains(&clos_id.as_str()) {
        return bad("closID", &format!("{clos_id:?} is a directory of resctrl's own"));
    }
    if l3_cache_schema.contains('\n') {
        return bad("l3CacheSchema", "it must be one line");
    }
    if mem_bw_schema.contains('\n') || !(mem_bw_schema.is_empty() || mem_bw_schema.starts_with("MB:")) {
        return bad("memBwSchema", "it must be one line that begins with MB:");
    }
    if schemata.iter().any(|line| line.contains('\n')) {
        return bad("schemata", "each must be one line");
    }
    Ok(())
}

/// The lines for the file `schemata`, in the order of the specification.
fn lines(wanted: &IntelRdt) -> Vec<&str> {
    let fields = [&wanted.l3_cache_schema, &wanted.mem_bw_schema];
    fields.into_iter().chain(&wanted.schemata).map(String::as_str).filter(|line| !line.is_empty()).collect()
}

/// A schema's resource, and its value by cache: order and leading zeros do not matter.
fn parsed(line: &str) -> Option<(&str, BTreeMap<u32, &str>)> {
    let (resource, values) = line.trim().split_once(':')?;
    let one = |part: &'_ str| -> Option<(u32, usize)> {
        let (cache, _) = part.split_once('=')?;
        Some((cache.trim().parse().ok()?, cache.len() + 1))
    };
    let mut map = BTreeMap::new();
    for part in values.split(';').filter(|part| !part.trim().is_empty()) {
        let (cache, at) = one(part)?;
        let value = part[at..].trim();
        let short = value.trim_start_matches('0');
        map.insert(cache, if short.is_empty() && !value.is_empty() { "0" } else { short });
    }
    Some((resource.trim(), map))
}

/// Whether a file `schemata` holds a line's values.
fn holds(present: &str, line: &str) -> bool {
    let Some((resource, wanted)) = parsed(line) else { return false };
    let found = present.lines().filter_map(parsed).find(|(name, _)| *name == resource);
    found.is_some_and(|(_, values)| {
        wanted.iter().all(|(cache, value)| values.get(cache).is_some_and(|v| v.eq_ignore_ascii_case(value)))
    })
}

impl Tree {
    /// Where resctrl is mounted.
    pub fn mounted() -> Result<Tree> {
        let table = fs::read_to_string("/proc/self/mountinfo").op(|| "read /proc/self/mountinfo")?;
        Tree::in_table(&table).ok_or_else(|| {
            let reason = "no resctrl filesystem is mounted (mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it)";
            Error::Refused { field: "linux.intelRdt".into(), reason: reason.into() }
        })
    }

    fn in_table(table: &str) -> Option<Tree> {
        let line = table
            .lines()
            .find(|line| line.split_once(" - ").is_some_and(|(_, rest)| rest.split(' ').next() == Some("resctrl")))?;
        // Spaces in a mount point are written in octal; nobody mounts resctrl at such a place.
        line.split(' ').nth(4).map(|root| Tree { root: root.into() })
    }

    /// The kernel's words on the last failure.
    fn words(&self) -> String {
        match fs::read_to_string(self.root.join("info/last_cmd_status")) {
            Ok(text) if !text.trim().is_empty() && text.trim() != "ok" => format!(" (resctrl: {})", text.trim()),
            _ => String::new(),
        }
    }

    fn op<T>(&self, result: io::Result<T>, what: &str, path: &Path) -> Result<T> {
        result.op(|| format!("linux.intelRdt: {what} {}{}", path.display(), self.words()))
    }

    fn has(&self, resource: &str, field: &str) -> Result<()> {
        if self.root.join("info").join(resource).exists() {
            return Ok(());
        }
        let reason = format!("this machine's resctrl has no {resource} allocation");
        Err(Error::Refused { field: format!("linux.intelRdt.{field}"), reason })
    }

    /// Makes or finds the group of a container, with its limits; nobody is in it yet.
    pub fn make(&self, wanted: &IntelRdt, id: &str) -> Result<Group> {
        if !wanted.l3_cache_schema.is_empty() {
            self.has("L3", "l3CacheSchema")?;
        }
        if !wanted.mem_bw_schema.is_empty() {
            self.has("MB", "memBwSchema")?;
        }
        let named = !wanted.clos_id.is_empty();
        let dir = match wanted.clos_id.as_str() {
            "" => self.root.join(id),
            "/" => self.root.clone(),
            clos => self.root.join(clos),
        };
        let lines = lines(wanted);
        if named && lines.is_empty() && !dir.is_dir() {
            let why = format!("{} does not exist, and there are no schemata to make it with", dir.display());
            return Err(Error::invalid(format!("linux.intelRdt.closID: {why}")));
        }
        let made = match fs::create_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            result => self.op(result, "make", &dir).map(|()| true)?,
        };
        let mut group = Group { dir, owned: made && !named, monitor: None };
        let filled = self.fill(&mut group, wanted, id, &lines, named && !made);
        if filled.is_err() {
            group.remove();
            if made && named {
                // Nobody else can have come to rely on it.
                let _ = fs::remove_dir(&group.dir);
            }
        }
        filled.map(|()| group)
    }

    fn fill(&self, group: &mut Group, wanted: &IntelRdt, id: &str, lines: &[&str], compare: bool) -> Result<()> {
        let file = group.dir.join("schemata");
        if compare {
            let present = self.op(fs::read_to_string(&file), "read", &file)?;
            for line in [&wanted.l3_cache_schema, &wanted.mem_bw_schema] {
                if !line.is_empty() && !holds(&present, line) {
                    let why = format!("{} exists, and its schemata are not {line:?}", group.dir.display());
                    return Err(Error::invalid(format!("linux.intelRdt.closID: {why}")));
                }
            }
        }
        self.write_lines(&file, lines)?;
        if wanted.enable_monitoring {
            let monitor = group.dir.join("mon_groups").join(id);
            match fs::create_dir(&monitor) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                result => self.op(result, "make the monitoring group", &monitor)?,
            }
            group.monitor = Some(monitor);
        }
        Ok(())
    }

    fn write_lines(&self, file: &Path, lines: &[&str]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        self.op(fs::write(file, &text), &format!("write {text:?} to"), file)
    }

    /// Changes the limits of a group.
    pub fn update(&self, group: &Group, l3_cache: Option<&str>, mem_bw: Option<&str>) -> Result<()> {
        let wanted = IntelRdt {
            l3_cache_schema: l3_cache.unwrap_or_default().into(),
            mem_bw_schema: mem_bw.unwrap_or_default().into(),
            ..Default::default()
        };
        check(&wanted)?;
        if l3_cache.is_some() {
            self.has("L3", "l3CacheSchema")?;
        }
        if mem_bw.is_some() {
            self.has("MB", "memBwSchema")?;
        }
        self.write_lines(&group.dir.join("schemata"), &lines(&wanted))
    }

    /// Puts a process into a group; what it starts will be there, too.
    pub fn join(&self, group: &Group, pid: i32) -> Result<()> {
        for dir in [Some(&group.dir), group.monitor.as_ref()].into_iter().flatten() {
            let tasks = dir.join("tasks");
            self.op(fs::write(&tasks, pid.to_string()), &format!("put process {pid} into"), &tasks)?;
        }
        Ok(())
    }
}

impl Group {
    /// Removes what was made for the container. Best effort: by now nobody is in it, and others may have removed it.
    pub fn remove(&self) {
        if let Some(monitor) = &self.monitor {
            let _ = fs::remove_dir(monitor);
        }
        if self.owned {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel shows it on a machine with two caches. A group that is made has no files before it is written to.
    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        for name in ["info/L3", "info/MB", "mon_groups", "gold/mon_groups"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for group in ["", "gold"] {
            fs::write(root.join(group).join("schemata"), "    L3:0=007ff;1=fffff\n    MB:0=100;1= 50\n").unwrap();
        }
        fs::write(root.join("info/last_cmd_status"), "ok\n").unwrap();
        (dir, Tree { root })
    }

    fn rdt(text: &str) -> IntelRdt {
        serde_json::from_str(text).unwrap()
    }

    fn make(tree: &Tree, text: &str) -> Result<Group> {
        let wanted = rdt(text);
        check(&wanted)?;
        tree.make(&wanted, "web")
    }

    fn read(tree: &Tree, path: &str) -> String {
        fs::read_to_string(tree.root.join(path)).unwrap_or_default()
    }

    /// What the kernel does when a group goes.
    fn empty(group: &Group) {
        for file in ["schemata", "tasks"] {
            let _ = fs::remove_file(group.dir.join(file));
            let _ = group.monitor.as_ref().map(|m| fs::remove_file(m.join(file)));
        }
    }

    #[test]
    fn a_group_of_the_containers_own_is_made_written_joined_and_removed() {
        let (_dir, tree) = tree();
        let text = r#"{"l3CacheSchema":"L3:0=f","memBwSchema":"MB:0=20","schemata":["L2:0=1","L3:1=3"]}"#;
        let group = make(&tree, text).unwrap();
        assert_eq!(
            read(&tree, "web/schemata"),
            "L3:0=f\nMB:0=20\nL2:0=1\nL3:1=3\n",
            "in the order of the specification"
        );
        tree.join(&group, 42).unwrap();
        assert_eq!(read(&tree, "web/tasks"), "42");
        tree.update(&group, Some("L3:0=1"), None).unwrap();
        assert_eq!(read(&tree, "web/schemata"), "L3:0=1\n");
        assert!(tree.update(&group, None, Some("L3:0=1")).is_err());
        empty(&group);
        group.remove();
        assert!(!tree.root.join("web").exists());
    }

    #[test]
    fn a_named_group_is_used_when_it_is_there_and_never_removed() {
        let (_dir, tree) = tree();
        let group = make(&tree, r#"{"closID":"gold"}"#).unwrap();
        assert!(!group.owned && read(&tree, "gold/schemata").contains("MB:0=100"), "nothing is written");
        make(&tree, r#"{"closID":"gold","l3CacheSchema":"L3:1=FFFFF;0=7ff","memBwSchema":"MB:1=50"}"#).unwrap();
        let error = make(&tree, r#"{"closID":"none"}"#).unwrap_err().to_string();
        assert!(error.contains("linux.intelRdt.closID") && error.contains("none"), "{error}");
        let made = make(&tree, r#"{"closID":"silver","schemata":["MB:0=10"]}"#).unwrap();
        empty(&made);
        made.remove();
        assert!(tree.root.join("silver").exists() && tree.root.join("gold").exists());
    }

    #[test]
    fn a_named_group_with_other_limits_is_an_error_and_stays_as_it_is() {
        let (_dir, tree) = tree();
        let before = read(&tree, "gold/schemata");
        for other in [r#""l3CacheSchema":"L3:0=f""#, r#""memBwSchema":"MB:2=100""#] {
            let error = make(&tree, &format!(r#"{{"closID":"gold",{other}}}"#)).unwrap_err().to_string();
            assert!(error.contains("linux.intelRdt.closID"), "{error}");
        }
        assert_eq!(read(&tree, "gold/schemata"), before);
    }

    #[test]
    fn the_root_is_a_group_by_the_name_of_a_slash() {
        let (_dir, tree) = tree();
        let group = make(&tree, r#"{"closID":"/","enableMonitoring":true}"#).unwrap();
        tree.join(&group, 7).unwrap();
        assert_eq!((read(&tree, "tasks"), read(&tree, "mon_groups/web/tasks")), ("7".into(), "7".into()));
        empty(&group);
        group.remove();
        assert!(tree.root.exists() && !tree.root.join("mon_groups/web").exists());
    }

    #[test]
    fn a_failure_leaves_no_group_and_carries_the_kernels_words() {
        let (_dir, tree) = tree();
        fs::write(tree.root.join("info/last_cmd_status"), "out of RMIDs\n").unwrap();
        // Of a new group of this fake tree there is no mon_groups.
        for (text, made) in [
            (r#"{"enableMonitoring":true}"#, "web"),
            (r#"{"closID":"new","schemata":["MB:0=1"],"enableMonitoring":true}"#, "new"),
        ] {
            let error = make(&tree, text).unwrap_err().to_string();
            assert!(error.contains("linux.intelRdt") && error.contains("out of RMIDs"), "{error}");
            let _ = fs::remove_file(tree.root.join(made).join("schemata"));
            assert!(!tree.root.join(made).exists() || made == "new", "{text}");
        }
    }

    #[test]
    fn what_the_machine_has_not_and_what_cannot_be_is_refused_by_its_field() {
        let (_dir, tree) = tree();
        fs::remove_dir(tree.root.join("info/L3")).unwrap();
        for (text, field) in [
            (r#"{"l3CacheSchema":"L3:0=f"}"#, "l3CacheSchema"),
            (r#"{"memBwSchema":"L3:0=f"}"#, "memBwSchema"),
            (r#"{"memBwSchema":"MB:0=1\nL3:0=f"}"#, "memBwSchema"),
            (r#"{"schemata":["MB:0=1\n"]}"#, "schemata"),
            (r#"{"closID":".."}"#, "closID"),
            (r#"{"closID":"a/b"}"#, "closID"),
            (r#"{"closID":"info"}"#, "closID"),
        ] {
            let error = make(&tree, text).unwrap_err().to_string();
            assert!(error.contains(&format!("linux.intelRdt.{field}")), "{text}: {error}");
        }
        assert!(!tree.root.join("web").exists());
    }

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let table =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:9 / /sys/fs/rdt rw,nosuid shared:5 - resctrl resctrl rw\n";
        assert_eq!(Tree::in_table(table).unwrap().root, Path::new("/sys/fs/rdt"));
        assert!(Tree::in_table("22 1 8:1 / /resctrl rw - ext4 resctrl rw\n").is_none());
    }
}
