//! Kills a process just before its Nth step, without its help: a ptrace tracer that counts, over all threads, the system
//! calls that change something outside of the process. With every N from 1 on, a call of the process is cut off between
//! any two of its steps.
//!
//! A step is a system call that changes the file system's names or mounts, writes to a file or a socket (netlink and other
//! processes are spoken to by these), signals a process or makes one. What a SIGKILL cannot undo anyhow (reading,
//! syncing, waiting, locking) is none. At the Nth the process is killed *before* the call is done.
//!
//! Threads of a traced process stop at each system call, so it is slow; it is let go when the tracer ends.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long the tracer rests when no thread has stopped.
const REST: Duration = Duration::from_micros(50);

/// Calls that are steps whatever their arguments are.
const ALWAYS: [(i64, &str); 25] = [
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_fork, "fork"),
    (libc::SYS_vfork, "vfork"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendmmsg, "sendmmsg"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_creat, "creat"),
];
/// Calls that are steps when they go to a file or a socket.
const WRITES: [(i64, &str); 5] = [
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_copy_file_range, "copy_file_range"),
];

/// A traced process.
#[derive(Debug)]
pub struct Tracer {
    thread: JoinHandle<Option<String>>,
    done: Arc<AtomicBool>,
}

impl Tracer {
    /// Traces a process from now on, and kills it at its Nth step, counted from 1.
    ///
    /// # Panics
    /// When it cannot be traced.
    pub fn kill_at(process: Pid, step: usize) -> Tracer {
        let done = Arc::new(AtomicBool::new(false));
        let (attached, wait) = mpsc::channel();
        let told = done.clone();
        let thread = std::thread::spawn(move || {
            let mut tracing = Tracing { process, left: step, known: BTreeSet::new() };
            tracing.attach();
            attached.send(()).expect("the test waits for it");
            tracing.follow(&told)
        });
        wait.recv().expect("attach to the process");
        Tracer { thread, done }
    }

    /// Lets the process go: the step at which it was killed, if it was.
    ///
    /// # Panics
    /// When the tracer did.
    pub fn finish(self) -> Option<String> {
        self.done.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The tracer's own thread's state: only the thread that attached may trace.
struct Tracing {
    process: Pid,
    left: usize,
    known: BTreeSet<i32>,
}

impl Tracing {
    /// Seizes every thread. Threads that seized ones start are traced from their first instruction on.
    fn attach(&mut self) {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        loop {
            let threads: Vec<i32> = fs::read_dir(format!("/proc/{}/task", self.process))
                .expect("the process runs")
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .filter(|thread| !self.known.contains(thread))
                .collect();
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                match ptrace::seize(Pid::from_raw(thread), options) {
                    // It ended just now, or is traced already as the child of a seized one.
                    Ok(()) => ptrace::interrupt(Pid::from_raw(thread)).unwrap_or_default(),
                    Err(Errno::ESRCH | Errno::EPERM) => {}
                    Err(error) => panic!("trace {thread}: {error}"),
                }
                self.known.insert(thread);
            }
        }
    }

    /// Follows all threads until the step or the word that it is over.
    fn follow(&mut self, done: &AtomicBool) -> Option<String> {
        // Other threads of the test program have children of their own to wait for.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    if let Some(step) = self.step(thread) {
                        self.left -= 1;
                        if self.left == 0 {
                            kill(self.process, Signal::SIGKILL).expect("kill the process");
                            return Some(step);
                        }
                    }
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, _, _)) => (thread, None),
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(WaitStatus::StillAlive) => {
                    if done.load(Ordering::SeqCst) {
                        return None;
                    }
                    std::thread::sleep(REST);
                    continue;
                }
                Ok(_) => continue,
                // No thread is left: the process has ended by itself, which its parent will see.
                Err(_) => return None,
            };
            // A thread that was killed meanwhile is no error.
            let _ = ptrace::syscall(thread, signal);
        }
    }

    /// What a stopped thread is about to do, if it is a step.
    fn step(&self, thread: Pid) -> Option<String> {
        let registers = ptrace::getregs(thread).ok()?;
        // The stop after a call has its result in rax, the one before it -ENOSYS.
        if registers.rax as i64 != -i64::from(libc::ENOSYS) {
            return None;
        }
        let number = registers.orig_rax as i64;
        let name = |list: &[(i64, &'static str)]| list.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
        if let Some(name) = name(&ALWAYS) {
            return Some(name.to_owned());
        }
        if let Some(name) = name(&WRITES) {
            return self.is_outside(registers.rdi).map(|target| format!("{name} to {}", target.display()));
        }
        match number {
            libc::SYS_openat if registers.rdx & libc::O_CREAT as u64 != 0 => Some("openat with O_CREAT".to_owned()),
            libc::SYS_clone if registers.rdi & libc::CLONE_THREAD as u64 == 0 => Some("clone".to_owned()),
            libc::SYS_clone3 => {
                let flags = ptrace::read(thread, registers.rdi as ptrace::AddressType).unwrap_or_default();
                (flags & i64::from(libc::CLONE_THREAD) == 0).then(|| "clone3".to_owned())
            }
            _ => None,
        }
    }

    /// What a descriptor is, if it is a file or a socket and not the process's log.
    fn is_outside(&self, fd: u64) -> Option<PathBuf> {
        let target = fs::read_link(format!("/proc/{}/fd/{fd}", self.process)).ok()?;
        let text = target.to_string_lossy();
        (fd > 2 && (text.starts_with('/') || text.starts_with("socket:"))).then(|| target.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs a shell that waits for a line and then makes three files; kills it at a step.
    fn three_files(step: usize) -> (usize, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let script = "read line; for n in a b c; do : > $n; done";
        let mut shell = Command::new("/bin/busybox");
        let shell = shell.args(["sh", "-c", script]).current_dir(dir.path()).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let tracer = Tracer::kill_at(Pid::from_raw(shell.id() as i32), step);
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), b"go\n").unwrap();
        // A wait of this thread's would take the stops that the tracer is to see, and the tracer may reap the shell itself.
        let stat = format!("/proc/{}/stat", shell.id());
        let ended = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
        crate::machine::until("the shell to end", ended);
        let step = tracer.finish();
        let _ = shell.wait();
        (fs::read_dir(dir.path()).unwrap().count(), step)
    }

    #[test]
    fn a_process_is_killed_before_its_step_is_done() {
        assert_eq!(three_files(1).0, 0);
        let (made, step) = three_files(3);
        assert_eq!(made, 2, "{step:?}");
        assert!(step.as_deref().is_some_and(|step| step.contains("O_CREAT")), "{step:?}");
        assert_eq!(three_files(99), (3, None));
    }
}
