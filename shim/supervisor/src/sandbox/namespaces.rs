//! The pod's namespaces: made by the supervisor for itself, with names and sysctls in them, and undone on failure.
//!
//! With a user namespace of the pod's own the others must belong to it, or nobody inside could use them. A child makes
//! them all by one clone; the supervisor writes the maps and joins the others, but stays in its own user namespace: it
//! keeps its rights, and holds the pod's by a descriptor. That child becomes the first process of a shared PID namespace,
//! or ends.

use super::{OOM_SCORE, Sandbox};
use crate::failure::{Fail, Failure};
use crate::guest;
use crate::sys::{self, Fork};
use coracle_proto::coracle::{IdMapping, NamespaceMode, UserNamespace};
use coracle_proto::ttrpc::Code;
use nix::fcntl::OFlag;
use nix::libc::SIGKILL;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

impl Sandbox {
    /// Makes the namespaces and all that lives in them. On failure everything is as before.
    pub(super) fn enter_namespaces(&mut self) -> Result<(), Failure> {
        let made = self.unshare().and_then(|()| self.set_names()).and_then(|()| self.set_sysctls());
        let made = made.and_then(|()| self.adjust_oom_score()).and_then(|()| self.start_pod_init());
        made.inspect_err(|_| self.leave_namespaces())
    }

    fn unshare(&mut self) -> Result<(), Failure> {
        let wanted = [
            (self.options.network, "net", CloneFlags::CLONE_NEWNET),
            (self.options.ipc, "ipc", CloneFlags::CLONE_NEWIPC),
            (self.options.uts, "uts", CloneFlags::CLONE_NEWUTS),
        ];
        let mut flags = CloneFlags::empty();
        for (mode, name, flag) in wanted {
            match self.mode(mode) {
                NamespaceMode::Node => {}
                NamespaceMode::Pod => {
                    let path = format!("/proc/self/ns/{name}");
                    let namespace = File::open(&path).map_err(|error| failed(&format!("open {path}"), error))?;
                    self.host_namespaces.push((namespace.into(), flag));
                    match name {
                        "net" if !self.netns_path.as_os_str().is_empty() => {}
                        _ => flags |= flag,
                    }
                }
                NamespaceMode::Container => {
                    let text = format!("{name} namespaces are the pod's or the node's, not a container's");
                    return Err(Code::InvalidArgument.failure(text));
                }
            }
        }
        if let Some(namespace) = self.options.user_namespace.take() {
            return self.make_owned(flags, &namespace);
        }
        if !flags.is_empty() {
            unshare(flags).map_err(|error| failed("make the sandbox's namespaces", error.into()))?;
        }
        if self.netns_path.as_os_str().is_empty() || self.mode(self.options.network) != NamespaceMode::Pod {
            return Ok(());
        }
        let what = format!("join network namespace {}", self.netns_path.display());
        let namespace = File::open(&self.netns_path).map_err(|error| failed(&what, error))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| failed(&what, error.into()))
    }

    /// The namespaces of `flags`, owned by a new user namespace.
    fn make_owned(&mut self, flags: CloneFlags, maps: &UserNamespace) -> Result<(), Failure> {
        if !maps.uids.iter().chain(&maps.gids).any(|m| m.container_id == 0) {
            return Err(Code::InvalidArgument.failure("user_namespace: it does not map user and group 0".into()));
        }
        let shared_pids = self.mode(self.options.pid) == NamespaceMode::Pod;
        let pids = if shared_pids { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| failed("make a pipe", e.into()))?;
        let forked = sys::fork_into((flags | pids | CloneFlags::CLONE_NEWUSER).bits());
        let what = "make the sandbox's user namespace (user.max_user_namespaces?)";
        match forked.map_err(|error| failed(what, error))? {
            Fork::Child => owned_init(&reader),
            Fork::Parent(pid) => {
                let adopted = self.adopt(pid, flags, maps);
                if adopted.is_ok() && shared_pids {
                    self.pod_init = pid;
                    let go = nix::unistd::write(&writer, b"0");
                    return go.map(drop).map_err(|error| failed("start the pod's first process", error.into()));
                }
                // Nobody else can have its pid before it is reaped here.
                let _ = sys::kill(pid, SIGKILL);
                let _ = waitpid(Pid::from_raw(pid), None);
                adopted
            }
        }
    }

    /// Writes the maps of the child's user namespace, keeps it, and joins the others.
    fn adopt(&mut self, pid: i32, flags: CloneFlags, maps: &UserNamespace) -> Result<(), Failure> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            File::open(&path).map_err(|error| failed(&format!("open {path}"), error))
        };
        let namespace = open("user")?;
        for (file, maps) in [("gid_map", &maps.gids), ("uid_map", &maps.uids)] {
            let line = |m: &IdMapping| format!("{} {} {}\n", m.container_id, m.host_id, m.length);
            let text: String = maps.iter().map(line).collect();
            let written = fs::write(format!("/proc/{pid}/{file}"), &text);
            written.map_err(|error| failed(&format!("user_namespace: write {file} {:?}", text.trim()), error))?;
        }
        for (name, flag) in
            [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)]
        {
            if flags.contains(flag) {
                setns(open(name)?, flag)
                    .map_err(|error| failed(&format!("join the {name} namespace"), error.into()))?;
            }
        }
        self.user_namespace = Some(namespace.into());
        Ok(())
    }

    fn set_names(&self) -> Result<(), Failure> {
        if self.mode(self.options.uts) != NamespaceMode::Pod {
            return Ok(());
        }
        let (host, domain) = (&self.options.hostname, &self.options.domainname);
        if !host.is_empty() {
            nix::unistd::sethostname(host).map_err(|error| failed(&format!("set hostname {host:?}"), error.into()))?;
        }
        if !domain.is_empty() {
            let path = "/proc/sys/kernel/domainname";
            fs::write(path, domain).map_err(|error| failed(&format!("set domainname {domain:?}"), error))?;
        }
        Ok(())
    }

    /// Those of a pod in a virtual machine are the guest's.
    fn set_sysctls(&self) -> Result<(), Failure> {
        if self.options.vm.is_some() {
            return Ok(());
        }
        // In a guest there is no other pod: the network of its kernel is this one's.
        let own_net = self.mode(self.options.network) == NamespaceMode::Pod || guest::is_init();
        let own_ipc = self.mode(self.options.ipc) == NamespaceMode::Pod;
        for (name, value) in &self.options.sysctls {
            let path = sysctl_path(name, own_net, own_ipc)?;
            fs::write(&path, value).map_err(|error| failed(&format!("set sysctl {name} to {value:?}"), error))?;
        }
        Ok(())
    }

    /// Below what the kernel allows without CAP_SYS_RESOURCE it stays where it is; SandboxStatus tells the value.
    fn adjust_oom_score(&self) -> Result<(), Failure> {
        let Some(score) = self.options.oom_score_adj else { return Ok(()) };
        match fs::write(OOM_SCORE, score.to_string()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(failed(&format!("set oom_score_adj to {score}"), error)),
        }
    }

    fn start_pod_init(&mut self) -> Result<(), Failure> {
        let shared = self.mode(self.options.pid) == NamespaceMode::Pod && self.options.vm.is_none();
        if !shared || self.pod_init != 0 {
            return Ok(());
        }
        match sys::fork_into(CloneFlags::CLONE_NEWPID.bits())
            .map_err(|error| failed("make the pod's PID namespace", error))?
        {
            Fork::Parent(pid) => self.pod_init = pid,
            Fork::Child => pod_init(),
        }
        Ok(())
    }

    pub(super) fn leave_namespaces(&mut self) {
        self.kill_pod_init();
        self.user_namespace = None;
        for (namespace, kind) in self.host_namespaces.drain(..) {
            // These are the namespaces this process came from a moment ago.
            let _ = setns(namespace, kind);
        }
    }

    pub(super) fn kill_pod_init(&self) {
        if self.pod_init != 0 {
            let _ = sys::kill(self.pod_init, SIGKILL);
        }
    }
}

fn failed(what: &str, error: std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
        _ => Code::Unknown,
    };
    code.failure(format!("{what}: {error}"))
}

/// The file of a sysctl that belongs to one of the sandbox's own namespaces. As in sysctl(8), a name with slashes may
/// hold dots in its parts.
fn sysctl_path(name: &str, own_net: bool, own_ipc: bool) -> Result<PathBuf, Failure> {
    let invalid = |why: &str| Err(Code::InvalidArgument.failure(format!("sysctl {name}: {why}")));
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return invalid("not a name");
    }
    let ipc = ["kernel/msg", "kernel/sem", "kernel/shm", "fs/mqueue/"].iter().any(|start| path.starts_with(start));
    if path.starts_with("net/") && !own_net {
        return invalid("the pod uses the node's network");
    }
    if ipc && !own_ipc {
        return invalid("the pod uses the node's IPC namespace");
    }
    if !ipc && !path.starts_with("net/") {
        return invalid("belongs to the whole machine, not to a pod");
    }
    Ok(PathBuf::from("/proc/sys").join(path))
}

/// The first process of the pod's PID namespace. Its children are reaped by the kernel, since it ignores their deaths.
/// It makes no allocation, so it shares its pages with the supervisor.
fn pod_init() -> ! {
    sys::close_all_but(&mut []);
    sys::become_pod_init();
    let tied = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if tied.is_err() || nix::unistd::getppid().as_raw() == 1 {
        sys::exit_now(1);
    }
    sys::rest_for_ever()
}

/// The first process of a user namespace: it waits for its maps, becomes the namespace's root and then as [`pod_init`].
/// The change of user leaves it without the right to be traced, which matters: its memory is the supervisor's.
fn owned_init(reader: &OwnedFd) -> ! {
    sys::close_all_but(&mut [reader.as_raw_fd()]);
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    let become_root = || -> nix::Result<()> {
        if nix::unistd::read(reader, &mut [0])? == 0 {
            return Err(nix::Error::EPIPE);
        }
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(root, root, root)
    };
    if become_root().is_err() {
        sys::exit_now(1);
    }
    pod_init()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_must_belong_to_a_namespace_of_the_pod() {
        let path = |name| sysctl_path(name, true, true).map(|path| path.display().to_string());
        assert_eq!(path("net.core.somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("kernel.shm_rmid_forced").unwrap(), "/proc/sys/kernel/shm_rmid_forced");
        for name in ["vm.swappiness", "kernel.hostname", "net/../kernel/panic", "", "net."] {
            assert_eq!(path(name).unwrap_err().code, Code::InvalidArgument, "{name}");
        }
        assert!(sysctl_path("net.core.somaxconn", false, true).is_err());
        assert!(sysctl_path("kernel.sem", true, false).is_err());
    }
}
