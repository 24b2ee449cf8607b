//! `coracle tend`: what a pod's supervisor starts when a container has ended and nobody tends the pod.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::SandboxFilter;

use crate::app::App;
use crate::pod::keep::Folder;
use crate::pod::tender::{End, Tender, Unwatched};
use crate::service;

/// The exit code of one that found the pod tended (`EX_TEMPFAIL`).
const BUSY: u8 = 75;

/// Apply a pod's restart policy, then leave
#[derive(Debug, Args)]
pub struct Tend {
    /// The pod's uid
    pub uid: String,
}

impl Tend {
    /// Tends the pod until there is nothing to do but to wait for a container.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let sandboxes = engine.list_sandboxes(&SandboxFilter::default())?;
        let Some(sandbox) = sandboxes.into_iter().find(|sandbox| sandbox.config.uid == self.uid) else {
            // Removed since the supervisor called.
            return Ok(ExitCode::SUCCESS);
        };
        let Some(kept) = Folder::of(engine.paths(), &sandbox.id).read_pod()? else {
            // Its maker has not got so far. It tends the pod for a while, and after that nobody does.
            return Ok(ExitCode::from(BUSY));
        };
        let end = match Tender::take(app, &engine, &sandbox.id, kept)? {
            Some(mut tender) => tender.tend(false, &mut Unwatched).await?,
            None => End::Busy,
        };
        // Its sandbox may have gone with it.
        service::refresh(&engine).await?;
        // The supervisor of a pod that somebody has to be there for calls again.
        Ok(if end == End::Busy { ExitCode::from(BUSY) } else { ExitCode::SUCCESS })
    }
}
