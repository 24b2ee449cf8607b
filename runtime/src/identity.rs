//! Who a container's process is: user, groups, capabilities, limits, environment, program. Shared by create and exec.
//!
//! [`Identity::plan`] is the parent's part (parsing, so that errors come before any process exists);
//! [`Identity::assume`] is the process's own last steps before it waits or execs.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{AccessFlags, Gid, Uid, access, chdir, fchown, setgroups, setresgid, setresuid};

use crate::agent::Agent;
use crate::error::{Context, Error, Result};
use crate::lsm::{self, Label};
use crate::schedule::{Domain, Schedule};
use crate::spec::{Linux, Process, Rlimit};
use crate::{beneath, seccomp, sys};

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// An /etc/passwd of an image is read no further.
const MAX_PASSWD_BYTES: u64 = 4 << 20;
/// The umask when the configuration has none, as runc's.
const DEFAULT_UMASK: u32 = 0o022;

/// The five sets.
struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

/// A process to become.
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    sets: Sets,
    no_new_privileges: bool,
    /// Whether the container has a user namespace.
    pub in_user_namespace: bool,
    pub rlimits: Vec<(u32, u64, u64)>,
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    filter: Option<seccomp::Program>,
    /// Where the filter's listener goes.
    agent: Option<Agent>,
    /// Of AppArmor and SELinux.
    labels: Vec<Label>,
    /// Taken out by who applies it elsewhere.
    pub schedule: Schedule,
    domain: Domain,
}

/// How many labels a process can have.
pub(crate) const MAX_LABELS: usize = 2;

/// What is left to do: one seccomp load, one execve.
pub(crate) struct Program {
    /// It is none of the container's.
    pub file: Option<OwnedFd>,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn set_of(names: &[String]) -> Result<CapsHashSet> {
    names
        .iter()
        .map(|name| {
            Capability::from_str(name)
                .map_err(|_| Error::invalid(format!("process.capabilities: unknown capability {name:?}")))
        })
        .collect()
}

fn rlimit(limit: &Rlimit) -> Result<(u32, u64, u64)> {
    let resource = match limit.kind.as_str() {
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        other => return Err(Error::invalid(format!("process.rlimits: unknown type {other:?}"))),
    };
    Ok((resource as u32, limit.soft, limit.hard))
}

impl Identity {
    /// The parent's part.
    pub fn plan(
        process: &Process,
        linux: &Linux,
        filter: Option<seccomp::Program>,
        agent: Option<Agent>,
    ) -> Result<Identity> {
        let none = crate::spec::Capabilities::default();
        // No capabilities in the configuration means none for the process.
        let names = process.capabilities.as_ref().unwrap_or(&none);
        let mut sets = Sets {
            bounding: set_of(&names.bounding)?,
            effective: set_of(&names.effective)?,
            inheritable: set_of(&names.inheritable)?,
            permitted: set_of(&names.permitted)?,
            ambient: set_of(&names.ambient)?,
        };
        // The kernel has none ambient that is not inheritable. buildah asks for such; like runc and crun, they stay out:
        // what is not granted endangers nobody.
        sets.ambient.retain(|cap| sets.inheritable.contains(cap) && sets.permitted.contains(cap));
        let mut rlimits = process.rlimits.iter().map(rlimit).collect::<Result<Vec<_>>>()?;
        rlimits.sort_unstable();
        if rlimits.windows(2).any(|w| w[0].0 == w[1].0) {
            return Err(Error::invalid("process.rlimits: a type occurs twice"));
        }
        Ok(Identity {
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.iter().map(|&g| Gid::from_raw(g)).collect(),
            umask: process.user.umask.unwrap_or(DEFAULT_UMASK),
            sets,
            no_new_privileges: process.no_new_privileges,
            in_user_namespace: false,
            rlimits,
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            filter,
            agent,
            labels: lsm::plan(process)?,
            schedule: Schedule::plan(process)?,
            domain: Domain::plan(linux)?,
        })
    }

    /// The seccomp filter.
    pub fn filter(&self) -> Option<&seccomp::Program> {
        self.filter.as_ref()
    }

    /// Adds variables the runtime itself promises (LISTEN_FDS).
    pub fn add_env(&mut self, variable: String) {
        self.env.push(variable);
    }

    /// The seccomp listener's socket, taken out while descriptors are renumbered.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.agent.as_mut().and_then(Agent::take_socket)
    }

    /// And put back.
    pub fn put_listener(&mut self, socket: Option<OwnedFd>) {
        if let Some(agent) = &mut self.agent {
            agent.put_socket(socket);
        }
    }

    /// Tells the agent which process this is, while the host's /proc is there.
    pub fn name_process(&mut self, proc: Option<&OwnedFd>) -> Result<()> {
        self.agent.as_mut().map_or(Ok(()), |agent| agent.name_process(proc))
    }

    /// Whether the host's /proc is needed where the container's may be in its place.
    pub fn needs_proc(&self) -> bool {
        self.labelled() || self.agent.is_some()
    }

    /// Opens what the labels will be written to, while the host's /proc is there.
    pub fn open_labels(&mut self, proc: &OwnedFd) -> Result<()> {
        self.labels.iter_mut().try_for_each(|label| label.open(proc))
    }

    /// Whether there are labels.
    pub fn labelled(&self) -> bool {
        !self.labels.is_empty()
    }

    /// The labels' files, taken out while descriptors are renumbered.
    pub fn take_labels(&mut self) -> [Option<OwnedFd>; MAX_LABELS] {
        let mut files = self.labels.iter_mut().map(|label| label.file.take());
        [files.next().flatten(), files.next().flatten()]
    }

    /// And put back.
    pub fn put_labels(&mut self, files: [Option<OwnedFd>; MAX_LABELS]) {
        self.labels.iter_mut().zip(files).for_each(|(label, file)| label.file = file);
    }

    /// The user, for the owner of a terminal.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The process's last steps, inside the container's root. The order is the design. Without a `file`, the program is
    /// the container's.
    pub fn assume(&mut self, file: Option<OwnedFd>) -> Result<Program> {
        // A working directory only root may enter: tried first as root, and again below as the user.
        let early = chdir(&self.cwd);
        self.own_stdio()?;
        umask(Mode::from_bits_truncate(self.umask));
        // While still root of the host, who may at least lower every limit; in a user namespace the parent did it.
        if !self.in_user_namespace {
            set_rlimits(0, &self.rlimits)?;
        }
        // While the rights to raise a priority are there.
        self.schedule.apply(0)?;
        self.domain.apply()?;
        // Without it nothing a set-user-id program does could give privileges back.
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().op(|| "set no_new_privs")?;
        }
        // The bounding set first: dropping from it needs CAP_SETPCAP, which goes with the rest.
        self.drop_bounding()?;
        // Changing the user would clear the permitted set, from which the rest is chosen.
        nix::sys::prctl::set_keepcaps(true).op(|| "keep capabilities across the change of user")?;
        self.become_user()?;
        nix::sys::prctl::set_keepcaps(false).op(|| "clear keepcaps")?;
        self.set_capabilities()?;
        match chdir(&self.cwd) {
            Ok(()) => {}
            // EACCES for the user alone: root's chdir stands, as in runc.
            Err(Errno::EACCES) if early.is_ok() => {}
            Err(e) => return Err(e).path("change to working directory", &self.cwd),
        }
        // A working directory outside of the root (by a leaked descriptor) would be a way out.
        let cwd = nix::unistd::getcwd().op(|| "find the working directory (it must be inside the container)")?;
        if !cwd.is_absolute() {
            return Err(Error::invalid(format!(
                "working directory {} is outside of the container",
                self.cwd.display()
            )));
        }
        self.find_program(file)
    }

    /// A user who may not write the terminal or pipe that someone else opened could not reopen /dev/stderr.
    fn own_stdio(&self) -> Result<()> {
        if self.uid == 0 {
            return Ok(());
        }
        for fd in 0..3 {
            let fd = sys::borrow(fd);
            let Ok(metadata) = fstat(fd) else { continue };
            if metadata.st_uid == self.uid || is_null(&metadata) {
                continue;
            }
            match fchown(fd, Some(Uid::from_raw(self.uid)), None) {
                // Read-only, foreign or immutable: the program still has the open descriptor.
                Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
                Err(e) => return Err(e).op(|| "change the owner of the standard streams"),
            }
        }
        Ok(())
    }

    fn drop_bounding(&self) -> Result<()> {
        for capability in caps::runtime::thread_all_supported() {
            if !self.sets.bounding.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .map_err(|e| Error::Init(format!("drop {capability} from the bounding set: {e}")))?;
            }
        }
        Ok(())
    }

    fn become_user(&self) -> Result<()> {
        match setgroups(&self.groups) {
            // A user namespace may deny it; then there is nothing to give up either.
            Err(Errno::EPERM) if self.groups.is_empty() && (self.in_user_namespace || groups_are_denied()) => {}
            result => result.op(|| format!("set the additional groups {:?}", self.groups))?,
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid).op(|| format!("become group {gid}"))?;
        setresuid(uid, uid, uid).op(|| format!("become user {uid}"))
    }

    fn set_capabilities(&self) -> Result<()> {
        let mut effective = self.sets.effective.clone();
        let mut permitted = self.sets.permitted.clone();
        if self.filter.is_some() && !self.no_new_privileges {
            // Loading a filter without no_new_privs takes CAP_SYS_ADMIN. It is kept to the very end, so that the
            // filter need allow nothing but the exec. The exec then computes the permitted set anew, from the
            // inheritable, ambient and bounding sets alone: the container's program does not get it.
            effective.insert(Capability::CAP_SYS_ADMIN);
            permitted.insert(Capability::CAP_SYS_ADMIN);
        }
        let failed = |name: &str, e: caps::errors::CapsError| {
            Error::Init(format!("set the {name} capabilities: {e} (does the caller have them all itself?)"))
        };
        let set = |which, wanted: &CapsHashSet, name: &str| caps::set(None, which, wanted).map_err(|e| failed(name, e));
        // Each set is bounded by the one before it.
        set(CapSet::Inheritable, &self.sets.inheritable, "inheritable")?;
        set(CapSet::Effective, &CapsHashSet::new(), "effective")?;
        set(CapSet::Permitted, &permitted, "permitted")?;
        set(CapSet::Effective, &effective, "effective")?;
        // One call for all that are there, rather than one for each that could be.
        caps::clear(None, CapSet::Ambient)
            .and_then(|()| self.sets.ambient.iter().try_for_each(|cap| caps::raise(None, CapSet::Ambient, *cap)))
            .map_err(|e| failed("ambient", e))
    }

    fn find_program(&mut self, file: Option<OwnedFd>) -> Result<Program> {
        keep_last(&mut self.env);
        // An empty one is none, as with runc.
        self.env.retain(|variable| variable != "HOME=");
        if !self.env.iter().any(|e| e.starts_with("HOME=")) {
            self.env.push(format!("HOME={}", home_of(self.uid)));
        }
        let path = match &file {
            Some(_) => PathBuf::from(&self.args[0]),
            None => find_in_path(&self.args[0], &self.env)?,
        };
        let c = |s: &str| CString::new(s).map_err(|_| Error::invalid(format!("process: {s:?} contains a NUL byte")));
        Ok(Program {
            file,
            path: c(&path.to_string_lossy())?,
            args: self.args.iter().map(|a| c(a)).collect::<Result<_>>()?,
            env: self.env.iter().map(|e| c(e)).collect::<Result<_>>()?,
        })
    }

    /// The last steps. Returns only to say what failed.
    pub fn exec(self, program: &Program) -> Error {
        // Before the filter, which may not allow the write.
        if let Err(e) = self.labels.iter().try_for_each(Label::apply) {
            return e;
        }
        if let Some(filter) = &self.filter {
            match seccomp::load(filter) {
                Ok(Some(notify)) => {
                    // Known to be there where the filter notifies.
                    if let Some(Err(e)) = self.agent.as_ref().map(|agent| agent.send(&notify)) {
                        return e;
                    }
                }
                Ok(None) => {}
                Err(e) => return Error::Init(format!("load the seccomp filter: {e}")),
            }
        }
        let cause = match &program.file {
            Some(file) => sys::exec_fd(file, &program.args, &program.env),
            None => {
                let Err(cause) = nix::unistd::execve(&program.path, &program.args, &program.env);
                cause.into()
            }
        };
        Error::Os { what: format!("exec {}", program.path.to_string_lossy()), cause }
    }
}

/// The host's /dev/null is everyone's. Known by its number: the container may have anything at that path.
fn is_null(metadata: &nix::sys::stat::FileStat) -> bool {
    const NULL: libc::dev_t = libc::makedev(1, 3);
    metadata.st_mode & libc::S_IFMT == libc::S_IFCHR && metadata.st_rdev == NULL
}

/// Sets the limits of a process (0: this one).
pub(crate) fn set_rlimits(pid: i32, rlimits: &[(u32, u64, u64)]) -> Result<()> {
    rlimits.iter().try_for_each(|&(resource, soft, hard)| {
        sys::prlimit(pid, resource, soft, hard).op(|| {
            format!("set resource limit #{resource} to soft {soft}, hard {hard} (raising a hard limit takes CAP_SYS_RESOURCE)")
        })
    })
}

/// In small letters, as Go has errors: docker makes its exit code (126, 127) of these words.
fn cannot_exec(what: &str, cause: Errno) -> Error {
    Error::Init(format!("exec {what}: {}", cause.desc().to_lowercase()))
}

/// Of variables with one name the last one counts, for programs as well, which look for the first: `exec --env` is to
/// change what the image has set.
fn keep_last(env: &mut Vec<String>) {
    let name = |variable: &str| variable.split_once('=').map_or(variable, |(name, _)| name).to_owned();
    let mut seen = std::collections::HashSet::with_capacity(env.len());
    let mut last: Vec<bool> = env.iter().rev().map(|variable| seen.insert(name(variable))).collect();
    env.retain(|_| last.pop().unwrap_or(true));
}

fn find_in_path(name: &str, env: &[String]) -> Result<PathBuf> {
    let usable = |path: &Path| -> nix::Result<()> {
        if nix::sys::stat::stat(path)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(Errno::EISDIR);
        }
        access(path, AccessFlags::X_OK)
    };
    if name.contains('/') {
        return match usable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            // execve says so of directories, too.
            Err(Errno::EISDIR) => Err(cannot_exec(&format!("{name:?} (it is a directory)"), Errno::EACCES)),
            Err(e) => Err(cannot_exec(&format!("{name:?}"), e)),
        };
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match usable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = Some(candidate),
            Err(_) => {}
        }
    }
    match denied {
        Some(path) => Err(cannot_exec(&format!("{:?}", path.display().to_string()), Errno::EACCES)),
        None => Err(Error::Init(format!("exec {name:?}: executable file not found in $PATH"))),
    }
}

/// The home directory by the container's own /etc/passwd, `/` when it does not say.
fn home_of(uid: u32) -> String {
    let mut text = String::new();
    // A hostile image may have a fifo there, or a link through /proc/self/fd to what this process has open.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let root = File::open("/");
    if let Ok(file) = root.and_then(|root| beneath::open(&root, Path::new("etc/passwd"), flags)).map(File::from)
        && file.metadata().is_ok_and(|m| m.is_file())
        && file.take(MAX_PASSWD_BYTES).read_to_string(&mut text).is_ok()
    {
        return home_in(&text, uid);
    }
    "/".to_owned()
}

fn home_in(passwd: &str, uid: u32) -> String {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && fields[2].parse() == Ok(uid) && !fields[5].is_empty())
        .map_or_else(|| "/".to_owned(), |fields| fields[5].to_owned())
}

/// Whether this process's own user namespace, made by whoever called the runtime, denies setting groups for good.
fn groups_are_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim() == "deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_variables_with_one_name_the_last_counts() {
        let mut env = ["A=1", "B=2", "A=", "A.B=3", "C", "B=4", "C"].map(str::to_owned).to_vec();
        keep_last(&mut env);
        assert_eq!(env, ["A=", "A.B=3", "B=4", "C"]);
    }

    #[test]
    fn the_home_is_that_of_the_first_matching_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000), "/home/u");
        assert_eq!(home_in(passwd, 7), "/");
    }

    #[test]
    fn programs_are_found_along_path() {
        let env = ["PATH=/nonexistent:/bin:/usr/bin".to_owned()];
        assert!(find_in_path("sh", &env).unwrap().ends_with("sh"));
        let error = find_in_path("no-such-program", &env).unwrap_err().to_string();
        assert!(error.contains("not found in $PATH"), "{error}");
        assert!(find_in_path("/etc", &env).is_err());
    }

    #[test]
    fn unknown_capabilities_and_limits_are_errors() {
        assert!(set_of(&["CAP_FLY".to_owned()]).is_err());
        assert!(rlimit(&Rlimit { kind: "RLIMIT_FUN".into(), hard: 1, soft: 1 }).is_err());
        let (_, soft, hard) = rlimit(&Rlimit { kind: "RLIMIT_CORE".into(), hard: 2, soft: 1 }).unwrap();
        assert_eq!((soft, hard), (1, 2));
    }
}
