//! `coracle images`: the images of the store.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_rootfs::{Image, Reference};
use serde::Serialize;

use crate::app::App;
use crate::out::{self, Format, Table};

/// List images
#[derive(Debug, Args)]
pub struct Images {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// An image for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageView {
    id: String,
    names: Vec<String>,
    repo_digests: Vec<String>,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    layers: Vec<String>,
    pinned: bool,
}

impl Images {
    /// Lists them.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let images = app.store()?.images()?;
        match self.output {
            Format::Json => out::json(&images.iter().map(view).collect::<Vec<_>>())?,
            _ if self.quiet => images.iter().try_for_each(|image| out::line(image.id.to_string()))?,
            format => table(&images, format == Format::Wide).print()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn view(image: &Image) -> ImageView {
    ImageView {
        id: image.id.to_string(),
        names: image.names.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        created: image.created.clone(),
        layers: image.layers.iter().map(ToString::to_string).collect(),
        pinned: image.pinned,
    }
}

/// How many digits of an id are shown.
const DIGITS: usize = 12;

fn table(images: &[Image], wide: bool) -> Table {
    let mut headings = vec!["IMAGE", "TAG", "ID", "SIZE", "CREATED"];
    if wide {
        headings.extend(["LAYERS", "DIGEST"]);
    }
    let mut table = Table::new(headings);
    for image in images {
        // An image whose tag has moved on has no name left.
        let names = if image.names.is_empty() { vec![String::new()] } else { image.names.clone() };
        for name in names {
            table.row(row(image, &name, wide));
        }
    }
    table
}

fn row(image: &Image, name: &str, wide: bool) -> Vec<out::Cell> {
    let none = || "<none>".to_owned();
    let (repository, tag) = match Reference::parse(name) {
        Ok(reference) => {
            let familiar = reference.familiar();
            let tag = reference.tag().unwrap_or_default().to_owned();
            let suffix = format!(":{tag}");
            (familiar.strip_suffix(&suffix).unwrap_or(&familiar).to_owned(), tag)
        }
        Err(_) => (none(), none()),
    };
    let day = image.created.as_deref().map_or_else(none, |time| time.chars().take(10).collect());
    let id: String = image.id.hex().chars().take(DIGITS).collect();
    let mut row: Vec<out::Cell> =
        vec![repository.into(), tag.into(), id.into(), out::size(image.size).into(), day.into()];
    if wide {
        let digest =
            image.repo_digests.first().and_then(|name| name.split_once('@')).map(|(_, digest)| digest.to_owned());
        row.push(image.layers.len().to_string().into());
        row.push(digest.unwrap_or_else(none).into());
    }
    row
}
