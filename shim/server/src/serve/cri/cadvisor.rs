//! The metrics that kubelet passes on, by the names of cAdvisor.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
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
