//! WebSocket as Kubernetes uses it: numbered channels in one connection, each message one piece of one channel.
//!
//! | subprotocol | message | the error channel says |
//! |---|---|---|
//! | `v5.channel.k8s.io` | binary: channel, bytes; `255, channel` ends a channel | JSON |
//! | `v4.channel.k8s.io` | binary: channel, bytes | JSON |
//! | none, `channel.k8s.io`, `v2.`, `v3.` | the same | text |
//! | `v4.base64.channel.k8s.io` | text: channel as a digit, bytes in base64 | JSON |
//! | `base64.channel.k8s.io` | the same | text |
//!
//! As with SPDY, [`run`] reads in the caller's task and another task writes; a channel whose reader is slow stops the
//! reading of the connection, since WebSocket has no windows.
//!
//! [`tunnel`] carries a whole SPDY connection in binary messages instead, as newer clients do for port-forward.

use std::collections::HashMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::pipe::{AbortOnDrop, CHUNK, LINGER, Sink, Source};

/// The longest message taken from a client; kubectl's have 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;
/// The longest message we send.
const MAX_SENT: usize = 16 << 10;
/// Messages that wait to be written, all channels together.
const OUT_QUEUE: usize = 4;
/// Bytes of a channel that wait for its reader.
const CHANNEL_BUFFER: usize = 64 << 10;
/// The channel number that means "the channel named next has ended".
const CLOSE: u8 = 255;
/// How a connection ends: kubectl takes a close without a code for a failure.
const NORMAL: CloseFrame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };

/// How a subprotocol says things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flavour {
    base64: bool,
    /// A channel can be ended alone.
    closes: bool,
    /// The end is told as JSON.
    pub(super) structured: bool,
}

/// The flavour of a subprotocol.
pub(super) fn flavour(subprotocol: &str) -> Option<Flavour> {
    let (base64, closes, structured) = match subprotocol {
        "v5.channel.k8s.io" => (false, true, true),
        "v4.channel.k8s.io" => (false, false, true),
        "v3.channel.k8s.io" | "v2.channel.k8s.io" | "channel.k8s.io" | "" => (false, false, false),
        "v4.base64.channel.k8s.io" => (true, false, true),
        "base64.channel.k8s.io" => (true, false, false),
        _ => return None,
    };
    Some(Flavour { base64, closes, structured })
}

impl Flavour {
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self.base64 {
            true => Message::text(format!("{}{}", char::from(b'0' + channel), BASE64.encode(bytes))),
            false => Message::binary([&[channel], bytes].concat()),
        }
    }

    /// Channel and bytes; `None` for a message that is neither.
    fn decode(self, message: &Message) -> Option<(u8, Vec<u8>)> {
        let data = match message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
            _ => return None,
        };
        let (first, rest) = data.split_first()?;
        match self.base64 {
            true => Some((first.checked_sub(b'0')?, BASE64.decode(rest).ok()?)),
            false => Some((*first, rest.to_vec())),
        }
    }
}

/// The channels of a connection, for its protocol.
pub(super) struct Channels {
    flavour: Flavour,
    sources: HashMap<u8, DuplexStream>,
    out: mpsc::Sender<Message>,
}

impl Channels {
    /// How the client wants things said.
    pub(super) fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// What comes on a channel.
    pub(super) fn source(&mut self, channel: u8) -> Option<Source> {
        self.sources.remove(&channel).map(Source::Channel)
    }

    /// Where a channel's bytes go.
    pub(super) fn sink(&self, channel: u8) -> Sink {
        Sink::Channel(Writer { channel, flavour: self.flavour, out: self.out.clone() })
    }
}

/// Where a channel's bytes go to the client.
pub(super) struct Writer {
    channel: u8,
    flavour: Flavour,
    out: mpsc::Sender<Message>,
}

impl Writer {
    /// Sends bytes; none make an empty message.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_SENT));
            let message = self.flavour.encode(self.channel, now);
            self.out.send(message).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
        }
    }
}

async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves a connection whose handshake is done, until the protocol is done or the client has left. `readable` are the
/// channels that the client may write to; what comes on others is for nobody.
pub(super) async fn run<IO, P>(io: IO, flavour: Flavour, readable: &[u8], protocol: impl FnOnce(Channels) -> P)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Future<Output = ()>,
{
    let (sink, mut stream) = accept(io).await.split();
    let (out, queue) = mpsc::channel(OUT_QUEUE);
    let mut writing = AbortOnDrop(tokio::spawn(write(sink, queue)));
    let (mut pipes, mut sources) = (HashMap::new(), HashMap::new());
    for channel in readable {
        let (ours, theirs) = tokio::io::duplex(CHANNEL_BUFFER);
        pipes.insert(*channel, ours);
        sources.insert(*channel, theirs);
    }
    let channels = Channels { flavour, sources, out: out.clone() };
    tokio::select! {
        () = serve(&mut stream, flavour, &mut pipes) => return,
        () = protocol(channels) => {}
    }
    let end = async {
        let _ = out.send(Message::Close(Some(NORMAL))).await;
        drop(out);
        let _ = (&mut writing.0).await;
        while let Some(Ok(_)) = stream.next().await {}
    };
    // A client that takes nothing any more loses what it did not take.
    let _ = timeout(LINGER, end).await;
}

/// The reading half. Returns when the client has left.
async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut SplitStream<WebSocketStream<IO>>,
    flavour: Flavour,
    pipes: &mut HashMap<u8, DuplexStream>,
) {
    while let Some(Ok(message)) = stream.next().await {
        match flavour.decode(&message) {
            Some((CLOSE, ended)) if flavour.closes => {
                if let Some(channel) = ended.first() {
                    pipes.remove(channel);
                }
            }
            Some((channel, bytes)) => {
                if let Some(pipe) = pipes.get_mut(&channel)
                    && pipe.write_all(&bytes).await.is_err()
                {
                    pipes.remove(&channel);
                }
            }
            None if message.is_close() => return,
            None => {}
        }
    }
}

/// The writing task.
async fn write<IO: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<IO>, Message>,
    mut queue: mpsc::Receiver<Message>,
) {
    while let Some(message) = queue.recv().await {
        let last = message.is_close();
        if sink.send(message).await.is_err() || last {
            return;
        }
    }
}

/// Passes the bytes of binary messages on to `inner` and its bytes back, until both directions have ended.
pub(super) async fn tunnel<IO>(io: IO, inner: DuplexStream)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = accept(io).await.split();
    let (mut from, mut to) = tokio::io::split(inner);
    let inwards = async {
        while let Some(Ok(message)) = stream.next().await {
            let passed = match &message {
                Message::Binary(bytes) => to.write_all(bytes).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if passed.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let outwards = async {
        let mut chunk = vec![0; MAX_SENT];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            if sink.send(Message::binary(chunk[..read].to_vec())).await.is_err() {
                return;
            }
        }
        let _: Result<(), Error> = sink.send(Message::Close(Some(NORMAL))).await;
    };
    tokio::join!(inwards, outwards);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flavour_says_the_same_in_its_way() {
        let binary = flavour("v4.channel.k8s.io").unwrap();
        assert_eq!(binary.encode(1, b"hi"), Message::binary(b"\x01hi".to_vec()));
        let text = flavour("v4.base64.channel.k8s.io").unwrap();
        assert_eq!(text.encode(1, b"hi"), Message::text("1aGk="));
        for flavour in [binary, text] {
            assert_eq!(flavour.decode(&flavour.encode(4, b"\x00\xff")), Some((4, b"\x00\xff".to_vec())));
            assert_eq!(flavour.decode(&Message::binary(Vec::new())), None);
        }
        assert_eq!(text.decode(&Message::text("0no base64!")), None);
        assert!(!flavour("channel.k8s.io").unwrap().structured && flavour("v9.channel.k8s.io").is_none());
    }

    /// A client whose stdin channel is 0 and whose end is told by the close signal.
    #[tokio::test]
    async fn a_channel_is_ended_by_the_close_signal_and_the_connection_by_its_protocol() {
        let (near, far) = tokio::io::duplex(CHANNEL_BUFFER);
        let server = run(near, flavour("v5.channel.k8s.io").unwrap(), &[0], async |mut channels: Channels| {
            let (mut source, mut sink) = (channels.source(0).unwrap(), channels.sink(1));
            let (mut all, mut chunk) = (Vec::new(), [0; 8]);
            while let read @ 1.. = source.read(&mut chunk).await {
                all.extend_from_slice(&chunk[..read]);
            }
            sink.send(&all).await.unwrap();
        });
        let client = async {
            let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
            for message in [b"\x00hello ".as_slice(), b"\x00world", b"\x02nobody", b"\xff\x00"] {
                client.send(Message::binary(message.to_vec())).await.unwrap();
            }
            let answer = client.next().await.unwrap().unwrap();
            assert_eq!(answer.into_data().as_ref(), b"\x01hello world");
            assert!(client.next().await.unwrap().unwrap().is_close());
        };
        tokio::join!(server, client);
    }
}
