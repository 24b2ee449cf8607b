//! Services: addresses and ports that lead to any of several pods. The kernel does it all; no process takes part.
//!
//! They have a table of their own, `inet coracle-<bridge>-services`, beside the bridge's ([`super::nft`]), since they
//! come and go as a whole: each change replaces the table in one transaction, so no packet meets half of it. What is in
//! it is also in the file `services` beside the leases, written before the table is made and removed after it is gone:
//! so a repetition costs one request to the kernel, and what a crash left is told and cleared ([`super::orphans`]).
//!
//! ```text
//! map ports { cluster ip . proto . port : goto s0 }          map nodes { proto . node port : goto s0 }
//! chain s0  { dnat to numgen inc mod 2 map { 0 : pod . port, 1 : pod . port } }        or jhash ip saddr mod 64
//! ```
//!
//! - from a pod or from outside: `prerouting`; from the machine itself: `output`.
//! - who answers is on the asker's own bridge and would answer past us, so what came for a cluster address goes on with
//!   the machine's address (`masquerade`); that also lets a pod reach itself (hairpin). Node ports from outside keep the
//!   client's address.
//! - a cluster address that no rule took (no ready pod, no such port, no such service) is refused at once, as kube-proxy
//!   does, and not sent out into the world. Before it is routed: the way leads back to where it came from, so the kernel
//!   would send the asker a redirect first, and after that no refusal for a while.
//! - such redirects would also lead a pod past us to the pod that answered it last; they are dropped.
//! - session affinity: the client's address, hashed to one of [`SLOTS`] slots, each of which falls to the pod with the
//!   highest weight for it. So a client stays with its pod for as long as that is there, and a pod that comes or goes
//!   moves no more than its own share of clients. It needs no memory, and so has no timeout.
//!
//! The service subnet is a route to the bridge, so that the machine itself has a way there without a default route.
//!
//! Address translation is decided by a flow's first packet, so UDP flows to pods that left are forgotten ([`conntrack`]).
//! TCP connections end with the pod, or live on as long as it does.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use super::embedded::Embedded;
use super::ip::Subnet;
use super::kernel::Kernel;
use super::lease::{Lock, write_whole};
use super::nl::Socket;
use super::{Error, conntrack, link, nft};
use crate::types::Protocol;

/// Changes with the rules below, so that a table made by an older version is made anew.
const RULES_VERSION: u32 = 1;
/// The file beside the leases.
const FILE: &str = "services";
/// Slots of clients for session affinity: enough that shares are even for a handful of pods.
pub(super) const SLOTS: u32 = 64;
/// Whether frames between the ports of a bridge pass the rules of IP: then a pod that reaches itself needs its port to
/// let a frame out where it came in.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// What people call it: `namespace/name:port`.
    pub name: String,
    /// Its cluster address and external ones.
    pub addresses: Vec<Ipv4Addr>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port at those addresses.
    pub port: u16,
    /// Its port at each address of the machine.
    pub node_port: Option<u16>,
    /// Whether a client stays with its pod.
    pub sticky: bool,
    /// Who answers.
    pub backends: Vec<SocketAddrV4>,
}

/// All services of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Where cluster addresses are from.
    pub subnet: Subnet,
    /// The ports.
    pub ports: Vec<ServicePort>,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// The kernel's number of the table; 0 while it is being made.
    table: u64,
    services: Services,
}

/// The table's name for a bridge.
pub(super) fn table(bridge: &str) -> String {
    format!("{}-services", nft::table(bridge))
}

impl Embedded {
    /// Makes the kernel's rules those of `services`, and says whether anything changed. With no port, or `None`,
    /// everything is taken back.
    pub(super) fn set_services(&self, services: Option<&Services>) -> Result<bool, Error> {
        let lock = self.leases.lock()?;
        match services.filter(|services| !services.ports.is_empty()) {
            Some(services) => self.write_services(&lock, services),
            None => self.remove_services(&lock),
        }
    }

    fn write_services(&self, lock: &Lock, services: &Services) -> Result<bool, Error> {
        let kernel = &mut *self.kernel()?;
        let bridge = &self.config.bridge;
        let name = table(bridge);
        let looked = |e| Error::kernel(format!("look up nftables table {name}"), e);
        let kept = self.read_services();
        let present = nft::handle(&mut kernel.filter, &name).map_err(looked)?;
        self.lead_to_bridge(kernel, services)?;
        if let Some(kept) = &kept
            && (kept.version, Some(kept.table)) == (RULES_VERSION, present)
            && kept.services == *services
        {
            return Ok(false);
        }
        self.let_frames_return(kernel, services)?;
        let mut next = Kept { version: RULES_VERSION, table: 0, services: services.clone() };
        self.keep_services(&next)?;
        nft::run(&name, &rules(bridge, services))?;
        next.table = nft::handle(&mut kernel.filter, &name).map_err(looked)?.unwrap_or_default();
        self.keep_services(&next)?;
        let before = kept.map(|kept| kept.services.ports).unwrap_or_default();
        self.forget_flows(lock, kernel, &before, &services.ports)?;
        Ok(true)
    }

    /// Takes back rules, route and file; says whether there were any.
    pub(super) fn remove_services(&self, lock: &Lock) -> Result<bool, Error> {
        let path = self.leases.beside(FILE);
        let kernel = &mut *self.kernel()?;
        let bridge = &self.config.bridge;
        let name = table(bridge);
        let present = nft::exists(&mut kernel.filter, &name)
            .map_err(|e| Error::kernel(format!("look up nftables table {name}"), e))?;
        if !present && !path.exists() {
            return Ok(false);
        }
        let kept = self.read_services();
        if present {
            nft::remove(&name)?;
        }
        if let Some(Kept { services, .. }) = kept {
            self.forget_flows(lock, kernel, &services.ports, &[])?;
            let found = link::find(&mut kernel.route, bridge);
            let found = found.map_err(|e| Error::kernel(format!("look up bridge {bridge}"), e))?;
            if let Some(found) = found {
                link::remove_link_route(&mut kernel.route, found.index, services.subnet)
                    .map_err(|e| Error::kernel(format!("remove the route of {} by {bridge}", services.subnet), e))?;
            }
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::file("remove", &path, e)),
            _ => Ok(true),
        }
    }

    /// The file; one that makes no sense is as good as none, since the next change writes it anew.
    fn read_services(&self) -> Option<Kept> {
        serde_json::from_slice(&fs::read(self.leases.beside(FILE)).ok()?).ok()
    }

    fn keep_services(&self, kept: &Kept) -> Result<(), Error> {
        let path = self.leases.beside(FILE);
        let text = serde_json::to_vec(kept).expect("services are plain data");
        write_whole(&path, &text)
    }

    /// Pods that services lead to and that hold no address: left by a crash.
    pub(super) fn stray_backends(&self, leased: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let Some(kept) = self.read_services() else { return Vec::new() };
        let subnet = self.config.subnet;
        let backends = kept.services.ports.iter().flat_map(|port| &port.backends).map(|backend| *backend.ip());
        let mut stray: Vec<Ipv4Addr> =
            backends.filter(|ip| subnet.contains(*ip) && *ip != self.gateway() && !leased.contains(ip)).collect();
        stray.sort();
        stray.dedup();
        stray
    }

    /// Takes a pod that is gone out of all services.
    pub(super) fn drop_backend(&self, lock: &Lock, ip: Ipv4Addr) -> Result<(), Error> {
        let Some(mut kept) = self.read_services() else { return Ok(()) };
        for port in &mut kept.services.ports {
            port.backends.retain(|backend| *backend.ip() != ip);
        }
        self.write_services(lock, &kept.services).map(drop)
    }

    /// A table of services without the file that stands for it.
    pub(super) fn stray_table(&self, filter: &mut Socket) -> Result<bool, Error> {
        let name = table(&self.config.bridge);
        let present =
            nft::exists(filter, &name).map_err(|e| Error::kernel(format!("look up nftables table {name}"), e))?;
        Ok(present && self.read_services().is_none())
    }

    /// The file without the table of services that it stands for.
    pub(super) fn lacks_services(&self, filter: &mut Socket) -> Result<bool, Error> {
        let name = table(&self.config.bridge);
        let present =
            nft::exists(filter, &name).map_err(|e| Error::kernel(format!("look up nftables table {name}"), e))?;
        Ok(!present && self.read_services().is_some())
    }

    /// The machine's own way to the cluster addresses, and from its loopback to node ports.
    fn lead_to_bridge(&self, kernel: &mut Kernel, services: &Services) -> Result<(), Error> {
        let bridge = &self.config.bridge;
        let subnet = services.subnet;
        let route = &mut kernel.route;
        let found = link::find(route, bridge).map_err(|e| Error::kernel(format!("look up bridge {bridge}"), e))?;
        // Without a bridge there is no pod of ours; what came from elsewhere has a route of its own.
        let Some(found) = found else { return Ok(()) };
        let routes = link::routes(route).map_err(|e| Error::kernel("list routes", e))?;
        let mut there = false;
        for other in routes.iter().filter(|r| r.to.prefix() >= super::bridge::SHORTEST_REAL_PREFIX) {
            if !other.to.overlaps(subnet) {
                continue;
            }
            let name = other.link.and_then(|index| link::name_of(route, index).ok()).unwrap_or_default();
            there |= other.to == subnet && other.link == Some(found.index);
            // Another state folder's services may have the same addresses: each pod reaches those of its own.
            let neighbour = other.to == subnet && nft::exists(&mut kernel.filter, &table(&name)).unwrap_or(false);
            if other.link != Some(found.index) && !neighbour {
                return Err(Error::SubnetTaken { subnet, route: format!("{} by {name}", other.to) });
            }
            there |= neighbour;
        }
        if !there {
            link::add_link_route(route, found.index, subnet)
                .map_err(|e| Error::kernel(format!("lead {subnet} to bridge {bridge}"), e))?;
        }
        if services.ports.iter().any(|port| port.node_port.is_some()) {
            let path = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
            fs::write(&path, "1").map_err(|e| Error::file("write", path.as_ref(), e))?;
        }
        Ok(())
    }

    /// Lets pods that may reach themselves do so.
    fn let_frames_return(&self, kernel: &mut Kernel, services: &Services) -> Result<(), Error> {
        if !fs::read_to_string(BRIDGE_FILTER).is_ok_and(|text| text.trim() == "1") {
            return Ok(());
        }
        let behind: HashSet<Ipv4Addr> =
            services.ports.iter().flat_map(|port| &port.backends).map(|backend| *backend.ip()).collect();
        for lease in self.leases.read_all()?.into_iter().filter(|lease| behind.contains(&lease.ip)) {
            link::set_hairpin(&mut kernel.route, &lease.interface)
                .map_err(|e| Error::kernel(format!("set hairpin mode of {}", lease.interface), e))?;
        }
        Ok(())
    }

    /// Forgets UDP flows to any of the ports that are not answered by who answers now.
    fn forget_flows(
        &self,
        _lock: &Lock,
        kernel: &mut Kernel,
        before: &[ServicePort],
        now: &[ServicePort],
    ) -> Result<(), Error> {
        let udp = |ports: &[ServicePort]| -> Vec<ServicePort> {
            ports.iter().filter(|port| port.protocol == Protocol::Udp).cloned().collect()
        };
        let (before, now) = (udp(before), udp(now));
        if before.is_empty() && now.is_empty() {
            return Ok(());
        }
        let local = link::all_addresses(&mut kernel.route).map_err(|e| Error::kernel("list addresses", e))?;
        let gone = before.into_iter().filter(|old| !now.contains(old)).map(|old| ServicePort {
            // Where the port still is, its present backends stay.
            backends: now.iter().find(|port| same(port, &old)).map_or(Vec::new(), |port| port.backends.clone()),
            ..old
        });
        for port in gone.chain(now.iter().cloned()) {
            let to_service = |ip: Ipv4Addr| port.addresses.contains(&ip);
            let to_node = |ip: Ipv4Addr| local.contains(&ip) || ip.is_loopback();
            let forgotten = conntrack::forget_stale(&mut kernel.filter, port.port, &to_service, &port.backends)
                .and_then(|()| match port.node_port {
                    Some(node) => conntrack::forget_stale(&mut kernel.filter, node, &to_node, &port.backends),
                    None => Ok(()),
                });
            forgotten.map_err(|e| Error::kernel(format!("forget UDP flows to service {}", port.name), e))?;
        }
        Ok(())
    }
}

fn same(one: &ServicePort, other: &ServicePort) -> bool {
    (one.port, &one.addresses, one.node_port) == (other.port, &other.addresses, other.node_port)
}

/// The whole table as `nft` reads it: what was there under its name is replaced in the same transaction.
fn rules(bridge: &str, services: &Services) -> String {
    let table = table(bridge);
    let subnet = services.subnet;
    let (mut chains, mut ports, mut nodes) = (String::new(), Vec::new(), Vec::new());
    let mut taken = HashSet::new();
    for (index, port) in services.ports.iter().enumerate() {
        if port.backends.is_empty() {
            continue;
        }
        let (protocol, to) = (port.protocol, target(port));
        let _ = writeln!(chains, "  chain s{index} {{\n    meta l4proto {protocol} dnat ip to {to}\n  }}");
        let comment: String =
            port.name.chars().filter(|c| c.is_ascii_alphanumeric() || "-./:_".contains(*c)).take(100).collect();
        // A key can lead to one chain only: the first service has it.
        for ip in port.addresses.iter().filter(|ip| taken.insert((Some(**ip), protocol, port.port))) {
            ports.push(format!("{ip} . {protocol} . {} comment \"{comment}\" : goto s{index}", port.port));
        }
        if let Some(node) = port.node_port.filter(|node| taken.insert((None, protocol, *node))) {
            nodes.push(format!("{protocol} . {node} comment \"{comment}\" : goto s{index}"));
        }
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("\n    elements = {{ {} }}", list.join(", ")),
    };
    let (ports, nodes) = (elements(&ports), elements(&nodes));
    format!(
        r#"
add table inet {table}
delete table inet {table}
table inet {table} {{
  comment "services of coracle on {bridge}"
{chains}  map ports {{
    type ipv4_addr . inet_proto . inet_service : verdict{ports}
  }}
  map nodes {{
    type inet_proto . inet_service : verdict{nodes}
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @ports
    fib daddr type local meta l4proto . th dport vmap @nodes
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ct original ip daddr {subnet} oifname != "lo" masquerade
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmp port-unreachable
  }}
  chain refuse-input {{
    type filter hook prerouting priority dstnat + 10; policy accept;
    ip daddr {subnet} goto refuse
  }}
  chain refuse-output {{
    type filter hook output priority filter; policy accept;
    ip daddr {subnet} goto refuse
    icmp type redirect ct original ip daddr {subnet} drop
  }}
}}
"#
    )
}

/// Where a port leads, as nft's `dnat` has it.
fn target(port: &ServicePort) -> String {
    let place = |backend: &SocketAddrV4| format!("{} . {}", backend.ip(), backend.port());
    let list = |places: Vec<String>| {
        let numbered: Vec<String> =
            places.iter().enumerate().map(|(slot, place)| format!("{slot} : {place}")).collect();
        numbered.join(", ")
    };
    match port.backends.as_slice() {
        [only] => format!("{}:{}", only.ip(), only.port()),
        all if port.sticky => {
            let slots = (0..SLOTS).map(|slot| place(heaviest(all, slot)));
            format!("jhash ip saddr mod {SLOTS} seed 0x{:x} map {{ {} }}", 0xc0_7ac1e, list(slots.collect()))
        }
        all => {
            let places: Vec<String> = all.iter().map(place).collect();
            format!("numgen inc mod {} map {{ {} }}", places.len(), list(places))
        }
    }
}

/// The backend that a slot of clients falls to: rendezvous hashing.
fn heaviest(backends: &[SocketAddrV4], slot: u32) -> &SocketAddrV4 {
    let weight = |backend: &&SocketAddrV4| {
        let [a, b, c, d] = backend.ip().octets();
        let [e, f] = backend.port().to_be_bytes();
        let bytes = [a, b, c, d, e, f].into_iter().chain(slot.to_be_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        // FNV alone leaves the high bits of short inputs too much alike.
        let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (mixed ^ (mixed >> 33), **backend)
    };
    backends.iter().max_by_key(weight).expect("there are several")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(backends: &[&str], sticky: bool) -> ServicePort {
        ServicePort {
            name: "default/web:http".into(),
            addresses: vec![Ipv4Addr::new(10, 96, 0, 5)],
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            sticky,
            backends: backends.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn one_pod_needs_no_choice_and_several_take_turns() {
        assert_eq!(target(&port(&["10.88.0.5:8080"], false)), "10.88.0.5:8080");
        assert_eq!(
            target(&port(&["10.88.0.5:8080", "10.88.0.6:81"], false)),
            "numgen inc mod 2 map { 0 : 10.88.0.5 . 8080, 1 : 10.88.0.6 . 81 }"
        );
    }

    #[test]
    fn a_pod_that_goes_moves_only_its_own_clients() {
        let all: Vec<SocketAddrV4> =
            (1..=4).map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 88, 0, host), 80)).collect();
        let slots = |backends: &[SocketAddrV4]| (0..SLOTS).map(|s| *heaviest(backends, s)).collect::<Vec<_>>();
        let (four, three) = (slots(&all), slots(&all[..3]));
        for (before, after) in four.iter().zip(&three) {
            assert!(before == after || *before == all[3], "{before} moved to {after}");
        }
        for pod in &all {
            let share = four.iter().filter(|one| *one == pod).count();
            assert!((4..=32).contains(&share), "{pod} has {share} of {SLOTS}");
        }
    }

    #[test]
    fn what_two_services_claim_the_first_has() {
        let services = Services {
            subnet: "10.96.0.0/16".parse().unwrap(),
            ports: vec![port(&["10.88.0.5:1"], false), port(&["10.88.0.6:1"], false), port(&[], false)],
        };
        let text = rules("b0", &services);
        assert_eq!(text.matches("10.96.0.5 . tcp . 80 comment").count(), 1, "{text}");
        assert!(text.contains("goto s0"), "{text}");
    }
}
