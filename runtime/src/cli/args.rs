//! The flags, as runc has them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The words of `--version`, in the shape that tools parse.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

/// A runtime for OCI containers: a drop-in for runc.
#[derive(Debug, Parser)]
#[command(name = "coracle-oci", bin_name = "coracle-oci", version = VERSION, disable_help_subcommand = true)]
#[command(help_expected = true)]
pub struct Cli {
    /// Print more to the log
    #[arg(long)]
    pub debug: bool,
    /// Write errors to this file too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How to write the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where the state of containers is kept (should be on a tmpfs)
    #[arg(long, value_name = "DIR", default_value = "/run/coracle-oci")]
    pub root: PathBuf,
    /// Use the systemd cgroup driver: cgroupsPath is then slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Ignore cgroup permission errors: true, false or auto
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub rootless: String,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// The shape of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// One verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container; its program waits for start
    Create(Create),
    /// Create and start a container
    Run(Run),
    /// Run the program of a created container
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove a container
    Delete(Delete),
    /// Run another process in a container
    Exec(Box<Exec>),
    /// List the containers
    List(List),
    /// Show the processes of a container
    Ps(Ps),
    /// Freeze all processes of a container
    Pause(Id),
    /// Thaw them
    Resume(Id),
    /// Change the limits of a container
    Update(Box<Update>),
    /// Print what a container uses, and its OOM events
    Events(Events),
    /// Print what a container uses, once
    Stats(Id),
    /// Write a config.json to begin with
    Spec(Spec),
    /// Print what this runtime can do
    Features,
}

/// Just a container.
#[derive(Debug, Args)]
pub struct Id {
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// create
#[derive(Debug, Args)]
pub struct Create {
    /// The container's id, unique on this machine
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The directory with config.json and the root filesystem
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// A unix socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the init (refused: not done yet)
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not use pivot_root (for an initramfs)
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the session keyring of the caller
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// run
#[derive(Debug, Args)]
pub struct Run {
    /// As create
    #[command(flatten)]
    pub create: Create,
    /// Leave the container running in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Do not become the subreaper of the container's orphans
    #[arg(long)]
    pub no_subreaper: bool,
    /// Keep the container's state when its program has ended
    #[arg(long)]
    pub keep: bool,
}

/// kill
#[derive(Debug, Args)]
pub struct Kill {
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// A number or a name, with or without SIG
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
    /// To every process of the container
    #[arg(short, long)]
    pub all: bool,
}

/// delete
#[derive(Debug, Args)]
pub struct Delete {
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Kill it if it runs; succeed if it does not exist
    #[arg(short, long)]
    pub force: bool,
}

/// exec
#[derive(Debug, Args)]
pub struct Exec {
    /// A unix socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the process (refused: not done yet)
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VAR")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// UID or UID:GID
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Read the process from this file (JSON of the specification's process)
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub detach: bool,
    /// Write the pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label (refused: not done yet)
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile (refused: not done yet)
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Run in this cgroup beneath the container's
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Exec in a paused container too
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// list
#[derive(Debug, Args)]
pub struct List {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only the ids
    #[arg(short, long)]
    pub quiet: bool,
}

/// ps
#[derive(Debug, Args)]
pub struct Ps {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Options of ps(1) instead of -ef
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// update
#[derive(Debug, Args)]
pub struct Update {
    /// Read the limits from this file (JSON of the specification's resources; - for stdin)
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Block I/O weight, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// CPU CFS period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// CPU CFS quota in microseconds per period
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPU CFS burst in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// CPU shares
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// CPU real-time period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// CPU real-time runtime in microseconds
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1 schedules the container only when the CPU is idle
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
    /// CPUs to run on
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes, -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// Memory soft limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap in bytes, -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Number of processes, -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Intel RDT L3 cache schema (refused: not done yet)
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Intel RDT memory bandwidth schema (refused: not done yet)
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// events
#[derive(Debug, Args)]
pub struct Events {
    /// Time between two prints: 5s, 1m, 500ms
    #[arg(long, default_value = "5s")]
    pub interval: String,
    /// Print once and end
    #[arg(long)]
    pub stats: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// spec
#[derive(Debug, Args)]
pub struct Spec {
    /// Where to write it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// For a container without root rights
    #[arg(long)]
    pub rootless: bool,
}
