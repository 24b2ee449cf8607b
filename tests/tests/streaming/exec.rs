//! Commands through the streaming server.

use coracle_tests::cri::{LONG, node};
use tokio::task::JoinSet;

use crate::client::{Wants, count, exec, exit_code, gone, noise};
use crate::{spdy, websocket};

const BIG: usize = 32 << 20;

/// A command's streams over SPDY, as kubectl opens them.
struct Session {
    connection: spdy::Connection,
    error: spdy::Stream,
    stdin: Option<spdy::Stream>,
    stdout: spdy::Stream,
    stderr: Option<spdy::Stream>,
    resize: Option<spdy::Stream>,
}

impl Session {
    async fn open(url: &str, versions: &[&str], wants: Wants) -> Session {
        let mut connection = spdy::Connection::open(url, versions).await.expect("an upgrade");
        let mut stream = |kind| connection.stream(&[("streamType", kind)]);
        let terminal = matches!(wants, Wants::Terminal);
        let error = stream("error");
        let stdin = (!matches!(wants, Wants::Output)).then(|| stream("stdin"));
        let stdout = stream("stdout");
        let stderr = (!terminal).then(|| stream("stderr"));
        let resize = terminal.then(|| stream("resize"));
        Session { connection, error, stdin, stdout, stderr, resize }
    }

    /// Output, error output and what the error stream says.
    async fn rest(&mut self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let stderr = async {
            match &mut self.stderr {
                Some(stream) => stream.rest().await,
                None => Vec::new(),
            }
        };
        tokio::join!(self.stdout.rest(), stderr, self.error.rest())
    }
}

const V4: [&str; 2] = ["v4.channel.k8s.io", "channel.k8s.io"];

#[test]
fn a_command_tells_its_streams_and_its_code_over_every_protocol() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let line = "echo out; echo err >&2; exit 7";
        let mut session = Session::open(&exec(node, &id, line, Wants::Output).await, &V4, Wants::Output).await;
        assert_eq!(session.connection.protocol.as_deref(), Some("v4.channel.k8s.io"));
        let (out, err, status) = session.rest().await;
        assert_eq!((out.as_slice(), err.as_slice(), exit_code(&status)), (&b"out\n"[..], &b"err\n"[..], 7));
        session.connection.closed().await;
        let mut session = Session::open(&exec(node, &id, "true", Wants::Output).await, &V4, Wants::Output).await;
        assert_eq!(exit_code(&session.rest().await.2), 0);
        // Before version 4 the end is told in words, and success by silence.
        for version in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
            let url = exec(node, &id, line, Wants::Output).await;
            let mut session = Session::open(&url, &[version], Wants::Output).await;
            assert!(String::from_utf8(session.rest().await.2).unwrap().contains("exit code 7"));
        }
        for (subprotocol, structured) in [
            ("v5.channel.k8s.io", true),
            ("v4.channel.k8s.io", true),
            ("v4.base64.channel.k8s.io", true),
            ("channel.k8s.io", false),
            ("base64.channel.k8s.io", false),
            ("", false),
        ] {
            let url = exec(node, &id, line, Wants::Output).await;
            let all = websocket::Connection::open(&url, subprotocol).await.unwrap().rest().await;
            assert_eq!((all[&1].as_slice(), all[&2].as_slice()), (&b"out\n"[..], &b"err\n"[..]), "{subprotocol}");
            match structured {
                true => assert_eq!(exit_code(&all[&3]), 7),
                false => assert!(String::from_utf8_lossy(&all[&3]).contains("exit code 7"), "{subprotocol}"),
            }
        }
    });
}

#[test]
fn what_cannot_start_says_so_on_the_error_stream() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let request = k8s_cri::v1::ExecRequest {
            container_id: id.clone(),
            cmd: vec!["no-such-program".into()],
            stdout: true,
            ..Default::default()
        };
        let url = node.runtime().exec(request).await.unwrap().into_inner().url;
        let all = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
        let status: serde_json::Value = serde_json::from_slice(&all[&3]).unwrap();
        assert_eq!((&status["status"], &status["code"]), (&"Failure".into(), &500.into()));
        assert!(status["message"].as_str().unwrap().contains("no-such-program"), "{status}");
    });
}

#[test]
fn big_output_arrives_whole() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let line = "i=0; while [ $i -lt 32 ]; do head -c 1048576 /dev/zero | tr '\\0' \"\\\\$(printf %03o $((i + 65)))\"; i=$((i+1)); done";
        let expected: Vec<u8> = (0..32u8).flat_map(|i| vec![i + 65; 1 << 20]).collect();
        let mut session = Session::open(&exec(node, &id, line, Wants::Output).await, &V4, Wants::Output).await;
        let (out, _, status) = session.rest().await;
        assert!(out == expected, "{} bytes over SPDY", out.len());
        assert_eq!(exit_code(&status), 0);
        let url = exec(node, &id, line, Wants::Output).await;
        let all = websocket::Connection::open(&url, "v5.channel.k8s.io").await.unwrap().rest().await;
        assert!(all[&1] == expected, "{} bytes over WebSocket", all[&1].len());
        assert_eq!(exit_code(&all[&3]), 0);
    });
}

#[test]
fn input_arrives_whole_and_its_end_too() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let bytes = noise(BIG);
        let mut session = Session::open(&exec(node, &id, "cat", Wants::All).await, &V4, Wants::All).await;
        let stdin = session.stdin.take().unwrap();
        stdin.write(&bytes);
        stdin.close();
        let (out, _, status) = session.rest().await;
        assert!(out == bytes, "{} bytes over SPDY", out.len());
        assert_eq!(exit_code(&status), 0);
        let url = exec(node, &id, "cat; echo end >&2", Wants::All).await;
        let all = websocket::Connection::open(&url, "v5.channel.k8s.io").await.unwrap().exchange(0, &bytes).await;
        assert!(all[&1] == bytes, "{} bytes over WebSocket", all[&1].len());
        assert_eq!((all[&2].as_slice(), exit_code(&all[&3])), (&b"end\n"[..], 0));
    });
}

#[test]
fn a_terminal_has_the_clients_size_and_follows_it() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        // It begins with the size that the client tells at once.
        let line = "stty size; trap 'stty size; exit 3' WINCH; echo set; while :; do sleep 0.05; done";
        let url = exec(node, &id, line, Wants::Terminal).await;
        let mut session = Session::open(&url, &V4, Wants::Terminal).await;
        let resize = session.resize.take().unwrap();
        resize.write(b"{\"Width\":99,\"Height\":33}\n");
        assert!(session.stdout.until("set").await.starts_with("33 99"));
        resize.write(b"{\"Width\":120,\"Height\":40}\n");
        let (out, _, status) = session.rest().await;
        assert!(String::from_utf8_lossy(&out).contains("40 120"), "{}", String::from_utf8_lossy(&out));
        assert_eq!(exit_code(&status), 3);

        let mut socket =
            websocket::Connection::open(&exec(node, &id, line, Wants::Terminal).await, "v5.channel.k8s.io")
                .await
                .unwrap();
        socket.send(4, b"{\"Width\":99,\"Height\":33}").await;
        assert!(socket.until(1, "set").await.starts_with("33 99"));
        socket.send(4, b"{\"Width\":120,\"Height\":40}").await;
        let all = socket.rest().await;
        assert!(String::from_utf8_lossy(&all[&1]).contains("40 120"));
        assert_eq!(exit_code(&all[&3]), 3);
    });
}

#[test]
fn keys_reach_a_shell_in_a_terminal() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let mut session = Session::open(&exec(node, &id, "sh", Wants::Terminal).await, &V4, Wants::Terminal).await;
        let stdin = session.stdin.take().unwrap();
        stdin.write(b"sleep 1000\n");
        while count(node, &id, "sleep 1000").await == 0 {}
        stdin.write(b"\x03echo $((6*7))\nexit 4\n");
        session.stdout.until("42").await;
        assert_eq!(exit_code(&session.rest().await.2), 4);
    });
}

#[test]
fn a_command_whose_client_leaves_is_hung_up_on() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        // One that writes on, one that waits for input, and one in a terminal that does neither.
        let lines = [
            ("while :; do echo 4711; sleep 0.05; done", Wants::Output),
            ("cat; exec true 4711", Wants::All),
            ("echo ready; sleep 4711", Wants::Terminal),
        ];
        for (line, wants) in lines {
            let mut session = Session::open(&exec(node, &id, line, wants).await, &V4, wants).await;
            while count(node, &id, "4711").await == 0 {}
            session.stdin.iter().for_each(|stdin| stdin.write(b"x"));
            session.stdout.next().await;
            drop(session);
            gone(node, &id, "4711").await;
            let mut socket =
                websocket::Connection::open(&exec(node, &id, line, wants).await, "v4.channel.k8s.io").await.unwrap();
            while count(node, &id, "4711").await == 0 {}
            socket.next().await;
            drop(socket);
            gone(node, &id, "4711").await;
        }
    });
}

#[test]
fn many_commands_at_once_get_in_nobodys_way() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let mut running = JoinSet::new();
        for number in 0..50u8 {
            let line = format!("head -c 300000 /dev/zero | tr '\\0' '\\{:03o}'; exit {number}", number + 65);
            let url = exec(node, &id, &line, Wants::Output).await;
            running.spawn(async move {
                let (out, status) = if number % 2 == 0 {
                    let mut session = Session::open(&url, &V4, Wants::Output).await;
                    let (out, _, status) = session.rest().await;
                    (out, status)
                } else {
                    let mut socket = websocket::Connection::open(&url, "v5.channel.k8s.io").await.unwrap();
                    let mut all = socket.rest().await;
                    (all.remove(&1).unwrap(), all.remove(&3).unwrap())
                };
                assert!(out == vec![number + 65; 300_000], "{number}: {} bytes", out.len());
                assert_eq!(exit_code(&status), i32::from(number));
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    });
}

#[test]
fn a_client_that_keeps_windows_is_sent_no_more_than_it_granted() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "head -c 300000 /dev/zero", Wants::Output).await;
        let mut connection = spdy::Connection::open(&url, &V4).await.unwrap();
        connection.set_window(1000);
        let mut error = connection.stream(&[("streamType", "error")]);
        let mut stdout = connection.stream(&[("streamType", "stdout")]);
        let _stderr = connection.stream(&[("streamType", "stderr")]);
        let mut granted = 1000;
        let mut got = 0;
        while let Some(bytes) = stdout.next().await {
            got += bytes.len();
            assert!(got <= granted, "{got} bytes came where {granted} were granted");
            if got == granted {
                granted += 20_000;
                connection.grant(stdout.id, 20_000);
                connection.grant(0, 20_000);
            }
        }
        assert_eq!(got, 300_000);
        connection.grant(0, 1000);
        assert_eq!(exit_code(&error.rest().await), 0);
    });
}

#[test]
fn a_client_that_keeps_windows_is_granted_enough_to_send_everything() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let line = "read go; cat > /dev/null";
        let mut session = Session::open(&exec(node, &id, line, Wants::All).await, &V4, Wants::All).await;
        let stdin = session.stdin.take().unwrap();
        let bytes = noise(4 << 20);
        let (mut sent, mut stalled) = (0u64, 0);
        while sent < bytes.len() as u64 {
            let allowed = (64 << 10) + session.connection.granted(stdin.id);
            if sent < allowed {
                let end = (allowed as usize).min(bytes.len());
                stdin.write(&bytes[sent as usize..end]);
                sent = end as u64;
                stalled = 0;
            } else {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                stalled += 1;
                assert!(stalled < 20_000, "no grant after {sent} bytes");
            }
        }
        stdin.close();
        assert_eq!(exit_code(&session.rest().await.2), 0);
    });
}
