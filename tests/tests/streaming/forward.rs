//! Port-forward.

use coracle_tests::cri::{Node, node};
use k8s_cri::v1;

use crate::client::{forward, noise};
use crate::{spdy, websocket};

/// Two servers: pages, and one that gives back what it got once it has got all.
const SERVERS: &str = "echo hello > /index.html; head -c 3000000 /dev/zero > /big; \
    nc -ll -p 7000 -e cat & exec httpd -f -p 127.0.0.1:8080 -h /";
const SPDY: [&str; 1] = ["portforward.k8s.io"];

async fn pod(node: &Node) -> String {
    let (pod, container) = node.launch_pod("web", SERVERS).await;
    // Until both listen.
    for port in [":1F90", ":1B58"] {
        loop {
            let cmd = ["grep", "-qs", port, "/proc/net/tcp", "/proc/net/tcp6"].map(String::from).to_vec();
            let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
            if node.runtime().exec_sync(request).await.unwrap().into_inner().exit_code == 0 {
                break;
            }
        }
    }
    pod
}

/// The two streams of one connection.
fn connect(connection: &mut spdy::Connection, port: &str, request: &str) -> (spdy::Stream, spdy::Stream) {
    let mut stream = |kind| connection.stream(&[("streamType", kind), ("port", port), ("requestID", request)]);
    let error = stream("error");
    error.close();
    (error, stream("data"))
}

async fn get(connection: &mut spdy::Connection, path: &str, request: &str) -> String {
    let (mut error, mut data) = connect(connection, "8080", request);
    data.write(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    let answer = data.rest().await;
    data.close();
    assert_eq!(String::from_utf8_lossy(&error.rest().await), "");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask_everything(mut connection: spdy::Connection) {
    for turn in 0..5 {
        let answer = get(&mut connection, "/index.html", &turn.to_string()).await;
        assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    }
    assert!(get(&mut connection, "/big", "big").await.len() > 3_000_000);
    // Several at once, and the end of the input passed on alone. More than three who wait are too many for busybox's nc.
    let bytes = noise(2 << 20);
    let mut pairs: Vec<_> = (0..3).map(|n| connect(&mut connection, "7000", &format!("echo{n}"))).collect();
    for (_, data) in &pairs {
        data.write(&bytes);
        data.close();
    }
    for (error, data) in &mut pairs {
        let (answer, error) = (data.rest().await, error.rest().await);
        let error = String::from_utf8_lossy(&error);
        assert!(answer == bytes, "{} of {} bytes; told: {error:?}", answer.len(), bytes.len());
        assert_eq!(error, "");
    }
    // A port where nobody listens: told on the error stream; the connection goes on.
    let (mut error, mut data) = connect(&mut connection, "9", "refused");
    let why = String::from_utf8(error.rest().await).unwrap();
    assert!(why.contains("port 9") && why.contains("refused"), "{why}");
    assert_eq!(data.rest().await, b"");
    assert!(connection.was_reset(data.id));
    assert!(get(&mut connection, "/index.html", "last").await.ends_with("hello\n"));
}

#[test]
fn ports_are_forwarded_over_spdy() {
    node(async |node| {
        let pod = pod(node).await;
        let connection = spdy::Connection::open(&forward(node, &pod, &[]).await, &SPDY).await.unwrap();
        assert_eq!(connection.protocol.as_deref(), Some(SPDY[0]));
        ask_everything(connection).await;
    });
}

#[test]
fn ports_are_forwarded_over_spdy_in_a_websocket() {
    node(async |node| {
        let pod = pod(node).await;
        let url = forward(node, &pod, &[]).await;
        let socket = websocket::Connection::open(&url, "SPDY/3.1+portforward.k8s.io").await.unwrap();
        ask_everything(spdy::Connection::over(socket.tunnel())).await;
    });
}

#[test]
fn streams_of_old_clients_are_paired_by_their_order_and_nonsense_is_refused() {
    node(async |node| {
        let pod = pod(node).await;
        let mut connection = spdy::Connection::open(&forward(node, &pod, &[]).await, &SPDY).await.unwrap();
        let _error = connection.stream(&[("streamType", "error"), ("port", "8080")]);
        let mut data = connection.stream(&[("streamType", "data"), ("port", "8080")]);
        data.write(b"GET /index.html HTTP/1.0\r\n\r\n");
        assert!(data.rest().await.ends_with(b"hello\n"));
        for headers in [&[("streamType", "data")][..], &[("streamType", "data"), ("port", "0")], &[("port", "80")]] {
            let mut refused = connection.stream(headers);
            assert_eq!(refused.rest().await, b"");
            assert!(connection.was_reset(refused.id), "{headers:?}");
        }
    });
}

#[test]
fn ports_are_forwarded_over_the_channels_of_a_websocket() {
    node(async |node| {
        let pod = pod(node).await;
        for subprotocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
            let url = forward(node, &pod, &[8080, 7000, 9]).await;
            let mut socket = websocket::Connection::open(&url, subprotocol).await.unwrap();
            socket.send(0, b"GET /index.html HTTP/1.0\r\n\r\n").await;
            socket.send(2, b"echo\n").await;
            let mut all = websocket::Channels::new();
            while !(all.get(&0).is_some_and(|bytes| bytes.ends_with(b"hello\n"))
                && all.get(&2).is_some_and(|bytes| bytes.ends_with(b"echo\n"))
                && all.get(&5).is_some_and(|bytes| bytes.len() > 2))
            {
                let (channel, bytes) = socket.next().await.expect("a message");
                all.entry(channel).or_default().extend(bytes);
            }
            // Each channel begins with its port.
            assert_eq!((&all[&0][..2], &all[&1][..2]), (&8080u16.to_le_bytes()[..], &8080u16.to_le_bytes()[..]));
            assert_eq!((&all[&2][..2], &all[&4][..2]), (&7000u16.to_le_bytes()[..], &9u16.to_le_bytes()[..]));
            assert!(String::from_utf8_lossy(&all[&5]).contains("port 9"), "{subprotocol}");
        }
        // The ports are named by the call: without any there is nothing to forward.
        let refused = websocket::Connection::open(&forward(node, &pod, &[]).await, "v4.channel.k8s.io").await;
        assert_eq!(refused.err().expect("a refusal").status, 400);
    });
}
