//! The supervisor as the init of a virtual machine: the same program, started by the machine's kernel as `/init`.
//!
//! ```text
//! init     mounts, modules, the root        service  what coracle.v1.Guest answers
//! mounts   disks that are plugged in        volumes  folders that come over the link
//! net      the pod's interfaces             modules  the kernel's
//! ```
//! Everything is below `/run/coracle`: it is the sandbox's bundle, with the sockets that the other end of the link shows
//! to the machine beneath; `disks/SERIAL` and `volumes/NAME`. The link is a fork of its own, started again if it ends:
//! init keeps the port. There is no other process, no shell, and no file but what containers bring.
//!
//! Init ends by turning the machine off, whatever the reason: a monitor without its guest ends too, and the supervisor
//! beneath hears that. The kernel never kills init for want of memory, and does not take the link.

mod init;
mod modules;
mod mounts;
pub(crate) mod net;
mod service;
mod sys;
mod volumes;

use crate::daemon;
use crate::sandbox::{ATTACH_SOCKET, SOCKET, Sandbox};
use crate::supervisor::Supervisor;
use crate::sys::Fork;
use anyhow::{Context, Result, bail};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The program's name in the initial file system.
const PROGRAM: &str = "/init";
/// The bundle of the guest's sandbox.
const FOLDER: &str = "/run/coracle";
/// The port's name, by which the machine's monitor knows it.
const PORT: &str = "coracle";
/// The kernel's list of ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// How long the port may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// A link that ends more often than this is broken.
const MAX_LINKS: u32 = 64;
/// Never killed for want of memory.
const SPARED: &str = "-1000";
/// How long the last answers may take through the link.
const FAREWELL: Duration = Duration::from_millis(100);
/// `ramfs`, which the initial file system is where there is no tmpfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// What only a guest's supervisor has.
pub struct Guest {
    port: OwnedFd,
    link: i32,
    links: u32,
}

/// Whether this is the first program of a virtual machine: nothing else is started by this name as the first process,
/// from a file system that is in memory.
pub fn is_init() -> bool {
    let first = std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == PROGRAM);
    first && statfs("/").is_ok_and(|root| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&root.filesystem_type()))
}

/// Is the init: until the sandbox is shut down, and with it the machine.
pub fn run() -> ! {
    if let Err(error) = live() {
        eprintln!("init: {error:#}");
    }
    sleep(FAREWELL);
    sys::power_off();
    // Only without the right to turn it off; the kernel panics when its init ends, which ends the machine as well.
    crate::sys::exit_now(1)
}

fn live() -> Result<()> {
    init::mount_proc()?;
    // Begins the program anew, once: containers must not write to the file that this process runs.
    coracle_runtime::seal_self()?;
    init::prepare()?;
    let mut supervisor = listen()?;
    supervisor.guest = Some(Guest::new(find_port()?)?);
    supervisor.run()
}

/// The ordinary supervisor, in its bundle. It is named when its sandbox is made.
fn listen() -> Result<Supervisor> {
    DirBuilder::new().recursive(true).mode(0o700).create(FOLDER).with_context(|| format!("make {FOLDER}"))?;
    std::env::set_current_dir(FOLDER).with_context(|| format!("enter {FOLDER}"))?;
    let signals = daemon::take_signals()?;
    let (listener, attach) = (daemon::listen(Path::new(SOCKET))?, daemon::listen(Path::new(ATTACH_SOCKET))?);
    Supervisor::new(Sandbox::new(String::new(), PathBuf::from(FOLDER)), listener, attach, signals)
}

/// Opens the port of the link. Its driver names it a moment after it has found it.
fn find_port() -> Result<OwnedFd> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(device) = port_named(Path::new(PORTS), PORT) {
            let node = Path::new("/dev").join(device);
            match File::options().read(true).write(true).open(&node) {
                Ok(port) => return Ok(port.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("open {}", node.display())),
            }
        }
        if Instant::now() >= end {
            bail!("no virtio port is named {PORT:?} (no virtio console driver?)");
        }
        sleep(PAUSE);
    }
}

fn port_named(ports: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(ports).ok()?.flatten().find_map(|entry| {
        let known = fs::read_to_string(entry.path().join("name")).ok()?;
        (known.trim_end() == name).then(|| entry.file_name().into())
    })
}

impl Guest {
    fn new(port: OwnedFd) -> Result<Self> {
        let mut guest = Guest { port, link: 0, links: 0 };
        guest.start_link().context("start the link")?;
        Ok(guest)
    }

    fn start_link(&mut self) -> io::Result<()> {
        self.links += 1;
        let port = self.port.try_clone()?;
        match crate::sys::fork()? {
            Fork::Parent(pid) => {
                self.link = pid;
                Ok(())
            }
            Fork::Child => {
                let Err(error) = become_link(&port) else { crate::link::guest::run(port, Path::new(FOLDER)) };
                eprintln!("init: start the link: {error}");
                crate::sys::exit_now(1)
            }
        }
    }

    /// A child was reaped. False if it was not the link; otherwise there is a new one.
    pub fn died(&mut self, pid: i32) -> bool {
        if pid != self.link {
            return false;
        }
        self.link = 0;
        let failed = match self.links {
            MAX_LINKS.. => Err(io::Error::other("it ends again and again")),
            _ => self.start_link(),
        };
        if let Err(error) = failed {
            // Nobody can reach this machine any more.
            eprintln!("init: start the link again: {error}");
            sys::power_off();
        }
        true
    }
}

fn become_link(port: &OwnedFd) -> io::Result<()> {
    crate::sys::close_all_but(&mut [port.as_raw_fd()]);
    fs::write("/proc/self/oom_score_adj", SPARED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "other\n"), ("vport1p1", "coracle\n")] {
            fs::create_dir(ports.path().join(device)).unwrap();
            fs::write(ports.path().join(device).join("name"), name).unwrap();
        }
        fs::create_dir(ports.path().join("vport2p1")).unwrap();
        assert_eq!(port_named(ports.path(), "coracle"), Some("vport1p1".into()));
        assert_eq!(port_named(ports.path(), "none"), None);
    }

    #[test]
    fn a_test_is_no_init() {
        assert!(!is_init());
    }
}
