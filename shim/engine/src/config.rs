//! Where things lie, and what may be set.
//!
//! ```text
//! <state>/                       tmpfs: gone after a reboot, and so is what it describes
//!   lock                         flock: shared to make a pod's folder, exclusive to judge one without a record
//!   names/<key>                  who has a name (names.rs)
//!   net/                         the network's own
//!   pods/<sandbox id>/           record.json, creator.lock, lock, supervisor.sock, attach.sock, tender.lock,
//!     hosts, hostname, resolv.conf, shm/, log, volumes/<name>/, memory/<name>/
//!     containers/<container id>/ record.json, config.json, rootfs/ (an empty mountpoint), exit.json
//! <root>/                        disk
//!   layers/, images, leases/     the image store's
//!   pods/<sandbox id>/           volumes/<name>/ and, for each container, <container id>/{upper,work}
//! ```

use std::path::PathBuf;
use std::time::Duration;

use crate::program::is_program;

/// The supervisor's program.
pub const SUPERVISOR: &str = "containerd-shim-coracle-v1";

/// The default state folder.
pub const STATE: &str = "/run/coracle";

/// Where things lie.
#[derive(Debug, Clone)]
pub struct Paths {
    /// State: `/run/coracle`.
    pub state: PathBuf,
    /// The image store and writable layers: `/var/lib/coracle`.
    pub root: PathBuf,
    /// Log files: `/var/log/pods`.
    pub logs: PathBuf,
    /// The supervisor's program.
    pub supervisor: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Paths {
            state: STATE.into(),
            root: "/var/lib/coracle".into(),
            logs: "/var/log/pods".into(),
            supervisor: find_supervisor(),
        }
    }
}

impl Paths {
    /// The folder of all pods' state.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// One pod's state.
    pub fn pod(&self, sandbox: &str) -> PathBuf {
        self.pods().join(sandbox)
    }

    /// One container's state; also its OCI bundle.
    pub fn container(&self, sandbox: &str, container: &str) -> PathBuf {
        self.pod(sandbox).join("containers").join(container)
    }

    /// One pod's part of the disk.
    pub fn pod_data(&self, sandbox: &str) -> PathBuf {
        self.root.join("pods").join(sandbox)
    }

    /// Where a pod's emptyDirs are made.
    pub fn volumes(&self, sandbox: &str) -> PathBuf {
        self.pod_data(sandbox).join("volumes")
    }

    /// Where those of a pod's volumes are that hold configuration and secrets: never on a disk.
    pub fn state_volumes(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("volumes")
    }

    /// Where a pod's volumes in memory are mounted.
    pub fn memory_volumes(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("memory")
    }

    /// One container's writable layer.
    pub fn container_data(&self, sandbox: &str, container: &str) -> PathBuf {
        self.pod_data(sandbox).join(container)
    }
}

/// The supervisor beside the running program, else the first in PATH, else its bare name for the error to show.
pub fn find_supervisor() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|p| p.parent().map(|d| d.join(SUPERVISOR)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).map(|d| d.join(SUPERVISOR)).collect();
    beside.into_iter().chain(dirs).find(|p| is_program(p)).unwrap_or_else(|| SUPERVISOR.into())
}

/// How long the engine waits for whom. Nothing that another process can delay is waited for without one of these.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// The supervisor's program until its socket is there.
    pub spawn: Duration,
    /// Connecting to a supervisor that is known to live.
    pub connect: Duration,
    /// A call that only asks.
    pub query: Duration,
    /// Making or starting a container: hooks and image volumes run in here.
    pub create: Duration,
    /// Killed processes to be gone.
    pub kill: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            spawn: Duration::from_secs(10),
            connect: Duration::from_secs(2),
            query: Duration::from_secs(4),
            create: Duration::from_secs(120),
            kill: Duration::from_secs(10),
        }
    }
}

/// What may be set.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The cgroup below which pods' are made, when a sandbox names none. Empty: `/coracle`, and for another state folder
    /// than the default one `/coracle-` and digits made from its path.
    pub cgroup_parent: String,
    /// Whether pods have cgroups at all: an ordinary user has none to give, unless some are delegated to him. Without,
    /// what asks for a limit is refused.
    pub cgroups: bool,
    /// The pod network.
    pub network: crate::net::NetConfig,
    /// What runs pods' containers, by name.
    pub handlers: crate::handler::Handlers,
    /// Size of a pod's /dev/shm in bytes.
    pub shm_size: u64,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// An OOM score that is lower than the kernel lets this process set is raised to what it lets, and status tells that
    /// one. Without it, such a score is an error.
    pub restrict_oom_score_adj: bool,
    /// Folders of CDI device descriptions; of two with the same device the later one counts.
    pub cdi_dirs: Vec<PathBuf>,
}

/// Docker's and containerd's size of /dev/shm.
const SHM_SIZE: u64 = 64 << 20;

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            cgroup_parent: String::new(),
            cgroups: true,
            network: Default::default(),
            handlers: Default::default(),
            shm_size: SHM_SIZE,
            deadlines: Deadlines::default(),
            restrict_oom_score_adj: false,
            cdi_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
        }
    }
}
