//! What a session reads from and writes to, whatever the protocol below: a stream of SPDY or a channel of WebSocket.
//! Nothing in here holds more than a small bounded queue: who is slow makes the other side wait.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream};
use tokio::task::JoinHandle;

use super::{spdy, websocket};

/// How long a connection that is done waits for its client to take what was sent, and to leave. Closing earlier makes
/// the kernel throw away what is still under way.
pub(super) const LINGER: Duration = Duration::from_secs(10);
/// Copied at once.
pub(super) const CHUNK: usize = 16 << 10;

/// Bytes from the client.
pub(super) enum Source {
    /// A stream of SPDY.
    Spdy(spdy::Reader),
    /// A channel of WebSocket.
    Channel(DuplexStream),
}

impl Source {
    /// Reads; nothing is the end. Safe to drop while it waits.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            Source::Spdy(reader) => reader.read(buffer).await,
            Source::Channel(pipe) => pipe.read(buffer).await.unwrap_or(0),
        }
    }
}

/// Bytes to the client.
pub(super) enum Sink {
    /// A stream of SPDY.
    Spdy(spdy::Writer),
    /// A channel of WebSocket.
    Channel(websocket::Writer),
}

impl Sink {
    /// Sends; an error means that the client has left.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Spdy(writer) => writer.send(bytes).await,
            Sink::Channel(writer) => writer.send(bytes).await,
        }
    }

    /// Says that no more comes. A channel has no end of its own.
    pub(super) async fn end(&mut self) {
        if let Sink::Spdy(writer) = self {
            writer.end().await;
        }
    }

    /// Says that something went wrong.
    pub(super) async fn reset(&mut self) {
        if let Sink::Spdy(writer) = self {
            writer.reset().await;
        }
    }
}

/// A task that ends with whoever holds this.
pub(super) struct AbortOnDrop<T>(pub(super) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads what still comes until the client has left.
pub(super) async fn drain(from: &mut (impl AsyncRead + Unpin)) {
    let mut nothing = vec![0; CHUNK];
    while matches!(from.read(&mut nothing).await, Ok(1..)) {}
}
