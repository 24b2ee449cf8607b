//! Pods of other handlers than our own runtime: real runc, crun and `coracle-oci` behind our supervisor. What a pod's user
//! sees is the same for each of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_engine::handler::{HandlerOptions, HandlerSettings, HandlerType};
use coracle_engine::{
    ContainerState, EngineConfig, ExecConfig, Handlers, IdMapping, Mount, NamespaceMode, Resources, SandboxConfig,
    SandboxState, Security, UserNamespace,
};
use coracle_tests::machine::memory_tree;
use coracle_tests::rig::{Rig, containers, drain, rig_with, script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";

fn settings(kind: HandlerType, binary: impl AsRef<Path>) -> HandlerSettings {
    HandlerSettings { kind, binary: Some(binary.as_ref().to_owned()), ..Default::default() }
}

fn config() -> EngineConfig {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crun = HandlerOptions { runtime: Some(here.join("handlers/crun-hybrid")), ..Default::default() };
    let shim_of_crun = HandlerSettings { options: crun, ..settings(HandlerType::Shim, "containerd-shim-runc-v2") };
    let named = [
        ("runc", settings(HandlerType::Oci, "runc")),
        ("crun", settings(HandlerType::Oci, here.join("handlers/crun-hybrid"))),
        ("own", settings(HandlerType::Oci, coracle_tests::bin("coracle-oci"))),
        ("shim", settings(HandlerType::Shim, "io.containerd.runc.v2")),
        ("shim-of-crun", shim_of_crun),
        ("broken", settings(HandlerType::Shim, here.join("handlers/shim-broken"))),
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
    has_the_users_and_privileges_it_asks_for,
    keeps_its_log_when_the_file_is_moved,
    says_why_it_cannot_start,
    leaves_nothing_when_its_supervisor_is_killed;
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
    let (tree, file) = memory_tree();
    let group = format!("{}{}/pod{}/{id}", tree.display(), rig.engine.config().cgroup_parent, pod.id);
    let text = std::fs::read_to_string(format!("{group}/{file}")).unwrap();
    assert_eq!(text.trim(), (64 << 20).to_string());
    let stats = rig.engine.container_stats(&id).await.unwrap();
    let used = stats.group.unwrap().memory.unwrap().usage;
    assert!(used > 0 && used < 64 << 20, "{used}");
}

async fn has_the_users_and_privileges_it_asks_for(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let volume = rig.engine.make_volume(&pod.id, "data").unwrap();
    let look = "id -u; grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; touch /y 2>/dev/null || echo readonly; \
                touch /data/y && echo written";
    let mut config = script("look", look);
    config.mounts = vec![Mount { host_path: volume.clone(), container_path: "/data".into(), ..Default::default() }];
    config.security = Security {
        run_as_user: Some(33),
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        no_new_privs: true,
        readonly_rootfs: true,
        ..Default::default()
    };
    let (exit, log) = rig.run(&pod.id, config).await;
    assert_eq!(exit.code, 0, "{log}");
    let lines: Vec<_> = log.lines().collect();
    let expected = ["33", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2", "readonly", "written"];
    assert_eq!(lines, expected);
    assert!(volume.join("y").exists());

    let mut config =
        script("strong", "mkdir /m; mount -t tmpfs x /m && echo mounted; test -c /dev/null && echo device");
    config.security.privileged = true;
    let (_, log) = rig.run(&pod.id, config).await;
    assert_eq!(log, "mounted\ndevice\n");
}

async fn keeps_its_log_when_the_file_is_moved(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let id = rig.start(&pod.id, script("main", "trap 'echo more; exit 0' TERM; echo ready; sleep 1000 & wait")).await;
    let id = id.unwrap();
    ready(rig, &id).await;
    let path = rig.engine.container_status(&id).unwrap().log_path.unwrap();
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    rig.engine.reopen_log(&id).await.unwrap();
    rig.engine.stop_container(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(rig.log(&id), "more\n");
}

async fn says_why_it_cannot_start(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let mut config = script("main", "");
    config.command = Some(vec!["/no/such/program".into()]);
    let error = rig.start(&pod.id, config).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
}

async fn leaves_nothing_when_its_supervisor_is_killed(rig: &Rig, handler: &str) {
    let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
    let id = rig.start(&pod.id, script("main", LONG)).await.unwrap();
    ready(rig, &id).await;
    let socket = shim_socket(rig, &pod.id);
    kill(Pid::from_raw(pod.supervisor.unwrap()), Signal::SIGKILL).unwrap();
    while rig.engine.sandbox_status(&pod.id).unwrap().state == SandboxState::Ready {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(rig.engine.container_status(&id).unwrap().exit.unwrap().code, 255);
    rig.engine.remove_sandbox(&pod.id).await.unwrap();
    assert_eq!(rig.left(), Vec::<String>::new());
    assert!(!socket.is_some_and(|socket| socket.exists()));
}

/// The socket of a pod's shim, if it has one.
fn shim_socket(rig: &Rig, pod: &str) -> Option<PathBuf> {
    let text = std::fs::read(rig.engine.paths().pod(pod).join("shim/listening.json")).ok()?;
    let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let socket = PathBuf::from(told["address"].as_str().unwrap().strip_prefix("unix://").unwrap());
    assert!(socket.exists());
    Some(socket)
}

/// The processes of a pod's cgroup for the shim.
fn shim_pids(rig: &Rig, pod: &str) -> Vec<i32> {
    let tree = memory_tree().0.display();
    let group = format!("{tree}{}/pod{pod}/shim/cgroup.procs", rig.engine.config().cgroup_parent);
    std::fs::read_to_string(group).unwrap().lines().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn one_shim_runs_all_containers_of_a_pod_and_ends_with_it() {
    rig_with(config(), async |rig| {
        let pod = rig.engine.run_sandbox(pod(rig, "shim")).await.unwrap();
        let one = rig.start(&pod.id, script("one", LONG)).await.unwrap();
        let shims = shim_pids(rig, &pod.id);
        let two = rig.start(&pod.id, script("two", LONG)).await.unwrap();
        assert_eq!((shims.len(), &shim_pids(rig, &pod.id)), (1, &shims));
        ready(rig, &one).await;
        rig.engine.stop_container(&one, Duration::from_secs(20)).await.unwrap();
        assert_eq!(rig.engine.container_status(&two).unwrap().state, ContainerState::Running);
        let socket = shim_socket(rig, &pod.id).unwrap();
        rig.engine.stop_sandbox(&pod.id).await.unwrap();
        assert!(!socket.exists() && !Path::new(&format!("/proc/{}", shims[0])).exists());
        assert_eq!(rig.engine.container_status(&two).unwrap().exit.unwrap().code, 137);
        assert_eq!(rig.engine.container_status(&one).unwrap().exit.unwrap().code, 9);
    });
}

#[test]
fn when_its_shim_dies_a_container_has_ended_and_the_pod_goes_on() {
    rig_with(config(), async |rig| {
        let pod = rig.engine.run_sandbox(pod(rig, "shim")).await.unwrap();
        let id = rig.start(&pod.id, script("one", LONG)).await.unwrap();
        kill(Pid::from_raw(shim_pids(rig, &pod.id)[0]), Signal::SIGKILL).unwrap();
        assert_eq!(rig.engine.wait_container(&id).await.unwrap().code, 137);
        rig.engine.remove_container(&id).await.unwrap();
        // The next container gets a new one.
        let (exit, log) = rig.run(&pod.id, script("two", "echo out; exit 3")).await;
        assert_eq!((exit.code, log.as_str()), (3, "out\n"));
        rig.engine.remove_sandbox(&pod.id).await.unwrap();
        assert_eq!(rig.left(), Vec::<String>::new());
    });
}

#[test]
fn a_shim_calls_the_runtime_that_it_is_told_to() {
    rig_with(config(), async |rig| {
        let pod = rig.engine.run_sandbox(pod(rig, "shim-of-crun")).await.unwrap();
        let (exit, log) = rig.run(&pod.id, script("main", "echo out; exit 3")).await;
        assert_eq!((exit.code, log.as_str()), (3, "out\n"));
        // crun keeps its record differently than runc.
        let id = rig.start(&pod.id, script("other", LONG)).await.unwrap();
        let state = rig.engine.paths().pod(&pod.id).join("shim/state/coracle").join(&id);
        assert!(state.join("status").exists() && !state.join("state.json").exists());
    });
}

#[test]
fn a_pod_that_is_stopped_in_the_middle_of_a_create_leaves_nothing() {
    for handler in ["runc", "shim"] {
        rig_with(config(), async |rig| {
            let pod = rig.engine.run_sandbox(pod(rig, handler)).await.unwrap();
            let create = rig.engine.create_container(&pod.id, script("main", LONG));
            let stop = async {
                tokio::time::sleep(Duration::from_millis(40)).await;
                rig.engine.stop_sandbox(&pod.id).await
            };
            let (_, stopped) = tokio::join!(create, stop);
            stopped.unwrap();
            rig.engine.remove_sandbox(&pod.id).await.unwrap();
            assert_eq!(rig.left(), Vec::<String>::new());
        });
    }
}

#[test]
fn a_shim_that_does_not_start_says_why() {
    rig_with(config(), async |rig| {
        let pod = rig.engine.run_sandbox(pod(rig, "broken")).await.unwrap();
        let error = rig.engine.create_container(&pod.id, script("one", LONG)).await.unwrap_err().to_string();
        assert!(error.contains("handlers/shim-broken: exit status: 4: no shim today"), "{error}");
        rig.engine.remove_sandbox(&pod.id).await.unwrap();
        assert_eq!(rig.left(), Vec::<String>::new());
    });
}

#[test]
fn a_pod_of_another_runtime_that_can_has_a_user_namespace() {
    rig_with(config(), async |rig| {
        let mapping = IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
        let namespace = UserNamespace { uids: vec![mapping], gids: vec![mapping] };
        let config = SandboxConfig { user_namespace: Some(namespace), ..pod(rig, "own") };
        let pod = rig.engine.run_sandbox(config).await.unwrap();
        let script = script("main", "id -u; stat -c %u /bin/sh; touch /mine; head -1 /proc/self/uid_map | tr -s ' '");
        let (exit, log) = rig.run(&pod.id, script).await;
        assert_eq!((exit.code, log.as_str()), (0, "0\n0\n 0 100000 65536\n"));
    });
}

#[test]
fn what_a_runtime_would_pass_over_in_silence_is_refused() {
    rig_with(config(), async |rig| {
        let mapping = IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
        let namespace = UserNamespace { uids: vec![mapping], gids: vec![mapping] };
        let config = SandboxConfig { user_namespace: Some(namespace), ..pod(rig, "crun") };
        let error = rig.engine.run_sandbox(config).await.unwrap_err().to_string();
        assert!(error.contains("handler crun: ") && error.contains("user namespaces"), "{error}");
        let pod = rig.engine.run_sandbox(pod(rig, "crun")).await.unwrap();
        let mut config = script("one", LONG);
        let readonly = Mount { readonly: true, recursive_read_only: true, ..Default::default() };
        config.mounts = vec![Mount { host_path: "/tmp".into(), container_path: "/x".into(), ..readonly }];
        let error = rig.engine.create_container(&pod.id, config).await.unwrap_err().to_string();
        assert!(error.contains("handler crun: ") && error.contains("recursive read-only"), "{error}");
    });
}

#[test]
fn an_unknown_or_unhealthy_handler_is_an_error_and_makes_nothing() {
    rig_with(config(), async |rig| {
        for (handler, words) in [
            (
                "kata",
                "no handler \"kata\" is configured; known are broken, coracle, crun, gone, own, runc, shim, shim-of-crun, sick",
            ),
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
