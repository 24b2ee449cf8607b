//! Links, addresses and routes by routing netlink: each function is one request (or one dump) and its meaning.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::ip::{IpNet, Subnet};
use super::nl::{Attrs, Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Refusal, Reply, Socket, number, string};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;

/// No duplicate address detection.
const IFA_F_NODAD: u8 = 2;
const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u32 = 255;
/// What `ip route` and the CNI plugins say of routes that they add.
const RTPROT_BOOT: u8 = 3;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// Sizes of the fixed structs `ifinfomsg`, `ifaddrmsg`, `rtmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const RTMSG: usize = 12;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// What is asked of a link here.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) master: Option<u32>,
    pub(super) kind: String,
    pub(super) mtu: u32,
    pub(super) mac: Vec<u8>,
    flags: u32,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    pub(super) fn is_promiscuous(&self) -> bool {
        self.flags & IFF_PROMISC != 0
    }
}

/// An IPv4 route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) to: Subnet,
    pub(super) link: Option<u32>,
    pub(super) table: u32,
}

/// `ifinfomsg` for link `index` (0: by name), with `flags` as the new value of the bits in `change`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO] {
    let mut head = [0; IFINFO];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..16].copy_from_slice(&change.to_ne_bytes());
    head
}

fn link_of(reply: &Reply) -> Link {
    let head = reply.head::<IFINFO>();
    let attrs = reply.attrs(IFINFO);
    let kind = attrs.get(IFLA_LINKINFO).and_then(|info| Attrs::of(info).get(IFLA_INFO_KIND));
    Link {
        index: number(&head[4..8]),
        name: attrs.get(IFLA_IFNAME).map(string).unwrap_or_default(),
        master: attrs.get(IFLA_MASTER).map(number),
        kind: kind.map(string).unwrap_or_default(),
        mtu: attrs.get(IFLA_MTU).map(number).unwrap_or_default(),
        mac: attrs.get(IFLA_ADDRESS).map(<[u8]>::to_vec).unwrap_or_default(),
        flags: number(&head[8..12]),
    }
}

/// The link called `name`, if there is one.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    match socket.request(Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0)).text(IFLA_IFNAME, name)) {
        Ok(replies) => Ok(replies.first().map(link_of)),
        Err(e) if e.errno == Errno::ENODEV => Ok(None),
        Err(e) => Err(e),
    }
}

/// All links whose master is the bridge `index`.
pub(super) fn ports_of(socket: &mut Socket, index: u32) -> Result<Vec<Link>, Refusal> {
    let dump = Message::new(RTM_GETLINK, NLM_F_DUMP, &ifinfo(0, 0, 0)).attr(IFLA_MASTER, &index.to_ne_bytes());
    let links = socket.request(dump)?;
    // Kernels that do not know the filter answer with all links.
    Ok(links.iter().map(link_of).filter(|link| link.master == Some(index)).collect())
}

/// The MTU of link `index`.
pub(super) fn mtu_of(socket: &mut Socket, index: u32) -> Result<u32, Refusal> {
    let replies = socket.request(Message::new(RTM_GETLINK, 0, &ifinfo(index, 0, 0)))?;
    Ok(replies.first().map(|r| link_of(r).mtu).unwrap_or_default())
}

/// Makes a bridge, down.
pub(super) fn add_bridge(socket: &mut Socket, name: &str, mac: Mac, mtu: Option<u32>) -> Result<(), Refusal> {
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac);
    let message = match mtu {
        Some(mtu) => message.attr(IFLA_MTU, &mtu.to_ne_bytes()),
        None => message,
    };
    socket.request(message.nest(IFLA_LINKINFO, &[], |m| m.text(IFLA_INFO_KIND, "bridge"))).map(drop)
}

/// One end of a veth pair on the host, its peer made inside another network namespace at once.
pub(super) struct Veth<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: u32,
    pub(super) mtu: u32,
    /// May the bridge send a frame back through the port it came from? A pod that reaches itself by its hostPort needs
    /// it where `bridge-nf-call-iptables` is set: there the bridge rewrites the destination and does not route.
    pub(super) hairpin: bool,
    /// The near end's hardware address; `None` for one of the kernel's.
    pub(super) mac: Option<Mac>,
    pub(super) peer_name: &'a str,
    pub(super) peer_mac: Mac,
    pub(super) peer_netns: BorrowedFd<'a>,
}

/// Makes a veth pair: both ends named, the near end on its bridge. The kernel refuses to set an end up before the pair is
/// whole, so that is a request of its own.
pub(super) fn add_veth(socket: &mut Socket, veth: &Veth) -> Result<(), Refusal> {
    let mtu = veth.mtu.to_ne_bytes();
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0, 0))
        .text(IFLA_IFNAME, veth.name)
        .attr(IFLA_MTU, &mtu)
        .attr(IFLA_MASTER, &veth.bridge.to_ne_bytes());
    let message = match &veth.mac {
        Some(mac) => message.attr(IFLA_ADDRESS, mac),
        None => message,
    };
    let message = message.nest(IFLA_LINKINFO, &[], |m| {
        m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &[], |m| {
            m.nest(VETH_INFO_PEER, &ifinfo(0, 0, 0), |m| {
                m.text(IFLA_IFNAME, veth.peer_name)
                    .attr(IFLA_MTU, &mtu)
                    .attr(IFLA_ADDRESS, &veth.peer_mac)
                    .attr(IFLA_NET_NS_FD, &veth.peer_netns.as_raw_fd().to_ne_bytes())
            })
        })
    });
    socket.request(message)?;
    let up = Message::new(RTM_NEWLINK, 0, &ifinfo(0, IFF_UP, IFF_UP)).text(IFLA_IFNAME, veth.name);
    socket.request(hairpin(up, veth.hairpin)).map(drop)
}

/// Lets a bridge's port send frames out where they came in; that it is gone, or no longer a port, is no error.
pub(super) fn set_hairpin(socket: &mut Socket, name: &str) -> Result<(), Refusal> {
    match socket.request(hairpin(Message::new(RTM_NEWLINK, 0, &ifinfo(0, 0, 0)).text(IFLA_IFNAME, name), true)) {
        Err(e) if ![Errno::ENODEV, Errno::EOPNOTSUPP, Errno::EINVAL].contains(&e.errno) => Err(e),
        _ => Ok(()),
    }
}

fn hairpin(message: Message, on: bool) -> Message {
    message.nest(IFLA_LINKINFO, &[], |m| {
        m.text(IFLA_INFO_SLAVE_KIND, "bridge")
            .nest(IFLA_INFO_SLAVE_DATA, &[], |m| m.attr(IFLA_BRPORT_MODE, &[u8::from(on)]))
    })
}

/// Sets a link up or down.
pub(super) fn set_up(socket: &mut Socket, index: u32, up: bool) -> Result<(), Refusal> {
    let flags = if up { IFF_UP } else { 0 };
    socket.request(Message::new(RTM_NEWLINK, 0, &ifinfo(index, flags, IFF_UP))).map(drop)
}

/// Puts a link on a bridge.
pub(super) fn set_master(socket: &mut Socket, index: u32, bridge: u32) -> Result<(), Refusal> {
    let message = Message::new(RTM_NEWLINK, 0, &ifinfo(index, 0, 0)).attr(IFLA_MASTER, &bridge.to_ne_bytes());
    socket.request(message).map(drop)
}

/// Removes a link; that it is not there is no error. The kernel waits for its readers: some 20 ms.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<(), Refusal> {
    match socket.request(Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0)).text(IFLA_IFNAME, name)) {
        Err(e) if e.errno != Errno::ENODEV => Err(e),
        _ => Ok(()),
    }
}

/// Makes a link pass everything it sees to the host.
pub(super) fn set_promiscuous(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    socket.request(Message::new(RTM_NEWLINK, 0, &ifinfo(index, IFF_PROMISC, IFF_PROMISC))).map(drop)
}

fn ifaddr(link: u32, net: IpNet) -> [u8; IFADDR] {
    let mut head = [0; IFADDR];
    head[0] = family(net.ip);
    head[1] = net.prefix;
    head[4..8].copy_from_slice(&link.to_ne_bytes());
    head
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// Gives a link an address, with the broadcast address of its network; that it has it already is no error. An IPv6
/// address is good at once.
pub(super) fn add_address(socket: &mut Socket, link: u32, net: IpNet) -> Result<(), Refusal> {
    const LONGEST_WITH_BROADCAST: u8 = 30;
    let mut head = ifaddr(link, net);
    let create = |head: &[u8]| Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, head);
    let message = match net.ip {
        IpAddr::V4(ip) => {
            let message = create(&head).attr(IFA_LOCAL, &ip.octets()).attr(IFA_ADDRESS, &ip.octets());
            let subnet = Subnet::new(ip, net.prefix);
            match net.prefix <= LONGEST_WITH_BROADCAST {
                true => message.attr(IFA_BROADCAST, &subnet.nth(subnet.last()).octets()),
                false => message,
            }
        }
        IpAddr::V6(ip) => {
            head[2] = IFA_F_NODAD;
            create(&head).attr(IFA_LOCAL, &ip.octets()).attr(IFA_ADDRESS, &ip.octets())
        }
    };
    match socket.request(message) {
        Err(e) if e.errno != Errno::EEXIST => Err(e),
        _ => Ok(()),
    }
}

/// Takes an address from a link; that it does not have it is no error.
pub(super) fn remove_address(socket: &mut Socket, link: u32, net: IpNet) -> Result<(), Refusal> {
    let octets = octets(net.ip);
    match socket.request(Message::new(RTM_DELADDR, 0, &ifaddr(link, net)).attr(IFA_LOCAL, &octets)) {
        Err(e) if e.errno != Errno::EADDRNOTAVAIL => Err(e),
        _ => Ok(()),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The addresses of a link, of both families.
pub(super) fn nets(socket: &mut Socket, link: u32) -> Result<Vec<IpNet>, Refusal> {
    let replies = socket.request(Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; IFADDR]))?;
    let net = |reply: &Reply| {
        let head = reply.head::<IFADDR>();
        let attrs = reply.attrs(IFADDR);
        let octets = attrs.get(IFA_LOCAL).or_else(|| attrs.get(IFA_ADDRESS))?;
        let ip = match octets.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
            _ => return None,
        };
        (number(&head[4..8]) == link).then_some(IpNet { ip, prefix: head[1] })
    };
    Ok(replies.iter().filter_map(net).collect())
}

/// The IPv4 addresses of a link.
pub(super) fn addresses(socket: &mut Socket, link: u32) -> Result<Vec<IpNet>, Refusal> {
    let of_link = dump_addresses(socket)?.into_iter().filter(|(index, ..)| *index == link);
    Ok(of_link.map(|(_, ip, prefix)| IpNet { ip: ip.into(), prefix }).collect())
}

/// The IPv4 addresses of all links.
pub(super) fn all_addresses(socket: &mut Socket) -> Result<Vec<Ipv4Addr>, Refusal> {
    Ok(dump_addresses(socket)?.into_iter().map(|(_, ip, _)| ip).collect())
}

fn dump_addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv4Addr, u8)>, Refusal> {
    let mut head = [0; IFADDR];
    head[0] = libc::AF_INET as u8;
    let replies = socket.request(Message::new(RTM_GETADDR, NLM_F_DUMP, &head))?;
    let address = |reply: &Reply| {
        let head = reply.head::<IFADDR>();
        let ip: [u8; 4] = reply.attrs(IFADDR).get(IFA_LOCAL)?.try_into().ok()?;
        Some((number(&head[4..8]), Ipv4Addr::from(ip), head[1]))
    };
    Ok(replies.iter().filter_map(address).collect())
}

fn rtmsg(dst_len: u8, table: u8) -> [u8; RTMSG] {
    let mut head = [0; RTMSG];
    head[0] = libc::AF_INET as u8;
    head[1] = dst_len;
    head[4] = table;
    head[5] = RTPROT_STATIC;
    head[7] = RTN_UNICAST;
    head
}

/// Adds the default route by `gateway`; that there is one already by the same way is no error.
pub(super) fn add_default_route(socket: &mut Socket, link: u32, gateway: Ipv4Addr) -> Result<(), Refusal> {
    let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &rtmsg(0, RT_TABLE_MAIN))
        .attr(RTA_GATEWAY, &gateway.octets())
        .attr(RTA_OIF, &link.to_ne_bytes());
    match socket.request(message) {
        Err(e) if e.errno != Errno::EEXIST => Err(e),
        _ => Ok(()),
    }
}

/// Adds a route by `gateway`.
pub(super) fn add_route(socket: &mut Socket, link: u32, to: IpNet, gateway: IpAddr) -> Result<(), Refusal> {
    let mut head = rtmsg(to.prefix, RT_TABLE_MAIN);
    head[0] = family(to.ip);
    head[5] = RTPROT_BOOT;
    let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE, &head)
        .attr(RTA_DST, &octets(to.ip))
        .attr(RTA_GATEWAY, &octets(gateway))
        .attr(RTA_OIF, &link.to_ne_bytes());
    socket.request(message).map(drop)
}

/// Makes a network one that is reached on the link itself.
pub(super) fn add_link_route(socket: &mut Socket, link: u32, to: Subnet) -> Result<(), Refusal> {
    match socket.request(link_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, link, to)) {
        Err(e) if e.errno != Errno::EEXIST => Err(e),
        _ => Ok(()),
    }
}

/// Takes back what [`add_link_route`] made; that it is gone is no error.
pub(super) fn remove_link_route(socket: &mut Socket, link: u32, to: Subnet) -> Result<(), Refusal> {
    match socket.request(link_route(RTM_DELROUTE, 0, link, to)) {
        Err(e) if e.errno != Errno::ESRCH => Err(e),
        _ => Ok(()),
    }
}

fn link_route(kind: u16, flags: u16, link: u32, to: Subnet) -> Message {
    const RT_SCOPE_LINK: u8 = 253;
    let mut head = rtmsg(to.prefix(), RT_TABLE_MAIN);
    head[6] = RT_SCOPE_LINK;
    Message::new(kind, flags, &head).attr(RTA_DST, &to.nth(0).octets()).attr(RTA_OIF, &link.to_ne_bytes())
}

/// All IPv4 routes, of every table but the kernel's own of local addresses.
pub(super) fn routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let replies = socket.request(Message::new(RTM_GETROUTE, NLM_F_DUMP, &rtmsg(0, 0)))?;
    let route = |reply: &Reply| {
        let head = reply.head::<RTMSG>();
        let attrs = reply.attrs(RTMSG);
        let to = attrs.get(RTA_DST).and_then(|b| <[u8; 4]>::try_from(b).ok()).unwrap_or_default();
        Route {
            to: Subnet::new(to.into(), head[1].min(32)),
            link: attrs.get(RTA_OIF).map(number),
            table: attrs.get(RTA_TABLE).map_or(u32::from(head[4]), number),
        }
    };
    Ok(replies.iter().map(route).filter(|r| r.table != RT_TABLE_LOCAL).collect())
}

/// The name of link `index`.
pub(super) fn name_of(socket: &mut Socket, index: u32) -> Result<String, Refusal> {
    let replies = socket.request(Message::new(RTM_GETLINK, 0, &ifinfo(index, 0, 0)))?;
    Ok(replies.first().map(|r| link_of(r).name).unwrap_or_default())
}
