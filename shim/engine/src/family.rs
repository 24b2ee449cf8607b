//! The processes that a command in a container has started, found in /proc.
//!
//! A command is the leader of a session of its own (the runtime sees to that), so a process belongs to it when it
//! descends from it or is of its session. What left both is indistinguishable from what the container started itself.
//! A pid is never trusted alone: the process must be in the container's cgroup, whose path has the container's id.

use std::collections::HashSet;
use std::fs;

use crate::sys;

/// Each round kills what the one before has seen; what forks faster than this many rounds is a bomb, which only its
/// container's end stops.
const ROUNDS: usize = 16;

/// What matters of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    dead: bool,
}

/// Kills `leader` and its family, as far as it is in `container`. Returns how many processes were hit.
pub(crate) fn kill(leader: i32, container: &str) -> usize {
    let mut hit = HashSet::new();
    for _ in 0..ROUNDS {
        let processes = processes();
        let found: Vec<i32> = family(leader, &processes)
            .filter(|process| !process.dead && !hit.contains(&process.pid))
            .map(|process| process.pid)
            .filter(|pid| kill_one(*pid, container))
            .collect();
        if found.is_empty() {
            break;
        }
        hit.extend(found);
    }
    hit.len()
}

/// Through a handle, so that the one that was looked at is the one that is killed.
fn kill_one(pid: i32, container: &str) -> bool {
    let Ok(handle) = sys::pidfd_open(pid) else { return false };
    in_container(pid, container) && sys::pidfd_send_signal(&handle, libc::SIGKILL).is_ok()
}

fn in_container(pid: i32, container: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(container))
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// `PID (NAME) STATE PPID PGRP SESSION ...`, and a name may have spaces and parentheses.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, session, dead: matches!(state, "Z" | "X") })
}

fn family(leader: i32, processes: &[Process]) -> impl Iterator<Item = &Process> {
    let mut members: HashSet<i32> = HashSet::from([leader]);
    loop {
        let before = members.len();
        let related = |p: &&Process| p.session == leader || members.contains(&p.parent);
        let more: Vec<i32> = processes.iter().filter(related).map(|p| p.pid).collect();
        members.extend(more);
        if members.len() == before {
            return processes.iter().filter(move |p| members.contains(&p.pid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let process = parse("77 (a) b) (c) S 1 70 42 0 -1 4194560 rest").unwrap();
        assert_eq!(process, Process { pid: 77, parent: 1, session: 42, dead: false });
        assert!(parse("78 (z) Z 1 70 42 0").unwrap().dead);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn a_family_is_its_descendants_and_its_session_and_nobody_else() {
        let process = |pid, parent, session| Process { pid, parent, session, dead: false };
        let all = [
            process(1, 0, 1),
            process(10, 1, 10),  // the leader
            process(11, 10, 10), // its child
            process(12, 11, 12), // a grandchild with a session of its own
            process(13, 12, 12), // and its child
            process(14, 1, 10),  // an orphan of the session
            process(20, 1, 20),  // a stranger
        ];
        let mut found: Vec<i32> = family(10, &all).map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 14]);
    }

    #[test]
    fn nobody_outside_the_container_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(kill(pid, "no-such-container"), 0);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
