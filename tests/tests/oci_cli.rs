//! The command line itself: its flags against Debian's runc, logs, exit codes, lists, descriptors, sockets.

mod oci_support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_support::{Answer, Bundle, ours, peer, runtime, wait_for};
use serde_json::{Value, json};

/// The flags that a help shows, each with whether it takes a value.
fn flags(program: &str, verb: &str) -> BTreeSet<(String, bool)> {
    let mut command = Command::new(program);
    let args: &[&str] = if verb.is_empty() { &["--help"] } else { &[verb, "--help"] };
    let answer = Answer::from(command.args(args).output().expect("the program runs")).ok();
    let lines = answer.out.lines().map(str::trim).filter(|line| line.starts_with("--"));
    let names = lines.flat_map(|line| line.split("  ").next().unwrap_or_default().split(", "));
    names
        .map(|name| match name.split_once(' ') {
            Some((name, _)) => (name.trim_start_matches('-').to_owned(), true),
            None => (name.trim_start_matches('-').to_owned(), false),
        })
        .collect()
}

#[test]
fn every_verb_and_flag_of_runc_is_known() {
    let own = runtime();
    if !ours() {
        return; // It is our own help that is compared.
    }
    let help = Answer::from(Command::new("runc").arg("--help").output().expect("apt-get install runc"));
    let verbs: Vec<&str> = help
        .out
        .lines()
        .skip_while(|line| !line.starts_with("COMMANDS"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| !verb.starts_with("help"))
        .collect();
    assert!(verbs.len() > 15, "{verbs:?}");
    let own_help = Answer::from(Command::new(&own).arg("--help").output().unwrap()).out;
    for verb in verbs.iter().chain([&""]) {
        if ["checkpoint", "restore"].contains(verb) && !own_help.contains(&format!("   {verb} ")) {
            continue; // Not done yet.
        }
        let missing: Vec<_> = flags("runc", verb).difference(&flags(own.to_str().unwrap(), verb)).cloned().collect();
        assert!(missing.is_empty(), "{verb:?} lacks {missing:?}");
    }
}

#[test]
fn flags_are_taken_as_gos_flag_package_does() {
    let bundle = Bundle::sleeping();
    for args in [
        &["-debug=false", "list", "-quiet"][..],
        &["--log-format=text", "list", "-q=true"],
        &["list", "--q"],
        &["-root", bundle.state_root().to_str().unwrap(), "list", "--quiet"],
    ] {
        // crun parses as GNU does.
        if !peer("crun") {
            assert_eq!(bundle.oci(args).ok().out.trim(), bundle.id, "{args:?}");
        }
    }
    // What follows the container belongs to the program.
    assert_eq!(bundle.exec(&["/bin/sh", "-c", "echo $0 $*", "-d", "--tty"]).ok().out, "-d --tty\n");
}

#[test]
fn usage_errors_print_the_help_and_unknown_verbs_have_their_own_code() {
    let bundle = Bundle::new(&["/bin/true"]);
    let answer = bundle.oci(&["kill", "--no-such-flag"]);
    if peer("crun") {
        return; // It has its own words.
    }
    assert_eq!(answer.code, 1);
    assert!(answer.out.starts_with("Incorrect Usage"), "{}", answer.out);
    assert!(answer.out.contains("USAGE:") && answer.out.contains("--all"), "{}", answer.out);
    assert!(answer.err.contains("flag provided but not defined: -no-such-flag"), "{}", answer.err);
    let answer = bundle.oci(&["kill"]);
    assert!(answer.err.contains("requires a minimum of 1 argument(s)"), "{}", answer.err);
    assert_eq!(bundle.oci(&["fly"]).code, 3);
    assert_eq!(bundle.oci(&["help", "kill"]).ok().out, bundle.oci(&["kill", "--help"]).ok().out);
}

#[test]
fn an_error_is_a_record_on_stderr_or_in_the_log() {
    let bundle = Bundle::new(&["/bin/true"]);
    if peer("crun") {
        return; // It has its own formats.
    }
    let is_record = |line: &str, level: &str| {
        line.starts_with("time=\"20") && line.contains(&format!("Z\" level={level} msg=")) && !line.contains('.')
    };
    let answer = bundle.oci(&["state", "no-such"]);
    assert!(is_record(answer.err.trim(), "error"), "{}", answer.err);
    let json: Value = serde_json::from_str(&bundle.oci(&["--log-format", "json", "state", "no-such"]).err).unwrap();
    assert_eq!(json["level"], "error");
    let log = bundle.dir.path().join("log");
    let answer = bundle.oci(&["--log", log.to_str().unwrap(), "state", "no-such"]);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| is_record(line, "error")), "{text}");
    assert!(!answer.err.contains("level=") && answer.err.contains("exist"), "plain words for people: {}", answer.err);
    let answer = bundle.oci(&["--log", "/no-such-directory/log", "list"]);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("/no-such-directory/log"), "{}", answer.err);
    bundle.oci(&["--log-format", "xml", "list"]).fails("invalid log-format");
}

#[test]
fn debug_records_say_what_happens() {
    let bundle = Bundle::sh("exit 3");
    bundle.write_config();
    let log = bundle.dir.path().join("log");
    let dir = bundle.dir.path().to_str().unwrap();
    let answer = bundle.oci(&["--debug", "--log", log.to_str().unwrap(), "run", "--bundle", dir, &bundle.id]);
    assert_eq!(answer.code, 3);
    assert_eq!(answer.err, "", "nothing for people");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("level=debug") || peer("crun"), "{text}");
}

#[test]
fn a_list_is_a_table_json_or_ids() {
    let bundle = Bundle::new(&["/bin/true"]);
    if peer("crun") {
        return; // Its list has other columns.
    }
    fs::create_dir_all(bundle.state_root()).unwrap();
    assert_eq!(bundle.oci(&["list"]).ok().out, "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    assert_eq!(bundle.oci(&["list", "--format", "json"]).ok().out, "null\n");
    bundle.oci(&["list", "--format", "xml"]).fails("invalid format option");
    bundle.create().ok();
    let table = bundle.oci(&["list"]).ok().out;
    let (header, row) = table.trim_end().split_once('\n').unwrap();
    for (name, value) in [("ID", bundle.id.as_str()), ("STATUS", "created"), ("OWNER", "root")] {
        let column = header.find(name).unwrap();
        assert!(row[column..].starts_with(value), "{name} is not above {value}: {table}");
    }
    let json: Value = serde_json::from_str(&bundle.oci(&["list", "-f", "json"]).ok().out).unwrap();
    for field in ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"] {
        assert!(!json[0][field].is_null(), "{field} is missing: {json}");
    }
    // One broken container hides no other.
    fs::create_dir(bundle.state_root().join("broken")).unwrap();
    fs::write(bundle.state_root().join("broken/state.json"), "{").unwrap();
    let answer = bundle.oci(&["list", "-q"]).ok();
    assert_eq!(answer.out.trim(), bundle.id);
    assert!(answer.err.contains("broken"), "{}", answer.err);
}

#[test]
fn the_state_root_is_as_told() {
    let bundle = Bundle::new(&["/bin/true"]);
    if !ours() {
        return; // runc 1.1 takes /.
    }
    bundle.create().ok();
    let mut command = Command::new(runtime());
    command.args(["--root", "state", "list", "-q"]).current_dir(bundle.dir.path());
    assert_eq!(Answer::from(command.output().unwrap()).ok().out.trim(), bundle.id, "relative to where we are");
    bundle.oci(&["--root", "/", "list"]).fails("--root");
    bundle.oci(&["--root", "/no-such-directory", "list"]).fails("/no-such-directory");
}

#[test]
fn delete_by_force_may_be_repeated() {
    let bundle = Bundle::sleeping();
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.oci(&["delete", "-f", &bundle.id]).ok();
    bundle.oci(&["delete", &bundle.id]).fails(if peer("crun") { "no such" } else { "exist" });
}

#[test]
fn signal_zero_asks_and_a_stopped_container_gets_none() {
    let bundle = Bundle::sleeping();
    bundle.oci(&["kill", &bundle.id, "0"]).ok();
    bundle.oci(&["kill", &bundle.id, "9"]).ok();
    bundle.wait_status("stopped");
    for signal in ["0", "TERM"] {
        let answer = bundle.oci(&["kill", &bundle.id, signal]);
        // containerd and podman look for runc's words.
        assert!(answer.code != 0 && (answer.err.contains("container not running") || !ours()), "{answer:?}");
    }
}

#[test]
fn real_time_signals_are_passed_on_and_reported() {
    if peer("crun") {
        return; // It passes on none.
    }
    let bundle = Bundle::sh("trap 'echo caught; exit 9' 40; echo up; while :; do sleep 0.05; done");
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let mut child = bundle.command(&["run", "--bundle", dir, &bundle.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let kill = Command::new("kill").args(["-40", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let bundle = Bundle::sleeping();
    assert_eq!(bundle.exec(&["/bin/sh", "-c", "kill -40 $$"]).code, 128 + 40);
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    let bundle = Bundle::sh("echo a; echo b >&2; read x; ls /proc/self/fd > /tmp/fds; exit 6");
    bundle.write_config();
    let script = format!(
        "exec {} --root {} run --bundle {} {} <&- >&- 2>&-",
        runtime().display(),
        bundle.state_root().display(),
        bundle.dir.path().display(),
        bundle.id
    );
    let status = Command::new("/bin/bash").arg("-c").arg(script).status().unwrap();
    if ours() {
        // runc's program has no streams then, and crun's none but broken ones.
        assert_eq!(status.code(), Some(6));
        assert_eq!(fs::read_to_string(bundle.rootfs().join("tmp/fds")).unwrap(), "0\n1\n2\n3\n");
    }
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_detached_container_keeps_the_callers_streams() {
    let bundle = Bundle::sh("echo early; read line; echo got $line");
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    let (mut input, output) = (fs::OpenOptions::new(), bundle.dir.path().join("late"));
    let fifo = bundle.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let input = input.read(true).write(true).open(&fifo).unwrap();
    let stream = |file: &File| Stdio::from(file.try_clone().unwrap());
    let file = File::create(&output).unwrap();
    let mut command = bundle.command(&["run", "--detach", "--bundle", dir, &bundle.id]);
    assert!(command.stdin(stream(&input)).stdout(stream(&file)).stderr(stream(&file)).status().unwrap().success());
    wait_for("early words", || fs::read_to_string(&output).unwrap() == "early\n");
    (&input).write_all(b"words\n").unwrap();
    wait_for("late words", || fs::read_to_string(&output).unwrap() == "early\ngot words\n");
    bundle.wait_status("stopped");
}

#[test]
fn run_adopts_orphans_unless_told_not_to() {
    if peer("crun") {
        return; // It has no such flag.
    }
    for (flags, adopted) in [(&[][..], true), (&["--no-subreaper"], false)] {
        let mut bundle = Bundle::sh("(sleep 1000 & ) ; echo up; while :; do sleep 0.05; done");
        // In a PID namespace of its own the init adopts them.
        bundle.namespace("pid", None);
        bundle.write_config();
        let mut args = vec!["run", "--bundle", bundle.dir.path().to_str().unwrap()];
        args.extend(flags);
        args.push(&bundle.id);
        let mut child = bundle.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut up = [0u8; 2];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let parents = || -> Vec<i32> {
            let text = bundle.oci(&["ps", "--format", "json", &bundle.id]).out;
            let pids: Vec<i32> = serde_json::from_str(&text).unwrap_or_default();
            pids.iter().filter_map(|pid| parent_of_sleep(*pid)).collect()
        };
        let is_ours = |parents: Vec<i32>| parents.contains(&(child.id() as i32));
        if adopted {
            wait_for("the adoption", || is_ours(parents()));
        } else {
            wait_for("an orphan", || !parents().is_empty());
            assert!(!is_ours(parents()));
        }
        bundle.oci(&["kill", "--all", &bundle.id, "KILL"]);
        child.wait().unwrap();
    }
}

/// The parent of a long sleep.
fn parent_of_sleep(pid: i32) -> Option<i32> {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok().filter(|_| words.starts_with("sleep\0"))?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|parent| parent.trim().parse().ok())
}

/// Takes a pidfd off a socket, and the message that came with it.
fn receive(listener: &UnixListener) -> (OwnedFd, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0u8; 64];
    let mut slices = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let flags = nix::sys::socket::MsgFlags::empty();
    let message = nix::sys::socket::recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
    let fds = message.cmsgs().unwrap().find_map(|control| match control {
        nix::sys::socket::ControlMessageOwned::ScmRights(fds) => Some(fds[0]),
        _ => None,
    });
    let (fd, length) = (fds.expect("a descriptor"), message.bytes);
    (coracle_tests::sys::adopt(fd), String::from_utf8_lossy(&name[..length]).into_owned())
}

/// The process behind a pidfd.
fn pid_of(pidfd: &OwnedFd) -> i32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a pidfd").trim().parse().unwrap()
}

#[test]
fn a_pidfd_comes_over_the_pidfd_socket() {
    if !ours() {
        return; // Newer than Debian's runc and crun.
    }
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let path = bundle.dir.path().join("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.create_with(&["--pidfd-socket", path.to_str().unwrap()]).ok();
    let (pidfd, kind) = receive(&listener);
    assert_eq!((pid_of(&pidfd), kind.as_str()), (bundle.state()["pid"].as_i64().unwrap() as i32, "standard"));
    bundle.oci(&["start", &bundle.id]).ok();
    let pid_file = bundle.dir.path().join("exec.pid");
    let flags = ["--pidfd-socket", path.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap()];
    let mut command = bundle.command(&["exec", "--detach"]);
    command.args(flags).args([&bundle.id, "/bin/sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let (pidfd, kind) = receive(&listener);
    assert_eq!((pid_of(&pidfd).to_string(), kind.as_str()), (fs::read_to_string(pid_file).unwrap(), "setns"));
}

#[test]
fn a_pidfd_socket_without_a_listener_makes_nothing() {
    if !ours() {
        return; // Newer than Debian's runc and crun.
    }
    let bundle = Bundle::new(&["/bin/true"]);
    bundle.create_with(&["--pidfd-socket", "/no-such-socket"]).fails("/no-such-socket");
    bundle.assert_gone();
}

#[test]
fn exec_goes_to_a_cgroup_beneath_the_containers() {
    if peer("crun") {
        return; // It takes a path for cgroup v2 alone.
    }
    let bundle = Bundle::sleeping();
    let own = bundle.config["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    let cgroups = bundle.cgroups();
    for dir in &cgroups {
        fs::create_dir(dir.join("sub")).unwrap();
        // A new cpuset of v1 is empty, and nobody gets in.
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| dir.join(file).exists()) {
            let _ = fs::copy(dir.join(file), dir.join("sub").join(file));
        }
    }
    let exec = |flags: &[&str]| {
        let args = [&["exec"][..], flags, &[&bundle.id, "/bin/cat", "/proc/self/cgroup"]].concat();
        bundle.oci(&args)
    };
    let places = |flags: &[&str]| exec(flags).ok().out.lines().filter(|l| l.ends_with(&format!("{own}/sub"))).count();
    assert_eq!(places(&["--cgroup", "/"]), 0);
    assert!(places(&["--cgroup", "sub"]) > 0);
    assert!(exec(&["--cgroup", "sub"]).ok().out.lines().all(|line| !line.ends_with(&own)));
    for wrong in [&["--cgroup", ".."][..], &["--cgroup", "no-such"], &["--cgroup", "a", "--cgroup", "b"]] {
        assert_eq!(exec(wrong).code, 255, "{wrong:?}");
    }
    assert_ne!(exec(&["--cgroup", "no-such-controller:sub"]).code, 0);
    if !fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        // v1: each controller where it is told to be.
        let text = exec(&["--cgroup", "memory:sub", "--cgroup", "cpu,cpuacct:/sub"]).ok().out;
        let place = |controller: &str| {
            let line = text.lines().find(|l| l.split(':').nth(1).unwrap().split(',').any(|c| c == controller));
            line.unwrap_or_else(|| panic!("{controller} in {text}")).rsplit(':').next().unwrap().to_owned()
        };
        let sub = format!("{own}/sub");
        assert_eq!((place("memory"), place("cpu"), place("pids")), (sub.clone(), sub, own.clone()));
    } else {
        exec(&["--cgroup", "memory:sub"]).fails("v2");
    }
    cgroups.iter().for_each(|dir| drop(fs::remove_dir(dir.join("sub"))));
}

#[test]
fn exec_finds_an_init_that_has_moved_on() {
    // systemd in a container does so. On v2 the cgroup it leaves takes no more processes, for it hands controllers on.
    let move_on = "cd /sys/fs/cgroup; mkdir sub; echo 1 > sub/cgroup.procs; echo +memory > cgroup.subtree_control";
    let mut bundle = Bundle::sh(&format!("{{ {move_on}; }} 2>/dev/null; echo moved; exec sleep 1000"));
    bundle.namespace("cgroup", Some(None));
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev"]);
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("the move", || bundle.file("out") == "moved\n");
    bundle.exec(&["/bin/true"]).ok();
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() && !peer("runc") {
        let own = bundle.exec(&["/bin/cat", "/proc/self/cgroup"]).ok().out;
        assert!(own.ends_with("/sub\n"), "{own}");
        // Who asks for the one place gets that one or none.
        assert_ne!(bundle.oci(&["exec", "--cgroup", "/", &bundle.id, "/bin/true"]).code, 0);
    }
}

#[test]
fn exec_takes_labels_and_no_new_privs() {
    let bundle = Bundle::sleeping();
    let status = |flag: &str| bundle.oci(&["exec", flag, &bundle.id, "/bin/grep", "NoNewPrivs", "/proc/self/status"]);
    if !peer("crun") {
        assert_eq!(status("--no-new-privs=false").ok().out, "NoNewPrivs:\t0\n");
    }
    assert_eq!(status("--no-new-privs").ok().out, "NoNewPrivs:\t1\n");
    if !ours() {
        return; // What they make of a host without the module is their own.
    }
    bundle.oci(&["exec", "--apparmor", "unconfined", &bundle.id, "/bin/true"]).ok();
    bundle.oci(&["exec", "--apparmor", "no-such-profile", &bundle.id, "/bin/true"]).fails("apparmor");
    bundle.oci(&["exec", "--process-label", "a:b:c:s0", &bundle.id, "/bin/true"]).fails("selinux");
}

#[test]
fn descriptors_of_socket_activation_reach_the_program_only_when_meant_for_us() {
    if peer("crun") {
        return; // It does not look at LISTEN_PID.
    }
    for (pid, seen) in [("$$", "2 1\n0\n1\n2\n3\n4\n5\n"), ("1", "\n0\n1\n2\n3\n")] {
        let bundle = Bundle::sh("echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd");
        bundle.write_config();
        let script = format!(
            "LISTEN_FDS=2 LISTEN_PID={pid} exec {} --root {} run --bundle {} {} 3</dev/null 4</dev/null",
            runtime().display(),
            bundle.state_root().display(),
            bundle.dir.path().display(),
            bundle.id
        );
        let answer = Answer::from(Command::new("/bin/bash").arg("-c").arg(script).output().unwrap()).ok();
        assert_eq!(answer.out, seen);
    }
}

#[test]
fn ps_hands_its_options_on() {
    let bundle = Bundle::sleeping();
    if peer("crun") {
        return; // Its table is pids alone.
    }
    let table = bundle.oci(&["ps", &bundle.id, "-o", "pid,args"]).ok().out;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["PID", "COMMAND"]);
    // With -o alone ps shows the processes of its own terminal: none of the container's.
    let table = bundle.oci(&["ps", &bundle.id, "-eo", "pid,args"]).ok().out;
    assert!(table.lines().nth(1).unwrap().ends_with("/bin/sleep 1000"), "{table}");
    assert_eq!(table.lines().count(), 2);
    bundle.oci(&["ps", &bundle.id, "-eo", "args"]).fails("PID");
    bundle.oci(&["ps", &bundle.id, "--no-such-option"]).fails("ps");
}

#[test]
fn events_tell_of_oom_kills_and_end_with_the_container() {
    if peer("crun") {
        return; // It has no events.
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/resources/memory", json!({ "limit": 16 << 20 }));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.oci(&["events", "--interval", "0s", &bundle.id]).fails("greater than 0");
    bundle.oci(&["events", "--interval", "soon", &bundle.id]).fails("invalid value");
    let mut child = bundle.command(&["events", "--interval", "1h", &bundle.id]).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    // Repeated, for the first may come before anyone listens.
    let mut line = None;
    wait_for("an OOM event", || {
        bundle.exec(&["/bin/sh", "-c", "x=y; while :; do x=$x$x; done"]);
        line = lines.recv_timeout(std::time::Duration::from_millis(200)).ok();
        line.is_some()
    });
    let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert_eq!(event, json!({ "type": "oom", "id": bundle.id }));
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    if ours() {
        // runc waits until the cgroup is gone.
        assert_eq!(child.wait().unwrap().code(), Some(0));
        bundle.oci(&["events", &bundle.id]).fails("not running");
    }
    let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
}

#[test]
fn update_takes_bytes_with_units() {
    if peer("crun") {
        return; // It takes plain numbers.
    }
    let bundle = Bundle::sleeping();
    bundle.oci(&["update", "--memory", "64m", "--memory-swap", "-1", &bundle.id]).ok();
    let files = ["memory.limit_in_bytes", "memory.max"];
    let limits: Vec<String> = bundle
        .cgroups()
        .iter()
        .flat_map(|dir| files.iter().filter_map(|file| fs::read_to_string(dir.join(file)).ok()).collect::<Vec<_>>())
        .collect();
    assert!(limits.contains(&"67108864\n".to_owned()), "{limits:?}");
    bundle.oci(&["update", "--memory", "much", &bundle.id]).fails("");
}

/// A container whose program says that it is ready, and more that nobody asked for.
fn notifying() -> Bundle {
    let words = r#"
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"STATUS=starting\nMAINPID=1")
s.send(b"READY=1\nMAINPID=1\nFDSTORE=1")
time.sleep(1000)
"#;
    let mut bundle = Bundle::new(&["/usr/bin/python3", "-c", words]);
    for dir in ["/usr", "/lib", "/lib64"] {
        bundle.mount(dir, "bind", dir, &["rbind", "ro"]);
    }
    bundle
}

/// What the host's manager is told until the barrier, whose descriptor it closes as systemd does.
fn told(manager: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    // Debian's runc knows no barrier yet.
    let count = if peer("runc") { 2 } else { 3 };
    while all.len() < count {
        let mut text = [0u8; 256];
        let mut slices = [IoSliceMut::new(&mut text)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = nix::sys::socket::MsgFlags::empty();
        let message =
            nix::sys::socket::recvmsg::<()>(manager.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
        for control in message.cmsgs().unwrap() {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = control {
                fds.into_iter().for_each(|fd| drop(coracle_tests::sys::adopt(fd)));
            }
        }
        let length = message.bytes;
        all.push(String::from_utf8_lossy(&text[..length]).trim().to_owned());
    }
    all
}

#[test]
fn a_program_tells_the_hosts_manager_that_it_is_ready() {
    if peer("crun") {
        return; // It gives the program the manager's own socket.
    }
    let bundle = notifying();
    let path = bundle.dir.path().join("manager.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    bundle.write_config();
    let spawn = |args: &[&str]| {
        let mut command = bundle.command(args);
        command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let dir = bundle.dir.path().to_str().unwrap();
    assert!(spawn(&["create", "--bundle", dir, &bundle.id]).wait().unwrap().success());
    let mut start = spawn(&["start", &bundle.id]);
    let main = format!("MAINPID={}", bundle.state()["pid"]);
    let told_first = told(&manager);
    assert_eq!(told_first[..2], ["READY=1", &main]);
    assert!(told_first.get(2).is_none_or(|word| word == "BARRIER=1"), "{told_first:?}");
    assert!(start.wait().unwrap().success());
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();

    let mut run = spawn(&["run", "--detach", "--bundle", dir, &bundle.id]);
    assert_eq!(told(&manager)[0], "READY=1");
    assert!(run.wait().unwrap().success());
    bundle.oci(&["delete", "--force", &bundle.id]).ok();

    if ours() {
        // In the foreground the manager goes on watching the runtime.
        let mut run = spawn(&["run", "--bundle", dir, &bundle.id]);
        let mut text = [0u8; 256];
        let mut next = || {
            let n = manager.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..n]).into_owned()
        };
        assert_eq!((next(), next()), ("READY=1\n".to_owned(), format!("MAINPID={}\n", run.id())));
        bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
        assert_eq!(run.wait().unwrap().code(), Some(137));
        let left: Vec<_> = walk(&bundle.state_root());
        assert!(left.is_empty(), "{left:?}");
    }
}

/// All that is not a directory.
fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_create_that_fails_leaves_no_directory_for_notifications() {
    if !ours() {
        return; // It is our own state that is looked at.
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.mount("/x", "bind", "/no/such/source", &["bind"]);
    bundle.write_config();
    let mut command = bundle.command(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]);
    assert!(!command.env("NOTIFY_SOCKET", "/no/such/socket").output().unwrap().status.success());
    assert!(!bundle.state_root().join(":notify").join(&bundle.id).exists());
    bundle.assert_gone();
}
