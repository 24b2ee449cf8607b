//! Connecting to a port inside a pod, as port-forward does, and to an address as seen from there.
//!
//! A socket belongs to the network namespace it was made in, wherever it is connected from. So a short-lived thread
//! enters the pod's namespace and only makes the sockets; connecting waits in the event loop, where it can be given up.
//!
//! A pod in a virtual machine has its loopback there: the supervisor's `vm/dial.sock` leads to it. Its first line says
//! `PORT`, the answer's `ok` or `error: WORDS`; then the bytes are the connection's.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use crate::client::connect_socket;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::handler::HandlerKind;
use crate::id;
use crate::lock::Holder;
use crate::status::SandboxState;
use crate::types::NamespaceMode;

/// How long a port may take to accept: nothing but the pod's own loopback is in between.
const CONNECT: Duration = Duration::from_secs(10);
/// Both loopbacks, in the order they are tried, as containerd's.
const TARGETS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The supervisor's socket to a virtual machine's ports.
const GUEST: &str = "vm/dial.sock";
/// The longest answer: the guest's words are shorter.
const MAX_ANSWER: usize = 512;
/// What the guest says of a port that nobody listens on.
const REFUSED: &str = "Connection refused";

/// A connection into a pod.
#[derive(Debug)]
pub enum Dialled {
    /// To its network namespace.
    Tcp(TcpStream),
    /// To its virtual machine.
    Guest(UnixStream),
}

impl Engine {
    /// Connects to a port on the loopback of a pod: 127.0.0.1, then ::1. A pod in the machine's network has the
    /// machine's.
    pub async fn dial(&self, sandbox: &str, port: u16) -> Result<Dialled> {
        let sandbox = self.find_sandbox(sandbox)?;
        let object = format!("port {port} of sandbox {}", id::short(&sandbox));
        if self.is_in_machine(&sandbox)? {
            let connected = timeout(CONNECT, self.dial_guest(&sandbox, port)).await;
            let late = || Error::Deadline { operation: format!("connect to {object}"), after: CONNECT };
            let stream = connected.map_err(|_| late())?.map_err(Error::io("connect to", &object))?;
            return Ok(Dialled::Guest(stream));
        }
        let mut refused = None;
        for (target, made) in TARGETS.into_iter().zip(self.pod_sockets(&sandbox).await?) {
            let address = SocketAddr::new(target, port);
            let connected = async { made.map(TcpSocket::from_std_stream)?.connect(address).await };
            match timeout(CONNECT, connected).await {
                Ok(Ok(stream)) => return Ok(Dialled::Tcp(stream)),
                Ok(Err(why)) => refused = refused.or(Some((address, why))),
                Err(_) => {
                    return Err(Error::Deadline { operation: format!("connect to {object}"), after: CONNECT });
                }
            }
        }
        let (address, source) = refused.unwrap_or((SocketAddr::new(TARGETS[0], port), io::ErrorKind::NotFound.into()));
        Err(Error::Io { operation: "connect to", path: PathBuf::from(format!("{object} ({address})")), source })
    }

    /// Connects to an address as a program in the pod does, which reaches also what the machine cannot.
    pub async fn dial_address(&self, sandbox: &str, address: SocketAddr) -> Result<TcpStream> {
        let sandbox = self.find_sandbox(sandbox)?;
        if self.is_in_machine(&sandbox)? {
            let reason = "from within a pod in a virtual machine only its own ports are reached".into();
            return Err(Error::Invalid { field: address.to_string(), reason });
        }
        let [v4, v6] = self.pod_sockets(&sandbox).await?;
        let made = if address.is_ipv4() { v4 } else { v6 };
        let connected = async { made.map(TcpSocket::from_std_stream)?.connect(address).await };
        let object = PathBuf::from(format!("{address} in sandbox {}", id::short(&sandbox)));
        connected.await.map_err(Error::io("connect to", &object))
    }

    /// Whether a sandbox that is ready is a virtual machine.
    fn is_in_machine(&self, sandbox: &str) -> Result<bool> {
        let record = self.sandbox_record(sandbox)?;
        Ok(record.state == SandboxState::Ready && matches!(record.handler.kind, HandlerKind::Vm { .. }))
    }

    async fn dial_guest(&self, sandbox: &str, port: u16) -> io::Result<UnixStream> {
        let mut stream = connect_socket(&self.paths().pod(sandbox).join(GUEST)).await?;
        stream.write_all(format!("{port}\n").as_bytes()).await?;
        let mut line = Vec::new();
        // Byte by byte: what follows is the connection's.
        while line.len() < MAX_ANSWER {
            match stream.read_u8().await? {
                b'\n' => return answer(&line).map(|()| stream),
                byte => line.push(byte),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"))
    }

    /// A socket for each of [`TARGETS`], made in the pod's network namespace.
    async fn pod_sockets(&self, sandbox: &str) -> Result<[io::Result<std::net::TcpStream>; 2]> {
        let record = self.sandbox_record(sandbox)?;
        if record.state != SandboxState::Ready {
            return Err(Error::State {
                operation: "connect to",
                object: format!("sandbox {}", id::short(sandbox)),
                state: record.state.as_str().into(),
            });
        }
        if record.config.network == NamespaceMode::Node {
            return Ok(sockets());
        }
        // The lock's holder and not the record's word: a pid alone may be another's by now.
        let Holder::Pid(pid) = self.supervisor_of(sandbox)? else {
            return Err(Error::Supervisor { sandbox: id::short(sandbox).to_owned(), reason: "it is dead".into() });
        };
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let netns = File::open(&path).map_err(Error::io("open", &path))?;
        let (done, made) = tokio::sync::oneshot::channel();
        let enter = move || {
            let entered = setns(&netns, CloneFlags::CLONE_NEWNET).map(|()| sockets());
            // The caller may have left.
            let _ = done.send(entered);
        };
        let thread = std::thread::Builder::new().name("dial".into()).spawn(enter);
        thread.map_err(Error::io("start a thread for", &path))?;
        let entered = made.await.map_err(|_| Error::io("enter", &path)(io::ErrorKind::Interrupted.into()))?;
        entered.map_err(Error::os("enter", &path))
    }
}

/// What the first line means.
fn answer(line: &[u8]) -> io::Result<()> {
    let line = String::from_utf8_lossy(line);
    match line.strip_prefix("error: ") {
        _ if line == "ok" => Ok(()),
        Some(words) if words.ends_with(REFUSED) => Err(io::ErrorKind::ConnectionRefused.into()),
        Some(words) => Err(io::Error::other(words.to_owned())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is no answer"))),
    }
}

impl AsyncRead for Dialled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Dialled::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Dialled::Guest(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Dialled::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Dialled::Guest(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Dialled::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Dialled::Guest(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Dialled::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Dialled::Guest(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn sockets() -> [io::Result<std::net::TcpStream>; 2] {
    TARGETS.map(|target| {
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        Ok(fd.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_answer_keeps_its_meaning() {
        assert!(answer(b"ok").is_ok());
        let refused = answer(b"error: 127.0.0.1:80: Connection refused").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let late = answer(b"error: port 80: no answer after 10s").unwrap_err();
        assert_eq!(late.to_string(), "port 80: no answer after 10s");
        assert_eq!(answer(b"okay").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
