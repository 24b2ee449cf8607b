//! `coracle rm`: removes pods with their logs, writable layers and emptyDirs.

use std::fs;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::lock::LifeLock;
use coracle_engine::{ContainerFilter, ContainerState, Engine};

use super::first_error;
use super::stop::kill;
use crate::app::{self, App, Found};
use crate::exit::{self, Coded};
use crate::service;

/// Remove pods
///
/// With them go their logs, what their containers wrote, and their emptyDirs.
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill what runs; and a pod that does not exist is not an error
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

impl Rm {
    /// Removes them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let mut results = Vec::new();
        for pod in &self.pods {
            let result = self.one(&engine, pod).await;
            let ignored = self.force && result.as_ref().is_err_and(|error| exit::code(error) == exit::NOT_FOUND);
            results.push((format!("rm {pod}"), if ignored { Ok(()) } else { result }));
        }
        first_error(results)
    }

    async fn one(&self, engine: &Engine, pod: &str) -> Result<()> {
        let found = app::find(engine, pod)?;
        let filter = ContainerFilter { sandbox_id: found.sandbox.clone(), ..ContainerFilter::default() };
        let containers = engine.list_containers(&filter)?;
        let runs = |state| matches!(state, ContainerState::Running | ContainerState::Unknown);
        if !self.force && containers.iter().any(|status| runs(status.state)) {
            let text = format!("it is running (`coracle stop {pod}` first, or `coracle rm -f {pod}`)");
            return Err(Coded::error(exit::CONFLICT, text));
        }
        remove(engine, &found).await
    }
}

/// Removes a pod; what runs of it is killed.
pub async fn remove(engine: &Engine, found: &Found) -> Result<()> {
    kill(engine, found).await?;
    // Whoever tends it sees the wish to stop and leaves; until then it may still be writing into what goes here.
    let _tender = last_tender(engine, &found.sandbox).await;
    let logs = engine.sandbox_status(&found.sandbox)?.config.log_directory;
    // Before the pod, or nobody would know of them after a crash in between. Only what we laid out ourselves: over CRI the
    // logs are the client's.
    if let Some(dir) = logs.filter(|_| found.kept.is_some()) {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the logs {}", dir.display()));
            }
            _ => {}
        }
    }
    engine.remove_sandbox(&found.sandbox).await?;
    service::refresh(engine).await
}

/// Waits until nobody tends the pod any more, and holds that off. One who does not leave is not waited for for ever.
async fn last_tender(engine: &Engine, sandbox: &str) -> Option<LifeLock> {
    const PATIENCE: Duration = Duration::from_secs(3);
    const LOOK: Duration = Duration::from_millis(10);
    let taken = async {
        loop {
            match engine.tend(sandbox) {
                Ok(None) => tokio::time::sleep(LOOK).await,
                Ok(lock) => return lock,
                // A pod that is gone already; what follows says so.
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap_or(None)
}
