//! Leases: which sandbox holds which address and which ports of the host. The directory is the database.
//!
//! ```text
//! <state>/net/<bridge>/lock                     flock: held while anything below, the bridge or the table changes
//!                      last                     the address given out last
//!                      ready                    what was prepared in the kernel, see `bridge`
//!                      leases/10.88.0.5@<id>    one file per sandbox; the content is a `Lease` in JSON
//! ```
//!
//! Invariants: a lease is written (temporary name, rename) before anything is made in the kernel for it, and removed
//! after all of that is gone, so whatever exists without a lease is an orphan. The name alone tells address and owner:
//! giving out an address costs one directory listing. Addresses are given out in turn, not lowest first, so that an
//! address just released stays out of use for as long as the subnet allows. The state directory lives in memory and ends
//! with the boot, as the interfaces do: nothing here is synced to a disk.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Error;
use super::ip::Subnet;
use crate::types::PortMapping;

/// Longer than any holder needs; a lock held beyond it means that a process hangs, which is worth saying.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// What a sandbox holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lease {
    pub(super) sandbox: String,
    pub(super) ip: Ipv4Addr,
    pub(super) interface: String,
    #[serde(default)]
    pub(super) ports: Vec<PortMapping>,
}

/// The leases of one bridge.
pub(super) struct Leases {
    dir: PathBuf,
}

/// Proof that this process alone changes the bridge's network; released when dropped.
pub(super) struct Lock {
    _file: File,
}

impl Leases {
    pub(super) fn open(dir: PathBuf) -> Result<Leases, Error> {
        let leases = dir.join("leases");
        fs::create_dir_all(&leases).map_err(|e| Error::file("create", &leases, e))?;
        Ok(Leases { dir })
    }

    /// A file beside the leases.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits for the lock, with a deadline.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        Ok(Lock { _file: lock_file(&self.beside("lock"), false, LOCK_DEADLINE)? })
    }

    /// Every lease as (address, sandbox), by the names alone. Files of other names are none of ours.
    pub(super) fn list(&self) -> Result<Vec<(Ipv4Addr, String)>, Error> {
        let dir = self.dir.join("leases");
        let entries = fs::read_dir(&dir).map_err(|e| Error::file("list", &dir, e))?;
        let mut held = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::file("list", &dir, e))?;
            let name = entry.file_name();
            let parts = name.to_str().and_then(|n| n.split_once('@'));
            if let Some((Ok(ip), sandbox)) = parts.map(|(ip, sandbox)| (ip.parse(), sandbox)) {
                held.push((ip, sandbox.to_owned()));
            }
        }
        held.sort();
        Ok(held)
    }

    /// The lease of `sandbox`, if it holds one.
    pub(super) fn of(&self, sandbox: &str) -> Result<Option<Lease>, Error> {
        match self.list()?.into_iter().find(|(_, owner)| owner == sandbox) {
            Some((ip, _)) => self.read(ip, sandbox),
            None => Ok(None),
        }
    }

    /// Reads one lease; `None` when it was released meanwhile. One that cannot be read still holds its address, and
    /// counts as a lease without ports: what it had in the kernel is then found by its address.
    pub(super) fn read(&self, ip: Ipv4Addr, sandbox: &str) -> Result<Option<Lease>, Error> {
        let path = self.path(ip, sandbox);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|_| Lease {
                sandbox: sandbox.to_owned(),
                ip,
                interface: super::embedded::interface_name(sandbox),
                ports: Vec::new(),
            }))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", &path, e)),
        }
    }

    /// Reads all leases.
    pub(super) fn read_all(&self) -> Result<Vec<Lease>, Error> {
        let mut all = Vec::new();
        for (ip, sandbox) in self.list()? {
            all.extend(self.read(ip, &sandbox)?);
        }
        Ok(all)
    }

    /// Gives `sandbox` the next free address of `subnet` and records it together with its ports.
    pub(super) fn take(
        &self,
        _lock: &Lock,
        subnet: Subnet,
        reserved: &[Ipv4Addr],
        sandbox: &str,
        ports: &[PortMapping],
    ) -> Result<Lease, Error> {
        let held = self.list()?;
        let mark = self.beside("last");
        let last = fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
        let taken = |ip: Ipv4Addr| reserved.contains(&ip) || held.iter().any(|(other, _)| *other == ip);
        let ip = next_free(subnet, last, taken)
            .ok_or_else(|| Error::Exhausted { subnet: subnet.to_string(), held: held.len() })?;
        let lease = Lease {
            sandbox: sandbox.to_owned(),
            ip,
            interface: super::embedded::interface_name(sandbox),
            ports: ports.to_vec(),
        };
        let text = serde_json::to_vec(&lease).expect("a lease is plain data");
        let path = self.path(ip, sandbox);
        create_whole(&path, &text, 0o600).map_err(|e| Error::file("write", &path, e))?;
        // Lost or stale, this only makes the turn start elsewhere.
        let _ = fs::write(&mark, ip.to_string());
        Ok(lease)
    }

    /// Forgets a lease; that it is gone already is no error.
    pub(super) fn release(&self, _lock: &Lock, ip: Ipv4Addr, sandbox: &str) -> Result<(), Error> {
        let path = self.path(ip, sandbox);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path, e)),
            _ => Ok(()),
        }
    }

    fn path(&self, ip: Ipv4Addr, sandbox: &str) -> PathBuf {
        self.dir.join("leases").join(format!("{ip}@{sandbox}"))
    }
}

/// Waits for the lock of a file, at most so long; it is released with the file.
pub(super) fn lock_file(path: &Path, shared: bool, patience: Duration) -> Result<File, Error> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|e| Error::file("open", path, e))?;
    let deadline = Instant::now() + patience;
    loop {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                let held = io::Error::other(format!("another process held it for {} s", patience.as_secs()));
                return Err(Error::file("lock", path, held));
            }
            Err(TryLockError::Error(e)) => return Err(Error::file("lock", path, e)),
        }
    }
}

/// Makes a file that is there whole or not at all, and of which a kill in between leaves nothing: it has no name until
/// it is complete (O_TMPFILE, open(2)). Where the file system knows no such files, a temporary name does. One that is
/// there already stays, which is an error.
pub(super) fn create_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
    let parent = path.parent().unwrap_or(Path::new("."));
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let Ok(nameless) = nix::fcntl::open(parent, flags, nix::sys::stat::Mode::from_bits_truncate(mode)) else {
        return match path.exists() {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => rename_whole(path, content),
        };
    };
    let mut file = File::from(nameless);
    io::Write::write_all(&mut file, content)?;
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(nix::unistd::linkat(AT_FDCWD, source.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

/// Writes a file so that readers see all of it or none.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    rename_whole(path, content).map_err(|e| Error::file("write", path, e))
}

fn rename_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

/// The first address after `last`, in turn, that can be given to a pod: not the network's own, not the gateway (the
/// first), not broadcast, and not `taken`.
fn next_free(subnet: Subnet, last: Option<Ipv4Addr>, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    const FIRST: u32 = 2;
    let end = subnet.last(); // exclusive: the last is broadcast
    let count = end.checked_sub(FIRST).filter(|count| *count > 0)?;
    let start = last.and_then(|ip| subnet.offset(ip)).map_or(0, |at| (at + 1).saturating_sub(FIRST) % count);
    (0..count).map(|step| subnet.nth(FIRST + (start + step) % count)).find(|ip| !taken(*ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn leases() -> (tempfile::TempDir, Leases) {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(dir.path().join("br")).unwrap();
        (dir, leases)
    }

    fn take(leases: &Leases, subnet: &str, sandbox: &str) -> Result<Ipv4Addr, Error> {
        let lock = leases.lock().unwrap();
        leases.take(&lock, subnet.parse().unwrap(), &[], sandbox, &[]).map(|lease| lease.ip)
    }

    #[test]
    fn addresses_go_in_turn_and_return_only_after_release() {
        let (_dir, leases) = leases();
        let first: Vec<_> = ["a", "b"].iter().map(|s| take(&leases, "10.9.0.0/29", s).unwrap().octets()[3]).collect();
        assert_eq!(first, [2, 3]);
        leases.release(&leases.lock().unwrap(), Ipv4Addr::new(10, 9, 0, 2), "a").unwrap();
        let next: Vec<_> =
            ["c", "d", "e"].iter().map(|s| take(&leases, "10.9.0.0/29", s).unwrap().octets()[3]).collect();
        assert_eq!(next, [4, 5, 6], "a released address waits for its turn");
        assert_eq!(take(&leases, "10.9.0.0/29", "f").unwrap().octets()[3], 2);
        let full = take(&leases, "10.9.0.0/29", "g").unwrap_err().to_string();
        assert!(full.contains("10.9.0.0/29") && full.contains("5"), "{full}");
    }

    #[test]
    fn releasing_twice_and_another_owners_address_do_nothing() {
        let (_dir, leases) = leases();
        let ip = take(&leases, "10.9.0.0/24", "a").unwrap();
        leases.release(&leases.lock().unwrap(), ip, "b").unwrap();
        assert_eq!(leases.list().unwrap(), [(ip, "a".to_owned())]);
        for _ in 0..2 {
            leases.release(&leases.lock().unwrap(), ip, "a").unwrap();
        }
        assert!(leases.of("a").unwrap().is_none());
    }

    #[test]
    fn a_damaged_lease_still_holds_its_address() {
        let (_dir, leases) = leases();
        let ip = take(&leases, "10.9.0.0/24", "a").unwrap();
        fs::write(leases.path(ip, "a"), "{").unwrap();
        let lease = leases.of("a").unwrap().unwrap();
        assert_eq!((lease.ip, lease.ports.len()), (ip, 0));
        assert_ne!(take(&leases, "10.9.0.0/24", "b").unwrap(), ip);
    }

    #[test]
    fn foreign_files_are_no_leases() {
        let (_dir, leases) = leases();
        for name in ["readme", "x@y", ".10.9.0.2@half-written"] {
            fs::write(leases.dir.join("leases").join(name), "").unwrap();
        }
        assert!(leases.list().unwrap().is_empty());
    }

    #[test]
    fn processes_that_allocate_at_once_get_different_addresses() {
        let (_dir, leases) = leases();
        let ips: HashSet<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|w| {
                    let leases = &leases;
                    scope.spawn(move || {
                        (0..10).map(|i| take(leases, "10.9.0.0/24", &format!("{w}-{i}")).unwrap()).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        assert_eq!(ips.len(), 80);
    }

    proptest! {
        #[test]
        fn an_address_given_out_is_free_and_usable(prefix in 20u8..=32, last in any::<u32>(), taken in proptest::collection::hash_set(0u32..300, 0..200)) {
            let subnet = Subnet::new(Ipv4Addr::new(10, 9, 0, 0), prefix);
            let held: HashSet<_> = taken.iter().map(|t| subnet.nth(*t)).collect();
            let usable: HashSet<_> = (2..subnet.last()).map(|n| subnet.nth(n)).filter(|ip| !held.contains(ip)).collect();
            match next_free(subnet, Some(subnet.nth(last % 5000)), |ip| held.contains(&ip)) {
                Some(ip) => prop_assert!(usable.contains(&ip)),
                None => prop_assert!(usable.is_empty()),
            }
        }
    }
}
