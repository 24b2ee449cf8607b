//! containerd with its own runc shim, `io.containerd.runc.v2`, whose BinaryName is the runtime; driven by `ctr`.

use std::fs;
use std::process::Command;

use coracle_tests::containerd::{Containerd as Daemon, Options};
use serde_json::Value;

use crate::oci_support::{Answer, wait_for};
use crate::{IMAGE, Place, in_terminal, runtime, say_with};

/// A containerd of one's own.
pub(crate) struct Containerd {
    pub daemon: Daemon,
    pub place: Place,
}

impl Containerd {
    pub fn new() -> Containerd {
        let place = Place::new();
        let daemon = Daemon::place(place.dir.path(), None, &Options::default());
        daemon.launch();
        Containerd { daemon, place }
    }

    fn command(&self, args: &[&str]) -> Command {
        self.daemon.command(args)
    }

    fn say(&self, args: &[&str]) -> Answer {
        say_with(self.command(args), "")
    }

    fn load(self) -> Containerd {
        self.say(&["images", "import", &self.place.path("image.tar")]).ok();
        self
    }

    fn run_command(&self, flags: &[&str], name: &str, program: &[&str]) -> Command {
        let (runtime, fifos) = (runtime(), self.place.path("fifos"));
        let cgroup = format!("{}/{name}", self.place.cgroup);
        let first = ["run", "--runc-binary", &runtime, "--fifo-dir", &fifos, "--cgroup", &cgroup];
        self.command(&[&first[..], flags, &[IMAGE, name], program].concat())
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        say_with(self.run_command(&[&["--rm"], flags].concat(), "once", program), "")
    }

    fn exec(&self, flags: &[&str], name: &str, program: &[&str]) -> Answer {
        let fifos = self.place.path("fifos");
        let id = format!("e{}", program.len() + flags.len());
        // It takes either a directory for FIFOs or a log.
        let fifos = if flags.contains(&"--log-uri") { vec![] } else { vec!["--fifo-dir", &fifos] };
        self.say(&[&["tasks", "exec", "--exec-id", &id], &fifos[..], flags, &[name], program].concat())
    }

    fn status(&self, name: &str) -> String {
        let tasks = self.say(&["tasks", "ls"]).ok().out;
        let line = tasks.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.daemon.end();
        self.place.close();
    }
}

#[test]
fn run_passes_on_output_and_exit_codes() {
    let containerd = Containerd::new().load();
    assert_eq!(containerd.run(&[], &["echo", "hello"]).ok().out, "hello\n");
    assert_eq!(containerd.run(&[], &["sh", "-c", "exit 6"]).code, 6);
    containerd.run(&[], &["no-such-program"]).fails("executable file not found in $PATH");
}

#[test]
fn a_task_is_driven_through_its_life() {
    let containerd = Containerd::new().load();
    let script = "trap 'exit 3' TERM; while :; do sleep 0.05; done";
    say_with(containerd.run_command(&["-d", "--null-io", "--memory-limit=33554432"], "a", &["sh", "-c", script]), "")
        .ok();
    assert_eq!(containerd.status("a"), "RUNNING");
    let cgroup = format!("{}/a", containerd.place.cgroup);
    let limit = fs::read_to_string(format!("/sys/fs/cgroup/memory{cgroup}/memory.limit_in_bytes"))
        .or_else(|_| fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/memory.max")));
    assert_eq!(limit.unwrap(), "33554432\n");
    assert_eq!(containerd.exec(&[], "a", &["sh", "-c", "exit 5"]).code, 5);
    let out = containerd.exec(&["--cwd=/tmp", "--user=33:33"], "a", &["sh", "-c", "id -u; pwd"]).ok().out;
    assert_eq!(out, "33\n/tmp\n");
    containerd.exec(&[], "a", &["no-such-program"]).fails("executable file not found in $PATH");
    let metrics: Value = {
        let out = containerd.say(&["tasks", "metrics", "--format=json", "a"]).ok().out;
        serde_json::from_str(&out[out.find('{').expect("JSON")..]).expect("JSON")
    };
    assert!(metrics["pids"]["current"].as_u64().is_some_and(|pids| pids > 0), "{metrics}");
    containerd.say(&["tasks", "pause", "a"]).ok();
    assert_eq!(containerd.status("a"), "PAUSED");
    containerd.say(&["tasks", "resume", "a"]).ok();
    assert_eq!(containerd.status("a"), "RUNNING");
    let log = format!("file://{}", containerd.place.path("exec.log"));
    containerd.exec(&["-d", "--log-uri", &log], "a", &["sleep", "1000"]).ok();
    assert!(containerd.say(&["tasks", "ps", "a"]).ok().out.contains("ExecID:"));
    containerd.say(&["tasks", "kill", "-s", "SIGTERM", "a"]).ok();
    wait_for("the end", || containerd.status("a") == "STOPPED");
    let deleted = containerd.say(&["tasks", "delete", "a"]);
    assert!(deleted.err.contains("exit code 3"), "{deleted:?}");
}

#[test]
fn settings_reach_the_container() {
    let containerd = Containerd::new().load();
    assert!(containerd.run(&["--seccomp"], &["grep", "Seccomp:", "/proc/self/status"]).ok().out.contains('2'));
    containerd.run(&["--read-only"], &["touch", "/x"]).fails("Read-only");
    let mount = format!("--mount=type=bind,src={},dst=/v,options=rbind:ro", containerd.place.volume());
    assert_eq!(containerd.run(&[&mount], &["cat", "/v/f"]).ok().out, "data\n");
    let mapped = ["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"];
    assert!(containerd.run(&mapped, &["cat", "/proc/self/uid_map"]).ok().out.contains("100000"));
    assert_eq!(containerd.run(&["--no-pivot"], &["echo", "moved"]).ok().out, "moved\n");
}

#[test]
fn a_terminal_has_its_size_and_its_input() {
    let containerd = Containerd::new().load();
    let script = "sleep 0.3; stty size; tty; read x; echo got $x";
    let out = in_terminal(&containerd.run_command(&["--rm", "-t"], "t", &["sh", "-c", script]), "word\n");
    assert!(out.contains("33 44") && out.contains("/dev/pts/0") && out.contains("got word"), "{out}");
}
