//! The server itself: who is let in, its limits, its end.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use coracle_tests::cri::{LONG, Node, Options, node, node_with};
use coracle_tests::registry::Authority;
use k8s_cri::v1;
use tonic::Code;

use crate::client::{Wants, attach, exec, exit_code, gone, request};
use crate::{spdy, websocket};

const V4: [&str; 1] = ["v4.channel.k8s.io"];

#[test]
fn a_url_is_good_once_and_for_its_own_purpose() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "echo once", Wants::Output).await;
        let other = attach(node, &id, Wants::Output).await;
        let token = |url: &str| url.rsplit('/').next().unwrap().to_owned();
        assert!(token(&url).len() >= 32 && token(&url) != token(&other), "{url} {other}");
        // Another purpose, no purpose, and a guess.
        for wrong in
            [url.replace("/exec/", "/attach/"), url.replace("/exec/", "/"), url.clone() + "0", url.clone() + "/x"]
        {
            assert_eq!(spdy::Connection::open(&wrong, &V4).await.err().expect("a refusal").status, 404, "{wrong}");
        }
        let all = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
        assert_eq!(all[&1], b"once\n");
        assert_eq!(websocket::Connection::open(&url, "v4.channel.k8s.io").await.err().unwrap().status, 404);
        assert_eq!(request("DELETE", &other, &[]).await.answer.status, 405);
        assert_eq!(request("GET", &other, &[]).await.answer.status, 400, "no upgrade");
    });
}

#[test]
fn protocols_that_are_not_known_are_refused_with_those_that_are() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "true", Wants::Output).await;
        let refused = spdy::Connection::open(&url, &["v9.channel.k8s.io"]).await.err().expect("a refusal");
        assert_eq!(refused.status, 403);
        assert_eq!(refused.header("x-accepted-stream-protocol-versions").as_deref(), Some("v4.channel.k8s.io"));
        let url = exec(node, &id, "true", Wants::Output).await;
        assert_eq!(websocket::Connection::open(&url, "v9.channel.k8s.io").await.err().unwrap().status, 403);
    });
}

#[test]
fn calls_that_make_no_sense_get_no_url() {
    node(async |node| {
        let (pod, id) = node.launch_pod("web", LONG).await;
        let mut runtime = node.runtime();
        let good =
            v1::ExecRequest { container_id: id.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
        let cases = [
            (v1::ExecRequest { container_id: String::new(), ..good.clone() }, Code::InvalidArgument, "container_id"),
            (v1::ExecRequest { cmd: vec![], ..good.clone() }, Code::InvalidArgument, "cmd"),
            (v1::ExecRequest { stdout: false, ..good.clone() }, Code::InvalidArgument, "stdout"),
            (v1::ExecRequest { tty: true, stderr: true, ..good.clone() }, Code::InvalidArgument, "stderr"),
            (v1::ExecRequest { container_id: "f".repeat(64), ..good.clone() }, Code::NotFound, "ffff"),
        ];
        for (request, code, word) in cases {
            let status = runtime.exec(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(word), "{status}");
        }
        let request = v1::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![70_000] };
        assert_eq!(runtime.port_forward(request).await.unwrap_err().code(), Code::InvalidArgument);
        let request = v1::PortForwardRequest { pod_sandbox_id: "f".repeat(64), port: vec![] };
        assert_eq!(runtime.port_forward(request).await.unwrap_err().code(), Code::NotFound);
        node.stop_container(&id, 5).await.unwrap();
        assert_eq!(runtime.exec(good).await.unwrap_err().code(), Code::FailedPrecondition);
        node.stop_pod(&pod).await.unwrap();
        let request = v1::PortForwardRequest { pod_sandbox_id: pod, port: vec![] };
        assert_eq!(runtime.port_forward(request).await.unwrap_err().code(), Code::FailedPrecondition);
    });
}

#[test]
fn exec_sync_tells_everything_and_is_cut_off_in_time() {
    let options = Options { config: "[serve]\nexec_sync_limit = '1Mi'\n".into(), ..Default::default() };
    node_with(options, async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let run = |line: &str, timeout| {
            let cmd = ["sh", "-c", line].map(String::from).to_vec();
            let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout };
            let mut runtime = node.runtime();
            async move { runtime.exec_sync(request).await.map(tonic::Response::into_inner) }
        };
        let ran = run("echo out; echo err >&2; exit 9", 0).await.unwrap();
        assert_eq!((ran.stdout, ran.stderr, ran.exit_code), (b"out\n".to_vec(), b"err\n".to_vec(), 9));
        assert_eq!(run("sleep 4711 & sleep 4711", 1).await.unwrap_err().code(), Code::DeadlineExceeded);
        gone(node, &id, "4711").await;
        assert_eq!(run("yes", 60).await.unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(run("true", -1).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

/// Kilobytes of the server that are its own.
fn memory(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", node.server())).expect("read smaps_rollup");
    let field = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).expect("a line of private memory");
    field.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number")
}

#[test]
fn clients_that_do_not_read_cost_little_memory() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "echo warm", Wants::Output).await;
        websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
        let before = memory(node);
        let mut idle = Vec::new();
        for _ in 0..20 {
            // The head of the answer is read, and nothing after it.
            let url = exec(node, &id, "yes 4711", Wants::Output).await;
            let lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
            let mut lines: Vec<String> = lines.map(String::from).to_vec();
            lines.push("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".into());
            idle.push(request("GET", &url, &lines).await);
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let grown = memory(node).saturating_sub(before);
        assert!(grown < 20 * 768, "{grown} KiB for 20 clients");
        drop(idle);
        gone(node, &id, "4711").await;
    });
}

#[test]
fn what_is_no_spdy_ends_its_connection_and_nothing_else() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        for nonsense in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], &[0x80, 2, 0, 6, 0, 0, 0, 4]]
        {
            let url = exec(node, &id, "sleep 1000", Wants::Output).await;
            let mut connection = spdy::Connection::open(&url, &V4).await.unwrap();
            connection.nonsense(nonsense);
            if nonsense[0] & 0x80 != 0 {
                connection.closed().await;
            }
        }
        let url = exec(node, &id, "exit 2", Wants::Output).await;
        let all = websocket::Connection::open(&url, "v5.channel.k8s.io").await.unwrap().rest().await;
        assert_eq!(exit_code(&all[&3]), 2);
    });
}

#[test]
fn a_silent_connection_is_closed_in_the_end() {
    let options = Options { config: "[serve]\nstream_idle_timeout = '1s'\n".into(), ..Default::default() };
    node_with(options, async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let mut connection =
            spdy::Connection::open(&exec(node, &id, "cat; exec true 4711", Wants::All).await, &V4).await.unwrap();
        for kind in ["error", "stdin", "stdout", "stderr"] {
            connection.stream(&[("streamType", kind)]);
        }
        connection.closed().await;
        gone(node, &id, "4711").await;
    });
}

#[test]
fn a_server_that_stops_ends_its_streams_and_the_next_one_serves_on() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = attach(node, &id, Wants::Output).await;
        let mut socket = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap();
        assert_eq!(socket.next().await, Some((1, Vec::new())));
        let unused = exec(node, &id, "true", Wants::Output).await;
        node.restart().await;
        assert!(!unused.is_empty());
        let url = exec(node, &id, "echo again", Wants::Output).await;
        let all = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
        assert_eq!(all[&1], b"again\n");
    });
}

#[test]
fn commands_pass_no_network_unencrypted() {
    node(async |node| {
        node.stop().await;
        node.set_config("[serve]\nstreaming_address = '0.0.0.0:0'\n");
        let said = node.machine().run(|| node.command().output().expect("run coracle serve"));
        assert!(!said.status.success());
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(error.contains("streaming_address") && error.contains("streaming_cert"), "{error}");

        let authority = Authority::create();
        let (cert, key) = authority.issue("node", "IP:127.0.0.1");
        node.set_config(&format!(
            "[serve]\nstreaming_address = '0.0.0.0:0'\nstreaming_cert = '{}'\nstreaming_key = '{}'\n",
            cert.display(),
            key.display()
        ));
        node.start().await;
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "true", Wants::Output).await;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        // An independent client of TLS shakes hands and is answered: without an upgrade, by a refusal.
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(authority.cert()).arg(&url);
        let said = node.machine().run(|| curl.output().expect("run curl"));
        assert_eq!(String::from_utf8_lossy(&said.stdout), "400", "{}", String::from_utf8_lossy(&said.stderr));
    });
}

/// Upgrades by the `openssl` program and reads until `end` comes, or nothing more. Gives what came.
fn talk(node: &Node, url: &str, more: &[String], end: &str) -> String {
    let (host, path) = url.strip_prefix("https://").and_then(|rest| rest.split_once('/')).expect("an https URL");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-connect", host]).args(more);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = node.machine().run(|| command.spawn().expect("run openssl"));
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // A client that was turned away has closed its end.
    let _ = client.stdin.as_mut().expect("a pipe").write_all(request.as_bytes());
    let (mut said, mut byte) = (Vec::new(), [0; 1]);
    let output = client.stdout.as_mut().expect("a pipe");
    while !said.ends_with(end.as_bytes()) && output.read(&mut byte).expect("read") == 1 {
        said.push(byte[0]);
    }
    client.kill().expect("end openssl");
    client.wait().expect("wait for it");
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn clients_show_a_certificate_where_one_is_asked_for() {
    node(async |node| {
        node.stop().await;
        let authority = Authority::create();
        let (cert, key) = authority.issue("node", "IP:127.0.0.1");
        let (client, client_key) = authority.issue("kubelet", "DNS:kubelet");
        let ca = authority.cert();
        node.set_config(&format!(
            "[serve]\nstreaming_cert = '{}'\nstreaming_key = '{}'\nstreaming_client_ca = '{}'\n",
            cert.display(),
            key.display(),
            ca.display()
        ));
        node.start().await;
        let (_, id) = node.launch_pod("web", LONG).await;
        let trust = ["-CAfile".to_owned(), ca.display().to_string()];
        let url = exec(node, &id, "echo hidden", Wants::Output).await;
        assert_eq!(talk(node, &url, &trust, "hidden\n"), "", "without a certificate");
        let shown = ["-cert".to_owned(), client.display().to_string(), "-key".into(), client_key.display().to_string()];
        let said = talk(node, &url, &[&trust[..], &shown].concat(), "hidden\n");
        assert!(said.starts_with("HTTP/1.1 101") && said.ends_with("hidden\n"), "{said:?}");
    });
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let url = exec(node, &id, "echo still", Wants::Output).await;
        let refused = request("GET", &url, &[format!("X-Long: {}", "x".repeat(64 << 10))]).await;
        assert_eq!(refused.answer.status, 431);
        let all = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
        assert_eq!(all[&1], b"still\n");
    });
}
