//! What the clients share: the HTTP before the upgrade, and the calls that give the URLs.

use coracle_tests::cri::Node;
use k8s_cri::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The head of an answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    head: String,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<String> {
        let line = |line: &str| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        self.head.lines().find_map(line)
    }
}

/// A connection that speaks another protocol now.
pub struct Upgraded {
    pub io: TcpStream,
    pub answer: Answer,
}

/// Sends a request and reads the head of its answer.
pub async fn request(method: &str, url: &str, lines: &[String]) -> Upgraded {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is no http URL"));
    let (host, path) = rest.split_once('/').expect("a path");
    let mut io = TcpStream::connect(host).await.expect("connect to the streaming server");
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    io.write_all(format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    // Byte by byte: what follows the head is another protocol.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("a head of text");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Upgraded { io, answer: Answer { status, head } }
}

/// Upgrades a connection.
pub async fn upgrade(method: &str, url: &str, to: &str, lines: &[String]) -> Result<Upgraded, Answer> {
    let mut all = vec!["Connection: Upgrade".to_owned(), format!("Upgrade: {to}")];
    all.extend_from_slice(lines);
    let upgraded = request(method, url, &all).await;
    match upgraded.answer.status {
        101 => Ok(upgraded),
        _ => Err(upgraded.answer),
    }
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy)]
pub enum Wants {
    /// Output and error output.
    Output,
    /// Those and input.
    All,
    /// A terminal with input.
    Terminal,
}

/// The URL of an exec of a shell line.
pub async fn exec(node: &Node, container: &str, line: &str, wants: Wants) -> String {
    let request = v1::ExecRequest {
        container_id: container.into(),
        cmd: ["sh", "-c", line].map(String::from).to_vec(),
        tty: matches!(wants, Wants::Terminal),
        stdin: !matches!(wants, Wants::Output),
        stdout: true,
        stderr: !matches!(wants, Wants::Terminal),
    };
    node.runtime().exec(request).await.expect("Exec").into_inner().url
}

/// The URL of an attachment.
pub async fn attach(node: &Node, container: &str, wants: Wants) -> String {
    let request = v1::AttachRequest {
        container_id: container.into(),
        tty: matches!(wants, Wants::Terminal),
        stdin: !matches!(wants, Wants::Output),
        stdout: true,
        stderr: !matches!(wants, Wants::Terminal),
    };
    node.runtime().attach(request).await.expect("Attach").into_inner().url
}

/// The URL of a port-forward.
pub async fn forward(node: &Node, pod: &str, ports: &[i32]) -> String {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port: ports.to_vec() };
    node.runtime().port_forward(request).await.expect("PortForward").into_inner().url
}

/// The exit code that a status says.
pub fn exit_code(status: &[u8]) -> i32 {
    let text = String::from_utf8_lossy(status);
    let status: serde_json::Value = serde_json::from_slice(status).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    if status["status"] == "Success" {
        return 0;
    }
    assert_eq!(status["reason"], "NonZeroExitCode", "{text}");
    assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode", "{text}");
    status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok()).expect("a code")
}

/// The processes of a container whose command line has a word.
pub async fn count(node: &Node, container: &str, word: &str) -> usize {
    let cmd = ["ps", "-o", "args"].map(String::from).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout: 10 };
    let found = node.runtime().exec_sync(request).await.expect("ExecSync").into_inner().stdout;
    String::from_utf8_lossy(&found).lines().filter(|line| line.contains(word)).count()
}

/// Waits until no process of a container has a word in its command line.
pub async fn gone(node: &Node, container: &str, word: &str) {
    while count(node, container, word).await > 0 {}
}

/// Bytes that no compressor and no text tool would leave as they are.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length).map(|_| step() as u8).collect()
}
