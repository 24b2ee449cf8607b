//! Containers: made, started, stopped, removed, looked at, changed.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
    pub(super) async fn create_container_rpc(
        &self,
        _request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, Status> {
        Err(Status::unimplemented("CreateContainer is not built yet"))
    }

    pub(super) async fn start_container_rpc(
        &self,
        _request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse, Status> {
        Err(Status::unimplemented("StartContainer is not built yet"))
    }

    pub(super) async fn stop_container_rpc(
        &self,
        _request: v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse, Status> {
        Err(Status::unimplemented("StopContainer is not built yet"))
    }

    pub(super) async fn remove_container_rpc(
        &self,
        _request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, Status> {
        Err(Status::unimplemented("RemoveContainer is not built yet"))
    }

    pub(super) async fn list_containers_rpc(
        &self,
        _request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse, Status> {
        Err(Status::unimplemented("ListContainers is not built yet"))
    }

    pub(super) async fn stream_containers_rpc(
        &self,
        _request: v1::StreamContainersRequest,
    ) -> Result<Answers<v1::StreamContainersResponse>, Status> {
        Err(Status::unimplemented("StreamContainers is not built yet"))
    }

    pub(super) async fn container_status_rpc(
        &self,
        _request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, Status> {
        Err(Status::unimplemented("ContainerStatus is not built yet"))
    }

    pub(super) async fn update_container_resources_rpc(
        &self,
        _request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, Status> {
        Err(Status::unimplemented("UpdateContainerResources is not built yet"))
    }

    pub(super) async fn reopen_container_log_rpc(
        &self,
        _request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, Status> {
        Err(Status::unimplemented("ReopenContainerLog is not built yet"))
    }

    pub(super) async fn checkpoint_container_rpc(
        &self,
        _request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse, Status> {
        Err(Status::unimplemented("CheckpointContainer is not built yet"))
    }
}
