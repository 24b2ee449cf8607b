//! The pod around the containers: namespaces, names, cgroup, tender, stop and shutdown.

use crate::pod::{Pod, Wish, alive, code, on_the_node, until};
use coracle_proto::coracle::{InfoRequest, InfoResponse, NamespaceMode, SandboxOptions};
use coracle_proto::sandbox::*;
use coracle_proto::task_types::Status as TaskStatus;
use coracle_proto::ttrpc::{Code, method, service};
use coracle_proto::{any, cgroups_v1, cgroups_v2};
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

fn namespace(pid: impl std::fmt::Display, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

#[test]
fn a_pod_has_its_own_namespaces_name_and_sysctls_and_the_machine_keeps_its_own() {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut pod = Pod::with(SandboxOptions {
        hostname: "boat".into(),
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into(),
        ..Default::default()
    });
    let status = pod.sandbox_status();
    assert_eq!(status.state, "SANDBOX_READY");
    assert_eq!(status.info["netns"], format!("/proc/{}/ns/net", pod.pid));
    for kind in ["net", "ipc", "uts"] {
        assert_ne!(namespace(pod.pid, kind), namespace("self", kind), "{kind}");
    }
    let init = &status.info["pid_ns_pid"];
    assert_ne!(namespace(init, "pid"), namespace("self", "pid"));
    let command = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    pod.run("web", &["sh", "-c", command]);
    assert_eq!(pod.wait("web", ""), 0);
    assert_eq!(pod.log_lines("web"), ["stdout F boat", "stdout F 80"]);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), name);
    let init: i32 = init.parse().unwrap();
    pod.shutdown();
    until("the namespace's first process has ended", || !alive(init));
}

#[test]
fn hooks_run_in_the_machines_namespaces() {
    let mut pod = Pod::new();
    let out = pod.path("hook");
    let script = format!("readlink /proc/self/ns/net > {}", out.display());
    let edit = move |config: &mut serde_json::Value| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    };
    pod.run_with("web", &["true"], &Wish { edit: Some(Box::new(edit)), ..Wish::default() });
    assert_eq!(fs::read_to_string(&out).unwrap().trim(), namespace("self", "net"));
    pod.shutdown();
}

#[test]
fn a_pod_on_the_node_has_no_namespaces_of_its_own() {
    let mut pod = Pod::with(on_the_node());
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pod.pid, kind), namespace("self", kind), "{kind}");
    }
    assert!(!pod.sandbox_status().info.contains_key("netns"));
    pod.shutdown();
}

#[test]
fn a_sandbox_that_cannot_be_made_leaves_everything_as_before() {
    let mut pod = Pod::launch();
    for (name, part) in [("vm.swappiness", "whole machine"), ("net.no.such", "net.no.such")] {
        let sysctls = [(name.to_owned(), "1".to_owned())].into();
        let failure = pod.create_sandbox(SandboxOptions { sysctls, ..Default::default() }).unwrap_err();
        assert!(failure.message.contains(part), "{}", failure.message);
        assert_eq!(namespace(pod.pid, "net"), namespace("self", "net"));
    }
    let resources = br#"{"memory":{"limit":"much"}}"#.to_vec();
    let options = SandboxOptions { cgroup_parent: pod.cgroup.clone(), resources, ..Default::default() };
    assert_eq!(code(pod.create_sandbox(options)), Code::InvalidArgument);
    assert!(pod.cgroups().is_empty());
    pod.create_sandbox(SandboxOptions::default()).unwrap();
    pod.start_sandbox();
    assert_eq!(code(pod.create_sandbox(SandboxOptions::default())), Code::AlreadyExists);
    pod.shutdown();
}

#[test]
fn the_pods_cgroup_comes_with_limits_and_goes_at_shutdown() {
    let mut pod = Pod::launch();
    let options = SandboxOptions {
        cgroup_parent: pod.cgroup.clone(),
        resources: json!({"pids": {"limit": 77}}).to_string().into_bytes(),
        ..Default::default()
    };
    pod.create_sandbox(options).unwrap();
    pod.start_sandbox();
    let limits: Vec<_> =
        pod.cgroups().iter().filter_map(|group| fs::read_to_string(group.join("pids.max")).ok()).collect();
    assert_eq!(limits, ["77\n"]);
    let task = pod.run("web", &["sleep", "1000"]);
    assert!(pod.cgroups().iter().any(|group| group.join("web").is_dir()));
    pod.shutdown();
    assert!(!alive(task));
    assert!(pod.cgroups().is_empty(), "{:?}", pod.cgroups());
}

#[test]
fn shutdown_leaves_neither_process_nor_socket_nor_mount() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut pod = Pod::new();
    let tasks = [pod.run("one", &["sleep", "1000"]), pod.run("two", &["sh", "-c", "sleep 1001 & sleep 1002"])];
    let dir = pod.dir.path().display().to_string();
    assert!(!mounts().contains(&dir), "a mount of the container is visible to the machine");
    pod.shutdown();
    assert!(tasks.iter().all(|pid| !alive(*pid)));
    for name in ["supervisor.sock", "attach.sock", "pid", "oci", "cgroup.json"] {
        assert!(!pod.path(name).exists(), "{name}");
    }
    assert!(!mounts().contains(&dir));
}

#[test]
fn a_stop_asks_first_and_kills_after_the_grace() {
    let mut pod = Pod::new();
    pod.run("kind", &["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"]);
    pod.run("deaf", &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
    until("the traps are set", || !pod.log_lines("kind").is_empty() && !pod.log_lines("deaf").is_empty());
    let began = Instant::now();
    pod.stop_sandbox(1);
    let took = began.elapsed();
    assert!(took.as_millis() >= 1000 && took.as_secs() < 8, "{took:?}");
    assert_eq!((pod.wait("kind", ""), pod.wait("deaf", "")), (0, 137));
    assert_eq!(pod.sandbox_status().state, "SANDBOX_NOTREADY");
    assert_eq!(code(pod.create("late", &["true"], &Wish::default())), Code::FailedPrecondition);
    pod.stop_sandbox(0);
    let request = WaitSandboxRequest { sandbox_id: pod.id.clone() };
    let waited: WaitSandboxResponse = pod.client.call(service::SANDBOX, method::WAIT_SANDBOX, &request).unwrap();
    assert!(waited.exited_at.is_some());
    pod.shutdown();
}

#[test]
fn the_tender_is_called_when_a_container_exits_unless_one_is_at_work() {
    let calls = tempfile::tempdir().unwrap();
    let (tender, out) = (calls.path().join("tender"), calls.path().join("out"));
    let script = format!("#!/bin/sh\necho $1 $(readlink /proc/self/ns/net) >> {}\n", out.display());
    fs::write(&tender, script).unwrap();
    fs::set_permissions(&tender, fs::Permissions::from_mode(0o755)).unwrap();
    let on_exit = vec![tender.display().to_string(), "tend".to_owned()];
    let mut pod = Pod::with(SandboxOptions { on_exit, ..Default::default() });
    let said = || fs::read_to_string(&out).unwrap_or_default();
    pod.run("one", &["true"]);
    let expected = format!("tend {}\n", namespace("self", "net"));
    until("the tender was called", || said() == expected);

    let lock = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(pod.path("tender.lock"))
        .unwrap();
    let region = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_SETLK(&region)).unwrap();
    pod.run("two", &["true"]);
    assert_eq!(pod.wait("two", ""), 0);
    drop(lock);
    pod.run("three", &["true"]);
    until("the tender was called again", || said().lines().count() >= 2);
    assert_eq!(said().lines().count(), 2);
    pod.shutdown();
}

#[test]
fn containers_of_a_pod_with_a_shared_pid_namespace_see_each_other_and_orphans_are_reaped() {
    let mut pod = Pod::with(SandboxOptions { pid: NamespaceMode::Pod.into(), ..Default::default() });
    let init: i32 = pod.sandbox_status().info["pid_ns_pid"].parse().unwrap();
    let edit = move |config: &mut serde_json::Value| {
        config["linux"]["namespaces"][1] = json!({"type": "pid", "path": format!("/proc/{init}/ns/pid")});
    };
    let wish = Wish { edit: Some(Box::new(edit)), ..Wish::default() };
    pod.run_with("web", &["sh", "-c", "sh -c 'sleep 0.05 & sleep 0.01' ; sleep 0.3; ps"], &wish);
    assert_eq!(pod.wait("web", ""), 0);
    let seen = pod.log_lines("web").join("\n");
    assert!(!seen.contains('Z'), "{seen}");
    pod.stop_sandbox(0);
    until("the namespace's first process has ended", || !alive(init));
    pod.shutdown();
}

#[test]
fn the_supervisor_tells_about_itself() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let info: InfoResponse = pod.client.call(service::CONTROL, method::INFO, &InfoRequest {}).unwrap();
    assert_eq!((info.pid as i32, info.sandbox_id.as_str()), (pod.pid, pod.id.as_str()));
    assert_eq!((info.containers, info.dropped_log_lines), (vec!["web".to_owned()], 0));
    let platform: PlatformResponse =
        pod.client.call(service::SANDBOX, method::PLATFORM, &PlatformRequest { sandbox_id: pod.id.clone() }).unwrap();
    assert_eq!(platform.platform.unwrap().os, "linux");
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Running);
    pod.shutdown();
}

#[test]
fn the_pods_metrics_count_its_containers() {
    let group = format!("/coracle-test-metrics-{}", std::process::id());
    let mut pod = Pod::with(SandboxOptions { cgroup_parent: group.clone(), ..Default::default() });
    pod.cgroup = group;
    pod.run("web", &["sleep", "1000"]);
    let request = SandboxMetricsRequest { sandbox_id: pod.id.clone() };
    let answer: Result<SandboxMetricsResponse, _> =
        pod.client.call(service::SANDBOX, method::SANDBOX_METRICS, &request);
    let metrics = answer.expect("metrics").metrics.unwrap();
    assert_eq!(metrics.id, pod.id);
    // One message for each version of cgroups.
    let data = metrics.data.unwrap();
    let (time, memory) = match any::unpack::<cgroups_v1::Metrics>(&data) {
        Some(counted) => {
            let counted = counted.unwrap();
            (counted.cpu.unwrap().usage.unwrap().total, counted.memory.unwrap().usage.unwrap().usage)
        }
        None => {
            let counted: cgroups_v2::Metrics = any::unpack(&data).expect("a version's message").unwrap();
            (counted.cpu.unwrap().usage_usec, counted.memory.unwrap().usage)
        }
    };
    assert!(time > 0 && memory > 0, "{time} {memory}");
    let request = SandboxMetricsRequest { sandbox_id: "another".into() };
    let refused: Result<SandboxMetricsResponse, _> =
        pod.client.call(service::SANDBOX, method::SANDBOX_METRICS, &request);
    assert_eq!(code(refused), Code::NotFound);
    pod.shutdown();
}
