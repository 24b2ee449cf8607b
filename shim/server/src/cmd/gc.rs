//! `coracle gc`: clears what crashes have left, and what of the image store nothing uses.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::{Engine, EngineConfig, Finding};
use coracle_rootfs::{GcOptions, GcReport};

use crate::app::App;
use crate::{exit, out, service};

/// Remove what crashes and removals have left, and layers that nothing uses
///
/// Only what is proven dead is removed: a pod whose supervisor lives is left alone, whether it answers or not. Images
/// stay as long as they have a name, and the pods' bridge stays, unless --all is given.
#[derive(Debug, Args)]
pub struct Gc {
    /// Images that no container uses, and the pods' bridge if there are none, too
    #[arg(short, long)]
    all: bool,
    /// Only tell what would go
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Gc {
    /// Clears it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let cleared = match self.dry_run {
            true => tell(&engine).await?,
            false => clear(&engine).await?,
        };
        if !self.dry_run {
            remove_empty_parent(&engine.config().cgroup_parent, &engine);
        }
        if self.all && !self.dry_run && engine.network().remove()? {
            out::line(format!("removed bridge {}", engine.network().bridge()))?;
        }
        if !self.dry_run {
            // What it found of Services, and their DNS server if it died.
            service::refresh(&engine).await?;
        }
        let options = GcOptions { dry_run: self.dry_run, dangling_images: true, unused_images: self.all };
        self.report(&engine.store().gc(&options)?)?;
        Ok(ExitCode::from(if cleared { exit::OK } else { exit::ERROR }))
    }

    fn report(&self, report: &GcReport) -> Result<()> {
        let verb = if self.dry_run { "would remove" } else { "removed" };
        report.images.iter().try_for_each(|id| out::line(format!("{verb} image {id}")))?;
        let counted = |count: usize, what: &str| match count {
            0 => None,
            1 => Some(format!("1 {what}")),
            _ => Some(format!("{count} {what}s")),
        };
        let parts = [counted(report.layers.len(), "layer"), counted(report.erofs.len(), "EROFS image")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => Ok(()),
            false => out::line(format!("{verb} {} ({})", parts.join(" and "), out::size(report.bytes))),
        }
    }
}

/// Removes the cgroup of a state's pods when there are none: a scratch state leaves nothing behind. The kernel refuses
/// if it is in use.
fn remove_empty_parent(parent: &str, engine: &Engine) {
    let empty = fs::read_dir(engine.paths().pods()).is_ok_and(|mut pods| pods.next().is_none());
    if !empty || parent == EngineConfig::default().cgroup_parent {
        return;
    }
    let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|tree| tree.path());
    for tree in trees.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let _ = fs::remove_dir(tree.join(parent.trim_start_matches('/')));
    }
}

async fn tell(engine: &Engine) -> Result<bool> {
    let findings = engine.doctor().await?;
    findings
        .iter()
        .filter(|finding| finding.clearable())
        .try_for_each(|finding| out::line(format!("would clear: {finding}")))?;
    Ok(true)
}

/// Clears what can be; whether all of it could.
async fn clear(engine: &Engine) -> Result<bool> {
    let mut well = true;
    for action in engine.gc().await? {
        match &action.error {
            None => out::line(format!("cleared: {}", action.finding))?,
            Some(why) => {
                eprintln!("coracle: gc: {}: {why}", action.finding);
                well &= !Finding::clearable(&action.finding);
            }
        }
    }
    Ok(well)
}
