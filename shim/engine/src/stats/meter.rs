//! Reading one cgroup, of either version, straight from the kernel's files.
//!
//! A controller is looked for in its v1 tree first and in the v2 tree else, one by one: so hybrid hosts need no rule of
//! their own. What the kernel does not offer (no such controller, no such file, PSI switched off) is `None`; zero always
//! means that somebody counted and there was nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::tree_of;

use super::{Block, Cpu, Io, Memory, Pressure, Psi, Swap, Tasks, Throttling};

/// cgroup v1 writes "no limit" as the largest multiple of the page size, which depends on the machine.
const UNLIMITED: u64 = 1 << 62;
/// How deep a container's own cgroups are followed when its processes are counted.
const MAX_DEPTH: usize = 16;

/// A controller's directory for some cgroup, and whose files it has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    V1(PathBuf),
    V2(PathBuf),
}

/// The cgroup trees of this machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trees {
    /// v1: a controller's name and its tree.
    v1: Vec<(String, PathBuf)>,
    /// v2: its tree, and the controllers that it has.
    v2: Option<(PathBuf, Vec<String>)>,
}

impl Trees {
    /// Those that are mounted. They stay the same for as long as the machine runs.
    pub(super) fn mounted() -> Trees {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Trees::parse(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default())
    }

    fn parse(mountinfo: &str, controllers: impl Fn(&Path) -> String) -> Trees {
        let mut trees = Trees::default();
        for tree in mountinfo.lines().filter_map(tree_of) {
            match tree.v1_options {
                Some(options) => {
                    trees.v1.extend(options.split(',').map(|name| (name.to_owned(), tree.mount.clone())));
                }
                None if trees.v2.is_none() => {
                    let names = controllers(&tree.mount).split_whitespace().map(str::to_owned).collect();
                    trees.v2 = Some((tree.mount, names));
                }
                None => {}
            }
        }
        trees
    }

    /// Where a cgroup has a controller's files.
    fn place(&self, controller: &str, group: &str) -> Option<Place> {
        let below = |tree: &Path| tree.join(group.trim_start_matches('/'));
        if let Some((_, tree)) = self.v1.iter().find(|(name, _)| name == controller) {
            return Some(Place::V1(below(tree)));
        }
        let (tree, _) = self.v2.as_ref().filter(|(_, names)| names.iter().any(|name| name == controller))?;
        Some(Place::V2(below(tree)))
    }

    /// The v2 directory of a cgroup, for the files that every cgroup has there.
    fn unified(&self, group: &str) -> Option<PathBuf> {
        self.v2.as_ref().map(|(tree, _)| tree.join(group.trim_start_matches('/')))
    }

    /// The group's directory in any tree.
    fn any(&self, group: &str) -> Option<PathBuf> {
        let place = ["pids", "memory", "cpu"].iter().find_map(|name| self.place(name, group));
        match place {
            Some(Place::V1(dir) | Place::V2(dir)) => Some(dir),
            None => self.unified(group),
        }
    }
}

fn text(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

/// A file with one number; `max` is the largest.
fn number(dir: &Path, file: &str) -> Option<u64> {
    match text(dir, file)?.trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

/// A limit; `None` for none.
fn limit(dir: &Path, file: &str) -> Option<u64> {
    number(dir, file).filter(|limit| *limit < UNLIMITED)
}

/// The number behind a key in lines of `key number`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(super) fn cpu(trees: &Trees, group: &str) -> Option<Cpu> {
    if let Some(Place::V1(dir)) = trees.place("cpuacct", group) {
        let used = number(&dir, "cpuacct.usage")?;
        let bandwidth = trees.place("cpu", group).and_then(|place| match place {
            Place::V1(dir) => text(&dir, "cpu.stat"),
            Place::V2(_) => None,
        });
        return Some(Cpu {
            usage: used,
            user: number(&dir, "cpuacct.usage_user"),
            system: number(&dir, "cpuacct.usage_sys"),
            throttling: bandwidth.and_then(|text| throttling(&text, "throttled_time", 1)),
            ..Cpu::default()
        });
    }
    // Every v2 cgroup counts its time, with the controller or without.
    let dir = trees.unified(group)?;
    let stat = text(&dir, "cpu.stat")?;
    Some(Cpu {
        usage: value(&stat, "usage_usec")?.saturating_mul(1000),
        user: value(&stat, "user_usec").map(|n| n.saturating_mul(1000)),
        system: value(&stat, "system_usec").map(|n| n.saturating_mul(1000)),
        throttling: throttling(&stat, "throttled_usec", 1000),
        psi: pressure(&dir, "cpu.pressure"),
        ..Cpu::default()
    })
}

fn throttling(stat: &str, time: &str, unit: u64) -> Option<Throttling> {
    Some(Throttling {
        periods: value(stat, "nr_periods")?,
        throttled_periods: value(stat, "nr_throttled")?,
        throttled_time: value(stat, time)?.saturating_mul(unit),
    })
}

pub(super) fn memory(trees: &Trees, group: &str) -> Option<(Memory, Option<Swap>)> {
    match trees.place("memory", group)? {
        Place::V1(dir) => memory_v1(&dir),
        Place::V2(dir) => memory_v2(&dir),
    }
}

fn memory_v1(dir: &Path) -> Option<(Memory, Option<Swap>)> {
    let usage = number(dir, "memory.usage_in_bytes")?;
    let stat = text(dir, "memory.stat")?;
    let inactive = value(&stat, "total_inactive_file");
    let memory_limit = limit(dir, "memory.limit_in_bytes");
    let memory = Memory {
        usage,
        working_set: usage.saturating_sub(inactive.unwrap_or(0)),
        rss: value(&stat, "total_rss"),
        cache: value(&stat, "total_cache"),
        mapped_file: value(&stat, "total_mapped_file"),
        kernel: number(dir, "memory.kmem.usage_in_bytes"),
        active_file: value(&stat, "total_active_file"),
        inactive_file: inactive,
        page_faults: value(&stat, "total_pgfault"),
        major_page_faults: value(&stat, "total_pgmajfault"),
        own_page_faults: value(&stat, "pgfault"),
        own_major_page_faults: value(&stat, "pgmajfault"),
        limit: memory_limit,
        max_usage: number(dir, "memory.max_usage_in_bytes"),
        failures: number(dir, "memory.failcnt"),
        oom_kills: text(dir, "memory.oom_control").and_then(|text| value(&text, "oom_kill")),
        psi: None,
    };
    // Memory and swap are counted together; without swap accounting the file is not there.
    let swap = number(dir, "memory.memsw.usage_in_bytes").map(|together| Swap {
        usage: value(&stat, "total_swap").unwrap_or(together.saturating_sub(usage)),
        limit: limit(dir, "memory.memsw.limit_in_bytes")
            .map(|together| together.saturating_sub(memory_limit.unwrap_or(0))),
    });
    Some((memory, swap))
}

fn memory_v2(dir: &Path) -> Option<(Memory, Option<Swap>)> {
    let usage = number(dir, "memory.current")?;
    let stat = text(dir, "memory.stat")?;
    let events = text(dir, "memory.events").unwrap_or_default();
    let inactive = value(&stat, "inactive_file");
    let memory = Memory {
        usage,
        working_set: usage.saturating_sub(inactive.unwrap_or(0)),
        rss: value(&stat, "anon"),
        cache: value(&stat, "file"),
        mapped_file: value(&stat, "file_mapped"),
        // Kernels before 5.18 count only its parts.
        kernel: value(&stat, "kernel").or_else(|| Some(value(&stat, "kernel_stack")? + value(&stat, "slab")?)),
        active_file: value(&stat, "active_file"),
        inactive_file: inactive,
        page_faults: value(&stat, "pgfault"),
        major_page_faults: value(&stat, "pgmajfault"),
        own_page_faults: value(&stat, "pgfault"),
        own_major_page_faults: value(&stat, "pgmajfault"),
        limit: limit(dir, "memory.max"),
        max_usage: number(dir, "memory.peak"),
        failures: value(&events, "max"),
        oom_kills: value(&events, "oom_kill"),
        psi: pressure(dir, "memory.pressure"),
    };
    let swap = number(dir, "memory.swap.current").map(|usage| Swap { usage, limit: limit(dir, "memory.swap.max") });
    Some((memory, swap))
}

pub(super) fn tasks(trees: &Trees, group: &str) -> Option<Tasks> {
    let (Place::V1(dir) | Place::V2(dir)) = trees.place("pids", group)?;
    Some(Tasks { count: number(&dir, "pids.current")?, limit: limit(&dir, "pids.max") })
}

/// The processes of a cgroup and of those below it.
pub(super) fn processes(trees: &Trees, group: &str) -> Option<Vec<i32>> {
    let mut level = vec![trees.any(group)?];
    let mut pids = members(&level[0])?;
    for _ in 0..MAX_DEPTH {
        let children = level.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        level = children.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        if level.is_empty() {
            break;
        }
        pids.extend(level.iter().filter_map(|dir| members(dir)).flatten());
    }
    Some(pids)
}

fn members(dir: &Path) -> Option<Vec<i32>> {
    Some(text(dir, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

pub(super) fn io(trees: &Trees, group: &str) -> Option<Io> {
    if let Some(Place::V1(dir)) = trees.place("blkio", group) {
        // The counters of the scheduler in use come first; those of throttling see every request.
        let first = |what: &str| {
            let names = [
                format!("blkio.bfq.{what}_recursive"),
                format!("blkio.throttle.{what}_recursive"),
                format!("blkio.throttle.{what}"),
            ];
            names.iter().filter_map(|name| text(&dir, name)).find(|text| text.contains(':')).unwrap_or_default()
        };
        text(&dir, "blkio.throttle.io_service_bytes")?;
        return Some(Io { devices: blocks_v1(&first("io_service_bytes"), &first("io_serviced")), psi: None });
    }
    let place = trees.place("io", group);
    let devices = match &place {
        Some(Place::V2(dir)) => blocks_v2(&text(dir, "io.stat")?),
        _ => Vec::new(),
    };
    let psi = trees.unified(group).and_then(|dir| pressure(&dir, "io.pressure"));
    (place.is_some() || psi.is_some()).then_some(Io { devices, psi })
}

fn device(name: &str) -> Option<(u64, u64)> {
    let (major, minor) = name.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Two files of `MAJOR:MINOR OP VALUE`.
fn blocks_v1(bytes: &str, requests: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (Some(id), Some(op)) = (fields.next().and_then(device), fields.next()) else { continue };
            let Some(value) = fields.next().and_then(|n| n.trim().parse().ok()) else { continue };
            let at = blocks.iter().position(|b| (b.major, b.minor) == id).unwrap_or_else(|| {
                blocks.push(Block { major: id.0, minor: id.1, ..Block::default() });
                blocks.len() - 1
            });
            match (op, is_bytes) {
                ("Read", true) => blocks[at].read_bytes = value,
                ("Write", true) => blocks[at].written_bytes = value,
                ("Read", false) => blocks[at].reads = value,
                ("Write", false) => blocks[at].writes = value,
                _ => {}
            }
        }
    }
    blocks
}

/// Lines of `MAJOR:MINOR key=value ...`.
fn blocks_v2(text: &str) -> Vec<Block> {
    let block = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = device(fields.next()?)?;
        let mut block = Block { major, minor, ..Block::default() };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.trim().parse() else { continue };
            match key {
                "rbytes" => block.read_bytes = value,
                "wbytes" => block.written_bytes = value,
                "rios" => block.reads = value,
                "wios" => block.writes = value,
                _ => {}
            }
        }
        Some(block)
    };
    text.lines().filter_map(block).collect()
}

/// A pressure file. With PSI switched off reading it fails with EOPNOTSUPP.
fn pressure(dir: &Path, file: &str) -> Option<Psi> {
    psi(&text(dir, file)?)
}

fn psi(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    for line in text.lines() {
        let (kind, fields) = line.split_once(' ')?;
        let mut pressure = Pressure::default();
        for (key, value) in fields.split(' ').filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => pressure.avg10 = value.parse().ok()?,
                "avg60" => pressure.avg60 = value.parse().ok()?,
                "avg300" => pressure.avg300 = value.parse().ok()?,
                // The kernel counts microseconds.
                "total" => pressure.total = value.trim().parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
        match kind {
            "some" => psi.some = pressure,
            "full" => psi.full = pressure,
            _ => {}
        }
    }
    Some(psi)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        50 31 0:38 /x /mnt rw - cgroup2 cgroup2 rw\n";

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    fn v1(root: &Path) -> Trees {
        let names = ["cpu", "cpuacct", "memory", "pids", "blkio"];
        Trees { v1: names.iter().map(|name| ((*name).to_owned(), root.join(name))).collect(), v2: None }
    }

    fn v2(root: &Path) -> Trees {
        let names = ["cpu", "io", "memory", "pids"].map(str::to_owned).to_vec();
        Trees { v1: Vec::new(), v2: Some((root.to_owned(), names)) }
    }

    #[test]
    fn a_controller_is_found_in_its_v1_tree_first_and_in_v2_else() {
        let trees = Trees::parse(HYBRID, |_| "hugetlb pids\n".into());
        assert_eq!(trees.place("memory", "/p/c"), Some(Place::V1("/sys/fs/cgroup/memory/p/c".into())));
        assert_eq!(trees.place("pids", "/p"), Some(Place::V2("/sys/fs/cgroup/unified/p".into())));
        assert_eq!(trees.place("io", "/p"), None);
    }

    #[test]
    fn a_v1_cgroup_is_read_from_all_its_trees() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).join("g");
        write(&at("cpuacct"), &[("cpuacct.usage", "5000\n"), ("cpuacct.usage_user", "3000\n")]);
        write(&at("cpu"), &[("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 900\n")]);
        let stat = "cache 1\ntotal_cache 64\ntotal_rss 100\ntotal_swap 5\ntotal_mapped_file 9\ntotal_pgfault 11\n\
                    pgfault 10\ntotal_inactive_file 24\n";
        write(
            &at("memory"),
            &[
                ("memory.stat", stat),
                ("memory.usage_in_bytes", "200\n"),
                ("memory.limit_in_bytes", "1000\n"),
                ("memory.memsw.usage_in_bytes", "205\n"),
                ("memory.memsw.limit_in_bytes", "1500\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ],
        );
        write(&at("pids"), &[("pids.current", "4\n"), ("pids.max", "max\n"), ("cgroup.procs", "12\n13\n0\n")]);
        write(&at("pids").join("below"), &[("cgroup.procs", "14\n")]);
        let bytes = "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n";
        write(
            &at("blkio"),
            &[("blkio.throttle.io_service_bytes", bytes), ("blkio.throttle.io_serviced", "8:0 Read 1\n")],
        );
        let trees = v1(dir.path());
        let used = cpu(&trees, "/g").unwrap();
        assert_eq!((used.usage, used.user, used.system, used.psi), (5000, Some(3000), None, None));
        assert_eq!(used.throttling, Some(Throttling { periods: 7, throttled_periods: 2, throttled_time: 900 }));
        let (memory, swap) = memory(&trees, "/g").unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.rss), (200, 176, Some(100)));
        assert_eq!((memory.available(), memory.oom_kills, memory.page_faults), (Some(824), Some(3), Some(11)));
        assert_eq!((memory.kernel, memory.max_usage), (None, None), "what is not there is not zero");
        assert_eq!(swap, Some(Swap { usage: 5, limit: Some(500) }));
        assert_eq!(tasks(&trees, "/g"), Some(Tasks { count: 4, limit: None }));
        assert_eq!(processes(&trees, "/g"), Some(vec![12, 13, 14]));
        let block = Block { major: 8, read_bytes: 10, written_bytes: 20, reads: 1, ..Block::default() };
        assert_eq!(io(&trees, "/g").unwrap().devices, [block]);
        assert!(cpu(&trees, "/gone").is_none() && io(&trees, "/gone").is_none());
    }

    #[test]
    fn a_v2_cgroup_is_read_with_its_pressure() {
        let dir = tempfile::tempdir().unwrap();
        let some = "some avg10=1.50 avg60=0.00 avg300=0.10 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let cpu_stat = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n";
        write(
            &dir.path().join("g"),
            &[
                ("cpu.stat", cpu_stat),
                ("cpu.pressure", some),
                ("memory.current", "200\n"),
                ("memory.max", "max\n"),
                ("memory.peak", "300\n"),
                ("memory.stat", "anon 100\nfile 64\nkernel_stack 1\nslab 2\ninactive_file 24\npgfault 11\n"),
                ("memory.events", "low 0\nmax 6\noom 1\noom_kill 1\n"),
                ("memory.swap.current", "5\n"),
                ("memory.swap.max", "500\n"),
                ("pids.current", "4\n"),
                ("pids.max", "100\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
            ],
        );
        let trees = v2(dir.path());
        let used = cpu(&trees, "g").unwrap();
        assert_eq!((used.usage, used.user, used.system), (5000, Some(3000), Some(2000)));
        let psi = used.psi.unwrap();
        assert_eq!((psi.some.avg10, psi.some.total, psi.full.total), (1.5, 42_000, 7_000));
        let (memory, swap) = memory(&trees, "g").unwrap();
        assert_eq!((memory.rss, memory.kernel, memory.limit), (Some(100), Some(3), None));
        assert_eq!((memory.failures, memory.available(), memory.psi), (Some(6), None, None));
        assert_eq!(swap, Some(Swap { usage: 5, limit: Some(500) }));
        assert_eq!(tasks(&trees, "g"), Some(Tasks { count: 4, limit: Some(100) }));
        let io = io(&trees, "g").unwrap();
        assert_eq!((io.devices[0].written_bytes, io.devices[0].writes, io.psi), (20, 2, None));
    }
}
