//! Connecting to a port inside a pod, as port-forward does, and to an address as seen from there.
//!
//! A socket belongs to the network namespace it was made in, wherever it is connected from. So a short-lived thread
//! enters the pod's namespace and only makes the sockets; connecting waits in the event loop, where it can be given up.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id;
use crate::lock::Holder;
use crate::status::SandboxState;
use crate::types::NamespaceMode;

/// How long a port may take to accept: nothing but the pod's own loopback is in between.
const CONNECT: Duration = Duration::from_secs(10);
/// Both loopbacks, in the order they are tried, as containerd's.
const TARGETS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl Engine {
    /// Connects to a port on the loopback of a pod: 127.0.0.1, then ::1. A pod in the machine's network has the
    /// machine's.
    pub async fn dial(&self, sandbox: &str, port: u16) -> Result<TcpStream> {
        let sandbox = self.find_sandbox(sandbox)?;
        let object = format!("port {port} of sandbox {}", id::short(&sandbox));
        let mut refused = None;
        for (target, made) in TARGETS.into_iter().zip(self.pod_sockets(&sandbox).await?) {
            let address = SocketAddr::new(target, port);
            let connected = async { made.map(TcpSocket::from_std_stream)?.connect(address).await };
            match timeout(CONNECT, connected).await {
                Ok(Ok(stream)) => return Ok(stream),
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
        let [v4, v6] = self.pod_sockets(&sandbox).await?;
        let made = if address.is_ipv4() { v4 } else { v6 };
        let connected = async { made.map(TcpSocket::from_std_stream)?.connect(address).await };
        let object = PathBuf::from(format!("{address} in sandbox {}", id::short(&sandbox)));
        connected.await.map_err(Error::io("connect to", &object))
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

fn sockets() -> [io::Result<std::net::TcpStream>; 2] {
    TARGETS.map(|target| {
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        Ok(fd.into())
    })
}
