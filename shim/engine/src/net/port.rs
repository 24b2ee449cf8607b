//! Ports of the host that lead to a pod, and who may have them.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

use super::Error;
use super::lease::Lease;
use crate::types::{PortMapping, Protocol};

impl Protocol {
    /// The protocol's number in an IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl PortMapping {
    /// The one IPv4 address the port is bound to, or `None` for all.
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        match self.host_ip {
            Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
            _ => None,
        }
    }

    /// Whether a connection from the host to its own loopback can reach the port.
    pub(super) fn on_loopback(&self) -> bool {
        self.address().is_none_or(|ip| ip.is_loopback())
    }

    fn conflicts_with(&self, other: &PortMapping) -> bool {
        let one = |port: &PortMapping| port.host_ip.filter(|ip| !ip.is_unspecified());
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (one(self).is_none() || one(other).is_none() || one(self) == one(other))
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.host_ip.filter(|ip| !ip.is_unspecified()).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        write!(f, "{}/{}", SocketAddr::new(ip, self.host_port), self.protocol)
    }
}

/// Who has which ports of the host.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) sandbox: String,
    pub(super) ports: Vec<PortMapping>,
}

impl From<Lease> for Holder {
    fn from(lease: Lease) -> Holder {
        Holder { sandbox: lease.sandbox, ports: lease.ports }
    }
}

/// As [`wanted`], for a network that has no IPv6.
pub(super) fn validate(ports: &[PortMapping]) -> Result<Vec<PortMapping>, Error> {
    let wanted = wanted(ports)?;
    for port in &wanted {
        if let Some(IpAddr::V6(ip)) = port.host_ip.filter(|ip| !ip.is_unspecified()) {
            return Err(Error::Invalid(format!("hostIP {ip}: the pod network is IPv4 only; use an IPv4 address")));
        }
    }
    Ok(wanted)
}

/// Those mappings that take part of the host, checked for sense: no port twice.
pub(super) fn wanted(ports: &[PortMapping]) -> Result<Vec<PortMapping>, Error> {
    let mut wanted: Vec<PortMapping> = Vec::new();
    for port in ports.iter().filter(|port| port.host_port != 0) {
        if port.container_port == 0 {
            return Err(Error::Invalid(format!("hostPort {port}: the container's port is 0")));
        }
        if let Some(other) = wanted.iter().find(|other| other.conflicts_with(port)) {
            return Err(Error::Invalid(format!("hostPort {port} is asked for twice by the pod (also as {other})")));
        }
        wanted.push(port.clone());
    }
    Ok(wanted)
}

/// Fails when one of `holders` or a process of the host has one of `ports`.
pub(super) fn check_free(ports: &[PortMapping], holders: &[Holder]) -> Result<(), Error> {
    for port in ports {
        let taken = |holder: &&Holder| holder.ports.iter().any(|other| other.conflicts_with(port));
        if let Some(holder) = holders.iter().find(taken) {
            return Err(Error::PortTaken { port: port.to_string(), owner: format!("pod sandbox {}", holder.sandbox) });
        }
        if let Some(owner) = listener(port) {
            return Err(Error::PortTaken { port: port.to_string(), owner });
        }
    }
    Ok(())
}

/// Who on the host listens at the port, found by trying to bind it. Nothing is held afterwards: the forwarding is the
/// kernel's and needs no process, so a program that binds the port later is simply not reached from outside.
pub(super) fn listener(port: &PortMapping) -> Option<String> {
    if port.host_ip.is_some_and(|ip| ip.is_ipv6() && !ip.is_unspecified()) {
        return None; // who listens at one IPv6 address is left to the network
    }
    let (kind, protocol) = match port.protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => return None, // without the sctp module nobody listens; with it, our mapping goes first
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, protocol).ok()?;
    if port.protocol == Protocol::Tcp {
        // Old connections that only wait for their end are no listeners.
        setsockopt(&socket, sockopt::ReuseAddr, &true).ok()?;
    }
    let at = SocketAddrV4::new(port.address().unwrap_or(Ipv4Addr::UNSPECIFIED), port.host_port);
    match bind(socket.as_raw_fd(), &SockaddrIn::from(at)) {
        Err(Errno::EADDRINUSE) => Some(process_at(port).unwrap_or_else(|| "a process of the host".to_owned())),
        _ => None, // an address the host does not have yet is allowed, as Kubernetes does
    }
}

/// The process that holds the port, as `process 123 (nginx)`: from the kernel's socket tables and every process's fds.
/// Only for the error's words, so whatever cannot be read is left out.
fn process_at(port: &PortMapping) -> Option<String> {
    let tables = match port.protocol {
        Protocol::Tcp => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"],
        _ => ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"],
    };
    let inodes: HashSet<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| text.lines().filter_map(|line| inode_at(line, port)).collect::<Vec<_>>())
        .collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| {
            let link = link.to_string_lossy();
            link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')).is_some_and(|inode| inodes.contains(inode))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", name.trim()));
        }
    }
    None
}

/// The inode of a line of `/proc/net/{tcp,udp}` that is a bound, unconnected socket at the port.
fn inode_at(line: &str, port: &PortMapping) -> Option<String> {
    const LISTEN: &str = "0A";
    const CLOSED: &str = "07"; // what an unconnected UDP socket shows
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let state = *fields.get(3)?;
    let bound = state == if port.protocol == Protocol::Tcp { LISTEN } else { CLOSED };
    (bound && u16::from_str_radix(local_port, 16).ok()? == port.host_port)
        .then(|| fields.get(9).map(|i| (*i).to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, host: u16, protocol: Protocol) -> PortMapping {
        let host_ip = (!ip.is_empty()).then(|| ip.parse().unwrap());
        PortMapping { host_ip, host_port: host, container_port: 80, protocol }
    }

    fn holder(ports: Vec<PortMapping>) -> Holder {
        Holder { sandbox: "web".into(), ports }
    }

    #[test]
    fn ports_conflict_when_an_address_can_reach_both() {
        let any = port("", 1, Protocol::Tcp);
        assert!(any.conflicts_with(&port("127.0.0.1", 1, Protocol::Tcp)));
        assert!(any.conflicts_with(&port("::", 1, Protocol::Tcp)));
        assert!(!any.conflicts_with(&port("", 1, Protocol::Udp)));
        assert!(!any.conflicts_with(&port("", 2, Protocol::Tcp)));
        assert!(!port("127.0.0.1", 1, Protocol::Tcp).conflicts_with(&port("10.0.0.1", 1, Protocol::Tcp)));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let twice = validate(&[port("", 8080, Protocol::Tcp), port("127.0.0.1", 8080, Protocol::Tcp)]);
        assert!(twice.unwrap_err().to_string().contains("127.0.0.1:8080/tcp"));
        assert!(validate(&[port("::1", 8080, Protocol::Tcp)]).unwrap_err().to_string().contains("::1"));
        assert!(validate(&[port("::", 0, Protocol::Tcp)]).unwrap().is_empty());
    }

    #[test]
    fn a_port_of_another_pod_names_that_pod() {
        let holders = [holder(vec![port("", 61233, Protocol::Udp)])];
        let error = check_free(&[port("127.0.0.1", 61233, Protocol::Udp)], &holders).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:61233/udp") && error.contains("pod sandbox web"), "{error}");
        check_free(&[port("127.0.0.1", 61233, Protocol::Tcp)], &holders).unwrap();
    }

    #[test]
    fn a_port_of_a_host_process_names_that_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = port("", tcp.local_addr().unwrap().port(), Protocol::Tcp);
        let error = check_free(std::slice::from_ref(&wanted), &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
        drop(tcp);
        check_free(&[wanted], &[]).unwrap();

        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let wanted = port("127.0.0.1", udp.local_addr().unwrap().port(), Protocol::Udp);
        let error = check_free(&[wanted], &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
    }
}
