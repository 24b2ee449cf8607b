//! Containers: made, started, stopped, removed, looked at, changed.

use std::time::Duration;

use coracle_engine::{ContainerConfig, ContainerState, Error};
use coracle_proto::cri as v1;
use coracle_rootfs::Store;
use tonic::{Code, Status};

use crate::serve::inject;

use super::{Answers, Cri, convert, fault, filter, once, verbose};

impl Cri {
    pub(super) async fn create_container_rpc(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, Status> {
        let (sandbox, pod) = filter::sandbox_and_config(self.engine(), &request.pod_sandbox_id)?;
        let config = convert::container::config(request.config, &pod)?;
        let key = format!("{sandbox}/{}/{}", config.name, config.attempt);
        let cri = self.clone();
        let work = async move { cri.create_container_in(sandbox, config).await };
        let container_id = self.shared.creations.run(key, work).await?;
        Ok(v1::CreateContainerResponse { container_id })
    }

    /// Makes the container, or finds it made: by an earlier call whose client went away before it was answered.
    async fn create_container_in(&self, sandbox: String, mut config: ContainerConfig) -> Result<String, Status> {
        if let Some(target) = convert::container::target(&config) {
            let known = self.engine().container_status(target).is_ok_and(|status| status.sandbox_id == sandbox);
            if !known {
                let field = "config.linux.security_context.namespace_options.target_id";
                return Err(fault::invalid(field, format!("the pod has no container {target:?}")));
            }
        }
        let (app, engine, pod) = (self.app(), self.engine().clone(), sandbox.clone());
        config = super::blocking(move || {
            let mut config = resolve_images(engine.store(), config)?;
            if app.config.serve.inject_env {
                let pod = engine.sandbox_status(&pod).map_err(fault::engine)?;
                inject::apply(&app, &pod, &mut config)
                    .map_err(|e| fault::status(Code::FailedPrecondition, format!("inject_env: {e:#}")))?;
            }
            Ok(config)
        })
        .await?;
        let image = config.image.clone();
        match self.engine().create_container(&sandbox, config).await {
            Ok(id) => Ok(id),
            Err(Error::Exists { kind, name, id }) => {
                let found = self.engine().container_status(&id).map_err(fault::engine)?;
                match found.state {
                    ContainerState::Created if found.config.image == image => Ok(id),
                    ContainerState::Creating => {
                        Err(fault::status(Code::Aborted, format!("container {name}: another process is making it")))
                    }
                    _ => Err(fault::engine(Error::Exists { kind, name, id })),
                }
            }
            Err(e) => Err(fault::engine(e)),
        }
    }

    pub(super) async fn start_container_rpc(
        &self,
        request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse, Status> {
        let id = filter::known_container(self.engine(), &request.container_id)?;
        let engine = self.engine().clone();
        once::to_the_end(async move { engine.start_container(&id).await.map_err(fault::engine) }).await?;
        Ok(v1::StartContainerResponse {})
    }

    pub(super) async fn stop_container_rpc(
        &self,
        request: v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse, Status> {
        let grace = u64::try_from(request.timeout)
            .map_err(|_| fault::invalid("timeout", format!("{} is negative", request.timeout)))?;
        // What is not there is stopped.
        if let Some(id) = filter::container(self.engine(), &request.container_id)? {
            let engine = self.engine().clone();
            let grace = Duration::from_secs(grace);
            once::to_the_end(async move { engine.stop_container(&id, grace).await.map_err(fault::engine) }).await?;
        }
        Ok(v1::StopContainerResponse {})
    }

    pub(super) async fn remove_container_rpc(
        &self,
        request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, Status> {
        // What is not there is removed.
        if let Some(id) = filter::container(self.engine(), &request.container_id)? {
            let engine = self.engine().clone();
            once::to_the_end(async move { engine.remove_container(&id).await.map_err(fault::engine) }).await?;
        }
        Ok(v1::RemoveContainerResponse {})
    }

    pub(super) async fn list_containers_rpc(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse, Status> {
        Ok(v1::ListContainersResponse { containers: self.listed_containers(request.filter).await? })
    }

    pub(super) async fn stream_containers_rpc(
        &self,
        request: v1::StreamContainersRequest,
    ) -> Result<Answers<v1::StreamContainersResponse>, Status> {
        let items = self.listed_containers(request.filter).await?;
        Ok(filter::batches(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn listed_containers(&self, wanted: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>, Status> {
        let engine = self.engine().clone();
        let list = super::blocking(move || filter::containers(&engine, wanted)).await?;
        Ok(list.into_iter().map(convert::container::listed).collect())
    }

    pub(super) async fn container_status_rpc(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, Status> {
        let id = filter::known_container(self.engine(), &request.container_id)?;
        let status = self.engine().container_status(&id).map_err(fault::engine)?;
        if filter::shown_container(&status).is_none() {
            return Err(filter::absent("container", &id));
        }
        let info = match request.verbose {
            true => verbose::container(self.engine(), &status)?,
            false => Default::default(),
        };
        Ok(v1::ContainerStatusResponse { status: Some(convert::container::status(&status)), info })
    }

    pub(super) async fn update_container_resources_rpc(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, Status> {
        let id = filter::known_container(self.engine(), &request.container_id)?;
        if request.windows.is_some() {
            return Err(fault::invalid("windows", "this node runs Linux"));
        }
        let wanted = request.linux.ok_or_else(|| fault::invalid("linux", "is missing"))?;
        let changes = convert::resources::changes("linux", wanted)?;
        let engine = self.engine().clone();
        once::to_the_end(async move { engine.update_container(&id, &changes).await.map_err(fault::engine) }).await?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    pub(super) async fn reopen_container_log_rpc(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, Status> {
        let id = filter::known_container(self.engine(), &request.container_id)?;
        self.engine().reopen_log(&id).await.map_err(fault::engine)?;
        Ok(v1::ReopenContainerLogResponse {})
    }

    pub(super) async fn checkpoint_container_rpc(
        &self,
        _request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse, Status> {
        Err(Status::unimplemented("CheckpointContainer is not built yet"))
    }
}

/// Replaces the images' names by the ids that they mean now, so that a name that moves later changes nothing.
fn resolve_images(store: &Store, mut config: ContainerConfig) -> Result<ContainerConfig, Status> {
    let id = |field: String, name: &str| match store.image(name) {
        Ok(Some(image)) => Ok(image.id.to_string()),
        Ok(None) => Err(fault::status(Code::NotFound, format!("{field}: image {name} is not on this node"))),
        Err(e) => Err(fault::image(e.context(field))),
    };
    config.image = id("config.image.image".into(), &config.image)?;
    for (i, mount) in config.mounts.iter_mut().enumerate() {
        if let Some(name) = &mount.image {
            mount.image = Some(id(format!("config.mounts[{i}].image.image"), name)?);
        }
    }
    Ok(config)
}
