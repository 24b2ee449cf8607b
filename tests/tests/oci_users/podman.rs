//! `podman --runtime`, with a network only where a test gives it one.

use std::fs;
use std::process::Command;

use coracle_tests::machine::Netns;

use crate::oci_support::{Answer, peer, wait_for};
use crate::{IMAGE, LIMITS, PATIENCE, Place, in_terminal, runtime, say_with};

struct Podman(Place);

impl Podman {
    fn new() -> Podman {
        let podman = Podman(Place::new());
        // podman's own default is more than the hard limits of some machines; its locks are shared memory of the machine.
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                        [engine]\nlock_type = \"file\"\n";
        fs::write(podman.0.path("containers.conf"), settings).unwrap();
        podman.say(&["load", "-q", "-i", &podman.0.path("image.tar")]).ok();
        podman
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        // conmon writes of a lack of memory into its working directory.
        command.current_dir(self.0.dir.path());
        command.args([PATIENCE, "podman"]).env("CONTAINERS_CONF", self.0.path("containers.conf"));
        for (flag, name) in [("root", "root"), ("runroot", "run"), ("tmpdir", "tmp"), ("network-config-dir", "net")] {
            command.arg(format!("--{flag}={}", self.0.path(name)));
        }
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
        command.arg(format!("--runtime={}", runtime())).args(args);
        command
    }

    fn say(&self, args: &[&str]) -> Answer {
        say_with(self.command(args), "")
    }

    /// The arguments of `podman run`, without a network unless there is one among them.
    fn run_args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let network =
            if args.iter().any(|arg| arg.starts_with("--network=")) { &[][..] } else { &["--network=none"][..] };
        [&["run", "--cgroup-parent", &self.0.cgroup][..], network, args].concat()
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        self.say(&self.run_args(&[&["--rm"], flags, &[IMAGE], program].concat()))
    }

    fn sh(&self, flags: &[&str], script: &str) -> Answer {
        self.run(flags, &["sh", "-c", script])
    }

    /// Starts one that stays.
    fn start(&self, name: &str, flags: &[&str], script: &str) {
        self.say(&self.run_args(&[&["-d", "--name", name], flags, &[IMAGE, "sh", "-c", script]].concat())).ok();
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.say(&["pod", "rm", "-f", "-a", "-t", "0"]);
        let _ = self.say(&["rm", "-f", "-a", "-t", "0"]);
        self.0.close();
    }
}

const MAPPED: [&str; 2] = ["--uidmap=0:100000:1000", "--gidmap=0:100000:1000"];

#[test]
fn run_passes_on_input_output_and_exit_codes() {
    let podman = Podman::new();
    let answer = podman.sh(&[], "echo out; echo err >&2; exit 7");
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(say_with(podman.command(&podman.run_args(&["--rm", "-i", IMAGE, "cat"])), "words").ok().out, "words");
    for (program, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc", 126), ("/etc/passwd", 126)] {
        let answer = podman.run(&[], &[program]);
        assert_eq!(answer.code, code, "{program}: {answer:?}");
    }
    assert_eq!(podman.say(&["ps", "-a", "-q"]).ok().out, "");
}

#[test]
fn a_container_is_driven_through_its_life() {
    let podman = Podman::new();
    podman.start("a", &[], "echo started; trap 'exit 3' TERM; trap 'echo usr1' USR1; while :; do sleep 0.05; done");
    let status = || podman.say(&["inspect", "--format", "{{.State.Status}}", "a"]).ok().out.trim().to_owned();
    wait_for("the output", || podman.say(&["logs", "a"]).ok().out == "started\n");
    podman.say(&["kill", "-s", "USR1", "a"]).ok();
    wait_for("the signal", || podman.say(&["logs", "a"]).ok().out == "started\nusr1\n");
    assert!(podman.say(&["top", "a"]).ok().out.contains("sleep 0.05"));
    let stats = podman.say(&["stats", "--no-stream", "--format", "{{.PIDs}}", "a"]).ok().out;
    assert!(stats.trim().parse::<u32>().is_ok_and(|pids| pids > 0), "{stats}");
    podman.say(&["pause", "a"]).ok();
    assert_eq!(status(), "paused");
    podman.say(&["unpause", "a"]).ok();
    assert_eq!(status(), "running");
    podman.say(&["stop", "-t", "10", "a"]).ok();
    assert_eq!(podman.say(&["wait", "a"]).ok().out, "3\n");
    podman.say(&["start", "a"]).ok();
    podman.say(&["restart", "-t", "10", "a"]).ok();
    assert_eq!(status(), "running");
    podman.say(&["rm", "-f", "-t", "0", "a"]).ok();
}

#[test]
fn exec_does_what_it_is_told() {
    let podman = Podman::new();
    podman.start("a", &[], "sleep 1000");
    assert_eq!(podman.say(&["exec", "a", "sh", "-c", "exit 5"]).code, 5);
    let flags = ["exec", "-u", "33:33", "-e", "A=b", "-w", "/tmp", "a", "sh", "-c", "id -u; id -g; echo $A; pwd"];
    assert_eq!(podman.say(&flags).ok().out, "33\n33\nb\n/tmp\n");
    assert_eq!(podman.say(&["exec", "a", "no-such-program"]).code, 127);
    assert_eq!(say_with(podman.command(&["exec", "-i", "a", "cat"]), "words").ok().out, "words");
    podman.say(&["exec", "-d", "a", "touch", "/tmp/made"]).ok();
    wait_for("the file", || podman.say(&["exec", "a", "test", "-e", "/tmp/made"]).code == 0);
    let bounding = |args: &[&str]| podman.say(&[args, &["a", "grep", "CapEff", "/proc/self/status"]].concat()).ok().out;
    assert!(bounding(&["exec", "--privileged"]) > bounding(&["exec"]));
}

#[test]
fn a_terminal_has_its_size_and_its_input() {
    let podman = Podman::new();
    let script = "sleep 0.3; stty size; tty; read x; echo got $x";
    let run = podman.command(&podman.run_args(&["--rm", "-it", IMAGE, "sh", "-c", script]));
    let out = in_terminal(&run, "word\n");
    assert!(out.contains("33 44") && out.contains("/dev/pts/0") && out.contains("got word"), "{out}");
    podman.start("a", &[], "sleep 1000");
    let out = in_terminal(&podman.command(&["exec", "-it", "a", "sh", "-c", script]), "word\n");
    assert!(out.contains("33 44") && out.contains("/dev/pts/") && out.contains("got word"), "{out}");
    let mapped = podman.sh(&[&MAPPED[..], &["-t"]].concat(), "tty; stat -c %u /dev/console; echo x > /dev/stdout").ok();
    assert_eq!(mapped.out.replace('\r', ""), "/dev/pts/0\n0\nx\n");
}

#[test]
fn limits_hold() {
    let podman = Podman::new();
    let limits = ["--memory=64m", "--memory-swap=64m", "--pids-limit=20", "--cpus=0.5", "--cpu-shares=512"];
    let out = podman.sh(&limits, LIMITS).ok().out;
    assert!(out.starts_with("67108864\n20\n50000\n"), "{out}");
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    assert_eq!(podman.run(&["--memory=8m", "--memory-swap=8m"], &greedy).code, 137);
    podman.run(&["--memory=64m", "--memory-reservation=32m", "--cpuset-cpus=0", "--pids-limit=-1"], &["true"]).ok();
    let ulimits = ["--ulimit=core=0", "--ulimit=nofile=512:1024", "--ulimit=nproc=4096:4096", "--umask=0027"];
    assert_eq!(podman.sh(&ulimits, "ulimit -c; ulimit -n; umask").ok().out, "0\n512\n0027\n");
}

#[test]
fn mounts_are_as_asked() {
    let podman = Podman::new();
    let volume = podman.0.volume();
    assert_eq!(podman.sh(&["-v", &format!("{volume}:/v")], "cat /v/f; touch /v/new").ok().out, "data\n");
    assert!(fs::exists(format!("{volume}/new")).unwrap());
    podman.sh(&["-v", &format!("{volume}:/v:ro")], "touch /v/x").fails("Read-only");
    let out = podman.sh(&["-v", &format!("{volume}:/v:O")], "touch /v/over && ls /v").ok().out;
    assert!(out.contains("over") && !fs::exists(format!("{volume}/over")).unwrap(), "{out}");
    let shared = podman.sh(&["-v", &format!("{volume}:/v:rshared")], "grep ' /v ' /proc/self/mountinfo").ok().out;
    assert!(shared.contains("shared:"), "{shared}");
    podman.sh(&["--read-only"], "touch /tmp/x /run/x && touch /x").fails("Read-only");
    podman.run(&["-v", &format!("{volume}/f:/etc/passwd:ro")], &["grep", "data", "/etc/passwd"]).ok();
    assert_eq!(
        podman.sh(&["--shm-size=1m"], "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2").ok().out,
        "1024\n"
    );
}

#[test]
fn a_tmpfs_has_the_mode_that_was_asked_for_or_that_was_there() {
    let podman = Podman::new();
    let mode = |flags: &[&str], path: &str| podman.run(flags, &["stat", "-c", "%a", path]).ok().out;
    assert_eq!(mode(&["--tmpfs=/run:rw,noexec,mode=750"], "/run"), "750\n");
    assert_eq!(mode(&["--mount=type=tmpfs,destination=/root,notmpcopyup"], "/root"), "700\n");
    assert_eq!(mode(&["--mount=type=tmpfs,destination=/root,tmpcopyup"], "/root"), "700\n");
    assert_eq!(mode(&["--mount=type=tmpfs,destination=/made"], "/made"), "1777\n");
    assert_eq!(mode(&["--systemd=always"], "/run"), "1777\n");
}

#[test]
fn namespaces_are_shared_with_the_host_or_with_another() {
    let podman = Podman::new();
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_owned() + "\n";
    let link = |flag: &str, kind: &str| podman.run(&[flag], &["readlink", &format!("/proc/self/ns/{kind}")]).ok().out;
    assert_eq!(link("--pid=host", "pid"), own("pid"));
    assert_eq!(link("--uts=host", "uts"), own("uts"));
    assert_eq!(link("--cgroupns=host", "cgroup"), own("cgroup"));
    assert_ne!(link("--pid=private", "pid"), own("pid"));
    podman.start("a", &[], "sleep 1000");
    let script = "ps; readlink /proc/self/ns/net; readlink /proc/1/ns/net";
    let out = podman.sh(&["--pid=container:a", "--ipc=container:a", "--network=container:a"], script).ok().out;
    let nets: Vec<&str> = out.lines().filter(|l| l.starts_with("net:")).collect();
    assert!(out.contains("sleep 1000") && nets[0] == nets[1], "{out}");
    let netns = Netns::new();
    let inside = netns.run(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    let network = format!("ns:{}", netns.path());
    let args = [
        "run",
        "--rm",
        "--cgroup-parent",
        &podman.0.cgroup,
        "--network",
        &network,
        IMAGE,
        "readlink",
        "/proc/self/ns/net",
    ];
    assert_eq!(podman.say(&args).ok().out.trim(), inside.to_str().unwrap());
}

#[test]
fn a_pods_containers_share_namespaces_and_are_paused_together() {
    let podman = Podman::new();
    let infra = ["--infra-image", IMAGE, "--infra-command", "sleep 1000"];
    let parent = podman.0.cgroup.as_str();
    let create = ["pod", "create", "--name=p", "--network=none", "--share=net,ipc,uts,pid", "--cgroup-parent", parent];
    podman.say(&[&create[..], &infra].concat()).ok();
    podman.say(&["run", "-d", "--pod=p", "--name=first", IMAGE, "sh", "-c", "sleep 500"]).ok();
    let out = podman.say(&["run", "--rm", "--pod=p", IMAGE, "ps"]).ok().out;
    assert!(out.contains("sleep 1000") && out.contains("sleep 500"), "{out}");
    podman.say(&["pod", "pause", "p"]).ok();
    assert_eq!(podman.say(&["pod", "ps", "--format={{.Status}}"]).ok().out, "Paused\n");
    podman.say(&["pod", "unpause", "p"]).ok();
    podman.say(&["pod", "kill", "p"]).ok();
}

#[test]
fn user_namespaces_work_for_run_exec_volumes_and_privileged_containers() {
    let podman = Podman::new();
    let volume = podman.0.volume();
    let out = podman.sh(&[&MAPPED[..], &["-v", &format!("{volume}:/v:U")]].concat(), "id -u; stat -c %u /v/f").ok().out;
    assert_eq!(out, "0\n0\n");
    // `--privileged` names every device of the host, /dev/ptmx among them.
    let script = "ls -l /dev/ptmx; dd if=/dev/zero bs=1 count=1 2>/dev/null | wc -c";
    let out = podman.sh(&[&MAPPED[..], &["--privileged"]].concat(), script).ok().out;
    assert!(out.contains("-> pts/ptmx") && out.ends_with("\n1\n"), "{out}");
    podman.start("a", &MAPPED, "sleep 1000");
    assert!(podman.say(&["exec", "a", "cat", "/proc/self/uid_map"]).ok().out.contains("100000"));
    let joined =
        podman.run(&["--userns=container:a", "--network=container:a"], &["cat", "/proc/self/uid_map"]).ok().out;
    assert!(joined.contains("100000"), "{joined}");
}

#[test]
fn security_settings_reach_the_program() {
    let podman = Podman::new();
    let status = |flags: &[&str], word: &str| {
        let out = podman.run(flags, &["grep", word, "/proc/self/status"]).ok().out;
        out.split_whitespace().last().unwrap_or_default().to_owned()
    };
    assert_eq!(status(&[], "Seccomp:"), "2");
    assert_eq!(status(&["--security-opt=seccomp=unconfined"], "Seccomp:"), "0");
    assert_eq!(status(&["--security-opt=no-new-privileges"], "NoNewPrivs:"), "1");
    assert_eq!(status(&["--cap-drop=all", "--cap-add=net_admin"], "CapEff:"), format!("{:016x}", 1 << 12));
    assert_eq!(podman.sh(&["--security-opt=mask=/etc"], "ls /etc").ok().out, "");
    assert_eq!(podman.sh(&["--sysctl=kernel.msgmax=4242"], "cat /proc/sys/kernel/msgmax").ok().out, "4242\n");
    let device = podman.run(&["--device=/dev/null:/dev/mine:r"], &["stat", "-c", "%t:%T", "/dev/mine"]).ok().out;
    assert_eq!(device, "1:3\n");
}

#[test]
fn hooks_get_the_state_before_and_after() {
    let podman = Podman::new();
    let hooks = podman.0.volume();
    let hook = |stage: &str| {
        let args = serde_json::json!(["sh", "-c", format!("cat > {hooks}/{stage}.state")]);
        let hook = serde_json::json!({ "path": "/bin/sh", "args": args });
        let file =
            serde_json::json!({ "version": "1.0.0", "hook": hook, "when": { "always": true }, "stages": [stage] });
        fs::write(format!("{hooks}/{stage}.json"), file.to_string()).unwrap();
    };
    ["prestart", "poststart", "poststop"].into_iter().for_each(hook);
    podman.say(&[&["--hooks-dir", &hooks][..], &podman.run_args(&["--rm", IMAGE, "true"])].concat()).ok();
    let state = |stage: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(format!("{hooks}/{stage}.state")).unwrap()).unwrap()
    };
    // runc 1.1 says "created" at prestart, as the specification once did.
    let before = state("prestart")["status"].as_str().unwrap().to_owned();
    assert!(before == "creating" || before == "created" && !crate::oci_support::ours(), "{before}");
    assert!(state("prestart")["pid"].as_i64().unwrap() > 0);
    let after = state("poststart")["status"].as_str().unwrap().to_owned();
    assert!(after == "running" || after == "created" && !crate::oci_support::ours(), "{after}");
    assert_eq!(state("poststop")["status"], "stopped");
}

#[test]
fn a_container_may_stay_created() {
    let podman = Podman::new();
    let create = |name: &str| {
        let args =
            ["create", "--network=none", "--cgroup-parent", &podman.0.cgroup, "--name", name, IMAGE, "echo", "ran"];
        podman.say(&args).ok();
        podman.say(&["init", name]).ok();
    };
    create("a");
    assert_eq!(podman.say(&["start", "-a", "a"]).ok().out, "ran\n");
    create("b");
    podman.say(&["rm", "-f", "-t", "0", "b"]).ok();
}

#[test]
fn the_runtimes_flags_are_passed_on() {
    let podman = Podman::new();
    let flags = ["--runtime-flag=debug"];
    podman.say(&[&flags[..], &podman.run_args(&["--rm", IMAGE, "true"])].concat()).ok();
    if !peer("crun") {
        let flags = ["--runtime-flag=systemd-cgroup=false"];
        podman.say(&[&flags[..], &podman.run_args(&["--rm", IMAGE, "true"])].concat()).ok();
    }
}
