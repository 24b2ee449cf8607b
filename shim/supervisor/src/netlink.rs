//! Routing netlink, for the network of a pod in a virtual machine: what the pod's namespace has is read on the machine
//! and made again in the guest. The messages are [`coracle_proto::netlink`]'s; this is the socket and the objects.
//!
//! A socket stays in the network namespace it was opened in. A refusal is the kernel's errno and words; who asked says
//! what for.

use coracle_proto::netlink::{Attrs, Exchange, Message, NLM_F_DUMP, Refusal, Reply, number, string};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::{setsockopt_impl, sockopt_impl};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// The kernel sends dumps in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Netlink answers at once; only a wedged kernel lock takes longer than this.
const ANSWER_DEADLINE_SECONDS: i64 = 20;
/// Sizes of the fixed structs `ifinfomsg` and `ifaddrmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;

sockopt_impl!(ExtendedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool);
sockopt_impl!(CappedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool);

/// A blocking socket of routing netlink.
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
}

impl Socket {
    /// In the calling thread's network namespace.
    pub fn open() -> nix::Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        // The kernel's words with an error, without a copy of the request. Without them the errno has to do.
        let _ = setsockopt(&fd, ExtendedAck, &true);
        let _ = setsockopt(&fd, CappedAck, &true);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_DEADLINE_SECONDS, 0))?;
        Ok(Socket { fd, seq: 0 })
    }

    /// Sends one request and returns the objects of its answer, once the kernel has acknowledged it.
    pub fn request(&mut self, message: Message) -> Result<Vec<Reply>, Refusal> {
        let of_errno = |errno: nix::Error| Refusal { errno: errno as i32, words: None };
        let mut replies = Vec::new();
        let mut exchange = Exchange::new(&mut self.seq, vec![message]);
        let sent = sendto(self.fd.as_raw_fd(), exchange.datagram(), &NetlinkAddr::new(0, 0), MsgFlags::empty());
        sent.map_err(of_errno)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        while exchange.is_open() {
            let have = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(of_errno)?;
            exchange.receive(&buffer[..have], |reply| replies.push(reply));
        }
        exchange.finish().map(|()| replies)
    }

    /// As [`Socket::request`], where one errno means that it is so already.
    pub fn ensure(&mut self, message: Message, already: i32) -> Result<(), Refusal> {
        match self.request(message) {
            Err(refusal) if refusal.errno != already => Err(refusal),
            _ => Ok(()),
        }
    }

    /// All network devices.
    pub fn links(&mut self) -> Result<Vec<Link>, Refusal> {
        let replies = self.request(Message::new(libc::RTM_GETLINK, NLM_F_DUMP, &[0; IFINFO]))?;
        Ok(replies.iter().map(link_of).collect())
    }

    /// All addresses.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Refusal> {
        let replies = self.request(Message::new(libc::RTM_GETADDR, NLM_F_DUMP, &[0; IFADDR]))?;
        Ok(replies.iter().filter_map(address_of).collect())
    }

    /// Changes the device `index`: the bits `change` of its flags become those of `flags`, and what `fill` adds.
    pub fn change(
        &mut self,
        index: u32,
        (flags, change): (i32, i32),
        fill: impl FnOnce(Message) -> Message,
    ) -> Result<(), Refusal> {
        let mut head = [0; IFINFO];
        head[4..8].copy_from_slice(&index.to_ne_bytes());
        head[8..12].copy_from_slice(&flags.to_ne_bytes());
        head[12..16].copy_from_slice(&change.to_ne_bytes());
        self.request(fill(Message::new(libc::RTM_NEWLINK, 0, &head))).map(drop)
    }

    /// Sets a device up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), Refusal> {
        self.change(index, (if up { libc::IFF_UP } else { 0 }, libc::IFF_UP), |message| message)
    }
}

/// A network device.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// What it is: ARPHRD_*.
    pub hardware: u16,
    /// IFF_*.
    pub flags: i32,
    /// The longest packet.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// The kind of bus that the device is on; empty for one of the kernel's own.
    pub bus: String,
}

impl Link {
    /// Whether it is set up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP != 0
    }
}

fn link_of(reply: &Reply) -> Link {
    /// Since Linux 5.14.
    const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
    let head = reply.head::<IFINFO>();
    let attrs = reply.attrs(IFINFO);
    Link {
        index: number(&head[4..8]),
        name: attrs.get(libc::IFLA_IFNAME).map(string).unwrap_or_default(),
        hardware: u16::from_ne_bytes([head[2], head[3]]),
        flags: number(&head[8..12]) as i32,
        mtu: attrs.get(libc::IFLA_MTU).map(number).unwrap_or_default(),
        mac: attrs.get(libc::IFLA_ADDRESS).map(<[u8]>::to_vec).unwrap_or_default(),
        bus: attrs.get(IFLA_PARENT_DEV_BUS_NAME).map(string).unwrap_or_default(),
    }
}

/// An address of a device.
#[derive(Clone, Debug)]
pub struct Address {
    /// The device.
    pub link: u32,
    /// The address itself.
    pub ip: IpAddr,
    /// How much of it is the network's.
    pub prefix: u8,
    /// IFA_F_*.
    pub flags: u32,
}

fn address_of(reply: &Reply) -> Option<Address> {
    let head = reply.head::<IFADDR>();
    let attrs = reply.attrs(IFADDR);
    Some(Address {
        link: number(&head[4..8]),
        ip: attrs.get(libc::IFA_LOCAL).or_else(|| attrs.get(libc::IFA_ADDRESS)).and_then(ip_of)?,
        prefix: head[1],
        flags: attrs.get(libc::IFA_FLAGS).map_or(u32::from(head[2]), number),
    })
}

/// `ifaddrmsg`.
pub fn ifaddr(link: u32, ip: IpAddr, prefix: u8) -> [u8; IFADDR] {
    let mut head = [0; IFADDR];
    head[0] = family(ip);
    head[1] = prefix;
    head[4..8].copy_from_slice(&link.to_ne_bytes());
    head
}

/// The address in these bytes, if it is one.
pub fn ip_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => None,
    }
}

/// The bytes of an address.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// AF_INET or AF_INET6.
pub fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// An address and a prefix's length, ADDRESS/PREFIX.
pub fn parse_net(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    (usize::from(prefix) <= octets(ip).len() * 8).then_some((ip, prefix))
}

/// The numbers in an attribute that holds attributes: RTA_METRICS.
pub fn numbers(payload: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    Attrs::of(payload).map(|(kind, value)| (kind.into(), number(value)))
}
