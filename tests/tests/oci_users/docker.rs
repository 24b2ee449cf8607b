//! dockerd and its client, with `--add-runtime`; its containerd is one of the test's own.
//!
//! `scripts/deps test` unpacks Debian's docker.io into target/docker, since an installed package starts its daemon.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::containerd::Containerd;
use crate::oci_support::{Answer, wait_for};
use crate::{Daemon, IMAGE, LIMITS, PATIENCE, in_terminal, runtime, say_with};

struct Docker {
    daemon: Option<Daemon>,
    containerd: Containerd,
}

fn program(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/docker/usr").join(name);
    assert!(path.exists(), "{} is missing: run scripts/deps test", path.display());
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

impl Docker {
    fn new() -> Docker {
        let containerd = Containerd::new();
        let place = &containerd.place;
        let settings = serde_json::json!({
            "data-root": place.path("docker"), "exec-root": place.path("docker-run"), "pidfile": place.path("docker.pid"),
            "hosts": [format!("unix://{}", place.path("docker.sock"))], "containerd": place.path("c.sock"),
            "bridge": "none", "iptables": false, "ip6tables": false, "storage-driver": "vfs",
            "deprecated-key-path": place.path("key.json"), "cgroup-parent": place.cgroup, "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": { "tested": { "path": runtime() } }, "default-runtime": "tested",
        });
        fs::write(place.path("daemon.json"), settings.to_string()).unwrap();
        let log = File::create(place.path("docker.log")).unwrap();
        let mut command = containerd.daemon.inside("unshare");
        command.args(["--net", &program("sbin/dockerd"), "--config-file", &place.path("daemon.json")]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("dockerd");
        let docker = Docker { daemon: Some(Daemon(child)), containerd };
        wait_for("dockerd", || docker.say(&["version"]).code == 0);
        docker.say(&["load", "-q", "-i", &docker.containerd.place.path("image.tar")]).ok();
        docker
    }

    fn command(&self, args: &[&str]) -> Command {
        let place = &self.containerd.place;
        let mut command = Command::new("timeout");
        command.args([PATIENCE, &program("bin/docker"), "--config", &place.path("client")]);
        command.args(["--host", &format!("unix://{}", place.path("docker.sock"))]).args(args);
        command
    }

    fn say(&self, args: &[&str]) -> Answer {
        say_with(self.command(args), "")
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        self.say(&[&["run", "--rm", "--network=none"], flags, &[IMAGE], program].concat())
    }

    fn start(&self, name: &str, flags: &[&str], script: &str) {
        self.say(&[&["run", "-d", "--network=none", "--name", name], flags, &[IMAGE, "sh", "-c", script]].concat())
            .ok();
    }

    fn inspect(&self, name: &str, what: &str) -> String {
        self.say(&["inspect", "--format", &format!("{{{{{what}}}}}"), name]).ok().out.trim().to_owned()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let containers = self.say(&["ps", "-a", "-q"]).out;
        for container in containers.lines() {
            let _ = self.say(&["rm", "-f", container]);
        }
        // Before its containerd.
        self.daemon.take();
    }
}

#[test]
fn run_passes_on_input_output_and_exit_codes() {
    let docker = Docker::new();
    let answer = docker.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (7, "out\n", "err\n"));
    let cat = docker.command(&["run", "--rm", "-i", "--network=none", IMAGE, "cat"]);
    assert_eq!(say_with(cat, "words").ok().out, "words");
    assert_eq!(docker.run(&[], &["no-such-program"]).code, 127);
    for (program, code) in [("/etc", 126), ("/etc/passwd", 126), ("/no/such/program", 127)] {
        let answer = docker.run(&[], &[program]);
        assert_eq!(answer.code, code, "{program}: {answer:?}");
    }
    assert_eq!(docker.run(&["-w", "/made/for/this"], &["pwd"]).ok().out, "/made/for/this\n");
}

#[test]
fn a_container_is_driven_through_its_life() {
    let docker = Docker::new();
    docker.start("one", &[], "echo started; trap 'exit 3' TERM; while :; do sleep 0.05; done");
    wait_for("the output", || docker.say(&["logs", "one"]).ok().out == "started\n");
    assert_eq!(docker.say(&["exec", "one", "sh", "-c", "exit 5"]).code, 5);
    let flags = ["exec", "-u", "33:33", "-e", "A=b", "-w", "/tmp", "one", "sh", "-c", "id -u; echo $A; pwd"];
    assert_eq!(docker.say(&flags).ok().out, "33\nb\n/tmp\n");
    assert_ne!(docker.say(&["exec", "one", "no-such-program"]).code, 0);
    assert!(docker.say(&["top", "one"]).ok().out.contains("sleep 0.05"));
    let stats = docker.say(&["stats", "--no-stream", "--format={{.PIDs}}", "one"]).ok().out;
    assert!(stats.trim().parse::<u32>().is_ok_and(|pids| pids > 0), "{stats}");
    docker.say(&["pause", "one"]).ok();
    assert_eq!(docker.inspect("one", ".State.Status"), "paused");
    docker.say(&["unpause", "one"]).ok();
    let limits = ["--memory=64m", "--memory-swap=64m", "--cpus=0.5", "--pids-limit=30", "--cpu-shares=512"];
    docker.say(&[&["update"], &limits[..], &["one"]].concat()).ok();
    let found = docker.say(&["exec", "one", "sh", "-c", LIMITS]).ok().out;
    assert!(found.starts_with("67108864\n30\n50000\n"), "{found}");
    docker.say(&["stop", "-t", "10", "one"]).ok();
    assert_eq!(docker.say(&["wait", "one"]).ok().out, "3\n");
    docker.say(&["start", "one"]).ok();
    docker.say(&["restart", "-t", "10", "one"]).ok();
    assert_eq!(docker.inspect("one", ".State.Status"), "running");
}

#[test]
fn settings_reach_the_container() {
    let docker = Docker::new();
    let limits = ["--memory=64m", "--memory-swap=64m", "--pids-limit=20", "--cpus=0.5"];
    let out = docker.run(&limits, &["sh", "-c", LIMITS]).ok().out;
    assert!(out.starts_with("67108864\n20\n50000\n"), "{out}");
    docker.run(&["--read-only"], &["touch", "/x"]).fails("Read-only");
    let volume = docker.containerd.place.volume();
    assert_eq!(docker.run(&["-v", &format!("{volume}:/v:ro")], &["cat", "/v/f"]).ok().out, "data\n");
    let status = |flags: &[&str], word: &str| docker.run(flags, &["grep", word, "/proc/self/status"]).ok().out;
    assert_eq!(status(&[], "Seccomp:"), "Seccomp:\t2\n");
    assert_eq!(status(&["--security-opt=no-new-privileges"], "NoNewPrivs:"), "NoNewPrivs:\t1\n");
    assert!(status(&["--cap-drop=all"], "CapEff:").ends_with("\t0000000000000000\n"));
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(docker.run(&["--pid=host"], &["readlink", "/proc/self/ns/pid"]).ok().out.trim(), own.to_str().unwrap());
    let names = ["--hostname=there", "--domainname=inside", "--sysctl=kernel.msgmax=4242"];
    let out = docker.run(&names, &["sh", "-c", "cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax"]).ok().out;
    assert_eq!(out, "inside\n4242\n");
}

#[test]
fn a_terminal_has_its_size_and_its_input() {
    let docker = Docker::new();
    let script = "sleep 0.5; stty size; tty; read x; echo got $x";
    let out =
        in_terminal(&docker.command(&["run", "--rm", "-it", "--network=none", IMAGE, "sh", "-c", script]), "word\n");
    assert!(out.contains("33 44") && out.contains("/dev/pts/0") && out.contains("got word"), "{out}");
}

#[test]
fn docker_hears_of_health_and_restarts() {
    let docker = Docker::new();
    docker.start("healthy", &["--health-cmd=exit 0", "--health-interval=200ms"], "sleep 1000");
    docker.start("again", &["--restart=on-failure:2"], "exit 4");
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    let run = ["run", "--name=greedy", "--network=none", "--memory=8m", "--memory-swap=8m", IMAGE];
    assert_eq!(docker.say(&[&run[..], &greedy].concat()).code, 137);
    wait_for("health", || docker.inspect("healthy", ".State.Health.Status") == "healthy");
    wait_for("two restarts", || docker.inspect("again", ".RestartCount") == "2");
}

#[test]
fn an_image_is_built() {
    let docker = Docker::new();
    let context = docker.containerd.place.volume();
    fs::write(format!("{context}/Dockerfile"), format!("FROM {IMAGE}\nRUN echo one > /one\nRUN cat /one\n")).unwrap();
    let mut build = docker.command(&["build", "--network=none", "-t", "built", &context]);
    let out = say_with(std::mem::replace(build.env("DOCKER_BUILDKIT", "0"), Command::new("true")), "").ok().out;
    assert!(out.contains("\none\n"), "{out}");
}
