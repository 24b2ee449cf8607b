//! What is kept of each attachment, so that it can be undone by any later process and with any later configuration.
//!
//! ```text
//! <state>/net/cni/lock                        flock: shared by ADD and DEL, exclusive for GC, as the specification wants
//!                 ports                       flock: held while ports are compared and a record with ports is written
//!                 used-<network>              plugins of this network made attachments since the host started
//!                 <sandbox>/lock              flock: one act on a sandbox at a time
//!                 <sandbox>/attachment.json   a `Record`
//! /run/netns/coracle-<sandbox>                the pod's network namespace, as long as plugins may need it
//! ```
//!
//! Invariants: a record is written before anything is done for it and removed after all of that is undone, so that a
//! crash in between leaves a record, and DEL is run again. A record holds everything that DEL needs, the plugins'
//! configurations included. Plugins get a path of the namespace that stays what it is: that of a process would by and by
//! be another's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conf::{Conf, Version};
use super::native;
use crate::net::Error;
use crate::net::lease::{lock_file, write_whole};
use crate::types::PortMapping;

/// Where plugins and their daemons expect network namespaces.
const NETNS_DIR: &str = "/run/netns";
const FILE: &str = "attachment.json";

/// One attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) sandbox: String,
    /// The network's name.
    pub(super) network: String,
    pub(super) ifname: String,
    /// The hostPorts it has.
    #[serde(default)]
    pub(super) ports: Vec<PortMapping>,
    pub(super) how: How,
}

/// Who made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// The plugins.
    Exec(Exec),
    /// We did, in their place.
    Native(native::Held),
}

/// What plugins were told, and answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Exec {
    pub(super) conf: Conf,
    pub(super) version: Version,
    pub(super) args: String,
    pub(super) capabilities: Map<String, Value>,
    /// Where the plugins were.
    pub(super) dirs: Vec<PathBuf>,
    /// The pod's network namespace.
    pub(super) netns: PathBuf,
    /// The last plugin's answer, once all have answered.
    #[serde(default)]
    pub(super) result: Option<Value>,
}

/// All records.
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn open(dir: PathBuf) -> Result<Records, Error> {
        fs::create_dir_all(&dir).map_err(|e| Error::file("create", &dir, e))?;
        Ok(Records { dir })
    }

    fn folder(&self, sandbox: &str) -> PathBuf {
        self.dir.join(sandbox)
    }

    /// The sandboxes of which something is kept.
    pub(super) fn sandboxes(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::file("list", &self.dir, e))?;
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::file("list", &self.dir, e))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && (entry.path().join(FILE).exists() || entry.path().join("lock").exists())
                && let Ok(name) = entry.file_name().into_string()
            {
                all.push(name);
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// All records that can be read.
    pub(super) fn all(&self) -> Result<Vec<Record>, Error> {
        Ok(self.sandboxes()?.iter().filter_map(|sandbox| self.read(sandbox).ok().flatten()).collect())
    }

    /// Whether something is kept of a sandbox.
    pub(super) fn has(&self, sandbox: &str) -> bool {
        self.folder(sandbox).exists()
    }

    /// A sandbox's record, if there is one.
    pub(super) fn read(&self, sandbox: &str) -> Result<Option<Record>, Error> {
        let path = self.folder(sandbox).join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::file("read", &path, e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", &path, e)),
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec(record).expect("a record is plain data");
        write_whole(&self.folder(&record.sandbox).join(FILE), &text)
    }

    /// Notes that plugins of a network make attachments for us.
    pub(super) fn note_use(&self, network: &str) -> Result<(), Error> {
        let path = self.dir.join(format!("used-{network}"));
        File::create(&path).map(drop).map_err(|e| Error::file("create", &path, e))
    }

    /// Whether they did since the host started.
    pub(super) fn is_used(&self, network: &str) -> bool {
        self.dir.join(format!("used-{network}")).exists()
    }

    /// Forgets a sandbox: the record first, so that what is left of a crash is an empty folder.
    pub(super) fn remove(&self, sandbox: &str) -> Result<(), Error> {
        let folder = self.folder(sandbox);
        let removed = match fs::remove_file(folder.join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => fs::remove_dir_all(&folder),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &folder, e)),
            _ => Ok(()),
        }
    }

    /// The right to act on a sandbox's attachment.
    pub(super) fn hold(&self, sandbox: &str, patience: Duration) -> Result<File, Error> {
        const ATTEMPTS: u32 = 10;
        let folder = self.folder(sandbox);
        for attempt in 1.. {
            match fs::create_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::file("create", &folder, e)),
                _ => {}
            }
            match lock_file(&folder.join("lock"), false, patience) {
                // Somebody has just finished with the sandbox, and took the folder away.
                Err(Error::File { why, .. }) if why.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                locked => return locked,
            }
        }
        unreachable!("the last attempt returned")
    }

    /// The right to run ADD or DEL; no GC runs meanwhile.
    pub(super) fn share(&self, patience: Duration) -> Result<File, Error> {
        lock_file(&self.dir.join("lock"), true, patience)
    }

    /// The right to run GC; nothing else runs meanwhile.
    pub(super) fn alone(&self, patience: Duration) -> Result<File, Error> {
        lock_file(&self.dir.join("lock"), false, patience)
    }

    /// The right to take ports.
    pub(super) fn ports(&self, patience: Duration) -> Result<File, Error> {
        lock_file(&self.dir.join("ports"), false, patience)
    }
}

/// Where a sandbox's network namespace will be pinned.
pub(super) fn pin_path(sandbox: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(format!("coracle-{sandbox}"))
}

/// Gives a network namespace a path of its own, where it stays until [`unpin`].
pub(super) fn pin(netns: &File, path: &Path) -> Result<(), Error> {
    fs::create_dir_all(NETNS_DIR).map_err(|e| Error::file("create", NETNS_DIR.as_ref(), e))?;
    File::create(path).map_err(|e| Error::file("create", path, e))?;
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(netns));
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| Error::file("mount the pod's network namespace on", path, e.into()))
}

/// Whether a network namespace is pinned there.
pub(super) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Lets a network namespace go; that there is none is no error.
pub(super) fn unpin(path: &Path) -> Result<(), Error> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(e) => return Err(Error::file("unmount", path, e.into())),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, e)),
        _ => Ok(()),
    }
}
