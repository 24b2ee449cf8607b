//! Exec, attach and port-forward over HTTP: SPDY/3.1 and WebSocket.
//!
//! An RPC says what is wanted and gets a URL with a token; whoever comes with the token, once and within a minute, is
//! joined with it. That client is mostly kubelet, which passes on what kubectl says, byte for byte; so the protocols are
//! those of Kubernetes.
//!
//! ```text
//!  listen (TCP, TLS, limits) -> http (token, upgrade) -> spdy      -> remote (exec, attach) -> engine: a session
//!                                                     -> websocket -> forward (ports)       -> engine: dial
//! ```
//!
//! | bound | where |
//! |---|---|
//! | tokens that wait, and for how long | `token` |
//! | connections, heads of requests, silence | `listen` |
//! | streams, frames, headers of SPDY | `spdy` |
//! | messages and channels of WebSocket | `websocket` |
//!
//! Bytes wait in small queues only, so a slow side makes the other wait: the process for its client, the client for the
//! process. A connection's memory is bounded by its streams' windows.

mod forward;
mod http;
mod listen;
mod pipe;
mod remote;
mod spdy;
mod status;
mod token;
mod websocket;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coracle_engine::Engine;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::http::Wanted;
use self::listen::Shared;
use self::token::Tokens;

pub use self::remote::Remote;
pub use self::token::TokenError;

/// Where and how it is served.
#[derive(Debug, Clone)]
pub struct StreamingConfig {
    /// Where to listen; port 0 is any.
    pub address: SocketAddr,
    /// The certificate chain, PEM. Without it, http is spoken, on loopback only.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Who signs the clients' certificates, PEM; without it none is asked for.
    pub client_ca: Option<PathBuf>,
    /// A connection over which nothing went for so long is closed.
    pub idle_timeout: Duration,
}

/// The running server.
pub struct Server {
    shared: Arc<Shared>,
    /// `http://127.0.0.1:1234`.
    base: String,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Begins to serve.
    pub async fn start(engine: Engine, config: &StreamingConfig) -> Result<Server> {
        let tls = listen::tls(config).context("set up TLS of the streaming server")?;
        if tls.is_none() && !config.address.ip().is_loopback() {
            anyhow::bail!(
                "serve.streaming_address {}: commands would pass unencrypted; give streaming_cert and streaming_key, \
                 or an address of loopback",
                config.address
            );
        }
        let listener = TcpListener::bind(config.address).await;
        let listener = listener.with_context(|| format!("listen for streams on {}", config.address))?;
        let address = reachable(listener.local_addr().context("ask for the streaming server's address")?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared { engine, tokens: Tokens::new(), idle: config.idle_timeout });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(listen::serve(listener, tls, shared.clone(), stopped));
        Ok(Server { shared, base: format!("{scheme}://{address}"), stop, task: Mutex::new(Some(task)) })
    }

    /// Where it serves: `http://127.0.0.1:1234`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The URL of an exec or attach.
    pub fn remote_url(&self, remote: Remote) -> Result<String, TokenError> {
        self.url(Wanted::Remote(remote))
    }

    /// The URL of a port-forward. `ports` are those of a client that speaks plain WebSocket.
    pub fn port_forward_url(&self, sandbox: String, ports: Vec<u16>) -> Result<String, TokenError> {
        self.url(Wanted::Forward { sandbox, ports })
    }

    fn url(&self, wanted: Wanted) -> Result<String, TokenError> {
        let path = wanted.path();
        let token = self.shared.tokens.insert(wanted, Instant::now())?;
        Ok(format!("{}/{path}/{token}", self.base))
    }

    /// Takes no more connections, and ends those that do not end soon.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // A session that panicked has ended, too.
            let _ = task.await;
        }
    }
}

/// An address that a client on this machine can connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
