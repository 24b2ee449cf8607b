//! Pods of other handlers than our own runtime: real runc, crun and `coracle-oci` behind our supervisor. What a pod's user
//! sees is the same for each of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use coracle_engine::handler::{HandlerSettings, HandlerType};
use coracle_engine::{ContainerState, EngineConfig, ExecConfig, Handlers, NamespaceMode, Resources, SandboxConfig};
use coracle_tests::rig::{Rig, containers, drain, rig_with, script};

const LONG: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";

fn settings(kind: HandlerType, binary: impl AsRef<Path>) -> HandlerSettings {
    HandlerSettings { kind, binary: Some(binary.as_ref().to_owned()), ..Default::default() }
}

fn config() -> EngineConfig {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = [
        ("runc", settings(HandlerType::Oci, "runc")),
        ("crun", settings(HandlerType::Oci, here.join("handlers/crun-hybrid"))),
        ("own", settings(HandlerType::Oci, coracle_tests::bin("coracle-oci"))),
        ("shim", settings(HandlerType::Shim, "io.containerd.runc.v2")),
        ("gone", settings(HandlerType::Oci, "/no/such/runtime")),
        ("sick", settings(HandlerType::Oci, "false")),
    ];
    let named: BTreeMap<_, _> = named.into_iter().map(|(name, settings)| (name.to_owned(), settings)).collect();
    EngineConfig { handlers: Handlers::new("", named).unwrap(), ..Default::default() }
}

fn pod(rig: &Rig, handler: &str) -> SandboxConfig {
    SandboxConfig { handler: handler.into(), ..rig.pod("web") }
}

fn cmd(line: &str) -> Vec<String> {
    ["sh", "-c", line].map(String::from).to_vec()
}

async fn ready(rig: &Rig, id: &str) {
    while !rig.log(id).contains("ready") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs each body with each handler, as tests of their own.
macro_rules! with_each {
    ($($body:ident),+ $(,)?; $($handler:ident),+) => { with_each!(@ [$($body),+] $($handler),+); };
    (@ $bodies:tt $($handler:ident),+) => { $(with_each!(# $handler $bodies);)+ };
    (# $handler:ident [$($body:ident),+]) => {
        mod $handler {
            $(#[test]
            fn $body() {
                super::rig_with(super::config(), async |rig| super::$body(rig, stringify!($handler)).await);
            })+
        }
    };
}

with_each!(
    runs_logs_and_tells_its_exit_code,
    is_asked_to_stop_and_killed_after_the_grace,
    execs_have_streams_terminals_and_exit_codes,
    has_a_terminal_of_its_own,
    is_attached_to_and_fed,
    shares_the_pods_namespaces,
    is_limited_measured_paused_and_killed_for_its_memory,
    says_why_it_cannot_start;
    runc, crun, own, shim
);

async fn runs_logs_and_tells_its_exit_code(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let script = script("main", "echo out; echo err >&2; touch /written; hostname; exit 3");
    let (exit, log) = rig.run(&pod.id, script).await;
    assert_eq!((exit.code, exit.reason.as_str()), (3, "Error"), "{log}");
    assert_eq!(log.lines().collect::<std::collections::BTreeSet<_>>(), ["err", "out", "web"].into());
    assert_eq!(mounts(), Vec::<String>::new(), "the host sees no root filesystem");
    let id = containers(&rig.engine, &pod.id)[0].id.clone();
    assert!(rig.engine.paths().container_data(&pod.id, &id).join("upper/written").exists());
    rig.engine.stop_sandbox("web").await.unwrap();
    let seen = &containers(&rig.another(), &pod.id)[0];
    assert_eq!((seen.state, seen.exit.as_ref().unwrap().code), (ContainerState::Exited, 3));
    rig.engine.remove_sandbox("web").await.unwrap();
    assert_eq!(rig.left(), Vec::<String>::new());
}

/// Root filesystems of rigs' containers that the host sees.
fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = text.lines().filter(|line| line.contains("/rootfs") && line.contains("coracle-engine."));
    ours.map(str::to_owned).collect()
}

async fn is_asked_to_stop_and_killed_after_the_grace(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let polite = rig.start(&pod.id, script("polite", LONG)).await.unwrap();
    let deaf = script("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let deaf = rig.start(&pod.id, deaf).await.unwrap();
    let never = rig.engine.create_container(&pod.id, script("never", "true")).await.unwrap();
    ready(rig, &polite).await;
    ready(rig, &deaf).await;
    rig.engine.stop_container(&polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(rig.engine.container_status(&polite).unwrap().exit.unwrap().code, 9);
    rig.engine.stop_container(&deaf, Duration::from_millis(200)).await.unwrap();
    assert_eq!(rig.engine.container_status(&deaf).unwrap().exit.unwrap().code, 137);
    rig.engine.remove_container(&never).await.unwrap();
    rig.engine.remove_container(&deaf).await.unwrap();
    assert_eq!(containers(&rig.engine, &pod.id).len(), 1);
}

async fn execs_have_streams_terminals_and_exit_codes(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let id = rig.start(&pod.id, script("main", LONG)).await.unwrap();
    let config = ExecConfig { cmd: cmd("cat; echo err >&2; exit 5"), stdin: true, ..Default::default() };
    let mut session = rig.engine.exec(&id, config).await.unwrap();
    let big = "x".repeat(200_000);
    let (_, (out, err)) = tokio::join!(
        async {
            session.stdin.write(big.as_bytes()).await.unwrap();
            session.stdin.close().await.unwrap();
        },
        drain(&mut session.output)
    );
    assert_eq!((out.len(), err.as_str()), (big.len(), "err\n"));
    assert_eq!(session.control.wait().await.unwrap(), 5);

    let terminal = ExecConfig { cmd: cmd("tty; echo $TERM; exit 4"), tty: true, ..Default::default() };
    let mut session = rig.engine.exec(&id, terminal).await.unwrap();
    let (out, _) = drain(&mut session.output).await;
    assert!(out.contains("/dev/pts/") && out.contains("xterm"), "{out:?}");
    assert_eq!(session.control.wait().await.unwrap(), 4);

    let missing = ExecConfig { cmd: vec!["no-such-program".into()], ..Default::default() };
    let error = rig.engine.exec(&id, missing).await.err().expect("no such program").to_string();
    assert!(error.contains("no-such-program"), "{error}");
}

async fn has_a_terminal_of_its_own(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let mut config = script("main", "tty; read line; stty size; echo got $line");
    (config.tty, config.stdin) = (true, true);
    let id = rig.engine.create_container(&pod.id, config).await.unwrap();
    let mut session = rig.engine.attach(&id, true).await.unwrap();
    session.control.resize(99, 33).await.unwrap();
    rig.engine.start_container(&id).await.unwrap();
    session.control.resize(99, 33).await.unwrap();
    session.stdin.write(b"hello\n").await.unwrap();
    let (out, _) = drain(&mut session.output).await;
    assert!(out.contains("/dev/") && out.contains("33 99") && out.contains("got hello"), "{out:?}");
    assert_eq!(session.control.wait().await.unwrap(), 0);
    assert!(rig.log(&id).contains("got hello"));
}

async fn is_attached_to_and_fed(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let mut config = script("main", "read line; echo got $line; cat >/dev/null; exit 6");
    (config.stdin, config.stdin_once) = (true, true);
    let id = rig.engine.create_container(&pod.id, config).await.unwrap();
    let mut session = rig.engine.attach(&id, true).await.unwrap();
    rig.engine.start_container(&id).await.unwrap();
    session.stdin.write(b"hello\n").await.unwrap();
    session.stdin.close().await.unwrap();
    let (out, _) = drain(&mut session.output).await;
    assert_eq!(out, "got hello\n");
    assert_eq!(session.control.wait().await.unwrap(), 6);
}

async fn shares_the_pods_namespaces(rig: &Rig, handler: &str) {
    let config = SandboxConfig { pid: NamespaceMode::Pod, ..pod(rig, handler) };
    let pod = rig.engine.run_sandbox(config).await.unwrap();
    let one = rig.start(&pod.id, script("one", "sleep 1000 & trap 'exit 9' TERM; echo ready; wait")).await.unwrap();
    ready(rig, &one).await;
    let look = "ps -o args | grep -c '^sleep 1000'; echo $$; ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'";
    let (exit, log) = rig.run(&pod.id, script("two", look)).await;
    assert_eq!(exit.code, 0, "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!((lines[0], lines[2]), ("1", format!("inet {}", pod.ips[0]).as_str()), "{log}");
    assert_ne!(lines[1], "1", "pid 1 is the pod's init");
    // What its init leaves running goes with it.
    rig.engine.stop_container(&one, Duration::from_secs(20)).await.unwrap();
    let (_, log) = rig.run(&pod.id, script("three", "sleep 0.2; ps -o args | grep -c '^sleep 1000'")).await;
    assert_eq!(log, "0\n");
}

async fn is_limited_measured_paused_and_killed_for_its_memory(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let mut config = script("main", "exec tail /dev/zero");
    config.resources = Resources { memory: Some(32 << 20), memory_swap: Some(32 << 20), ..Default::default() };
    let (exit, _) = rig.run(&pod.id, config).await;
    assert_eq!((exit.code, exit.oom_killed, exit.reason.as_str()), (137, true, "OOMKilled"));

    let id = rig.start(&pod.id, script("other", LONG)).await.unwrap();
    ready(rig, &id).await;
    let limit = Resources { memory: Some(64 << 20), memory_swap: Some(64 << 20), ..Default::default() };
    rig.engine.update_container(&id, &limit).await.unwrap();
    let group = format!("/sys/fs/cgroup/memory{}/pod{}/{id}", rig.engine.config().cgroup_parent, pod.id);
    let text = std::fs::read_to_string(format!("{group}/memory.limit_in_bytes")).unwrap();
    assert_eq!(text.trim(), (64 << 20).to_string());
}

async fn says_why_it_cannot_start(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let mut config = script("main", "");
    config.command = Some(vec!["/no/such/program".into()]);
    let error = rig.start(&pod.id, config).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
}

#[test]
fn an_unknown_or_unhealthy_handler_is_an_error_and_makes_nothing() {
    rig_with(config(), async |rig| {
        for (handler, words) in [
            ("kata", "no handler \"kata\" is configured; known are coracle, crun, gone, own, runc, shim, sick"),
            ("gone", "handler gone: its program /no/such/runtime: No such file"),
            ("sick", "false --version: exit status: 1"),
        ] {
            let error = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(rig.left(), Vec::<String>::new());
    });
}

#[test]
fn a_pod_keeps_its_handler_when_the_configuration_changes() {
    rig_with(config(), async |rig| {
        let pod = rig.engine.run_sandbox(pod(rig, "runc")).await.unwrap();
        let other = rig.another_with(&EngineConfig::default());
        let id = other.create_container(&pod.id, script("main", LONG)).await.unwrap();
        other.start_container(&id).await.unwrap();
        ready(rig, &id).await;
        let made = rig.engine.paths().pod(&pod.id).join("foreign").join(format!("{id}.json"));
        assert!(std::fs::read_to_string(made).unwrap().contains("/runc"));
    });
}
