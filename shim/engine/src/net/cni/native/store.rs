//! Addresses, kept as the plugin `host-local` keeps them, in its folder and under its lock: plugins and we take from one
//! pool, and may come and go in any order.
//!
//! ```text
//! <dataDir>/<network>/lock                     flock
//!                     last_reserved_ip.<n>     the address last given out of the n-th set of ranges
//!                     10.22.0.5                who has it: container's id, CR LF, interface
//! ```
//!
//! Addresses go in turn, beginning after the last one given out; a range's gateway is passed over. A lease has no name
//! before it is whole, so that a kill leaves no half of it.
//!
//! The folder is on a disk and outlives the boot, our records and the pods do not. So leases of our pods carry the boot
//! in an extended attribute, which the plugin does not look at; those of another boot are nobody's, and go when they are
//! in the way or garbage is collected. (Where the disk knows no such attributes, they stay, as with everyone else.)

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::plan::{RangeSet, address, number};
use crate::net::lease::{create_whole, lock_file};
use crate::net::{Error, IpNet};
use crate::record::boot_id;
use crate::sys;

/// The plugin holds its lock for some milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Holds the boot that a lease is of.
const BOOT: &str = "trusted.coracle.boot";
/// host-local's leases can be read by all.
const MODE: u32 = 0o644;

/// The addresses of one network.
pub(in crate::net::cni) struct Store<'a> {
    dir: &'a Path,
}

/// Who has an address.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) container: &'a str,
    pub(super) ifname: &'a str,
}

impl Owner<'_> {
    fn text(self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// Whether a lease's content is of this owner; old plugins wrote no interface.
    fn wrote(self, content: &[u8]) -> bool {
        let content = content.trim_ascii();
        content == self.text().as_bytes() || content == self.container.as_bytes()
    }
}

impl<'a> Store<'a> {
    /// The folder, made when it is not there.
    pub(in crate::net::cni) fn open(dir: &'a Path) -> Result<Store<'a>, Error> {
        fs::create_dir_all(dir).map_err(|e| Error::file("create", dir, e))?;
        Ok(Store { dir })
    }

    fn lock(&self) -> Result<File, Error> {
        lock_file(&self.dir.join("lock"), false, LOCK_PATIENCE)
    }

    /// Takes an address of each set for `owner`; all or none.
    pub(super) fn reserve(&self, sets: &[RangeSet], owner: Owner) -> Result<Vec<IpNet>, Error> {
        let _lock = self.lock()?;
        let mut taken = Vec::new();
        for (at, set) in sets.iter().enumerate() {
            match self.next(at, set, owner) {
                Ok(ip) => taken.push(IpNet { ip, prefix: set.subnet.prefix }),
                Err(e) => {
                    taken.iter().try_for_each(|net: &IpNet| self.remove(&self.path(net.ip), owner))?;
                    return Err(e);
                }
            }
        }
        Ok(taken)
    }

    fn next(&self, at: usize, set: &RangeSet, owner: Owner) -> Result<IpAddr, Error> {
        let found = self.first_free(at, set, owner)?;
        let found = match found {
            None if self.sweep_locked()? > 0 => self.first_free(at, set, owner)?,
            found => found,
        };
        match found {
            Some(ip) => Ok(ip),
            None => {
                let held = self.names()?.iter().filter(|name| name.parse::<IpAddr>().is_ok()).count();
                Err(Error::Exhausted { subnet: set.subnet.to_string(), held })
            }
        }
    }

    fn first_free(&self, at: usize, set: &RangeSet, owner: Owner) -> Result<Option<IpAddr>, Error> {
        let mark = self.dir.join(format!("last_reserved_ip.{at}"));
        let last = fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
        let mut held: Option<HashSet<String>> = None;
        for ip in turn(set, last) {
            if held.as_ref().is_some_and(|held| held.contains(&ip.to_string())) {
                continue;
            }
            match create_whole(&self.path(ip), owner.text().as_bytes(), MODE) {
                Ok(()) => {
                    self.sign(&[ip]);
                    // Lost or stale, this only makes the turn start elsewhere.
                    let _ = overwrite(&mark, &ip.to_string());
                    return Ok(Some(ip));
                }
                // The usual case is that the next one is free; only then is it worth to ask for all.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    held.get_or_insert(self.names()?);
                }
                Err(e) => return Err(Error::file("write", &self.path(ip), e)),
            }
        }
        Ok(None)
    }

    /// Marks leases as those of pods of this boot.
    pub(in crate::net::cni) fn sign(&self, ips: &[IpAddr]) {
        for ip in ips {
            // Without the mark a lease stays when the host ends before its pod; nothing else is lost.
            let _ = sys::set_xattr(&self.path(*ip), BOOT, boot_id().as_bytes());
        }
    }

    /// Removes leases of our pods of other boots; tells how many.
    pub(in crate::net::cni) fn sweep(&self) -> Result<usize, Error> {
        let _lock = self.lock()?;
        self.sweep_locked()
    }

    fn sweep_locked(&self) -> Result<usize, Error> {
        let mut swept = 0;
        for path in self.names()?.iter().filter_map(|name| name.parse().ok()).map(|ip| self.path(ip)) {
            if sys::get_xattr(&path, BOOT).is_ok_and(|boot| boot != boot_id().as_bytes()) {
                fs::remove_file(&path).map_err(|e| Error::file("remove", &path, e))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn names(&self) -> Result<HashSet<String>, Error> {
        let entries = fs::read_dir(self.dir).map_err(|e| Error::file("list", self.dir, e))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Gives back what `owner` has: the addresses that are known, or with none known all that are found.
    pub(super) fn release(&self, known: &[IpNet], owner: Owner) -> Result<(), Error> {
        let _lock = self.lock()?;
        let paths: Vec<PathBuf> = match known {
            [] => self.names()?.iter().filter_map(|name| name.parse().ok()).map(|ip| self.path(ip)).collect(),
            known => known.iter().map(|net| self.path(net.ip)).collect(),
        };
        paths.iter().try_for_each(|path| self.remove(path, owner))
    }

    /// Whether `owner` has the address.
    pub(super) fn holds(&self, ip: IpAddr, owner: Owner) -> bool {
        fs::read(self.path(ip)).is_ok_and(|content| owner.wrote(&content))
    }

    fn remove(&self, path: &Path, owner: Owner) -> Result<(), Error> {
        let removed = match fs::read(path) {
            Ok(content) if owner.wrote(&content) => fs::remove_file(path),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, e)),
            _ => Ok(()),
        }
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }
}

/// Writes a file in place. Cutting it to nothing first, as `fs::write` does, makes ext4 wait for the disk when the file is
/// closed: 4 ms, and most of an attachment's time. The lock keeps readers out meanwhile.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(text.as_bytes(), 0)?;
    if file.metadata()?.len() != text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

/// All addresses of a set, in turn after `last`, once around.
fn turn(set: &RangeSet, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
    let ranges: Vec<(u128, u128)> = set.ranges.iter().map(|(start, end)| (number(*start), number(*end))).collect();
    let gateway = set.gateway;
    let last = last.filter(|ip| ip.is_ipv4() == gateway.is_ipv4()).map(number);
    let found = last.and_then(|ip| Some((ip, ranges.iter().position(|(start, end)| (*start..=*end).contains(&ip))?)));
    let pieces = match found {
        // The range that is begun in the middle is gone through in two pieces: the first, and at the very end the rest.
        Some((ip, at)) => {
            let (start, end) = ranges[at];
            [&[(ip + 1, end)], &ranges[at + 1..], &ranges[..at], &[(start, ip)]].concat()
        }
        None => ranges,
    };
    let all = pieces.into_iter().flat_map(|(start, end)| start..=end);
    all.map(move |n| address(n, gateway)).filter(move |ip| *ip != gateway)
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::of;
    use super::*;

    const A: Owner = Owner { container: "aaa", ifname: "eth0" };
    const B: Owner = Owner { container: "bbb", ifname: "eth0" };

    fn sets(ranges: &str) -> Vec<RangeSet> {
        of("", &format!(r#""ranges": [{ranges}]"#), "").unwrap().sets
    }

    fn last(nets: Vec<IpNet>) -> u8 {
        let IpAddr::V4(ip) = nets[0].ip else { panic!("an IPv4 address") };
        ip.octets()[3]
    }

    #[test]
    fn addresses_go_in_turn_past_the_gateway_and_around() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let sets = sets(r#"[{"subnet": "10.9.0.0/29"}]"#);
        let owners: Vec<String> = (0..7).map(|n| format!("c{n}")).collect();
        let take = |n: usize| store.reserve(&sets, Owner { container: &owners[n], ifname: "eth0" });
        assert_eq!((0..3).map(|n| last(take(n).unwrap())).collect::<Vec<_>>(), [2, 3, 4]);
        store.release(&[], Owner { container: "c0", ifname: "eth0" }).unwrap();
        assert_eq!((3..6).map(|n| last(take(n).unwrap())).collect::<Vec<_>>(), [5, 6, 2]);
        let full = take(6).unwrap_err().to_string();
        assert!(full.contains("10.9.0.0/29") && full.contains("5 are held"), "{full}");
        assert_eq!(fs::read_to_string(dir.path().join("last_reserved_ip.0")).unwrap(), "10.9.0.2");
        assert_eq!(fs::read(dir.path().join("10.9.0.3")).unwrap(), b"c1\r\neth0");
    }

    #[test]
    fn several_ranges_are_one_pool() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let range = |from: u8, to: u8| {
            format!(r#"{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.{from}", "rangeEnd": "10.9.0.{to}"}}"#)
        };
        let sets = sets(&format!("[{}, {}]", range(10, 11), range(20, 21)));
        let given: Vec<u8> = (0..4)
            .map(|n| last(store.reserve(&sets, Owner { container: &n.to_string(), ifname: "eth0" }).unwrap()))
            .collect();
        assert_eq!(given, [10, 11, 20, 21]);
    }

    #[test]
    fn all_families_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let sets = sets(r#"[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00::/126"}]"#);
        let got = store.reserve(&sets, A).unwrap();
        assert_eq!(got.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.0.2/24", "fd00::2/126"]);
        assert!(store.holds(got[1].ip, A) && !store.holds(got[1].ip, B));
        store.reserve(&sets, B).unwrap();
        store.reserve(&sets, Owner { container: "ccc", ifname: "eth0" }).unwrap_err();
        assert!(!dir.path().join("10.9.0.4").exists(), "what was taken goes back");
    }

    #[test]
    fn only_the_owners_leases_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let sets = sets(r#"[{"subnet": "10.9.0.0/24"}]"#);
        let (a, b) = (store.reserve(&sets, A).unwrap(), store.reserve(&sets, B).unwrap());
        store.release(&b, A).unwrap();
        store.release(&[], A).unwrap();
        store.release(&a, A).unwrap();
        assert!(store.holds(b[0].ip, B) && !store.holds(a[0].ip, A));
        fs::write(dir.path().join("10.9.0.9"), "aaa").unwrap();
        store.release(&[], A).unwrap();
        assert!(!dir.path().join("10.9.0.9").exists(), "leases of old plugins name no interface");
    }

    #[test]
    fn leases_of_another_boot_go_when_they_are_in_the_way_and_foreign_ones_stay() {
        let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
        let store = Store::open(dir.path()).unwrap();
        let sets = sets(r#"[{"subnet": "10.9.0.0/29"}]"#);
        store.reserve(&sets, A).unwrap();
        for (at, boot) in [(3, Some("an earlier boot")), (4, None), (5, None), (6, Some("an earlier boot"))] {
            let path = dir.path().join(format!("10.9.0.{at}"));
            fs::write(&path, "ddd\r\neth0").unwrap();
            if let Some(boot) = boot {
                sys::set_xattr(&path, BOOT, boot.as_bytes()).unwrap();
            }
        }
        assert_eq!(last(store.reserve(&sets, B).unwrap()), 3);
        assert!(!dir.path().join("10.9.0.6").exists() && dir.path().join("10.9.0.4").exists());
        assert_eq!(store.sweep().unwrap(), 0);
        assert!(dir.path().join("10.9.0.2").exists());
    }

    #[test]
    fn those_who_take_at_once_get_different_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let sets = sets(r#"[{"subnet": "10.9.0.0/24"}]"#);
        let given: HashSet<u8> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|w| {
                    let (dir, sets) = (dir.path(), &sets);
                    scope.spawn(move || {
                        let store = Store::open(dir).unwrap();
                        let take =
                            |i: u32| store.reserve(sets, Owner { container: &format!("{w}-{i}"), ifname: "eth0" });
                        (0..8).map(|i| last(take(i).unwrap())).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 64);
    }
}
