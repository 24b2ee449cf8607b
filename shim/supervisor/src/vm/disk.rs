//! The disks of a machine: files of the host, plugged in once each, whoever uses them.
//!
//! ```json
//! {"next":3,"disks":[{"serial":"disk-1","device":64769,"inode":42,"read_only":true,"users":2}]}
//! ```
//! `<bundle>/vm/disks.json` says what is plugged in, under a lock. A number is taken for good before anything is done
//! with it: what a worker leaves behind that is killed half way has a name that nobody meets again, and goes with the
//! machine. The monitor keeps a disk's file open, so its inode cannot become another's.

use super::vmm::vmm;
use crate::failure::{Fail, Failure};
use coracle_proto::ttrpc::Code;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What is plugged in.
const RECORD: &str = "disks.json";
const LOCK: &str = "disks.lock";
/// The controller has this many addresses less one for itself.
const MAX_DISKS: usize = 250;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Disks {
    next: u64,
    disks: Vec<Disk>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Disk {
    serial: String,
    device: u64,
    inode: u64,
    read_only: bool,
    users: u32,
}

impl Disks {
    fn load(folder: &Path) -> io::Result<Disks> {
        match fs::read(folder.join(RECORD)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Disks::default()),
            Err(error) => Err(error),
        }
    }

    fn save(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(".disks.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, folder.join(RECORD))
    }
}

fn lock(folder: &Path) -> io::Result<Flock<File>> {
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK))?;
    Ok(Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?)
}

/// Plugs a file in, or counts another user of the disk that it is already. Answers its serial number. In a worker.
pub fn plug(folder: &Path, file: &Path, read_only: bool) -> Result<String, Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("plug {} in as a disk: {error}", file.display()));
    let open = File::options().read(true).write(!read_only).open(file).map_err(failed)?;
    let meta = open.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(Code::InvalidArgument.failure(format!("plug {} in as a disk: it is no file", file.display())));
    }
    let _lock = lock(folder).map_err(failed)?;
    let mut disks = Disks::load(folder).map_err(failed)?;
    let same = |disk: &&mut Disk| (disk.device, disk.inode) == (meta.dev(), meta.ino());
    if let Some(disk) = disks.disks.iter_mut().find(same) {
        if disk.read_only != read_only {
            let text = format!("plug {} in as a disk: it is one already, for other uses", file.display());
            return Err(Code::FailedPrecondition.failure(text));
        }
        disk.users += 1;
        let serial = disk.serial.clone();
        return disks.save(folder).map_err(failed).map(|()| serial);
    }
    if disks.disks.len() >= MAX_DISKS {
        return Err(Code::ResourceExhausted.failure(format!("the machine has {MAX_DISKS} disks already")));
    }
    disks.next += 1;
    disks.save(folder).map_err(failed)?;
    let serial = format!("disk-{}", disks.next);
    vmm().plug(folder, &serial, &open, read_only)?;
    let (device, inode) = (meta.dev(), meta.ino());
    disks.disks.push(Disk { serial: serial.clone(), device, inode, read_only, users: 1 });
    disks.save(folder).map_err(failed)?;
    Ok(serial)
}

/// Counts a user less; after the last one the disk is taken away. The guest does not use it any more. In a worker.
pub fn unplug(folder: &Path, serial: &str) -> Result<(), Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("take disk {serial} away: {error}"));
    let _lock = lock(folder).map_err(failed)?;
    let mut disks = Disks::load(folder).map_err(failed)?;
    let Some(at) = disks.disks.iter().position(|disk| disk.serial == serial) else { return Ok(()) };
    disks.disks[at].users -= 1;
    if disks.disks[at].users == 0 {
        vmm().unplug(folder, serial)?;
        disks.disks.remove(at);
    }
    disks.save(folder).map_err(failed)
}

/// How many users a disk has: with one left, the guest is to let go of it before it is taken away.
pub fn users(folder: &Path, serial: &str) -> Result<u32, Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("look for disk {serial}: {error}"));
    let _lock = lock(folder).map_err(failed)?;
    let disks = Disks::load(folder).map_err(failed)?;
    Ok(disks.disks.iter().find(|disk| disk.serial == serial).map_or(0, |disk| disk.users))
}
