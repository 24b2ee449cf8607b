//! The helper inside a container: enters its mount namespace, becomes its user, and packs or unpacks.
//!
//! It is this program again, before it has a second thread: a user namespace is entered by a process as a whole.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use caps::{CapSet, CapsHashSet};
use clap::Args;
use coracle_copy::inside::{Task, descriptors};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Copy files inside a container (started by `coracle cp`)
#[derive(Debug, Args)]
pub struct Copier {
    /// The mount namespace to enter
    #[arg(long, value_name = "FILE")]
    mount: PathBuf,
    /// The user namespace to enter
    #[arg(long, value_name = "FILE")]
    user: Option<PathBuf>,
    /// Who to become
    #[arg(long)]
    uid: u32,
    /// Whose group to take
    #[arg(long)]
    gid: u32,
    /// Further groups
    #[arg(long = "group")]
    groups: Vec<u32>,
    /// The capabilities to keep, in hexadecimal
    #[arg(long)]
    capabilities: String,
    /// What to do: pack PATH, unpack PATH NAME, unpack-contents PATH, unpack-foreign PATH
    #[arg(required = true)]
    task: Vec<OsString>,
}

impl Copier {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode> {
        // Of the machine, and looked up before the container's takes its place.
        let descriptors = descriptors()?;
        let (task, path) = Task::of(&self.task)?;
        self.enter()?;
        let done = task.perform(path, &descriptors)?;
        Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// From here on every path is the container's, and so is what may be done with it.
    fn enter(&self) -> Result<()> {
        // Nobody of the same user may look into this process.
        nix::sys::prctl::set_dumpable(false).context("hide from the container's processes")?;
        let open = |path: &PathBuf| File::open(path).with_context(|| format!("open {}", path.display()));
        let (user, mount) = (self.user.as_ref().map(open).transpose()?, open(&self.mount)?);
        if let Some(user) = &user {
            setns(user, CloneFlags::CLONE_NEWUSER).context("enter the container's user namespace")?;
        }
        setns(mount, CloneFlags::CLONE_NEWNS).context("enter the container's mount namespace")?;
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        match setgroups(&groups) {
            // A user namespace of an ordinary user forbids it to the container as well.
            Err(nix::Error::EPERM) if user.is_some() => {}
            set => set.context("take the container's groups")?,
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid).with_context(|| format!("become the container's group {gid}"))?;
        setresuid(uid, uid, uid).with_context(|| format!("become the container's user {uid}"))?;
        nix::sys::prctl::set_dumpable(false).context("hide from the container's processes")?;
        self.drop_capabilities()
    }

    fn drop_capabilities(&self) -> Result<()> {
        let mask = u64::from_str_radix(&self.capabilities, 16).context("--capabilities")?;
        let have = caps::read(None, CapSet::Permitted).context("read the capabilities")?;
        let keep: CapsHashSet = have.into_iter().filter(|cap| mask & cap.bitmask() != 0).collect();
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &keep).context("keep the container's capabilities alone")?;
        }
        Ok(())
    }
}
