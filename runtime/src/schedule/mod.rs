//! How a process is scheduled and where its memory comes from: `process.scheduler`, `ioPriority` and
//! `execCPUAffinity`, `linux.personality` and `memoryPolicy`.
//!
//! Each is parsed by the parent (`plan`), so that a wrong value is told before any process exists, and applied by the
//! process itself, while it still has its rights. Scheduling is the exception where the container has a user
//! namespace: real-time policies, and raising a priority, take CAP_SYS_NICE over the host. Then the parent applies it.
//!
//! | setting | create | exec |
//! |---|---|---|
//! | scheduler, ioPriority | by the process, or by its parent | by the process, before it joins the namespaces |
//! | personality, memoryPolicy | by the process | by the process |
//! | execCPUAffinity | - | `initial` by the parent around the clone, `final` after the cgroup was joined |
//!
//! Without execCPUAffinity a process may run on all CPUs that its cgroup allows: that the runtime's caller is bound to
//! some is no matter of the container's (runc does the same).

mod sys;

use crate::error::{Context, Error, Result};
use crate::spec::{CpuAffinity, IoPriority, Linux, MemoryPolicy, Personality, Process, Scheduler};

/// Higher numbers of CPUs and nodes are taken for a mistake, as runc does.
const MAX_NUMBER: usize = 64 * 1024;
/// Priorities of SCHED_FIFO and SCHED_RR.
const REAL_TIME: std::ops::RangeInclusive<i32> = 1..=99;
/// Nice values.
const NICE: std::ops::RangeInclusive<i32> = -20..=19;
/// Levels within an I/O class.
const IO_LEVELS: std::ops::RangeInclusive<i32> = 0..=7;
/// The shortest runtime of SCHED_DEADLINE that the kernel takes, in nanoseconds.
const MIN_RUNTIME: u64 = 1024;

const POLICIES: &[(&str, u32)] = &[
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: &[(&str, u64)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

const IO_CLASSES: &[(&str, i32)] = &[("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

const DOMAINS: &[(&str, u64)] = &[("LINUX", 0x0000), ("LINUX32", 0x0008)];

/// Name, number, whether it wants nodes (`None`: with or without).
const MEMORY_MODES: &[(&str, i32, Option<bool>)] = &[
    ("MPOL_DEFAULT", 0, Some(false)),
    ("MPOL_PREFERRED", 1, None),
    ("MPOL_BIND", 2, Some(true)),
    ("MPOL_INTERLEAVE", 3, Some(true)),
    ("MPOL_LOCAL", 4, Some(false)),
    ("MPOL_PREFERRED_MANY", 5, Some(true)),
    ("MPOL_WEIGHTED_INTERLEAVE", 6, Some(true)),
];

const MEMORY_FLAGS: &[(&str, i32)] =
    &[("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];

/// Every memory policy mode and flag known, for `features`.
pub(crate) fn known_memory_policies() -> (Vec<&'static str>, Vec<&'static str>) {
    (MEMORY_MODES.iter().map(|m| m.0).collect(), MEMORY_FLAGS.iter().map(|f| f.0).collect())
}

/// A value by its name; an error names the field and the names there are.
fn named<T: Copy>(table: &[(&str, T)], name: &str, field: &str) -> Result<T> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        Error::invalid(format!("{field}: {name:?} is none of {}", names.join(", ")))
    })
}

/// Numbers as the kernel writes lists of them (`0-3,7`), as a mask. Spaces and empty parts are passed over.
fn mask(list: &str, field: &str) -> Result<Vec<u64>> {
    let bad = || Error::invalid(format!("{field}: {list:?} is not a list of numbers and ranges such as 0-3,7"));
    let number = |text: &str| -> Result<usize> {
        let number: usize = text.trim().parse().map_err(|_| bad())?;
        if number > MAX_NUMBER {
            return Err(Error::invalid(format!("{field}: {number} is above {MAX_NUMBER}")));
        }
        Ok(number)
    };
    let mut words = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        words.resize(words.len().max(last / 64 + 1), 0u64);
        (first..=last).for_each(|n| words[n / 64] |= 1 << (n % 64));
    }
    if words.is_empty() && !list.is_empty() {
        return Err(bad());
    }
    Ok(words)
}

/// `process.scheduler` and `process.ioPriority`.
#[derive(Default)]
pub(crate) struct Schedule {
    cpu: Option<sys::SchedAttr>,
    io: Option<i32>,
}

impl Schedule {
    pub fn plan(process: &Process) -> Result<Schedule> {
        Ok(Schedule {
            cpu: process.scheduler.as_ref().map(scheduler).transpose()?,
            io: process.io_priority.as_ref().map(io_priority).transpose()?,
        })
    }

    /// Sets it for a process (0: this one).
    pub fn apply(&self, pid: i32) -> Result<()> {
        if let Some(attr) = &self.cpu {
            sys::sched_setattr(pid, attr).map_err(|cause| {
                let hint = match cause.raw_os_error() {
                    Some(libc::EPERM) if attr.policy == 6 => {
                        " (it takes CAP_SYS_NICE, and SCHED_DEADLINE all CPUs: no cpuset)"
                    }
                    Some(libc::EPERM) => {
                        " (it takes CAP_SYS_NICE, and real-time policies a cgroup with a real-time budget)"
                    }
                    Some(libc::EBUSY) => " (the deadline bandwidth of the CPUs is used up)",
                    Some(libc::EOPNOTSUPP) => " (a flag that this kernel is built without)",
                    _ => "",
                };
                Error::Os { what: format!("set process.scheduler{hint}"), cause }
            })?;
        }
        if let Some(value) = self.io {
            sys::ioprio_set(pid, value)
                .op(|| "set process.ioPriority (the class IOPRIO_CLASS_RT takes CAP_SYS_NICE or CAP_SYS_ADMIN)")?;
        }
        Ok(())
    }
}

fn scheduler(wanted: &Scheduler) -> Result<sys::SchedAttr> {
    let Scheduler { policy, nice, priority, flags, runtime, deadline, period } = wanted;
    let bad = |why: String| Err(Error::invalid(format!("process.scheduler.{why}")));
    if policy == "SCHED_ISO" {
        let reason = "no kernel has it, only its number is reserved".to_owned();
        return Err(Error::Refused { field: "process.scheduler.policy SCHED_ISO".into(), reason });
    }
    let number = named(POLICIES, policy, "process.scheduler.policy")?;
    if !NICE.contains(nice) {
        return bad(format!("nice: {nice} is not between {} and {}", NICE.start(), NICE.end()));
    }
    let real_time = matches!(policy.as_str(), "SCHED_FIFO" | "SCHED_RR");
    if real_time && !REAL_TIME.contains(priority) {
        return bad(format!("priority: {policy} wants one of 1 to 99, not {priority}"));
    }
    if !real_time && *priority != 0 {
        return bad(format!("priority: it is for SCHED_FIFO and SCHED_RR, not for {policy}"));
    }
    let times = [*runtime, *deadline, *period];
    if policy != "SCHED_DEADLINE" && times != [0; 3] {
        return bad(format!("runtime, deadline and period are for SCHED_DEADLINE, not for {policy}"));
    }
    let period_or_deadline = if *period == 0 { *deadline } else { *period };
    if policy == "SCHED_DEADLINE"
        && !(*runtime >= MIN_RUNTIME && runtime <= deadline && *deadline <= period_or_deadline)
    {
        return bad(format!(
            "runtime {runtime}, deadline {deadline}, period {period}: SCHED_DEADLINE wants {MIN_RUNTIME} <= runtime <= deadline <= period"
        ));
    }
    let mut bits = 0;
    for flag in flags {
        bits |= named(FLAGS, flag, "process.scheduler.flags")?;
    }
    Ok(sys::SchedAttr {
        size: size_of::<sys::SchedAttr>() as u32,
        policy: number,
        flags: bits,
        nice: *nice,
        priority: *priority as u32,
        runtime: *runtime,
        deadline: *deadline,
        period: *period,
        ..Default::default()
    })
}

fn io_priority(wanted: &IoPriority) -> Result<i32> {
    let IoPriority { class, priority } = wanted;
    let class = named(IO_CLASSES, class, "process.ioPriority.class")?;
    if !IO_LEVELS.contains(priority) {
        return Err(Error::invalid(format!("process.ioPriority.priority: {priority} is not between 0 and 7")));
    }
    Ok(class << 13 | priority)
}

/// `linux.personality` and `linux.memoryPolicy`.
#[derive(Default)]
pub(crate) struct Domain {
    personality: Option<u64>,
    memory: Option<(i32, Vec<u64>)>,
}

impl Domain {
    pub fn plan(linux: &Linux) -> Result<Domain> {
        Ok(Domain {
            personality: linux.personality.as_ref().map(personality).transpose()?,
            memory: linux.memory_policy.as_ref().map(memory_policy).transpose()?,
        })
    }

    /// Sets it for this process.
    pub fn apply(&self) -> Result<()> {
        if let Some(domain) = self.personality {
            sys::personality(domain).op(|| "set linux.personality")?;
        }
        if let Some((mode, nodes)) = &self.memory {
            sys::set_mempolicy(*mode, nodes).op(
                || "set linux.memoryPolicy (are the nodes there and in the cpuset, and does this kernel know the mode with these flags?)",
            )?;
        }
        Ok(())
    }
}

fn personality(wanted: &Personality) -> Result<u64> {
    let Personality { domain, flags } = wanted;
    if let Some(flag) = flags.first() {
        let reason = format!("{flag:?}: the specification knows no flags yet");
        return Err(Error::Refused { field: "linux.personality.flags".into(), reason });
    }
    named(DOMAINS, domain, "linux.personality.domain")
}

fn memory_policy(wanted: &MemoryPolicy) -> Result<(i32, Vec<u64>)> {
    let MemoryPolicy { mode, nodes, flags } = wanted;
    let table: Vec<(&str, (i32, Option<bool>))> = MEMORY_MODES.iter().map(|&(n, m, wants)| (n, (m, wants))).collect();
    let (number, wants) = named(&table, mode, "linux.memoryPolicy.mode")?;
    let mut bits = 0;
    for flag in flags {
        bits |= named(MEMORY_FLAGS, flag, "linux.memoryPolicy.flags")?;
    }
    if bits & (1 << 15 | 1 << 14) == 1 << 15 | 1 << 14 {
        let why = "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other";
        return Err(Error::invalid(format!("linux.memoryPolicy.flags: {why}")));
    }
    let nodes = mask(nodes, "linux.memoryPolicy.nodes")?;
    match wants {
        Some(true) if nodes.is_empty() => {
            Err(Error::invalid(format!("linux.memoryPolicy.nodes: {mode} wants at least one node")))
        }
        Some(false) if !nodes.is_empty() => {
            Err(Error::invalid(format!("linux.memoryPolicy.nodes: {mode} takes no nodes")))
        }
        _ => Ok((number | bits, nodes)),
    }
}

/// `process.execCPUAffinity`, or that there is none.
#[derive(Default)]
pub(crate) struct Affinity {
    initial: Vec<u64>,
    last: Vec<u64>,
}

impl Affinity {
    pub fn plan(process: &Process) -> Result<Affinity> {
        let Some(CpuAffinity { initial, last }) = &process.exec_cpu_affinity else { return Ok(Affinity::default()) };
        Ok(Affinity {
            initial: mask(initial, "process.execCPUAffinity.initial")?,
            last: mask(last, "process.execCPUAffinity.final")?,
        })
    }

    /// The parent's part: the child begins where its parent is at the clone. Returns where the parent was before.
    pub fn begin(&self) -> Result<Option<Vec<u64>>> {
        if self.initial.is_empty() {
            return Ok(None);
        }
        let mut before = vec![0; MAX_NUMBER / u64::BITS as usize];
        sys::affinity(&mut before).op(|| "read the CPU affinity")?;
        sys::set_affinity(&self.initial).op(|| "set process.execCPUAffinity.initial (are these CPUs there?)")?;
        Ok(Some(before))
    }

    /// The parent's, after the clone: back to where it was.
    pub fn end(before: Option<Vec<u64>>) -> Result<()> {
        before.map_or(Ok(()), |cpus| sys::set_affinity(&cpus).op(|| "set the CPU affinity back"))
    }

    /// The process's part, in its cgroup.
    pub fn finish(&self) -> Result<()> {
        match (&self.initial[..], &self.last[..]) {
            ([], []) => {
                reset_affinity();
                Ok(())
            }
            (_, []) => Ok(()),
            (_, last) => sys::set_affinity(last)
                .op(|| "set process.execCPUAffinity.final (are these CPUs there, and in the container's cpuset?)"),
        }
    }
}

/// All CPUs that the cgroup allows, now and later; the kernel cuts off what it does not have. Where it cannot be set,
/// the caller's own remains, as it always did.
pub(crate) fn reset_affinity() {
    let _ = sys::set_affinity(&[u64::MAX; MAX_NUMBER / u64::BITS as usize]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(text: &str) -> Process {
        serde_json::from_str(text).unwrap()
    }

    fn scheduled(text: &str) -> Result<Schedule> {
        Schedule::plan(&process(&format!(r#"{{"scheduler":{text}}}"#)))
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(mask("0-3,7", "x").unwrap(), [0b1000_1111]);
        assert_eq!(mask(" 1 , ,64", "x").unwrap(), [2, 1]);
        assert_eq!(mask("", "x").unwrap(), Vec::<u64>::new());
        for bad in ["a", "3-1", "-1", "1-", "65537", ",", " "] {
            assert!(mask(bad, "x").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_scheduler_becomes_the_kernels_attributes() {
        let text = r#"{"policy":"SCHED_BATCH","nice":19,"flags":["SCHED_FLAG_RESET_ON_FORK"]}"#;
        let attr = scheduled(text).unwrap().cpu.unwrap();
        assert_eq!((attr.policy, attr.nice, attr.flags, attr.size), (3, 19, 1, 56));
        let text = r#"{"policy":"SCHED_DEADLINE","nice":19,"runtime":42000,"deadline":100000,"period":1000000}"#;
        let attr = scheduled(text).unwrap().cpu.unwrap();
        assert_eq!((attr.policy, attr.runtime, attr.deadline, attr.period), (6, 42_000, 100_000, 1_000_000));
    }

    #[test]
    fn a_scheduler_that_cannot_be_names_its_field() {
        for (text, words) in [
            (r#"{}"#, "scheduler.policy"),
            (r#"{"policy":"SCHED_FAST"}"#, "SCHED_FAST"),
            (r#"{"policy":"SCHED_ISO"}"#, "SCHED_ISO"),
            (r#"{"policy":"SCHED_BATCH","nice":20}"#, "nice"),
            (r#"{"policy":"SCHED_FIFO"}"#, "priority"),
            (r#"{"policy":"SCHED_BATCH","priority":1}"#, "priority"),
            (r#"{"policy":"SCHED_RR","priority":1,"period":5}"#, "SCHED_DEADLINE"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":5000,"deadline":2000}"#, "runtime"),
            (r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_X"]}"#, "flags"),
        ] {
            let error = scheduled(text).err().unwrap().to_string();
            assert!(error.contains("process.scheduler") && error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn io_priorities_are_a_class_and_a_level() {
        let io = |text: &str| Schedule::plan(&process(&format!(r#"{{"ioPriority":{text}}}"#))).map(|s| s.io.unwrap());
        assert_eq!(io(r#"{"class":"IOPRIO_CLASS_BE","priority":7}"#).unwrap(), 2 << 13 | 7);
        assert_eq!(io(r#"{"class":"IOPRIO_CLASS_IDLE"}"#).unwrap(), 3 << 13);
        for bad in [r#"{"priority":1}"#, r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#, r#"{"class":"X"}"#] {
            assert!(io(bad).unwrap_err().to_string().contains("process.ioPriority"), "{bad}");
        }
    }

    #[test]
    fn domains_and_memory_policies_are_checked() {
        let plan = |text: &str| Domain::plan(&serde_json::from_str::<Linux>(text).unwrap());
        assert_eq!(plan(r#"{"personality":{"domain":"LINUX32"}}"#).unwrap().personality, Some(8));
        let bind = plan(r#"{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"0","flags":["MPOL_F_STATIC_NODES"]}}"#);
        assert_eq!(bind.unwrap().memory, Some((2 | 1 << 15, vec![1])));
        assert_eq!(plan(r#"{"memoryPolicy":{"mode":"MPOL_PREFERRED"}}"#).unwrap().memory, Some((1, vec![])));
        for (bad, words) in [
            (r#"{"personality":{}}"#, "linux.personality.domain"),
            (r#"{"personality":{"domain":"LINUX","flags":["ADDR_NO_RANDOMIZE"]}}"#, "linux.personality.flags"),
            (r#"{"memoryPolicy":{}}"#, "linux.memoryPolicy.mode"),
            (r#"{"memoryPolicy":{"mode":"MPOL_BIND"}}"#, "at least one node"),
            (r#"{"memoryPolicy":{"mode":"MPOL_LOCAL","nodes":"0"}}"#, "takes no nodes"),
            (r#"{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"x"}}"#, "linux.memoryPolicy.nodes"),
            (
                r#"{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"0","flags":["MPOL_F_STATIC_NODES","MPOL_F_RELATIVE_NODES"]}}"#,
                "exclude",
            ),
        ] {
            let error = plan(bad).err().unwrap().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
