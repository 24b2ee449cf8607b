//! Our supervisor as containerd's runtime handler, `io.containerd.coracle.v1`, under Debian's containerd and `ctr`.

mod cri;
mod info;
#[path = "../cri/life.rs"]
mod life;
mod loggers;
mod memory;
mod metrics;
mod options;
mod sandbox;

use std::fs;

use coracle_tests::containerd::Containerd;
use coracle_tests::cri::{Node, Options, node_with};
use coracle_tests::machine::until;
use nix::sys::signal::{Signal, kill};

/// A node whose CRI is containerd's, with our handler.
fn node<F: AsyncFnOnce(&mut Node) + Send>(body: F) {
    node_with(Options::containerd(), body);
}

#[test]
fn output_input_and_exit_codes_are_passed_on() {
    let containerd = Containerd::new("");
    let said = containerd.run("echo out; echo err >&2; exit 3", "");
    assert_eq!((said.code, said.out.as_str()), (3, "out\n"));
    assert!(said.err.contains("err\n"), "{}", said.err);
    assert_eq!(containerd.run("cat", "typed\n").ok(), "typed\n");
    let large = "0123456789abcde\n".repeat(20_000);
    assert_eq!(containerd.run("cat", &large).ok().len(), large.len());
    containerd.assert_clean();
}

#[test]
fn a_program_that_is_not_there_is_an_error_that_leaves_nothing() {
    let containerd = Containerd::new("");
    let rootfs = containerd.path("rootfs").display().to_string();
    let said =
        containerd.ctr(&["run", "--runtime", "io.containerd.coracle.v1", "--rootfs", &rootfs, "bad", "/no/such"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("/no/such") && said.err.contains("no such file"), "{}", said.err);
    containerd.assert_clean();
}

#[test]
fn execs_have_their_own_streams_and_exit_codes() {
    let containerd = Containerd::new("");
    containerd.start(&[], "web", "exec sleep 1000");
    let said = containerd.exec("web", "echo in; exit 5", "");
    assert_eq!((said.code, said.out.as_str()), (5, "in\n"));
    assert_eq!(containerd.exec("web", "cat", "fed\n").ok(), "fed\n");
    assert_eq!(containerd.exec("web", "readlink /proc/1/exe", "").ok(), "/bin/busybox\n");
    assert_ne!(containerd.ctr(&["tasks", "exec", "--exec-id", "x", "web", "/no/such"]).code, 0);
    assert_eq!(containerd.task("web").unwrap().0, "RUNNING");
}

#[test]
fn a_task_is_paused_measured_limited_listed_and_killed() {
    let containerd = Containerd::new("");
    containerd.start(&["--memory-limit", "33554432"], "web", "exec sleep 1000");
    let pid = containerd.task("web").unwrap().1;
    assert!(containerd.ctr(&["tasks", "ps", "web"]).ok().contains(&pid.to_string()));
    let metrics = containerd.ctr(&["tasks", "metrics", "--format", "json", "web"]).ok();
    assert!(metrics.contains("33554432"), "{metrics}");
    containerd.ctr(&["tasks", "pause", "web"]).ok();
    containerd.wait_status("web", "PAUSED");
    containerd.ctr(&["tasks", "resume", "web"]).ok();
    containerd.wait_status("web", "RUNNING");
    containerd.ctr(&["tasks", "kill", "-s", "SIGKILL", "web"]).ok();
    containerd.wait_status("web", "STOPPED");
    let deleted = containerd.ctr(&["tasks", "delete", "web"]);
    assert!(deleted.err.contains("non-zero exit code 137"), "{}", deleted.err);
    containerd.assert_clean();
}

#[test]
fn containerd_hears_what_happens_in_the_order_it_happens() {
    let containerd = Containerd::new("");
    let events = containerd.events();
    // A short program may end before its start is known.
    for name in ["a", "b", "c"] {
        let args = containerd.run_args(&["--rm"], name, "true");
        containerd.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>()).ok();
        let wanted = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
        until("all four events", || events.of(name).len() >= wanted.len());
        assert_eq!(events.of(name), wanted);
    }
    containerd.start(&[], "web", "exec sleep 1000");
    containerd.exec("web", "true", "").ok();
    containerd.ctr(&["tasks", "pause", "web"]).ok();
    containerd.ctr(&["tasks", "resume", "web"]).ok();
    let wanted = ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed"]
        .map(|name| format!("/tasks/{name}"));
    until("all events", || events.of("web").len() >= wanted.len());
    assert_eq!(events.of("web"), wanted);
}

#[test]
fn a_task_killed_for_want_of_memory_is_told_as_such() {
    let containerd = Containerd::new("");
    let events = containerd.events();
    let limit = ["--detach", "--null-io", "--memory-limit", "16777216"];
    let args = containerd.run_args(&limit, "hungry", "dd if=/dev/zero of=/dev/null bs=64M count=1");
    containerd.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>());
    until("the news", || events.of("hungry").iter().any(|topic| topic == "/tasks/exit"));
    let topics = events.of("hungry");
    let at = |topic: &str| topics.iter().position(|one| one == topic);
    assert!(at("/tasks/oom").is_some() && at("/tasks/oom") < at("/tasks/exit"), "{topics:?}");
}

#[test]
fn a_containerd_that_starts_again_finds_its_tasks_and_their_exits() {
    let containerd = Containerd::new("");
    containerd.start(&[], "lives", "exec sleep 1000");
    containerd.start(&[], "ends", "until test -e /tmp/now; do sleep 0.05; done; exit 7");
    let pid = containerd.task("lives").unwrap().1;
    containerd.stop(Signal::SIGKILL);
    // The exit happens while nobody listens.
    fs::write(containerd.path("rootfs/tmp/now"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    containerd.launch();
    assert_eq!(containerd.task("lives").unwrap(), ("RUNNING".to_owned(), pid));
    containerd.wait_status("ends", "STOPPED");
    assert_eq!(containerd.exec("lives", "echo still here", "").ok(), "still here\n");
    let deleted = containerd.ctr(&["tasks", "delete", "ends"]);
    assert!(deleted.err.contains("non-zero exit code 7"), "{}", deleted.err);
    containerd.ctr(&["tasks", "delete", "--force", "lives"]);
    containerd.assert_clean();
}

#[test]
fn containers_of_a_group_share_one_supervisor() {
    let containerd = Containerd::new("");
    let group = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];
    containerd.start(&group, "pod", "exec sleep 1000");
    containerd.start(&group, "web", "exec sleep 1000");
    containerd.start(&[], "alone", "exec sleep 1000");
    assert_eq!(containerd.supervisors().len(), 2);
    for name in ["web", "pod", "alone"] {
        containerd.ctr(&["tasks", "delete", "--force", name]);
    }
    containerd.assert_clean();
}

#[test]
fn what_a_dead_supervisor_leaves_is_cleared_up() {
    let containerd = Containerd::new("");
    containerd.start(&[], "web", "exec sleep 1000");
    let pid = containerd.task("web").unwrap().1;
    for supervisor in containerd.supervisors() {
        kill(supervisor, Signal::SIGKILL).unwrap();
    }
    until("the container to be ended", || !fs::exists(format!("/proc/{pid}")).unwrap());
    until("the task to be gone", || containerd.task("web").is_none_or(|(status, _)| status != "RUNNING"));
    containerd.ctr(&["tasks", "delete", "--force", "web"]);
    containerd.assert_clean();
}
