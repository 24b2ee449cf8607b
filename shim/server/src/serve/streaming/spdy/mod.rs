//! One SPDY/3.1 connection: the client opens streams, each with headers and both directions.
//!
//! [`run`] reads and dispatches in the caller's task, beside the protocol that uses the streams; a task of its own
//! writes. Between them lie bounded queues and nothing else:
//! ```text
//!  client --> run --> a pipe of one window for each stream --> Reader
//!  client <-- writing task <-- OUT_QUEUE frames, all streams together <-- Writer (waits for its window)
//! ```
//! A stream whose reader is slow gets no new window; a client that does not care (see `window`) then has its whole
//! connection wait, as with Kubernetes' own server.

pub(super) mod frame;
pub(super) mod headers;
mod window;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::frame::{CANCEL, Decoder, Encoder, Fault, Frame, INITIAL_WINDOW_SIZE, INVALID_STREAM, REFUSED_STREAM};
use self::headers::Headers;
use self::window::{INITIAL, Side, Windows};
use super::pipe::{AbortOnDrop, LINGER, drain};

/// Read from the client at once.
const READ_SIZE: usize = 16 << 10;
/// The longest data frame we send.
const MAX_DATA: usize = 16 << 10;
/// Frames that wait to be written, all streams together.
const OUT_QUEUE: usize = 4;
/// New streams that wait for the protocol.
const NEW_QUEUE: usize = 4;
/// Bytes taken before their sender is told.
const GRANT: u32 = INITIAL / 2;
/// The bytes that tell the writing task to end the connection.
const END: Vec<u8> = Vec::new();

/// What the parts of a connection share.
struct Shared {
    out: mpsc::Sender<Vec<u8>>,
    windows: Windows,
}

impl Shared {
    async fn send(&self, frame: &Frame) {
        // Who writes no more has lost the client: the reading half says so, too.
        let _ = self.out.send(frame.encode()).await;
    }
}

/// A stream that the client has opened.
pub(super) struct Stream {
    /// Odd, and growing.
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// What comes on a stream.
pub(super) struct Reader {
    id: u32,
    pipe: DuplexStream,
    taken: u32,
    shared: Arc<Shared>,
}

impl Reader {
    /// Reads; nothing is the end. Safe to drop while it waits.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> usize {
        if self.taken >= GRANT {
            self.shared.send(&Frame::WindowUpdate { stream: self.id, delta: self.taken }).await;
            self.taken = 0;
        }
        let read = self.pipe.read(buffer).await.unwrap_or(0);
        self.taken += u32::try_from(read).unwrap_or(0);
        read
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.windows.finish(self.id, Side::Inbound);
    }
}

/// Where a stream's bytes go to the client.
pub(super) struct Writer {
    id: u32,
    shared: Arc<Shared>,
    ended: bool,
}

impl Writer {
    /// Sends bytes as the windows let them through.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.shared.windows.take(self.id, bytes.len().min(MAX_DATA)).await?;
            let (now, later) = bytes.split_at(taken);
            self.put(frame::data(self.id, false, now)).await?;
            bytes = later;
        }
        Ok(())
    }

    /// Ends this direction.
    pub(super) async fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.put(frame::data(self.id, true, &[])).await;
            self.shared.windows.finish(self.id, Side::Outbound);
        }
    }

    /// Ends both directions: something went wrong.
    pub(super) async fn reset(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.put(Frame::Reset { stream: self.id, status: CANCEL }.encode()).await;
            self.shared.windows.reset(self.id);
        }
    }

    async fn put(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.shared.out.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.windows.finish(self.id, Side::Outbound);
    }
}

/// Serves a connection until the protocol is done or the client has left, whichever comes first.
pub(super) async fn run<IO, P>(io: IO, protocol: impl FnOnce(mpsc::Receiver<Stream>) -> P)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
    P: Future<Output = ()>,
{
    let (mut reader, writer) = tokio::io::split(io);
    let (out, queue) = mpsc::channel(OUT_QUEUE);
    let mut writing = AbortOnDrop(tokio::spawn(write(writer, queue)));
    let shared = Arc::new(Shared { out, windows: Windows::new() });
    let (new, streams) = mpsc::channel(NEW_QUEUE);
    let mut connection = Connection {
        shared: shared.clone(),
        new,
        pipes: HashMap::new(),
        decoder: Decoder::new(),
        encoder: Encoder::new(),
        last: 0,
        taken: 0,
    };
    let status = tokio::select! {
        ended = connection.serve(&mut reader) => match ended {
            Ok(()) => return,
            Err(fault) => {
                tracing::debug!("a streaming client is turned away: {fault}");
                frame::PROTOCOL_ERROR
            }
        },
        () = protocol(streams) => 0,
    };
    let end = async {
        shared.send(&Frame::GoAway { last: connection.last, status }).await;
        let _ = shared.out.send(END).await;
        let _ = (&mut writing.0).await;
        drain(&mut reader).await;
    };
    // A client that takes nothing any more loses what it did not take.
    let _ = timeout(LINGER, end).await;
}

/// The writing task.
async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if bytes == END {
            break;
        }
        if to.write_all(&bytes).await.is_err() || (queue.is_empty() && to.flush().await.is_err()) {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// The reading half.
struct Connection {
    shared: Arc<Shared>,
    new: mpsc::Sender<Stream>,
    /// Where the bytes of the streams go that have not ended yet.
    pipes: HashMap<u32, DuplexStream>,
    decoder: Decoder,
    encoder: Encoder,
    last: u32,
    /// Bytes of all streams that the client was not told of yet.
    taken: u32,
}

impl Connection {
    /// Reads until the client leaves (`Ok`) or says what makes no sense.
    async fn serve(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<(), Fault> {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(read @ 1..) => read,
                _ => return Ok(()),
            };
            let mut bytes = &buffer[..read];
            while let Some(frame) = self.decoder.take(&mut bytes)? {
                self.handle(frame).await?;
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), Fault> {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => self.open(stream, fin, headers).await?,
            Frame::Data { stream, fin, bytes } => self.data(stream, fin, &bytes).await,
            Frame::Headers { stream, fin: true, .. } => self.close(stream),
            Frame::Reset { stream, .. } => {
                self.close(stream);
                self.shared.windows.reset(stream);
            }
            Frame::Settings(settings) => {
                for (_, value) in settings.into_iter().filter(|(id, _)| *id == INITIAL_WINDOW_SIZE) {
                    self.shared.windows.set_initial(value);
                }
            }
            Frame::WindowUpdate { stream, delta } => self.shared.windows.grant(stream, delta)?,
            // The even ones would be answers to ours.
            Frame::Ping(id) if id % 2 == 1 => self.shared.send(&Frame::Ping(id)).await,
            // One that opens no more streams may still wait for the open ones.
            Frame::Ping(_) | Frame::GoAway { .. } | Frame::Headers { .. } | Frame::SynReply { .. } => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Fault> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Fault::new(format!("stream {id} is opened after {}", self.last)));
        }
        self.last = id;
        let windows = &self.shared.windows;
        self.pipes.retain(|stream, _| windows.knows(*stream));
        if !windows.open(id, !fin) {
            self.shared.send(&Frame::Reset { stream: id, status: REFUSED_STREAM }).await;
            return Ok(());
        }
        let (ours, theirs) = tokio::io::duplex(INITIAL as usize);
        if !fin {
            self.pipes.insert(id, ours);
        }
        let reply = self.encoder.encode(&Frame::SynReply { stream: id, fin: false, headers: Vec::new() });
        let _ = self.shared.out.send(reply).await;
        let stream = Stream {
            id,
            headers,
            reader: Reader { id, pipe: theirs, taken: 0, shared: self.shared.clone() },
            writer: Writer { id, shared: self.shared.clone(), ended: false },
        };
        // A protocol that takes no more has ended, and the connection ends with it.
        let _ = self.new.send(stream).await;
        Ok(())
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.get_mut(&stream) {
            // When nobody reads it any more, the bytes are for nobody.
            let unread = pipe.write_all(bytes).await.is_err();
            if unread || fin {
                self.close(stream);
            }
        } else if stream > self.last {
            self.shared.send(&Frame::Reset { stream, status: INVALID_STREAM }).await;
        }
        self.taken += u32::try_from(bytes.len()).unwrap_or(0);
        if self.taken >= GRANT {
            let delta = std::mem::take(&mut self.taken);
            self.shared.send(&Frame::WindowUpdate { stream: 0, delta }).await;
        }
    }

    /// Nothing more comes on a stream. Its reader sees the end, and tells the windows by its drop.
    fn close(&mut self, stream: u32) {
        if self.pipes.remove(&stream).is_some() {
            self.shared.windows.finish(stream, Side::Inbound);
        }
    }
}
