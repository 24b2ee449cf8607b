//! The nftables table of natively made attachments: who is masqueraded, and which ports of the host lead where.
//!
//! One table, `inet coracle-cni`, for all networks, since everything in it is by pod. Its rules never change; what
//! changes are elements, added and removed straight over netlink. For each subnet there are two chains.
//!
//! ```text
//! map masq, masq6 { pod ip : jump m-SUBNET }     what leaves the pod's subnet, but multicast, carries the host's address
//! map near        { pod ip : jump s-SUBNET }     what comes by a hostPort from the loopback or the pod's subnet: the same
//! map any, addr                                  hostPorts, as in the embedded network's table
//! set bridges     { name }                       where nobody may reach the host's loopback, which hostPorts open
//! ```
//!
//! This is what the plugins do by a chain of iptables for each pod. Their rules and ours stand side by side.
//!
//! The kernel numbers tables, so a table that somebody flushed and made again is noticed by the next attachment, which
//! puts back the elements of all attachments. Every process that attaches makes the rules anew once.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::Held;
use super::plan::{address, number};
use crate::net::nl::Socket;
use crate::net::{Error, IpNet, nft};
use crate::types::PortMapping;

pub(super) const TABLE: &str = "coracle-cni";

const FRAME: &str = r#"
table inet coracle-cni {
  comment "pods of coracle on CNI networks"
  map any { type inet_proto . inet_service : ipv4_addr . inet_service; }
  map addr { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
  map masq { type ipv4_addr : verdict; }
  map masq6 { type ipv6_addr : verdict; }
  map near { type ipv4_addr : verdict; }
  set bridges { type ifname; }
  chain hostports { }
  chain prerouting { type nat hook prerouting priority dstnat; policy accept; }
  chain output { type nat hook output priority -100; policy accept; }
  chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
  chain guard { type filter hook prerouting priority raw; policy accept; }
}
flush chain inet coracle-cni hostports
flush chain inet coracle-cni prerouting
flush chain inet coracle-cni output
flush chain inet coracle-cni postrouting
flush chain inet coracle-cni guard
add rule inet coracle-cni hostports dnat ip to ip daddr . meta l4proto . th dport map @addr
add rule inet coracle-cni hostports fib daddr type local dnat ip to meta l4proto . th dport map @any
add rule inet coracle-cni prerouting jump hostports
add rule inet coracle-cni output jump hostports
add rule inet coracle-cni postrouting ct status dnat ip daddr vmap @near
add rule inet coracle-cni postrouting ip saddr vmap @masq
add rule inet coracle-cni postrouting ip6 saddr vmap @masq6
add rule inet coracle-cni guard iifname @bridges ip daddr 127.0.0.0/8 drop
"#;

/// What of the table this process knows to be there.
#[derive(Default)]
pub(super) struct Table {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    handle: Option<u64>,
    subnets: BTreeSet<String>,
}

impl Table {
    /// While this is held nothing is put back: for who takes elements out and then forgets for whom they were.
    pub(super) fn hold(&self) -> impl Sized + '_ {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is missing of the table for an attachment. `others` are asked for when all elements have to be put back.
    pub(super) fn prepare(
        &self,
        filter: &mut Socket,
        held: &Held,
        others: impl FnOnce() -> Result<Vec<(Held, Vec<PortMapping>)>, Error>,
    ) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = |e| Error::kernel(format!("look up nftables table {TABLE}"), e);
        let handle = nft::handle(filter, TABLE).map_err(doing)?;
        let subnets = |held: &Held| held.ips.iter().map(|net| subnet(*net).to_string()).collect::<Vec<_>>();
        let same = handle.is_some() && known.handle == handle;
        if same && subnets(held).iter().all(|subnet| known.subnets.contains(subnet)) {
            return Ok(());
        }
        let mut wanted = known.subnets.clone();
        wanted.extend(subnets(held));
        let others = if same { Vec::new() } else { others()? };
        wanted.extend(others.iter().flat_map(|(held, _)| subnets(held)));
        nft::run(TABLE, &script(&wanted))?;
        for (other, ports) in &others {
            add(filter, other, ports)?;
        }
        *known = Known { handle: nft::handle(filter, TABLE).map_err(doing)?, subnets: wanted };
        Ok(())
    }
}

/// The whole table as `nft` reads it; elements stay.
fn script(subnets: &BTreeSet<String>) -> String {
    let mut script = FRAME.to_owned();
    for subnet in subnets.iter().filter_map(|subnet| super::super::result::parse_net(subnet)) {
        let (ip, multicast) = if subnet.ip.is_ipv4() { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
        let leaves = format!("{ip} daddr != {{ {subnet}, {multicast} }} masquerade");
        let _ = writeln!(script, "{}", chain(&format!("m-{}", code(subnet)), &leaves));
        if subnet.ip.is_ipv4() {
            let returns = format!("ip saddr {{ 127.0.0.0/8, {subnet} }} masquerade");
            let _ = writeln!(script, "{}", chain(&format!("s-{}", code(subnet)), &returns));
        }
    }
    script
}

fn chain(name: &str, rule: &str) -> String {
    format!("add chain inet {TABLE} {name}\nflush chain inet {TABLE} {name}\nadd rule inet {TABLE} {name} {rule}")
}

/// The network of an address.
pub(super) fn subnet(net: IpNet) -> IpNet {
    let bits = if net.ip.is_ipv4() { 32u32 } else { 128 };
    let below = u128::MAX.checked_shr(128 - bits + u32::from(net.prefix)).unwrap_or(0);
    IpNet { ip: address(number(net.ip) & !below, net.ip), prefix: net.prefix }
}

/// A network as a part of a chain's name.
fn code(subnet: IpNet) -> String {
    let family = if subnet.ip.is_ipv4() { 4 } else { 6 };
    format!("{family}-{:x}-{}", number(subnet.ip), subnet.prefix)
}

fn key(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The elements that only this attachment can have, and those of its ports.
fn elements(held: &Held, ports: &[PortMapping]) -> (Vec<nft::Element>, Vec<nft::Element>) {
    let (mut own, mut mapped) = (Vec::new(), Vec::new());
    for net in &held.ips {
        let code = code(subnet(*net));
        if held.masquerade {
            let map = if net.ip.is_ipv4() { "masq" } else { "masq6" };
            own.push(nft::Element::jump(map, &key(net.ip), &format!("m-{code}")));
        }
        if let (IpAddr::V4(ip), Some(snat)) = (net.ip, held.portmap)
            && !ports.is_empty()
        {
            mapped.extend(ports.iter().map(|port| nft::Element::new(port, ip)));
            if snat {
                own.push(nft::Element::jump("near", &key(net.ip), &format!("s-{code}")));
            }
        }
    }
    (own, mapped)
}

/// Adds an attachment's elements; those that are there are no error.
pub(super) fn add(filter: &mut Socket, held: &Held, ports: &[PortMapping]) -> Result<(), Error> {
    let (mut all, mapped) = elements(held, ports);
    all.extend(mapped);
    if held.portmap == Some(true) && !ports.is_empty() {
        all.push(nft::Element::link("bridges", &held.bridge));
    }
    nft::add(filter, TABLE, &all).map_err(|e| Error::kernel(format!("add {} to nftables table {TABLE}", held.link), e))
}

/// Removes an attachment's elements, as far as they are there.
pub(super) fn remove(filter: &mut Socket, held: &Held, ports: &[PortMapping]) -> Result<(), Error> {
    let (own, mapped) = elements(held, ports);
    let removed = nft::remove_own(filter, TABLE, &own).and_then(|()| nft::remove_elements(filter, TABLE, &mapped));
    match removed {
        Err(e) if e.errno != Errno::ENOENT => {
            Err(Error::kernel(format!("remove {} from nftables table {TABLE}", held.link), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_a_name_and_two_chains() {
        let net = |text: &str| super::super::super::result::parse_net(text).unwrap();
        assert_eq!(subnet(net("10.22.3.5/16")).to_string(), "10.22.0.0/16");
        assert_eq!(subnet(net("fd00::5/64")).to_string(), "fd00::/64");
        assert_eq!(subnet(net("10.0.0.1/32")).to_string(), "10.0.0.1/32");
        assert_eq!(code(net("10.22.0.0/16")), "4-a160000-16");
        let script = script(&["10.22.0.0/16".to_owned(), "fd00::/64".to_owned()].into());
        assert!(script.contains("m-4-a160000-16 ip daddr != { 10.22.0.0/16, 224.0.0.0/4 } masquerade"), "{script}");
        assert!(script.contains("s-4-a160000-16 ip saddr { 127.0.0.0/8, 10.22.0.0/16 } masquerade"), "{script}");
        assert!(script.contains("ip6 daddr != { fd00::/64, ff00::/8 } masquerade"), "{script}");
    }
}
