//! The runtime as such: version, status, configuration.

use coracle_proto::cri as v1;
use tonic::Status;

use super::Cri;

impl Cri {
    pub(super) async fn version_rpc(&self, _request: v1::VersionRequest) -> Result<v1::VersionResponse, Status> {
        Err(Status::unimplemented("Version is not built yet"))
    }

    pub(super) async fn update_runtime_config_rpc(
        &self,
        _request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
        Err(Status::unimplemented("UpdateRuntimeConfig is not built yet"))
    }

    pub(super) async fn status_rpc(&self, _request: v1::StatusRequest) -> Result<v1::StatusResponse, Status> {
        Err(Status::unimplemented("Status is not built yet"))
    }

    pub(super) async fn runtime_config_rpc(
        &self,
        _request: v1::RuntimeConfigRequest,
    ) -> Result<v1::RuntimeConfigResponse, Status> {
        Err(Status::unimplemented("RuntimeConfig is not built yet"))
    }
}
