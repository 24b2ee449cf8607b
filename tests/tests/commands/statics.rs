//! `coracle serve --pods`: a folder's pods are kept running, whoever serves it, and whatever one of its files says.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use coracle_tests::machine::{IMAGE, Machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{SLEEP, until};

struct Server(Child);

impl Server {
    fn start(machine: &Machine, dir: &Path, more: &[&str]) -> Server {
        let dir = dir.display().to_string();
        let mut command = machine.command(&[&["serve", "--pods", &dir], more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        Server(machine.run(|| command.spawn()).expect("start the server"))
    }

    fn end(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).expect("ask the server to end");
        assert!(self.0.wait().expect("wait for the server").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(dir: &Path, name: &str, script: &str) {
    let script = script.replace('\'', "''");
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - {{name: main, image: {IMAGE}, imagePullPolicy: Never, command: [sh, -c, '{script}']}}\n"
    );
    // As an editor does it: a name of its own first, then the file's.
    fs::write(dir.join(".new"), yaml).expect("write the Pod");
    fs::rename(dir.join(".new"), dir.join(format!("{name}.yaml"))).expect("rename it");
}

fn ids(machine: &Machine) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(&machine.ok(&["ps", "-o", "json"])).expect("JSON of ps");
    let text = |pod: &Value, key: &str| pod[key].as_str().expect("text").to_owned();
    list.as_array().expect("a list").iter().map(|pod| (text(pod, "name"), text(pod, "id"))).collect()
}

fn names(machine: &Machine) -> Vec<String> {
    ids(machine).into_iter().map(|(name, _)| name).collect()
}

fn runs(machine: &Machine, name: &str) -> bool {
    let list: Value = serde_json::from_str(&machine.ok(&["ps", "-o", "json"])).expect("JSON of ps");
    list.as_array().expect("a list").iter().any(|pod| pod["name"] == name && pod["status"] == "Running")
}

#[test]
fn a_folders_pods_come_change_and_go_with_their_files() {
    let machine = Machine::new();
    let dir = machine.path("pods");
    fs::create_dir(&dir).unwrap();
    write(&dir, "first", SLEEP);
    let _server = Server::start(&machine, &dir, &["--no-cri"]);
    until("the file that was there runs", || runs(&machine, "first"));
    write(&dir, "second", SLEEP);
    until("a new file runs", || runs(&machine, "second"));
    let before = ids(&machine);
    write(&dir, "second", "echo changed; sleep 1000");
    until("the changed pod is replaced", || {
        runs(&machine, "second") && ids(&machine).iter().any(|(name, id)| name == "second" && *id != before[1].1)
    });
    assert_eq!(ids(&machine)[0], before[0], "the other one is left alone");
    until("it is as the file says", || machine.coracle(&["logs", "second"]).out == "changed\n");
    fs::remove_file(dir.join("first.yaml")).unwrap();
    until("the pod goes with its file", || names(&machine) == ["second"]);
    until("it is removed, and not only stopped", || machine.pods().len() == 1);
    machine.ok(&["rm", "-f", "second"]);
    fs::write(dir.join("touch.txt"), "no pod").unwrap();
    fs::remove_file(dir.join("touch.txt")).unwrap();
    until("what was removed by hand comes back", || runs(&machine, "second"));
}

#[test]
fn a_broken_file_is_told_and_harms_no_other() {
    let machine = Machine::new();
    let dir = machine.path("pods");
    fs::create_dir(&dir).unwrap();
    write(&dir, "good", SLEEP);
    fs::write(dir.join("bad.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {nam: x}\n").unwrap();
    nix::unistd::mkfifo(&dir.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _server = Server::start(&machine, &dir, &["--no-cri"]);
    until("the good one runs", || runs(&machine, "good"));
    until("the broken one is told", || machine.coracle(&["events", "bad"]).out.contains("FailedValidation"));
    let id = ids(&machine)[0].1.clone();
    fs::write(dir.join("good.yaml"), "kind: [").unwrap();
    until("that it broke is told", || machine.coracle(&["events", "good"]).out.contains("FailedValidation"));
    assert_eq!(ids(&machine), [("good".to_owned(), id)], "its pod goes on");
    write(&dir, "bad", SLEEP);
    until("the mended one runs", || runs(&machine, "bad"));
}

#[test]
fn a_pod_that_is_somebody_elses_is_neither_replaced_nor_removed() {
    let machine = Machine::new();
    let dir = machine.path("pods");
    fs::create_dir(&dir).unwrap();
    crate::start(&machine, "mine", SLEEP, "", "");
    let before = ids(&machine);
    write(&dir, "mine", SLEEP);
    let _server = Server::start(&machine, &dir, &["--no-cri"]);
    until("it is told", || machine.ok(&["events"]).contains("exists already, and is not of this file"));
    fs::remove_file(dir.join("mine.yaml")).unwrap();
    write(&dir, "other", SLEEP);
    until("another file runs", || runs(&machine, "other"));
    assert_eq!(ids(&machine)[0], before[0]);
}

#[test]
fn pods_live_on_without_the_server_and_the_next_one_finds_them() {
    let machine = Machine::new();
    let dir = machine.path("pods");
    fs::create_dir(&dir).unwrap();
    for name in ["stays", "goes"] {
        write(&dir, name, SLEEP);
    }
    let server = Server::start(&machine, &dir, &["--no-cri"]);
    until("both run", || runs(&machine, "stays") && runs(&machine, "goes"));
    let before = ids(&machine);
    server.end();
    assert_eq!(ids(&machine), before, "they run on");
    fs::remove_file(dir.join("goes.yaml")).unwrap();
    // With the CRI beside it this time.
    let server = Server::start(&machine, &dir, &[]);
    until("what went meanwhile is ended", || names(&machine) == ["stays"]);
    assert_eq!(ids(&machine)[0], before[1], "what stayed is the same pod");
    let second = machine.coracle(&["serve", "--no-cri", "--pods", &dir.display().to_string()]);
    assert_eq!(second.status.code(), Some(8), "{second:?}");
    server.end();
    assert!(machine.fails(&["serve", "--no-cri"]).contains("--pods"));
}
