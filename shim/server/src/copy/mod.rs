//! The ends of a copy (`shim/copy` says what goes between them, and what it cannot be tricked into).
//!
//! ```text
//! machine                                                 the container's side
//! coracle cp ---- unpack <--- tar stream --- pack         `coracle copier` ([`inside`]) in its mount namespace; or a
//!            ---- pack   ---- tar stream --> unpack       process of a container in a virtual machine ([`helper`])
//! ```
//!
//! No program of the image runs, so an image needs no `tar`, and cannot bring one that lies. The helper of the machine's
//! own containers acts with the container's user and capabilities, and is no process the container can see. In a virtual
//! machine it is an exec of the container, whose program is the guest's supervisor: it has what the container has.

pub mod helper;
pub mod inside;

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result};

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
