//! Containers and execs from create to delete.

use crate::pod::{Pod, Wish, alive, code, until};
use coracle_proto::task::*;
use coracle_proto::task_types::Status as TaskStatus;
use coracle_proto::ttrpc::{Code, method, service};
use coracle_proto::{Empty, any, cgroups_v1, cgroups_v2};
use serde_json::{Value, json};
use std::fs;

fn exit_record(pod: &Pod, id: &str) -> Value {
    serde_json::from_slice(&fs::read(pod.bundle(id).join("exit.json")).expect("exit.json")).unwrap()
}

#[test]
fn a_container_goes_from_create_to_delete_and_its_exit_code_is_kept() {
    let mut pod = Pod::new();
    let pid = pod.create("web", &["sh", "-c", "echo hello; exit 7"], &Wish::default()).unwrap();
    let created = pod.state("web", "").unwrap();
    assert_eq!((created.status(), created.pid as i32), (TaskStatus::Created, pid));
    assert!(alive(pid) && pod.log_lines("web").is_empty());

    assert_eq!(pod.start("web", "").unwrap(), pid);
    assert_eq!(pod.wait("web", ""), 7);
    // Whoever knows of the exit finds everything the container said, and the record.
    assert_eq!(pod.log_lines("web"), ["stdout F hello"]);
    let record = exit_record(&pod, "web");
    assert_eq!((&record["exit_status"], &record["pid"]), (&json!(7), &json!(pid)));
    assert_eq!((&record["oom_killed"], &record["signal"]), (&json!(false), &Value::Null));

    let stopped = pod.state("web", "").unwrap();
    assert_eq!((stopped.status(), stopped.exit_status), (TaskStatus::Stopped, 7));
    let deleted = pod.delete("web", "").unwrap();
    assert_eq!((deleted.exit_status, deleted.pid as i32), (7, pid));
    assert_eq!(code(pod.state("web", "")), Code::NotFound);
    pod.shutdown();
}

#[test]
fn a_signal_shows_in_the_exit_code_and_in_the_record() {
    let mut pod = Pod::new();
    pod.run("web", &["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]);
    until("the trap is set", || !pod.log_lines("web").is_empty());
    pod.kill("web", "", 15, false).unwrap();
    assert_eq!(pod.wait("web", ""), 3);
    assert_eq!(code(pod.kill("web", "", 9, false)), Code::NotFound);

    pod.run("stubborn", &["sleep", "1000"]);
    pod.kill("stubborn", "", 9, true).unwrap();
    assert_eq!(pod.wait("stubborn", ""), 137);
    assert_eq!(exit_record(&pod, "stubborn")["signal"], json!(9));
    pod.shutdown();
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    let mut pod = Pod::new();
    let pid = pod.create("web", &["true"], &Wish::default()).unwrap();
    assert_eq!(pod.delete("web", "").unwrap().exit_status, 137);
    assert!(!alive(pid));
    pod.shutdown();
}

#[test]
fn what_cannot_be_created_leaves_nothing_and_the_reason_is_told() {
    let mut pod = Pod::new();
    let failed = pod.create("web", &["/no/such/program"], &Wish::default()).or_else(|_| pod.start("web", ""));
    if let Ok(pid) = failed {
        panic!("{pid} runs a program that does not exist");
    }
    let _ = pod.delete("web", "");

    let wish = Wish { edit: Some(Box::new(|config| config["process"]["cwd"] = json!("relative"))), ..Wish::default() };
    let refused = pod.create("bad", &["true"], &wish).unwrap_err();
    assert!(refused.message.contains("cwd"), "{}", refused.message);
    assert_eq!(code(pod.state("bad", "")), Code::NotFound);
    // The name is free again.
    pod.run("bad", &["true"]);
    assert_eq!(pod.wait("bad", ""), 0);
    pod.shutdown();
}

#[test]
fn requests_out_of_order_get_the_codes_of_containerds_shims() {
    let mut pod = Pod::new();
    assert_eq!(code(pod.start("nobody", "")), Code::NotFound);
    pod.run("web", &["sleep", "1000"]);
    assert_eq!(code(pod.create("web", &["true"], &Wish::default())), Code::AlreadyExists);
    assert_eq!(code(pod.start("web", "")), Code::FailedPrecondition);
    assert_eq!(code(pod.delete("web", "")), Code::FailedPrecondition);
    assert_eq!(code(pod.start("web", "nobody")), Code::NotFound);
    assert_eq!(code(pod.create("../up", &["true"], &Wish::default())), Code::InvalidArgument);
    let checkpoint = |id: &str| CheckpointTaskRequest { id: id.into(), ..Default::default() };
    assert_eq!(code(pod.task::<Empty>(method::CHECKPOINT, &checkpoint("nobody"))), Code::NotFound);
    assert_eq!(code(pod.task::<Empty>(method::CHECKPOINT, &checkpoint("web"))), Code::InvalidArgument, "no path");
    assert_eq!(code(pod.kill("web", "", 1000, false)), Code::InvalidArgument);
    pod.add_exec("web", "twice", &["true"], false).unwrap();
    assert_eq!(code(pod.add_exec("web", "twice", &["true"], false)), Code::AlreadyExists);
    pod.shutdown();
}

#[test]
fn an_exec_has_its_own_output_and_exit_code() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let mut attach = pod.exec("web", "one", &["sh", "-c", "echo out; echo err >&2; exit 5"], false);
    let heard = attach.listen_to_the_end();
    assert_eq!((heard.stdout.as_slice(), heard.stderr.as_slice(), heard.ended), (&b"out\n"[..], &b"err\n"[..], true));
    assert_eq!(pod.wait("web", "one"), 5);
    assert_eq!(pod.state("web", "one").unwrap().exit_status, 5);
    assert_eq!(pod.delete("web", "one").unwrap().exit_status, 5);
    assert_eq!(code(pod.state("web", "one")), Code::NotFound);
    // Nothing of it is in the container's log.
    assert!(pod.log_lines("web").is_empty());
    pod.shutdown();
}

#[test]
fn an_exec_that_cannot_start_says_why_and_has_ended() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    pod.add_exec("web", "bad", &["/no/such/program"], false).unwrap();
    let failure = pod.start("web", "bad").unwrap_err();
    assert!(failure.message.contains("/no/such/program"), "{}", failure.message);
    assert_ne!(pod.wait("web", "bad"), 0);
    pod.delete("web", "bad").unwrap();
    pod.shutdown();
}

#[test]
fn a_hundred_waits_are_all_answered() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let request = WaitRequest { id: "web".into(), exec_id: String::new() };
    let mut clients: Vec<_> = (0..50).map(|_| pod.another_client()).collect();
    let mut calls = Vec::new();
    for client in &mut clients {
        calls.push(client.send(service::TASK_V2, method::WAIT, &request));
    }
    let many: Vec<u32> = (0..50).map(|_| pod.client.send(service::TASK_V3, method::WAIT, &request)).collect();
    // They do not hold up anything else.
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Running);
    pod.kill("web", "", 9, false).unwrap();
    for (client, call) in clients.iter_mut().zip(calls) {
        assert_eq!(client.receive::<WaitResponse>(call).unwrap().exit_status, 137);
    }
    for call in many {
        assert_eq!(pod.client.receive::<WaitResponse>(call).unwrap().exit_status, 137);
    }
    pod.shutdown();
}

#[test]
fn a_paused_container_stands_still_and_can_be_killed() {
    let mut pod = Pod::new();
    pod.run("web", &["sh", "-c", "while :; do echo tick; sleep 0.01; done"]);
    until("it ticks", || pod.log_lines("web").len() > 3);
    pod.task::<Empty>(method::PAUSE, &PauseRequest { id: "web".into() }).unwrap();
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Paused);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let ticks = pod.log_lines("web").len();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(pod.log_lines("web").len(), ticks);
    pod.task::<Empty>(method::RESUME, &ResumeRequest { id: "web".into() }).unwrap();
    until("it ticks again", || pod.log_lines("web").len() > ticks);
    // The death of an exec does not wake it.
    pod.add_exec("web", "side", &["sleep", "1000"], false).unwrap();
    pod.start("web", "side").unwrap();
    pod.task::<Empty>(method::PAUSE, &PauseRequest { id: "web".into() }).unwrap();
    pod.kill("web", "side", 9, false).unwrap();
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Paused);
    pod.task::<Empty>(method::RESUME, &ResumeRequest { id: "web".into() }).unwrap();
    assert_eq!(pod.wait("web", "side"), 137);
    pod.task::<Empty>(method::PAUSE, &PauseRequest { id: "web".into() }).unwrap();
    pod.kill("web", "", 9, false).unwrap();
    assert_eq!(pod.wait("web", ""), 137);
    pod.shutdown();
}

#[test]
fn a_container_that_is_killed_while_it_is_being_paused_dies() {
    for _ in 0..10 {
        let mut pod = Pod::new();
        pod.run("web", &["sleep", "1000"]);
        // One right behind the other: the worker that freezes it has hardly begun.
        let pause = pod.client.send(service::TASK_V3, method::PAUSE, &PauseRequest { id: "web".into() });
        let request = KillRequest { id: "web".into(), signal: 9, ..Default::default() };
        let kill = pod.client.send(service::TASK_V3, method::KILL, &request);
        let _ = pod.client.receive::<Empty>(pause);
        pod.client.receive::<Empty>(kill).unwrap();
        assert_eq!(pod.wait("web", ""), 137);
        pod.shutdown();
    }
}

#[test]
fn limits_are_updated_and_statistics_read() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let resources = json!({"pids": {"limit": 33}, "memory": {"limit": 64 << 20}}).to_string().into_bytes();
    let update = UpdateTaskRequest {
        id: "web".into(),
        resources: Some(any::pack_json(any::OCI_RESOURCES, resources)),
        ..Default::default()
    };
    pod.task::<Empty>(method::UPDATE, &update).unwrap();
    let stats: StatsResponse = pod.task(method::STATS, &StatsRequest { id: "web".into() }).unwrap();
    let stats = stats.stats.unwrap();
    let (pids, limit, memory) = match any::unpack::<cgroups_v1::Metrics>(&stats) {
        Some(metrics) => {
            let metrics = metrics.unwrap();
            let (pids, memory) = (metrics.pids.unwrap(), metrics.memory.unwrap().usage.unwrap());
            (pids.current, pids.limit, memory.limit)
        }
        None => {
            let metrics = any::unpack::<cgroups_v2::Metrics>(&stats).expect("v1 or v2").unwrap();
            let (pids, memory) = (metrics.pids.unwrap(), metrics.memory.unwrap());
            (pids.current, pids.limit, memory.usage_limit)
        }
    };
    assert_eq!((pids, limit, memory), (1, 33, 64 << 20));

    let mut attach = pod.exec("web", "other", &["sh", "-c", "echo up; cat"], false);
    attach.listen(|heard| !heard.stdout.is_empty());
    let all: PidsResponse = pod.task(method::PIDS, &PidsRequest { id: "web".into() }).unwrap();
    let marked = all.processes.iter().filter(|process| process.info.is_some()).count();
    assert!(all.processes.len() >= 2 && marked == 1, "{all:?}");
    pod.shutdown();
}

#[test]
fn a_container_killed_for_want_of_memory_is_recorded_as_such() {
    let mut pod = Pod::new();
    let limit = |config: &mut Value| {
        config["linux"]["resources"] = json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}});
    };
    let wish = Wish { edit: Some(Box::new(limit)), ..Wish::default() };
    pod.run_with("greedy", &["sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x | sh -c 'x=$(cat)'; exit 1"], &wish);
    assert_ne!(pod.wait("greedy", ""), 0);
    assert_eq!(exit_record(&pod, "greedy")["oom_killed"], json!(true));
    pod.shutdown();
}

#[test]
fn what_a_dead_container_leaves_in_a_shared_pid_namespace_is_killed() {
    let mut pod = Pod::new();
    let init = pod.sandbox_status().info["pid_ns_pid"].clone();
    let edit = move |config: &mut Value| {
        config["linux"]["namespaces"][1] = json!({"type": "pid", "path": format!("/proc/{init}/ns/pid")});
    };
    let wish = Wish { edit: Some(Box::new(edit)), ..Wish::default() };
    pod.run_with("first", &["sleep", "1000"], &wish);
    pod.run_with("second", &["sh", "-c", "ps; sleep 1001 & exit 0"], &wish);
    assert_eq!(pod.wait("second", ""), 0);
    let seen = pod.log_lines("second").join("\n");
    assert!(seen.contains("sleep 1000"), "the namespace is not shared: {seen}");
    let tasks = || {
        let groups = pod.cgroups().into_iter().map(|group| group.join("second/cgroup.procs"));
        groups.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>()
    };
    until("the leftover is killed", || tasks().is_empty());
    assert_eq!(pod.state("first", "").unwrap().status(), TaskStatus::Running);
    pod.shutdown();
}

/// Whether CRIU knows this kernel or not: the answer is the one or the other, and the container is as it was.
#[test]
fn a_checkpoint_is_made_or_its_failure_is_told_and_the_container_runs_on() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let images = pod.path("images");
    let request = |path: &str| CheckpointTaskRequest { id: "web".into(), path: path.into(), ..Default::default() };
    let refused = pod.task::<Empty>(method::CHECKPOINT, &request(""));
    assert_eq!(code(refused), Code::InvalidArgument);
    match pod.task::<Empty>(method::CHECKPOINT, &request(&images.display().to_string())) {
        Ok(_) => assert!(images.join("inventory.img").exists()),
        Err(status) => assert!(status.message.contains("criu"), "{}", status.message),
    }
    assert_eq!(pod.state("web", "").unwrap().status, 2, "running");
    pod.kill("web", "", 9, false).unwrap();
    assert_eq!(pod.wait("web", ""), 137);
    let refused = pod.task::<Empty>(method::CHECKPOINT, &request("/x"));
    assert_eq!(code(refused), Code::FailedPrecondition);
    pod.delete("web", "").unwrap();
    pod.shutdown();
}
