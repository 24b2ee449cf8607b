//! Which Service has which cluster address and which ports of the machine. What was given once stays for as long as the
//! Service does; it is kept as an object of its own, so that applying the same file again changes nothing.
//!
//! Addresses begin with a Service's own place in the subnet (a hash of its name), so that one that is deleted and made
//! again is likely to have its old address. The first part of the subnet is left to addresses that files name, as in
//! Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use coracle_engine::net::Subnet;
use serde::{Deserialize, Serialize};

use crate::kube::container::Protocol;
use crate::kube::meta::Meta;
use crate::kube::service::{ClusterIp, Port, Service, Type};
use crate::objects::Kind;

/// Kubernetes' ports of the machine for Services.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Most addresses that are left to files.
const MOST_STATIC: u32 = 256;
/// Least of them: the DNS server's is one.
const LEAST_STATIC: u32 = 16;

/// What a Service was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// The Service's.
    pub meta: Meta,
    /// Its cluster address.
    pub ip: Option<Ipv4Addr>,
    /// The machine's port of each of its ports, by `PORT/PROTOCOL`.
    #[serde(default)]
    pub node_ports: BTreeMap<String, u16>,
}

impl Kind for Allocated {
    const KIND: &'static str = "ServiceAllocation";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Allocated {
    /// The machine's port that leads to a port of the Service.
    pub fn node_port(&self, port: &Port) -> Option<u16> {
        self.node_ports.get(&key(port)).copied()
    }
}

fn key(port: &Port) -> String {
    format!("{}/{}", port.port, port.protocol)
}

fn has_address(service: &Service) -> bool {
    service.kind != Type::ExternalName && service.cluster_ip != ClusterIp::Headless
}

fn has_node_ports(service: &Service) -> bool {
    matches!(service.kind, Type::NodePort | Type::LoadBalancer)
}

/// The address that a Service's file names.
fn given(service: &Service) -> Option<IpAddr> {
    match service.cluster_ip {
        ClusterIp::Given(ip) if has_address(service) => Some(ip),
        _ => None,
    }
}

/// Why a Service cannot be what it wants to be beside `others`, if so.
pub fn check(service: &Service, others: &[Service], subnet: Subnet, dns: Ipv4Addr) -> Result<(), String> {
    let others = || others.iter().filter(|other| !same(&other.meta, &service.meta));
    let whose = |other: &Service| format!("Service {}/{}", other.meta.namespace, other.meta.name);
    match given(service) {
        Some(IpAddr::V6(ip)) => return Err(format!("spec.clusterIP: {ip}: the pod network is IPv4 only")),
        Some(IpAddr::V4(ip)) if !subnet.contains(ip) || ip == subnet.nth(0) || ip == subnet.nth(subnet.last()) => {
            return Err(format!("spec.clusterIP: {ip} is not in {subnet} (service_subnet in [network] of the config)"));
        }
        Some(IpAddr::V4(ip)) if ip == dns => {
            return Err(format!("spec.clusterIP: {ip} is the address of the DNS server"));
        }
        Some(ip) => {
            if let Some(other) = others().find(|other| given(other) == Some(ip)) {
                return Err(format!("spec.clusterIP: {ip} is that of {} already", whose(other)));
            }
        }
        None => {}
    }
    for (index, port) in service.ports.iter().enumerate() {
        let Some(node) = port.node_port else { continue };
        if !NODE_PORTS.contains(&node) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            return Err(format!("spec.ports[{index}].nodePort: {node} is not from {first} to {last}"));
        }
        let taken = |other: &&Service| {
            other.ports.iter().any(|theirs| theirs.node_port == Some(node) && theirs.protocol == port.protocol)
        };
        if let Some(other) = others().find(taken) {
            return Err(format!("spec.ports[{index}].nodePort: {node} is that of {} already", whose(other)));
        }
    }
    Ok(())
}

fn same(one: &Meta, other: &Meta) -> bool {
    (&one.namespace, &one.name) == (&other.namespace, &other.name)
}

/// What each Service has, in their order. `busy` tells of a port of the machine that is somebody else's.
pub fn allocate(
    services: &[Service],
    before: &[Allocated],
    subnet: Subnet,
    dns: Ipv4Addr,
    busy: impl Fn(u16, Protocol) -> bool,
) -> Vec<Allocated> {
    let mut ips: BTreeSet<Ipv4Addr> = [dns, subnet.nth(0), subnet.nth(1), subnet.nth(subnet.last())].into();
    let mut ports: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    // What files name comes first, then what was given earlier, and then what is free.
    let old = |service: &Service| before.iter().find(|old| same(&old.meta, &service.meta));
    let mut fixed: Vec<Option<Ipv4Addr>> = Vec::new();
    for service in services {
        let named = match given(service) {
            Some(IpAddr::V4(ip)) => Some(ip).filter(|ip| subnet.contains(*ip) && ips.insert(*ip)),
            _ => None,
        };
        fixed.push(named);
        if has_node_ports(service) {
            ports.extend(service.ports.iter().filter_map(|port| Some((port.node_port?, port.protocol))));
        }
    }
    for (service, fixed) in services.iter().zip(&mut fixed) {
        if has_address(service) && given(service).is_none() {
            *fixed = old(service).and_then(|old| old.ip).filter(|ip| subnet.contains(*ip) && ips.insert(*ip));
        }
    }
    let mut kept_ports = Vec::new();
    for service in services {
        let wants = service.ports.iter().filter(|port| has_node_ports(service) && port.node_port.is_none());
        let kept: BTreeMap<String, u16> = wants
            .filter_map(|port| Some((key(port), old(service)?.node_port(port)?, port.protocol)))
            .filter(|(_, node, protocol)| ports.insert((*node, *protocol)))
            .map(|(key, node, _)| (key, node))
            .collect();
        kept_ports.push(kept);
    }
    let mut out = Vec::new();
    for ((service, fixed), mut node_ports) in services.iter().zip(fixed).zip(kept_ports) {
        let name = format!("{}/{}", service.meta.namespace, service.meta.name);
        let mut ip = fixed;
        if ip.is_none() && has_address(service) && given(service).is_none() {
            ip = free_address(subnet, hash(&name), &ips);
            ips.extend(ip);
        }
        for port in service.ports.iter().filter(|_| has_node_ports(service)) {
            let node = port.node_port.or_else(|| node_ports.get(&key(port)).copied()).or_else(|| {
                let taken = |node| ports.contains(&(node, port.protocol)) || busy(node, port.protocol);
                free_port(hash(&format!("{name}:{}", key(port))), taken)
            });
            if let Some(node) = node {
                ports.insert((node, port.protocol));
                node_ports.insert(key(port), node);
            }
        }
        let meta =
            Meta { name: service.meta.name.clone(), namespace: service.meta.namespace.clone(), ..Meta::default() };
        out.push(Allocated { meta, ip, node_ports });
    }
    out
}

fn free_address(subnet: Subnet, start: u32, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let size = subnet.last();
    let first = (size / 16).clamp(LEAST_STATIC, MOST_STATIC);
    let dynamic = size.saturating_sub(first);
    let turn = (0..dynamic).map(|n| first + (start % dynamic.max(1) + n) % dynamic.max(1));
    turn.chain(1..first).map(|offset| subnet.nth(offset)).find(|ip| !taken.contains(ip))
}

fn free_port(start: u32, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let count = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
    let port = |n: u32| NODE_PORTS.start() + u16::try_from((start % count + n) % count).unwrap_or_default();
    (0..count).map(port).find(|port| !taken(*port))
}

/// FNV-1a.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    fn subnet() -> Subnet {
        "10.96.0.0/16".parse().unwrap()
    }

    fn services(text: &str) -> Vec<Service> {
        crate::kube::service::services(text).unwrap()
    }

    fn service(name: &str, spec: &str) -> Service {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n"
        );
        services(&text).remove(0)
    }

    fn given_to(services: &[Service], before: &[Allocated]) -> Vec<Allocated> {
        allocate(services, before, subnet(), DNS, |_, _| false)
    }

    #[test]
    fn what_was_given_stays_whatever_comes_beside() {
        let (a, b) = (service("a", "type: NodePort"), service("b", "type: ClusterIP"));
        let first = given_to(std::slice::from_ref(&a), &[]);
        assert!(first[0].ip.is_some_and(|ip| subnet().contains(ip) && ip != DNS), "{first:?}");
        assert!(first[0].node_port(&a.ports[0]).is_some_and(|port| NODE_PORTS.contains(&port)));
        let both = given_to(&[b, a.clone()], &first);
        assert_eq!(both[1], first[0]);
        assert_ne!(both[0].ip, both[1].ip);
        assert_eq!(given_to(&[a], &[])[0].ip, first[0].ip, "the same name, the same place");
    }

    #[test]
    fn a_file_that_names_an_address_has_it_and_who_had_it_moves() {
        let a = service("a", "type: ClusterIP");
        let first = given_to(std::slice::from_ref(&a), &[]);
        let ip = first[0].ip.unwrap();
        let b = service("b", &format!("clusterIP: {ip}"));
        let both = given_to(&[a, b], &first);
        assert_eq!(both[1].ip, Some(ip));
        assert!(both[0].ip.is_some_and(|other| other != ip));
    }

    #[test]
    fn headless_services_and_aliases_have_no_address() {
        let alias = service("c", "type: ExternalName, externalName: example.com");
        let given = given_to(&[service("a", "clusterIP: None"), alias], &[]);
        assert!(given.iter().all(|given| given.ip.is_none()));
    }

    #[test]
    fn what_cannot_be_is_told_by_its_field() {
        let told = |spec: &str, others: &[Service]| check(&service("a", spec), others, subnet(), DNS).unwrap_err();
        assert!(told("clusterIP: 10.43.0.1", &[]).contains("spec.clusterIP: 10.43.0.1 is not in 10.96.0.0/16"));
        assert!(told("clusterIP: 10.96.0.10", &[]).contains("DNS"));
        assert!(told("clusterIP: 'fd00::1'", &[]).contains("IPv4"));
        let other = service("b", "clusterIP: 10.96.0.77");
        assert!(told("clusterIP: 10.96.0.77", &[other]).contains("default/b"));
        assert!(
            check(&service("a", "clusterIP: 10.96.0.77"), &[service("a", "clusterIP: 10.96.0.77")], subnet(), DNS)
                .is_ok()
        );
        let low = services(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}\n",
        );
        assert!(
            check(&low[0], &[], subnet(), DNS).unwrap_err().contains("spec.ports[0].nodePort: 80 is not from 30000")
        );
    }

    proptest! {
        #[test]
        fn no_two_have_the_same(names in proptest::collection::btree_set("[a-e]{1,3}x", 0..20), small in any::<bool>()) {
            let subnet: Subnet = if small { "10.96.0.0/26" } else { "10.96.0.0/16" }.parse().unwrap();
            let all: Vec<Service> = names.iter().map(|name| service(name, "type: NodePort")).collect();
            let given = allocate(&all, &[], subnet, DNS, |_, _| false);
            let ips: BTreeSet<_> = given.iter().filter_map(|given| given.ip).collect();
            let ports: BTreeSet<_> = given.iter().flat_map(|given| given.node_ports.values()).collect();
            prop_assert_eq!((ips.len(), ports.len()), (all.len(), all.len()));
            prop_assert!(ips.iter().all(|ip| subnet.contains(*ip) && *ip != DNS));
        }
    }
}
