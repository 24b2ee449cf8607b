//! `coracle down`: stops and removes what the documents name.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::Engine;
use serde::Serialize;

use super::{rm, stop};
use crate::app::{App, Found};
use crate::exit::Coded;
use crate::objects::{AnyObject, Objects};
use crate::out::{self, Format};
use crate::pod::volume::claim;
use crate::service;
use crate::workload::input::Input;
use crate::workload::{job, launch};

/// Stop and remove what Kubernetes YAML names
///
/// The pods and workloads of the documents are stopped and removed, then the objects. Claims and volumes stay, unless
/// --volumes asks for it. What is not there is no error.
#[derive(Debug, Args)]
pub struct Down {
    /// Seconds until SIGKILL, instead of each pod's terminationGracePeriodSeconds
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Also delete PersistentVolumeClaims and PersistentVolumes, with the data of claims that have directories of ours
    #[arg(long)]
    volumes: bool,
    /// How it is told
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    input: Input,
}

/// What was deleted.
#[derive(Debug, Serialize)]
struct Deleted {
    name: String,
    namespace: String,
}

impl Down {
    /// Takes it down.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let documents = self.input.read()?;
        let generated = documents.pods.iter().find_map(|pod| pod.generated.as_ref());
        if let Some(prefix) = generated {
            let text = format!("down: generateName {prefix:?} is no name: `coracle rm` the pods by theirs");
            return Err(Coded::usage(text));
        }
        let engine = app.engine()?;
        let objects = Objects::open(engine.paths());
        let mut deleted = Vec::new();
        // Those that came later go first, as what they stand on stands longest.
        for workload in documents.workloads.iter().rev() {
            let mut found = launch::owned(&engine, workload)?;
            found.reverse();
            let stored = AnyObject::Workload(workload.clone());
            let was_there = stored.stored(&objects)?.is_some() || !found.is_empty();
            // Before its pods: what ends makes no next one.
            job::forget(&objects, workload)?;
            for found in found {
                self.pod(&engine, &found, &mut deleted).await?;
            }
            if was_there {
                deleted.push(Deleted { name: stored.to_string(), namespace: workload.namespace().to_owned() });
            }
        }
        for pod in documents.pods.iter().rev() {
            if let Some(found) = launch::existing(&engine, &pod.namespace, &pod.name)? {
                self.pod(&engine, &found, &mut deleted).await?;
            }
        }
        let claims = documents.workloads.iter().flat_map(|workload| workload.claims());
        let claims: Vec<AnyObject> = claims.map(AnyObject::PersistentVolumeClaim).collect();
        for object in documents.objects.iter().rev().chain(&claims) {
            self.object(&engine, &objects, object, &mut deleted)?;
        }
        service::refresh(&engine).await?;
        self.tell(&deleted)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn pod(&self, engine: &Engine, found: &Found, deleted: &mut Vec<Deleted>) -> Result<()> {
        let Some(kept) = &found.kept else { return Ok(()) };
        let (name, namespace) = (format!("pod/{}", kept.pod.name), kept.pod.namespace.clone());
        let gone = async {
            stop::stop(engine, found, self.time.map(Duration::from_secs)).await?;
            rm::remove(engine, found).await
        };
        gone.await.with_context(|| format!("down {name}"))?;
        deleted.push(Deleted { name, namespace });
        Ok(())
    }

    fn object(&self, engine: &Engine, objects: &Objects, object: &AnyObject, deleted: &mut Vec<Deleted>) -> Result<()> {
        let is_volume = matches!(object, AnyObject::PersistentVolumeClaim(_) | AnyObject::PersistentVolume(_));
        if is_volume && !self.volumes {
            return Ok(());
        }
        if object.delete(objects)? {
            if let AnyObject::PersistentVolumeClaim(claim) = object {
                claim::discard(engine.paths(), &claim.meta.namespace, &claim.meta.name)?;
            }
            deleted.push(Deleted { name: object.to_string(), namespace: object.meta().namespace.clone() });
        }
        Ok(())
    }

    fn tell(&self, deleted: &[Deleted]) -> Result<()> {
        if self.output == Format::Json {
            return out::json(&deleted);
        }
        deleted.iter().try_for_each(|one| out::line(format!("{} deleted", one.name)))
    }
}
