//! The machine monitor's process: what it may have, and nothing else.
//!
//! It is a child of the supervisor's main process and dies with it. One flat list makes it:
//!
//! ```text
//! join the cgroup              while the hierarchies are in sight
//! new mount, network, IPC, UTS namespaces: nothing in them
//! a root of its own            tmpfs with the folders of programs and libraries, read-only; /dev/null, /dev/urandom
//!                              and, with KVM, a node for it; the files it was given, read-only; then read-only itself
//! descriptors                  0 = /dev/null, 1 and 2 = the console's pipe, those it was given, no other
//! limits                       no core (it would hold the guest's memory)
//! no capabilities, its own uid and gid and no other group, no_new_privs
//! die with the supervisor      after the change of user, which would undo it
//! exec
//! ```
//! What fails before the exec is said on the console's pipe, where the program's own complaints go: whoever asks why the
//! machine died is shown that.

use super::sparse;
use crate::sys::{self, Fork};
use coracle_runtime::cgroup::{Cgroup, CgroupState};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Gid, Pid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where programs, their libraries and their data are; what of it a machine does not have is left out, and a link stays
/// the link that it is.
const FOLDERS: [&str; 8] = ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store"];
/// Where the loader finds libraries; without it it searches.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// What every machine needs of the devices.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// The device of hardware virtualization.
pub const KVM: &str = "/dev/kvm";
/// The file system of a guest's memory has room for its tables.
const MEMORY_MARGIN: u64 = 1 << 20;
/// The root holds names only.
const ROOT_OPTIONS: &str = "mode=0755,size=256k,nr_inodes=256";
/// Open files at once: a disk has two.
const MAX_FILES: u64 = 4096;

/// A file for the guest's memory, in a file system of the machine's own: it goes with it, and its pages count for the
/// machine's cgroup.
pub struct Memory<'a> {
    /// Its name inside, in a folder of its own.
    pub name: &'a Path,
    /// Its size.
    pub bytes: u64,
    /// What is in it; nothing = zeros.
    pub content: Option<&'a File>,
}

/// What the process gets.
pub struct Jail<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments, without its name.
    pub arguments: &'a [String],
    /// Its user and group.
    pub user: u32,
    /// It may use KVM.
    pub kvm: bool,
    /// Files by the name that they have inside.
    pub files: &'a [(PathBuf, String)],
    /// Descriptors it keeps, by the same numbers.
    pub keep: &'a [RawFd],
    /// Where it speaks to.
    pub console: &'a OwnedFd,
    /// The guest's memory, if it is to be a file.
    pub memory: Option<Memory<'a>>,
    /// An empty folder: where its root is mounted, in its own namespace.
    pub place: &'a Path,
    /// The cgroup; none = the caller's.
    pub cgroup: Option<&'a CgroupState>,
}

impl Jail<'_> {
    /// Starts it.
    pub fn spawn(&self) -> io::Result<i32> {
        let parent = Pid::this();
        match sys::fork()? {
            Fork::Parent(pid) => Ok(pid),
            Fork::Child => {
                let why = match self.become_it(parent) {
                    Err(why) => why,
                    Ok(never) => match never {},
                };
                give_up(self.console, self.program, &why)
            }
        }
    }

    fn become_it(&self, parent: Pid) -> Result<Infallible, String> {
        sys::reset_signals();
        join_cgroup(self.cgroup)?;
        let apart =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        unshare(apart).map_err(said("leave the host's namespaces"))?;
        self.make_root()?;
        take_descriptors(self.console, self.keep)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(said("forbid core dumps"))?;
        setrlimit(Resource::RLIMIT_NOFILE, MAX_FILES, MAX_FILES).map_err(said("limit open files"))?;
        become_user(self.user).map_err(said("become a user of its own"))?;
        nix::unistd::setsid().map_err(said("begin a session"))?;
        die_with(parent)?;
        run(self.program, self.arguments)
    }

    fn make_root(&self) -> Result<(), String> {
        let none = None::<&str>;
        let apart = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, apart, none).map_err(said("cut its mounts off from the host's"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), self.place, Some("tmpfs"), flags, Some(ROOT_OPTIONS)).map_err(said("mount its root"))?;
        for folder in FOLDERS {
            self.bring(Path::new(folder)).map_err(|error| format!("bring {folder} into its root: {error}"))?;
        }
        let outside = !FOLDERS.iter().any(|folder| self.program.starts_with(folder));
        let program = outside.then_some((self.program, self.program));
        let cache = Path::new(LOADER_CACHE);
        let files = self.files.iter().map(|(file, name)| (file.as_path(), Path::new(name)));
        for (file, name) in files.chain(program).chain(cache.exists().then_some((cache, cache))) {
            let inside = self.inside(name);
            let bound = make_file(&inside)
                .and_then(|()| bind(file, &inside))
                .and_then(|()| read_only(&inside, MsFlags::MS_NODEV));
            bound.map_err(|error| format!("bring {} into its root: {error}", file.display()))?;
        }
        for device in DEVICES {
            let inside = self.inside(Path::new(device));
            let bound = make_file(&inside).and_then(|()| bind(Path::new(device), &inside));
            bound.map_err(|error| format!("bring {device} into its root: {error}"))?;
        }
        if let Some(memory) = &self.memory {
            self.make_memory(memory).map_err(said("make the guest's memory"))?;
        }
        if self.kvm {
            self.make_kvm().map_err(said("make its /dev/kvm"))?;
        }
        read_only(self.place, flags).map_err(said("make its root read-only"))?;
        // The old root ends up on top of the new one, and is taken off.
        let entered =
            chdir(self.place).and_then(|()| pivot_root(".", ".")).and_then(|()| umount2(".", MntFlags::MNT_DETACH));
        entered.and_then(|()| chdir("/")).map_err(said("enter its root"))
    }

    fn inside(&self, name: &Path) -> PathBuf {
        self.place.join(name.strip_prefix("/").unwrap_or(name))
    }

    fn bring(&self, folder: &Path) -> io::Result<()> {
        let inside = self.inside(folder);
        match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(meta) if meta.is_symlink() => symlink(fs::read_link(folder)?, inside),
            Ok(_) => {
                DirBuilder::new().recursive(true).mode(0o755).create(&inside)?;
                bind(folder, &inside)?;
                read_only(&inside, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
            }
        }
    }

    /// A node that is its own, since the host's is for a group of all that use virtual machines, or for root.
    fn make_kvm(&self) -> io::Result<()> {
        let (inside, user) = (self.inside(Path::new(KVM)), Uid::from_raw(self.user));
        mknod(&inside, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, fs::metadata(KVM)?.rdev())?;
        Ok(nix::unistd::chown(&inside, Some(user), None)?)
    }

    fn make_memory(&self, memory: &Memory<'_>) -> io::Result<()> {
        let inside = self.inside(memory.name);
        let Some(folder) = inside.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let options = format!("mode=0755,size={}", memory.bytes + MEMORY_MARGIN);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options.as_str()))?;
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&inside)?;
        file.set_len(memory.bytes)?;
        if let Some(content) = memory.content {
            sparse::copy(content, &file)?;
        }
        Ok(nix::unistd::chown(&inside, Some(Uid::from_raw(self.user)), None)?)
    }
}

/// Joins a cgroup, while the hierarchies are in sight; none = the caller's.
pub(super) fn join_cgroup(state: Option<&CgroupState>) -> Result<(), String> {
    let Some(state) = state else { return Ok(()) };
    let cgroup = Cgroup::open(state);
    let tasks = cgroup.join_self_files().map_err(said("join its cgroup"))?;
    if tasks.is_empty() {
        return cgroup.join(std::process::id() as i32).map_err(said("join its cgroup"));
    }
    tasks.into_iter().try_for_each(|tasks| File::from(tasks).write_all(b"0")).map_err(said("join its cgroup"))
}

/// Standard input is nothing, output goes to the console; of the other descriptors those in `keep` outlive the exec.
pub(super) fn take_descriptors(console: &OwnedFd, keep: &[RawFd]) -> Result<(), String> {
    let null = File::options().read(true).open("/dev/null").map_err(said("open /dev/null"))?;
    for (fd, number) in [(null.as_raw_fd(), 0), (console.as_raw_fd(), 1), (console.as_raw_fd(), 2)] {
        sys::dup_to(fd, number).map_err(said("take its standard streams"))?;
    }
    drop(null);
    let mut keep = keep.to_vec();
    sys::close_all_but(&mut keep);
    keep.into_iter().try_for_each(sys::keep_over_exec).map_err(said("keep its descriptors"))
}

/// Says on the console why a program was not started, in a fork, and ends that.
pub(super) fn give_up(console: &OwnedFd, program: &Path, why: &str) -> ! {
    let console = sys::dup_beyond(console.as_raw_fd(), 3).map(File::from);
    let _ = console.and_then(|mut console| writeln!(console, "start {}: {why}", program.display()));
    sys::exit_now(127);
}

/// Words for what an error was met at.
pub(super) fn said<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn bind(what: &Path, at: &Path) -> io::Result<()> {
    Ok(mount(Some(what), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Makes a mount read-only, with these flags beside.
pub(super) fn read_only(at: &Path, flags: MsFlags) -> io::Result<()> {
    let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(None::<&str>, at, None::<&str>, flags, None::<&str>)?)
}

fn make_file(at: &Path) -> io::Result<()> {
    if let Some(folder) = at.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    File::create(at).map(drop)
}

/// Becomes the program, without an environment.
pub(super) fn run(program: &Path, arguments: &[String]) -> Result<Infallible, String> {
    let word = |text: &[u8]| CString::new(text).map_err(said("its arguments"));
    let program = word(program.as_os_str().as_bytes())?;
    let arguments = arguments.iter().map(|argument| word(argument.as_bytes()));
    let words: Vec<CString> = std::iter::once(Ok(program.clone())).chain(arguments).collect::<Result<_, _>>()?;
    nix::unistd::execve(&program, &words, &[] as &[CString]).map_err(said("run it (is it installed?)"))
}

/// Leaves all rights behind for good: capabilities, groups, and what a program's file might give.
fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    sys::drop_bounding_set()?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    sys::drop_capabilities()?;
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// Has the kernel kill this process when its parent dies; the parent may be dead already.
pub(super) fn die_with(parent: Pid) -> Result<(), String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(said("tie it to the supervisor"))?;
    match nix::unistd::getppid() == parent {
        true => Ok(()),
        false => Err("the supervisor has died".into()),
    }
}
