//! What a process is given beyond who it is: scheduling, I/O priority, CPUs, execution domain, memory policy. Seen from
//! inside, at create and at exec.

mod oci_support;

use std::fs;
use std::process::Command;

use oci_support::{Answer, Bundle, ours, peer, wait_for};
use serde_json::{Value, json};

/// Debian 12's runc and crun know few of these settings and pass over the rest.
fn peers_lack_it() -> bool {
    !ours()
}

/// Fields of /proc/PID/stat, counted from 1 as proc(5) does.
fn stat(text: &str, field: usize) -> i64 {
    let rest = text.rsplit_once(')').expect("a name in parentheses").1;
    rest.split_whitespace().nth(field - 3).expect("a field").parse().expect("a number")
}

/// The scheduling policy and the nice value.
fn policy_and_nice(text: &str) -> (i64, i64) {
    (stat(text, 41), stat(text, 19))
}

fn started(bundle: &Bundle) {
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
}

/// Runs a process of the specification in a container.
fn exec_process(bundle: &Bundle, args: &[&str], extra: Value) -> Answer {
    let mut process = bundle.config["process"].clone();
    process["args"] = json!(args);
    for (key, value) in extra.as_object().expect("an object") {
        process[key] = value.clone();
    }
    let file = bundle.dir.path().join("process.json");
    fs::write(&file, process.to_string()).expect("process.json");
    bundle.exec_first(&["--process", file.to_str().expect("UTF-8")])
}

#[test]
fn the_scheduler_is_set_for_init_and_exec() {
    if peers_lack_it() {
        return;
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 7 }));
    started(&bundle);
    let init = bundle.exec(&["/bin/cat", "/proc/1/stat"]).ok().out;
    assert_eq!(policy_and_nice(&init), (3, 7));
    let exec = bundle.exec(&["/bin/cat", "/proc/self/stat"]).ok().out;
    assert_eq!(policy_and_nice(&exec), (3, 7), "an exec has the container's");
    let own = json!({ "scheduler": { "policy": "SCHED_IDLE" } });
    let exec = exec_process(&bundle, &["/bin/cat", "/proc/self/stat"], own).ok().out;
    assert_eq!(policy_and_nice(&exec).0, 5, "unless it has its own");
}

#[test]
fn a_priority_is_raised_in_a_user_namespace_and_for_another_user() {
    if peers_lack_it() {
        return;
    }
    for namespace in [false, true] {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        if namespace {
            let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]);
            bundle.namespace("user", Some(None));
            bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
        }
        bundle.set("/process/user", json!({ "uid": 7, "gid": 7 }));
        bundle.set("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": -5 }));
        bundle.set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 2 }));
        started(&bundle);
        for pid in ["1", "self"] {
            let text = bundle.exec(&["/bin/cat", &format!("/proc/{pid}/stat")]).ok().out;
            assert_eq!(policy_and_nice(&text), (0, -5), "{pid}, user namespace: {namespace}");
        }
        let io = bundle.exec(&["/bin/busybox", "ionice", "-p", "1"]).ok().out;
        assert_eq!(io.trim(), "realtime: prio 2");
    }
}

#[test]
fn the_io_priority_is_set_for_init_and_exec() {
    if peers_lack_it() {
        return;
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }));
    started(&bundle);
    let ionice = |pid: &str| bundle.exec(&["/bin/busybox", "ionice", "-p", pid]).ok().out;
    assert_eq!(ionice("1").trim(), "best-effort: prio 6");
    assert_eq!(bundle.exec(&["/bin/busybox", "ionice"]).ok().out.trim(), "best-effort: prio 6");
    let own = json!({ "ioPriority": { "class": "IOPRIO_CLASS_IDLE" } });
    let out = exec_process(&bundle, &["/bin/busybox", "ionice"], own).ok().out;
    assert!(out.starts_with("idle"), "{out}");
}

#[test]
fn a_32_bit_domain_shows_in_uname() {
    if peers_lack_it() {
        return;
    }
    let mut bundle = Bundle::sh("uname -m; sleep 1000");
    bundle.set("/linux/personality", json!({ "domain": "LINUX32" }));
    started(&bundle);
    wait_for("output", || !bundle.file("out").is_empty());
    assert_eq!(bundle.file("out").trim(), "i686");
    assert_eq!(bundle.exec(&["/bin/uname", "-m"]).ok().out.trim(), "i686");
    let mut plain = Bundle::new(&["/bin/uname", "-m"]);
    plain.set("/linux/personality", json!({ "domain": "LINUX" }));
    assert_eq!(plain.run().ok().out.trim(), std::env::consts::ARCH);
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    if peers_lack_it() {
        return;
    }
    for (policy, shown) in [
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), " bind:0 "),
        (json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }), " interleave=static:0 "),
        (json!({ "mode": "MPOL_PREFERRED", "nodes": "0" }), " prefer:0 "),
        (json!({ "mode": "MPOL_LOCAL" }), " local "),
        (json!({ "mode": "MPOL_DEFAULT" }), " default "),
    ] {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        bundle.set("/linux/memoryPolicy", policy);
        started(&bundle);
        // Of the kernel's own pages ([vvar], [vdso]) each has its own.
        let out = bundle.exec(&["/bin/cat", "/proc/1/numa_maps"]).ok().out;
        assert!(out.contains(shown), "{shown}: {out}");
        let out = bundle.exec(&["/bin/cat", "/proc/self/numa_maps"]).ok().out;
        assert!(out.contains(shown), "exec, {shown}: {out}");
    }
}

fn allowed(status: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list of CPUs");
    line.trim().to_owned()
}

#[test]
fn an_exec_runs_on_the_cpus_it_is_given_and_init_does_not() {
    if peers_lack_it() {
        return;
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/execCPUAffinity", json!({ "initial": "0", "final": "1" }));
    started(&bundle);
    let all = allowed(&fs::read_to_string("/proc/1/status").expect("status"));
    assert_ne!(all, "1", "this test wants two CPUs");
    let read = |pid: &str| allowed(&bundle.exec(&["/bin/cat", &format!("/proc/{pid}/status")]).ok().out);
    assert_eq!(read("1"), all);
    assert_eq!(read("self"), "1", "the container's");
    let cat = ["/bin/cat", "/proc/self/status"];
    let only_initial = json!({ "execCPUAffinity": { "initial": "0" } });
    let runs_on = allowed(&exec_process(&bundle, &cat, only_initial).ok().out);
    // Born in a cgroup of v2, a process has the CPUs of that.
    let born_there = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert!(runs_on == "0" || born_there, "{runs_on}");
    let only_final = json!({ "execCPUAffinity": { "final": "0" } });
    assert_eq!(allowed(&exec_process(&bundle, &cat, only_final).ok().out), "0");
    let absent = json!({ "execCPUAffinity": { "initial": "0", "final": "4000" } });
    exec_process(&bundle, &cat, absent).fails("process.execCPUAffinity.final");
}

#[test]
fn the_cpus_of_the_caller_are_not_those_of_the_container() {
    if peers_lack_it() {
        return;
    }
    let bundle = Bundle::new(&["/bin/cat", "/proc/self/status"]);
    bundle.write_config();
    let plain = bundle.command(&["run", "--bundle", bundle.dir.path().to_str().expect("UTF-8"), &bundle.id]);
    let bound = Command::new("taskset").args(["-c", "0"]).arg(plain.get_program()).args(plain.get_args()).output();
    let answer = Answer::from(bound.expect("taskset (util-linux) runs")).ok();
    assert_eq!(allowed(&answer.out), allowed(&fs::read_to_string("/proc/1/status").expect("status")));
}

#[test]
fn a_value_that_cannot_be_is_refused_by_its_field_and_leaves_nothing() {
    if peers_lack_it() {
        return;
    }
    for (pointer, value, words) in [
        ("/process/scheduler", json!({ "policy": "SCHED_FAST" }), "process.scheduler.policy"),
        ("/process/scheduler", json!({ "policy": "SCHED_ISO" }), "process.scheduler.policy"),
        ("/process/scheduler", json!({ "policy": "SCHED_FIFO", "priority": 100 }), "process.scheduler.priority"),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_NO"] }),
            "process.scheduler.flags",
        ),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }), "process.ioPriority.priority"),
        ("/process/execCPUAffinity", json!({ "initial": "x" }), "process.execCPUAffinity.initial"),
        ("/linux/personality", json!({ "domain": "BSD" }), "linux.personality.domain"),
        ("/linux/personality", json!({ "domain": "LINUX", "flags": ["X"] }), "linux.personality.flags"),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" }), "linux.memoryPolicy.nodes"),
        // Known to the kernel alone: there is no such node.
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "63" }), "linux.memoryPolicy"),
    ] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set(pointer, value);
        bundle.create().fails(words);
        bundle.assert_gone();
    }
}

/// Runs a container, and commands before and after it, in a network namespace of the test's own.
fn in_own_network(bundle: &Bundle, before: &str, after: &str) -> Answer {
    bundle.write_config();
    let run = bundle.command(&["run", "--bundle", bundle.dir.path().to_str().expect("UTF-8"), &bundle.id]);
    let script = format!("set -e; {before}\nset +e; \"$@\"; code=$?\n{after}\nexit $code");
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", &script, "sh"]).arg(run.get_program()).args(run.get_args());
    Answer::from(command.output().expect("unshare (util-linux) runs"))
}

const DEVICE: &str = "ip link add d0 mtu 1400 address 02:00:00:00:00:05 type veth peer name p0; ip link set p0 up
    ip addr add 192.0.2.5/24 dev d0; ip addr add 192.0.2.7/24 dev d0; ip addr add 2001:db8::5/64 dev d0 nodad
    ip addr add 192.0.2.9/24 dev d0 valid_lft 1000 preferred_lft 1000; ip link set d0 up";

#[test]
fn a_network_device_moves_with_its_addresses_and_is_up() {
    if peers_lack_it() {
        return;
    }
    for namespace in [false, true] {
        let mut bundle = Bundle::sh("ip addr show dev inside; cat /proc/sys/net/ipv4/conf/inside/forwarding");
        if namespace {
            let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]);
            bundle.namespace("user", Some(None));
            bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
        }
        bundle.set("/linux/netDevices", json!({ "d0": { "name": "inside" } }));
        bundle.set("/linux/sysctl", json!({ "net.ipv4.conf.inside.forwarding": "1" }));
        let out = in_own_network(&bundle, DEVICE, "ip link show d0 2>&1").ok().out;
        for words in ["mtu 1400", "02:00:00:00:00:05", "192.0.2.5/24", "192.0.2.7/24", "2001:db8::5/64", ",UP"] {
            assert!(out.contains(words), "{words}: {out}");
        }
        assert!(!out.contains("192.0.2.9"), "an address that runs out stays behind: {out}");
        assert!(out.contains("\n1\n") && out.contains("does not exist"), "{out}");
    }
}

#[test]
fn network_devices_are_named_by_a_template_and_join_a_namespace_that_is_there() {
    if peers_lack_it() {
        return;
    }
    let other = Bundle::sleeping();
    let pid = other.state()["pid"].to_string();
    let mut bundle = Bundle::new(&["/bin/ip", "-o", "link"]);
    bundle.namespace("network", Some(Some(&format!("/proc/{pid}/ns/net"))));
    bundle.set("/linux/netDevices", json!({ "d0": { "name": "n%d" }, "d1": { "name": "n%d" }, "d2": {} }));
    let before = "for n in 0 1 2; do ip link add d$n type veth peer name p$n; done";
    let out = in_own_network(&bundle, before, "").ok().out;
    for name in ["lo:", "n0@", "n1@", "d2@"] {
        assert!(out.contains(name), "{name}: {out}");
    }
    // A name that is there already: nothing moves, and what has moved comes back.
    bundle.set("/linux/netDevices", json!({ "d0": {}, "d1": { "name": "lo" } }));
    let answer = in_own_network(&bundle, before, "ip -o link");
    assert!(answer.out.contains(" d0@") && answer.out.contains(" d1@"), "{answer:?}");
    answer.fails("linux.netDevices").fails("\\\"lo\\\" already");
    bundle.assert_gone();
}

#[test]
fn a_failed_create_puts_network_devices_back() {
    if peers_lack_it() {
        return;
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/linux/netDevices", json!({ "d0": { "name": "inside" } }));
    bundle.set("/hooks/createRuntime", json!([{ "path": "/bin/false" }]));
    let answer = in_own_network(&bundle, DEVICE, "ip addr show dev d0");
    for words in ["192.0.2.5/24", "2001:db8::5/64", ",UP", "mtu 1400"] {
        assert!(answer.out.contains(words), "{words}: {answer:?}");
    }
    answer.fails("createRuntime");
    bundle.assert_gone();
    bundle.config.as_object_mut().expect("an object").remove("hooks");
    bundle.set("/linux/netDevices", json!({ "d0": {}, "none": {} }));
    let answer = in_own_network(&bundle, DEVICE, "ip addr show dev d0");
    assert!(answer.out.contains("192.0.2.5/24"), "{answer:?}");
    answer.fails("linux.netDevices").fails("\\\"none\\\"");
    bundle.namespace("network", None);
    bundle.create().fails("linux.netDevices");
    bundle.assert_gone();
}

#[test]
fn intel_rdt_without_resctrl_is_refused_by_name() {
    if peers_lack_it() {
        return; // runc refuses it as well, in other words.
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let there = mounts.lines().any(|line| line.contains(" - resctrl "));
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/intelRdt", json!({ "enableMonitoring": true }));
    let answer = bundle.create();
    if !there {
        answer.fails("linux.intelRdt").fails("resctrl");
        bundle.assert_gone();
    }
    bundle.set("/linux/intelRdt", json!({ "closID": "../x" }));
    bundle.create().fails("linux.intelRdt.closID");
    let plain = Bundle::sleeping();
    plain.oci(&["update", "--l3-cache-schema", "L3:0=f", &plain.id]).fails("without linux.intelRdt");
}

/// A command of somebody who does not want to hear of his children, as some daemons do: that outlives an execve.
fn by_one_who_ignores_children(command: &Command) -> Answer {
    let mut outer = Command::new("perl");
    outer.args(["-e", "$SIG{CHLD} = 'IGNORE'; exec { $ARGV[0] } @ARGV or die;"]);
    outer
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
        .into()
}

#[test]
fn a_caller_who_ignores_the_end_of_children_is_told_that_of_the_container() {
    let mut bundle = Bundle::sh("exit 7");
    bundle.set("/hooks", json!({ "createRuntime": [{ "path": "/bin/true" }] }));
    bundle.write_config();
    let folder = bundle.dir.path().to_str().expect("UTF-8");
    assert_eq!(by_one_who_ignores_children(&bundle.command(&["run", "--bundle", folder, &bundle.id])).code, 7);
    let bundle = Bundle::sleeping();
    let exec = bundle.command(&["exec", &bundle.id, "/bin/sh", "-c", "exit 5"]);
    assert_eq!(by_one_who_ignores_children(&exec).code, 5);
}

#[test]
fn a_process_has_the_containers_oom_score_unless_it_has_its_own() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/oomScoreAdj", json!(500));
    started(&bundle);
    let score = |extra: Value| {
        let mut process = bundle.config["process"].clone();
        process.as_object_mut().expect("an object").remove("oomScoreAdj");
        process["args"] = json!(["/bin/cat", "/proc/self/oom_score_adj"]);
        process.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let file = bundle.dir.path().join("process.json");
        fs::write(&file, process.to_string()).expect("process.json");
        bundle.exec_first(&["--process", file.to_str().expect("UTF-8")]).ok().out
    };
    if !peer("crun") {
        assert_eq!(score(json!({})), "500\n");
    }
    if !peer("runc") {
        assert_eq!(score(json!({ "oomScoreAdj": 600 })), "600\n");
    }
}

#[test]
fn the_last_of_several_variables_counts_for_programs_and_for_finding_them() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/env", json!(["PATH=/nowhere", "FOO=image", "BAR=kept", "FOO=twice"]));
    started(&bundle);
    if ours() {
        let words = ["--env", "FOO=new", "--env", "PATH=/bin", "--env", "HOME="];
        let mut all = vec!["exec"];
        all.extend(words);
        all.extend([bundle.id.as_str(), "env"]);
        assert_eq!(bundle.oci(&all).ok().out, "BAR=kept\nFOO=new\nPATH=/bin\nHOME=/\n");
    }
}

#[test]
fn a_flag_without_a_value_is_as_if_it_was_not_given() {
    let bundle = Bundle::sleeping();
    let empty = ["--pid-file", "", "--user", "", "--cwd", "", "--apparmor", "", "--process-label", "", "--process", ""];
    let mut all = vec!["exec"];
    all.extend(empty);
    all.extend([bundle.id.as_str(), "/bin/echo", "done"]);
    assert_eq!(bundle.oci(&all).ok().out, "done\n");
}
