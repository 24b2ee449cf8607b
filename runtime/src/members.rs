//! The processes of a container that has no cgroup, because its maker had no right to one: found in /proc.
//!
//! Where its PID namespace is its own they are the processes of that namespace and what descends from them (a nested
//! namespace's). Else they are what descends from the init; one whose parent died first is not found.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::error::{Context, Result};
use crate::handle::Handle;
use crate::state::{Record, parse_parent, parse_stat, process_start};

fn namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// The pids, in order.
pub(crate) fn pids(record: &Record) -> Result<Vec<i32>> {
    Ok(found(record)?.into_keys().collect())
}

/// Sends each a signal; the init last, with which a PID namespace ends.
pub(crate) fn signal(record: &Record, signal: i32) -> Result<()> {
    for (pid, start) in found(record)?.into_iter().filter(|(pid, _)| *pid != record.pid) {
        let Ok(handle) = Handle::open(pid) else { continue };
        // Looked at again once it is held: the pid may have come to mean another process.
        if process_start(pid).is_none_or(|(now, _)| now != start) {
            continue;
        }
        match handle.signal(signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            sent => sent.op(|| format!("send signal {signal} to process {pid} of container {:?}", record.id))?,
        }
    }
    record.signal(signal).map(drop)
}

/// The pids with their start times.
fn found(record: &Record) -> Result<BTreeMap<i32, u64>> {
    let mut members = BTreeMap::new();
    if !record.alive() {
        return Ok(members);
    }
    members.insert(record.pid, record.start_time);
    let own = if record.own_pid_namespace { namespace(record.pid) } else { None };
    // Pid, parent, start time of all others.
    let mut others = Vec::new();
    for entry in fs::read_dir("/proc").op(|| "list /proc")? {
        let name = entry.op(|| "list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Gone meanwhile, or hidden from this user: then it is in no container of his.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (Some(parent), Some((start, _))) = (parse_parent(&stat), parse_stat(&stat)) else { continue };
        match own.is_some() && namespace(pid) == own {
            true => drop(members.insert(pid, start)),
            false => others.push((pid, parent, start)),
        }
    }
    // Each round but the last finds another generation.
    loop {
        let (children, rest): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, parent, _)| members.contains_key(parent));
        if children.is_empty() {
            return Ok(members);
        }
        members.extend(children.into_iter().map(|(pid, _, start)| (pid, start)));
        others = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_and_its_children_are_found_and_nobody_else() {
        let mut shell = Command::new("/bin/sh").args(["-c", "sleep 1000 & sleep 1000; true"]).spawn().unwrap();
        let mut other = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = shell.id() as i32;
        let record: Record = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.0", "id": "x", "pid": pid, "startTime": process_start(pid).unwrap().0, "bundle": "/",
            "rootfs": "/", "created": "", "owner": "", "annotations": {}, "cgroup": { "version": "v1", "groups": [] },
            "namespaces": 0, "ownPidNamespace": false, "hasPoststart": false, "hasPoststop": false,
        }))
        .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while pids(&record).unwrap().len() < 3 {
            assert!(std::time::Instant::now() < deadline, "{:?}", pids(&record));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let all = pids(&record).unwrap();
        assert!(all.contains(&pid) && !all.contains(&(other.id() as i32)), "{all:?}");
        signal(&record, libc::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert_eq!(pids(&record).unwrap(), Vec::<i32>::new());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
