//! `coracle kube unit`: a systemd unit for the pods of a file.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::app::App;
use crate::exit::Coded;
use crate::kube::{self, Source};
use crate::out;

/// Work with Kubernetes YAML beside running it
#[derive(Debug, Args)]
pub struct Kube {
    /// What to do.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a systemd unit that runs the pods of a file
    ///
    /// For example: coracle kube unit web.yaml > /etc/systemd/system/web.service
    Unit {
        /// For the service manager of a user (systemctl --user)
        #[arg(long)]
        user: bool,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl Kube {
    /// Does it.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let What::Unit { user, file } = &self.what;
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let documents = kube::read(&[Source { name: file.display().to_string(), text }])?;
        let workloads = documents.workloads.iter();
        let names = documents.pods.iter().map(|pod| &pod.name).chain(workloads.clone().map(|workload| &workload.name));
        let names: Vec<String> = names.cloned().collect();
        if names.is_empty() {
            return Err(Coded::usage(format!("{}: it holds no Pod to run", file.display())));
        }
        let graces = documents.pods.iter().chain(workloads.map(|workload| &workload.pod)).map(|pod| pod.grace);
        let grace = graces.max().unwrap_or(0);
        let file = file.canonicalize().with_context(|| format!("resolve {}", file.display()))?;
        let program = env::current_exe().context("find the running program")?;
        let mut command = vec![program.clone()];
        for (flag, path) in [
            ("--root", &app.places.root),
            ("--state", &app.places.state),
            ("--log-dir", &app.places.log_dir),
            ("--config", &app.places.config),
        ] {
            if let Some(path) = path {
                let path = std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))?;
                command.extend([PathBuf::from(flag), path]);
            }
        }
        let command: Result<Vec<String>> = command.iter().map(|word| quoted(word)).collect();
        let unit = Unit { names, grace, command: command?.join(" "), file: quoted(&file)?, user: *user };
        out::line(unit.text().trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A word as a unit's command line takes it (systemd.service(5)).
fn quoted(word: &Path) -> Result<String> {
    let text = word.to_str().filter(|text| !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| Coded::usage(format!("{word:?}: a unit cannot name this path")))?;
    let escaped = text.replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,%$".contains(c);
    match escaped.chars().all(plain) {
        true => Ok(escaped),
        false => Ok(format!("\"{}\"", escaped.replace('\\', "\\\\").replace('"', "\\\""))),
    }
}

struct Unit {
    names: Vec<String>,
    grace: u64,
    /// The program with its places.
    command: String,
    file: String,
    user: bool,
}

/// What a stop takes beyond the pods' grace.
const STOP_MARGIN: u64 = 15;

impl Unit {
    /// The command stays in the foreground: it applies the pods' restart policies itself, and what it writes is the
    /// containers' output, for the journal. Pods that were left by a crash are taken away before: they are this
    /// unit's. Asked to stop, it stops the pods with their grace; so systemd must signal it alone, and not the pods.
    fn text(&self) -> String {
        let Unit { names, grace, command, file, user } = self;
        let network = if *user { "" } else { "Wants=network-online.target\nAfter=network-online.target\n" };
        let target = if *user { "default.target" } else { "multi-user.target" };
        format!(
            "# Made by `coracle kube unit`: make it again when the file has moved.\n\
             [Unit]\n\
             Description=Pod {}\n\
             Documentation=man:coracle(1)\n\
             {network}\
             RequiresMountsFor={file}\n\
             \n\
             [Service]\n\
             Type=exec\n\
             ExecStart={command} run --replace --rm {file}\n\
             Restart=on-failure\n\
             RestartSec=5\n\
             SuccessExitStatus=143\n\
             KillMode=mixed\n\
             TimeoutStopSec={}\n\
             Delegate=yes\n\
             \n\
             [Install]\n\
             WantedBy={target}\n",
            names.join(", "),
            grace + STOP_MARGIN,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_systemd() {
        let quote = |text: &str| quoted(Path::new(text)).unwrap();
        assert_eq!(quote("/etc/pods/web.yaml"), "/etc/pods/web.yaml");
        assert_eq!(quote("/a b/100%/$x"), "\"/a b/100%%/$$x\"");
        assert_eq!(quote("/a\"b\\c"), "\"/a\\\"b\\\\c\"");
        assert!(quoted(Path::new("/a\nb")).is_err());
    }
}
