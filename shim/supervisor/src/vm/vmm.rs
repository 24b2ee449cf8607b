//! What every machine monitor has to be able to do, and what one is told.
//!
//! A monitor is a program that the [jail](super::jail) runs: everything that it needs is on its command line, in files
//! that it sees read-only, or in descriptors that it inherits. Afterwards workers talk to it; the supervisor's loop
//! never does. Its console is its standard output; what it counts is in its cgroup.

use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By a program.
    Emulation {
        /// How fast this machine's time-stamp counter counts; the emulated one is the same, and the guest has no other
        /// clock to find that out by. 0 = there is none.
        tsc_khz: u64,
    },
}

impl Accelerator {
    /// Whether it is KVM.
    pub fn is_kvm(self) -> bool {
        self == Accelerator::Kvm
    }

    /// How long a guest may take to boot.
    pub fn boot_patience(self) -> Duration {
        match self {
            Accelerator::Kvm => Duration::from_secs(15),
            // With others at the same time.
            Accelerator::Emulation { .. } => Duration::from_secs(60),
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// How it runs.
    pub accelerator: Accelerator,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// Added to the kernel's command line.
    pub kernel_arguments: String,
    /// Its memory is the file [`MEMORY`].
    #[serde(default)]
    pub memory_file: bool,
    /// It does not boot, but waits for [`Vmm::restore`].
    #[serde(default)]
    pub incoming: bool,
}

/// Where the monitor finds the kernel.
pub const KERNEL: &str = "/vm/kernel";
/// Where the guest's memory is, of a machine that is or was a template.
pub const MEMORY: &str = "/guest/memory";
/// By which the guest knows the shared folder.
pub const SHARE_TAG: &str = "coracle-share";
/// Where it finds the initial root filesystem.
pub const INITRD: &str = "/vm/initrd";

/// Descriptors the monitor inherits.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// Listens; a client of it is the host's end of the guest's port.
    pub agent: RawFd,
    /// Listens; for commands to the monitor.
    pub control: RawFd,
    /// A tap device with virtio-net's header, if the machine has a network.
    pub tap: Option<RawFd>,
    /// Connected to who serves the shared folder, if there is one; the guest's memory is then shared with that.
    pub share: Option<RawFd>,
}

impl Descriptors {
    /// All of them.
    pub fn all(&self) -> Vec<RawFd> {
        [self.agent, self.control].into_iter().chain(self.tap).chain(self.share).collect()
    }
}

/// A machine monitor.
pub trait Vmm {
    /// The program's arguments.
    fn arguments(&self, spec: &Spec, descriptors: &Descriptors) -> Vec<String>;

    /// Plugs an open file in as a disk with this serial number. In a worker, as what follows.
    fn plug(&self, folder: &Path, serial: &str, file: &File, read_only: bool) -> Result<(), Failure>;

    /// Takes a disk away.
    fn unplug(&self, folder: &Path, serial: &str) -> Result<(), Failure>;

    /// Stops the machine and writes its state, without its memory.
    fn save(&self, folder: &Path, state: &File) -> Result<(), Failure>;

    /// Gives a machine that waits for it this state, and lets it run.
    fn restore(&self, folder: &Path, state: &File) -> Result<(), Failure>;

    /// Waits until a program in the guest has opened its port.
    fn wait_for_port(&self, folder: &Path, patience: Duration) -> Result<(), Failure>;
}

/// The one that there is.
pub fn vmm() -> &'static dyn Vmm {
    &super::qemu::Qemu
}
