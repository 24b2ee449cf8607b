//! `coracle logs`: what containers wrote.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{Engine, SandboxState};

use crate::app::{App, Found};
use crate::exit::{self, Coded};
use crate::pod::logs;
use crate::pod::observe::Observed;
use crate::pod::print::{Printer, Style};
use crate::pod::select::{self, Selector};
use crate::time;

/// How often new lines are looked for.
pub const POLL: Duration = Duration::from_millis(100);
/// After how many looks at the logs the pod itself is looked at.
const LOOKS: u32 = 5;

/// Show the logs of pods' containers
///
/// Of all containers, unless one is named; with several each line begins with its container's name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle logs -f web
  coracle logs -p -c app web                what it wrote before its last restart
  coracle logs --since 10m --tail 20 -l app=web")]
pub struct Logs {
    /// Go on with what is written from now on, across restarts, until the pods have ended
    #[arg(short, long)]
    follow: bool,
    /// Only this container's
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// All containers': what happens anyway, unless one is named
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Those of the incarnation before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Only the last lines of each container; -1 for all
    #[arg(long, value_name = "LINES", allow_hyphen_values = true, value_parser = lines)]
    tail: Option<Lines>,
    /// Only what was written in the last 30s, 5m, 1h30m ...
    #[arg(long, value_name = "TIME", value_parser = super::wait::duration, conflicts_with = "since_time")]
    since: Option<super::wait::Timeout>,
    /// Only what was written since then: 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since_time: Option<i64>,
    /// At most so many bytes of them
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    /// With the names of the pod and of the container in front of each line
    #[arg(long)]
    prefix: bool,
    /// Those of the pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// Names or ids
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

/// None: all of them.
#[derive(Debug, Clone, Copy)]
struct Lines(Option<usize>);

fn lines(text: &str) -> Result<Lines, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(Lines(None)),
        Ok(count) => {
            usize::try_from(count).map(|count| Lines(Some(count))).map_err(|_| "a number of lines, or -1".into())
        }
        Err(_) => Err("a number of lines, or -1".into()),
    }
}

fn moment(text: &str) -> Result<i64, String> {
    time::parse(text).ok_or_else(|| "expected a time such as 2026-01-02T03:04:05Z".into())
}

impl Logs {
    /// Shows them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let found = select::pods(&engine, &self.pods, self.selector.as_ref())?;
        let mut printer = self.printer(&engine, &found).await?;
        let tail = self.tail.and_then(|Lines(count)| count);
        // One container's log needs no sorting, and may be larger than what should be held in memory.
        let read_on = match (tail, printer.sources()) {
            (None, 0 | 1) => printer.print_new()?,
            (tail, _) => printer.print_sorted(tail)?,
        };
        if !read_on {
            return Ok(ExitCode::SUCCESS);
        }
        if !self.follow {
            printer.finish()?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut looks = 0;
        loop {
            let over = looks % LOOKS == 0 && are_over(&engine, &found).await;
            if !printer.print_new()? {
                return Ok(ExitCode::SUCCESS);
            }
            if over {
                printer.finish()?;
                return Ok(ExitCode::SUCCESS);
            }
            looks += 1;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn printer(&self, engine: &Engine, pods: &[Found]) -> Result<Printer> {
        let mut all = Vec::new();
        for found in pods {
            let status = engine.sandbox_status(&found.sandbox)?;
            let context = || format!("logs {}", status.config.name);
            for name in self.names(engine, found).await.with_context(context)? {
                all.push((found, status.clone(), name));
            }
        }
        let since = match (self.since, self.since_time) {
            (Some(Some(age)), _) => Some(time::now() - time::nanos(age)),
            (_, since) => since,
        };
        let mut printer = Printer::new(Style { names: self.prefix || all.len() > 1, times: self.timestamps });
        printer.only(since, self.limit_bytes);
        for (_, status, name) in &all {
            let context = || format!("logs {}", status.config.name);
            let Some(dir) = &status.config.log_directory else {
                return Err(Coded::error(exit::NOT_FOUND, "the pod keeps no logs")).with_context(context);
            };
            let dir = dir.join(name);
            let label = match self.prefix || pods.len() > 1 {
                true => format!("{}/{name}", status.config.name),
                false => name.clone(),
            };
            let attempts = logs::attempts(&dir)?;
            match (self.previous, attempts.as_slice()) {
                (true, [.., previous, _]) => printer.add(&label, &dir, *previous).only_this(),
                (true, _) if self.container.is_some() => {
                    let text = format!("container {name} was not restarted");
                    return Err(Coded::error(exit::NOT_FOUND, text)).with_context(context);
                }
                (true, _) => {}
                (false, _) => {
                    printer.add(&label, &dir, attempts.last().copied().unwrap_or(0));
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

async fn are_over(engine: &Engine, pods: &[Found]) -> bool {
    for found in pods {
        if !is_over(engine, found).await {
            return false;
        }
    }
    true
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
