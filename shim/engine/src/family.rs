//! Kills the processes that a command in a container has started, found in /proc.
//!
//! A pid is never trusted alone: the process must be in the container's cgroup, whose path has the container's id.

use std::fs;

use coracle_proto::family::{self, Process};

use crate::sys;

/// Kills `leader` and its family, as far as it is in `container`. Returns how many processes were hit.
pub(crate) fn kill(leader: i32, container: &str) -> usize {
    family::kill_all(leader, processes, |pid| kill_one(pid, container))
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
    pids.filter_map(|pid: i32| Process::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
