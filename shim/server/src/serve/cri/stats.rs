//! What containers and pods use, and the metrics that kubelet passes on to cAdvisor's users.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
    pub(super) async fn container_stats_rpc(
        &self,
        _request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse, Status> {
        Err(Status::unimplemented("ContainerStats is not built yet"))
    }

    pub(super) async fn list_container_stats_rpc(
        &self,
        _request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse, Status> {
        Err(Status::unimplemented("ListContainerStats is not built yet"))
    }

    pub(super) async fn stream_container_stats_rpc(
        &self,
        _request: v1::StreamContainerStatsRequest,
    ) -> Result<Answers<v1::StreamContainerStatsResponse>, Status> {
        Err(Status::unimplemented("StreamContainerStats is not built yet"))
    }

    pub(super) async fn pod_sandbox_stats_rpc(
        &self,
        _request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, Status> {
        Err(Status::unimplemented("PodSandboxStats is not built yet"))
    }

    pub(super) async fn list_pod_sandbox_stats_rpc(
        &self,
        _request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse, Status> {
        Err(Status::unimplemented("ListPodSandboxStats is not built yet"))
    }

    pub(super) async fn stream_pod_sandbox_stats_rpc(
        &self,
        _request: v1::StreamPodSandboxStatsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxStatsResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxStats is not built yet"))
    }

    pub(super) async fn list_metric_descriptors_rpc(
        &self,
        _request: v1::ListMetricDescriptorsRequest,
    ) -> Result<v1::ListMetricDescriptorsResponse, Status> {
        Err(Status::unimplemented("ListMetricDescriptors is not built yet"))
    }

    pub(super) async fn list_pod_sandbox_metrics_rpc(
        &self,
        _request: v1::ListPodSandboxMetricsRequest,
    ) -> Result<v1::ListPodSandboxMetricsResponse, Status> {
        Err(Status::unimplemented("ListPodSandboxMetrics is not built yet"))
    }

    pub(super) async fn stream_pod_sandbox_metrics_rpc(
        &self,
        _request: v1::StreamPodSandboxMetricsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxMetricsResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxMetrics is not built yet"))
    }
}
