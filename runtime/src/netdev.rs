//! `linux.netDevices`: network devices of the host that move into the container's network namespace.
//!
//! The parent moves them between the clone and the first answer to the init, which waits for it: sysctls of a device,
//! and hooks, find it there. One RTM_NEWLINK moves and renames; permanent addresses of global scope, which the move
//! drops, are added again; then the device is set up. What happens to it later is not the runtime's matter: when the
//! namespace goes the kernel takes physical devices back and destroys virtual ones.
//!
//! A creation that fails puts devices back with name, addresses and state: with the namespace a virtual one would be gone.
//!
//! ```text
//! nlmsghdr 16 bytes | ifinfomsg 16 or ifaddrmsg 8 bytes | attributes: length u16, type u16, value, padding to 4
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

use crate::error::{Context, Error, Result};
use crate::spec::{NamespaceKind, Spec};
use crate::sys;

/// The kernel's IFNAMSIZ, without the final NUL.
const MAX_NAME: usize = 15;
/// The kernel sends no longer datagrams of messages.
const BUFFER: usize = 64 << 10;
/// A dump that others keep disturbing is taken as it is in the end.
const MAX_DUMPS: usize = 8;
/// Flags of an address that are the administrator's, not the kernel's findings.
const KEPT_FLAGS: u32 =
    libc::IFA_F_NODAD | libc::IFA_F_HOMEADDRESS | libc::IFA_F_MANAGETEMPADDR | libc::IFA_F_NOPREFIXROUTE;
const IFINFO_LENGTH: usize = 16;
const IFADDR_LENGTH: usize = 8;
const HEADER_LENGTH: usize = 16;

/// What config.json says, before anything is touched.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    let devices = &spec.linux.net_devices;
    if devices.is_empty() {
        return Ok(());
    }
    if spec.namespace(NamespaceKind::Network).is_none() {
        return Err(Error::invalid("config.json: linux.netDevices need a network namespace to move to"));
    }
    let mut inside = BTreeSet::new();
    for (name, device) in devices {
        check_name(name, false)?;
        let new = if device.name.is_empty() { name } else { &device.name };
        check_name(new, true)?;
        if !new.contains('%') && !inside.insert(new) {
            return Err(Error::invalid(format!("config.json: linux.netDevices: two devices shall be named {new:?}")));
        }
    }
    Ok(())
}

/// A name the kernel takes; a new one may have one `%d`, where the kernel puts a number.
fn check_name(name: &str, template: bool) -> Result<()> {
    let plain = match template {
        true => name.replacen("%d", "", 1),
        false => name.to_owned(),
    };
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    if name.is_empty() || name.len() > MAX_NAME || name == "." || name == ".." || plain.contains(bad) {
        return Err(Error::invalid(format!(
            "config.json: linux.netDevices: {name:?} is no name of a network device (at most {MAX_NAME} bytes, no / : % or space)"
        )));
    }
    Ok(())
}

/// An address of a device, as its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    scope: u8,
    flags: u32,
    /// IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST.
    parts: Vec<(u16, Vec<u8>)>,
}

/// A device that is in the container's namespace now.
struct Device {
    name: String,
    index: i32,
    up: bool,
    addresses: Vec<Address>,
}

/// The devices of a container, until its creation is certain.
pub(crate) struct Moved {
    host: OwnedFd,
    outside: Netlink,
    inside: Netlink,
    devices: Vec<Device>,
}

/// Moves the devices to the network namespace of the container with this init. `None` when there are none.
pub(crate) fn give(spec: &Spec, pid: i32) -> Result<Option<Moved>> {
    if spec.linux.net_devices.is_empty() {
        return Ok(None);
    }
    let path = match spec.namespace(NamespaceKind::Network).and_then(|n| n.joins()) {
        Some(path) => path.to_owned(),
        None => format!("/proc/{pid}/ns/net").into(),
    };
    let target = OwnedFd::from(File::open(&path).path("open network namespace", &path)?);
    let host = OwnedFd::from(File::open("/proc/self/ns/net").op(|| "open /proc/self/ns/net")?);
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|s| (s.st_dev, s.st_ino)).op(|| "stat a namespace");
    if inode(&target)? == inode(&host)? {
        return Err(Error::invalid("linux.netDevices: the container's network namespace is the runtime's own"));
    }
    let outside = Netlink::open().op(|| "open a netlink socket")?;
    let inside = enter(&target, &host)?;
    let mut moved = Moved { host, outside, inside, devices: Vec::new() };
    for (name, device) in &spec.linux.net_devices {
        let new = if device.name.is_empty() { name } else { &device.name };
        if let Err(error) = moved.one(name, new, &target) {
            moved.back();
            return Err(error);
        }
    }
    Ok(Some(moved))
}

/// A socket in another namespace. Sockets stay where they were made.
fn enter(target: &OwnedFd, host: &OwnedFd) -> Result<Netlink> {
    let join = |fd: &OwnedFd| sys::setns(fd.as_fd(), libc::CLONE_NEWNET);
    join(target).op(|| "linux.netDevices: enter the container's network namespace (it takes CAP_SYS_ADMIN)")?;
    let socket = Netlink::open();
    join(host).op(|| "return to the network namespace")?;
    socket.op(|| "open a netlink socket in the container's network namespace")
}

impl Moved {
    fn one(&mut self, name: &str, new: &str, target: &OwnedFd) -> Result<()> {
        let what = |step: &str| format!("linux.netDevices: {step} {name:?}");
        let (index, flags) = self.outside.link(name).op(|| what("find on the host the device"))?;
        let before = self.inside.links().op(|| what("list the container's devices for"))?;
        if before.iter().any(|(_, known)| known == new) {
            let why = format!("the container's network namespace has a device {new:?} already");
            return Err(Error::invalid(what("move") + ": " + &why));
        }
        // Before the device is down, which drops those of IPv6.
        let addresses = self.outside.addresses(index).op(|| what("read the addresses of"))?;
        let up = flags & libc::IFF_UP as u32 != 0;
        self.outside.set_up(index, false).op(|| what("set down"))?;
        let sent = self.outside.transfer(index, new, target);
        let after = self.inside.links().op(|| what("find in the container the device"))?;
        let found = after.iter().find(|link| !before.contains(link)).map(|(index, _)| *index);
        // Also after an error it may have arrived, under its old name.
        let arrived = Device { name: name.to_owned(), index: found.unwrap_or(0), up, addresses };
        match found {
            Some(_) => self.devices.push(arrived),
            None => drop(self.outside.set_up(index, up)),
        }
        sent.op(|| what("move (lo and devices bound to their namespace cannot be)"))?;
        let index = found.ok_or_else(|| Error::Init(what("find in the container the device")))?;
        let addresses = self.devices.last().map(|d| d.addresses.clone()).unwrap_or_default();
        for address in &addresses {
            self.inside.add(index, address).op(|| what("add again an address of"))?;
        }
        self.inside.set_up(index, true).op(|| what("set up"))
    }

    /// Best effort: the error that makes it necessary is the one that is told.
    pub fn back(mut self) {
        for device in std::mem::take(&mut self.devices) {
            let _ = self.inside.set_up(device.index, false);
            let _ = self.inside.transfer(device.index, &device.name, &self.host);
            let Ok((index, _)) = self.outside.link(&device.name) else { continue };
            for address in &device.addresses {
                let _ = self.outside.add(index, address);
            }
            let _ = self.outside.set_up(index, device.up);
        }
    }
}

/// A routing socket in one network namespace.
struct Netlink {
    socket: OwnedFd,
}

/// The body of one answer.
type Body = Vec<u8>;

impl Netlink {
    fn open() -> io::Result<Netlink> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        Ok(Netlink { socket: socket(kind.0, kind.1, kind.2, kind.3)? })
    }

    /// Sends a request, and returns what is answered before the acknowledgement (or the end of a dump).
    fn ask(&self, kind: u16, flags: i32, body: &[u8]) -> io::Result<(Vec<Body>, bool)> {
        let mut message = Vec::with_capacity(HEADER_LENGTH + body.len());
        message.extend(((HEADER_LENGTH + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // One request at a time: sequence and port need not tell answers apart.
        message.extend([0; 8]);
        message.extend(body);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let (mut bodies, mut disturbed) = (Vec::new(), false);
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result?,
            };
            for (kind, flags, body) in messages(&buffer[..n]) {
                disturbed |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match kind as i32 {
                    libc::NLMSG_DONE => return Ok((bodies, disturbed)),
                    libc::NLMSG_ERROR => {
                        return match body.get(..4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])) {
                            Some(0) => Ok((bodies, disturbed)),
                            Some(error) => Err(io::Error::from_raw_os_error(-error)),
                            None => Err(io::Error::other("a netlink error without a number")),
                        };
                    }
                    _ => bodies.push(body.to_vec()),
                }
            }
        }
    }

    fn order(&self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.ask(kind, flags | libc::NLM_F_ACK, body).map(drop)
    }

    fn dump(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Body>> {
        let mut last = Vec::new();
        for _ in 0..MAX_DUMPS {
            let (bodies, disturbed) = self.ask(kind, libc::NLM_F_DUMP, body)?;
            last = bodies;
            if !disturbed {
                break;
            }
        }
        Ok(last)
    }

    /// Index and flags of a device by its name.
    fn link(&self, name: &str) -> io::Result<(i32, u32)> {
        let body = [link_header(0, 0, 0), attribute(libc::IFLA_IFNAME, &terminated(name))].concat();
        let (bodies, _) = self.ask(libc::RTM_GETLINK, libc::NLM_F_ACK, &body)?;
        let link = bodies.iter().find(|body| body.len() >= IFINFO_LENGTH);
        let body = link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok((word(body, 4) as i32, word(body, 8)))
    }

    /// Index and name of every device.
    fn links(&self) -> io::Result<Vec<(i32, String)>> {
        let bodies = self.dump(libc::RTM_GETLINK, &link_header(0, 0, 0))?;
        let links = bodies.iter().filter(|body| body.len() >= IFINFO_LENGTH).map(|body| {
            let name = attributes(&body[IFINFO_LENGTH..]).find(|(kind, _)| *kind == libc::IFLA_IFNAME);
            let name = name.map(|(_, value)| value.strip_suffix(&[0]).unwrap_or(value)).unwrap_or_default();
            (word(body, 4) as i32, String::from_utf8_lossy(name).into_owned())
        });
        Ok(links.collect())
    }

    fn set_up(&self, index: i32, up: bool) -> io::Result<()> {
        let bit = libc::IFF_UP as u32;
        self.order(libc::RTM_NEWLINK, 0, &link_header(index, if up { bit } else { 0 }, bit))
    }

    /// Moves a device to a namespace, under a name there.
    fn transfer(&self, index: i32, name: &str, namespace: &OwnedFd) -> io::Result<()> {
        let body = [
            link_header(index, 0, 0),
            attribute(libc::IFLA_IFNAME, &terminated(name)),
            attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes()),
        ]
        .concat();
        self.order(libc::RTM_NEWLINK, 0, &body)
    }

    /// The addresses of a device that move with it: permanent ones of global scope.
    fn addresses(&self, index: i32) -> io::Result<Vec<Address>> {
        let bodies = self.dump(libc::RTM_GETADDR, &[0; IFADDR_LENGTH])?;
        Ok(bodies.iter().filter_map(|body| address(body, index)).collect())
    }

    fn add(&self, index: i32, address: &Address) -> io::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, address.scope];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.parts {
            body.extend(attribute(*kind, value));
        }
        body.extend(attribute(libc::IFA_FLAGS, &address.flags.to_ne_bytes()));
        self.order(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body)
    }
}

/// One RTM_NEWADDR, when it is of this device and moves with it.
fn address(body: &[u8], index: i32) -> Option<Address> {
    if body.len() < IFADDR_LENGTH || word(body, 4) as i32 != index {
        return None;
    }
    let mut flags = u32::from(body[2]);
    let mut parts = Vec::new();
    for (kind, value) in attributes(&body[IFADDR_LENGTH..]) {
        match kind {
            libc::IFA_FLAGS if value.len() == 4 => flags = word(value, 0),
            libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST => parts.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let moves = flags & libc::IFA_F_PERMANENT != 0 && body[3] == libc::RT_SCOPE_UNIVERSE;
    moves.then_some(Address { family: body[0], prefix: body[1], scope: body[3], flags: flags & KEPT_FLAGS, parts })
}

/// The messages of a datagram: type, flags, body. What is cut off ends them.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(data.get(..HEADER_LENGTH)?, 0) as usize;
        let message = data.get(..length).filter(|_| length >= HEADER_LENGTH)?;
        data = data.get(aligned(length)..).unwrap_or_default();
        Some((half(message, 4), half(message, 6), &message[HEADER_LENGTH..]))
    })
}

/// Attributes: type, value.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = half(data.get(..4)?, 0) as usize;
        let one = data.get(..length).filter(|_| length >= 4)?;
        data = data.get(aligned(length)..).unwrap_or_default();
        Some((half(one, 2), &one[4..]))
    })
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn half(data: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([data[at], data[at + 1]])
}

fn word(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(aligned(4 + value.len()));
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(aligned(out.len()), 0);
    out
}

/// struct ifinfomsg.
fn link_header(index: i32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(devices: &str, namespaces: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"linux":{{"namespaces":[{namespaces}],"netDevices":{devices}}}}}"#)).unwrap()
    }

    #[test]
    fn names_are_checked_and_must_differ() {
        let network = r#"{"type":"network"}"#;
        check(&spec(r#"{"eth0":{},"eth1":{"name":"a%d"},"eth2":{"name":"a%d"}}"#, network)).unwrap();
        assert!(check(&spec(r#"{"eth0":{}}"#, "")).unwrap_err().to_string().contains("network namespace"));
        let long = format!(r#"{{"eth0":{{"name":"{}"}}}}"#, "x".repeat(16));
        for bad in [
            r#"{"":{}}"#,
            r#"{"a/b":{}}"#,
            r#"{"eth%d":{}}"#,
            r#"{"eth0":{"name":"a b"}}"#,
            r#"{"eth0":{"name":"a%d%d"}}"#,
            r#"{"eth0":{"name":".."}}"#,
            r#"{"eth0":{},"eth1":{"name":"eth0"}}"#,
            &long,
        ] {
            let error = check(&spec(bad, network)).unwrap_err().to_string();
            assert!(error.contains("linux.netDevices"), "{bad}: {error}");
        }
    }

    #[test]
    fn attributes_are_read_as_written_and_cut_ones_end_them() {
        let bytes = [attribute(3, b"abcde"), attribute(1, &[])].concat();
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(3, &b"abcde"[..]), (1, &[][..])]);
        assert_eq!(attributes(&bytes[..7]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0, "a length of nothing does not go round for ever");
    }

    #[test]
    fn only_permanent_addresses_of_global_scope_move() {
        let body = |flags: u32, scope: u8, index: i32| {
            let mut body = vec![libc::AF_INET as u8, 24, 0, scope];
            body.extend(index.to_ne_bytes());
            body.extend(attribute(libc::IFA_LOCAL, &[192, 0, 2, 1]));
            body.extend(attribute(libc::IFA_FLAGS, &flags.to_ne_bytes()));
            body
        };
        let found = address(&body(libc::IFA_F_PERMANENT | libc::IFA_F_NOPREFIXROUTE, 0, 7), 7).unwrap();
        assert_eq!((found.prefix, found.flags), (24, libc::IFA_F_NOPREFIXROUTE));
        assert_eq!(found.parts, [(libc::IFA_LOCAL, vec![192, 0, 2, 1])]);
        assert_eq!(address(&body(0, 0, 7), 7), None, "not permanent");
        assert_eq!(address(&body(libc::IFA_F_PERMANENT, 253, 7), 7), None, "of link scope");
        assert_eq!(address(&body(libc::IFA_F_PERMANENT, 0, 8), 7), None, "another device's");
    }
}
