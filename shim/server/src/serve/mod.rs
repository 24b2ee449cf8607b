//! `coracle serve`: the CRI server of a node.
//!
//! | part | job |
//! |---|---|
//! | `cri` | the gRPC services: requests in, engine calls, answers out |
//! | `streaming` | exec, attach and port-forward over HTTP, whose URLs the services hand out |
//! | `inject` | variables for the containers of clients that are not kubelet |
//! | `listen` | the socket |
//! | `calls` | around every call: its line in the log, and its end when the server stops |
//! | `log` | the log's lines |
//! | `metrics` | the server's own metrics, for Prometheus |
//! | `spans` | the calls' spans, for OpenTelemetry |
//! | `notify` | what systemd is told |
//! | `reload` | settings that change while the server runs |
//!
//! The server holds nothing that matters: pods are their supervisors' children, and the records are files. So it may end
//! at any point, by SIGKILL as well, and the next one goes on.

mod calls;
pub mod cri;
mod inject;
mod listen;
mod log;
mod metrics;
mod notify;
mod reload;
mod spans;
pub mod streaming;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::Engine;
use coracle_proto::cri::image_service_server::ImageServiceServer;
use coracle_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::app::App;
use crate::serve::calls::Calls;
use crate::serve::cri::Cri;
use crate::serve::log::Levels;
use crate::serve::notify::Notify;
use crate::serve::reload::Live;
use crate::serve::spans::Spans;
use crate::statics::Statics;
use crate::sys;

/// The longest request, as kubelet's and containerd's limit.
const MAX_MESSAGE: usize = 16 << 20;
/// Threads of the event loop: calls wait for supervisors and disks, and not for a CPU.
const MAX_WORKERS: usize = 4;

/// Serve the CRI to kubelet and crictl
#[derive(Debug, Args)]
pub struct Serve {
    /// The socket [default: `serve.listen` of the configuration, or STATE/coracle.sock]
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
    /// Keep the pods of this folder's YAML and JSON files running
    #[arg(long, value_name = "DIR")]
    pub pods: Option<PathBuf>,
    /// Serve no CRI: only keep the folder's pods running
    #[arg(long, requires = "pods", conflicts_with = "listen")]
    pub no_cri: bool,
}

/// The running server.
struct Running {
    live: Live,
    engine: Engine,
    levels: Levels,
    notify: Arc<Notify>,
    /// Turns true when the server stops.
    stop: watch::Sender<bool>,
    streaming: Arc<streaming::Server>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Serve {
    /// Serves until it is told to stop.
    pub fn run(self, app: App) -> Result<ExitCode> {
        sys::small_heap();
        app.config.check()?;
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let runtime = runtime.context("start the event loop")?;
        let spans = {
            let _inside = runtime.enter();
            app.config.serve.otlp_endpoint.as_deref().map(Spans::start).transpose()?
        };
        let levels = log::start(&app.config.log_level, spans.as_ref())?;
        for missing in app.config.missing_programs() {
            tracing::warn!("{missing}; pods of this handler are refused until it is there");
        }
        let result = runtime.block_on(self.serve(app, levels));
        if let Some(spans) = spans {
            spans.stop();
        }
        // A thread that waits for something outside must not keep the server from ending.
        runtime.shutdown_background();
        result
    }

    async fn serve(self, app: App, levels: Levels) -> Result<ExitCode> {
        let mut signals = Signals::listen()?;
        let notify = Arc::new(Notify::from_env()?);
        let engine = app.engine()?;
        let keep = |app: &App| self.pods.as_deref().map(|dir| Statics::start(app, &engine, dir)).transpose();
        if let (true, Some(statics)) = (self.no_cri, if self.no_cri { keep(&app)? } else { None }) {
            return keep_alone(statics, &notify, &engine, signals).await;
        }
        let statics = keep(&app)?;
        let path = self.listen.clone().or_else(|| app.config.serve.listen.clone());
        let mut socket = listen::Socket::open(&path.unwrap_or_else(|| engine.paths().state.join("coracle.sock")))?;
        let (stop, stopped) = watch::channel(false);
        if let Some(address) = app.config.serve.metrics_address {
            metrics::serve(address, engine.clone(), stopped.clone()).await?;
        }
        let live = Live::new(app);
        let streaming = Arc::new(streaming::Server::start(engine.clone(), &streaming_config(&live)).await?);
        tracing::info!("streams are served at {}", streaming.base());
        let server = services(&live, &engine, &streaming, socket.listener()?, stopped);
        tokio::spawn(notify::watch(notify.clone(), engine.clone()));
        let serving = format!("serving {}", socket.path().display());
        tracing::info!(version = crate::cmd::version::VERSION, "{serving}");
        notify.ready(&serving);
        let mut running = Running { live, engine, levels, notify, stop, streaming, server: tokio::spawn(server) };
        loop {
            tokio::select! {
                ended = &mut running.server => {
                    ended.context("the server's task")?.context("serve the socket")?;
                    return Ok(ExitCode::SUCCESS);
                }
                _ = signals.hangup.recv() => {
                    running.reload();
                    statics.iter().for_each(Statics::look);
                    running.notify.ready(&serving);
                }
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
        }
        statics.into_iter().for_each(Statics::stop);
        running.finish(&mut signals).await;
        Ok(ExitCode::SUCCESS)
    }
}

/// Keeps the pods of a folder running, and serves nothing, until it is told to stop.
async fn keep_alone(statics: Statics, notify: &Arc<Notify>, engine: &Engine, mut signals: Signals) -> Result<ExitCode> {
    tokio::spawn(notify::watch(notify.clone(), engine.clone()));
    notify.ready("keeping the pods of a folder running");
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => {
                notify.reloading();
                statics.look();
                notify.ready("keeping the pods of a folder running");
            }
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
        }
    }
    notify.stopping();
    tracing::info!("stopping; pods run on");
    statics.stop();
    Ok(ExitCode::SUCCESS)
}

fn streaming_config(live: &Live) -> streaming::StreamingConfig {
    let serve = &live.app().config.serve;
    streaming::StreamingConfig {
        address: serve.streaming_address,
        cert: serve.streaming_cert.clone(),
        key: serve.streaming_key.clone(),
        client_ca: serve.streaming_client_ca.clone(),
        idle_timeout: serve.stream_idle_timeout,
    }
}

/// Both services on the socket, until `stopped` and the calls are done.
fn services(
    live: &Live,
    engine: &Engine,
    streaming: &Arc<streaming::Server>,
    listener: tokio::net::UnixListener,
    stopped: watch::Receiver<bool>,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
    let cri = Cri::new(live.clone(), engine.clone(), streaming.clone());
    let runtime = RuntimeServiceServer::new(cri.clone()).max_decoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(cri).max_decoding_message_size(MAX_MESSAGE);
    let mut stop = stopped.clone();
    let until_stopped = async move {
        let _ = stop.wait_for(|stopped| *stopped).await;
    };
    Server::builder()
        .add_service(Calls::new(runtime, stopped.clone()))
        .add_service(Calls::new(images, stopped))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), until_stopped)
}

impl Signals {
    fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

impl Running {
    /// Reads the settings anew.
    fn reload(&self) {
        self.notify.reloading();
        let changes = match self.live.reload() {
            Ok(changes) => changes,
            Err(error) => return tracing::error!("the configuration is not reloaded, nothing changes: {error:#}"),
        };
        if let Err(error) = self.levels.set(&self.live.app().config.log_level) {
            tracing::error!("{error:#}");
        }
        match self.live.app().handlers() {
            Ok(handlers) => self.engine.set_handlers(handlers),
            Err(error) => tracing::error!("{error:#}"),
        }
        tracing::info!("reloaded; changed: {}", list(&changes.applied));
        for key in &changes.waiting {
            tracing::warn!("{key} has changed in the configuration and needs a restart to count");
        }
    }

    /// Takes no further call and lets those that run finish, for a while; or until it is told again. Pods run on.
    async fn finish(self, signals: &mut Signals) {
        self.notify.stopping();
        let within: Duration = self.live.app().config.serve.stop_timeout;
        tracing::info!("stopping: calls that run have {within:?} to finish; pods run on");
        let _ = self.stop.send(true);
        let ended = async { tokio::join!(self.server, self.streaming.shutdown()).0 };
        tokio::select! {
            ended = tokio::time::timeout(within, ended) => match ended {
                Ok(Ok(Ok(()))) => tracing::info!("stopped"),
                Ok(Ok(Err(error))) => tracing::error!("serve the socket: {error}"),
                Ok(Err(error)) => tracing::error!("the server's task: {error}"),
                Err(_) => tracing::warn!("stopped with calls that still ran; the next server takes them up when they are retried"),
            },
            _ = signals.terminate.recv() => tracing::warn!("stopped at once, with calls that still ran"),
            _ = signals.interrupt.recv() => tracing::warn!("stopped at once, with calls that still ran"),
        }
    }
}

fn list(keys: &[String]) -> String {
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}
