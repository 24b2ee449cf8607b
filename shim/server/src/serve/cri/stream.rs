//! Commands and streams: ExecSync itself, and the URLs of exec, attach and port-forward.

use std::time::Duration;

use coracle_engine::{ContainerState, ExecOutcome, SandboxState, id};
use coracle_proto::cri as v1;
use tonic::{Code, Status};

use super::{Cri, fault};
use crate::serve::streaming::{Remote, TokenError};

impl Cri {
    pub(super) async fn exec_sync_rpc(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
        if request.container_id.is_empty() {
            return Err(fault::invalid("container_id", "it is empty"));
        }
        if request.cmd.is_empty() {
            return Err(fault::invalid("cmd", "it is empty, but a command is needed"));
        }
        let timeout = match request.timeout {
            0 => None,
            1.. => Some(Duration::from_secs(request.timeout.unsigned_abs())),
            _ => return Err(fault::invalid("timeout", format!("{} is negative", request.timeout))),
        };
        let limit = usize::try_from(self.app().config.serve.exec_sync_limit).unwrap_or(usize::MAX);
        let ran = self.engine().exec_sync(&request.container_id, request.cmd, timeout, limit).await;
        let ExecOutcome { stdout, stderr, code } = ran.map_err(fault::engine)?;
        Ok(v1::ExecSyncResponse { stdout, stderr, exit_code: code })
    }

    pub(super) async fn exec_rpc(&self, request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
        if request.cmd.is_empty() {
            return Err(fault::invalid("cmd", "it is empty, but a command is needed"));
        }
        let remote = Remote {
            container: request.container_id,
            command: Some(request.cmd),
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        Ok(v1::ExecResponse { url: self.remote_url(remote).await? })
    }

    pub(super) async fn attach_rpc(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse, Status> {
        let remote = Remote {
            container: request.container_id,
            command: None,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        Ok(v1::AttachResponse { url: self.remote_url(remote).await? })
    }

    /// The URL of a session with a container that can have one now.
    async fn remote_url(&self, mut remote: Remote) -> Result<String, Status> {
        if remote.container.is_empty() {
            return Err(fault::invalid("container_id", "it is empty"));
        }
        if remote.tty && remote.stderr {
            return Err(fault::invalid(
                "stderr",
                "a terminal has no standard error of its own: tty and stderr exclude each other",
            ));
        }
        if !remote.stdin && !remote.stdout && !remote.stderr {
            return Err(fault::invalid("stdout", "at least one of stdin, stdout and stderr is needed"));
        }
        let (engine, wanted) = (self.engine().clone(), remote.container);
        let status = super::blocking(move || engine.container_status(&wanted).map_err(fault::engine)).await?;
        if status.state != ContainerState::Running {
            let text = format!("container {} is {}, and not running", id::short(&status.id), status.state.as_str());
            return Err(fault::status(Code::FailedPrecondition, text));
        }
        remote.container = status.id;
        self.streaming().remote_url(remote).map_err(no_token)
    }

    pub(super) async fn port_forward_rpc(
        &self,
        request: v1::PortForwardRequest,
    ) -> Result<v1::PortForwardResponse, Status> {
        if request.pod_sandbox_id.is_empty() {
            return Err(fault::invalid("pod_sandbox_id", "it is empty"));
        }
        let port = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0).ok_or(*port);
        let ports = request.port.iter().map(port).collect::<Result<Vec<u16>, i32>>();
        let ports = ports.map_err(|port| fault::invalid("port", format!("{port} is no port")))?;
        let (engine, wanted) = (self.engine().clone(), request.pod_sandbox_id);
        let status = super::blocking(move || engine.sandbox_status(&wanted).map_err(fault::engine)).await?;
        if status.state != SandboxState::Ready {
            let text = format!("sandbox {} is {}, and not ready", id::short(&status.id), status.state.as_str());
            return Err(fault::status(Code::FailedPrecondition, text));
        }
        let url = self.streaming().port_forward_url(status.id, ports).map_err(no_token)?;
        Ok(v1::PortForwardResponse { url })
    }
}

fn no_token(error: TokenError) -> Status {
    match error {
        TokenError::Full => fault::status(Code::ResourceExhausted, error.to_string()),
        TokenError::Random(error) => fault::engine(error),
    }
}
