//! `coracle serve`: the CRI server of a node.
//!
//! | folder | job |
//! |---|---|
//! | `cri` | the gRPC services: requests in, engine calls, answers out |
//! | `streaming` | exec, attach and port-forward over HTTP, whose URLs the services hand out |
//! | `listen` | the socket |

pub mod cri;
mod listen;
pub mod streaming;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_proto::cri::image_service_server::ImageServiceServer;
use coracle_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::app::App;
use crate::serve::cri::Cri;

/// The longest request, as kubelet's and containerd's limit.
const MAX_MESSAGE: usize = 16 << 20;

/// Serve the CRI to kubelet and crictl
#[derive(Debug, Args)]
pub struct Serve {
    /// The socket [default: STATE/coracle.sock]
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
}

impl Serve {
    /// Serves until it is told to stop.
    pub fn run(self, app: App) -> Result<ExitCode> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the event loop")?;
        runtime.block_on(self.serve(app))
    }

    async fn serve(self, app: App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let path = self.listen.unwrap_or_else(|| engine.paths().state.join("coracle.sock"));
        let socket = listen::Socket::bind(&path)?;
        let cri = Cri::new(app, engine);
        let mut stop = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stopped = async move {
            tokio::select! {
                _ = stop.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Server::builder()
            .add_service(RuntimeServiceServer::new(cri.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(ImageServiceServer::new(cri).max_decoding_message_size(MAX_MESSAGE))
            .serve_with_incoming_shutdown(UnixListenerStream::new(socket.listener), stopped)
            .await?;
        Ok(ExitCode::SUCCESS)
    }
}
