//! What must not hurt: clients that die or talk nonsense, hooks that hang, signals, the supervisor's own death.

use crate::pod::{Pod, SHIM, Wish, alive, code, start, until};
use coracle_proto::sandbox::WaitSandboxRequest;
use coracle_proto::task::*;
use coracle_proto::task_types::Status as TaskStatus;
use coracle_proto::ttrpc::{Code, Kind, Request, encode_frame, encode_request, method, service};
use coracle_proto::{Empty, Message};
use coracle_tests::bin;
use coracle_tests::ttrpc::Attach;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

#[test]
fn garbage_closes_the_connection_and_nothing_else() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let lies: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        &[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0xff],
        &[0, 0, 0, 0, 0, 0, 0, 1, 2, 0],
        &[0, 0, 0, 0, 0, 0, 0, 1, 9, 0],
    ];
    for lie in lies {
        let mut liar = pod.another_client();
        liar.stream.write_all(lie).unwrap();
        assert!(liar.is_closed_by_server(), "{lie:?}");
    }
    let mut attach = UnixStream::connect(pod.path("attach.sock")).unwrap();
    attach.write_all(&[0; 10_000]).unwrap();
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Running);
    pod.shutdown();
}

#[test]
fn a_wait_is_answered_when_its_deadline_has_come_and_others_wait_on() {
    const DEADLINE: i64 = 50_000_000;
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let request = WaitRequest { id: "web".into(), exec_id: String::new() };
    let for_ever = pod.client.send(service::TASK_V3, method::WAIT, &request);
    let sandbox = WaitSandboxRequest { sandbox_id: pod.id.clone() };
    let short = encode_request(101, service::TASK_V3, method::WAIT, &request, DEADLINE).unwrap();
    let of_sandbox = encode_request(103, service::SANDBOX, method::WAIT_SANDBOX, &sandbox, DEADLINE).unwrap();
    for (stream, bytes) in [(101, short), (103, of_sandbox)] {
        pod.client.stream.write_all(&bytes).unwrap();
        assert_eq!(code(pod.client.receive::<Empty>(stream)), Code::DeadlineExceeded);
    }
    pod.kill("web", "", Signal::SIGKILL as u32, false).unwrap();
    assert_eq!(pod.client.receive::<WaitResponse>(for_ever).unwrap().exit_status, 137);
    pod.shutdown();
}

#[test]
fn unknown_services_methods_and_streams_get_an_answer() {
    let mut pod = Pod::new();
    let mut call = |service: &str, method: &str| code(pod.client.call::<Empty>(service, method, &Empty {}));
    assert_eq!(call("containerd.task.v9.Task", method::WAIT), Code::Unimplemented);
    assert_eq!(call(service::TASK_V2, "Dance"), Code::Unimplemented);
    let even = encode_request(2, service::TASK_V2, method::STATE, &Empty {}, 0).unwrap();
    pod.client.stream.write_all(&even).unwrap();
    assert_eq!(code(pod.client.receive::<Empty>(2)), Code::InvalidArgument);
    // An id that is no UTF-8.
    let request = Request {
        service: service::TASK_V2.into(),
        method: method::STATE.into(),
        payload: vec![0x0a, 2, 0xff, 0xfe],
        ..Default::default()
    };
    let broken = encode_frame(Kind::Request, 101, 0, &request).unwrap();
    pod.client.stream.write_all(&broken).unwrap();
    assert_eq!(code(pod.client.receive::<Empty>(101)), Code::InvalidArgument);
    pod.shutdown();
}

#[test]
fn what_a_client_asked_for_before_it_died_is_done_and_half_a_request_is_not() {
    let mut pod = Pod::new();
    let request = pod.request("web", &["sleep", "1000"], &Wish::default());
    let bytes = encode_request(1, service::TASK_V2, method::CREATE, &request, 0).unwrap();
    pod.another_client().stream.write_all(&bytes).unwrap();
    until("the container is there", || {
        pod.state("web", "").is_ok_and(|state| state.pid != 0 && state.status() == TaskStatus::Created)
    });
    let request = pod.request("half", &["sleep", "1000"], &Wish::default());
    let bytes = encode_request(1, service::TASK_V2, method::CREATE, &request, 0).unwrap();
    pod.another_client().stream.write_all(&bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(code(pod.state("half", "")), Code::NotFound);
    pod.shutdown();
}

#[test]
fn a_client_killed_while_it_waits_leaves_the_others_their_answers() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    // A process of its own that holds a connection open in the middle of a call.
    let script = format!("exec 3<>/dev/null; busybox nc local:{} < /dev/zero", pod.path("supervisor.sock").display());
    let mut nonsense =
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut waiter = pod.another_client();
    waiter.send(service::TASK_V2, method::WAIT, &WaitRequest { id: "web".into(), exec_id: String::new() });
    nonsense.kill().unwrap();
    nonsense.wait().unwrap();
    drop(waiter);
    pod.kill("web", "", 9, false).unwrap();
    assert_eq!(pod.wait("web", ""), 137);
    pod.shutdown();
}

#[test]
fn a_hook_that_hangs_blocks_its_own_container_and_a_stop_ends_it() {
    let mut pod = Pod::new();
    // The hook notes its pid.
    let note = pod.path("hook");
    let script = format!("echo $$ > {}; exec sleep 1000", note.display());
    let hook = move |config: &mut serde_json::Value| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    };
    let wish = Wish { edit: Some(Box::new(hook)), ..Wish::default() };
    let request = pod.request("hangs", &["true"], &wish);
    let mut other = pod.another_client();
    let call = other.send(service::TASK_V2, method::CREATE, &request);
    pod.run("web", &["sh", "-c", "exit 2"]);
    assert_eq!(pod.wait("web", ""), 2);
    until("the hook runs", || std::fs::read_to_string(&note).is_ok_and(|text| text.ends_with('\n')));
    pod.stop_sandbox(0);
    assert!(other.receive::<CreateTaskResponse>(call).is_err());
    pod.shutdown();
    let hook = std::fs::read_to_string(&note).unwrap().trim().parse().unwrap();
    until("the hook has ended", || !alive(hook));
    let inner = pod.cgroups().iter().filter(|group| group.join("hangs").exists()).count();
    assert_eq!(inner, 0, "a cgroup is left");
}

#[test]
fn sigterm_does_not_end_a_pod_and_start_twice_is_the_same_supervisor() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(pod.pid), signal).unwrap();
    }
    assert_eq!(start(&pod.id, pod.dir.path()), format!("unix://{}", pod.path("supervisor.sock").display()));
    assert_eq!(pod.state("web", "").unwrap().status(), TaskStatus::Running);
    pod.shutdown();

    let idle = Pod::launch();
    kill(Pid::from_raw(idle.pid), Signal::SIGTERM).unwrap();
    until("the idle supervisor has ended", || !alive(idle.pid));
    assert!(!idle.path("supervisor.sock").exists());
}

#[test]
fn delete_refuses_while_the_supervisor_lives_and_clears_up_when_it_is_dead() {
    let mut pod = Pod::with(coracle_proto::coracle::SandboxOptions {
        cgroup_parent: format!("/coracle-test-dead-{}", std::process::id()),
        ..Default::default()
    });
    pod.cgroup = format!("/coracle-test-dead-{}", std::process::id());
    let task = pod.run("web", &["sleep", "1000"]);
    let delete =
        || Command::new(bin(SHIM)).args(["-id", &pod.id, "delete"]).current_dir(pod.dir.path()).output().unwrap();
    let refused = delete();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("is alive"), "{text}");

    kill(Pid::from_raw(pod.pid), Signal::SIGKILL).unwrap();
    until("the supervisor is dead", || !alive(pod.pid));
    assert!(!pod.cgroups().is_empty());
    let done = delete();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let response = DeleteResponse::decode(done.stdout.as_slice()).unwrap();
    assert_eq!(response.exit_status, 137);
    until("the container is dead", || !alive(task));
    assert!(pod.cgroups().is_empty() && !pod.path("oci").exists() && !pod.path("supervisor.sock").exists());
}

#[test]
fn a_long_path_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    start("deep", &deep);
    let handle = std::fs::File::open(&deep).unwrap();
    let near = format!("/proc/self/fd/{}/supervisor.sock", std::os::fd::AsRawFd::as_raw_fd(&handle));
    let mut client = coracle_tests::ttrpc::Client::connect(near.as_ref());
    let request = ShutdownRequest { id: "deep".into(), now: true };
    client.call::<Empty>(service::TASK_V2, method::SHUTDOWN, &request).unwrap();
    until("the supervisor has ended", || !deep.join("supervisor.sock").exists());
}

#[test]
fn an_exec_has_one_client_and_it_may_leave() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let attach = pod.exec("web", "one", &["sh", "-c", "seq 1 100000; sleep 0.1; exit 6"], false);
    let second = Attach::open(&pod.path("attach.sock"), "web", "one", false);
    assert!(second.unwrap_err().contains("attached already"));
    drop(attach);
    assert_eq!(pod.wait("web", "one"), 6);
    pod.shutdown();
}
