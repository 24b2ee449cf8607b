//! A client of Kubernetes' channels over WebSocket. The frames are tungstenite's.

use std::collections::HashMap;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::{Answer, Upgraded, upgrade};

/// A connection.
pub struct Connection {
    socket: WebSocketStream<TcpStream>,
    base64: bool,
}

/// Everything that came until the server closed, by channel.
pub type Channels = HashMap<u8, Vec<u8>>;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let word = piece.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - piece.len()));
        for at in 0..4 {
            match at <= piece.len() {
                true => text.push(char::from(DIGITS[(word >> (18 - 6 * at)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

fn from_base64(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in text.chunks(4) {
        let digits = piece.iter().filter_map(|digit| DIGITS.iter().position(|known| known == digit));
        let digits: Vec<u32> = digits.map(|digit| digit as u32).collect();
        let word = digits.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - digits.len()));
        bytes.extend(&word.to_be_bytes()[1..digits.len()]);
    }
    bytes
}

impl Connection {
    /// Upgrades the URL's connection; `subprotocol` may be empty, and is what the server must choose.
    pub async fn open(url: &str, subprotocol: &str) -> Result<Connection, Answer> {
        let mut lines =
            vec!["Sec-WebSocket-Version: 13".to_owned(), "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".to_owned()];
        if !subprotocol.is_empty() {
            lines.push(format!("Sec-WebSocket-Protocol: {subprotocol}"));
        }
        let Upgraded { io, answer } = upgrade("GET", url, "websocket", &lines).await?;
        assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(answer.header("sec-websocket-protocol").unwrap_or_default(), subprotocol);
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        Ok(Connection { socket, base64: subprotocol.contains("base64") })
    }

    /// Sends bytes on a channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = match self.base64 {
            true => Message::text(format!("{channel}{}", to_base64(bytes))),
            false => Message::binary([&[channel], bytes].concat()),
        };
        self.socket.send(message).await.unwrap();
    }

    /// The next message: channel and bytes; `None` when the server closed, which it must do in good order.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match self.socket.next().await?.expect("a message") {
                Message::Binary(data) if !self.base64 => return Some((data[0], data[1..].to_vec())),
                Message::Text(text) if self.base64 => {
                    return Some((text.as_bytes()[0] - b'0', from_base64(&text.as_bytes()[1..])));
                }
                Message::Close(frame) => {
                    assert_eq!(frame.expect("a reason").code, CloseCode::Normal);
                    return None;
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("a message of another kind: {other:?}"),
            }
        }
    }

    /// Everything until the server closed.
    pub async fn rest(&mut self) -> Channels {
        let mut all = Channels::new();
        while let Some((channel, bytes)) = self.next().await {
            all.entry(channel).or_default().extend(bytes);
        }
        all
    }

    /// Bytes of a channel up to and with `end`.
    pub async fn until(&mut self, channel: u8, end: &str) -> String {
        let mut all = String::new();
        while !all.contains(end) {
            let (of, bytes) = self.next().await.unwrap_or_else(|| panic!("it ended before {end:?}: {all:?}"));
            if of == channel {
                all.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        all
    }

    /// Sends everything on a channel and ends it, while everything that comes is read.
    pub async fn exchange(self, channel: u8, bytes: &[u8]) -> Channels {
        let base64 = self.base64;
        let (mut sink, stream) = self.socket.split();
        let sending = async {
            for piece in bytes.chunks(32 << 10) {
                sink.send(Message::binary([&[channel], piece].concat())).await.unwrap();
            }
            sink.send(Message::binary(vec![255, channel])).await.unwrap();
            sink
        };
        let receiving = async {
            let mut all = Channels::new();
            let mut stream = stream;
            while let Some(Ok(Message::Binary(data))) = stream.next().await {
                all.entry(data[0]).or_default().extend(&data[1..]);
            }
            all
        };
        assert!(!base64, "only binary");
        tokio::join!(sending, receiving).1
    }

    /// Carries bytes in binary messages: what a tunnelled SPDY connection runs over.
    pub fn tunnel(self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut sink, mut stream) = self.socket.split();
        let (mut from, mut to) = tokio::io::split(far);
        tokio::spawn(async move {
            while let Some(Ok(Message::Binary(data))) = stream.next().await {
                if to.write_all(&data).await.is_err() {
                    return;
                }
            }
            let _ = to.shutdown().await;
        });
        tokio::spawn(async move {
            let mut chunk = vec![0; 16 << 10];
            while let Ok(read @ 1..) = from.read(&mut chunk).await {
                if sink.send(Message::binary(chunk[..read].to_vec())).await.is_err() {
                    return;
                }
            }
        });
        near
    }
}

#[test]
fn base64_of_this_client_is_base64() {
    for (bytes, text) in [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")] {
        assert_eq!((to_base64(bytes).as_str(), from_base64(text.as_bytes()).as_slice()), (text, bytes));
    }
}
