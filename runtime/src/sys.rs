//! Every system call that nix has no safe wrapper for. The only `unsafe` code of the crate is here.
//!
//! All descriptors made here are close-on-exec: nothing of the runtime reaches the container by accident.
//!
//! A call that a signal interrupts is made again. A call that the kernel does not have (it is too old, or a sandbox answers
//! ENOSYS) is replaced where older calls do the same as safely; else the error names it and the kernel that has it:
//!
//! | call | since | without it |
//! |---|---|---|
//! | openat2 | 5.6 | a walk, component by component (`beneath`) |
//! | clone3 | 5.3 | clone; the child moves itself into its cgroup. A new time namespace is refused |
//! | pidfd_open, pidfd_send_signal | 5.3, 5.1 | the descriptor of /proc/PID (`handle`) |
//! | close_range | 5.9 | one close for each number |
//! | execveat | 3.19 | execve of /proc/self/fd/N |
//! | fsopen, fsconfig, fsmount, open_tree, move_mount | 5.2 | refused: a mount is never shown half made |
//! | mount_setattr | 5.12 | refused: a mount is never shown writable before it is read-only |

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_uint};

/// `AT_FDCWD` for calls that want no directory.
pub const CWD: RawFd = libc::AT_FDCWD;
/// Several calls take "the descriptor itself" as an empty path.
pub const AT_EMPTY_PATH: c_uint = libc::AT_EMPTY_PATH as c_uint;
/// Whole subtree.
pub const AT_RECURSIVE: c_uint = 0x8000;

/// The kernel's default fs.nr_open: no descriptor has a higher number, unless someone raised both that and the limit.
const MAX_DESCRIPTORS: c_uint = 1 << 20;

/// clone3 flags beyond what fits the old flag word.
pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// A new time namespace (clone3 and unshare only).
pub const CLONE_NEWTIME: u64 = 0x80;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MountAttr {
    /// Flags to set.
    pub set: u64,
    /// Flags to clear.
    pub clear: u64,
    /// A propagation type, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace of an idmapped mount.
    pub userns_fd: u64,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for a call that is made again when a signal interrupts it.
fn again(mut call: impl FnMut() -> c_long) -> io::Result<c_long> {
    loop {
        match check(call()) {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            result => return result,
        }
    }
}

/// Makes the ENOSYS of a call that nothing replaces an error that says what is needed.
fn since<T>(call: &str, linux: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSYS) => {
            let words = format!("{call}(2) is missing: it needs Linux {linux}, and a sandbox that allows it");
            io::Error::new(io::ErrorKind::Unsupported, words)
        }
        _ => e,
    })
}

fn owned(fd: io::Result<c_long>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just returned this new descriptor and nobody else knows it.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Has a new process do this before it becomes the other program.
///
/// The caller must be single-threaded: the child may then allocate.
pub fn before_exec(
    command: &mut std::process::Command,
    step: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> &mut std::process::Command {
    // SAFETY: by the contract above the child of the fork is an ordinary process.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, step) }
}

/// Makes one of nix's calls again when a signal interrupts it.
pub fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn cstring(s: &str) -> io::Result<CString> {
    CString::new(s).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the text contains a NUL byte"))
}

/// clone3 without `CLONE_VM`: a fork with namespaces. `None` is returned in the child.
///
/// The caller must be single-threaded (as fork demands of whoever goes on to allocate in the child).
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, exit_signal: c_int) -> io::Result<Option<i32>> {
    // SAFETY: an all-zero clone_args is valid: no pointers, no stack.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = exit_signal as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets its own copy of the memory, and goes on at this same place;
    // args lives through the call and its size is passed.
    match again(|| unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) }) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => clone_without_3(flags, cgroup, exit_signal),
        result => result.map(|pid| (pid != 0).then_some(pid as i32)),
    }
}

/// The old clone: its flags have no room for a time namespace, nor for a cgroup, which the child joins by itself and tells
/// so before anything else happens.
fn clone_without_3(flags: u64, cgroup: Option<BorrowedFd<'_>>, exit_signal: c_int) -> io::Result<Option<i32>> {
    if flags & CLONE_NEWTIME != 0 {
        return since("clone3", "5.3", Err(io::Error::from_raw_os_error(libc::ENOSYS)));
    }
    let join = match cgroup {
        Some(dir) => {
            let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
            let file = retry(|| nix::fcntl::openat(dir, "cgroup.procs", flags, nix::sys::stat::Mode::empty()))?;
            Some((file, nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?))
        }
        None => None,
    };
    // SAFETY: as for clone3; the kernel takes the null stack for "the same, copied".
    let pid = again(|| unsafe { libc::syscall(libc::SYS_clone, flags | exit_signal as u64, 0, 0, 0, 0) })? as i32;
    let Some((file, (told, tell))) = join else { return Ok((pid != 0).then_some(pid)) };
    if pid == 0 {
        let errno = retry(|| nix::unistd::write(&file, b"0")).err().map_or(0, |e| e as i32);
        // Who does not hear it takes the closed pipe for a failure.
        let heard = retry(|| nix::unistd::write(&tell, &errno.to_ne_bytes()));
        if errno != 0 || heard.is_err() {
            exit_now(1);
        }
        return Ok(None);
    }
    drop(tell);
    let mut answer = [0u8; size_of::<i32>()];
    let length = retry(|| nix::unistd::read(&told, &mut answer));
    match (length, i32::from_ne_bytes(answer)) {
        (Ok(length), 0) if length == answer.len() => Ok(Some(pid)),
        (_, errno) => {
            // A child of our parent's is reaped there.
            let _ = retry(|| nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None));
            let errno = if errno == 0 { libc::ECHILD } else { errno };
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// A nameless file in memory, close-on-exec.
pub fn memory_file(name: &CStr, flags: nix::sys::memfd::MFdFlags) -> io::Result<OwnedFd> {
    let flags = flags | nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    since("memfd_create", "3.17", nix::sys::memfd::memfd_create(name, flags).map_err(io::Error::from))
}

/// Connects to a unix socket; made again when a signal interrupts the wait for room in its queue.
pub fn connect(path: &std::path::Path) -> io::Result<std::os::unix::net::UnixStream> {
    loop {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// openat2(2), close-on-exec.
pub fn openat2(dir: RawFd, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode as u64, resolve };
    // SAFETY: path is NUL-terminated, how lives through the call and its size is passed.
    owned(again(|| unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &how, size_of::<OpenHow>()) }))
}

/// fsopen(2): the context of a new filesystem.
pub fn fsopen(fstype: &str) -> io::Result<OwnedFd> {
    let fstype = cstring(fstype)?;
    // SAFETY: fstype is NUL-terminated; 1 is FSOPEN_CLOEXEC.
    since("fsopen", "5.2", owned(again(|| unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), 1) })))
}

fn fsconfig(fs: &OwnedFd, command: c_uint, key: Option<&str>, value: Option<&str>) -> io::Result<()> {
    let key = key.map(cstring).transpose()?;
    let value = value.map(cstring).transpose()?;
    let pointer = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: both strings are NUL-terminated or null, as the command wants, and live through the call.
    let call =
        || unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, pointer(&key), pointer(&value), 0) };
    since("fsconfig", "5.2", again(call)).map(drop)
}

/// Sets a flag-like option of a filesystem context.
pub fn fsconfig_flag(fs: &OwnedFd, key: &str) -> io::Result<()> {
    fsconfig(fs, 0, Some(key), None)
}

/// Sets a `key=value` option of a filesystem context.
pub fn fsconfig_string(fs: &OwnedFd, key: &str, value: &str) -> io::Result<()> {
    fsconfig(fs, 1, Some(key), Some(value))
}

/// Makes the superblock of a filesystem context.
pub fn fsconfig_create(fs: &OwnedFd) -> io::Result<()> {
    fsconfig(fs, 6, None, None)
}

/// fspick(2): the context of a mounted filesystem, to change it.
pub fn fspick(mounted: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the path is an empty C string; the flags are FSPICK_CLOEXEC | FSPICK_EMPTY_PATH.
    let call = || unsafe { libc::syscall(libc::SYS_fspick, mounted.as_raw_fd(), c"".as_ptr(), 0x1 | 0x8) };
    since("fspick", "5.2", owned(again(call)))
}

/// Changes the superblock of a picked filesystem context.
pub fn fsconfig_reconfigure(fs: &OwnedFd) -> io::Result<()> {
    fsconfig(fs, 7, None, None)
}

/// What the kernel has to say about the last failure of a filesystem context, if anything.
pub fn fs_message(fs: &OwnedFd) -> Option<String> {
    let mut buffer = [0u8; 512];
    let n = nix::unistd::read(fs, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..n]);
    Some(text.trim().trim_start_matches("e ").to_owned()).filter(|t| !t.is_empty())
}

/// fsmount(2): a detached mount of a configured filesystem.
pub fn fsmount(fs: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; 1 is FSMOUNT_CLOEXEC.
    let call = || unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes as c_uint) };
    since("fsmount", "5.2", owned(again(call)))
}

/// A detached copy of the mount at `path` (of `dir` itself when the path is empty), with its submounts if `recursive`.
pub fn clone_tree(dir: RawFd, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= AT_EMPTY_PATH;
    }
    // SAFETY: path is NUL-terminated and lives through the call.
    since("open_tree", "5.2", owned(again(|| unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })))
}

/// Attaches the (detached) mount `from` on the very file or directory that `to` is: no path is walked.
pub fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    const FLAGS: c_uint = 0x04 | 0x40;
    // SAFETY: both descriptors are open and the paths are empty C strings.
    let call = || unsafe {
        libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), c"".as_ptr(), to.as_raw_fd(), c"".as_ptr(), FLAGS)
    };
    since("move_mount", "5.2", again(call)).map(drop)
}

/// mount_setattr(2) on the mount `fd` is the root of.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: attr lives through the call and its size is passed.
    let call = || unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    };
    since("mount_setattr", "5.12", again(call)).map(drop)
}

/// Closes all descriptors from `first` on. Only for a process about to exec: owners of those descriptors still
/// exist in its memory and must never be used or dropped after this.
pub fn close_from(first: c_uint) -> io::Result<()> {
    // SAFETY: the callers (the init's and the exec's half) hold the owners in ManuallyDrop or never return.
    match check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0) }) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        result => return result.map(drop),
    }
    // The list in /proc is not to be had here: what the container shows as /proc may be anything.
    for fd in first..MAX_DESCRIPTORS {
        // SAFETY: as above; a number that is not open is no harm.
        unsafe { libc::close(fd as c_int) };
    }
    Ok(())
}

/// Marks all descriptors from `first` on close-on-exec: those of a caller that forgot to, above all.
pub fn close_on_exec_from(first: c_uint) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: c_uint = 4;
    // SAFETY: plain integers; no descriptor is closed.
    match check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, CLOSE_RANGE_CLOEXEC) }) {
        // The flag came with Linux 5.11, after the call itself (5.9).
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {}
        result => return result.map(drop),
    }
    for fd in first..MAX_DESCRIPTORS {
        // SAFETY: sets a flag of descriptors; a number that is not open is no harm.
        unsafe { libc::fcntl(fd as c_int, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Takes ownership of a descriptor known by number (one passed by our own parent).
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a number they just made by dup2, or inherited for this very purpose, and use it once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Borrows a descriptor known by number, such as 0, 1 and 2.
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: callers use it for the standard descriptors, and for numbers they hold open themselves.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// dup3 to a chosen number; close-on-exec on request.
pub fn dup_to(fd: RawFd, to: RawFd, cloexec: bool) -> io::Result<()> {
    // SAFETY: plain integers; the target number is the caller's to overwrite.
    unsafe {
        if fd == to {
            check(libc::fcntl(fd, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }) as c_long)?;
        } else {
            again(|| libc::dup3(fd, to, if cloexec { libc::O_CLOEXEC } else { 0 }) as c_long)?;
        }
    }
    Ok(())
}

/// Whether a descriptor came with this program's execution. One of its own at that number (a log, say) is closed by the
/// next, as all of them are.
pub fn is_handed_over(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// A pidfd of a process; it never comes to mean another process. For uses of our own see `handle`, which does without.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    since("pidfd_open", "5.3", owned(check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })))
}

/// Sends a signal through a pidfd.
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo means "as kill(2) would".
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) })?;
    Ok(())
}

/// kill(2) with any signal number: realtime signals have no name in nix.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid, signal) } as c_long).map(drop)
}

/// Reaps one child that has ended: its pid and its status as wait(2) encodes it. `None` when none has.
///
/// nix knows no real-time signals, and would lose the news of a child that one of them killed.
pub fn reap() -> io::Result<Option<(i32, c_int)>> {
    let mut status = 0;
    // SAFETY: writes one int.
    let pid = again(|| unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } as c_long)?;
    Ok((pid > 0).then_some((pid as i32, status)))
}

/// Whether a signal waits, blocked, for this thread or process.
pub fn is_pending(signal: c_int) -> bool {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigpending fills the set when it succeeds, and only then it is read.
    unsafe { libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(set.as_ptr(), signal) == 1 }
}

/// Joins the namespaces named by `flags`, of a process (pidfd) or of one namespace file.
pub fn setns(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) } as c_long)?;
    Ok(())
}

/// unshare(2) with any flag, CLONE_NEWTIME included.
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::unshare(flags as c_int) } as c_long)?;
    Ok(())
}

/// Sets a resource limit of a process (0 = this one).
pub fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: limit lives through the call; the old limit is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &limit, std::ptr::null::<u8>()) })?;
    Ok(())
}

/// Joins a new session keyring of this name; returns its serial.
pub fn join_session_keyring(name: &str) -> io::Result<i32> {
    let name = cstring(name)?;
    // SAFETY: 1 is KEYCTL_JOIN_SESSION_KEYRING; the name is NUL-terminated.
    Ok(check(unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr()) })? as i32)
}

/// Makes a terminal the controlling one of this session (of which the caller is the leader).
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY as _, 0) } as c_long)?;
    Ok(())
}

/// Unlocks a pty master and opens its other end without walking any path.
pub fn pty_peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    const TIOCGPTPEER: u32 = 0x5441;
    let unlock: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int; TIOCGPTPEER takes open flags and returns a descriptor.
    unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &unlock) as c_long)?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        owned(again(|| libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) as c_long))
    }
}

/// The number N of /dev/pts/N behind a master.
pub fn pty_number(master: &OwnedFd) -> io::Result<u32> {
    let mut number: c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &mut number) } as c_long)?;
    Ok(number)
}

/// Sets a terminal's size.
pub fn set_window_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ as _, &size) } as c_long)?;
    Ok(())
}

/// A terminal's size: rows, columns.
pub fn window_size(fd: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ as _, &mut size) } as c_long)?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets the domain name of this UTS namespace.
pub fn setdomainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of one live string.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) } as c_long)?;
    Ok(())
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid; the name fits; the socket is closed by its owner.
    unsafe {
        let socket = owned(check(libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) as c_long))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as _;
        request.ifr_name[1] = b'o' as _;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) as c_long)?;
    }
    Ok(())
}

/// Children are waited for whatever the caller's own were: with the signal ignored, which outlives an execve, the kernel
/// reaps them and tells nobody.
pub fn hear_children() {
    // SAFETY: a default action refers to no code of ours.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// All signals to their default action, and none blocked: what a program expects at its start.
/// (Rust's own start-up ignores SIGPIPE, and an ignored signal would survive the exec.)
pub fn reset_signals() {
    // SAFETY: default actions refer to no code of ours; the mask is a local, emptied before use.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Execs the program that `file` is open on; returns only to say why not.
pub fn exec_fd(file: &OwnedFd, args: &[CString], env: &[CString]) -> io::Error {
    let list = |items: &[CString]| -> Vec<*const libc::c_char> {
        items.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: both lists end with null and their strings live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return error;
    }
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return error };
    // SAFETY: as above, and the path is NUL-terminated.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends a forked child at once: no destructors, no exit handlers of the parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    #[test]
    fn what_is_missing_is_named_with_the_kernel_that_has_it() {
        let missing = since::<()>("fsopen", "5.2", Err(io::Error::from_raw_os_error(libc::ENOSYS))).unwrap_err();
        assert!(missing.to_string().contains("fsopen(2)") && missing.to_string().contains("Linux 5.2"), "{missing}");
        let other = since::<()>("fsopen", "5.2", Err(io::Error::from_raw_os_error(libc::EPERM))).unwrap_err();
        assert_eq!(other.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_old_clone_joins_the_cgroup_before_it_returns() {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let top = unified.into_iter().find(|top| top.join("cgroup.procs").exists()).expect("a v2 tree");
        let dir = top.join(format!("coracle-test-clone-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let handle = std::fs::File::open(&dir).unwrap();
        let cloned = clone_without_3(0, Some(std::os::fd::AsFd::as_fd(&handle)), libc::SIGCHLD).unwrap();
        let Some(pid) = cloned else {
            let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            exit_now(i32::from(!own.contains("coracle-test-clone-")));
        };
        let status = waitpid(Pid::from_raw(pid), None).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(status, WaitStatus::Exited(Pid::from_raw(pid), 0));
    }

    #[test]
    fn the_old_clone_says_when_the_cgroup_cannot_be_joined() {
        let dir = tempfile::tempdir().unwrap();
        // A file without room stands for a cgroup that takes no process.
        std::os::unix::fs::symlink("/dev/full", dir.path().join("cgroup.procs")).unwrap();
        let handle = std::fs::File::open(dir.path()).unwrap();
        let error = clone_without_3(0, Some(std::os::fd::AsFd::as_fd(&handle)), libc::SIGCHLD).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn the_old_clone_refuses_a_time_namespace_by_name() {
        let error = clone_without_3(CLONE_NEWTIME, None, libc::SIGCHLD).unwrap_err();
        assert!(error.to_string().contains("clone3(2)"), "{error}");
    }
}
