//! What a container needs before it can be made: its environment, its volumes and its image, in kubelet's order and with
//! kubelet's reasons for its waiting. Whoever tends the pod asks for it at each start.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use coracle_engine::{ContainerConfig, Engine};

use super::events::{On, Recorder};
use super::facts::Facts;
use super::images::{Pulls, Wanted};
use super::keep::Kept;
use super::volume::Volumes;
use super::{env, images, plan, secure};
use crate::app::App;
use crate::kube::container::Container;
use crate::objects::Objects;
use crate::service;
use crate::time::{self, SECOND};

/// After this long, what blocked a container is looked at again: as kubelet does after an error.
const RETRY: i64 = 10 * SECOND;

/// Why a container cannot be made now, though it may be later: it waits, whatever its restart policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// One word, as the container's waiting state has it.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// When to try again.
    pub retry_at: i64,
    /// Only another Pod or image would help: a pod's first start fails by it. Later it waits like any.
    pub lasting: bool,
}

impl Blocked {
    /// Blocked for the usual time.
    pub fn new(reason: &'static str, message: String) -> Blocked {
        Blocked { reason, message, retry_at: time::now().saturating_add(RETRY), lasting: false }
    }

    /// The same by what cannot heal by itself.
    pub fn lasting(reason: &'static str, message: String) -> Blocked {
        Blocked { lasting: true, ..Blocked::new(reason, message) }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Blocked {}

/// A container that is about to be made.
pub struct Making<'m> {
    /// Registries and settings.
    pub app: &'m App,
    /// Where it will run.
    pub engine: &'m Engine,
    /// Its sandbox.
    pub sandbox: &'m str,
    /// Its pod.
    pub kept: &'m Kept,
    /// The container.
    pub container: &'m Container,
    /// How often it was made before.
    pub attempt: u32,
}

impl Making<'_> {
    /// Prepares all that the container needs, and says what it is to be. An error that is [`Blocked`] may pass; it is
    /// among the pod's events already.
    pub async fn config(&self, pulls: &mut Pulls) -> Result<ContainerConfig> {
        let Making { app, engine, sandbox, kept, container, attempt } = *self;
        let (pod, recorder) = (&kept.pod, Recorder::of(engine.paths(), kept));
        let on = On::container(pod, &container.name);
        let objects = Objects::open(engine.paths());
        let status = engine.sandbox_status(sandbox)?;
        let services = service::variables(&objects, &pod.namespace, pod.service_links)?;
        let facts = Facts { pod, uid: &kept.uid, objects: &objects, ips: &status.ips, services };
        let volumes = Volumes { engine, sandbox, facts: &facts, namespace: status.config.user_namespace.as_ref() };
        volumes.prepare().inspect_err(|error| match error.downcast_ref::<Blocked>() {
            Some(blocked) => recorder.warning(On::Pod, "FailedMount", &blocked.message),
            None => recorder.warning(On::Pod, "FailedMount", format!("{error:#}")),
        })?;

        let (image, of_volumes) = self.images(&objects, &recorder, pulls).await?;
        let told = |error: &anyhow::Error| {
            if let Some(blocked) = error.downcast_ref::<Blocked>() {
                recorder.warning(on, "Failed", format!("Error: {}", blocked.message));
            }
        };
        let user = engine.store().image(&image)?.and_then(|image| image.config.config().as_ref()?.user().clone());
        if let Some(why) = secure::root_refused(pod, &kept.uid, container, &user.unwrap_or_default()) {
            let blocked = Blocked::lasting("CreateContainerConfigError", why).into();
            told(&blocked);
            return Err(blocked);
        }
        let composed = env::compose(container, &facts).inspect_err(told)?;
        for sentence in &composed.skipped {
            recorder.warning(On::Pod, "InvalidEnvironmentVariableNames", sentence);
        }
        let features = app.handlers()?.features(&status.config.handler).await?;
        let deep = features.recursive_read_only_mounts;
        let mounts = volumes.mounts(container, &composed.env, &of_volumes, deep).inspect_err(told)?;
        let mut config = plan::container(pod, container, attempt, &image)?;
        (config.command, config.args, config.env) = (composed.command, composed.args, composed.env);
        config.mounts = mounts;
        Ok(config)
    }

    /// The container's image, and those of the volumes that it mounts, by volume.
    async fn images(
        &self,
        objects: &Objects,
        recorder: &Recorder,
        pulls: &mut Pulls,
    ) -> Result<(String, BTreeMap<String, String>)> {
        let Making { kept, container, attempt, .. } = *self;
        let mut of_volumes = BTreeMap::new();
        for (volume, wanted) in images::of_volumes(&kept.pod, container) {
            let id = images::at_start(self.app, self.engine, objects, &kept.pod, recorder, wanted, pulls).await?;
            of_volumes.insert(volume.to_owned(), id);
        }
        // What `run` has just brought here is not asked for again at the first start.
        if let (0, Some(id)) = (attempt, kept.images.get(&container.name))
            && self.engine.store().image(id)?.is_some()
        {
            return Ok((id.clone(), of_volumes));
        }
        let wanted = Wanted { image: &container.image, policy: container.pull, container: &container.name };
        let id = images::at_start(self.app, self.engine, objects, &kept.pod, recorder, wanted, pulls).await?;
        Ok((id, of_volumes))
    }
}
