//! The processes that a command in a container has started, as the kernel tells of them in `/proc/PID/stat`.
//!
//! A command is the leader of a session of its own (the runtime sees to that), so a process belongs to it when it
//! descends from it or is of its session. What left both is indistinguishable from what the container started itself.
//!
//! Who kills them is whoever sees their pids: the engine, and in a virtual machine its supervisor.

use std::collections::HashSet;

/// Each round kills what the one before has seen; what forks faster than this many rounds is a bomb, which only its
/// container's end stops.
const ROUNDS: usize = 16;

/// What matters of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    dead: bool,
}

impl Process {
    /// Reads `PID (NAME) STATE PPID PGRP SESSION ...`; and a name may have spaces and parentheses.
    pub fn parse(stat: &str) -> Option<Process> {
        let (pid, rest) = stat.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some(Process { pid: pid.parse().ok()?, parent, session, dead: matches!(state, "Z" | "X") })
    }
}

/// Kills `leader` and its family until nobody new is found. `kill` says whether it has hit the process: it is to look
/// whether that is in the container, since a pid is never trusted alone. Returns how many were hit.
pub fn kill_all(leader: i32, all: impl Fn() -> Vec<Process>, kill: impl Fn(i32) -> bool) -> usize {
    let mut hit = HashSet::new();
    for _ in 0..ROUNDS {
        let processes = all();
        let found: Vec<i32> = family(leader, &processes)
            .filter(|process| !process.dead && !hit.contains(&process.pid))
            .map(|process| process.pid)
            .filter(|pid| kill(*pid))
            .collect();
        if found.is_empty() {
            break;
        }
        hit.extend(found);
    }
    hit.len()
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
    use std::cell::RefCell;

    const fn process(pid: i32, parent: i32, session: i32) -> Process {
        Process { pid, parent, session, dead: false }
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let parsed = Process::parse("77 (a) b) (c) S 1 70 42 0 -1 4194560 rest").unwrap();
        assert_eq!(parsed, process(77, 1, 42));
        assert!(Process::parse("78 (z) Z 1 70 42 0").unwrap().dead);
        assert_eq!(Process::parse("nonsense"), None);
    }

    #[test]
    fn a_family_is_its_descendants_and_its_session_and_nobody_else() {
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
    fn who_is_born_meanwhile_is_killed_too_and_nobody_twice() {
        let all = RefCell::new(vec![process(10, 1, 10)]);
        let killed = RefCell::new(Vec::new());
        let kill = |pid| {
            killed.borrow_mut().push(pid);
            if pid == 10 {
                all.borrow_mut().push(process(11, 10, 10));
            }
            true
        };
        assert_eq!(kill_all(10, || all.borrow().clone(), kill), 2);
        assert_eq!(*killed.borrow(), [10, 11]);
        assert_eq!(kill_all(10, || all.borrow().clone(), |_| false), 0, "nobody of the container's");
    }
}
