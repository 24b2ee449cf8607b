//! The command line: one verb, one variant here, one file in `cmd`.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::cmd;
use crate::exit;

/// Kubernetes pods on one machine, without a cluster and without a daemon.
#[derive(Debug, Parser)]
#[command(name = "coracle", version = cmd::version::VERSION, after_help = EXAMPLES, after_long_help = long_help())]
#[command(arg_required_else_help = true, subcommand_required = true, max_term_width = 100)]
pub struct Cli {
    /// Where things lie.
    #[command(flatten)]
    pub places: Places,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where things lie; flags win over the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub struct Places {
    /// Images and writable layers [default: /var/lib/coracle]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Places")]
    pub root: Option<PathBuf>,
    /// What runs [default: /run/coracle]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Places")]
    pub state: Option<PathBuf>,
    /// The containers' logs [default: /var/log/pods]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Places")]
    pub log_dir: Option<PathBuf>,
    /// The configuration [default: /etc/coracle/config.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Places")]
    pub config: Option<PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pods of Kubernetes YAML
    Run(cmd::run::Run),
    /// Make what runs what Kubernetes YAML says
    Apply(cmd::apply::Apply),
    /// Stop and remove what Kubernetes YAML names
    Down(cmd::down::Down),
    /// Tell what is done with each field of Kubernetes YAML
    Explain(cmd::explain::Explain),
    /// List pods
    Ps(cmd::ps::Ps),
    /// Show the logs of a pod's containers
    Logs(cmd::logs::Logs),
    /// Run a command in a container
    Exec(cmd::exec::Exec),
    /// Let ports of this machine lead into a pod
    PortForward(cmd::port_forward::PortForward),
    /// Attach to a running container
    Attach(cmd::attach::Attach),
    /// Copy files from and to a container
    Cp(cmd::cp::Cp),
    /// Tell all that is worth knowing of pods, and what happened to them
    Describe(cmd::describe::Describe),
    /// Tell all that is recorded of pods, containers or images, as JSON
    Inspect(cmd::inspect::Inspect),
    /// Show what pods use
    Top(cmd::top::Top),
    /// Wait until pods are as asked for
    Wait(cmd::wait::Wait),
    /// Show what happened to pods
    Events(cmd::events::Events),
    /// Stop pods
    Stop(cmd::stop::Stop),
    /// Remove pods
    Rm(cmd::rm::Rm),
    /// Pull images from their registries
    Pull(cmd::pull::Pull),
    /// List images
    Images(cmd::images::Images),
    /// Remove images
    Rmi(cmd::rmi::Rmi),
    /// Load images from an archive
    Load(cmd::load::Load),
    /// Save images to an archive
    Save(cmd::save::Save),
    /// Remove what crashes and removals have left, and layers that nothing uses
    Gc(cmd::gc::Gc),
    /// Tell what crashes have left and what this machine lacks
    Doctor(cmd::doctor::Doctor),
    /// Serve the CRI to kubelet and crictl
    Serve(crate::serve::Serve),
    /// Show the settings, or check a file of them
    Config(cmd::config::Config),
    /// Tell the version and the facts of this machine that matter
    Version(cmd::version::Version),
    /// Work with Kubernetes YAML beside running it
    Kube(cmd::kube::Kube),
    /// Write manual pages
    Man(cmd::man::Man),
    /// Print a completion script
    Completion(cmd::completion::Completion),
    /// Copy files inside a container (started by `coracle cp`)
    #[command(hide = true)]
    Copier(crate::copy::inside::Copier),
    /// Apply a pod's restart policy once (started by its supervisor)
    #[command(hide = true)]
    Tend(cmd::tend::Tend),
    /// Answer names of services and pods (started when a pod needs it)
    #[command(hide = true)]
    Dns(cmd::dns::Dns),
}

const EXAMPLES: &str = "\
Examples:
  coracle run web.yaml              run a pod and follow its logs; Ctrl-C stops it
  coracle run -d web.yaml           run it in the background
  coracle ps                        what runs
  coracle logs -f web               follow its logs
  coracle exec -it web -- sh        a shell in it
  coracle stop web && coracle rm web

`coracle COMMAND --help` tells more of a command, `coracle --help` of exit codes too.";

fn long_help() -> String {
    format!("{EXAMPLES}\n\n{}", exit::HELP)
}

/// Reads the command line. An error is written as one line, help and version as they are; either way the answer is
/// the exit code.
pub fn parse() -> Result<Cli, u8> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            exit::OK
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            exit::USAGE
        }
        _ => {
            eprintln!("coracle: {}", one_line(&error.to_string()));
            exit::USAGE
        }
    })
}

/// What clap says over several lines, on one: the error, its tip, and where to read more.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    let mut usage = "coracle --help".to_owned();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("Usage: ") {
            let words = rest.split_whitespace().take_while(|word| !word.starts_with(['-', '[', '<']));
            usage = format!("{} --help", words.collect::<Vec<_>>().join(" "));
        } else if let Some(tip) = line.strip_prefix("tip: ") {
            out = format!("{out}: {tip}");
        } else if !line.starts_with("For more information") {
            let separator = if out.is_empty() { "" } else { " " };
            out = format!("{out}{separator}{}", line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    format!("{out} (see `{usage}`)")
}

/// The command, for completion scripts.
pub fn command() -> clap::Command {
    Cli::command()
}
