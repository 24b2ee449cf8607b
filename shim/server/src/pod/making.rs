//! What a container needs before it can be made: its volumes and its image. Whoever tends the pod asks for it
//! at each start.

use std::fmt;

use anyhow::Result;
use coracle_engine::{ContainerConfig, Engine};

use super::keep::Kept;
use super::plan;
use crate::app::App;
use crate::kube::container::Container;

/// Why a container cannot be made now, though it may be later: it waits, whatever its restart policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// One word, as the container's waiting state has it.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
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
    /// Prepares all that the container needs, and says what it is to be. An error that is [`Blocked`] may pass.
    pub async fn config(&self) -> Result<ContainerConfig> {
        let Making { kept, container, .. } = self;
        let volumes = self.engine.paths().volumes(self.sandbox);
        let empty_dir = |name: &str| Ok(self.engine.make_volume(self.sandbox, name).map(drop)?);
        plan::prepare_volumes(&kept.pod, empty_dir)?;
        let image = kept.images.get(&container.name).map(String::as_str).unwrap_or(&container.image);
        plan::container(&kept.pod, container, self.attempt, image, &volumes)
    }
}
