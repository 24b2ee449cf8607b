//! Makes one system call of a program fail, whichever it is: a tracer that follows a program and all it starts, and has one
//! call answered with an error instead of done, or its process killed just before.
//!
//! The program runs under a filter (the helper `faulty`) that stops it at the calls that matter and at no others, so it
//! keeps nearly its own speed. A call is named by its [`Site`]: the n-th of the p-th process. Processes that became another
//! program (a hook's, the container's) are followed but not counted, nor is what the loader and the language's start-up do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::Sysno;

use crate::sys;

/// A program that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// As much of a path as is told.
const MAX_TEXT: usize = 160;

/// The text of a call that is given the program's own file.
pub const PROGRAM: &str = "(the program)";

/// A system call of the program: of which of its processes (0 is the first), and its how manieth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// In the order of their birth.
    pub process: usize,
    /// From 0.
    pub call: usize,
}

/// A call that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Where.
    pub site: Site,
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub args: [u64; 3],
    /// Its path or key, if it has one.
    pub text: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { site, name, text, args: [a, b, c] } = self;
        write!(f, "call {} of process {}: {name}({a:#x}, {b:#x}, {c:#x}) {text:?}", site.call, site.process)
    }
}

/// What happens at the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made and answers with this error.
    Error(Errno),
    /// The process is killed instead of making the call.
    Kill,
}

/// A program that is followed.
#[derive(Debug)]
pub struct Traced {
    thread: JoinHandle<Vec<Call>>,
    code: mpsc::Receiver<i32>,
    living: Arc<Mutex<BTreeSet<Pid>>>,
}

/// What to run, and under what fault.
#[derive(Debug)]
pub struct Order<'a> {
    /// The helper `faulty`.
    pub faulty: &'a Path,
    /// The calls to stop at.
    pub calls: &'a [&'a str],
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Gets what it says on both standard streams.
    pub output: &'a Path,
    /// What fails where; nothing for a plain run.
    pub fault: Option<(Site, Fault)>,
}

impl Order<'_> {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be traced.
    pub fn start(&self) -> Traced {
        let output = File::create(self.output).expect("make the output's file");
        let mut command = Command::new(self.faulty);
        command.arg("traced").arg(self.calls.join(",")).arg(self.program).args(self.args);
        // The tests' own libraries are no business of the program's loader.
        command
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("copy a descriptor"))
            .stderr(output);
        sys::trace_me(&mut command);
        let program = fs::metadata(self.program).expect("the program is there");
        let identity = (program.dev(), program.ino());
        let (tell, code) = mpsc::channel();
        let living = Arc::new(Mutex::new(BTreeSet::new()));
        let (known, fault) = (living.clone(), self.fault);
        let thread = std::thread::spawn(move || {
            #[expect(clippy::zombie_processes, reason = "the tracer waits for all, this one included")]
            let main = command.spawn().expect("run the helper");
            let main = Pid::from_raw(main.id() as i32);
            let tracer = Tracer {
                main,
                identity,
                fault,
                living: known,
                births: Vec::new(),
                early: BTreeSet::new(),
                runs: BTreeMap::new(),
            };
            tracer.follow(&tell)
        });
        Traced { thread, code, living }
    }
}

impl Traced {
    /// Waits for the first process to end: its exit code, or 128 and the signal.
    ///
    /// # Panics
    /// When it hangs.
    pub fn code(&self) -> i32 {
        self.code.recv_timeout(LIMIT).unwrap_or_else(|error| self.fail(&format!("the program does not end: {error}")))
    }

    /// Waits until all processes have ended; the calls that were met.
    ///
    /// # Panics
    /// When a process is left.
    pub fn finish(self) -> Vec<Call> {
        let deadline = Instant::now() + LIMIT;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                self.fail("a process is left");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn fail(&self, words: &str) -> ! {
        let living = self.living.lock().expect("the tracer lives").clone();
        let tell = |pid: &Pid| {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            format!("{pid} {:?} in {:?}", read("cmdline"), read("syscall"))
        };
        let told: Vec<String> = living.iter().map(tell).collect();
        for pid in living {
            let _ = kill(pid, Signal::SIGKILL);
        }
        panic!("{words}: {told:#?}");
    }
}

/// What a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// Something else.
    Other,
    /// The program, before its first call of its own: Rust's start-up polls the three standard streams before `main`.
    Beginning,
    /// The program.
    Program,
}

/// The thread that traces: only it may.
struct Tracer {
    main: Pid,
    /// Device and inode of the program.
    identity: (u64, u64),
    fault: Option<(Site, Fault)>,
    living: Arc<Mutex<BTreeSet<Pid>>>,
    births: Vec<Pid>,
    /// Children that stopped before their parents told of them.
    early: BTreeSet<Pid>,
    /// What a process runs, by when it last executed something.
    runs: BTreeMap<Pid, Runs>,
}

impl Tracer {
    fn follow(mut self, tell: &mpsc::Sender<i32>) -> Vec<Call> {
        let options = Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        let first = waitpid(self.main, Some(WaitPidFlag::__WALL)).expect("wait for the helper");
        assert!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "the helper did not stop: {first:?}");
        ptrace::setoptions(self.main, options).expect("set the tracer's options");
        self.born(self.main, Runs::Other);
        let _ = ptrace::cont(self.main, None);
        let mut calls: Vec<Call> = Vec::new();
        // Other threads of the test program have children of their own to wait for.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (pid, signal) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    match event {
                        libc::PTRACE_EVENT_SECCOMP => calls.extend(self.call(pid, &calls)),
                        libc::PTRACE_EVENT_EXEC => {
                            let runs = if self.runs_program(pid) { Runs::Beginning } else { Runs::Other };
                            self.runs.insert(pid, runs);
                        }
                        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                            if let Ok(child) = ptrace::getevent(pid) {
                                let runs = self.runs.get(&pid).copied().unwrap_or(Runs::Other);
                                self.born(Pid::from_raw(child as i32), runs);
                            }
                        }
                        _ => {}
                    }
                    (pid, None)
                }
                // How the life of a traced child begins. Its parent's news of it may come later: until then it waits.
                Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)) => {
                    if !self.births.contains(&pid) {
                        self.early.insert(pid);
                        continue;
                    }
                    (pid, None)
                }
                Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.ended(pid, code, tell);
                    continue;
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid, 128 + signal as i32, tell);
                    continue;
                }
                Ok(_) | Err(Errno::EINTR) => continue,
                // None is left.
                Err(_) => return calls,
            };
            // One that was killed meanwhile is no error.
            let _ = ptrace::cont(pid, signal);
        }
    }

    fn born(&mut self, pid: Pid, runs: Runs) {
        if !self.births.contains(&pid) {
            self.births.push(pid);
            self.runs.insert(pid, runs);
            self.living.lock().expect("no panic holds it").insert(pid);
            if self.early.remove(&pid) {
                let _ = ptrace::cont(pid, None);
            }
        }
    }

    fn ended(&mut self, pid: Pid, code: i32, tell: &mpsc::Sender<i32>) {
        self.living.lock().expect("no panic holds it").remove(&pid);
        if pid == self.main {
            // A test that has failed does not listen any more.
            let _ = tell.send(code);
        }
    }

    /// Whether it runs the program itself: its file, or the copy in memory that the program made.
    fn runs_program(&self, pid: Pid) -> bool {
        let exe = format!("/proc/{pid}/exe");
        let same = fs::metadata(&exe).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        same || fs::read_link(&exe).is_ok_and(|path| path.starts_with("/memfd:coracle (deleted)"))
    }

    /// A process stopped before a call: what it is, if it counts, after the fault was done to it.
    fn call(&mut self, pid: Pid, before: &[Call]) -> Option<Call> {
        let runs = *self.runs.get(&pid)?;
        if runs == Runs::Other {
            return None;
        }
        let mut registers = ptrace::getregs(pid).ok()?;
        let number = Sysno::new(registers.orig_rax as usize)?;
        let args = [registers.rdi, registers.rsi, registers.rdx];
        if runs == Runs::Beginning {
            if number == Sysno::poll && args[1] == 3 {
                self.runs.insert(pid, Runs::Program);
            }
            return None;
        }
        if !counts(number, &args) {
            return None;
        }
        let process = self.births.iter().position(|known| *known == pid)?;
        let call = before.iter().filter(|call| call.site.process == process).count();
        let site = Site { process, call };
        let call = Call { site, name: number.name(), args, text: self.text_of(pid, number, &args) };
        if let Some((_, fault)) = self.fault.filter(|(at, _)| *at == site) {
            match fault {
                Fault::Error(errno) => {
                    // No call has this number: none is made, and the answer is what stands in the register.
                    registers.orig_rax = u64::MAX;
                    registers.rax = -i64::from(errno as i32) as u64;
                    // Another command may have killed it by now.
                    ptrace::setregs(pid, registers).ok()?;
                }
                Fault::Kill => drop(kill(pid, Signal::SIGKILL)),
            }
        }
        Some(call)
    }
}

/// Whether it is more than a question.
fn counts(call: Sysno, args: &[u64; 3]) -> bool {
    match call {
        Sysno::fcntl => [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_ADD_SEALS].contains(&(args[1] as i32)),
        // Asked for, a limit is not set.
        Sysno::prlimit64 => args[2] != 0,
        Sysno::prctl => ![libc::PR_CAPBSET_READ, libc::PR_GET_DUMPABLE].contains(&(args[0] as i32)),
        _ => true,
    }
}

impl Tracer {
    /// What a descriptor is.
    fn descriptor(&self, link: &str) -> String {
        if fs::metadata(link).is_ok_and(|file| (file.dev(), file.ino()) == self.identity) {
            return PROGRAM.to_owned();
        }
        fs::read_link(link).unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The path or key among a call's arguments.
    fn text_of(&self, pid: Pid, call: Sysno, args: &[u64; 3]) -> String {
        let at = match call {
            Sysno::mkdir
            | Sysno::rmdir
            | Sysno::unlink
            | Sysno::rename
            | Sysno::open
            | Sysno::chdir
            | Sysno::execve => 0,
            Sysno::symlinkat | Sysno::umount2 | Sysno::memfd_create | Sysno::fsopen | Sysno::pivot_root => 0,
            Sysno::openat | Sysno::openat2 | Sysno::mkdirat | Sysno::mknodat | Sysno::unlinkat | Sysno::open_tree => 1,
            Sysno::mount | Sysno::write | Sysno::renameat | Sysno::renameat2 | Sysno::fchownat | Sysno::sendto => 1,
            Sysno::fsconfig => 2,
            Sysno::read | Sysno::fcntl | Sysno::mount_setattr | Sysno::ioctl | Sysno::accept4 | Sysno::recvfrom => {
                return self.descriptor(&format!("/proc/{pid}/fd/{}", args[0] as i32));
            }
            _ => return String::new(),
        };
        let mut bytes = [0u8; MAX_TEXT];
        let read = File::open(format!("/proc/{pid}/mem")).and_then(|memory| memory.read_at(&mut bytes, args[at]));
        let bytes = &bytes[..read.unwrap_or(0)];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let end = if matches!(call, Sysno::write | Sysno::sendto) { end.min(args[2] as usize) } else { end };
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}
