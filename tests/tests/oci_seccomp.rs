//! Seccomp profiles through the front door of any OCI runtime. `OCI_RUNTIME=runc` runs the same against libseccomp.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

mod oci_support;
use oci_support::{Bundle, ours, peer, receive_listener, wait_for};

fn filtered(script: &str, profile: Value) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.set("/linux/seccomp", profile);
    bundle
}

fn allow_but(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules})
}

#[test]
fn an_error_number_of_the_profile_reaches_the_program() {
    let rules = json!([{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]);
    filtered("mkdir /tmp/x", allow_but(rules)).run().fails("No space left");
}

#[test]
fn an_error_without_a_number_is_eperm() {
    let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
    filtered("mkdir /tmp/x", allow_but(rules)).run().fails("not permitted");
}

#[test]
fn conditions_look_at_arguments() {
    let mode = |index| json!([{"index": index, "value": 0o777, "op": "SCMP_CMP_EQ"}]);
    let rules = json!([
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": mode(1)},
        {"names": ["fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "args": mode(2)},
    ]);
    let script = "chmod 700 /tmp || exit 9; chmod 777 /tmp && exit 8; exit 0";
    filtered(script, allow_but(rules)).run().ok();
}

#[test]
fn a_masked_condition_sees_through_other_bits() {
    let setuid = |index| json!([{"index": index, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ"}]);
    let rules = json!([
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": setuid(1)},
        {"names": ["fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "args": setuid(2)},
    ]);
    let script = "touch /tmp/f; chmod 755 /tmp/f || exit 9; chmod 4755 /tmp/f && exit 8; exit 0";
    filtered(script, allow_but(rules)).run().ok();
}

#[test]
fn killing_actions_kill() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
        // 31 is SIGSYS.
        let answer = filtered("mkdir /tmp/x; [ $? = 159 ]", allow_but(rules)).run();
        assert_eq!(answer.code, 0, "{action}: {answer:?}");
    }
}

#[test]
fn the_filter_holds_for_exec_and_with_new_privileges() {
    for restricted in [true, false] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
        let mut bundle = filtered("sleep 1000", allow_but(rules));
        bundle.set("/process/noNewPrivileges", json!(restricted));
        bundle.create().ok();
        bundle.oci(&["start", &bundle.id]).ok();
        bundle.exec(&["/bin/mkdir", "/tmp/x"]).fails("not permitted");
        let status = bundle.exec(&["/bin/cat", "/proc/self/status"]).ok().out;
        assert!(status.contains("Seccomp:\t2"), "{status}");
        if ours() {
            // What creation kept of it is cut off, or gone: it is made again.
            let kept = bundle.state_root().join(&bundle.id).join("seccomp.bpf");
            let whole = std::fs::read(&kept).unwrap();
            std::fs::write(&kept, &whole[..whole.len() - 3]).unwrap();
            bundle.exec(&["/bin/mkdir", "/tmp/x"]).fails("not permitted");
            std::fs::remove_file(&kept).unwrap();
            bundle.exec(&["/bin/mkdir", "/tmp/x"]).fails("not permitted");
        }
    }
}

#[test]
fn flags_are_taken() {
    let mut profile = allow_but(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]));
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    let answer = filtered("mkdir /tmp/x", profile).run();
    // runc before 1.2 refuses flags.
    answer.fails(if ours() { "not permitted" } else { "" });
}

#[test]
fn the_built_in_profile_runs_programs_and_refuses_mounts() {
    let profile = serde_json::to_value(coracle_engine::seccomp_default::profile(&[])).expect("JSON");
    let script = "ls / > /dev/null && date > /tmp/d && cat /tmp/d | wc -l && sleep 0.01 || exit 9
        mount -t tmpfs none /tmp && exit 8; hostname other && exit 7; exit 0";
    let mut bundle = filtered(script, profile);
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_ADMIN"]));
    }
    let answer = bundle.run().ok();
    assert!(answer.err.contains("not permitted") || answer.err.contains("permission denied"), "{answer:?}");
}

#[test]
fn a_profile_that_cannot_be_is_refused_with_its_place() {
    if peer("crun") {
        return; // It loads both.
    }
    let notify = allow_but(json!([{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]));
    filtered("true", notify).run().fails("write");
    let argument = json!([{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 7, "value": 0, "op": "SCMP_CMP_EQ"}]}]);
    if ours() {
        filtered("true", allow_but(argument)).run().fails("linux.seccomp.syscalls[0].args");
    }
}

#[test]
fn an_agent_gets_the_listener_of_the_program_and_of_each_exec() {
    if peer("runc") {
        return; // With Debian's 1.1.5 the agent waits for ever.
    }
    let mut bundle = filtered("mkdir /tmp/x 2>&1; sleep 1000", allow_but(json!([])));
    let path = bundle.dir.path().join("agent");
    let agent = UnixListener::bind(&path).unwrap();
    bundle.set("/linux/seccomp/syscalls", json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]));
    bundle.set("/linux/seccomp/listenerPath", json!(path));
    bundle.set("/linux/seccomp/listenerMetadata", json!("of the test"));
    bundle.set("/annotations", json!({ "org.example.key": "a value" }));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let pid = bundle.state()["pid"].clone();
    let (fd, message) = receive_listener(&agent);
    assert_eq!((&message["fds"], &message["metadata"]), (&json!(["seccompFd"]), &json!("of the test")), "{message}");
    assert_eq!((&message["pid"], &message["state"]["pid"]), (&pid, &pid), "{message}");
    assert_eq!((&message["state"]["id"], &message["state"]["status"]), (&json!(bundle.id), &json!("creating")));
    assert!(message["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")) || peer("crun"), "{message}");
    assert!(message["state"]["annotations"]["org.example.key"] == "a value" || peer("crun"), "{message}");
    // Where nobody answers any more, there is no such call.
    drop(fd);
    wait_for("the answer", || bundle.file("out").contains("not implemented"));
    if peer("crun") {
        return; // It knows no pids at an exec.
    }
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| bundle.exec(&["/bin/mkdir", "/tmp/y"]));
        let (fd, message) = receive_listener(&agent);
        assert_eq!((&message["state"]["pid"], &message["state"]["status"]), (&pid, &json!("running")), "{message}");
        assert!(message["pid"] != pid && message["pid"].as_i64().is_some_and(|pid| pid > 1), "{message}");
        drop(fd);
        exec.join().unwrap().fails("not implemented");
    });
}

/// Whatever of the network the profile forbids, and however late it is found that there is no program.
#[test]
fn why_an_exec_has_failed_is_told_past_its_own_filter() {
    let network = ["socket", "connect", "sendto", "sendmsg", "sendmmsg"];
    let bundle = filtered("exec sleep 1000", allow_but(json!([{ "names": network, "action": "SCMP_ACT_ERRNO" }])));
    let garbage = bundle.rootfs().join("bin/garbage");
    std::fs::write(&garbage, "no program at all").unwrap();
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o755)).unwrap();
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.exec(&["/bin/garbage"]).fails("exec format error");
    if ours() {
        let pid_file = bundle.dir.path().join("pid");
        let flags = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &bundle.id, "/bin/garbage"];
        assert_eq!(bundle.oci(&flags).code, 255);
        assert!(!pid_file.exists());
    }
}

#[test]
fn an_agent_that_nothing_is_asked_of_is_not_looked_for() {
    if peer("crun") {
        return; // It connects all the same.
    }
    let mut bundle = filtered("true", allow_but(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}])));
    bundle.set("/linux/seccomp/listenerPath", json!("/no/agent"));
    bundle.run().ok();
}

#[test]
fn logging_and_tracing_actions_do_as_they_say() {
    let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG"}]);
    filtered("mkdir /tmp/x && test -d /tmp/x", allow_but(rules)).run().ok();
    // Nobody traces the program: the call is skipped.
    let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRACE", "errnoRet": 5}]);
    filtered("mkdir /tmp/x", allow_but(rules)).run().fails("not implemented");
}

#[test]
fn every_architecture_and_flag_of_features_is_taken() {
    if !ours() {
        return; // runc 1.1 refuses flags, and both leave architectures to the libseccomp they were built with.
    }
    let mut bundle = filtered("mkdir /tmp/x", allow_but(json!([])));
    let features: Value = serde_json::from_str(&bundle.oci(&["features"]).ok().out).unwrap();
    let seccomp = &features["linux"]["seccomp"];
    assert_eq!(seccomp["enabled"], true);
    assert_eq!(seccomp["knownFlags"].as_array().map(Vec::len), Some(4), "{seccomp}");
    bundle.set("/linux/seccomp/architectures", seccomp["archs"].clone());
    bundle.set("/linux/seccomp/flags", seccomp["supportedFlags"].clone());
    let rules: Vec<Value> = seccomp["actions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|action| *action != "SCMP_ACT_NOTIFY")
        .zip(["swapon", "swapoff", "acct", "mkdir", "mkdirat", "reboot", "ptrace", "quotactl"])
        .map(|(action, name)| json!({"names": [name], "action": action}))
        .collect();
    bundle.set("/linux/seccomp/syscalls", json!(rules));
    for operator in seccomp["operators"].as_array().unwrap() {
        let arg = json!([{"index": 0, "value": 1, "valueTwo": 1, "op": operator}]);
        let rule = json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": arg});
        bundle.config["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap().push(rule);
    }
    bundle.create().ok();
}

#[test]
fn contradictions_of_a_profile_are_refused_by_their_field() {
    if !ours() {
        return; // The peers pass over most of these, and find out about others at the load.
    }
    let notify = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
    let agent = json!("/no/agent");
    for (changes, words) in [
        (vec![("syscalls", notify.clone())], "linux.seccomp.listenerPath"),
        (vec![("syscalls", notify.clone()), ("listenerPath", agent.clone())], "/no/agent"),
        (vec![("listenerMetadata", json!("x"))], "linux.seccomp.listenerMetadata"),
        (vec![("syscalls", notify), ("defaultAction", json!("SCMP_ACT_ERRNO")), ("listenerPath", agent)], "sendmsg"),
        (vec![("defaultErrnoRet", json!(1))], "linux.seccomp.defaultErrnoRet"),
        (vec![("defaultAction", json!("SCMP_ACT_NOTIFY"))], "linux.seccomp.defaultAction"),
        (vec![("defaultAction", json!("SCMP_ACT_MAYBE"))], "SCMP_ACT_MAYBE"),
        (vec![("architectures", json!(["SCMP_ARCH_VAX"]))], "SCMP_ARCH_VAX"),
        (vec![("flags", json!(["SECCOMP_FILTER_FLAG_NO"]))], "SECCOMP_FILTER_FLAG_NO"),
        (vec![("syscalls", json!([{"names": [], "action": "SCMP_ACT_ERRNO"}]))], "linux.seccomp.syscalls[0].names"),
        (
            vec![("syscalls", json!([{"names": ["read"], "action": "SCMP_ACT_LOG", "errnoRet": 1}]))],
            "linux.seccomp.syscalls[0].errnoRet",
        ),
    ] {
        let mut bundle = filtered("true", allow_but(json!([])));
        for (field, value) in changes {
            bundle.set(&format!("/linux/seccomp/{field}"), value);
        }
        bundle.create().fails(words);
        bundle.assert_gone();
    }
}
