//! Size is a promise: what a pod costs in memory, all of its own processes counted.

use crate::pod::Pod;
use coracle_proto::coracle::{NamespaceMode, SandboxOptions};
use std::fs;
use std::time::Duration;

/// Proportional set size of the supervisor with one container at rest, and of the first process of a shared PID
/// namespace, together.
const BUDGET_KB: u64 = 400;
/// Of the supervisor just after work, with all the code it ran still mapped, and shared with no other pod's: 2.0 MB with
/// musl, 2.7 MB with glibc, which is linked where rustup and its musl target are missing.
const BUDGET_AT_WORK_KB: u64 = 2816;

fn pss(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Pss");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_pod_with_one_container_costs_less_than_its_budget() {
    for (what, pid) in [("container", NamespaceMode::Container), ("pod", NamespaceMode::Pod)] {
        let mut pod = Pod::launch_alone();
        pod.create_sandbox(SandboxOptions { pid: pid.into(), ..Default::default() }).unwrap();
        pod.start_sandbox();
        // After real work: output and an exec.
        pod.run("web", &["sh", "-c", "seq 1 20000; sleep 1000"]);
        let heard = pod.exec("web", "one", &["seq", "1", "20000"], false).listen_to_the_end();
        assert!(heard.ended);
        pod.wait("web", "one");
        pod.delete("web", "one").unwrap();
        let mut total = pss(pod.pid);
        println!("pid namespace of the {what}: supervisor at work {total} kB");
        assert!(total < BUDGET_AT_WORK_KB, "{total} kB of {BUDGET_AT_WORK_KB}");
        std::thread::sleep(Duration::from_millis(1500));
        total = pss(pod.pid);
        print!("pid namespace of the {what}: supervisor at rest {total} kB");
        if let Some(init) = pod.sandbox_status().info.get("pid_ns_pid") {
            let init = pss(init.parse().unwrap());
            print!(", first process {init} kB");
            total += init;
        }
        println!();
        assert!(total < BUDGET_KB, "{total} kB of {BUDGET_KB}");
        pod.shutdown();
    }
}
