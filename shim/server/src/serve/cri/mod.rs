//! The CRI: one flat list of its calls here, what each does in the file of its subject.
//!
//! | file | calls |
//! |---|---|
//! | `sandbox` | RunPodSandbox .. UpdatePodSandboxResources |
//! | `container` | CreateContainer .. CheckpointContainer |
//! | `stream` | ExecSync, Exec, Attach, PortForward |
//! | `stats` | statistics |
//! | `cadvisor` | metrics |
//! | `events` | GetContainerEvents |
//! | `node` | Version, Status, RuntimeConfig, UpdateRuntimeConfig |
//! | `image`, `pulls` | the image service |
//!
//! What they share: `convert` (the CRI's words into the engine's and back), `filter` (which objects are meant, long
//! lists), `fault` (errors into codes), `once` (work that goes on without its client), `verbose` (JSON for people).
//!
//! Nothing here waits for one pod while another is asked for: statuses and lists come from records and locks, calls that
//! change something run in tasks of their own, and each call to a supervisor has a deadline.

mod cadvisor;
mod container;
mod convert;
mod events;
pub(in crate::serve) mod fault;
mod filter;
mod image;
mod node;
mod once;
mod pulls;
mod sandbox;
mod stats;
mod stream;
mod verbose;

use std::pin::Pin;
use std::sync::Arc;

use coracle_engine::Engine;
use coracle_engine::events::Feed;
use coracle_proto::cri as v1;
use coracle_proto::cri::image_service_server::ImageService;
use coracle_proto::cri::runtime_service_server::RuntimeService;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::serve::calls;
use crate::serve::reload::Live;
use crate::serve::streaming;

/// The answer of a call that answers many times.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Pulls at once; kubelet has one at a time unless it is told otherwise.
const MAX_PULLS: usize = 32;

/// Both services. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Cri {
    shared: Arc<Shared>,
}

/// What all calls share.
struct Shared {
    live: Live,
    engine: Engine,
    streaming: Arc<streaming::Server>,
    events: Feed,
    /// Sandboxes and containers that are being made, by their names; each comes to its id.
    creations: once::Once<String>,
    /// Images that are being pulled; each comes to its id.
    pulls: once::Once<String>,
    /// The right to pull now: a pull has threads, and registries that hang must leave some for the other calls.
    pull_slots: Semaphore,
}

/// Runs what reads many files or waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(fault::status(tonic::Code::Internal, format!("the call broke off: {e}"))),
    }
}

async fn recover(engine: Engine) {
    match engine.recover().await {
        Ok(actions) => {
            for action in actions {
                let error = action.error.as_deref().unwrap_or_default();
                tracing::info!(error, "cleared what another server has left: {}", action.finding);
            }
        }
        Err(e) => tracing::warn!(error = fault::chain(&e), "what another server has left was not cleared"),
    }
}

impl Cri {
    /// The services on an engine. What a dead server has begun is brought to an end meanwhile: no call waits for it.
    pub fn new(live: Live, engine: Engine, streaming: Arc<streaming::Server>) -> Cri {
        tokio::spawn(recover(engine.clone()));
        // What `coracle run` does is none of a CRI client's.
        let events = Feed::new(engine.clone(), Some(false));
        let (creations, pulls) = Default::default();
        let pull_slots = Semaphore::new(MAX_PULLS);
        Cri { shared: Arc::new(Shared { live, engine, streaming, events, creations, pulls, pull_slots }) }
    }

    fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    fn streaming(&self) -> &streaming::Server {
        &self.shared.streaming
    }

    fn events(&self) -> &Feed {
        &self.shared.events
    }

    /// The settings as they are now.
    fn app(&self) -> Arc<App> {
        self.shared.live.app()
    }
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn version(&self, r: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(self.version_rpc(r.into_inner()).await?))
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        if let Some(metadata) = r.get_ref().config.as_ref().and_then(|config| config.metadata.as_ref()) {
            calls::named(&format!("{}/{}", metadata.namespace, metadata.name));
        }
        let answer = self.run_pod_sandbox_rpc(r.into_inner()).await?;
        calls::sandbox(&answer.pod_sandbox_id);
        Ok(Response::new(answer))
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        calls::sandbox(&r.get_ref().pod_sandbox_id);
        Ok(Response::new(self.stop_pod_sandbox_rpc(r.into_inner()).await?))
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        calls::sandbox(&r.get_ref().pod_sandbox_id);
        Ok(Response::new(self.remove_pod_sandbox_rpc(r.into_inner()).await?))
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        Ok(Response::new(self.pod_sandbox_status_rpc(r.into_inner()).await?))
    }

    async fn list_pod_sandbox(
        &self,
        r: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        Ok(Response::new(self.list_pod_sandbox_rpc(r.into_inner()).await?))
    }

    type StreamPodSandboxesStream = Answers<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        r: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        Ok(Response::new(self.stream_pod_sandboxes_rpc(r.into_inner()).await?))
    }

    async fn create_container(
        &self,
        r: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        calls::sandbox(&r.get_ref().pod_sandbox_id);
        if let Some(metadata) = r.get_ref().config.as_ref().and_then(|config| config.metadata.as_ref()) {
            calls::named(&metadata.name);
        }
        let answer = self.create_container_rpc(r.into_inner()).await?;
        calls::container(&answer.container_id);
        Ok(Response::new(answer))
    }

    async fn start_container(
        &self,
        r: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.start_container_rpc(r.into_inner()).await?))
    }

    async fn stop_container(
        &self,
        r: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.stop_container_rpc(r.into_inner()).await?))
    }

    async fn remove_container(
        &self,
        r: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.remove_container_rpc(r.into_inner()).await?))
    }

    async fn list_containers(
        &self,
        r: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        Ok(Response::new(self.list_containers_rpc(r.into_inner()).await?))
    }

    type StreamContainersStream = Answers<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        r: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        Ok(Response::new(self.stream_containers_rpc(r.into_inner()).await?))
    }

    async fn container_status(
        &self,
        r: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        Ok(Response::new(self.container_status_rpc(r.into_inner()).await?))
    }

    async fn update_container_resources(
        &self,
        r: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.update_container_resources_rpc(r.into_inner()).await?))
    }

    async fn reopen_container_log(
        &self,
        r: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.reopen_container_log_rpc(r.into_inner()).await?))
    }

    async fn exec_sync(&self, r: Request<v1::ExecSyncRequest>) -> Result<Response<v1::ExecSyncResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.exec_sync_rpc(r.into_inner()).await?))
    }

    async fn exec(&self, r: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.exec_rpc(r.into_inner()).await?))
    }

    async fn attach(&self, r: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.attach_rpc(r.into_inner()).await?))
    }

    async fn port_forward(
        &self,
        r: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        calls::sandbox(&r.get_ref().pod_sandbox_id);
        Ok(Response::new(self.port_forward_rpc(r.into_inner()).await?))
    }

    async fn container_stats(
        &self,
        r: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        Ok(Response::new(self.container_stats_rpc(r.into_inner()).await?))
    }

    async fn list_container_stats(
        &self,
        r: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        Ok(Response::new(self.list_container_stats_rpc(r.into_inner()).await?))
    }

    type StreamContainerStatsStream = Answers<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        r: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        Ok(Response::new(self.stream_container_stats_rpc(r.into_inner()).await?))
    }

    async fn pod_sandbox_stats(
        &self,
        r: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        Ok(Response::new(self.pod_sandbox_stats_rpc(r.into_inner()).await?))
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        Ok(Response::new(self.list_pod_sandbox_stats_rpc(r.into_inner()).await?))
    }

    type StreamPodSandboxStatsStream = Answers<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        Ok(Response::new(self.stream_pod_sandbox_stats_rpc(r.into_inner()).await?))
    }

    async fn update_runtime_config(
        &self,
        r: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        Ok(Response::new(self.update_runtime_config_rpc(r.into_inner()).await?))
    }

    async fn status(&self, r: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.status_rpc(r.into_inner()).await?))
    }

    async fn checkpoint_container(
        &self,
        r: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        calls::container(&r.get_ref().container_id);
        Ok(Response::new(self.checkpoint_container_rpc(r.into_inner()).await?))
    }

    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        r: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(self.get_container_events_rpc(r.into_inner()).await?))
    }

    async fn list_metric_descriptors(
        &self,
        r: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(self.list_metric_descriptors_rpc(r.into_inner()).await?))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        r: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        Ok(Response::new(self.list_pod_sandbox_metrics_rpc(r.into_inner()).await?))
    }

    type StreamPodSandboxMetricsStream = Answers<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        r: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        Ok(Response::new(self.stream_pod_sandbox_metrics_rpc(r.into_inner()).await?))
    }

    async fn runtime_config(
        &self,
        r: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        Ok(Response::new(self.runtime_config_rpc(r.into_inner()).await?))
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        calls::sandbox(&r.get_ref().pod_sandbox_id);
        Ok(Response::new(self.update_pod_sandbox_resources_rpc(r.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl ImageService for Cri {
    async fn list_images(&self, r: Request<v1::ListImagesRequest>) -> Result<Response<v1::ListImagesResponse>, Status> {
        Ok(Response::new(self.list_images_rpc(r.into_inner()).await?))
    }

    type StreamImagesStream = Answers<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        r: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Ok(Response::new(self.stream_images_rpc(r.into_inner()).await?))
    }

    async fn image_status(
        &self,
        r: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        Ok(Response::new(self.image_status_rpc(r.into_inner()).await?))
    }

    async fn pull_image(&self, r: Request<v1::PullImageRequest>) -> Result<Response<v1::PullImageResponse>, Status> {
        if let Some(image) = &r.get_ref().image {
            calls::named(&image.image);
        }
        Ok(Response::new(self.pull_image_rpc(r.into_inner()).await?))
    }

    async fn remove_image(
        &self,
        r: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        if let Some(image) = &r.get_ref().image {
            calls::named(&image.image);
        }
        Ok(Response::new(self.remove_image_rpc(r.into_inner()).await?))
    }

    async fn image_fs_info(
        &self,
        r: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        Ok(Response::new(self.image_fs_info_rpc(r.into_inner()).await?))
    }
}
