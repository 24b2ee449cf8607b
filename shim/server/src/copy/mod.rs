//! Files between the machine and a container that may be hostile.
//!
//! ```text
//! machine                                                     container's mount namespace
//! coracle cp ---- unpack ([`unpack`]) <--- tar stream --- `coracle copier` [`inside`] ---- pack ([`pack`])
//!            ---- pack                ---- tar stream --> `coracle copier`            ---- unpack
//! ```
//!
//! No program of the image runs, so an image needs no `tar`, and cannot bring one that lies. What touches the
//! container's files is a process of ours that has entered the container's mount namespace, so every path is resolved
//! from the container's own root: no link can lead it to the machine's files. It acts with the container's user and
//! capabilities, and is no process the container can see. What it cannot be tricked into:
//!
//! - Device nodes. A container may make one that its device cgroup forbids it to open, and nothing forbids us: a file
//!   is opened without access (`O_PATH`), looked at, and only a regular one is opened for reading, by that descriptor.
//!   A file is written under a new name and renamed over the old one: what stood there is never opened.
//! - Pipes and sockets are told and left out, so nothing waits for ever.
//!
//! On the machine's side the stream is hostile data: a name is placed component by component beneath the folder named
//! on the command line, no link is followed, none is made that could lead out of what is copied, and no file gets the
//! set-user-id or set-group-id bit.

pub mod inside;
mod pack;
mod unpack;

pub use pack::pack;
pub use unpack::{Side, unpack};

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Whether the other side of the stream has gone, which it tells itself.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(broken)
}

/// Told on standard error: something was left out, and the rest goes on. A container chose the name: it is quoted.
fn left_out(path: &Path, why: &str) -> Result<()> {
    eprintln!("coracle: cp: {path:?} is left out: {why}");
    Ok(())
}

/// The namespaces of a container and who it runs as: what a helper needs to enter it.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    mount: File,
    user: File,
    id: (u32, u32, Vec<u32>),
}

impl Container {
    /// That of a living process. The caller looks once more afterwards whether it was the container's: then these are
    /// its namespaces, whatever the pid means later.
    pub fn of(pid: i32, uid: u32, gid: u32, groups: &[u32]) -> Result<Container> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            File::open(&path).with_context(|| format!("open {path}"))
        };
        Ok(Container { pid, mount: open("mnt")?, user: open("user")?, id: (uid, gid, groups.to_vec()) })
    }

    /// The command that does its part inside; `self` must live until it has started.
    pub fn command(&self) -> Result<Command> {
        use std::os::fd::AsRawFd;
        let own = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let (uid, gid, groups) = &self.id;
        let mut command = Command::new("/proc/self/exe");
        command.arg("copier").args(["--mount", &own(&self.mount)]);
        if !is_own_user_namespace(&self.user)? {
            command.args(["--user", &own(&self.user)]);
        }
        command.args(["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
        for group in groups {
            command.args(["--group", &group.to_string()]);
        }
        command.args(["--capabilities", &capabilities(self.pid)?]);
        Ok(command)
    }
}

fn is_own_user_namespace(file: &File) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/self/ns/user").context("look at /proc/self/ns/user")?;
    let other = file.metadata().context("look at a user namespace")?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

/// The effective capabilities of a process, as `/proc/PID/status` writes them.
fn capabilities(pid: i32) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(line.with_context(|| format!("{path} has no CapEff"))?.trim().to_owned())
}
