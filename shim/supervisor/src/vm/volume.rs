//! The pod's own files and folders, brought to the guest: sent by Guest.Put, kept up to date, and fetched back.
//!
//! | what | volume in the guest |
//! |---|---|
//! | a folder of configuration | `v-HASH`, the same entries; links are links, so that kubelet's `..data` swings there, too |
//! | a single file | `v-HASH/file`, written in place when it changes |
//! | scratch space | `v-HASH`, a folder with this one's owner and mode, shared by the pod's containers |
//! | the same that is a tmpfs of its own here: /dev/shm, an emptyDir in memory | a tmpfs of that size and those flags |
//! | a container's bundle | `c-ID`: config.json, rootfs, upper, work |
//!
//! HASH is of the path here. A folder is read without following links, within [`MAX_VOLUME`]; one that changes meanwhile is
//! read again. What was sent is watched by inotify in the supervisor's loop; a worker sends it again, one at a time.

use crate::failure::{Fail, Failure};
use crate::reactor::{Reactor, Token};
use crate::remote::SHORT;
use crate::shim::client::Client;
use coracle_proto::coracle::guest_entry::Kind;
use coracle_proto::coracle::{
    GuestEntry, GuestFetchRequest, GuestFetchResponse, GuestMemory, GuestPutRequest, GuestPutResponse,
};
use coracle_proto::ttrpc::{Code, method, service};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The bytes of all files of a volume; those of a ConfigMap or Secret are 1 MiB at most, and projections hold several.
const MAX_VOLUME: u64 = 8 << 20;
/// One file has to fit into a message.
const MAX_FILE: u64 = 3 << 20;
/// Its entries.
const MAX_ENTRIES: usize = 4096;
/// Folders within folders.
const MAX_DEPTH: usize = 16;
/// Bytes of one message, but for a bigger file.
const BATCH: usize = 2 << 20;
/// A volume that changes while it is read is read again, so often.
const ATTEMPTS: usize = 5;
/// What an entry takes in a message beyond its path and content.
const ENTRY: usize = 64;
/// The name of a file that is a volume by itself.
pub const FILE: &str = "file";
/// Bytes of a container's last words, as kubelet has it.
const MAX_MESSAGE: u64 = 4 << 10;
/// After a change, more are likely to follow.
const CALM: Duration = Duration::from_millis(50);
/// What could not be sent is tried again after that.
const AGAIN: Duration = Duration::from_secs(2);
/// Of a hash in a name.
const HASH_BYTES: usize = 12;

/// A volume that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its name in the guest.
    pub volume: String,
    /// Where it is here.
    pub source: PathBuf,
    /// When it had last changed, in nanoseconds.
    pub changed: i128,
}

fn failed(what: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    Code::Unknown.failure(format!("{what} {}: {error}", path.display()))
}

/// The name of a volume in the guest.
pub fn name(source: &Path) -> String {
    let hash = Sha256::digest(source.as_os_str().as_bytes());
    let hash: String = hash.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("v-{hash}")
}

/// The name of a container's bundle.
pub fn bundle_name(id: &str) -> String {
    // The one character of ids that names of volumes do not have.
    format!("c-{}", id.replace('+', "~"))
}

fn changed(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Sends a file or folder as it is now; where it is in the guest.
pub fn send(client: &mut Client, source: &Path) -> Result<(String, Sent), Failure> {
    let meta = fs::metadata(source).map_err(|error| failed("look at", source, error))?;
    let volume = name(source);
    let sent = Sent { volume: volume.clone(), source: source.to_owned(), changed: changed(&meta) };
    let entries = if meta.is_dir() { read_folder(source)? } else { file_entries(source)? };
    let path = put(client, &volume, entries, true)?;
    Ok((if meta.is_dir() { path } else { format!("{path}/{FILE}") }, sent))
}

/// Makes a folder in the guest with the owner and mode of one here, and its size if that has one.
pub fn make_local(client: &mut Client, source: &Path) -> Result<String, Failure> {
    let request = local(source)?;
    let answer: GuestPutResponse = client.call_of(service::GUEST, method::PUT, &request, Some(SHORT))?;
    Ok(answer.path)
}

fn local(source: &Path) -> Result<GuestPutRequest, Failure> {
    let looked = |error: io::Error| failed("look at", source, error);
    let meta = fs::metadata(source).map_err(looked)?;
    let memory = memory(source, &meta).map_err(looked)?;
    let entries = vec![entry(String::new(), Kind::Folder, &meta, Vec::new())];
    Ok(GuestPutRequest { volume: name(source), entries, memory, ..Default::default() })
}

/// What a folder is that is a filesystem in memory of its own. A folder of one that has others, too, has no size.
fn memory(source: &Path, meta: &Metadata) -> io::Result<Option<GuestMemory>> {
    let parent = fs::metadata(source.parent().unwrap_or(source))?;
    if parent.dev() == meta.dev() {
        return Ok(None);
    }
    match statfs(source)?.filesystem_type() {
        TMPFS_MAGIC => {}
        HUGETLBFS_MAGIC => return Err(io::Error::other("huge pages (not in a virtual machine)")),
        _ => return Ok(None),
    }
    let known = statvfs(source)?;
    let has = |flag| known.flags().contains(flag);
    Ok(Some(GuestMemory {
        size_bytes: known.blocks().saturating_mul(known.fragment_size()),
        no_suid: has(FsFlags::ST_NOSUID),
        no_dev: has(FsFlags::ST_NODEV),
        no_exec: has(FsFlags::ST_NOEXEC),
    }))
}

/// Sends what is to be in the folder of a container.
pub fn send_bundle(client: &mut Client, id: &str, config: Vec<u8>) -> Result<String, Failure> {
    let folder = |path: &str| GuestEntry {
        path: path.to_owned(),
        kind: Kind::Folder.into(),
        mode: if path.is_empty() { 0o700 } else { 0o755 },
        ..Default::default()
    };
    let file = GuestEntry { path: "config.json".into(), mode: 0o600, content: config, ..Default::default() };
    let entries = [folder(""), folder("rootfs"), folder("upper"), folder("work"), file];
    put(client, &bundle_name(id), entries.into(), false)
}

/// Takes everything out of a volume.
pub fn forget(client: &mut Client, volume: &str) -> Result<(), Failure> {
    put(client, volume, Vec::new(), true).map(drop)
}

/// The end of a file of a volume.
pub fn fetch(client: &mut Client, volume: &str, path: &str, max_bytes: u64) -> Result<Vec<u8>, Failure> {
    let request = GuestFetchRequest { volume: volume.to_owned(), path: path.to_owned(), max_bytes };
    let mut answer: GuestFetchResponse = client.call_of(service::GUEST, method::FETCH, &request, Some(SHORT))?;
    answer.content.truncate(max_bytes as usize);
    Ok(answer.content)
}

/// Brings the last words of a container from the guest into their file here.
pub fn fetch_back(client: &mut Client, source: &Path) -> Result<(), Failure> {
    let content = fetch(client, &name(source), FILE, MAX_MESSAGE)?;
    let write = || -> io::Result<()> {
        use std::io::Write;
        OpenOptions::new().write(true).truncate(true).custom_flags(O_NOFOLLOW).open(source)?.write_all(&content)
    };
    write().map_err(|error| failed("write", source, error))
}

/// Sends entries in as many messages as it takes. `whole`: what the guest has beyond them is removed.
fn put(client: &mut Client, volume: &str, entries: Vec<GuestEntry>, whole: bool) -> Result<String, Failure> {
    let mut path = String::new();
    for request in messages(volume, entries, whole) {
        let answer: GuestPutResponse = client.call_of(service::GUEST, method::PUT, &request, Some(SHORT))?;
        path = answer.path;
    }
    // It is written into a document that the guest reads; and it is the guest's own business.
    Ok(path)
}

fn messages(volume: &str, entries: Vec<GuestEntry>, whole: bool) -> Vec<GuestPutRequest> {
    let mut messages = vec![GuestPutRequest { volume: volume.to_owned(), ..Default::default() }];
    let (mut size, mut names) = (0, Vec::new());
    for entry in entries {
        let more = entry.content.len() + entry.path.len() + ENTRY;
        let full = size > 0 && size + more > BATCH;
        if full {
            messages.push(GuestPutRequest { volume: volume.to_owned(), ..Default::default() });
            size = 0;
        }
        size += more;
        names.push(entry.path.clone());
        messages.last_mut().into_iter().for_each(|message| message.entries.push(entry.clone()));
    }
    if let Some(last) = messages.last_mut().filter(|_| whole) {
        last.whole = true;
        names.truncate(names.len() - last.entries.len());
        names.retain(|name| !name.is_empty());
        last.kept = names;
    }
    messages
}

fn entry(path: String, kind: Kind, meta: &Metadata, content: Vec<u8>) -> GuestEntry {
    GuestEntry { path, kind: kind.into(), mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), content }
}

/// A single file, in a folder of its own.
fn file_entries(source: &Path) -> Result<Vec<GuestEntry>, Failure> {
    let file = read_file(source).map_err(|error| failed("read", source, error))?;
    let folder = GuestEntry { kind: Kind::Folder.into(), mode: 0o755, ..Default::default() };
    Ok(vec![folder, GuestEntry { path: FILE.to_owned(), ..file }])
}

/// Never waits, and follows no link.
fn read_file(path: &Path) -> io::Result<GuestEntry> {
    let file = File::options().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(entry(String::new(), Kind::File, &meta, content))
}

/// All of a folder. What vanishes meanwhile was replaced: it is read once more.
fn read_folder(source: &Path) -> Result<Vec<GuestEntry>, Failure> {
    let mut attempt = 1;
    loop {
        let (mut entries, mut size) = (Vec::new(), 0);
        match walk(source, "", 0, &mut entries, &mut size) {
            Ok(()) => return Ok(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(failed("read volume", source, error)),
        }
    }
}

fn walk(folder: &Path, below: &str, depth: usize, entries: &mut Vec<GuestEntry>, size: &mut u64) -> io::Result<()> {
    let too_big = |what: String| io::Error::new(io::ErrorKind::FileTooLarge, what);
    entries.push(entry(below.to_owned(), Kind::Folder, &fs::symlink_metadata(folder)?, Vec::new()));
    if depth > MAX_DEPTH {
        return Err(too_big(format!("folders within folders beyond {MAX_DEPTH}")));
    }
    for found in fs::read_dir(folder)? {
        let found = found?;
        let name = found.file_name().into_string();
        let name = name.map_err(|name| io::Error::new(io::ErrorKind::InvalidData, format!("{name:?} is not UTF-8")))?;
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = found.file_type()?;
        if kind.is_dir() {
            walk(&found.path(), &path, depth + 1, entries, size)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(found.path())?;
            let meta = fs::symlink_metadata(found.path())?;
            entries.push(entry(path, Kind::Link, &meta, target.as_os_str().as_bytes().to_vec()));
        } else {
            let file = read_file(&found.path())?;
            *size += file.content.len() as u64;
            entries.push(GuestEntry { path, ..file });
        }
        if entries.len() > MAX_ENTRIES || *size > MAX_VOLUME {
            return Err(too_big(format!("more than {MAX_ENTRIES} entries, or {MAX_VOLUME} bytes")));
        }
    }
    Ok(())
}

struct Watched {
    sent: Sent,
    watch: WatchDescriptor,
    /// To be sent again from then on.
    due: Option<Instant>,
}

/// The volumes that are kept up to date.
#[derive(Default)]
pub struct Watches {
    inotify: Option<Inotify>,
    all: Vec<Watched>,
    /// A worker sends some of them.
    pub sending: bool,
}

impl Watches {
    /// Watches what was sent. What has changed since is sent again at once.
    pub fn add(&mut self, reactor: &Reactor, sent: Sent) -> io::Result<()> {
        if self.all.iter().any(|known| known.sent.volume == sent.volume) {
            return Ok(());
        }
        if self.inotify.is_none() {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            reactor.watch_for_ever(&inotify, Token::Volumes)?;
            self.inotify = Some(inotify);
        }
        let Some(inotify) = &self.inotify else { return Ok(()) };
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB;
        let watch = inotify.add_watch(&sent.source, flags)?;
        let meta = fs::metadata(&sent.source)?;
        let due = (changed(&meta) != sent.changed).then(Instant::now);
        self.all.push(Watched { sent, watch, due });
        Ok(())
    }

    /// Something has changed.
    pub fn ready(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let Ok(events) = inotify.read_events() else { return };
        for event in events {
            for watched in self.all.iter_mut().filter(|watched| watched.watch == event.wd) {
                watched.due.get_or_insert(Instant::now() + CALM);
            }
            // What is gone stays in the guest as it was; the kernel has let go of it.
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.all.retain(|watched| watched.watch != event.wd);
            }
        }
    }

    /// When something is to be sent again.
    pub fn deadline(&self) -> Option<Instant> {
        if self.sending {
            return None;
        }
        self.all.iter().filter_map(|watched| watched.due).min()
    }

    /// It could not be sent: all is, after a while.
    pub fn failed(&mut self) {
        self.all.iter_mut().for_each(|watched| watched.due = Some(Instant::now() + AGAIN));
    }

    /// What is to be sent again now; it is due no more.
    pub fn take_due(&mut self, now: Instant) -> Vec<PathBuf> {
        let due = self.all.iter_mut().filter(|watched| watched.due.is_some_and(|at| at <= now));
        due.map(|watched| {
            watched.due = None;
            watched.sent.source.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_is_read_with_its_links_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2026")).unwrap();
        fs::write(dir.path().join("..2026/key"), "value").unwrap();
        symlink("..2026", dir.path().join("..data")).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        let entries = read_folder(dir.path()).unwrap();
        let of = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(of("").kind(), Kind::Folder);
        assert_eq!((of("..data").kind(), of("..data").content.as_slice()), (Kind::Link, &b"..2026"[..]));
        assert_eq!(of("..2026/key").content, b"value");
        assert_eq!(of("key").content, b"..data/key");
    }

    #[test]
    fn what_is_too_big_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let big = dir.path().join("big");
        File::create(&big).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(read_folder(dir.path()).unwrap_err().message.contains("more than"));
        fs::remove_file(&big).unwrap();
        for name in ["a", "b", "c"] {
            File::create(dir.path().join(name)).unwrap().set_len(MAX_FILE).unwrap();
        }
        assert!(read_folder(dir.path()).unwrap_err().message.contains("8388608 bytes"));
        let other = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&other.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_folder(other.path()).unwrap_err().message.contains("no file"));
        symlink("/etc/passwd", other.path().join("link")).unwrap();
        assert!(file_entries(&other.path().join("link")).is_err());
    }

    #[test]
    fn a_big_volume_comes_in_several_messages_the_last_of_which_is_whole() {
        let file = |path: &str, size| GuestEntry { path: path.into(), content: vec![0; size], ..Default::default() };
        let folder = GuestEntry { kind: Kind::Folder.into(), ..Default::default() };
        let entries = vec![folder, file("a", BATCH - 1000), file("b", BATCH), file("c", 5)];
        let all = messages("v", entries.clone(), true);
        let names: Vec<Vec<&str>> =
            all.iter().map(|message| message.entries.iter().map(|entry| entry.path.as_str()).collect()).collect();
        assert_eq!(names, [vec!["", "a"], vec!["b"], vec!["c"]]);
        assert_eq!(all.iter().map(|message| message.whole).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(all[2].kept, ["a", "b"]);
        assert!(messages("v", entries, false).iter().all(|message| !message.whole));
        assert!(messages("v", Vec::new(), true)[0].whole);
    }

    #[test]
    fn a_change_is_heard_of_once_things_are_calm() {
        let dir = tempfile::tempdir().unwrap();
        let reactor = Reactor::new().unwrap();
        let mut watches = Watches::default();
        let now = changed(&fs::metadata(dir.path()).unwrap());
        let sent = |changed| Sent { volume: name(dir.path()), source: dir.path().to_owned(), changed };
        watches.add(&reactor, sent(now)).unwrap();
        watches.add(&reactor, sent(now)).unwrap();
        assert_eq!((watches.all.len(), watches.deadline()), (1, None));
        fs::write(dir.path().join("x"), "1").unwrap();
        watches.ready();
        let due = watches.deadline().unwrap();
        assert!(watches.take_due(due - CALM).is_empty());
        assert_eq!(watches.take_due(due), [dir.path()]);
        assert_eq!(watches.deadline(), None);
        let mut late = Watches::default();
        late.add(&reactor, sent(now - 1)).unwrap();
        assert!(late.deadline().is_some(), "it changed before it was watched");
    }

    #[test]
    fn what_is_a_filesystem_in_memory_of_its_own_is_one_there_too() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        use nix::sched::{CloneFlags, unshare};
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(local(dir.path()).unwrap().memory, None, "a folder");
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("not root: nothing can be mounted");
        }
        // The thread's own, with what is mounted in it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("shm"), dir.path(), Some("tmpfs"), flags, Some("mode=1777,size=3m")).unwrap();
        let request = local(dir.path()).unwrap();
        let expected = GuestMemory { size_bytes: 3 << 20, no_suid: true, no_dev: false, no_exec: true };
        assert_eq!((request.memory, request.entries[0].mode, request.whole), (Some(expected), 0o1777, false));
        fs::create_dir(dir.path().join("below")).unwrap();
        assert_eq!(local(&dir.path().join("below")).unwrap().memory, None, "a folder of a tmpfs");
        mount(None::<&str>, dir.path(), None::<&str>, flags | MsFlags::MS_REMOUNT, Some("size=0")).unwrap();
        assert_eq!(local(dir.path()).unwrap().memory.map(|memory| memory.size_bytes), Some(0), "without a limit");
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn names_are_those_the_guest_takes() {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
        assert!(name(Path::new("/a/b")).chars().all(known));
        assert_eq!(bundle_name("a+b"), "c-a~b");
    }
}
