//! One clone3 for the container's first process, and the cases where that is not enough.
//!
//! Namespaces to be made are flags of the clone. Namespaces to be joined are joined by the child itself, but for
//!
//! - a PID namespace, which only children enter: the parent sets it for its children, clones, and sets it back;
//! - joins together with a user namespace, and time offsets: the joins need the rights of before the user namespace, and
//!   what is made new must belong to it; offsets can only be set by a process outside of the new time namespace. Then an
//!   intermediate process joins and prepares, clones the init as a child of *our* process (CLONE_PARENT) and goes;
//! - an exec by an ordinary user, who enters no namespace but by way of the user namespace: the same. His time offsets
//!   take a user namespace, too: then the intermediate process is cloned into the new one already, and gets its maps.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::Parent;
use crate::channel::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::handle::Handle;
use crate::idmap::Maps;
use crate::spec::{NamespaceKind, Spec};
use crate::{rootless, sys};

/// What to clone with.
pub(crate) struct Spawn {
    /// Namespaces to make.
    flags: u64,
    /// Namespaces that the parent or the intermediate process joins first.
    early: Vec<(NamespaceKind, OwnedFd)>,
    /// Clock offsets of a new time namespace, as the kernel's file wants them.
    offsets: String,
    /// A process whose namespaces of these kinds an intermediate process joins, all by one call.
    process: Option<(Handle, u64)>,
    /// The maps of the user namespace that the intermediate process is cloned into, when it is.
    maps: Option<Maps>,
    /// Whether the caller has rights nowhere but in the user namespace that is made or joined.
    ordinary: bool,
    /// Whether it does no harm if this process's later children stay in a PID namespace joined for them.
    last: bool,
    intermediate: bool,
    parent: Parent,
}

/// A child, and who this is after the clone.
pub(crate) enum Side {
    Parent(i32),
    Child,
}

impl Spawn {
    /// Sorts the configuration's namespaces; the second value is what the init joins itself.
    pub fn plan(spec: &Spec, parent: Parent, ordinary: bool) -> Result<(Spawn, Vec<(NamespaceKind, OwnedFd)>)> {
        let mut flags = 0;
        let mut joins = Vec::new();
        for namespace in &spec.linux.namespaces {
            match namespace.joins() {
                Some(path) => {
                    let file = File::open(path)
                        .op(|| format!("open {} namespace {}", namespace.kind.name(), path.display()))?;
                    joins.push((namespace.kind, OwnedFd::from(file)));
                }
                // The cgroup namespace is made after the cgroup was joined.
                None if namespace.kind == NamespaceKind::Cgroup => {}
                None => flags |= namespace.kind.flag(),
            }
        }
        let offsets: String = spec
            .linux
            .time_offsets
            .iter()
            .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
            .collect();
        let has_user = spec.namespace(NamespaceKind::User).is_some();
        let mut intermediate = (has_user && !joins.is_empty()) || !offsets.is_empty();
        if !intermediate && joins.iter().any(|(kind, _)| *kind == NamespaceKind::Pid) {
            // Root of a user namespace could not return to a PID namespace that is not of it; hooks are children, too.
            let own = own_pid_namespace()?;
            intermediate = sys::setns(own.as_fd(), libc::CLONE_NEWPID).is_err();
        }
        let mut maps = None;
        if ordinary && !offsets.is_empty() {
            if !spec.makes(NamespaceKind::User) {
                let reason = "an ordinary user can set them with a new user namespace alone".to_owned();
                return Err(Error::Refused { field: "linux.timeOffsets".into(), reason });
            }
            maps = Some(spec.maps());
        }
        let (mut early, mut own): (Vec<_>, Vec<_>) =
            joins.into_iter().partition(|(kind, _)| intermediate || *kind == NamespaceKind::Pid);
        // The user namespace last: it takes the rights to join the others. An ordinary user gets them there.
        early.sort_by_key(|(kind, _)| (*kind == NamespaceKind::User) != ordinary);
        // The mount namespace last: the others are open descriptors, but errors should not depend on it.
        own.sort_by_key(|(kind, _)| *kind == NamespaceKind::Mount);
        Ok((Spawn { flags, early, offsets, process: None, maps, ordinary, last: false, intermediate, parent }, own))
    }

    /// For exec: a plain child, in the container's PID namespace if it has one of its own.
    pub fn into_pid_namespace(pid: Option<OwnedFd>, parent: Parent) -> Spawn {
        let early = pid.into_iter().map(|fd| (NamespaceKind::Pid, fd)).collect();
        let (offsets, process, maps) = (String::new(), None, None);
        Spawn { flags: 0, early, offsets, process, maps, ordinary: false, last: true, intermediate: false, parent }
    }

    /// For exec by an ordinary user: an intermediate process joins all of the container's namespaces at once.
    pub fn into_namespaces(of: Handle, kinds: u64, parent: Parent) -> Spawn {
        let (offsets, process, maps) = (String::new(), Some((of, kinds)), None);
        Spawn {
            flags: 0,
            early: Vec::new(),
            offsets,
            process,
            maps,
            ordinary: true,
            last: true,
            intermediate: true,
            parent,
        }
    }

    /// Clones.
    pub fn clone(&self, cgroup: Option<&OwnedFd>) -> Result<Side> {
        if self.intermediate {
            return self.clone_twice(cgroup);
        }
        let back = match &self.early[..] {
            [] => None,
            early => {
                let own = own_pid_namespace()?;
                join(early)?;
                Some(own)
            }
        };
        let result = clone3(self.flags, self.parent == Parent::Grandparent, cgroup);
        if let (Some(own), Ok(Some(_)) | Err(_)) = (back, &result) {
            match sys::setns(own.as_fd(), libc::CLONE_NEWPID) {
                // Root of a user namespace beneath that of the PID namespace may go in, but not back.
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && self.last => {}
                returned => returned.op(|| "return to the own PID namespace for children")?,
            }
        }
        Ok(match result? {
            Some(pid) => Side::Parent(pid),
            None => Side::Child,
        })
    }

    fn clone_twice(&self, cgroup: Option<&OwnedFd>) -> Result<Side> {
        // A channel of their own: that it closes without a word tells that the intermediate process was killed. The
        // init, which then nobody knows of, ends when the other channel closes.
        let (hear, tell) = Channel::pair().op(|| "make a socket pair")?;
        // Once in the container's cgroup namespace nobody may move a process into it from outside.
        let (first, second) = if self.ordinary { (cgroup, None) } else { (None, cgroup) };
        let flags = if self.maps.is_some() { NamespaceKind::User.flag() } else { 0 };
        let Some(intermediate) = clone3(flags, self.parent == Parent::Grandparent, first)? else {
            // Else a wait for the parent would not end with it.
            drop(hear);
            let rest = self.flags & !flags & !self.time_flag();
            match self.prepare(&tell).and_then(|()| clone3(rest, true, second)) {
                Ok(None) => return Ok(Side::Child),
                Ok(Some(pid)) => {
                    if tell.send(&Message::Born(pid)).is_err() {
                        // An init that nobody hears of must not be.
                        let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                        sys::exit_now(1);
                    }
                    sys::exit_now(0);
                }
                Err(error) => {
                    // Without a listener there is nobody to tell.
                    let _ = tell.send(&Message::Failed(error.to_string()));
                    sys::exit_now(1);
                }
            }
        };
        drop(tell);
        let mapped = match &self.maps {
            Some(maps) => rootless::write_maps(intermediate, maps)
                .and_then(|()| hear.send(&Message::Go).op(|| "answer the intermediate process")),
            None => Ok(()),
        };
        if mapped.is_err() {
            // It still waits for them. That it may be dead already is as good.
            let _ = nix::sys::signal::kill(Pid::from_raw(intermediate), nix::sys::signal::Signal::SIGKILL);
        }
        let born = mapped.and_then(|()| hear.expect());
        if self.parent == Parent::Caller {
            // Only to leave no zombie; how it ended was said on the channel.
            let _ = sys::retry(|| waitpid(Pid::from_raw(intermediate), None));
        }
        match born? {
            Message::Born(pid) => Ok(Side::Parent(pid)),
            other => Err(Error::Init(format!("unexpected message {other:?} from the intermediate process"))),
        }
    }

    /// With offsets the time namespace was made by unshare, and the clone enters it without a flag.
    fn time_flag(&self) -> u64 {
        if self.offsets.is_empty() { 0 } else { sys::CLONE_NEWTIME }
    }

    /// Whether the init's user namespace has its maps when it is born.
    pub fn has_mapped(&self) -> bool {
        self.maps.is_some()
    }

    fn prepare(&self, channel: &Channel) -> Result<()> {
        if self.maps.is_some() {
            channel.wait_go()?;
            // While the file is this user's: it is root's once the process is not dumpable.
            self.set_offsets()?;
            return nix::sys::prctl::set_dumpable(false).op(|| "set not dumpable");
        }
        if self.ordinary || self.early.iter().any(|(kind, _)| *kind == NamespaceKind::User) {
            // Who is in that user namespace already may have the right to trace all that enters it, and with a shared PID
            // namespace sees the next process from its first moment on, when it still has the host's root and files
            // open. A clone inherits this.
            nix::sys::prctl::set_dumpable(false).op(|| "set not dumpable")?;
        }
        if !self.offsets.is_empty() {
            self.set_offsets()?;
        }
        if let Some((process, kinds)) = &self.process {
            return process
                .join(*kinds)
                .op(|| "join the container's namespaces (is it another user's, or created and not started yet?)");
        }
        join(&self.early)
    }

    fn set_offsets(&self) -> Result<()> {
        sys::unshare(sys::CLONE_NEWTIME).op(|| "make a time namespace")?;
        let file = std::fs::OpenOptions::new().write(true).open("/proc/self/timens_offsets");
        file.and_then(|mut file| file.write_all(self.offsets.as_bytes())).op(|| "write linux.timeOffsets")
    }
}

fn own_pid_namespace() -> Result<File> {
    File::open("/proc/self/ns/pid").op(|| "open /proc/self/ns/pid")
}

fn join(namespaces: &[(NamespaceKind, OwnedFd)]) -> Result<()> {
    namespaces.iter().try_for_each(|(kind, file)| {
        if *kind == NamespaceKind::User {
            leave_groups()?;
        }
        sys::setns(file.as_fd(), kind.flag() as i32).op(|| format!("join the {} namespace", kind.name()))
    })
}

/// Gives up the caller's additional groups before a user namespace is entered: one that denies setgroups would leave
/// them for good, unmapped and still good for what they open on the host (the class of CVE-2018-7169, turned around).
pub(crate) fn leave_groups() -> Result<()> {
    match nix::unistd::setgroups(&[]) {
        // An ordinary user has no right to, and gets no more by the namespace than there was before.
        Ok(()) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(e) => Err(e).op(|| "drop the caller's groups"),
    }
}

fn clone3(flags: u64, sibling: bool, cgroup: Option<&OwnedFd>) -> Result<Option<i32>> {
    // With CLONE_PARENT the exit signal is that of the caller, and must not be named.
    let (flags, signal) = if sibling { (flags | libc::CLONE_PARENT as u64, 0) } else { (flags, libc::SIGCHLD) };
    sys::clone3(flags, cgroup.map(|c| c.as_fd()), signal).map_err(|cause| {
        let hint = match cause.raw_os_error() {
            Some(libc::EACCES) => " into its cgroup (a user may only move a process within cgroups delegated to him)",
            Some(libc::EPERM) => " (are user namespaces for ordinary users switched off?)",
            Some(libc::ENOSPC) => " (too many user namespaces: user.max_user_namespaces, or 32 levels of them)",
            _ => "",
        };
        Error::Os { what: format!("clone the container's process{hint}"), cause }
    })
}
