//! `coracle events`: what happened, in kubelet's words, counted; live, and after the pod has gone.

use std::fs::File;
use std::process::Stdio;

use coracle_tests::machine::Machine;
use serde_json::Value;

use crate::{SLEEP, start, until};

fn list(machine: &Machine, pod: &str) -> Vec<Value> {
    serde_json::from_str(&machine.ok(&["events", "-o", "json", pod])).expect("JSON of events")
}

fn reasons(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["reason"].as_str().unwrap()).collect()
}

#[test]
fn a_pods_life_is_told_in_order_and_outlives_it() {
    let machine = Machine::new();
    start(&machine, "web", SLEEP, "", "");
    let events = list(&machine, "web");
    assert_eq!(reasons(&events), ["Pulled", "Created", "Started"]);
    assert_eq!(events[0]["message"], "Container image \"localhost/busybox:latest\" already present on machine");
    assert_eq!(events[2]["message"], "Started container main");
    assert_eq!(events[2]["involvedObject"]["fieldPath"], "spec.containers{main}");
    machine.ok(&["stop", "web"]);
    machine.ok(&["rm", "web"]);
    let events = list(&machine, "web");
    assert_eq!(events.last().unwrap()["message"], "Stopping container main");
    let table = machine.ok(&["events", "web"]);
    assert!(table.starts_with("LAST SEEN   TYPE     REASON    OBJECT    MESSAGE\n"), "{table}");
    assert_eq!(machine.ok(&["events", "--types", "Warning", "web"]), "no events\n");
    assert!(machine.fails(&["events", "nobody"]).contains("no pod nobody"));
}

#[test]
fn a_container_that_keeps_failing_is_told_of_and_counted() {
    let machine = Machine::new();
    start(&machine, "bad", "exit 3", "", "");
    let back_off = |event: &&Value| event["reason"] == "BackOff";
    until("it backs off", || list(&machine, "bad").iter().any(|event| back_off(&event)));
    let events = list(&machine, "bad");
    let event = events.iter().find(back_off).unwrap();
    let (message, kind) = (event["message"].as_str().unwrap(), &event["type"]);
    assert!(message.starts_with("Back-off restarting failed container main in pod bad_default("), "{message}");
    assert_eq!(kind, "Warning");
    let started = events.iter().find(|event| event["reason"] == "Started").unwrap();
    assert_eq!(started["count"], 2, "the first restart has no delay");
}

#[test]
fn a_watcher_is_told_as_it_happens() {
    let machine = Machine::new();
    let told = machine.path("told");
    let mut command = machine.command(&["events", "-w", "-o", "json"]);
    command.stdout(File::create(&told).expect("make a file")).stderr(Stdio::null());
    let mut watcher = machine.run(|| command.spawn()).expect("start coracle");
    start(&machine, "web", SLEEP, "", "");
    let seen = |reason: &str| std::fs::read_to_string(&told).unwrap().contains(&format!("\"reason\":\"{reason}\""));
    until("the start is told", || seen("Started"));
    machine.ok(&["rm", "-f", "web"]);
    until("the end is told", || seen("Killing"));
    watcher.kill().expect("end the watcher");
    watcher.wait().expect("wait for the watcher");
    let lines = std::fs::read_to_string(&told).unwrap();
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{lines}");
}
