//! `coracle describe`: all that is worth knowing of pods, and what happened to them.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{Engine, SandboxFilter};

use crate::app::{App, Found};
use crate::out;
use crate::pod::describe::{self, Subject};
use crate::pod::events;
use crate::pod::keep::Folder;
use crate::pod::select::{self, Selector};
use crate::pod::view::PodView;

/// Tell all that is worth knowing of pods, and what happened to them
///
/// In the form of `kubectl describe pod`.
#[derive(Debug, Args)]
pub struct Describe {
    /// The pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// Names or ids [default: all]
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

impl Describe {
    /// Tells it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let pods = match (self.pods.as_slice(), &self.selector) {
            ([], None) => all(&engine)?,
            (names, selector) => select::pods(&engine, names, selector.as_ref())?,
        };
        let mut texts = Vec::new();
        for found in &pods {
            texts.push(text(&engine, found).await.with_context(|| format!("describe {}", found.sandbox))?);
        }
        match texts.is_empty() {
            true => out::line("no pods")?,
            // Each ends with a line's end.
            false => out::line(texts.join("\n\n").trim_end())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn all(engine: &Engine) -> Result<Vec<Found>> {
    let sandboxes = engine.list_sandboxes(&SandboxFilter::default())?.into_iter();
    let found = |sandbox: coracle_engine::SandboxStatus| {
        let folder = Folder::of(engine.paths(), &sandbox.id);
        let kept = folder.read_pod()?;
        Ok(Found { sandbox: sandbox.id, folder, kept })
    };
    sandboxes.map(found).collect()
}

async fn text(engine: &Engine, found: &Found) -> Result<String> {
    let sandbox = engine.sandbox_status(&found.sandbox)?;
    let view = PodView::of(engine, &sandbox).await?;
    let node = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let annotations: Vec<(String, String)> =
        sandbox.config.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let events = events::of(engine.paths(), &view.uid)?;
    Ok(describe::text(&Subject {
        view: &view,
        kept: found.kept.as_ref(),
        node: &node,
        annotations: &annotations,
        events: &events,
    }))
}
