//! `coracle apply`: makes what runs what the documents say, and leaves alone what is so already.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::Engine;
use serde::Serialize;

use super::{rm, run, stop};
use crate::app::{App, Found};
use crate::exit::Coded;
use crate::kube::Documents;
use crate::kube::pod::Pod;
use crate::kube::workload::Kind;
use crate::objects::{AnyObject, Objects};
use crate::out::{self, Format};
use crate::pod::keep::Kept;
use crate::workload::input::Input;
use crate::workload::launch::{self, Started};
use crate::workload::{job, preview, store};

/// Make what runs what Kubernetes YAML says
///
/// Objects are made or changed; pods that are missing are started, those that have changed are stopped and started anew,
/// the others are left alone. Nothing else is removed (`coracle down` does that). When a pod cannot be started, all is
/// made as it was.
#[derive(Debug, Args)]
pub struct Apply {
    /// Only check the documents, and show what would run
    #[arg(long)]
    dry_run: bool,
    /// How it is told
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    input: Input,
}

/// What was done to one thing.
#[derive(Debug, Serialize)]
struct Done {
    name: String,
    namespace: String,
    change: &'static str,
}

/// What is to be done to pods.
#[derive(Default)]
struct Wish {
    /// To start; true for those that are there in another form.
    start: Vec<(Pod, bool)>,
    /// To remove: a workload has fewer now.
    remove: Vec<Found>,
    /// What is told.
    told: Vec<Done>,
}

impl Apply {
    /// Applies them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let documents = self.input.read()?;
        if let Some(prefix) = generated(&documents) {
            let text = format!("apply: generateName {prefix:?} makes a new name each time: use `coracle run`");
            return Err(Coded::usage(text));
        }
        if self.dry_run {
            preview::print(&documents, self.output)?;
            return Ok(ExitCode::SUCCESS);
        }
        let engine = app.engine()?;
        let puts = store::put(&engine, &documents).await?;
        let wish = wish(&engine, &Objects::open(engine.paths()), &documents)?;
        let pods: Vec<Pod> = wish.start.iter().map(|(pod, _)| pod.clone()).collect();
        let mut told: Vec<Done> = puts.changes().map(|(object, change)| done(object, change.as_str())).collect();
        told.extend(wish.told);
        if let Err(error) = start(app, &engine, wish.start).await {
            job::not_made(&engine, &pods)?;
            store::take_back(&engine, puts).await?;
            return Err(error);
        }
        for found in wish.remove {
            remove(&engine, &found).await?;
        }
        self.tell(&told)?;
        Ok(ExitCode::SUCCESS)
    }

    fn tell(&self, told: &[Done]) -> Result<()> {
        if self.output == Format::Json {
            return out::json(&told);
        }
        told.iter().try_for_each(|Done { name, change, .. }| out::line(format!("{name} {change}")))
    }
}

fn generated(documents: &Documents) -> Option<&String> {
    let pods = documents.pods.iter().filter_map(|pod| pod.generated.as_ref());
    let objects = documents.objects.iter().filter_map(|object| object.meta().generated.as_ref());
    let workloads = documents.workloads.iter().filter_map(|workload| workload.key.generated.as_ref());
    pods.chain(objects).chain(workloads).next()
}

fn done(object: &AnyObject, change: &'static str) -> Done {
    Done { name: object.to_string(), namespace: object.meta().namespace.clone(), change }
}

/// Compares what is there with what is wished for.
fn wish(engine: &Engine, objects: &Objects, documents: &Documents) -> Result<Wish> {
    let mut wish = Wish::default();
    for pod in &documents.pods {
        one(engine, objects, pod, &mut wish)?;
    }
    for workload in &documents.workloads {
        let pods = run::workload_pods(engine, workload)?;
        if !matches!(workload.kind, Kind::Job(_)) {
            let wanted = |found: &Found| {
                let name = found.kept.as_ref().map(|kept| &kept.pod.name);
                pods.iter().any(|pod| Some(&pod.name) == name)
            };
            let fewer = launch::owned(engine, workload)?.into_iter().filter(|found| !wanted(found));
            for found in fewer {
                if let Some(kept) = &found.kept {
                    wish.told.push(told(&kept.pod, "deleted"));
                }
                wish.remove.push(found);
            }
        }
        for pod in &pods {
            one(engine, objects, pod, &mut wish)?;
        }
    }
    Ok(wish)
}

fn told(pod: &Pod, change: &'static str) -> Done {
    Done { name: format!("pod/{}", pod.name), namespace: pod.namespace.clone(), change }
}

fn one(engine: &Engine, objects: &Objects, pod: &Pod, wish: &mut Wish) -> Result<()> {
    let mut admitted = pod.clone();
    launch::admit(objects, &mut admitted)?;
    let change = match launch::existing(engine, &pod.namespace, &pod.name)? {
        None => "created",
        Some(Found { kept: Some(kept), .. }) if kept.pod == admitted => "unchanged",
        Some(_) => "configured",
    };
    if change != "unchanged" {
        wish.start.push((pod.clone(), change == "configured"));
    }
    wish.told.push(told(pod, change));
    Ok(())
}

/// Starts the pods, each in the place of the one it replaces; all, or things are made as they were.
async fn start(app: &App, engine: &Engine, wished: Vec<(Pod, bool)>) -> Result<()> {
    let mut made: Vec<Started> = Vec::new();
    let mut replaced: Vec<Kept> = Vec::new();
    let mut error = None;
    for (pod, replaces) in wished {
        let name = pod.name.clone();
        match one_pod(app, engine, pod, replaces, &mut replaced, &mut made).await {
            Ok(started) => made.extend(started),
            Err(failed) => {
                error = Some(failed.context(format!("apply {name}")));
                break;
            }
        }
    }
    let Some(error) = error else {
        for started in made {
            let name = started.kept.pod.name.clone();
            launch::leave(app, started).await.with_context(|| format!("apply {name}"))?;
        }
        return Ok(());
    };
    launch::undo(engine, None, made).await;
    for kept in replaced {
        // Best effort: why the new one did not start is what matters.
        let never = async || std::future::pending::<anyhow::Error>().await;
        if let Ok(kept) = launch::prepare(app, engine, kept.pod, false).await
            && let Ok(started) = launch::start_all(app, engine, vec![kept], "restore", never).await
        {
            for started in started {
                let _ = launch::leave(app, started).await;
            }
        }
    }
    Err(error)
}

async fn one_pod(
    app: &App,
    engine: &Engine,
    pod: Pod,
    replaces: bool,
    replaced: &mut Vec<Kept>,
    made: &mut [Started],
) -> Result<Vec<Started>> {
    launch::wait_for_the_one_before(engine, &pod, made).await?;
    // Its images first: what runs is not stopped for one that cannot be had.
    let kept = launch::make_ready(app, engine, pod).await?;
    if replaces && let Some(found) = launch::existing(engine, &kept.pod.namespace, &kept.pod.name)? {
        remove(engine, &found).await?;
        replaced.extend(found.kept);
    }
    let never = async || std::future::pending::<anyhow::Error>().await;
    launch::start_all(app, engine, vec![kept], "start", never).await
}

/// Stops a pod within its grace and removes it.
pub(super) async fn remove(engine: &Engine, found: &Found) -> Result<()> {
    stop::stop(engine, found, None).await?;
    rm::remove(engine, found).await
}
