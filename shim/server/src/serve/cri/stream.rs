//! Commands and streams: ExecSync itself, and the URLs of exec, attach and port-forward.

use std::time::Duration;

use coracle_engine::ExecOutcome;
use coracle_proto::cri as v1;
use tonic::Status;

use super::{Cri, fault};

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
        Ok(v1::ExecSyncResponse { stdout: stdout.into(), stderr: stderr.into(), exit_code: code })
    }

    pub(super) async fn exec_rpc(&self, _request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
        Err(Status::unimplemented("Exec is not built yet"))
    }

    pub(super) async fn attach_rpc(&self, _request: v1::AttachRequest) -> Result<v1::AttachResponse, Status> {
        Err(Status::unimplemented("Attach is not built yet"))
    }

    pub(super) async fn port_forward_rpc(
        &self,
        _request: v1::PortForwardRequest,
    ) -> Result<v1::PortForwardResponse, Status> {
        Err(Status::unimplemented("PortForward is not built yet"))
    }
}
