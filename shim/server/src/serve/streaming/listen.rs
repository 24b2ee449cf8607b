//! The listening side: connections, their limits, TLS, and how long one may be silent.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coracle_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use super::StreamingConfig;
use super::http::{Session, Wanted, answer};
use super::token::Tokens;

/// Connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to shake hands, and to send the head of its request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// How long the accepting waits when the process has no descriptors left.
const BREATH: Duration = Duration::from_millis(100);
/// How long sessions may go on when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// What all connections share.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) tokens: Tokens<Wanted>,
    pub(super) idle: Duration,
}

/// The certificates, if any are configured.
pub(super) fn tls(config: &StreamingConfig) -> Result<Option<TlsAcceptor>> {
    let (cert, key) = match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) if config.client_ca.is_none() => return Ok(None),
        _ => anyhow::bail!("serve.streaming_cert and serve.streaming_key: one is useless without the other"),
    };
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for cert in certificates(ca)? {
                roots.add(cert).with_context(|| format!("take a certificate of {}", ca.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| format!("use {}", ca.display()))?)
        }
    };
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("read the key {}", key.display()))?;
    let config = builder.with_single_cert(certificates(cert)?, private);
    let config = config.with_context(|| format!("use {} with {}", cert.display(), key.display()))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || -> Result<Vec<_>, tokio_rustls::rustls::pki_types::pem::Error> {
        CertificateDer::pem_file_iter(path)?.collect()
    };
    let found = read().with_context(|| format!("read the certificates {}", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{}: no certificate in it", path.display());
    Ok(found)
}

/// Accepts until told to stop; then gives the sessions a moment.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(begin(stream, tls.clone(), shared.clone()));
            }
            Err(error) => {
                tracing::warn!("accept a streaming connection: {error}");
                sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

async fn begin(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Keys and answers are short, and nobody wants to wait for more of them.
    let _ = stream.set_nodelay(true);
    match tls {
        None => connection(stream, shared).await,
        Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => connection(stream, shared).await,
            Ok(Err(error)) => tracing::debug!("a streaming client's TLS handshake: {error}"),
            Err(_) => {}
        },
    }
}

/// One connection: requests, and the session that one of them begins.
async fn connection<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: IO, shared: Arc<Shared>) {
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Watched { io, activity: activity.clone() });
    let begun: Mutex<Option<Session>> = Mutex::new(None);
    let slot = || begun.lock().unwrap_or_else(PoisonError::into_inner);
    let service = service_fn(|request| {
        let (answer, session) = answer(request, &shared.tokens);
        if session.is_some() {
            *slot() = session;
        }
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    if let Err(error) = http.serve_connection(io, service).with_upgrades().await {
        tracing::debug!("a streaming client's request: {error}");
    }
    let session = slot().take();
    if let Some(session) = session {
        tokio::select! {
            () = session.run(&shared.engine) => {}
            () = activity.idle(shared.idle) => tracing::info!("a streaming connection was silent for too long"),
        }
    }
}

/// When something last went over a connection.
struct Activity {
    begun: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Activity {
        Activity { begun: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when nothing went over the connection for so long.
    async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            match (last + limit).checked_sub(self.begun.elapsed()) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }
}

/// A connection whose use is noted.
struct Watched<IO> {
    io: IO,
    activity: Arc<Activity>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
