//! `coracle inspect`: all that is recorded of pods, containers and images, as JSON.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{Engine, record};
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::exit::{self, Coded};
use crate::out;
use crate::pod::events;
use crate::pod::view::PodView;

/// Tell all that is recorded of pods, containers or images, as JSON
///
/// What a name means is tried in this order: a pod, a container's id, an image. The form follows the records, which
/// grow: scripts rely on `coracle ps -o json` instead.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Inspect {
    /// Tells it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let mut all = Vec::new();
        for name in &self.names {
            all.push(one(&engine, name).await.with_context(|| format!("inspect {name}"))?);
        }
        out::json(&all)?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn one(engine: &Engine, name: &str) -> Result<Value> {
    let none = |error: &anyhow::Error| exit::code(error) == exit::NOT_FOUND;
    match app::find(engine, name) {
        Ok(found) => return pod(engine, &found.sandbox).await,
        Err(error) if !none(&error) => return Err(error),
        Err(_) => {}
    }
    match engine.find_container(name).map_err(anyhow::Error::from) {
        Ok((sandbox, id)) => return container(engine, &sandbox, &id),
        Err(error) if !none(&error) => return Err(error),
        Err(_) => {}
    }
    match engine.store().image(name) {
        Ok(Some(image)) => Ok(json!({
            "kind": "Image",
            "id": image.id.to_string(),
            "manifest": image.manifest().to_string(),
            "names": image.names,
            "repoDigests": image.repo_digests,
            "size": image.size,
            "created": image.created,
            "pinned": image.pinned,
            "layers": image.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "config": image.config,
        })),
        _ => Err(Coded::error(exit::NOT_FOUND, "no pod, no container and no image is called so")),
    }
}

async fn pod(engine: &Engine, sandbox: &str) -> Result<Value> {
    let status = engine.sandbox_status(sandbox)?;
    let dir = engine.paths().pod(sandbox);
    let containers: Result<Vec<Value>> =
        record::ids_in(&dir.join("containers"))?.iter().map(|id| container(engine, sandbox, id)).collect();
    Ok(json!({
        "kind": "Pod",
        "view": PodView::of(engine, &status).await?,
        "status": status,
        "pod": read(&dir.join("pod.json"))?,
        "tended": read(&dir.join("tend.json"))?,
        "record": read(&dir.join(record::FILE))?,
        "containers": containers?,
        "machine": machine(&dir)?,
        "events": events::of(engine.paths(), &status.config.uid)?,
    }))
}

/// What there is of a pod's virtual machine.
fn machine(dir: &Path) -> Result<Option<Value>> {
    let folder = dir.join("vm");
    if !folder.is_dir() {
        return Ok(None);
    }
    let (machine, disks) = (read(&folder.join("machine.json"))?, read(&folder.join("disks.json"))?);
    Ok(Some(json!({ "folder": folder, "machine": machine, "disks": disks, "console": folder.join("console.log") })))
}

fn container(engine: &Engine, sandbox: &str, id: &str) -> Result<Value> {
    let dir = engine.paths().container(sandbox, id);
    Ok(json!({
        "kind": "Container",
        "status": engine.container_status(id)?,
        "record": read(&dir.join(record::FILE))?,
        "exit": read(&dir.join("exit.json"))?,
        "bundle": dir,
    }))
}

fn read(path: &Path) -> Result<Option<Value>> {
    Ok(record::read_json(path)?)
}
