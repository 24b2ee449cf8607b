//! What the plugins have set up in a pod's network namespace, as a guest is told it.
//!
//! All of it is read from the kernel and not from the plugins' results: plugins that come later in a chain change what
//! earlier ones told. Routes that the kernel made for an address are told too, and the guest's kernel makes none by
//! itself, since a plugin may have replaced them. What came by a router's advertisement the guest gets by itself.

use crate::failure::{Fail, Failure};
use crate::netlink::{Address, Link, Socket, ip_of, numbers};
use coracle_proto::coracle::{GuestInterface, GuestNeighbour, GuestRoute};
use coracle_proto::netlink::{Message, NLM_F_DUMP, Refusal, Reply, number};
use coracle_proto::ttrpc::Code;
use nix::libc;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Sizes of the fixed structs `rtmsg` and `ndmsg`.
const RTMSG: usize = 12;
const NDMSG: usize = 12;
/// Bits of `rtm_flags` that say how the route was made; the others tell its state.
const KEPT_FLAGS: u32 = RTNH_F_PERVASIVE | RTNH_F_ONLINK;
const RTNH_F_PERVASIVE: u32 = 2;
const RTNH_F_ONLINK: u32 = 4;
const RTPROT_RA: u8 = 9;
const RTN_UNICAST: u8 = 1;
const RTA_NH_ID: u16 = 30;
/// Of these libc has none for musl.
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const NUD_PERMANENT: u16 = 0x80;
/// Fields of `rta_cacheinfo` before `rta_expires`.
const BEFORE_EXPIRES: usize = 8;

/// Settings of the interface that the guest's is to have too, below /proc/sys/net; `*` is its name. A plugin sets them, or
/// they are the node's for new namespaces.
const SETTINGS: [&str; 12] = [
    "ipv4/conf/all/accept_redirects",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/all/arp_ignore",
    "ipv4/conf/all/arp_announce",
    "ipv4/conf/*/accept_redirects",
    "ipv4/conf/*/rp_filter",
    "ipv4/conf/*/arp_ignore",
    "ipv4/conf/*/arp_announce",
    "ipv6/conf/all/disable_ipv6",
    "ipv6/conf/*/disable_ipv6",
    "ipv6/conf/*/accept_ra",
    "ipv6/conf/*/accept_redirects",
];

/// The one interface that the plugins made; `None` if they made none.
pub(super) fn interface(socket: &mut Socket) -> Result<Option<Link>, Failure> {
    let links = socket.links().map_err(|e| failed("list the devices", e))?;
    let addresses = socket.addresses().map_err(|e| failed("list the addresses", e))?;
    // Tunnels that the kernel puts into each new namespace are down and have no address.
    let used = |link: &Link| link.is_up() || addresses.iter().any(|address| address.link == link.index);
    let of_pod = |link: &Link| link.flags & libc::IFF_LOOPBACK == 0 && link.name != super::TAP && used(link);
    let mut links = links.into_iter().filter(of_pod);
    let Some(link) = links.next() else { return Ok(None) };
    let others: Vec<String> = links.map(|link| link.name).collect();
    if !others.is_empty() {
        return Err(refused(format!("it has {} and {}; a virtual machine has one NIC", link.name, others.join(", "))));
    }
    if link.hardware != libc::ARPHRD_ETHER || link.flags & libc::IFF_NOARP != 0 {
        return Err(refused(format!("{} is no Ethernet device that does ARP, and a guest's NIC is", link.name)));
    }
    if !link.is_up() {
        return Err(refused(format!("{} has addresses and is down", link.name)));
    }
    Ok(Some(link))
}

/// All that a guest needs to know about the interface.
pub(super) fn network(socket: &mut Socket, link: &Link) -> Result<super::Network, Failure> {
    let settings = settings(&link.name);
    let advertised = settings.iter().any(|s| s.contains("/accept_ra=") && !s.ends_with("=0"));
    let all = socket.addresses().map_err(|e| failed("list the addresses", e))?;
    let mut addresses = Vec::new();
    for address in all.iter().filter(|address| address.link == link.index) {
        if address.flags & libc::IFA_F_DADFAILED != 0 {
            return Err(refused(format!("{} of {} is in use elsewhere on its link", address.ip, link.name)));
        }
        if !(advertised && is_dynamic(address)) {
            addresses.push(format!("{}/{}", address.ip, address.prefix));
        }
    }
    let interface =
        GuestInterface { name: link.name.clone(), mac: link.mac.clone(), mtu: link.mtu, addresses, settings };
    let mut routes = Vec::new();
    for reply in dump(socket, libc::RTM_GETROUTE, &[0; RTMSG], "routes")? {
        routes.extend(route(&reply, link, advertised)?);
    }
    let neighbours = dump(socket, libc::RTM_GETNEIGH, &[0; NDMSG], "neighbours")?;
    let neighbours = neighbours.iter().filter_map(|reply| neighbour(reply, link)).collect();
    Ok((vec![interface], routes, neighbours))
}

fn is_dynamic(address: &Address) -> bool {
    address.ip.is_ipv6() && address.flags & libc::IFA_F_PERMANENT == 0
}

/// A node without IPv6 has fewer of them.
fn settings(interface: &str) -> Vec<String> {
    let read = |name: &str| {
        let name = name.replace('*', interface);
        let value = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
        Some(format!("{name}={}", value.trim()))
    };
    SETTINGS.iter().filter_map(|name| read(name)).collect()
}

/// The route as the guest is to have it; `None` for one that it has by itself, or that leads elsewhere.
fn route(reply: &Reply, link: &Link, advertised: bool) -> Result<Option<GuestRoute>, Failure> {
    let head @ [family, dst_len, src_len, tos, table, protocol, scope, kind, ..] = reply.head::<RTMSG>();
    let attrs = reply.attrs(RTMSG);
    let table = attrs.get(libc::RTA_TABLE).map_or(table.into(), number);
    let loose = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return Ok(None),
    };
    let out = attrs.get(libc::RTA_OIF).map(number);
    let to = format!("{}/{dst_len}", attrs.get(libc::RTA_DST).and_then(ip_of).unwrap_or(loose));
    // The kernel's own, of its addresses and of lo.
    if table == u32::from(libc::RT_TABLE_LOCAL) || (protocol == libc::RTPROT_KERNEL && out != Some(link.index)) {
        return Ok(None);
    }
    if out.is_some_and(|index| index != link.index) || (advertised && came_by_itself(reply, protocol)) {
        return Ok(None);
    }
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return Err(refused(format!("the route to {to} is in table {table}, and a guest has one table")));
    }
    let odd = [libc::RTA_MULTIPATH, RTA_ENCAP, RTA_NH_ID].iter().any(|kind| attrs.get(*kind).is_some());
    if kind != RTN_UNICAST || src_len != 0 || tos != 0 || odd || out.is_none() {
        return Err(refused(format!("the route to {to} is more than a way by {}", link.name)));
    }
    // RTA_VIA is a family and an address of it: a gateway of the other family than the route's.
    let via = attrs.get(RTA_VIA).and_then(|via| ip_of(via.get(2..)?));
    let gateway = attrs.get(libc::RTA_GATEWAY).and_then(ip_of).or(via);
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(Some(GuestRoute {
        destination: to,
        gateway: text(gateway),
        interface: link.name.clone(),
        metric: attrs.get(libc::RTA_PRIORITY).map(number).unwrap_or_default(),
        scope: scope.into(),
        flags: number(&head[8..12]) & KEPT_FLAGS,
        source: text(attrs.get(libc::RTA_PREFSRC).and_then(ip_of)),
        metrics: attrs.get(libc::RTA_METRICS).map(|metrics| numbers(metrics).collect()).unwrap_or_default(),
    }))
}

/// A router's advertisement made it, so that it has a lifetime.
fn came_by_itself(reply: &Reply, protocol: u8) -> bool {
    let cache = reply.attrs(RTMSG).get(libc::RTA_CACHEINFO).and_then(|info| info.get(BEFORE_EXPIRES..));
    protocol == RTPROT_RA || cache.map(number).unwrap_or_default() != 0
}

fn neighbour(reply: &Reply, link: &Link) -> Option<GuestNeighbour> {
    let head = reply.head::<NDMSG>();
    let attrs = reply.attrs(NDMSG);
    let permanent = u16::from_ne_bytes([head[8], head[9]]) & NUD_PERMANENT != 0;
    if number(&head[4..8]) != link.index || !permanent {
        return None;
    }
    let address = attrs.get(libc::NDA_DST).and_then(ip_of)?.to_string();
    Some(GuestNeighbour { address, mac: attrs.get(libc::NDA_LLADDR)?.to_vec(), interface: link.name.clone() })
}

fn dump(socket: &mut Socket, kind: u16, head: &[u8], what: &str) -> Result<Vec<Reply>, Failure> {
    socket.request(Message::new(kind, NLM_F_DUMP, head)).map_err(|e| failed(&format!("list the {what}"), e))
}

fn failed(what: &str, error: Refusal) -> Failure {
    Code::Unknown.failure(format!("read the pod's network: {what}: {error}"))
}

fn refused(why: String) -> Failure {
    Code::FailedPrecondition.failure(format!("the pod's network cannot be a virtual machine's: {why}"))
}
