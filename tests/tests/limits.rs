//! Budgets as assertions. Sizes, never times: memory, processes, threads, descriptors, program sizes.

use std::fs;

use coracle_tests::machine::{Machine, until};
use nix::unistd::Pid;

/// All of our processes for one detached pod with one container, proportional set size, once the pod is quiet.
const POD_PSS_KIB: u64 = 512;
/// The same just after work, with all the code it ran still mapped, and shared with no other pod's: 1.8 MB with musl,
/// 2.2 MB with glibc.
const BUSY_PSS_KIB: u64 = 2816;
/// Descriptors of a supervisor of one container: sockets, locks, pidfd, pipes, log, OOM event.
const SUPERVISOR_FILES: usize = 32;
/// The static programs are loaded once a pod and once a container: their size is start-up time and page cache. With musl
/// they have 2.3 and 3.1 MB; Debian's static glibc adds 0.8.
const RUNTIME_BYTES: u64 = 7 << 19;
/// The supervisor is a virtual machine's keeper and its init, too; of that, other pods' touch no page.
const SUPERVISOR_BYTES: u64 = 4 << 20;
/// The command carries TLS, YAML, the registry client, the CRI server, DNS and probes by gRPC.
const COMMAND_BYTES: u64 = 18 << 20;

fn field(pid: Pid, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read a process's numbers");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {file}"));
    line[name.len()..].split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_detached_pod_costs_one_small_process_of_ours() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &machine.script_pod("small", "sleep 1000", "")]);
    let ours = machine.programs();
    assert_eq!(ours.len(), 1, "processes of ours: {ours:?}");
    let pss = || field(ours[0], "smaps_rollup", "Pss:");
    let busy = pss();
    assert!(busy <= BUSY_PSS_KIB, "{busy} KiB just after the start, at most {BUSY_PSS_KIB}");
    // A quiet supervisor gives its own code's pages back to the page cache.
    until("the quiet supervisor to be small", || pss() <= POD_PSS_KIB);
    println!("one pod with one container: {busy} KiB of PSS just after the start, {} at rest", pss());
    assert_eq!(field(ours[0], "status", "Threads:"), 1);
    let files = fs::read_dir(format!("/proc/{}/fd", ours[0])).expect("list descriptors").count();
    assert!(files <= SUPERVISOR_FILES, "{files} descriptors, at most {SUPERVISOR_FILES}");
}

#[test]
fn the_programs_stay_small() {
    for (program, limit) in
        [("coracle-oci", RUNTIME_BYTES), ("containerd-shim-coracle-v1", SUPERVISOR_BYTES), ("coracle", COMMAND_BYTES)]
    {
        let size = fs::metadata(coracle_tests::bin(program)).expect("the program's size").len();
        assert!(size <= limit, "{program}: {size} bytes, at most {limit}");
    }
}
