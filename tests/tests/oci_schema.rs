//! Every field of the runtime-spec's JSON schema (1.3), by hand from config-schema.json, config-linux.json and
//! defs*.json: a value of the right type makes a container, or is refused by the field's name; one of the wrong type is
//! refused, so no field is passed over. And `features` says what is so.

mod oci_support;

use oci_support::{Bundle, ours};
use serde_json::{Value, json};

/// A field by its JSON pointer, a right value, and what else must be set for it to make sense.
type Case = (&'static str, Value, Vec<(&'static str, Value)>);

/// A field without conditions.
fn plain(pointer: &'static str, value: Value) -> Case {
    (pointer, value, Vec::new())
}

/// Fields of one object, all set together; the wrong value takes the place of one.
fn object(pointers: &[&'static str], values: &[Value]) -> Vec<Case> {
    let all: Vec<(&'static str, Value)> = pointers.iter().copied().zip(values.iter().cloned()).collect();
    all.iter().map(|(pointer, value)| (*pointer, value.clone(), all.clone())).collect()
}

fn top() -> Vec<Case> {
    let mut cases = vec![
        plain("/ociVersion", json!("1.3.0")),
        plain("/hostname", json!("name")),
        plain("/domainname", json!("name")),
        plain("/annotations", json!({ "org.example.key": "a value" })),
        plain("/root", json!({ "path": "rootfs" })),
        plain("/root/path", json!("rootfs")),
        plain("/root/readonly", json!(true)),
        plain("/mounts/6/destination", json!("/x")),
        plain("/mounts/6/type", json!("tmpfs")),
        plain("/mounts/6/source", json!("tmpfs")),
        plain("/mounts/6/options", json!(["nosuid"])),
    ];
    let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 10 }]);
    let bound = vec![("/mounts/6/source", json!("rootfs/tmp")), ("/mounts/6/options", json!(["bind", "idmap"]))];
    for field in ["/mounts/6/uidMappings", "/mounts/6/gidMappings"] {
        let both = vec![("/mounts/6/uidMappings", maps.clone()), ("/mounts/6/gidMappings", maps.clone())];
        cases.push((field, maps.clone(), [bound.clone(), both].concat()));
    }
    for system in ["/solaris", "/windows", "/vm", "/zos", "/freebsd"] {
        cases.push(plain(system, json!({})));
    }
    cases
}

fn process() -> Vec<Case> {
    let mut cases = vec![
        plain("/process/args", json!(["/bin/true"])),
        plain("/process/commandLine", json!("true")),
        plain("/process/consoleSize", json!({ "height": 25, "width": 80 })),
        plain("/process/cwd", json!("/")),
        plain("/process/env", json!(["A=b"])),
        plain("/process/terminal", json!(true)),
        plain("/process/user", json!({ "uid": 0, "gid": 0 })),
        plain("/process/user/uid", json!(1)),
        plain("/process/user/gid", json!(1)),
        plain("/process/user/umask", json!(63)),
        plain("/process/user/additionalGids", json!([5])),
        plain("/process/user/username", json!("administrator")),
        plain("/process/capabilities", json!({})),
        plain("/process/apparmorProfile", json!("profile")),
        plain("/process/oomScoreAdj", json!(900)),
        plain("/process/selinuxLabel", json!("label")),
        plain("/process/noNewPrivileges", json!(true)),
    ];
    let five = ["bounding", "permitted", "effective", "inheritable", "ambient"];
    let sets = [
        "/process/capabilities/bounding",
        "/process/capabilities/permitted",
        "/process/capabilities/effective",
        "/process/capabilities/inheritable",
        "/process/capabilities/ambient",
    ];
    cases.extend(object(&sets, &five.map(|_| json!(["CAP_KILL"]))));
    cases.extend(object(&["/process/consoleSize/height", "/process/consoleSize/width"], &[json!(25), json!(80)]));
    cases.extend(object(
        &["/process/ioPriority/class", "/process/ioPriority/priority"],
        &[json!("IOPRIO_CLASS_BE"), json!(3)],
    ));
    cases.extend(object(
        &["/process/scheduler/policy", "/process/scheduler/nice", "/process/scheduler/flags"],
        &[json!("SCHED_BATCH"), json!(3), json!(["SCHED_FLAG_RESET_ON_FORK"])],
    ));
    // The kernel may lack the budget: then it is an error that names the field.
    cases.extend(object(
        &["/process/scheduler/policy", "/process/scheduler/priority"],
        &[json!("SCHED_FIFO"), json!(1)],
    ));
    cases.extend(object(
        &[
            "/process/scheduler/policy",
            "/process/scheduler/runtime",
            "/process/scheduler/deadline",
            "/process/scheduler/period",
        ],
        &[json!("SCHED_DEADLINE"), json!(42_000), json!(1_000_000), json!(1_000_000)],
    ));
    let limits = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    cases.push(plain("/process/rlimits", limits.clone()));
    for (field, value) in [
        ("/process/rlimits/0/type", json!("RLIMIT_CORE")),
        ("/process/rlimits/0/soft", json!(0)),
        ("/process/rlimits/0/hard", json!(0)),
    ] {
        cases.push((field, value, vec![("/process/rlimits", limits.clone())]));
    }
    cases.extend(object(
        &["/process/execCPUAffinity/initial", "/process/execCPUAffinity/final"],
        &[json!("0"), json!("0-1")],
    ));
    cases
}

fn hooks() -> Vec<Case> {
    let one = json!([{ "path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5 }]);
    let mut cases = vec![plain("/hooks", json!({}))];
    for kind in [
        "/hooks/prestart",
        "/hooks/createRuntime",
        "/hooks/createContainer",
        "/hooks/startContainer",
        "/hooks/poststart",
        "/hooks/poststop",
    ] {
        cases.push(plain(kind, one.clone()));
    }
    for (field, value) in [
        ("/hooks/createRuntime/0/path", json!("/bin/true")),
        ("/hooks/createRuntime/0/args", json!(["true"])),
        ("/hooks/createRuntime/0/env", json!(["A=b"])),
        ("/hooks/createRuntime/0/timeout", json!(5)),
    ] {
        cases.push((field, value, vec![("/hooks/createRuntime", one.clone())]));
    }
    cases
}

fn linux() -> Vec<Case> {
    let mut cases = vec![
        plain("/linux/netDevices", json!({ "no-such-device": { "name": "eth0" } })),
        plain("/linux/cgroupsPath", json!("/coracle-test-oci-schema")),
        plain("/linux/rootfsPropagation", json!("slave")),
        plain("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" })),
        plain("/linux/maskedPaths", json!(["/tmp"])),
        plain("/linux/readonlyPaths", json!(["/tmp"])),
        plain("/linux/mountLabel", json!("label")),
        plain("/linux/namespaces/0/path", json!("/proc/self/ns/pid")),
        plain("/linux/namespaces/0/type", json!("pid")),
    ];
    let names = vec![("/linux/netDevices", json!({ "no-such-device": { "name": "eth0" } }))];
    cases.push(("/linux/netDevices/no-such-device/name", json!("eth0"), names));
    let device =
        json!([{ "type": "c", "path": "/dev/mine", "fileMode": 438, "major": 1, "minor": 3, "uid": 0, "gid": 0 }]);
    cases.push(plain("/linux/devices", device.clone()));
    for (field, value) in [
        ("/linux/devices/0/type", json!("c")),
        ("/linux/devices/0/path", json!("/dev/mine")),
        ("/linux/devices/0/fileMode", json!(438)),
        ("/linux/devices/0/major", json!(1)),
        ("/linux/devices/0/minor", json!(3)),
        ("/linux/devices/0/uid", json!(0)),
        ("/linux/devices/0/gid", json!(0)),
    ] {
        cases.push((field, value, vec![("/linux/devices", device.clone())]));
    }
    let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]);
    let user = [("/linux/namespaces/5", json!({ "type": "user" }))];
    let mapped = [("/linux/uidMappings", maps.clone()), ("/linux/gidMappings", maps.clone())];
    for (field, value) in [
        ("/linux/uidMappings", maps.clone()),
        ("/linux/gidMappings", maps.clone()),
        ("/linux/uidMappings/0/containerID", json!(0)),
        ("/linux/uidMappings/0/hostID", json!(100000)),
        ("/linux/uidMappings/0/size", json!(1000)),
    ] {
        cases.push((field, value, [&user[..], &mapped[..]].concat()));
    }
    cases.extend(object(
        &[
            "/linux/intelRdt/closID",
            "/linux/intelRdt/schemata",
            "/linux/intelRdt/l3CacheSchema",
            "/linux/intelRdt/memBwSchema",
            "/linux/intelRdt/enableMonitoring",
        ],
        &[json!("group"), json!(["L2:0=f"]), json!("L3:0=f"), json!("MB:0=10"), json!(true)],
    ));
    cases.extend(object(
        &["/linux/memoryPolicy/mode", "/linux/memoryPolicy/nodes", "/linux/memoryPolicy/flags"],
        &[json!("MPOL_BIND"), json!("0"), json!(["MPOL_F_STATIC_NODES"])],
    ));
    cases.extend(object(&["/linux/personality/domain"], &[json!("LINUX32")]));
    cases.extend(object(&["/linux/personality/domain", "/linux/personality/flags"], &[json!("LINUX"), json!([])]));
    let time = ("/linux/namespaces/5", json!({ "type": "time" }));
    for (field, value) in [
        ("/linux/timeOffsets/boottime", json!({ "secs": 1, "nanosecs": 1 })),
        ("/linux/timeOffsets/monotonic", json!({ "secs": 1, "nanosecs": 1 })),
        ("/linux/timeOffsets/boottime/secs", json!(1)),
        ("/linux/timeOffsets/boottime/nanosecs", json!(1)),
    ] {
        cases.push((field, value, vec![time.clone()]));
    }
    cases
}

fn seccomp() -> Vec<Case> {
    let rule = json!([{
        "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
        "args": [{ "index": 0, "value": 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" }],
    }]);
    let base = [("/linux/seccomp/defaultAction", json!("SCMP_ACT_ALLOW")), ("/linux/seccomp/syscalls", rule.clone())];
    let mut cases: Vec<Case> = [
        ("/linux/seccomp/defaultAction", json!("SCMP_ACT_ALLOW")),
        ("/linux/seccomp/flags", json!(["SECCOMP_FILTER_FLAG_LOG"])),
        ("/linux/seccomp/listenerPath", json!("/no/agent")),
        ("/linux/seccomp/architectures", json!(["SCMP_ARCH_X86_64"])),
        ("/linux/seccomp/syscalls", rule),
        ("/linux/seccomp/syscalls/0/names", json!(["mkdir"])),
        ("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_ERRNO")),
        ("/linux/seccomp/syscalls/0/errnoRet", json!(1)),
        ("/linux/seccomp/syscalls/0/args/0/index", json!(0)),
        ("/linux/seccomp/syscalls/0/args/0/value", json!(1)),
        ("/linux/seccomp/syscalls/0/args/0/valueTwo", json!(1)),
        ("/linux/seccomp/syscalls/0/args/0/op", json!("SCMP_CMP_MASKED_EQ")),
    ]
    .into_iter()
    .map(|(field, value)| (field, value, base.to_vec()))
    .collect();
    let errno = [("/linux/seccomp/defaultAction", json!("SCMP_ACT_TRACE"))];
    cases.push(("/linux/seccomp/defaultErrnoRet", json!(1), errno.to_vec()));
    let agent = [("/linux/seccomp/listenerPath", json!("/no/agent"))];
    cases.push(("/linux/seccomp/listenerMetadata", json!("text"), [&base[..], &agent[..]].concat()));
    cases
}

fn resources() -> Vec<Case> {
    let mut cases = vec![
        plain("/linux/resources", json!({})),
        plain("/linux/resources/unified", json!({ "pids.max": "100" })),
        plain("/linux/resources/pids/limit", json!(100)),
        plain("/linux/resources/cpu/cpus", json!("0")),
        plain("/linux/resources/cpu/mems", json!("0")),
        plain("/linux/resources/cpu/period", json!(100_000)),
        plain("/linux/resources/cpu/quota", json!(50_000)),
        plain("/linux/resources/cpu/shares", json!(512)),
        plain("/linux/resources/cpu/idle", json!(1)),
        plain("/linux/resources/cpu/realtimePeriod", json!(1_000_000)),
        plain("/linux/resources/cpu/realtimeRuntime", json!(0)),
        plain("/linux/resources/memory/limit", json!(64 << 20)),
        plain("/linux/resources/memory/reservation", json!(32 << 20)),
        plain("/linux/resources/memory/kernel", json!(32 << 20)),
        plain("/linux/resources/memory/kernelTCP", json!(32 << 20)),
        plain("/linux/resources/memory/swappiness", json!(10)),
        plain("/linux/resources/memory/disableOOMKiller", json!(false)),
        plain("/linux/resources/memory/useHierarchy", json!(true)),
        plain("/linux/resources/memory/checkBeforeUpdate", json!(true)),
        plain("/linux/resources/blockIO/weight", json!(100)),
        plain("/linux/resources/blockIO/leafWeight", json!(100)),
        plain("/linux/resources/network/classID", json!(1_048_577)),
        plain("/linux/resources/network/priorities", json!([{ "name": "lo", "priority": 1 }])),
        plain("/linux/resources/rdma", json!({ "mlx5_1": { "hcaHandles": 3, "hcaObjects": 10 } })),
        plain("/linux/resources/hugepageLimits", json!([{ "pageSize": "2MB", "limit": 4 << 20 }])),
    ];
    let quota = [("/linux/resources/cpu/quota", json!(50_000)), ("/linux/resources/cpu/period", json!(100_000))];
    cases.push(("/linux/resources/cpu/burst", json!(1000), quota.to_vec()));
    let limit = [("/linux/resources/memory/limit", json!(64 << 20))];
    cases.push(("/linux/resources/memory/swap", json!(64 << 20), limit.to_vec()));
    let rules = json!([{ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" }]);
    cases.push(plain("/linux/resources/devices", rules.clone()));
    for (field, value) in [
        ("/linux/resources/devices/0/allow", json!(true)),
        ("/linux/resources/devices/0/type", json!("c")),
        ("/linux/resources/devices/0/major", json!(1)),
        ("/linux/resources/devices/0/minor", json!(3)),
        ("/linux/resources/devices/0/access", json!("rwm")),
    ] {
        cases.push((field, value, vec![("/linux/resources/devices", rules.clone())]));
    }
    for field in [
        "/linux/resources/blockIO/throttleReadBpsDevice",
        "/linux/resources/blockIO/throttleWriteBpsDevice",
        "/linux/resources/blockIO/throttleReadIOPSDevice",
        "/linux/resources/blockIO/throttleWriteIOPSDevice",
    ] {
        cases.push(plain(field, json!([{ "major": 7, "minor": 0, "rate": 1_000_000 }])));
    }
    let weight = json!([{ "major": 7, "minor": 0, "weight": 100, "leafWeight": 100 }]);
    cases.push(plain("/linux/resources/blockIO/weightDevice", weight));
    cases
}

/// A value that no field of this one's type takes.
fn wrong(right: &Value) -> Value {
    match right {
        Value::Number(_) | Value::Bool(_) => json!("x"),
        Value::String(_) => json!([7]),
        _ => json!(7),
    }
}

/// Whether an error names the field, or the object that it is of (`linux.intelRdt`).
fn names(error: &str, pointer: &str) -> bool {
    let parts: Vec<&str> =
        pointer.split('/').filter(|part| !part.is_empty() && part.parse::<usize>().is_err()).collect();
    let error = error.to_lowercase();
    let object = (2..=3).filter(|n| *n < parts.len()).map(|n| parts[..n].join(".").to_lowercase());
    parts.last().is_some_and(|field| error.contains(&field.to_lowercase()))
        || object.into_iter().any(|o| error.contains(&o))
}

fn base() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.mount("/x", "tmpfs", "tmpfs", &[]);
    // A place for one more namespace.
    bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "cgroup" }));
    bundle
}

fn walk(cases: Vec<Case>) {
    if !ours() {
        return; // The peers pass over some fields, and write others as they are into files of the kernel.
    }
    let mut bundle = base();
    let plain = bundle.config.clone();
    let mut passed_over = Vec::new();
    for (pointer, right, with) in cases {
        for (value, is_right) in [(right.clone(), true), (wrong(&right), false)] {
            bundle.config = plain.clone();
            for (other, value) in &with {
                bundle.set(other, value.clone());
            }
            bundle.set(pointer, value.clone());
            let answer = bundle.create();
            bundle.config = plain.clone();
            if answer.code == 0 {
                bundle.oci(&["delete", "--force", &bundle.id]).ok();
            }
            bundle.assert_gone();
            match (answer.code, is_right) {
                (0, true) | (1.., false) => {}
                (0, false) => passed_over.push(format!("{pointer}: {value} is passed over")),
                _ if names(&answer.err, pointer) => {}
                _ => passed_over.push(format!("{pointer}: not refused by its name: {}", answer.err)),
            }
        }
    }
    assert!(passed_over.is_empty(), "{}", passed_over.join("\n"));
}

#[test]
fn each_field_of_the_configuration_itself_is_done_or_refused_by_name() {
    walk(top());
}

#[test]
fn each_field_of_the_process_is_done_or_refused_by_name() {
    walk(process());
}

#[test]
fn each_field_of_the_hooks_is_done_or_refused_by_name() {
    walk(hooks());
}

#[test]
fn each_field_of_linux_is_done_or_refused_by_name() {
    walk(linux());
}

#[test]
fn each_field_of_seccomp_is_done_or_refused_by_name() {
    walk(seccomp());
}

#[test]
fn each_field_of_the_resources_is_done_or_refused_by_name() {
    walk(resources());
}

#[test]
fn features_says_what_is_done() {
    if !ours() {
        return; // Theirs say what theirs do.
    }
    let bundle = base();
    let features: Value = serde_json::from_str(&bundle.oci(&["features"]).ok().out).expect("JSON");
    assert_eq!((&features["ociVersionMin"], &features["ociVersionMax"]), (&json!("1.0.0"), &json!("1.3.0")));
    let linux = &features["linux"];
    for pointer in [
        "/cgroup/v1",
        "/cgroup/v2",
        "/cgroup/systemd",
        "/cgroup/systemdUser",
        "/cgroup/rdma",
        "/seccomp/enabled",
        "/apparmor/enabled",
        "/selinux/enabled",
        "/intelRdt/enabled",
        "/intelRdt/schemata",
        "/intelRdt/monitoring",
        "/mountExtensions/idmap/enabled",
        "/netDevices/enabled",
    ] {
        assert_eq!(linux.pointer(pointer), Some(&json!(true)), "{pointer}: {linux}");
    }
    assert_eq!(features["potentiallyUnsafeConfigAnnotations"], json!(["org.systemd.property."]));
    let words = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).expect("a list of words") };
    assert_eq!(words(&linux["namespaces"]).len(), 8);
    assert_eq!(words(&linux["memoryPolicy"]["modes"]).len(), 7);
    assert_eq!(words(&linux["memoryPolicy"]["flags"]).len(), 3);
    assert_eq!(words(&features["hooks"]).len(), 6);
    // Each word is recognised, as the specification demands of what is listed.
    for mode in words(&linux["memoryPolicy"]["modes"]) {
        let mut bundle = base();
        let nodes = if ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode.as_str()) { "" } else { "0" };
        bundle.set("/linux/memoryPolicy", json!({ "mode": mode, "nodes": nodes }));
        let answer = bundle.create();
        assert!(answer.code == 0 || answer.err.contains("set linux.memoryPolicy"), "{mode}: {answer:?}");
    }
    let mut bundle = base();
    let caps = linux["capabilities"].clone();
    assert!(words(&caps).len() > 35);
    bundle.set("/process/capabilities", json!({ "bounding": caps }));
    bundle.create().ok();
    let mut bundle = base();
    let options: Vec<String> = words(&features["mountOptions"])
        .into_iter()
        .filter(|word| !["remount", "bind", "rbind", "idmap", "ridmap"].contains(&word.as_str()))
        .collect();
    bundle.mount("/y", "tmpfs", "tmpfs", &options.iter().map(String::as_str).collect::<Vec<_>>());
    bundle.create().ok();
}
