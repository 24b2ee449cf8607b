//! The engine's own streams, below any protocol.

use std::time::{Duration, Instant};

use coracle_engine::{Dialled, Error, ExecConfig, NamespaceMode};
use coracle_tests::rig::{Rig, drain, rig, script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 1; done";
const LIMIT: usize = 1 << 20;

fn sh(line: &str) -> Vec<String> {
    ["sh", "-c", line].map(String::from).to_vec()
}

async fn busy_pod(rig: &Rig) -> (String, String) {
    let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
    let id = rig.start(&pod.id, script("main", LONG)).await.unwrap();
    (pod.id, id)
}

/// The processes of a container whose command line has a word.
async fn count(rig: &Rig, container: &str, word: &str) -> usize {
    let found = rig.engine.exec_sync(container, sh("ps -o args"), None, LIMIT).await.unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().filter(|line| line.contains(word) && !line.contains("ps -o")).count()
}

#[test]
fn a_dropped_stdin_leaves_the_output_alone() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        let config = ExecConfig { cmd: sh("cat; sleep 0.3; echo late"), stdin: true, ..Default::default() };
        let mut session = rig.engine.exec(&id, config).await.unwrap();
        session.stdin.write(b"early\n").await.unwrap();
        session.stdin.close().await.unwrap();
        drop(session.stdin);
        assert_eq!(drain(&mut session.output).await.0, "early\nlate\n");
        assert_eq!(session.control.wait().await.unwrap(), 0);
    });
}

#[test]
fn a_command_to_its_end_tells_both_streams_and_its_code() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        let ran = rig.engine.exec_sync(&id, sh("echo out; echo err >&2; exit 7"), None, LIMIT).await.unwrap();
        assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice(), ran.code), (&b"out\n"[..], &b"err\n"[..], 7));
        let killed = rig.engine.exec_sync(&id, sh("kill -9 $$"), None, LIMIT).await.unwrap();
        assert_eq!(killed.code, 137);
        let empty = rig.engine.exec_sync(&id, vec![], None, LIMIT).await.unwrap_err();
        assert!(empty.to_string().starts_with("cmd:"), "{empty}");
    });
}

#[test]
fn a_late_command_is_killed_with_everything_it_started() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        // A child, a grandchild whose parent has gone, and one with a session of its own.
        let line = "sleep 4711 & (sleep 4711 &) ; setsid sh -c 'sleep 4711; true' & sleep 4711";
        let error = rig.engine.exec_sync(&id, sh(line), Some(Duration::from_secs(1)), LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert_eq!(count(rig, &id, "4711").await, 0);
    });
}

#[test]
fn a_call_that_is_dropped_takes_its_command_with_it() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        let call = rig.engine.exec_sync(&id, sh("touch /begun; sleep 4712"), None, LIMIT);
        let begun =
            async { while rig.engine.exec_sync(&id, sh("test -e /begun"), None, LIMIT).await.unwrap().code != 0 {} };
        tokio::select! {
            ended = call => panic!("it ended: {ended:?}"),
            () = begun => {}
        }
        while count(rig, &id, "4712").await > 0 {}
    });
}

#[test]
fn a_child_that_holds_the_pipe_open_does_not_hang_the_call() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        let started = Instant::now();
        let ran = rig.engine.exec_sync(&id, sh("sleep 1000 & echo done"), None, LIMIT).await.unwrap();
        assert_eq!((ran.stdout.as_slice(), ran.code), (&b"done\n"[..], 0));
        assert!(started.elapsed() < Duration::from_secs(500), "it waited for the child");
    });
}

#[test]
fn endless_output_is_cut_by_an_error_that_tells_the_limit() {
    rig(async |rig| {
        let (_, id) = busy_pod(rig).await;
        let error = rig.engine.exec_sync(&id, sh("yes 4713"), None, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("standard output is longer than 1048576 bytes"), "{error}");
        assert_eq!(count(rig, &id, "4713").await, 0);
        let exact = rig.engine.exec_sync(&id, sh("head -c 1048576 /dev/zero"), None, LIMIT).await.unwrap();
        assert_eq!(exact.stdout.len(), LIMIT);
    });
}

#[test]
fn a_pods_port_is_reached_from_inside_its_network() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        // On the loopback only: nobody outside reaches it.
        let main = script("main", "echo hello > /index.html; exec httpd -f -p 127.0.0.1:8080 -h /");
        rig.start(&pod.id, main).await.unwrap();
        let mut stream = loop {
            match rig.engine.dial(&pod.id, 8080).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello\n"), "{answer}");
        let error = rig.engine.dial(&pod.id, 9).await.unwrap_err().to_string();
        assert!(error.contains("port 9 of sandbox"), "{error}");
    });
}

#[test]
fn a_pod_of_the_machines_network_is_reached_on_the_machines_loopback() {
    rig(async |rig| {
        let mut config = rig.pod("host");
        config.network = NamespaceMode::Node;
        let pod = rig.engine.run_sandbox(config).await.unwrap();
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (dialled, accepted) = tokio::join!(rig.engine.dial(&pod.id, port), listener.accept());
        let Dialled::Tcp(stream) = dialled.unwrap() else { panic!("no pod in a virtual machine was asked for") };
        assert_eq!(stream.local_addr().unwrap(), accepted.unwrap().1);
    });
}
