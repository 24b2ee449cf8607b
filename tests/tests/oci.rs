//! The life of a container by the command line: create, start, run, state, kill, delete, exec, list, pause, update.

mod oci_support;

use oci_support::{Answer, Bundle, ours, peer, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

#[test]
fn create_waits_for_start_and_delete_leaves_nothing() {
    let bundle = Bundle::sh("echo hello; exec sleep 1000");
    bundle.create().ok();
    assert_eq!(bundle.status(), "created");
    assert_eq!(bundle.file("out"), "");
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("output", || bundle.file("out") == "hello\n");
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn run_passes_on_output_and_exit_code() {
    let bundle = Bundle::sh("echo out; echo err >&2; exit 7");
    let answer = bundle.run();
    assert_eq!((answer.code, answer.out.as_str()), (7, "out\n"));
    assert!(answer.err.contains("err"));
    bundle.assert_gone();
}

#[test]
fn run_reports_a_signal_death_as_128_plus_its_number() {
    // From outside: an init ignores signals it has no handler for, even its own SIGKILL.
    let bundle = Bundle::sleeping();
    let mut child = bundle.command(&["exec", &bundle.id, "/bin/sh", "-c", "kill -9 $$"]).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn run_reads_stdin() {
    let bundle = Bundle::new(&["/bin/cat"]);
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let mut child = bundle
        .command(&["run", "--bundle", dir, &bundle.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.out.as_str()), (0, "through"));
}

#[test]
fn run_forwards_signals() {
    let bundle = Bundle::sh("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let mut child = bundle.command(&["run", "--bundle", dir, &bundle.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0u8; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_detached_run_stays() {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let status = bundle
        .command(&["run", "-d", "--bundle", dir, &bundle.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn the_state_is_that_of_the_specification() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/annotations", json!({ "org.example": "yes" }));
    let pid_file = bundle.dir.path().join("pid");
    bundle.create_with(&["--pid-file", pid_file.to_str().unwrap()]).ok();
    let state = bundle.state();
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["bundle"], bundle.dir.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example"], "yes");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(pid_file).unwrap());
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    let created = state["created"].as_str().unwrap();
    assert!(created.len() >= 20 && created.contains('T') && created.ends_with('Z'), "{created}");
}

#[test]
fn an_id_is_taken_once() {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.create().ok();
    bundle.create().fails("exist");
    assert_eq!(bundle.status(), "created", "the first one is untouched");
    assert!(!bundle.cgroups().is_empty());
}

#[test]
fn ids_that_are_paths_are_refused() {
    let bundle = Bundle::new(&["/bin/true"]);
    bundle.write_config();
    for id in ["../x", "a/b", "", ".."] {
        let answer = bundle.oci(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), id]);
        // crun 1.8 takes "..": its state then lies one directory up.
        assert!(answer.code != 0 || (peer("crun") && id == ".."), "{id:?}");
    }
}

#[test]
fn unknown_containers_are_errors_everywhere() {
    let bundle = Bundle::new(&["/bin/true"]);
    for verb in [
        &["state"][..],
        &["start"],
        &["kill"],
        &["delete"],
        &["pause"],
        &["resume"],
        &["ps"],
        &["update", "--memory", "1"],
    ] {
        let mut args = verb.to_vec();
        args.push("no-such");
        let answer = bundle.oci(&args);
        assert_ne!(answer.code, 0, "{verb:?}");
        assert!(!answer.err.is_empty(), "{verb:?}");
    }
    bundle.oci(&["delete", "--force", "no-such"]).ok();
}

#[test]
fn a_running_container_is_deleted_only_by_force() {
    let bundle = Bundle::sleeping();
    bundle.oci(&["delete", &bundle.id]).fails("not ");
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_created_container_is_deleted_without_ever_running() {
    let bundle = Bundle::sh("echo ran");
    bundle.create().ok();
    // crun wants --force here; runc does not.
    let flags: &[&str] = if peer("crun") { &["delete", "--force"] } else { &["delete"] };
    bundle.oci(&[flags, &[bundle.id.as_str()]].concat()).ok();
    assert_eq!(bundle.file("out"), "");
    bundle.assert_gone();
}

#[test]
fn what_a_killed_create_left_is_removed_by_force() {
    if !ours() {
        return; // It is our own state directory that is looked at.
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    // A hook that hangs keeps the create where it has a cgroup and a directory, but no record yet.
    bundle.set("/hooks/createRuntime", json!([{ "path": "/bin/sleep", "args": ["sleep", "3"] }]));
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let mut child = bundle.command(&["create", "--bundle", dir, &bundle.id]).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the cgroup", || !bundle.cgroups().is_empty() && bundle.state_root().join(&bundle.id).exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(bundle.oci(&["state", &bundle.id]).code, 0);
    wait_for("the removal", || bundle.oci(&["delete", "--force", &bundle.id]).code == 0);
    bundle.assert_gone();
}

#[test]
fn start_happens_once() {
    let bundle = Bundle::sleeping();
    let answer = bundle.oci(&["start", &bundle.id]);
    assert_ne!(answer.code, 0);
    assert_eq!(bundle.status(), "running");
}

#[test]
fn a_created_container_whose_process_was_killed_is_stopped() {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.create().ok();
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    assert_ne!(bundle.oci(&["start", &bundle.id]).code, 0);
    bundle.oci(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn kill_takes_names_and_numbers_and_term_by_default() {
    let bundle =
        Bundle::sh("trap 'echo usr1' USR1; trap 'echo term; exit' TERM; echo up; while :; do sleep 0.05; done");
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("up", || bundle.file("out").contains("up"));
    bundle.oci(&["kill", &bundle.id, "SIGUSR1"]).ok();
    wait_for("first", || bundle.file("out").matches("usr1").count() == 1);
    bundle.oci(&["kill", &bundle.id, "10"]).ok();
    wait_for("second", || bundle.file("out").matches("usr1").count() == 2);
    bundle.oci(&["kill", &bundle.id]).ok();
    bundle.wait_status("stopped");
    assert!(bundle.file("out").contains("term"));
    bundle.oci(&["kill", &bundle.id, "TERM"]).fails("");
}

#[test]
fn kill_all_reaches_every_process() {
    let mut bundle = Bundle::sh("sleep 1000 & sleep 1000 & wait");
    // Where the PID namespace is the host's nothing else would end them.
    bundle.namespace("pid", None);
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let pids = || -> Vec<i32> {
        serde_json::from_str(&bundle.oci(&["ps", "--format", "json", &bundle.id]).out).unwrap_or_default()
    };
    wait_for("three processes", || pids().len() == 3);
    bundle.oci(&["kill", "--all", &bundle.id, "KILL"]).ok();
    wait_for("none", || pids().is_empty());
    bundle.oci(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn delete_ends_processes_that_outlive_the_init() {
    let mut bundle = Bundle::sh("sleep 1000 & echo up");
    bundle.namespace("pid", None);
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.wait_status("stopped");
    // crun 1.8 fails to remove the busy cgroup without --force.
    let flags: &[&str] = if peer("crun") { &["delete", "--force"] } else { &["delete"] };
    bundle.oci(&[flags, &[bundle.id.as_str()]].concat()).ok();
    bundle.assert_gone();
}

#[test]
fn list_shows_what_there_is() {
    let bundle = Bundle::sleeping();
    assert_eq!(bundle.oci(&["list", "-q"]).ok().out.trim(), bundle.id);
    let table = bundle.oci(&["list"]).ok().out;
    assert!(table.starts_with("ID") || table.starts_with("NAME"), "{table}");
    assert!(table.contains(&bundle.id) && table.contains("running"), "{table}");
    let list: Value = serde_json::from_str(&bundle.oci(&["list", "--format", "json"]).ok().out).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["id"], bundle.id.as_str());
    assert_eq!(list[0]["status"], "running");
}

#[test]
fn ps_lists_the_containers_processes() {
    let bundle = Bundle::sleeping();
    let pids: Vec<i64> = serde_json::from_str(&bundle.oci(&["ps", "--format", "json", &bundle.id]).ok().out).unwrap();
    assert_eq!(pids, [bundle.state()["pid"].as_i64().unwrap()]);
    // crun's table is pids alone.
    let table = bundle.oci(&["ps", &bundle.id]).ok().out;
    assert!(table.contains("PID") && table.contains(&pids[0].to_string()), "{table}");
}

#[test]
fn pause_freezes_and_resume_thaws() {
    let bundle = Bundle::sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("progress", || !bundle.file("out").is_empty());
    bundle.oci(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    let before = bundle.file("out");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(bundle.file("out"), before);
    if !peer("crun") {
        bundle.exec(&["/bin/true"]).fails("paused");
    }
    bundle.oci(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    wait_for("progress again", || bundle.file("out").len() > before.len());
    bundle.oci(&["pause", &bundle.id]).ok();
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn update_changes_limits_by_flags_and_by_file() {
    let bundle = Bundle::sleeping();
    let limit = |controller: &str, v1: &str, v2: &str| {
        bundle
            .cgroups()
            .iter()
            .flat_map(|c| [c.join(v1), c.join(v2)])
            .find(|p| p.exists() && p.to_string_lossy().contains(controller))
            .map(|p| fs::read_to_string(p).unwrap().trim().to_owned())
    };
    bundle.oci(&["update", "--memory", "67108864", "--pids-limit", "50", &bundle.id]).ok();
    assert_eq!(limit("memory", "memory.limit_in_bytes", "memory.max").as_deref(), Some("67108864"));
    assert_eq!(limit("pids", "pids.max", "pids.max").as_deref(), Some("50"));
    let file = bundle.dir.path().join("resources.json");
    fs::write(&file, r#"{"pids":{"limit":33}}"#).unwrap();
    bundle.oci(&["update", "-r", file.to_str().unwrap(), &bundle.id]).ok();
    assert_eq!(limit("pids", "pids.max", "pids.max").as_deref(), Some("33"));
    assert_eq!(limit("memory", "memory.limit_in_bytes", "memory.max").as_deref(), Some("67108864"), "kept");
}

#[test]
fn stats_are_json() {
    let bundle = Bundle::sleeping();
    if peer("crun") {
        return; // crun has no events.
    }
    let line = bundle.oci(&["events", "--stats", &bundle.id]).ok().out;
    let stats: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["id"], bundle.id.as_str());
    // runc's init, which has threads, may not be gone yet.
    assert!(stats["data"]["pids"]["current"] == 1 || peer("runc"), "{stats}");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
}

#[test]
fn exec_runs_in_the_containers_namespaces() {
    let bundle = Bundle::sleeping();
    let answer = bundle
        .exec(&["/bin/sh", "-c", "hostname; echo $$ > /dev/null; readlink /proc/self/ns/net; cat /proc/1/cmdline"])
        .ok();
    let pid = bundle.state()["pid"].to_string();
    let net = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert!(answer.out.starts_with("box\n"), "{}", answer.out);
    assert!(answer.out.contains(net.to_str().unwrap()));
    assert!(answer.out.contains("sleep"));
}

#[test]
fn exec_passes_on_exit_codes_and_its_own_failures() {
    let bundle = Bundle::sleeping();
    assert_eq!(bundle.exec(&["/bin/sh", "-c", "exit 5"]).code, 5);
    let missing = bundle.exec(&["no-such-program"]);
    // 255 as in runc; crun exits with 1, or 127 as a shell.
    assert!(missing.code == 255 || !ours(), "{missing:?}");
    missing.fails("not found");
}

#[test]
fn exec_takes_its_flags() {
    let bundle = Bundle::sleeping();
    let out = bundle
        .oci(&[
            "exec",
            "--env",
            "A=b",
            "--cwd",
            "/tmp",
            "--user",
            "5:6",
            &bundle.id,
            "/bin/sh",
            "-c",
            "echo $A; pwd; id -u; id -g",
        ])
        .ok()
        .out;
    assert_eq!(out, "b\n/tmp\n5\n6\n");
    let out = bundle
        .oci(&["exec", "--cap", "CAP_SYS_ADMIN", &bundle.id, "/bin/grep", "CapBnd", "/proc/self/status"])
        .ok()
        .out;
    let bounding = u64::from_str_radix(out.split_whitespace().last().unwrap(), 16).unwrap();
    assert_ne!(bounding & (1 << 21), 0, "{out}");
    if !peer("crun") {
        let out = bundle.oci(&["exec", "--additional-gids", "77", &bundle.id, "/bin/id", "-G"]).ok().out;
        assert!(out.split_whitespace().any(|g| g == "77"), "{out}");
    }
}

#[test]
fn exec_takes_a_process_file() {
    let bundle = Bundle::sleeping();
    let file = bundle.dir.path().join("process.json");
    let process = json!({ "args": ["/bin/sh", "-c", "echo $X; pwd; id -u"], "env": ["X=y", "PATH=/bin"], "cwd": "/etc", "user": { "uid": 9, "gid": 9 } });
    fs::write(&file, process.to_string()).unwrap();
    let out = bundle.oci(&["exec", "--process", file.to_str().unwrap(), &bundle.id]).ok().out;
    assert_eq!(out, "y\n/etc\n9\n");
}

#[test]
fn exec_detached_writes_its_pid() {
    let bundle = Bundle::sleeping();
    let pid_file = bundle.dir.path().join("exec.pid");
    let status = bundle
        .command(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &bundle.id, "/bin/sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let pids: Vec<i32> = serde_json::from_str(&bundle.oci(&["ps", "--format", "json", &bundle.id]).out).unwrap();
    assert!(pids.contains(&pid));
}

#[test]
fn exec_in_a_stopped_container_is_an_error() {
    let bundle = Bundle::sh("exit 0");
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.wait_status("stopped");
    assert_ne!(bundle.exec(&["/bin/true"]).code, 0);
}

/// Receives the terminal's master that the runtime sends.
fn receive(listener: &UnixListener) -> fs::File {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0u8; 256];
    let mut slices = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = nix::sys::socket::recvmsg::<()>(
        stream.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        nix::sys::socket::MsgFlags::empty(),
    )
    .unwrap();
    for control in message.cmsgs().unwrap() {
        if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = control {
            return fs::File::from(coracle_tests::sys::adopt(fds[0]));
        }
    }
    panic!("no descriptor came");
}

fn read_until(file: &mut fs::File, words: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 1024];
    while !text.contains(words) {
        match file.read(&mut buffer) {
            Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            _ => break,
        }
    }
    assert!(text.contains(words), "{words:?} is not in {text:?}");
    text
}

#[test]
fn a_terminal_comes_over_the_console_socket() {
    let mut bundle = Bundle::sh("tty; ls -l /dev/console; stty size; read line; echo got $line");
    bundle.set("/process/terminal", json!(true));
    bundle.set("/process/consoleSize", json!({ "height": 31, "width": 99 }));
    let socket = bundle.dir.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.create_with(&["--console-socket", socket.to_str().unwrap()]).ok();
    let mut master = receive(&listener);
    bundle.oci(&["start", &bundle.id]).ok();
    let text = read_until(&mut master, "31 99");
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    master.write_all(b"word\n").unwrap();
    read_until(&mut master, "got word");
    bundle.wait_status("stopped");
}

#[test]
fn exec_with_a_terminal() {
    let bundle = Bundle::sleeping();
    let socket = bundle.dir.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let status = bundle
        .command(&[
            "exec",
            "-t",
            "-d",
            "--console-socket",
            socket.to_str().unwrap(),
            &bundle.id,
            "/bin/sh",
            "-c",
            "tty; read x",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut master = receive(&listener);
    read_until(&mut master, "/dev/pts/");
    master.write_all(b"\n").unwrap();
}

#[test]
fn a_terminal_without_a_console_socket_is_an_error() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/process/terminal", json!(true));
    let answer = bundle.create();
    assert_ne!(answer.code, 0);
    bundle.assert_gone();
}

#[test]
fn preserved_descriptors_reach_the_program_and_no_others() {
    let bundle = Bundle::sh("ls /proc/self/fd; cat <&3");
    bundle.write_config();
    let file = bundle.dir.path().join("given");
    fs::write(&file, "given").unwrap();
    let script = format!(
        "exec 3<{0} 4<{0} 9<{0}; exec {1} --root {2} run --preserve-fds 1 --bundle {3} {4}",
        file.display(),
        oci_support::runtime().display(),
        bundle.state_root().display(),
        bundle.dir.path().display(),
        bundle.id
    );
    let output: Answer =
        std::process::Command::new("/bin/bash").arg("-c").arg(script).stdin(Stdio::null()).output().unwrap().into();
    let output = output.ok();
    // ls itself opens one more; what it gets depends on the lowest free number.
    assert_eq!(output.out, "0\n1\n2\n3\n4\ngiven", "only 0 to 3, and the directory that ls reads");
}

#[test]
fn a_descriptor_of_the_runtime_itself_is_not_preserved() {
    if !ours() {
        return; // Theirs are.
    }
    let bundle = Bundle::sh("ls /proc/self/fd");
    bundle.write_config();
    let folder = bundle.dir.path();
    let log = folder.join("log").display().to_string();
    let run = ["--log", &log, "run", "--preserve-fds", "1", "--bundle", folder.to_str().unwrap(), &bundle.id];
    bundle.oci(&run).fails("descriptor 3 is to be preserved, but was not handed over");
    bundle.assert_gone();
    let bundle = Bundle::sleeping();
    let exec = ["exec", "--preserve-fds", "1", &bundle.id, "/bin/true"];
    bundle.oci(&exec).fails("descriptor 3 is to be preserved, but was not handed over");
}

#[test]
fn no_descriptor_leaks_into_the_program() {
    let bundle = Bundle::sh("ls /proc/self/fd");
    assert_eq!(bundle.run().ok().out, "0\n1\n2\n3\n");
    let bundle = Bundle::sleeping();
    assert_eq!(bundle.exec(&["/bin/ls", "/proc/self/fd"]).ok().out, "0\n1\n2\n3\n");
}

#[test]
fn errors_go_to_the_log_as_json_when_asked() {
    let bundle = Bundle::new(&["/bin/true"]);
    let log = bundle.dir.path().join("log");
    let answer = bundle.oci(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "no-such"]);
    assert_eq!(answer.code, 1);
    let text = fs::read_to_string(log).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("exist") || peer("crun"), "{line}");
    assert!(line["time"].is_string());
}

#[test]
fn version_spec_and_features_are_what_tools_parse() {
    let bundle = Bundle::new(&["/bin/true"]);
    let version = bundle.oci(&["--version"]).ok().out;
    assert!(version.lines().next().unwrap().contains("version"), "{version}");
    assert!(version.lines().any(|l| l.starts_with("spec: 1.")), "{version}");
    let dir = tempfile::tempdir().unwrap();
    let answer: Answer = bundle.command(&["spec"]).current_dir(dir.path()).output().unwrap().into();
    answer.ok();
    let spec: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(spec["process"]["args"], json!(["sh"]));
    if ours() {
        let features: Value = serde_json::from_str(&bundle.oci(&["features"]).ok().out).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
        assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("time")));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        assert_eq!(features["linux"]["intelRdt"]["enabled"], true);
    }
}

#[test]
fn usage_errors_are_errors() {
    let bundle = Bundle::new(&["/bin/true"]);
    for args in [
        &["fly"][..],
        &["create", "--no-such-flag", "x"],
        &["kill"],
        &["update", &bundle.id],
        &["kill", &bundle.id, "NOSIG"],
    ] {
        let answer = bundle.oci(args);
        assert_ne!(answer.code, 0, "{args:?}");
        assert!(!answer.err.is_empty() || !answer.out.is_empty(), "{args:?}");
    }
}
