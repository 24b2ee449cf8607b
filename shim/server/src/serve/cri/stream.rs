//! Commands and streams: ExecSync itself, and the URLs of exec, attach and port-forward.

use coracle_proto::cri as v1;
use tonic::Status;

use super::Cri;

impl Cri {
    pub(super) async fn exec_sync_rpc(&self, _request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
        Err(Status::unimplemented("ExecSync is not built yet"))
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
