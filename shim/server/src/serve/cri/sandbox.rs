//! Pod sandboxes: made, stopped, removed, looked at.

use coracle_engine::{Error, SandboxConfig, SandboxState, SandboxStatus};
use coracle_proto::cri as v1;
use tonic::{Code, Status};

use super::{Answers, Cri, convert, fault, filter, once, verbose};

impl Cri {
    pub(super) async fn run_pod_sandbox_rpc(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse, Status> {
        let mut config = convert::sandbox::config(request)?;
        config.log_max_bytes = self.app().config.serve.log_max_bytes;
        let key = format!("{}/{}/{}/{}", config.namespace, config.name, config.uid, config.attempt);
        let cri = self.clone();
        let pod_sandbox_id = self.shared.creations.run(key, async move { cri.run_sandbox(config).await }).await?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
    }

    /// Makes the sandbox, or finds it made: by an earlier call whose client went away before it was answered.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String, Status> {
        let handler = config.handler.clone();
        match self.engine().run_sandbox(config).await {
            Ok(status) => Ok(status.id),
            Err(Error::Exists { kind, name, id }) => {
                let found = self.engine().sandbox_status(&id).map_err(fault::engine)?;
                match found.state {
                    SandboxState::Ready if found.config.handler == handler => Ok(id),
                    SandboxState::Creating => {
                        Err(fault::status(Code::Aborted, format!("sandbox {name}: another process is making it")))
                    }
                    _ => Err(fault::engine(Error::Exists { kind, name, id })),
                }
            }
            Err(e) => Err(fault::engine(e)),
        }
    }

    pub(super) async fn stop_pod_sandbox_rpc(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, Status> {
        // What is not there is stopped.
        if let Some(id) = filter::sandbox(self.engine(), "pod_sandbox_id", &request.pod_sandbox_id)? {
            let engine = self.engine().clone();
            once::to_the_end(async move { engine.stop_sandbox(&id).await.map_err(fault::engine) }).await?;
        }
        Ok(v1::StopPodSandboxResponse {})
    }

    pub(super) async fn remove_pod_sandbox_rpc(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, Status> {
        // What is not there is removed.
        if let Some(id) = filter::sandbox(self.engine(), "pod_sandbox_id", &request.pod_sandbox_id)? {
            let engine = self.engine().clone();
            once::to_the_end(async move { engine.remove_sandbox(&id).await.map_err(fault::engine) }).await?;
        }
        Ok(v1::RemovePodSandboxResponse {})
    }

    pub(super) async fn pod_sandbox_status_rpc(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, Status> {
        let id = filter::known_sandbox(self.engine(), &request.pod_sandbox_id)?;
        let (status, containers_statuses) = self.sandbox_and_containers(&id)?;
        if filter::shown_sandbox(status.state).is_none() {
            return Err(filter::absent("sandbox", &id));
        }
        let info = match request.verbose {
            true => verbose::sandbox(self.engine(), &status)?,
            false => Default::default(),
        };
        Ok(v1::PodSandboxStatusResponse {
            status: Some(convert::sandbox::status(&status)),
            info,
            containers_statuses,
            timestamp: coracle_engine::record::now(),
        })
    }

    /// A sandbox with its containers, as kubelet wants them in one piece; events carry the same.
    pub(super) fn sandbox_and_containers(&self, id: &str) -> Result<(SandboxStatus, Vec<v1::ContainerStatus>), Status> {
        let status = self.engine().sandbox_status(id).map_err(fault::engine)?;
        let of_it = v1::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
        let containers = filter::containers(self.engine(), Some(of_it))?;
        Ok((status, containers.iter().map(convert::container::status).collect()))
    }

    pub(super) async fn list_pod_sandbox_rpc(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, Status> {
        Ok(v1::ListPodSandboxResponse { items: self.listed_sandboxes(request.filter).await? })
    }

    pub(super) async fn stream_pod_sandboxes_rpc(
        &self,
        request: v1::StreamPodSandboxesRequest,
    ) -> Result<Answers<v1::StreamPodSandboxesResponse>, Status> {
        let items = self.listed_sandboxes(request.filter).await?;
        Ok(filter::batches(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn listed_sandboxes(&self, wanted: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>, Status> {
        let engine = self.engine().clone();
        let list = super::blocking(move || filter::sandboxes(&engine, wanted)).await?;
        Ok(list.into_iter().map(convert::sandbox::listed).collect())
    }

    pub(super) async fn update_pod_sandbox_resources_rpc(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
        let id = filter::known_sandbox(self.engine(), &request.pod_sandbox_id)?;
        let changes = |field: &str, given: Option<v1::LinuxContainerResources>| {
            given.map(|given| convert::resources::changes(field, given)).transpose()
        };
        let (overhead, limits) = (changes("overhead", request.overhead)?, changes("resources", request.resources)?);
        let engine = self.engine().clone();
        let work = async move { engine.update_sandbox(&id, overhead, limits).await.map_err(fault::engine) };
        once::to_the_end(work).await?;
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}
