//! `coracle port-forward`: ports of this machine that lead into a pod, as kubectl's.
//!
//! Each connection is dialled anew on the pod's own loopback ([`coracle_engine::Engine::dial`]), so a container that
//! starts again is reached again. A pod that is gone ends the command; what listens ends with it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{Engine, Error, SandboxState};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::app::{self, App};
use crate::exit::{self, Coded};
use crate::out;

/// Connections at once; more wait in the kernel's queue. Each holds two descriptors, of which a process has 1024.
const MAX_CONNECTIONS: usize = 400;
/// Connections that wait for one of those to end.
const BACKLOG: u32 = 128;
/// How often it is asked whether the pod is still there.
const LOOK: Duration = Duration::from_millis(500);
/// A pause after a failure to accept, which is a lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Let ports of this machine lead into a pod
///
/// The pod is reached on its own loopback, so a server that listens on 127.0.0.1 alone is reached as well. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle port-forward web 8080:80            127.0.0.1:8080 and [::1]:8080 lead to port 80 of the pod
  coracle port-forward web 8080 5432          the same ports here and there
  coracle port-forward web :80                a free port here
  coracle port-forward --address 0.0.0.0 pod/web 8080:80")]
pub struct PortForward {
    /// Addresses of this machine to listen on; localhost is 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
    /// Name or id of the pod, also as pod/NAME
    pod: String,
    /// [LOCAL:]REMOTE, with 0 or nothing for a free local port
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
}

/// One asked-for port: the local one (0 for any) and the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forward {
    local: u16,
    remote: u16,
}

/// An address to listen on; that of one of `localhost`'s may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    ip: IpAddr,
    optional: bool,
}

impl PortForward {
    /// Forwards until it is interrupted or the pod is gone.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        self.forward(app).await.with_context(|| format!("port-forward to {}", self.pod))
    }

    async fn forward(&self, app: &App) -> Result<ExitCode> {
        let forwards = self.ports.iter().map(|text| parse(text)).collect::<Result<Vec<_>>>()?;
        let addresses = addresses(&self.address)?;
        let engine = app.engine()?;
        let target = Rc::new(Target::find(&engine, &self.pod)?);
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen to signals")?;

        let mut listening = Vec::new();
        for forward in forwards {
            listening.extend(listen(&addresses, forward)?);
        }
        let permits = Rc::new(Semaphore::new(MAX_CONNECTIONS));
        // The first connection that found the pod gone ends the command.
        let (lost, mut heard) = mpsc::channel(1);
        let mut running = JoinSet::new();
        for (listener, remote) in listening {
            let local = listener.local_addr().context("ask for the local address")?;
            out::line(format!("Forwarding from {local} -> {remote}"))?;
            let (target, permits, lost) = (target.clone(), permits.clone(), lost.clone());
            running.spawn_local(accept(listener, remote, target, permits, lost));
        }
        tokio::select! {
            _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            _ = terminate.recv() => Ok(ExitCode::SUCCESS),
            _ = heard.recv() => Err(Coded::error(exit::ERROR, "lost connection to pod: it has ended")),
            () = target.gone() => Err(Coded::error(exit::ERROR, "lost connection to pod: it has ended")),
        }
    }
}

/// Where connections go.
struct Target {
    engine: Engine,
    sandbox: String,
}

impl Target {
    fn find(engine: &Engine, wanted: &str) -> Result<Target> {
        let name = match wanted.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => name,
            Some((kind @ ("svc" | "service" | "services" | "deploy" | "deployment" | "deployments"), _)) => {
                return Err(Coded::usage(format!("{kind}/NAME is not built yet: name a pod")));
            }
            // namespace/name, as everywhere
            _ => wanted,
        };
        let found = app::find(engine, name)?;
        let state = engine.sandbox_status(&found.sandbox)?.state;
        if state != SandboxState::Ready {
            let text = format!("unable to forward port because pod is not running: it is {}", state.as_str());
            return Err(Coded::error(exit::CONFLICT, text));
        }
        Ok(Target { engine: engine.clone(), sandbox: found.sandbox })
    }

    fn lives(&self) -> bool {
        match self.engine.sandbox_status(&self.sandbox) {
            Ok(status) => status.state == SandboxState::Ready,
            // What cannot be told just now is no proof of an end.
            Err(error) => !matches!(error, Error::NotFound { .. }),
        }
    }

    /// Waits for the pod's end.
    async fn gone(&self) {
        while self.lives() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Takes connections of one listener, each passed on beside the others.
async fn accept(
    listener: TcpListener,
    remote: u16,
    target: Rc<Target>,
    permits: Rc<Semaphore>,
    lost: mpsc::Sender<()>,
) {
    let local = listener.local_addr().map_or(0, |address| address.port());
    let mut connections = JoinSet::new();
    loop {
        // Taken before the connection, so that what is too much waits unaccepted.
        let Ok(permit) = permits.acquire().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        permit.forget();
        // A reader of our output that has left does not end the forwarding.
        let _ = out::line(format!("Handling connection for {local}"));
        let (target, permits, lost) = (target.clone(), permits.clone(), lost.clone());
        connections.spawn_local(async move {
            pass(stream, local, remote, &target, &lost).await;
            permits.add_permits(1);
        });
    }
}

async fn pass(mut client: TcpStream, local: u16, remote: u16, target: &Target, lost: &mpsc::Sender<()>) {
    match target.engine.dial(&target.sandbox, remote).await {
        Ok(mut pod) => {
            // Which side ended it, and how, each hears from its own connection.
            let _ = copy_bidirectional(&mut client, &mut pod).await;
        }
        Err(error) => {
            eprintln!("coracle: an error occurred forwarding {local} -> {remote}: {:#}", anyhow::Error::from(error));
            if !target.lives() {
                let _ = lost.try_send(());
            }
        }
    }
}

/// Listens for one forward on all addresses.
fn listen(addresses: &[Address], forward: Forward) -> Result<Vec<(TcpListener, u16)>> {
    let mut local = forward.local;
    let mut listeners = Vec::new();
    let mut first = None;
    for address in addresses {
        match bind(SocketAddr::new(address.ip, local)) {
            Ok(listener) => {
                // A free port is chosen once, and is then the same on each address.
                local = listener.local_addr().context("ask for the local address")?.port();
                listeners.push((listener, forward.remote));
            }
            Err(error) => {
                let text = format!("unable to listen on port {local}: listen on {}: {error}", address.ip);
                if !address.optional {
                    let code = if error.kind() == ErrorKind::AddrInUse { exit::CONFLICT } else { exit::ERROR };
                    return Err(Coded::error(code, text));
                }
                first = first.or(Some((error.kind(), text)));
            }
        }
    }
    match (listeners.is_empty(), first) {
        (true, Some((ErrorKind::AddrInUse, text))) => Err(Coded::error(exit::CONFLICT, text)),
        (true, Some((_, text))) => Err(Coded::error(exit::ERROR, text)),
        _ => Ok(listeners),
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The addresses of `--address`, each once.
fn addresses(words: &[String]) -> Result<Vec<Address>> {
    let mut found = Vec::new();
    for word in words {
        if word == "localhost" {
            found.push(Address { ip: Ipv4Addr::LOCALHOST.into(), optional: true });
            found.push(Address { ip: Ipv6Addr::LOCALHOST.into(), optional: true });
        } else {
            let ip = word.parse();
            let ip = ip.map_err(|_| Coded::usage(format!("--address {word:?}: expected an address or localhost")))?;
            found.push(Address { ip, optional: false });
        }
    }
    let mut seen = HashSet::new();
    found.retain(|address| seen.insert(address.ip));
    Ok(found)
}

/// Reads `[LOCAL:]REMOTE`.
fn parse(text: &str) -> Result<Forward> {
    let wrong = |why: &str| Coded::usage(format!("port {text:?}: {why} (expected [LOCAL:]REMOTE)"));
    let number = |word: &str| word.parse::<u16>().map_err(|_| wrong(&format!("{word:?} is no port")));
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (if local.is_empty() { 0 } else { number(local)? }, number(remote)?),
        None => (number(text)?, number(text)?),
    };
    match remote {
        0 => Err(wrong("the pod's port is missing")),
        _ => Ok(Forward { local, remote }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_kubectl_reads_them() {
        let read = |text| parse(text).map(|forward| (forward.local, forward.remote));
        assert_eq!(read("80").unwrap(), (80, 80));
        assert_eq!(read("8080:80").unwrap(), (8080, 80));
        assert_eq!(read(":80").unwrap(), (0, 80));
        assert_eq!(read("0:80").unwrap(), (0, 80));
        for wrong in ["", "http-x", "80:", "80:0", "70000", "1:2:3", "-1"] {
            let error = read(wrong).unwrap_err();
            assert_eq!(exit::code(&error), exit::USAGE, "{wrong}");
            assert!(error.to_string().contains("LOCAL:"), "{error}");
        }
    }

    #[test]
    fn localhost_is_both_loopbacks_of_which_one_may_be_missing() {
        let read = |words: &[&str]| addresses(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let both = read(&["localhost", "127.0.0.1"]).unwrap();
        assert_eq!(both.len(), 2);
        assert!(both.iter().all(|address| address.optional));
        assert!(!read(&["10.0.0.1"]).unwrap()[0].optional);
        assert!(read(&["example.com"]).unwrap_err().to_string().contains("example.com"));
    }
}
