//! Pod sandboxes: made, stopped, removed, looked at.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
    pub(super) async fn run_pod_sandbox_rpc(
        &self,
        _request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse, Status> {
        Err(Status::unimplemented("RunPodSandbox is not built yet"))
    }

    pub(super) async fn stop_pod_sandbox_rpc(
        &self,
        _request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, Status> {
        Err(Status::unimplemented("StopPodSandbox is not built yet"))
    }

    pub(super) async fn remove_pod_sandbox_rpc(
        &self,
        _request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, Status> {
        Err(Status::unimplemented("RemovePodSandbox is not built yet"))
    }

    pub(super) async fn pod_sandbox_status_rpc(
        &self,
        _request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, Status> {
        Err(Status::unimplemented("PodSandboxStatus is not built yet"))
    }

    pub(super) async fn list_pod_sandbox_rpc(
        &self,
        _request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, Status> {
        Err(Status::unimplemented("ListPodSandbox is not built yet"))
    }

    pub(super) async fn stream_pod_sandboxes_rpc(
        &self,
        _request: v1::StreamPodSandboxesRequest,
    ) -> Result<Answers<v1::StreamPodSandboxesResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxes is not built yet"))
    }

    pub(super) async fn update_pod_sandbox_resources_rpc(
        &self,
        _request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
        Err(Status::unimplemented("UpdatePodSandboxResources is not built yet"))
    }
}
