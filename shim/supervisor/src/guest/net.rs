//! The guest's network: its one NIC becomes what the pod's interface is on the machine ([`crate::vm::net`] tells it).
//!
//! Each time everything is made anew, since a restored guest has had another network before: the NIC goes down, which
//! takes its routes, loses its addresses, gets name, MAC and MTU, goes up, and gets addresses, routes and neighbours.
//! There is no detection of duplicate addresses: the machine's plugins have seen to it, and it would take a second.

use crate::failure::{Fail, Failure};
use crate::netlink::{Link, Socket, family, ifaddr, octets, parse_net};
use coracle_proto::coracle::{GuestInterface, GuestNeighbour, GuestRoute, GuestSetUpRequest};
use coracle_proto::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Refusal};
use coracle_proto::ttrpc::Code;
use nix::libc;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

const SYSCTLS: &str = "/proc/sys/net";
/// Sizes of the fixed structs `rtmsg` and `ndmsg`.
const RTMSG: usize = 12;
const NDMSG: usize = 12;
const MAC: usize = 6;
/// An IPv4 network that is smaller has no broadcast address.
const LONGEST_WITH_BROADCAST: u8 = 30;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTN_UNICAST: u8 = 1;
/// Which libc does not have for musl.
const RTA_VIA: u16 = 18;
const NUD_PERMANENT: u16 = 0x80;

/// Sets `lo` up, and makes the NIC the pod's interface, if there is one in the request.
pub fn apply(request: &GuestSetUpRequest) -> Result<(), Failure> {
    apply_to(request, |link| link.bus == "virtio")
}

/// The same with another NIC: a test has no virtio.
pub(crate) fn apply_to(request: &GuestSetUpRequest, is_nic: impl Fn(&Link) -> bool) -> Result<(), Failure> {
    let socket = Socket::open();
    let socket = &mut socket.map_err(|e| Code::Unknown.failure(format!("open a netlink socket in the guest: {e}")))?;
    let links = socket.links().map_err(|e| failed("list the guest's devices", e))?;
    for lo in links.iter().filter(|link| link.flags & libc::IFF_LOOPBACK != 0) {
        socket.set_up(lo.index, true).map_err(|e| failed("set up lo", e))?;
    }
    let interface = match &request.interfaces[..] {
        [] => return Ok(()),
        [interface] => interface,
        more => {
            let names: Vec<&str> = more.iter().map(|interface| interface.name.as_str()).collect();
            return Err(invalid(format!("{}: a guest has one NIC", names.join(", "))));
        }
    };
    let missing = || Code::NotFound.failure("the guest has no virtio NIC (module virtio_net?)".into());
    let nic = links.iter().find(|link| is_nic(link)).ok_or_else(missing)?;
    take_away(socket, nic)?;
    give(socket, nic.index, interface)?;
    for route in in_order(&request.routes) {
        add_route(socket, nic.index, route)?;
    }
    for neighbour in &request.neighbours {
        add_neighbour(socket, nic.index, neighbour)?;
    }
    Ok(())
}

/// Sets the NIC down, with which its routes and neighbours go, and takes its addresses.
fn take_away(socket: &mut Socket, nic: &Link) -> Result<(), Failure> {
    socket.set_up(nic.index, false).map_err(|e| failed(&format!("set down {}", nic.name), e))?;
    let addresses = socket.addresses().map_err(|e| failed("list the guest's addresses", e))?;
    for address in addresses.iter().filter(|address| address.link == nic.index) {
        let head = ifaddr(nic.index, address.ip, address.prefix);
        let message = Message::new(libc::RTM_DELADDR, 0, &head).attr(libc::IFA_LOCAL, &octets(address.ip));
        // The secondary addresses of a network go with its first.
        let gone = socket.ensure(message, libc::EADDRNOTAVAIL);
        gone.map_err(|e| failed(&format!("take {} from {}", address.ip, nic.name), e))?;
    }
    Ok(())
}

fn give(socket: &mut Socket, index: u32, interface: &GuestInterface) -> Result<(), Failure> {
    let name = &interface.name;
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
    if !(1..libc::IFNAMSIZ).contains(&name.len()) || !name.bytes().all(plain) || name.starts_with('.') {
        return Err(invalid(format!("{name:?} is no name of a network device")));
    }
    if interface.mac.len() != MAC {
        return Err(invalid(format!("{name}: a MAC has {MAC} bytes, this has {}", interface.mac.len())));
    }
    let fill = |m: Message| {
        let m = m.text(libc::IFLA_IFNAME, name).attr(libc::IFLA_ADDRESS, &interface.mac);
        if interface.mtu == 0 { m } else { m.attr(libc::IFLA_MTU, &interface.mtu.to_ne_bytes()) }
    };
    let doing = |what: &str| format!("{what} (name {name}, MTU {})", interface.mtu);
    socket.change(index, (0, 0), fill).map_err(|e| failed(&doing("change the NIC"), e))?;
    for setting in &interface.settings {
        set(setting)?;
    }
    // Its link-local address is told as the others are.
    for setting in ["accept_dad=0", "addr_gen_mode=1"] {
        set(&format!("ipv6/conf/{name}/{setting}"))?;
    }
    socket.set_up(index, true).map_err(|e| failed(&doing("set up the NIC"), e))?;
    for address in &interface.addresses {
        add_address(socket, index, address).map_err(|e| failed(&format!("give {name} the address {address}"), e))?;
    }
    Ok(())
}

/// NAME=VALUE below /proc/sys/net. A kernel without IPv6 has no settings of it; that it is missing is told by the first
/// address that needs it.
fn set(setting: &str) -> Result<(), Failure> {
    let named =
        setting.split_once('=').filter(|(name, _)| !name.split('/').any(|part| matches!(part, "" | "." | "..")));
    let (name, value) = named.ok_or_else(|| invalid(format!("{setting:?} is no setting of a network")))?;
    let path = Path::new(SYSCTLS).join(name);
    match fs::write(&path, value) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Code::Unknown.failure(format!("set up the guest's network: write {value} to {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Without a route to its network: those are told one by one.
fn add_address(socket: &mut Socket, index: u32, text: &str) -> Result<(), Refusal> {
    let (ip, prefix) = parse_net(text).ok_or(Refusal { errno: libc::EINVAL, words: None })?;
    let flags = IFA_F_NOPREFIXROUTE | if ip.is_ipv6() { libc::IFA_F_NODAD } else { 0 };
    let message = Message::new(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &ifaddr(index, ip, prefix))
        .attr(libc::IFA_LOCAL, &octets(ip))
        .attr(libc::IFA_ADDRESS, &octets(ip))
        .attr(libc::IFA_FLAGS, &flags.to_ne_bytes());
    let message = match ip {
        IpAddr::V4(ip) if prefix <= LONGEST_WITH_BROADCAST => {
            let broadcast = Ipv4Addr::from_bits(ip.to_bits() | u32::MAX.checked_shr(prefix.into()).unwrap_or(0));
            message.attr(libc::IFA_BROADCAST, &broadcast.octets())
        }
        _ => message,
    };
    socket.ensure(message, libc::EEXIST)
}

/// What is on the link first: gateways are reached by those. Of these, what is itself reached by a gateway comes last.
fn in_order(routes: &[GuestRoute]) -> Vec<&GuestRoute> {
    let mut routes: Vec<&GuestRoute> = routes.iter().collect();
    let prefix = |route: &GuestRoute| parse_net(&route.destination).map_or(0, |(_, prefix)| prefix);
    routes.sort_by_key(|route| (!route.gateway.is_empty(), std::cmp::Reverse(prefix(route))));
    routes
}

fn add_route(socket: &mut Socket, index: u32, route: &GuestRoute) -> Result<(), Failure> {
    let way = if route.gateway.is_empty() { "on the link" } else { &route.gateway };
    let doing = format!("add the route to {} ({way})", route.destination);
    let message = route_message(index, route).ok_or_else(|| invalid(format!("{doing}: it is not well-formed")))?;
    socket.ensure(message, libc::EEXIST).map_err(|e| failed(&doing, e))
}

fn route_message(index: u32, route: &GuestRoute) -> Option<Message> {
    let address = |text: &str| if text.is_empty() { Some(None) } else { text.parse::<IpAddr>().ok().map(Some) };
    let gateway = address(&route.gateway)?;
    let (to, prefix) = match (route.destination.as_str(), gateway) {
        ("", Some(IpAddr::V6(_))) => parse_net("::/0")?,
        ("", _) => parse_net("0.0.0.0/0")?,
        (text, _) => parse_net(text)?,
    };
    let mut head = [0; RTMSG];
    head[..2].copy_from_slice(&[family(to), prefix]);
    head[4..8].copy_from_slice(&[libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, u8::try_from(route.scope).ok()?, RTN_UNICAST]);
    head[8..].copy_from_slice(&route.flags.to_ne_bytes());
    let mut message =
        Message::new(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &head).attr(libc::RTA_OIF, &index.to_ne_bytes());
    if prefix > 0 {
        message = message.attr(libc::RTA_DST, &octets(to));
    }
    match gateway {
        Some(ip) if ip.is_ipv4() == to.is_ipv4() => message = message.attr(libc::RTA_GATEWAY, &octets(ip)),
        Some(ip) => {
            let via = [u16::from(family(ip)).to_ne_bytes().to_vec(), octets(ip)].concat();
            message = message.attr(RTA_VIA, &via);
        }
        None => {}
    }
    if let Some(source) = address(&route.source)? {
        message = message.attr(libc::RTA_PREFSRC, &octets(source));
    }
    if route.metric != 0 {
        message = message.attr(libc::RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    if route.metrics.is_empty() {
        return Some(message);
    }
    let mut metrics: Vec<(u16, u32)> = Vec::new();
    for (kind, value) in &route.metrics {
        metrics.push((u16::try_from(*kind).ok()?, *value));
    }
    Some(message.nest(libc::RTA_METRICS, &[], |message| {
        metrics.iter().fold(message, |m, (kind, value)| m.attr(*kind, &value.to_ne_bytes()))
    }))
}

fn add_neighbour(socket: &mut Socket, index: u32, neighbour: &GuestNeighbour) -> Result<(), Failure> {
    let ip: IpAddr = neighbour.address.parse().map_err(|_| invalid(format!("neighbour {:?}", neighbour.address)))?;
    let mut head = [0; NDMSG];
    head[0] = family(ip);
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let message = Message::new(libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &head)
        .attr(libc::NDA_DST, &octets(ip))
        .attr(libc::NDA_LLADDR, &neighbour.mac);
    socket.request(message).map(drop).map_err(|e| failed(&format!("add the neighbour {ip}"), e))
}

fn failed(what: &str, error: Refusal) -> Failure {
    Code::Unknown.failure(format!("set up the guest's network: {what}: {error}"))
}

fn invalid(why: String) -> Failure {
    Code::InvalidArgument.failure(format!("set up the guest's network: {why}"))
}
