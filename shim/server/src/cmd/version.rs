//! `coracle version`: the version, and the facts of the machine that decide what works.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::app::App;
use crate::out;

/// The version of the package: the same from a release, a checkout or a tarball.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Tell the version and the facts of this machine that matter
#[derive(Debug, Args)]
pub struct Version {
    /// Write JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

/// What is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    version: &'static str,
    kernel: String,
    architecture: &'static str,
    cgroup: &'static str,
    seccomp: bool,
    overlay: bool,
    handler: &'static str,
    supervisor: String,
    root: String,
    state: String,
    logs: String,
}

impl Version {
    /// Tells it.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let facts = Facts {
            version: VERSION,
            kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            architecture: std::env::consts::ARCH,
            cgroup: cgroup(),
            seccomp: Path::new("/proc/sys/kernel/seccomp").exists(),
            overlay: fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\toverlay\n")),
            handler: "coracle",
            supervisor: app.paths.supervisor.display().to_string(),
            root: app.paths.root.display().to_string(),
            state: app.paths.state.display().to_string(),
            logs: app.paths.logs.display().to_string(),
        };
        if self.output.is_some() {
            out::json(&facts)?;
        } else {
            out::line(facts.text())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Facts {
    fn text(&self) -> String {
        let yes = |is| if is { "yes" } else { "no" };
        [
            ("coracle", self.version),
            ("kernel", &self.kernel),
            ("architecture", self.architecture),
            ("cgroup", self.cgroup),
            ("seccomp", yes(self.seccomp)),
            ("overlay", yes(self.overlay)),
            ("handler", self.handler),
            ("supervisor", &self.supervisor),
            ("root", &self.root),
            ("state", &self.state),
            ("logs", &self.logs),
        ]
        .map(|(name, value)| format!("{name:<14}{value}"))
        .join("\n")
    }
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned())
}

/// The cgroup hierarchy whose controllers are used. On a hybrid machine v2 is there as well, but has none.
fn cgroup() -> &'static str {
    match (Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), Path::new("/sys/fs/cgroup/memory").exists()) {
        (true, _) => "v2",
        (false, true) => "v1",
        (false, false) => "none",
    }
}
