//! Attaching to running containers.

use coracle_tests::cri::{log_text, node, script};
use k8s_cri::v1;

use crate::client::{Wants, attach};
use crate::{spdy, websocket};

async fn launch(node: &coracle_tests::cri::Node, text: &str, change: impl FnOnce(&mut v1::ContainerConfig)) -> String {
    let pod = node.pod("web");
    let sandbox = node.run_pod(&pod).await.unwrap();
    let mut config = script("main", text);
    change(&mut config);
    node.launch(&sandbox, &pod, config).await
}

#[test]
fn a_container_is_fed_and_heard_and_survives_its_clients() {
    node(async |node| {
        let text = "while read line; do echo got $line; [ $line = end ] && exit 5; done";
        let id = launch(node, text, |config| config.stdin = true).await;
        for turn in ["one", "two"] {
            let mut socket =
                websocket::Connection::open(&attach(node, &id, Wants::All).await, "v5.channel.k8s.io").await.unwrap();
            socket.send(0, format!("{turn}\n").as_bytes()).await;
            socket.until(1, &format!("got {turn}\n")).await;
        }
        let mut connection =
            spdy::Connection::open(&attach(node, &id, Wants::All).await, &["v4.channel.k8s.io"]).await.unwrap();
        let mut error = connection.stream(&[("streamType", "error")]);
        let stdin = connection.stream(&[("streamType", "stdin")]);
        let mut stdout = connection.stream(&[("streamType", "stdout")]);
        let _stderr = connection.stream(&[("streamType", "stderr")]);
        stdin.write(b"end\n");
        assert_eq!(stdout.rest().await, b"got end\n");
        let status: serde_json::Value = serde_json::from_slice(&error.rest().await).unwrap();
        assert_eq!(status["status"], "Success");
        let ended = node.exited(&id).await;
        assert_eq!(ended.exit_code, 5);
        assert_eq!(log_text(std::path::Path::new(&ended.log_path)), "got one\ngot two\ngot end\n");
    });
}

#[test]
fn input_that_is_given_once_ends_with_its_client() {
    node(async |node| {
        let id = launch(node, "cat; exit 6", |config| (config.stdin, config.stdin_once) = (true, true)).await;
        let socket = websocket::Connection::open(&attach(node, &id, Wants::All).await, "v5.channel.k8s.io").await;
        let all = socket.unwrap().exchange(0, b"once").await;
        assert_eq!(all[&1], b"once");
        assert_eq!(node.exited(&id).await.exit_code, 6);
    });
}

#[test]
fn all_clients_of_a_container_hear_it() {
    node(async |node| {
        let text = "read go; echo $go; sleep 1000";
        let id = launch(node, text, |config| config.stdin = true).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let url = attach(node, &id, Wants::All).await;
            let mut socket = websocket::Connection::open(&url, "v4.channel.k8s.io").await.unwrap();
            // The empty message says that the session has begun: from now on all output is this client's as well.
            assert_eq!(socket.next().await, Some((1, Vec::new())));
            clients.push(socket);
        }
        clients[2].send(0, b"everybody\n").await;
        for client in &mut clients {
            client.until(1, "everybody\n").await;
        }
    });
}

#[test]
fn a_containers_terminal_takes_a_clients_size() {
    node(async |node| {
        let text = "trap 'stty size' WINCH; while :; do sleep 0.05; done";
        let id = launch(node, text, |config| (config.stdin, config.tty) = (true, true)).await;
        let url = attach(node, &id, Wants::Terminal).await;
        let mut socket = websocket::Connection::open(&url, "v5.channel.k8s.io").await.unwrap();
        socket.send(4, b"{\"Width\":70,\"Height\":20}").await;
        let mut heard = String::new();
        while !heard.contains("20 70") {
            heard.push_str(&String::from_utf8_lossy(&socket.next().await.expect("output").1));
        }
    });
}
