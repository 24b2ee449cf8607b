//! Folders of the host that a guest may see: `options.host_paths` of the handler. A machine without them has none of this.
//!
//! ```text
//! server      virtiofsd, a child of the supervisor in the machine's cgroup. It serves one folder, a tmpfs that exists in
//!             its own mount namespace alone; it leaves the namespace's other mounts, and the host's processes and network,
//!             behind before it hears a word of the guest, and keeps no right to make device nodes
//! monitor     inherits a connection to it, and shares the guest's memory with it
//! volume      is attached in that tmpfs, as NAME, by a worker that enters the server's mount namespace; it stays as long as
//!             the machine does and goes with it: the host never has such a mount
//! guest       mounts the folder once; containers bind from it
//! ```
//! A volume's path is resolved beneath the folder that lets it in: a symbolic link that leads out of that is refused, by
//! the kernel and at once, so that nothing can be exchanged in between. What is attached is the file or folder that was
//! found then; one that has replaced it is another volume. Without devices, and read-only already here if it is to be. The
//! guest cannot make anything beside the volumes: the tmpfs is read-only, and has a writable face for the worker only.
//!
//! Who can write to the server has root's rights in what it serves: that is what the handler's administrator gives away
//! by naming a folder.

use super::jail::{self, said};
use super::vmm::SHARE_TAG;
use super::{check, listen};
use crate::failure::{Fail, Failure};
use crate::sys::{self, Fork};
use coracle_proto::VIRTIOFSD;
use coracle_proto::coracle::VmOptions;
use coracle_proto::ttrpc::Code;
use coracle_runtime::cgroup::CgroupState;
use coracle_runtime::lend;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// It listens here until the monitor is connected.
const SOCKET: &str = "share.sock";
/// Below the machine's folder: what is served, in the server's mount namespace.
pub const PLACE: &str = "share";
/// It holds an empty file or folder for each volume.
const PLACE_OPTIONS: &str = "mode=0755,size=256k,nr_inodes=1024";
/// Of a hash in a name.
const HASH_BYTES: usize = 12;
/// What a child says of its failure.
const MAX_WORDS: u64 = 1000;

/// What a worker has to know of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// Its pid.
    pub pid: i32,
    /// The folders that volumes may lie in.
    pub folders: Vec<PathBuf>,
}

/// Whether what the options ask for can be.
pub fn check(options: &VmOptions) -> Result<(), Failure> {
    if options.host_paths.is_empty() {
        return Ok(());
    }
    for path in &options.host_paths {
        if !Path::new(path).is_absolute() {
            let text = format!("vm: host_paths: {path:?} is not an absolute path");
            return Err(Code::InvalidArgument.failure(text));
        }
    }
    find(Path::new(VIRTIOFSD))
}

fn find(server: &Path) -> Result<(), Failure> {
    let missing = |error| {
        let text =
            format!("vm: host_paths need QEMU's {}: {error} (is it installed? QEMU 8 has none)", server.display());
        Code::FailedPrecondition.failure(text)
    };
    fs::metadata(server).map(drop).map_err(missing)
}

/// Starts the server in the machine's folder. Its pid, and what the monitor is to inherit.
pub fn launch(folder: &Path, cgroup: Option<&CgroupState>, console: &OwnedFd) -> io::Result<(i32, UnixStream)> {
    let place = folder.join(PLACE);
    let listener = listen(folder, SOCKET)?;
    // It is accepted when there is somebody to accept it; nobody else connects.
    let stream = super::connect(folder, SOCKET)?;
    fs::remove_file(folder.join(SOCKET))?;
    let parent = Pid::this();
    match sys::fork()? {
        Fork::Parent(pid) => Ok((pid, stream)),
        Fork::Child => match become_server(&place, parent, cgroup, console, listener.as_fd()) {
            Err(why) => jail::give_up(console, Path::new(VIRTIOFSD), &why),
            Ok(never) => match never {},
        },
    }
}

fn become_server(
    place: &Path,
    parent: Pid,
    cgroup: Option<&CgroupState>,
    console: &OwnedFd,
    listener: BorrowedFd<'_>,
) -> Result<Infallible, String> {
    sys::reset_signals();
    jail::join_cgroup(cgroup)?;
    let apart = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(apart).map_err(said("leave the host's namespaces"))?;
    let none = None::<&str>;
    let apart = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, apart, none).map_err(said("cut its mounts off from the host's"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(SHARE_TAG), place, Some("tmpfs"), flags, Some(PLACE_OPTIONS)).map_err(said("mount what it serves"))?;
    jail::read_only(place, flags).map_err(said("make what it serves read-only"))?;
    jail::take_descriptors(console, &[listener.as_raw_fd()])?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(said("forbid core dumps"))?;
    nix::unistd::setsid().map_err(said("begin a session"))?;
    jail::die_with(parent)?;
    jail::run(Path::new(VIRTIOFSD), &arguments(place, listener.as_raw_fd()))
}

fn arguments(place: &Path, listener: i32) -> Vec<String> {
    let options = format!(
        "source={},sandbox=namespace,cache=auto,announce_submounts,modcaps=-mknod,log_level=warn",
        // A comma ends an option.
        place.display().to_string().replace('\\', "\\\\").replace(',', "\\,")
    );
    vec!["-f".to_owned(), format!("--fd={listener}"), "-o".to_owned(), options]
}

/// Whether a path lies below one of the folders, by its words.
pub fn lets_in(folders: &[PathBuf], path: &Path) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// What is at a path, which must be a file or folder beneath one of these.
fn open_beneath(folders: &[PathBuf], path: &Path) -> Result<(OwnedFd, FileStat), Failure> {
    let failed = |why: &str| Code::InvalidArgument.failure(format!("hostPath {}: {why}", path.display()));
    let mut refused = failed("it is not below options.host_paths of the handler");
    for folder in folders {
        let Ok(below) = path.strip_prefix(folder) else { continue };
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let opened = openat(AT_FDCWD, folder, flags | OFlag::O_DIRECTORY, Mode::empty())
            .and_then(|folder| openat2(folder, below, how));
        match opened {
            Ok(file) => return checked(file).map_err(|why| failed(&why)),
            Err(Errno::EXDEV) => {
                let folder = folder.display();
                refused = failed(&format!(
                    "a symbolic link in it leads outside of {folder}, which is in options.host_paths (or is an \
                     absolute one, which is not followed)"
                ));
            }
            Err(error) => refused = failed(&error.to_string()),
        }
    }
    Err(refused)
}

fn checked(file: OwnedFd) -> Result<(OwnedFd, FileStat), String> {
    let stat = fstat(&file).map_err(|error| error.to_string())?;
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR | SFlag::S_IFREG => Ok((file, stat)),
        _ => Err("it is neither a file nor a folder, and nothing else can be shared with a virtual machine".to_owned()),
    }
}

/// A volume's name in what is served.
fn name(path: &Path, stat: &FileStat, read_only: bool) -> String {
    let mut hash = Sha256::new();
    hash.update(stat.st_dev.to_le_bytes());
    hash.update(stat.st_ino.to_le_bytes());
    hash.update(path.as_os_str().as_bytes());
    let kind = if read_only { "ro" } else { "rw" };
    format!("{kind}-{}", check::hex(&hash.finalize()[..HASH_BYTES]))
}

/// Attaches a volume in what is served. Its name there. In a worker.
pub fn lend(share: &Share, path: &Path, read_only: bool) -> Result<String, Failure> {
    let (file, stat) = open_beneath(&share.folders, path)?;
    let failed =
        |why: &dyn std::fmt::Display| Code::Unknown.failure(format!("share hostPath {}: {why}", path.display()));
    let name = name(path, &stat, read_only);
    let copy = lend::copy(file.as_fd(), read_only).map_err(|error| failed(&error))?;
    let namespace = namespace(share.pid).map_err(|error| failed(&error))?;
    let (mut reader, writer) = io::pipe().map_err(|error| failed(&error))?;
    // A child enters it: what enters has no way back to a root that is not its namespace's.
    match sys::fork().map_err(|error| failed(&error))? {
        Fork::Child => child(reader, writer, || attach(&namespace, &name, &stat, &copy)),
        Fork::Parent(pid) => {
            drop(writer);
            let mut words = String::new();
            let read = reader.by_ref().take(MAX_WORDS).read_to_string(&mut words);
            let _ = waitpid(Pid::from_raw(pid), None);
            match read {
                Ok(_) if words == DONE => Ok(name),
                Ok(_) => Err(failed(&words)),
                Err(error) => Err(failed(&error)),
            }
        }
    }
}

/// What the child says when it has done it.
const DONE: &str = "done";

fn child(reader: PipeReader, mut writer: PipeWriter, work: impl FnOnce() -> Result<(), String>) -> ! {
    drop(reader);
    let words = work().err().unwrap_or_else(|| DONE.to_owned());
    let _ = writer.write_all(words.as_bytes());
    sys::exit_now(0);
}

/// The server's mount namespace, in which there is nothing but what it serves.
fn namespace(pid: i32) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    match is_servers(&fs::read_to_string(format!("/proc/{pid}/mountinfo"))?) {
        true => Ok(namespace),
        false => Err(io::Error::other(format!("process {pid} does not serve it"))),
    }
}

/// Whether a process with these mounts has what is served as its root.
fn is_servers(mounts: &str) -> bool {
    let ours = format!(" - tmpfs {SHARE_TAG} ");
    mounts.lines().any(|mount| mount.split(' ').nth(4) == Some("/") && mount.contains(&ours))
}

fn attach(namespace: &File, name: &str, stat: &FileStat, copy: &OwnedFd) -> Result<(), String> {
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(said("enter the server's mount namespace"))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let found = |name: &str| openat(AT_FDCWD, Path::new("/").join(name).as_path(), flags, Mode::empty());
    let is_it = |at: &OwnedFd| fstat(at).is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino));
    if found(name).is_ok_and(|at| is_it(&at)) {
        return Ok(());
    }
    make_place(name, stat).map_err(said("make a place for it"))?;
    let at = found(name).map_err(said("find the place for it"))?;
    lend::attach(copy.as_fd(), at.as_fd()).map_err(said("attach it"))
}

fn make_place(name: &str, stat: &FileStat) -> io::Result<()> {
    let root = lend::writable_root()?;
    let made = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => mkdirat(&root, name, Mode::S_IRWXU),
        _ => openat(&root, name, OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::S_IRUSR).map(drop),
    };
    match made {
        Err(error) if error != Errno::EEXIST => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn inode(folders: &[PathBuf], path: &Path) -> Result<u64, String> {
        open_beneath(folders, path).map(|(_, stat)| stat.st_ino).map_err(|failure| failure.message)
    }

    #[test]
    fn a_path_is_let_in_below_a_folder_by_its_parts() {
        let folders = [PathBuf::from("/srv/data"), PathBuf::from("/mnt")];
        for (path, expected) in
            [("/srv/data", true), ("/srv/data/a", true), ("/mnt/b", true), ("/srv/data2", false), ("/srv", false)]
        {
            assert_eq!(lets_in(&folders, Path::new(path)), expected, "{path}");
        }
        assert!(lets_in(&["/".into()], Path::new("/etc")));
        assert!(!lets_in(&[], Path::new("/etc")));
    }

    #[test]
    fn a_link_is_followed_as_long_as_it_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (allowed, other) = (dir.path().join("allowed"), dir.path().join("other"));
        fs::create_dir_all(allowed.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(allowed.join("file"), "").unwrap();
        for (target, name) in
            [("sub", "inside"), ("../other", "out"), ("/etc", "absolute"), ("/proc/self/root", "magic"), ("no", "none")]
        {
            symlink(target, allowed.join(name)).unwrap();
        }
        let folders = [allowed.clone()];
        let of = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        assert_eq!(inode(&folders, &allowed), Ok(of(&allowed)));
        assert_eq!(inode(&folders, &allowed.join("file")), Ok(of(&allowed.join("file"))));
        assert_eq!(inode(&folders, &allowed.join("inside")), Ok(of(&allowed.join("sub"))));
        for name in ["out", "absolute", "magic", "out/x", "sub/../../other"] {
            let why = inode(&folders, &allowed.join(name)).unwrap_err();
            assert!(why.contains("leads outside of") && why.contains("options.host_paths"), "{name}: {why}");
        }
        assert!(inode(&folders, &allowed.join("none")).unwrap_err().contains("ENOENT"));
        assert!(inode(&folders, &other).unwrap_err().contains("not below options.host_paths"));
        // The wider of two folders decides.
        assert_eq!(inode(&[allowed.clone(), dir.path().into()], &allowed.join("out")), Ok(of(&other)));
        let _socket = UnixListener::bind(allowed.join("socket")).unwrap();
        assert!(inode(&folders, &allowed.join("socket")).unwrap_err().contains("neither a file nor a folder"));
    }

    #[test]
    fn a_name_is_of_the_path_what_is_there_and_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_owned()];
        let named = |read_only| name(dir.path(), &open_beneath(&folders, dir.path()).unwrap().1, read_only);
        assert_eq!(named(true), named(true));
        assert_ne!(named(true), named(false));
        let (_, stat) = open_beneath(&["/".into()], Path::new("/")).unwrap();
        assert_ne!(name(dir.path(), &stat, true), named(true), "another that has replaced it");
    }

    #[test]
    fn a_server_is_known_by_its_root() {
        assert!(is_servers("300 2 0:50 / / ro,nosuid - tmpfs coracle-share rw,size=256k\n"));
        assert!(!is_servers("300 2 0:50 / /run/x ro - tmpfs coracle-share rw\n1 1 8:1 / / rw - ext4 /dev/sda rw\n"));
    }

    #[test]
    fn a_folder_with_a_comma_is_one_word() {
        let words = arguments(Path::new("/run/a,b"), 7);
        assert_eq!((words[1].as_str(), words[3].starts_with("source=/run/a\\,b,sandbox=namespace,")), ("--fd=7", true));
    }

    #[test]
    fn what_is_no_absolute_path_is_refused() {
        let options = VmOptions { host_paths: vec!["srv".into()], ..Default::default() };
        assert!(check(&options).unwrap_err().message.contains("host_paths: \"srv\" is not an absolute path"));
        assert!(check(&VmOptions::default()).is_ok());
        let missing = find(Path::new("/no/virtiofsd")).unwrap_err().message;
        assert!(missing.starts_with("vm: host_paths need QEMU's /no/virtiofsd: No such file"), "{missing}");
    }
}
