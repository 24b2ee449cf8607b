//! `coracle stop`: ends the containers of pods.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{ContainerFilter, ContainerState, Engine};
use tokio::task::JoinSet;

use super::first_error;
use crate::app::{self, App, Found};
use crate::pod::events::{On, Recorder};
use crate::pod::tender::{Tender, Unwatched};
use crate::service;

/// Stop pods
///
/// Each container gets its stop signal, and SIGKILL when the grace period of the pod is over. The pod's logs and exit
/// codes stay until `coracle rm`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds until SIGKILL, instead of the pod's terminationGracePeriodSeconds
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Names or ids
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

impl Stop {
    /// Stops them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let mut results = Vec::new();
        for pod in &self.pods {
            let result = self.one(&engine, pod).await;
            results.push((format!("stop {pod}"), result));
        }
        first_error(results)
    }

    async fn one(&self, engine: &Engine, pod: &str) -> Result<()> {
        let found = app::find(engine, pod)?;
        stop(engine, &found, self.time.map(Duration::from_secs)).await
    }
}

/// The grace of a pod that another client made and whose is not known.
const FOREIGN_GRACE: Duration = Duration::from_secs(10);
/// How long whoever tends the pod may take beyond the grace.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often is looked whether that one is done.
const LOOK: Duration = Duration::from_millis(20);

/// Stops a pod: nothing of it starts again, its containers end, and then the sandbox. Whoever tends the pod does it;
/// if nobody does, this process, and it takes over from one that dies meanwhile. Without any grace all is killed.
pub async fn stop(engine: &Engine, found: &Found, grace: Option<Duration>) -> Result<()> {
    let Some(kept) = &found.kept else {
        return kill_all(engine, found, grace.unwrap_or(FOREIGN_GRACE)).await;
    };
    let own = Duration::from_secs(kept.pod.grace);
    found.folder.ask_to_stop(own, grace)?;
    // No more traffic while it ends.
    service::refresh(engine).await?;
    let grace = grace.unwrap_or(own);
    if grace.is_zero() {
        return kill(engine, found).await;
    }
    let deadline = tokio::time::Instant::now() + grace + PATIENCE;
    loop {
        match Tender::take_to_stop(engine, &found.sandbox, kept.clone()) {
            Ok(Some(mut tender)) => {
                tender.tend(true, &mut Unwatched).await?;
                return service::refresh(engine).await;
            }
            Ok(None) => {}
            // It was removed meanwhile.
            Err(_) if !found.folder.path().exists() => return Ok(()),
            Err(error) => return Err(error),
        }
        if tokio::time::Instant::now() >= deadline {
            return kill(engine, found).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Kills a pod at once: nothing of it starts again.
pub async fn kill(engine: &Engine, found: &Found) -> Result<()> {
    if let Some(kept) = &found.kept {
        found.folder.ask_to_stop(Duration::from_secs(kept.pod.grace), Some(Duration::ZERO))?;
    }
    kill_all(engine, found, Duration::ZERO).await
}

/// Ends what runs of a sandbox side by side, and then the sandbox.
async fn kill_all(engine: &Engine, found: &Found, grace: Duration) -> Result<()> {
    let filter = ContainerFilter { sandbox_id: found.sandbox.clone(), ..ContainerFilter::default() };
    let mut stops = JoinSet::new();
    for status in engine.list_containers(&filter)? {
        if matches!(status.state, ContainerState::Running | ContainerState::Created) {
            if let Some(kept) = &found.kept {
                let (name, recorder) = (&status.config.name, Recorder::of(engine.paths(), kept));
                recorder.normal(On::container(&kept.pod, name), "Killing", format!("Stopping container {name}"));
            }
            let engine = engine.clone();
            stops.spawn_local(async move {
                let stopped = engine.stop_container(&status.id, grace).await;
                stopped.with_context(|| format!("container {}", status.config.name))
            });
        }
    }
    let mut first = Ok(());
    while let Some(joined) = stops.join_next().await {
        let result = joined.context("stop a container")?;
        first = first.and(result);
    }
    first?;
    engine.stop_sandbox(&found.sandbox).await?;
    service::refresh(engine).await
}
