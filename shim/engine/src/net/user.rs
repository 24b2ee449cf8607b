//! The network of an ordinary user's pods: a program that speaks TCP and UDP for the pod with the user's own sockets.
//!
//! ```text
//! pod netns                                   host
//!   lo    127.0.0.1
//!   eth0  10.0.2.100/24 --- tap --- slirp4netns --- the user's sockets --- the world
//!   default via 10.0.2.2, DNS 10.0.2.3             host ports: bound by it, asked for over its socket
//! ```
//!
//! Each pod has its own `slirp4netns`, and with it a network of its own: pods reach each other by host ports alone. It
//! is started in the pod's user namespace, outlives who started it, and is killed when the pod is detached. What is
//! known of it lies beneath `net/user`: `<sandbox>.json` (its pid and when it started, so that no other process that got
//! the pid is taken for it), `<sandbox>.sock` (its commands), `<sandbox>.log` (its words).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ip::IpNet;
use super::{Attachment, Error, POD_INTERFACE, port};
use crate::program::find_program;
use crate::types::{DnsConfig, PortMapping, Protocol};
use crate::{record, sys};

/// The program.
const PROGRAM: &str = "slirp4netns";
/// Its own network: address, router and name server of every pod.
const PREFIX: u8 = 24;
const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The largest it takes but for a few bytes: the packets never leave the machine as they are.
const MTU: &str = "65520";
/// How long it may take to be ready, and to answer.
const READY: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
/// How long a killed one may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// Its answers are a line.
const MAX_ANSWER: u64 = 64 << 10;
/// Of its words this many are shown.
const MAX_WORDS: usize = 500;

/// A process, beyond doubt.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    pid: i32,
    /// In the kernel's ticks since the boot.
    started: u64,
}

/// The networks of an ordinary user's pods.
pub(super) struct User {
    folder: PathBuf,
}

impl User {
    /// Nothing is started before a pod is attached.
    pub(super) fn open(state: &Path) -> User {
        User { folder: state.join("net/user") }
    }

    fn file(&self, sandbox: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{sandbox}.{kind}"))
    }

    /// Gives the pod whose network namespace is at `netns` a way out, and its host ports.
    pub(super) fn attach(&self, sandbox: &str, netns: &Path, ports: &[PortMapping]) -> Result<Attachment, Error> {
        let ports = port::validate(ports)?;
        if let Some(port) = ports.iter().find(|port| port.protocol == Protocol::Sctp) {
            let text = format!("hostPort {}/SCTP: {PROGRAM} forwards TCP and UDP alone", port.host_port);
            return Err(Error::Invalid(text));
        }
        let program = find_program(Path::new(PROGRAM)).map_err(|why| {
            Error::Invalid(format!(
                "a pod network needs {PROGRAM} where the user is not root ({why}): install it (Debian's package has its \
                 name), or use hostNetwork: true"
            ))
        })?;
        self.detach(sandbox)?;
        fs::create_dir_all(&self.folder).map_err(|e| Error::file("make folder", &self.folder, e))?;
        let child = self.start(&program, sandbox, netns)?;
        let made = ports.iter().try_for_each(|port| self.open_port(sandbox, port));
        // It outlives this process, and is nobody's child to wait for then; detaching ends it.
        drop(child);
        if let Err(e) = made {
            // The first error is what the caller hears.
            let _ = self.detach(sandbox);
            return Err(e);
        }
        Ok(Attachment {
            ifname: POD_INTERFACE.to_owned(),
            ips: vec![IpNet { ip: POD.into(), prefix: PREFIX }],
            gateway: Some(ROUTER.into()),
            dns: Some(DnsConfig { servers: vec![NAMES.to_string()], ..DnsConfig::default() }),
            ..Attachment::default()
        })
    }

    fn start(&self, program: &Path, sandbox: &str, netns: &Path) -> Result<Child, Error> {
        let (ready, told) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::kernel("make a pipe", e.into()))?;
        let log = self.file(sandbox, "log");
        let words = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
        let words = words.map_err(|e| Error::file("open", &log, e))?;
        let second = words.try_clone().map_err(|e| Error::file("open", &log, e))?;
        let mut command = Command::new(program);
        command.args(["--configure", "--mtu", MTU, "--disable-host-loopback", "--ready-fd=0", "--netns-type=path"]);
        command.arg("--api-socket").arg(format!("{sandbox}.sock")).arg(netns).arg(POD_INTERFACE);
        // Its socket has a relative path, since an absolute one may be longer than sockets' can be.
        // The end of the pipe is its standard input, since that needs no descriptor handed over beyond the usual ones. A
        // Ctrl-C in the terminal is not meant for it.
        command.stdin(Stdio::from(told)).stdout(words).stderr(second).current_dir(&self.folder).process_group(0);
        let mut child = command.spawn().map_err(|e| Error::file("start", program, e))?;
        drop(command);
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let known = Known { pid, started: started(pid).unwrap_or(0) };
        let kept = serde_json::to_vec(&known).map_err(std::io::Error::other);
        let path = self.file(sandbox, "json");
        let kept = kept.and_then(|text| record::write_file(&path, &text, 0o600).map_err(std::io::Error::other));
        if let Err(e) = kept {
            let _ = child.kill();
            return Err(Error::file("write", &path, e));
        }
        let mut ready = File::from(ready);
        if readable(&ready, READY) && ready.read(&mut [0]).is_ok_and(|n| n == 1) {
            return Ok(child);
        }
        let _ = child.kill();
        let _ = child.wait();
        let words = fs::read_to_string(&log).unwrap_or_default();
        let _ = self.forget(sandbox);
        Err(Error::Invalid(format!("{PROGRAM} gave the pod no network: {}{}", last_words(&words), hint(&words))))
    }

    /// Has a port of the host lead into the pod.
    fn open_port(&self, sandbox: &str, port: &PortMapping) -> Result<(), Error> {
        let request = json!({ "execute": "add_hostfwd", "arguments": {
            "proto": if port.protocol == Protocol::Udp { "udp" } else { "tcp" },
            "host_addr": port.host_ip.map_or("0.0.0.0".to_owned(), |ip| ip.to_string()),
            "host_port": port.host_port,
            "guest_addr": POD.to_string(),
            "guest_port": port.container_port,
        }});
        let path = self.file(sandbox, "sock");
        let ask = || -> std::io::Result<String> {
            let folder = File::open(&self.folder)?;
            let short = format!("/proc/self/fd/{}/{sandbox}.sock", folder.as_raw_fd());
            let mut socket = UnixStream::connect(short)?;
            socket.set_read_timeout(Some(ANSWER))?;
            socket.write_all(request.to_string().as_bytes())?;
            socket.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            socket.take(MAX_ANSWER).read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().map_err(|e| Error::file("ask slirp4netns over", &path, e))?;
        let value: Value = serde_json::from_str(&answer).unwrap_or_default();
        if value.get("return").is_some() {
            return Ok(());
        }
        let why = value["error"]["desc"].as_str().unwrap_or(answer.trim()).to_owned();
        let hint = match port.host_port {
            1..1024 => " (an ordinary user may bind ports from net.ipv4.ip_unprivileged_port_start on)",
            _ => " (is it taken? `ss -ltnup` tells)",
        };
        Err(Error::Invalid(format!("hostPort {}: {PROGRAM}: {why}{hint}", port.host_port)))
    }

    /// Ends the pod's network. Idempotent.
    pub(super) fn detach(&self, sandbox: &str) -> Result<(), Error> {
        let path = self.file(sandbox, "json");
        let Ok(text) = fs::read(&path) else { return Ok(()) };
        if let Ok(known) = serde_json::from_slice::<Known>(&text)
            && let Ok(process) = sys::pidfd_open(known.pid)
            && started(known.pid) == Some(known.started)
        {
            // It was the same process after the descriptor was opened, so the descriptor is its.
            let _ = sys::pidfd_send_signal(&process, libc::SIGKILL);
            wait_gone(&known);
        }
        self.forget(sandbox)
    }

    fn forget(&self, sandbox: &str) -> Result<(), Error> {
        for kind in ["sock", "log", "json"] {
            let path = self.file(sandbox, kind);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::file("remove", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The sandboxes that have one.
    pub(super) fn attached(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect()
    }
}

/// A killed process lets go of its ports when it is gone; a zombie has let go.
fn wait_gone(known: &Known) {
    const PAUSE: Duration = Duration::from_millis(2);
    let until = Instant::now() + GONE;
    while started(known.pid) == Some(known.started) && Instant::now() < until {
        std::thread::sleep(PAUSE);
    }
}

/// When a process started, if it lives.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also blanks and parentheses; what follows the last one does not.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn readable(file: &File, deadline: Duration) -> bool {
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0)
}

fn last_words(words: &str) -> String {
    let line = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    line.trim().chars().take(MAX_WORDS).collect()
}

fn hint(words: &str) -> &'static str {
    match words {
        words if words.contains("/dev/net/tun") => " (may this user open /dev/net/tun? is the module tun loaded?)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_that_got_its_pid() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(started(own).unwrap() > 0);
        assert_eq!(started(own), started(own));
        assert_eq!(started(-1), None);
    }

    #[test]
    fn detaching_what_was_never_attached_and_what_died_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let user = User::open(dir.path());
        user.detach("pod").unwrap();
        fs::create_dir_all(&user.folder).unwrap();
        // Of this very process, but started at another time: it is not ours to end.
        let other = Known { pid: i32::try_from(std::process::id()).unwrap(), started: 1 };
        fs::write(user.file("pod", "json"), serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!(user.attached(), ["pod"]);
        user.detach("pod").unwrap();
        assert!(user.attached().is_empty());
    }

    #[test]
    fn the_likely_cause_is_told() {
        assert!(hint("open(\"/dev/net/tun\"): Permission denied").contains("module tun"));
        assert_eq!(last_words("a\nb\n\n"), "b");
    }
}
