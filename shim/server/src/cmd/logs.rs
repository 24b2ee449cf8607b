//! `coracle logs`: what containers wrote.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coracle_engine::{Engine, SandboxState};

use crate::app::{self, App, Found};
use crate::exit::{self, Coded};
use crate::pod::logs;
use crate::pod::observe::Observed;
use crate::pod::print::{Printer, Style};
use crate::time;

/// How often new lines are looked for.
pub const POLL: Duration = Duration::from_millis(100);
/// After how many looks at the logs the pod itself is looked at.
const LOOKS: u32 = 5;

/// Show the logs of a pod's containers
///
/// Of all of them, unless one is named; with several each line begins with its container's name.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on with what is written from now on, across restarts, until the pod has ended
    #[arg(short, long)]
    follow: bool,
    /// Only this container's
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Those of the incarnation before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    /// Name or id
    pod: String,
}

impl Logs {
    /// Shows them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let found = app::find(&engine, &self.pod)?;
        let mut printer = self.printer(&engine, &found).await.map_err(|e| e.context(format!("logs {}", self.pod)))?;
        // One container's log needs no sorting, and may be larger than what should be held in memory.
        let read_on = match (self.tail, printer.sources()) {
            (None, 0 | 1) => printer.print_new()?,
            (tail, _) => printer.print_sorted(tail)?,
        };
        if !read_on || !self.follow {
            return Ok(ExitCode::SUCCESS);
        }
        let mut looks = 0;
        loop {
            let over = looks % LOOKS == 0 && is_over(&engine, &found).await;
            if !printer.print_new()? || over {
                return Ok(ExitCode::SUCCESS);
            }
            looks += 1;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn printer(&self, engine: &Engine, found: &Found) -> Result<Printer> {
        let names = self.names(engine, found).await?;
        let mut printer = Printer::new(Style { names: names.len() > 1, times: self.timestamps });
        let Some(dir) = engine.sandbox_status(&found.sandbox)?.config.log_directory else {
            return Err(Coded::error(exit::NOT_FOUND, "the pod keeps no logs"));
        };
        for name in names {
            let dir = dir.join(&name);
            let attempts = logs::attempts(&dir)?;
            match (self.previous, attempts.as_slice()) {
                (true, [.., previous, _]) => printer.add(&name, &dir, *previous).only_this(),
                (true, _) if self.container.is_some() => {
                    return Err(Coded::error(exit::NOT_FOUND, format!("container {name} was not restarted")));
                }
                (true, _) => {}
                (false, _) => {
                    printer.add(&name, &dir, attempts.last().copied().unwrap_or(0));
                }
            }
        }
        Ok(printer)
    }

    /// The containers to show: the one named, else all.
    async fn names(&self, engine: &Engine, found: &Found) -> Result<Vec<String>> {
        let observed = Observed::look(engine, &found.sandbox).await?;
        if let Some(name) = &self.container {
            return Ok(vec![found.check_name(name, &observed)?.to_owned()]);
        }
        Ok(match &found.kept {
            Some(kept) => kept.pod.all_containers().map(|container| container.name.clone()).collect(),
            None => observed.all_latest().map(|status| status.config.name.clone()).collect(),
        })
    }
}

/// Whether nothing of the pod will write again; so it is with one that was removed.
async fn is_over(engine: &Engine, found: &Found) -> bool {
    let (Ok(Some(kept)), Ok(tended)) = (found.folder.read_pod(), found.folder.read_tended()) else { return true };
    // Without a supervisor nothing starts again, whatever the policy.
    if !engine.sandbox_status(&found.sandbox).is_ok_and(|sandbox| sandbox.state == SandboxState::Ready) {
        return true;
    }
    match Observed::look(engine, &found.sandbox).await {
        Ok(observed) => observed.decide(&kept, &tended, found.folder.is_stopping(), time::now()).finished(),
        Err(_) => true,
    }
}
