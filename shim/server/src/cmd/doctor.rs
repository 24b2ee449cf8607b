//! `coracle doctor`: what is not as it should be. It changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::handler::Handler;
use coracle_engine::{Engine, Finding, is_program};
use coracle_proto::VIRTIOFSD;
use serde::Serialize;

use crate::app::App;
use crate::exit;
use crate::out::{self, Format};
use crate::service;

/// Tell what crashes have left and what this machine lacks
///
/// Changes nothing; `coracle gc` clears what can be cleared. The exit code is 1 if something was found.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Read all files of all image layers, too, and tell which are damaged
    #[arg(long)]
    images: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// All that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    machine: Vec<String>,
    findings: Vec<Finding>,
    images: Vec<String>,
}

impl Doctor {
    /// Looks and tells.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let mut report = Report { machine: machine(), findings: engine.doctor().await?, images: Vec::new() };
        report.machine.extend(service::troubles(&engine)?);
        report.machine.extend(handlers(&engine).await);
        if self.images {
            report.images = engine.store().verify()?.iter().map(ToString::to_string).collect();
        }
        let well = report.machine.is_empty() && report.findings.is_empty() && report.images.is_empty();
        match self.output {
            Format::Json => out::json(&report)?,
            _ if well => out::line("all is well")?,
            _ => report.print()?,
        }
        Ok(ExitCode::from(if well { exit::OK } else { exit::ERROR }))
    }
}

impl Report {
    fn print(&self) -> Result<()> {
        self.machine.iter().chain(&self.images).try_for_each(out::line)?;
        self.findings.iter().try_for_each(|finding| out::line(finding.to_string()))?;
        match self.findings.iter().any(Finding::clearable) {
            true => out::line("`coracle gc` clears what can be cleared"),
            false => Ok(()),
        }
    }
}

/// What this machine lacks.
fn machine() -> Vec<String> {
    let mut lacks = Vec::new();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        lacks.push("the kernel has no overlay filesystem (modprobe overlay): no container can be made".into());
    }
    if !Path::new("/proc/sys/kernel/seccomp").exists() {
        lacks.push("the kernel has no seccomp filters: only `seccompProfile: {type: Unconfined}` can run".into());
    }
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    for controller in ["cpu", "memory", "pids"] {
        let there = match v2 {
            true => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|list| list.split_whitespace().any(|name| name == controller)),
            false => Path::new("/sys/fs/cgroup").join(controller).exists(),
        };
        if !there {
            lacks.push(format!("the cgroup controller {controller} is missing: limits of that kind cannot be set"));
        }
    }
    if !in_path("nft") {
        lacks.push("the program nft is missing (Debian: nftables): no masquerading and no hostPort".into());
    }
    lacks
}

/// What the configured handlers lack.
async fn handlers(engine: &Engine) -> Vec<String> {
    let handlers = engine.handlers();
    let mut lacks = Vec::new();
    for handler in handlers.named.values() {
        let checked = match handler.check().await {
            Ok(()) => handler.check_machine(engine.paths()).await,
            unhealthy => unhealthy,
        };
        lacks.extend(checked.err().map(|why| why.to_string()));
    }
    if handlers.named.values().any(Handler::is_vm) && !in_path("mkfs.erofs") {
        lacks.push("the program mkfs.erofs is missing (Debian: erofs-utils): no image for virtual machines".into());
    }
    if handlers.named.values().any(Handler::shares_folders) && !is_program(Path::new(VIRTIOFSD)) {
        lacks.push(format!("the program {VIRTIOFSD} is missing (Debian 12: qemu-system-common): no host_paths"));
    }
    lacks
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian has it, and where an ordinary user's PATH does not look.
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path).chain(more).any(|dir| is_program(&dir.join(program)))
}
