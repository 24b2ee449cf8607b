//! A client of SPDY/3.1 as far as Kubernetes uses it, from the specification. Header blocks are sent without the
//! dictionary, which zlib allows; those of the server are not looked at. Like Kubernetes' own client it neither grants
//! nor keeps windows, until a test asks it to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::client::{Answer, Upgraded, upgrade};

/// What the server has said, by stream.
#[derive(Default)]
struct Heard {
    streams: HashMap<u32, UnboundedSender<Vec<u8>>>,
    /// Bytes granted beyond the first window; stream 0 is the connection.
    granted: HashMap<u32, u64>,
    /// Streams that the server has broken off.
    reset: Vec<u32>,
}

/// A connection.
pub struct Connection {
    out: UnboundedSender<Vec<u8>>,
    heard: Arc<Mutex<Heard>>,
    compress: Compress,
    next: u32,
    /// What the server has agreed to.
    pub protocol: Option<String>,
    reading: tokio::task::JoinHandle<()>,
    writing: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    /// The client leaves at once, whatever is under way.
    fn drop(&mut self) {
        self.reading.abort();
        self.writing.abort();
    }
}

/// One stream.
pub struct Stream {
    pub id: u32,
    out: UnboundedSender<Vec<u8>>,
    received: UnboundedReceiver<Vec<u8>>,
}

fn control(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&[0x80, 3, 0, kind, flags, length[1], length[2], length[3]], payload].concat()
}

fn data(stream: u32, fin: bool, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&stream.to_be_bytes()[..], &[u8::from(fin), length[1], length[2], length[3]], payload].concat()
}

impl Connection {
    /// Upgrades the URL's connection, offering the protocols.
    pub async fn open(url: &str, offered: &[&str]) -> Result<Connection, Answer> {
        let lines: Vec<String> = offered.iter().map(|name| format!("X-Stream-Protocol-Version: {name}")).collect();
        let Upgraded { io, answer } = upgrade("POST", url, "SPDY/3.1", &lines).await?;
        let mut connection = Connection::over(io);
        connection.protocol = answer.header("x-stream-protocol-version");
        Ok(connection)
    }

    /// Speaks over a connection that was upgraded somehow.
    pub fn over(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Connection {
        let (mut from, mut to) = tokio::io::split(io);
        let (out, mut queue) = unbounded_channel::<Vec<u8>>();
        let writing = tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
        });
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (hearing, answers) = (heard.clone(), out.clone());
        let reading = tokio::spawn(async move {
            while let Some((head, payload)) = frame(&mut from).await {
                hear(head, payload, &hearing, &answers);
            }
            // Nothing more comes on any stream.
            hearing.lock().unwrap().streams.clear();
        });
        let compress = Compress::new(Compression::default(), true);
        Connection { out, heard, compress, next: 1, protocol: None, reading, writing }
    }

    /// Opens a stream.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Stream {
        let id = self.next;
        self.next += 2;
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name.to_lowercase(), (*value).to_owned()]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(4096);
        self.compress.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
        let (sender, received) = unbounded_channel();
        self.heard.lock().unwrap().streams.insert(id, sender);
        let payload = [&id.to_be_bytes()[..], &[0; 6], &packed].concat();
        self.out.send(control(1, 0, &payload)).unwrap();
        Stream { id, out: self.out.clone(), received }
    }

    /// Tells the window of each stream.
    pub fn set_window(&self, window: u32) {
        let payload = [1u32.to_be_bytes(), 7u32.to_be_bytes(), window.to_be_bytes()].concat();
        self.out.send(control(4, 0, &payload)).unwrap();
    }

    /// Grants the server more.
    pub fn grant(&self, stream: u32, delta: u32) {
        self.out.send(control(9, 0, &[stream.to_be_bytes(), delta.to_be_bytes()].concat())).unwrap();
    }

    /// What the server has granted on a stream.
    pub fn granted(&self, stream: u32) -> u64 {
        self.heard.lock().unwrap().granted.get(&stream).copied().unwrap_or(0)
    }

    /// Whether the server has broken a stream off.
    pub fn was_reset(&self, stream: u32) -> bool {
        self.heard.lock().unwrap().reset.contains(&stream)
    }

    /// Sends bytes that are no frame.
    pub fn nonsense(&self, bytes: &[u8]) {
        self.out.send(bytes.to_vec()).unwrap();
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(&mut self) {
        (&mut self.reading).await.unwrap();
    }
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> Option<([u8; 8], Vec<u8>)> {
    let mut head = [0; 8];
    from.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
    from.read_exact(&mut payload).await.ok()?;
    Some((head, payload))
}

fn hear(head: [u8; 8], payload: Vec<u8>, heard: &Mutex<Heard>, answers: &UnboundedSender<Vec<u8>>) {
    let mut heard = heard.lock().unwrap();
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    if head[0] & 0x80 == 0 {
        let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if let Some(known) = heard.streams.get(&stream) {
            // Who has dropped the stream does not want it.
            let _ = known.send(payload);
        }
        if head[4] & 1 != 0 {
            heard.streams.remove(&stream);
        }
        return;
    }
    assert_eq!((head[0], head[1], head[2]), (0x80, 3, 0), "a control frame of version 3");
    match head[3] {
        2 => {}
        3 => {
            heard.streams.remove(&word(0));
            heard.reset.push(word(0));
        }
        6 if word(0) % 2 == 0 => answers.send(control(6, 0, &payload)).unwrap(),
        6 | 7 => {}
        9 => *heard.granted.entry(word(0)).or_default() += u64::from(word(4)),
        other => panic!("a frame of type {other}"),
    }
}

impl Stream {
    /// Sends bytes.
    pub fn write(&self, bytes: &[u8]) {
        for piece in bytes.chunks(32 << 10) {
            self.out.send(data(self.id, false, piece)).unwrap();
        }
    }

    /// Says that no more bytes come.
    pub fn close(&self) {
        self.out.send(data(self.id, true, &[])).unwrap();
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        self.received.recv().await
    }

    /// Everything up to the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            all.extend(bytes);
        }
        all
    }

    /// Bytes up to and with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        let mut all = String::new();
        while !all.contains(end) {
            let bytes = self.next().await.unwrap_or_else(|| panic!("it ended before {end:?}: {all:?}"));
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
        all
    }
}
