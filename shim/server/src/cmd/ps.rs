//! `coracle ps`: the pods.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::SandboxFilter;

use crate::app::App;
use crate::out::{self, Cell, Colour, Format, Table};
use crate::pod::policy::Phase;
use crate::pod::view::PodView;
use crate::time;

/// List pods
///
/// Without --all only those that run or are about to.
#[derive(Debug, Args)]
pub struct Ps {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Ps {
    /// Lists them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let mut views = Vec::new();
        for sandbox in engine.list_sandboxes(&SandboxFilter::default())? {
            let view = PodView::of(&engine, &sandbox).await?;
            if self.all || matches!(view.phase, Phase::Pending | Phase::Running) {
                views.push(view);
            }
        }
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        match self.output {
            Format::Json => out::json(&views)?,
            _ if self.quiet => views.iter().try_for_each(|view| out::line(&view.name))?,
            format => table(&views, format == Format::Wide).print()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(views: &[PodView], wide: bool) -> Table {
    let namespaces = views.iter().any(|view| view.namespace != "default");
    let mut headings = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if namespaces {
        headings.insert(0, "NAMESPACE");
    }
    if wide {
        headings.extend(["IP", "ID", "IMAGES"]);
    }
    let mut table = Table::new(headings);
    for view in views {
        table.row(row(view, namespaces, wide));
    }
    table
}

fn row(view: &PodView, namespaces: bool, wide: bool) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    if namespaces {
        cells.push(view.namespace.clone().into());
    }
    cells.extend([
        view.name.clone().into(),
        format!("{}/{}", view.ready, view.total()).into(),
        Cell::coloured(view.status.clone(), colour(view)),
        view.restarts.to_string().into(),
        time::age(view.created, time::now()).into(),
    ]);
    if wide {
        let none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
        let mut images: Vec<&str> = view.containers.iter().map(|container| container.image.as_str()).collect();
        images.dedup();
        cells.push(none(view.ips.join(",")).into());
        cells.push(view.id.chars().take(12).collect::<String>().into());
        cells.push(images.join(",").into());
    }
    cells
}

fn colour(view: &PodView) -> Colour {
    match (view.phase, view.status.as_str()) {
        (Phase::Running, "Running") => Colour::Green,
        (Phase::Succeeded, _) | (_, "Stopped") => Colour::Dim,
        (Phase::Failed, _) => Colour::Red,
        (_, status) if status.contains("Error") || status.contains("BackOff") || status == "OOMKilled" => Colour::Red,
        _ => Colour::Yellow,
    }
}
