//! Whoever sees to a pod: there when needed, back when killed, gone when not.

use std::fs;

use coracle_tests::machine::{Machine, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Scene, container, exec};

fn tenders(machine: &Machine) -> Vec<Pid> {
    let is_one = |(_, line): &&(Pid, String)| line.contains(" tend ");
    machine.processes().iter().filter(is_one).map(|(pid, _)| *pid).collect()
}

#[test]
fn a_tender_that_is_killed_comes_back_and_probes_go_on() {
    let scene = Scene::new();
    let more = format!("    livenessProbe: {{{}, periodSeconds: 1}}\n", exec("echo x >> /h/live"));
    let file = scene.pod("alive", "  terminationGracePeriodSeconds: 0\n", &container("main", "sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the first probe", || !scene.file("live").is_empty());
    let before = tenders(&scene.machine);
    assert_eq!(before.len(), 1, "one tender stays");
    kill(before[0], Signal::SIGKILL).expect("kill the tender");
    until("another tender", || tenders(&scene.machine).iter().any(|pid| *pid != before[0]));
    let so_far = scene.file("live").len();
    until("the next probe", || scene.file("live").len() > so_far);
    assert_eq!(scene.machine.view("alive")["restarts"], 0);
    scene.machine.ok(&["stop", "alive"]);
    until("it to leave with the pod", || tenders(&scene.machine).is_empty());
}

#[test]
fn a_hook_whose_caller_was_killed_is_called_again_and_then_nobody_stays() {
    let scene = Scene::new();
    let more = format!("    lifecycle: {{postStart: {{{}}}}}\n", exec("echo x >> /h/hook; test -e /h/go || sleep 600"));
    let file = scene.pod("hook", "  terminationGracePeriodSeconds: 0\n", &container("main", "sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the first call", || scene.file("hook") == "x\n");
    fs::write(scene.folder.join("go"), "").expect("write a file");
    for pid in tenders(&scene.machine) {
        kill(pid, Signal::SIGKILL).expect("kill the tender");
    }
    until("the second call", || scene.file("hook").starts_with("x\nx\n"));
    until("the pod to be ready", || scene.machine.view("hook")["ready"] == 1);
    until("the tender to leave", || tenders(&scene.machine).is_empty());
    scene.machine.ok(&["rm", "-f", "hook"]);
}

#[test]
fn a_stop_whose_tender_is_killed_is_finished_with_its_hook() {
    let scene = Scene::new();
    let more = format!(
        "    lifecycle: {{preStop: {{{}}}}}\n    livenessProbe: {{{}, periodSeconds: 1}}\n",
        exec("echo x >> /h/hook; test -e /h/go || sleep 600"),
        exec("echo x >> /h/live")
    );
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let file = scene.pod("end", "  terminationGracePeriodSeconds: 60\n", &container("main", script, &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the first probe", || !scene.file("live").is_empty());
    let mut stop = scene.machine.start(&["stop", "end"]);
    until("the first call", || !scene.file("hook").is_empty());
    fs::write(scene.folder.join("go"), "").expect("write a file");
    for pid in tenders(&scene.machine) {
        kill(pid, Signal::SIGKILL).expect("kill the tender");
    }
    assert!(stop.wait().expect("wait for coracle stop").success());
    assert_eq!(scene.file("hook"), "x\nx\n", "called once more by whoever took over");
    assert_eq!(scene.container("end", "main")["exitCode"], 0);
}

#[test]
fn a_pod_that_needs_nobody_has_no_tender() {
    let scene = Scene::new();
    let more = format!("    lifecycle: {{preStop: {{{}}}}}\n", exec("echo x >> /h/hook"));
    let file = scene.pod("alone", "  terminationGracePeriodSeconds: 5\n", &container("main", "sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    assert!(tenders(&scene.machine).is_empty());
    scene.machine.ok(&["stop", "alone"]);
    assert_eq!(scene.file("hook"), "x\n");
}
