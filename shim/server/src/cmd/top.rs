//! `coracle top`: what pods and containers use.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coracle_engine::stats::{GroupStats, SandboxStats};
use coracle_engine::{Engine, SandboxFilter};
use serde::Serialize;

use crate::app::App;
use crate::exit::{self, Coded};
use crate::out::{self, Cell, Table};
use crate::pod::select::{self, Selector};

/// The time over which the use of a processor is taken: that of the engine's own window.
const WINDOW: Duration = Duration::from_millis(1050);
/// Between two tables.
const EVERY: Duration = Duration::from_secs(2);

/// Show what pods use
///
/// Of the processors in thousandths of one, over the last second; of memory without the page cache that can be dropped.
#[derive(Debug, Args)]
pub struct Top {
    /// A line for each container
    #[arg(long)]
    containers: bool,
    /// Again every two seconds
    #[arg(short, long)]
    watch: bool,
    /// Only pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// How to write the list; with --watch, JSON is one list a line
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
    /// Names or ids [default: all]
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

/// What one of them uses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    namespace: String,
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    /// Billionths of a processor.
    cpu_nano_cores: Option<u64>,
    memory_bytes: Option<u64>,
    tasks: Option<u64>,
}

impl Top {
    /// Shows it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let wanted = match (self.pods.as_slice(), &self.selector) {
            ([], None) => None,
            (pods, selector) => {
                let found = select::pods(&engine, pods, selector.as_ref())?;
                Some(found.into_iter().map(|found| found.sandbox).collect::<Vec<_>>())
            }
        };
        // A rate is the difference of two samples.
        look(&engine, &wanted).await?;
        tokio::time::sleep(WINDOW).await;
        loop {
            let stats = look(&engine, &wanted).await?;
            let mut usages: Vec<Usage> = stats.iter().flat_map(|stats| self.usages(stats)).collect();
            usages.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
            if usages.is_empty() && !self.watch && wanted.is_some() {
                return Err(Coded::error(exit::CONFLICT, "top: no container of it is running"));
            }
            self.print(&usages)?;
            if !self.watch {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn usages(&self, stats: &SandboxStats) -> Vec<Usage> {
        let config = &stats.status.config;
        let usage = |container: Option<&str>, group: &GroupStats| Usage {
            namespace: config.namespace.clone(),
            pod: config.name.clone(),
            container: container.map(str::to_owned),
            cpu_nano_cores: group.cpu.as_ref().and_then(|cpu| cpu.nano_cores),
            memory_bytes: group.memory.as_ref().map(|memory| memory.working_set),
            tasks: group.tasks.as_ref().map(|tasks| tasks.count),
        };
        match self.containers {
            false => stats.group.iter().map(|group| usage(None, group)).collect(),
            true => {
                let running = stats.containers.iter().filter_map(|container| {
                    container.group.as_ref().map(|group| usage(Some(&container.status.config.name), group))
                });
                running.collect()
            }
        }
    }

    fn print(&self, usages: &[Usage]) -> Result<()> {
        match (self.output.is_some(), self.watch) {
            (true, false) => return out::json(&usages),
            (true, true) => return out::line(serde_json::to_string(usages)?),
            (false, true) if io::stdout().is_terminal() => out::clear()?,
            _ => {}
        }
        let namespaces = usages.iter().any(|usage| usage.namespace != "default");
        let mut headings = vec!["POD"];
        if namespaces {
            headings.insert(0, "NAMESPACE");
        }
        if self.containers {
            headings.push("NAME");
        }
        headings.extend(["CPU(cores)", "MEMORY(bytes)", "TASKS"]);
        let mut table = Table::new(headings);
        for usage in usages {
            let mut cells: Vec<Cell> = Vec::new();
            if namespaces {
                cells.push(usage.namespace.clone().into());
            }
            cells.push(usage.pod.clone().into());
            cells.extend(usage.container.clone().map(Cell::from));
            let or_unknown = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "<unknown>".into()));
            cells.push(or_unknown(usage.cpu_nano_cores.map(|nano| format!("{}m", nano.div_ceil(1_000_000)))));
            cells.push(or_unknown(usage.memory_bytes.map(|bytes| format!("{}Mi", bytes.div_ceil(1 << 20)))));
            cells.push(or_unknown(usage.tasks.map(|count| count.to_string())));
            table.row(cells);
        }
        table.print()
    }
}

async fn look(engine: &Engine, wanted: &Option<Vec<String>>) -> Result<Vec<SandboxStats>> {
    let mut stats = engine.list_sandbox_stats(SandboxFilter::default()).await?;
    stats.retain(|stats| wanted.as_ref().is_none_or(|wanted| wanted.contains(&stats.status.id)));
    Ok(stats)
}
