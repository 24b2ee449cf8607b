//! `coracle pull`: images from their registries.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_rootfs::Reference;

use super::first_error;
use crate::app::App;
use crate::{out, pull};

/// Pull images from their registries
///
/// Credentials come from docker's config.json, looked for in kubelet's order; mirrors and certificates from
/// certs.d/HOST/hosts.toml. The ids of the images are written to standard output.
#[derive(Debug, Args)]
pub struct Pull {
    /// Names, such as busybox, ghcr.io/team/app:1.2 or 127.0.0.1:5000/app@sha256:...
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Pull {
    /// Pulls them.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        // All names are read before the first is pulled.
        let references: Vec<Reference> =
            self.images.iter().map(|name| Reference::parse(name)).collect::<Result<_, _>>()?;
        let store = app.store()?;
        let mut results = Vec::new();
        for reference in references {
            let pulled = pull::pull(app, &store, &reference);
            results.push(("pull".to_owned(), pulled.and_then(|image| out::line(image.id.to_string()))));
        }
        first_error(results)
    }
}
