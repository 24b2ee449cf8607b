//! `coracle rmi`: removes images.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_rootfs::{GcOptions, Store};

use super::first_error;
use crate::app::App;
use crate::exit::{self, Coded};
use crate::out;

/// Remove images
///
/// A name is taken from its image; with its last name the image goes, and the layers that no other image uses.
#[derive(Debug, Args)]
pub struct Rmi {
    /// Those with several names, and those in use too: what runs keeps its layers
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    /// Removes them.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let store = app.store()?;
        let mut results = Vec::new();
        for image in &self.images {
            results.push(("rmi".to_owned(), self.one(&store, image)));
        }
        // Layers are shared: what is free is only known now.
        results.push(("rmi".to_owned(), store.gc(&GcOptions::default()).map(drop).map_err(Into::into)));
        first_error(results)
    }

    fn one(&self, store: &Store, image: &str) -> Result<()> {
        if store.image(image)?.is_none() {
            return Err(Coded::error(exit::NOT_FOUND, format!("no image {image} (`coracle images` lists them)")));
        }
        let removed = store.remove(image, self.force)?;
        removed.untagged.iter().try_for_each(|name| out::line(format!("untagged {name}")))?;
        removed.deleted.iter().try_for_each(|id| out::line(format!("removed {id}")))
    }
}
