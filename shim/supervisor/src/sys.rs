//! The system calls that need `unsafe`: nothing here decides anything.
#![allow(unsafe_code)]

use nix::libc;
use nix::sys::epoll::EpollEvent;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Which side of a fork this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The caller, with the child's pid.
    Parent(i32),
}

/// Forks.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the program has one thread, so the child may go on as the parent would.
    forked(unsafe { libc::fork() }.into())
}

/// Forks a child into new namespaces: the first process of a new PID namespace, if that is one of them. It must not
/// allocate.
pub fn fork_into(namespaces: libc::c_int) -> io::Result<Fork> {
    let flags = (namespaces | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: no stack and no tid pointers are given, so this is fork(2) with a flag.
    forked(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) })
}

fn forked(pid: libc::c_long) -> io::Result<Fork> {
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Ends the process without running destructors or exit handlers: the way out of a fork.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor above stderr but those in `keep`, which is sorted on the way.
pub fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut first = 3;
    for &fd in keep.iter() {
        if fd > first {
            close_range(first as u32, fd as u32 - 1);
        }
        first = first.max(fd + 1);
    }
    close_range(first as u32, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: called in a fresh fork or before anything was opened; whoever owned these descriptors never touches
    // them again in this process. An old kernel without the call leaves them open, all of them close-on-exec.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It called exit.
    Exited(i32),
    /// A signal killed it.
    Signaled(i32),
}

/// Reaps one dead child, if there is any. (nix's wrapper loses children killed by a realtime signal.)
pub fn reap() -> Option<(i32, Death)> {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        if libc::WIFEXITED(status) {
            return Some((pid, Death::Exited(libc::WEXITSTATUS(status))));
        }
        if libc::WIFSIGNALED(status) {
            return Some((pid, Death::Signaled(libc::WTERMSIG(status))));
        }
    }
}

/// Sends any signal, realtime ones too.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill has no memory preconditions.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a descriptor known by another number too, which survives an exec.
pub fn dup_to(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: called in a fresh fork, before an exec: whoever owned the number never touches it again in this process.
    match unsafe { libc::dup2(fd, number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The same by any number from `first` on; it does not survive an exec.
pub fn dup_beyond(fd: RawFd, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl has no memory preconditions; the new descriptor is nobody's yet.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, for us.
        new => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
    }
}

/// Lets a descriptor survive an exec.
pub fn keep_over_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl has no memory preconditions.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// No program that this process becomes can have a capability that its file gives.
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0.. {
        // SAFETY: prctl(PR_CAPBSET_DROP) has no memory preconditions.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know.
            return if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// The processor's time-stamp counter, where there is one.
#[cfg(target_arch = "x86_64")]
pub fn timestamp_counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

/// The processor's time-stamp counter, where there is one.
#[cfg(not(target_arch = "x86_64"))]
pub fn timestamp_counter() -> Option<u64> {
    None
}

/// A descriptor of a process, readable when it has ended.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open has no memory preconditions; a descriptor that it returns is ours.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, for us.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
    }
}

/// Signals the process of a pidfd.
pub fn signal_by_pidfd(process: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo nothing is read from memory.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The size of a terminal, in characters.
pub fn set_window_size(terminal: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a network device of `/dev/net/tun`, which was opened in the namespace it is to be in: whole frames, each behind
/// a header that says which checksum is yet to be made and how it is to be cut.
pub fn make_tap(tun: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the one descriptor that was sent over a socket.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 256];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let mut control = [0u64; 8];
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: the buffers above outlive the call and their sizes are stated.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: message was filled by the kernel; CMSG_FIRSTHDR checks that a whole header is there.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: a non-null header from CMSG_FIRSTHDR is readable.
    let is_fd = !header.is_null()
        && unsafe { (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS };
    if !is_fd {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor was sent"));
    }
    // SAFETY: SCM_RIGHTS carries at least one int, and the kernel made it ours.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()) })
}

/// Gives the signals their default actions again and unblocks them all, for what a fork goes on to run.
pub fn reset_signals() {
    // SAFETY: SIG_DFL is always a valid action, and the set is initialised before use.
    unsafe {
        for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Lets the kernel reap this process' children, and gives it a name of its own.
pub fn become_pod_init() {
    reset_signals();
    // SAFETY: SIG_IGN is a valid action; the name is a NUL-terminated string.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_NAME, c"coracle-pod".as_ptr());
    }
}

/// A POSIX lock on a whole file, for writing.
pub fn write_lock() -> libc::flock {
    // SAFETY: all-zero is a valid flock: the whole file, counted from its start.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

/// Where in memory a part of this program is: its first byte, and how many there are.
type Range = (usize, usize);

/// The pages that hold the program's own code and constants: the segments that are not writable. They are private
/// mappings of the file that no relocation has changed (the program is static), so a page read again is the same page.
fn own_text() -> [Range; 4] {
    unsafe extern "C" {
        /// The program's ELF header in memory, by the linker.
        static __ehdr_start: libc::Elf64_Ehdr;
    }
    const PAGE: usize = 4096;
    let mut ranges = [(0, 0); 4];
    // SAFETY: the linker defines the symbol, and maps the program headers behind it with the first segment.
    let (header, segments) = unsafe {
        let header = &raw const __ehdr_start;
        let table = header.cast::<u8>().add((*header).e_phoff as usize).cast::<libc::Elf64_Phdr>();
        (header as usize, std::slice::from_raw_parts(table, (*header).e_phnum.into()))
    };
    let load = |segment: &&libc::Elf64_Phdr| segment.p_type == libc::PT_LOAD;
    let Some(first) = segments.iter().filter(load).find(|segment| segment.p_offset == 0) else { return ranges };
    let base = header.wrapping_sub(first.p_vaddr as usize);
    let fixed = segments.iter().filter(load).filter(|segment| segment.p_flags & libc::PF_W == 0);
    for (range, segment) in ranges.iter_mut().zip(fixed) {
        let start = base.wrapping_add(segment.p_vaddr as usize) / PAGE * PAGE;
        let end = base.wrapping_add((segment.p_vaddr + segment.p_memsz) as usize).next_multiple_of(PAGE);
        *range = (start, end - start);
    }
    ranges
}

/// Lets the kernel take the program's own code and constants out of this process: they are pages of the file, and the
/// few that are needed come back by minor faults. What ran once (start, create) stops counting.
#[inline(always)]
pub fn forget_own_text() {
    for (start, size) in own_text() {
        // SAFETY: the range is one of own_text()'s, which says why such pages may go.
        unsafe { system_call(libc::SYS_madvise, [start, size, libc::MADV_DONTNEED as usize, 0, 0, 0]) };
    }
}

/// epoll_wait(2) in a process that is to weigh nothing meanwhile: it gives back what the heap does not need, forgets its
/// own code, and sleeps without calling any other. The kernel maps 64 kB and more around each page that is touched
/// (fault_around_bytes), and each function called would cost that for as long as the sleep lasts.
#[inline(never)]
pub fn rest(epoll: &OwnedFd, events: &mut [EpollEvent], timeout: libc::c_int) -> io::Result<usize> {
    // SAFETY: it takes a number. musl keeps no pages worth the call.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let (epoll, room) = (epoll.as_raw_fd() as usize, events.len());
    let wait = [epoll, events.as_mut_ptr() as usize, room, timeout as usize, 0, 0];
    forget_own_text();
    // SAFETY: the events are writable and their number is stated; EpollEvent is a libc::epoll_event
    // (repr(transparent)). No signal mask is passed.
    match unsafe { system_call(libc::SYS_epoll_pwait, wait) } {
        count @ 0.. => Ok(count as usize),
        error => Err(io::Error::from_raw_os_error(-error as i32)),
    }
}

/// Sleeps until a signal ends the process, and weighs as little as in [`rest`].
#[inline(never)]
pub fn rest_for_ever() -> ! {
    forget_own_text();
    loop {
        // SAFETY: ppoll(2) of no descriptor, without a time limit.
        unsafe { system_call(libc::SYS_ppoll, [0; 6]) };
    }
}

/// A system call without the C library: what it returns, or its error number negated.
///
/// # Safety
/// As the call's.
#[inline(always)]
unsafe fn system_call(number: libc::c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: syscall(2), "Architecture calling conventions": only these registers change.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Writing to somebody who has left is an error and no signal.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is always a valid action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sixteen bytes that nobody can know.
pub fn random() -> io::Result<u128> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is writable and its size is stated. So few bytes come at once or not at all.
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
        16 => Ok(u128::from_ne_bytes(bytes)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives up every capability that this process has, inherits or could hand on.
pub fn drop_capabilities() -> io::Result<()> {
    /// _LINUX_CAPABILITY_VERSION_3: two words of each set.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0u32; 6];
    // SAFETY: the header is a version and a pid, the sets three words twice; both outlive the call.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
