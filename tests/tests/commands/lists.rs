//! `coracle ps`, `top`, `wait` and `logs`: lists, selections and waiting.

use std::fs::File;
use std::process::Stdio;

use coracle_tests::machine::{IMAGE, Machine};
use serde_json::Value;

use crate::{SLEEP, start, until};

fn labelled(machine: &Machine, name: &str, labels: &str, script: &str) {
    let path = machine.path(&format!("{name}.yaml"));
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: {IMAGE}, \
         imagePullPolicy: Never, command: [sh, -c, \"{script}\"]}}\n"
    );
    std::fs::write(&path, yaml).expect("write the Pod");
    machine.ok(&["run", "-d", &path.display().to_string()]);
}

#[test]
fn pods_are_selected_by_their_labels() {
    let machine = Machine::new();
    labelled(&machine, "a", "app: web, tier: front", "echo from a; sleep 1000");
    labelled(&machine, "b", "app: web", "echo from b; sleep 1000");
    labelled(&machine, "c", "app: db", "sleep 1000");
    let list = |args: &[&str]| machine.ok(&[&["ps", "-o", "name"], args].concat());
    assert_eq!(list(&["-l", "app=web"]), "pod/a\npod/b\n");
    assert_eq!(list(&["-l", "app in (web,db),!tier"]), "pod/b\npod/c\n");
    assert_eq!(list(&["c"]), "pod/c\n");
    until("both have written", || machine.ok(&["logs", "-l", "app=web"]).lines().count() == 2);
    let logs = machine.ok(&["logs", "-l", "app=web"]);
    assert!(logs.contains("a/main | from a\n") && logs.contains("b/main | from b\n"), "{logs}");
    let prefixed = machine.ok(&["logs", "--prefix", "a"]);
    assert_eq!(prefixed, "a/main | from a\n");
    assert!(machine.fails(&["ps", "-l", "app in (web"]).contains("parentheses"));
    assert!(machine.fails(&["logs", "-l", "app=none"]).contains("no pod has these labels"));
    assert!(machine.ok(&["ps", "-o", "wide", "--show-labels"]).contains("app=web,tier=front"));
}

#[test]
fn logs_are_cut_by_time_lines_and_bytes() {
    let machine = Machine::new();
    start(&machine, "words", "echo one; echo two; sleep 2; echo three; sleep 1000", "", "");
    until("it has written", || machine.ok(&["logs", "words"]).ends_with("three\n"));
    assert_eq!(machine.ok(&["logs", "--tail", "2", "words"]), "two\nthree\n");
    assert_eq!(machine.ok(&["logs", "--tail", "-1", "words"]), "one\ntwo\nthree\n");
    assert_eq!(machine.ok(&["logs", "--limit-bytes", "6", "words"]), "one\ntw");
    let timed = machine.ok(&["logs", "--timestamps", "--tail", "1", "words"]);
    let (time, _) = timed.split_once(' ').expect("a time");
    assert_eq!(machine.ok(&["logs", "--since-time", time, "words"]), "three\n");
    assert_eq!(machine.ok(&["logs", "--since", "1h", "words"]), "one\ntwo\nthree\n");
    assert!(machine.fails(&["logs", "--since", "soon", "words"]).contains("expected a time"));
    assert!(machine.fails(&["logs", "-p", "-c", "main", "words"]).contains("was not restarted"));
}

#[test]
fn waiting_ends_when_it_is_so_or_the_time_is_over() {
    let machine = Machine::new();
    labelled(&machine, "job", "app: job", "sleep 1; exit 0");
    assert_eq!(machine.ok(&["wait", "--for=condition=Initialized", "job"]), "pod/job condition met\n");
    assert_eq!(machine.ok(&["wait", "--for=phase=Succeeded", "pod/job"]), "pod/job condition met\n");
    assert_eq!(machine.ok(&["wait", "--for=condition=Ready=false", "-l", "app=job"]), "pod/job condition met\n");
    let late = machine.coracle(&["wait", "--for=condition=Ready", "--timeout=300ms", "job"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(late.err.contains("the time is over"), "{late:?}");
    // That one is gone says nothing of the other.
    let one = machine.coracle(&["wait", "--for=delete", "--timeout=300ms", "gone", "job"]);
    assert_eq!(one.status.code(), Some(1), "{one:?}");
    let mut command = machine.command(&["wait", "--for=delete", "job"]);
    command.stdout(Stdio::piped());
    let child = machine.run(|| command.spawn()).expect("start coracle");
    machine.ok(&["rm", "job"]);
    let output = child.wait_with_output().expect("wait for coracle");
    assert!(output.status.success() && output.stdout.is_empty() || output.stdout == b"pod/job deleted\n");
    assert_eq!(machine.ok(&["wait", "--for=delete", "job"]), "", "it has gone already");
    assert!(machine.fails(&["wait", "--for=jsonpath={.status}", "job"]).contains("jsonpath is not supported"));
}

#[test]
fn top_tells_what_pods_and_containers_use() {
    let machine = Machine::new();
    start(&machine, "busy", "while :; do :; done", "", "");
    start(&machine, "idle", SLEEP, "", "");
    let usages: Value = serde_json::from_str(&machine.ok(&["top", "-o", "json"])).expect("JSON of top");
    let cpu = |pod: usize| usages[pod]["cpuNanoCores"].as_u64().expect("the use of a processor");
    assert_eq!((&usages[0]["pod"], &usages[1]["pod"]), (&Value::from("busy"), &Value::from("idle")));
    assert!(cpu(0) > cpu(1), "{usages}");
    assert!(usages[0]["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let table = machine.ok(&["top", "--containers", "idle"]);
    assert!(table.starts_with("POD    NAME   CPU(cores)   MEMORY(bytes)   TASKS\nidle   main   "), "{table}");
}

#[test]
fn a_watched_list_tells_each_change_until_the_pod_has_gone() {
    let machine = Machine::new();
    let told = machine.path("told");
    let mut command = machine.command(&["ps", "-w", "-o", "json"]);
    command.stdout(File::create(&told).expect("make a file")).stderr(Stdio::null());
    let mut watcher = machine.run(|| command.spawn()).expect("start coracle");
    let seen = |status: &str| {
        let text = std::fs::read_to_string(&told).unwrap();
        text.lines().any(|line| serde_json::from_str::<Value>(line).is_ok_and(|pod| pod["status"] == status))
    };
    start(&machine, "web", SLEEP, "", "");
    until("it is told to run", || seen("Running"));
    machine.ok(&["rm", "-f", "web"]);
    until("it is told to have gone", || seen("Removed"));
    watcher.kill().expect("end the watcher");
    watcher.wait().expect("wait for the watcher");
}
