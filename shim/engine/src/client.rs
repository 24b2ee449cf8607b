//! The client of a supervisor: many calls at once over one ttrpc connection.
//!
//! One task reads responses and hands each to the call that waits for its stream id; a call writes its request whole
//! under a lock. Every call has a deadline of its own, so a supervisor that hangs delays nobody but its callers, and
//! a call that is dropped only leaves a response that nobody takes. When the connection breaks, all waiting calls
//! fail at once and the next one needs a new client.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_proto::ttrpc::{Code, FrameReader, StreamIds, encode_request};
use coracle_proto::{Message, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// The status code of "no such object".
pub(crate) const NOT_FOUND: i32 = Code::NotFound as i32;

/// Bytes asked of the socket at once.
const READ_SIZE: usize = 16 << 10;
/// The longest socket path the kernel takes (`sun_path` less its terminator).
const MAX_SOCKET_PATH: usize = 107;

type Answer = std::result::Result<Vec<u8>, Status>;

/// The calls that wait; `None` once the connection is broken.
type Waiting = Arc<Mutex<Option<HashMap<u32, oneshot::Sender<Answer>>>>>;

/// One connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    ids: Mutex<StreamIds>,
    waiting: Waiting,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Connects to a unix socket, whatever the length of its path.
pub async fn connect_socket(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return UnixStream::connect(path).await;
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)).await
}

impl Client {
    /// Connects to the supervisor that listens on `path`.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Client> {
        let stream = timeout(deadline, connect_socket(path))
            .await
            .map_err(|_| Error::Deadline { operation: format!("connect to {}", path.display()), after: deadline })?
            .map_err(Error::io("connect to", path))?;
        let (read, write) = stream.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read_responses(read, waiting.clone()));
        Ok(Client { writer: write.into(), ids: Mutex::default(), waiting, reader })
    }

    /// Whether the connection still stands.
    pub fn is_open(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    /// One call. `what` names it and its object in errors. The supervisor is told the deadline too.
    pub async fn call<Req: Message, Res: Message + Default>(
        &self,
        what: &str,
        service: &str,
        method: &str,
        request: &Req,
        deadline: Option<Duration>,
    ) -> Result<Res> {
        let broken = || Error::Rpc {
            operation: what.to_owned(),
            code: Code::Unavailable as i32,
            message: "the connection to the supervisor broke".into(),
        };
        let id = lock(&self.ids).next_id().ok_or_else(broken)?;
        let nanos = deadline.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
        let bytes = encode_request(id, service, method, request, nanos)
            .map_err(|e| Error::invalid(what, format!("the request cannot be sent: {e}")))?;
        let (send, receive) = oneshot::channel();
        lock(&self.waiting).as_mut().ok_or_else(broken)?.insert(id, send);
        let _forget = Forget { waiting: &self.waiting, id };
        let exchange = async {
            self.writer.lock().await.write_all(&bytes).await.map_err(|_| broken())?;
            receive.await.map_err(|_| broken())
        };
        let answer = match deadline {
            Some(after) => {
                timeout(after, exchange).await.map_err(|_| Error::Deadline { operation: what.to_owned(), after })??
            }
            None => exchange.await?,
        };
        let payload =
            answer.map_err(|s| Error::Rpc { operation: what.to_owned(), code: s.code, message: s.message })?;
        Res::decode(payload.as_slice()).map_err(|e| Error::Rpc {
            operation: what.to_owned(),
            code: Code::DataLoss as i32,
            message: format!("the answer does not decode: {e}"),
        })
    }
}

/// Takes a call off the list when it ends, however it ends.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(calls) = lock(self.waiting).as_mut() {
            calls.remove(&self.id);
        }
    }
}

/// A poisoned lock only means that another task panicked; the maps stay whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn read_responses(mut socket: OwnedReadHalf, waiting: Waiting) {
    let mut frames = FrameReader::new();
    let mut buffer = vec![0; READ_SIZE];
    'connection: while let Ok(n @ 1..) = socket.read(&mut buffer).await {
        let mut bytes = &buffer[..n];
        loop {
            match frames.take(&mut bytes) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let id = frame.stream_id;
                    let Ok(answer) = frame.into_response() else { break 'connection };
                    let call = lock(&waiting).as_mut().and_then(|calls| calls.remove(&id));
                    // Nobody waits for it any more: its deadline passed.
                    let _ = call.map(|call| call.send(answer));
                }
                Err(_) => break 'connection,
            }
        }
    }
    // Dropping the senders wakes every waiting call.
    lock(&waiting).take();
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proto::task::{ConnectRequest, ConnectResponse};
    use coracle_proto::ttrpc::{Frame, encode_response};
    use tokio::net::UnixListener;

    /// Reads one request, as a server does.
    async fn request(socket: &mut UnixStream, frames: &mut FrameReader, rest: &mut Vec<u8>) -> Frame {
        loop {
            let mut bytes = rest.as_slice();
            let frame = frames.take(&mut bytes).unwrap();
            *rest = bytes.to_vec();
            if let Some(frame) = frame {
                return frame;
            }
            let mut buffer = [0; 512];
            let n = socket.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the client hung up");
            rest.extend_from_slice(&buffer[..n]);
        }
    }

    fn answer(id: u32, pid: u32) -> Vec<u8> {
        let message = ConnectResponse { shim_pid: pid, ..Default::default() };
        encode_response(id, Ok(message.encode_to_vec())).unwrap()
    }

    async fn connect(client: &Client, deadline: Duration) -> Result<ConnectResponse> {
        let request = ConnectRequest { id: "x".into() };
        client.call("connect x", "S", "Connect", &request, Some(deadline)).await
    }

    #[tokio::test]
    async fn answers_in_any_order_reach_their_calls_and_a_silent_call_ends_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (mut frames, mut rest) = (FrameReader::new(), Vec::new());
            let mut ids = Vec::new();
            for _ in 0..3 {
                ids.push(request(&mut socket, &mut frames, &mut rest).await.stream_id);
            }
            socket.write_all(&answer(ids[2], ids[2])).await.unwrap();
            socket.write_all(&answer(ids[0], ids[0])).await.unwrap();
            // The second call is never answered; a late or unknown answer is ignored.
            socket.write_all(&answer(99, 99)).await.unwrap();
            socket
        });
        let client = Client::connect(&path, Duration::from_secs(5)).await.unwrap();
        let long = Duration::from_secs(5);
        let (a, b, c) =
            tokio::join!(connect(&client, long), connect(&client, Duration::from_millis(200)), connect(&client, long));
        assert_eq!((a.unwrap().shim_pid, c.unwrap().shim_pid), (1, 5));
        assert!(matches!(b, Err(Error::Deadline { .. })));
        assert!(client.is_open());
        drop(server.await.unwrap());
        let error = connect(&client, long).await.unwrap_err();
        assert!(error.to_string().contains("broke"), "{error}");
    }

    #[tokio::test]
    async fn a_long_socket_path_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(150));
        std::fs::create_dir(&deep).unwrap();
        let fd = std::fs::File::open(&deep).unwrap();
        let _listener = UnixListener::bind(format!("/proc/self/fd/{}/s", fd.as_raw_fd())).unwrap();
        connect_socket(&deep.join("s")).await.unwrap();
    }
}
