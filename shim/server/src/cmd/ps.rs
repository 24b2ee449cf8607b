//! `coracle ps`: the pods, as `kubectl get pods` shows them.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use coracle_engine::{Engine, SandboxFilter};

use crate::app::App;
use crate::out::{self, Cell, Colour, Table};
use crate::pod::policy::Phase;
use crate::pod::select::{self, Selector};
use crate::pod::view::PodView;
use crate::time;

/// How often a watcher looks.
const POLL: Duration = Duration::from_millis(500);
/// The widths below which a watched list's columns do not shrink: its rows come one by one.
const WATCHED: [usize; 5] = [20, 5, 17, 16, 6];

/// List pods
///
/// Without --all and names only those that run or are about to.
#[derive(Debug, Args)]
pub struct Ps {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// Go on with a line for each change; JSON is one pod a line
    #[arg(short, long)]
    watch: bool,
    /// Only pods with these labels: app=web,tier!=db,env in (a,b)
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// A column with the labels
    #[arg(long)]
    show_labels: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Only these: names or ids
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

/// How the list is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// JSON
    Json,
    /// pod/NAME
    Name,
}

impl Ps {
    /// Lists them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let views = self.views(&engine).await?;
        match self.output {
            Output::Json if !self.watch => out::json(&views)?,
            _ if self.quiet => views.iter().try_for_each(|view| out::line(&view.name))?,
            Output::Name => views.iter().try_for_each(|view| out::line(format!("pod/{}", view.name)))?,
            _ => self.print(&views, true)?,
        }
        if self.watch {
            self.watch(&engine, views).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn views(&self, engine: &Engine) -> Result<Vec<PodView>> {
        let named = match self.pods.as_slice() {
            [] => None,
            names => {
                let found = select::pods(engine, names, None)?;
                Some(found.into_iter().map(|found| found.sandbox).collect::<Vec<_>>())
            }
        };
        let mut views = Vec::new();
        for sandbox in engine.list_sandboxes(&SandboxFilter::default())? {
            let selected = self.selector.as_ref().is_none_or(|selector| selector.matches(&sandbox.config.labels));
            if !selected || named.as_ref().is_some_and(|named| !named.contains(&sandbox.id)) {
                continue;
            }
            let view = match PodView::of(engine, &sandbox).await {
                // Removed since it was listed.
                Err(_) if !engine.paths().pod(&sandbox.id).exists() => continue,
                view => view?,
            };
            if self.all || self.watch || named.is_some() || matches!(view.phase, Phase::Pending | Phase::Running) {
                views.push(view);
            }
        }
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(views)
    }

    /// A line for each pod that changed; for one that went, the last that was known of it.
    async fn watch(&self, engine: &Engine, first: Vec<PodView>) -> Result<()> {
        let mut known: HashMap<String, PodView> = first.into_iter().map(|view| (view.id.clone(), view)).collect();
        loop {
            tokio::time::sleep(POLL).await;
            // A named pod may be gone, and is then told as such.
            let views = self.views(engine).await.unwrap_or_default();
            let mut changed: Vec<PodView> = Vec::new();
            known.retain(|id, view| {
                let stays = views.iter().any(|view| view.id == *id);
                if !stays {
                    changed.push(PodView { status: "Removed".into(), ..view.clone() });
                }
                stays
            });
            for view in views {
                let old = known.insert(view.id.clone(), view.clone());
                if old.is_none_or(|old| essence(&old) != essence(&view)) {
                    changed.push(view);
                }
            }
            match self.output {
                _ if self.quiet => changed.iter().try_for_each(|view| out::line(&view.name))?,
                Output::Name => changed.iter().try_for_each(|view| out::line(format!("pod/{}", view.name)))?,
                _ => self.print(&changed, false)?,
            }
        }
    }

    fn print(&self, views: &[PodView], first: bool) -> Result<()> {
        if self.output == Output::Json {
            return views.iter().try_for_each(|view| out::line(serde_json::to_string(view)?));
        }
        let wide = self.output == Output::Wide;
        let namespaces = self.watch || views.iter().any(|view| view.namespace != "default");
        let mut headings = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
        if namespaces {
            headings.insert(0, "NAMESPACE");
        }
        if wide {
            headings.extend(["IP", "ID", "IMAGES"]);
        }
        if self.show_labels {
            headings.push("LABELS");
        }
        let mut table = Table::new(headings);
        if self.watch {
            table.at_least(std::iter::once(9).chain(WATCHED));
        }
        for view in views {
            table.row(self.row(view, namespaces, wide));
        }
        if first { table.print() } else { table.print_rows() }
    }

    fn row(&self, view: &PodView, namespaces: bool, wide: bool) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        if namespaces {
            cells.push(view.namespace.clone().into());
        }
        cells.extend([
            view.name.clone().into(),
            format!("{}/{}", view.ready, view.total()).into(),
            Cell::coloured(view.status.clone(), colour(view)),
            restarts(view).into(),
            time::age(view.created, time::now()).into(),
        ]);
        let none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
        if wide {
            let mut images: Vec<&str> = view.containers.iter().map(|container| container.image.as_str()).collect();
            images.dedup();
            cells.push(none(view.ips.join(",")).into());
            cells.push(view.id.chars().take(12).collect::<String>().into());
            cells.push(images.join(",").into());
        }
        if self.show_labels {
            let labels: Vec<String> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            cells.push(none(labels.join(",")).into());
        }
        cells
    }
}

/// What a watcher is told of.
fn essence(view: &PodView) -> (usize, &str, u32, &[String]) {
    (view.ready, &view.status, view.restarts, &view.ips)
}

/// `3 (2m ago)`.
fn restarts(view: &PodView) -> String {
    let last = view.last_restart_at.as_deref().and_then(coracle_engine::record::parse_rfc3339);
    match (view.restarts, last) {
        (count @ 1.., Some(last)) => format!("{count} ({} ago)", time::age(last, time::now())),
        (count, _) => count.to_string(),
    }
}

fn colour(view: &PodView) -> Colour {
    match (view.phase, view.status.as_str()) {
        (Phase::Running, "Running") if view.ready < view.total() => Colour::Yellow,
        (Phase::Running, "Running") => Colour::Green,
        (Phase::Succeeded, _) | (_, "Stopped" | "Removed") => Colour::Dim,
        (Phase::Failed, _) => Colour::Red,
        (_, status) if status.contains("Err") || status.contains("BackOff") || status == "OOMKilled" => Colour::Red,
        _ => Colour::Yellow,
    }
}
