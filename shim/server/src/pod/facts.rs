//! What a pod can be told of itself and of its machine: the fields and resources that variables and downward API files
//! refer to, with kubelet's rules for their text.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, gethostname, sysconf};

use super::making::Blocked;
use crate::kube::container::Container;
use crate::kube::env::{FieldPath, ResourceField};
use crate::kube::pod::Pod;
use crate::kube::quantity::Quantity;
use crate::objects::{Kind, Objects};

/// The ServiceAccount of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";
/// Addresses that lead outside, whichever they are: no packet is sent to them.
const OUTSIDE: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// What is known of a pod when one of its containers starts.
#[derive(Debug)]
pub struct Facts<'f> {
    /// The pod.
    pub pod: &'f Pod,
    /// Its uid.
    pub uid: &'f str,
    /// What it refers to.
    pub objects: &'f Objects,
    /// Its addresses; empty in the machine's network.
    pub ips: &'f [IpAddr],
    /// The variables of Services.
    pub services: Vec<(String, String)>,
}

impl Facts<'_> {
    /// The text of a field.
    pub fn field(&self, path: &FieldPath) -> Result<String> {
        let pod = self.pod;
        let first = |ips: Vec<IpAddr>| ips.first().map(IpAddr::to_string).unwrap_or_default();
        let all = |ips: Vec<IpAddr>| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        Ok(match path {
            FieldPath::Name => pod.name.clone(),
            FieldPath::Namespace => pod.namespace.clone(),
            FieldPath::Uid => self.uid.to_owned(),
            FieldPath::Labels => format_map(&pod.labels),
            FieldPath::Annotations => format_map(&pod.annotations),
            FieldPath::Label(key) => pod.labels.get(key).cloned().unwrap_or_default(),
            FieldPath::Annotation(key) => pod.annotations.get(key).cloned().unwrap_or_default(),
            FieldPath::NodeName => node_name()?,
            FieldPath::ServiceAccountName => pod.service_account.clone().unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
            FieldPath::HostIp => first(host_ips()),
            FieldPath::HostIps => all(host_ips()),
            FieldPath::PodIp => first(self.pod_ips()),
            FieldPath::PodIps => all(self.pod_ips()),
        })
    }

    /// A pod in the machine's network has the machine's addresses.
    fn pod_ips(&self) -> Vec<IpAddr> {
        match self.pod.host_network {
            true => host_ips(),
            false => self.ips.to_vec(),
        }
    }

    /// The text of a resource, for a container that may be meant by leaving its name out.
    pub fn resource(&self, field: &ResourceField, own: Option<&Container>) -> Result<String> {
        let container = match &field.container {
            Some(name) => self.pod.all_containers().find(|container| container.name == *name),
            None => own,
        };
        let container = container.context("the container of a resourceFieldRef")?;
        let (kind, name) = field.resource.split_once('.').unwrap_or(("limits", &field.resource));
        let amount = match kind {
            "requests" => container.resources.requests.get(name).copied(),
            _ => match container.resources.limits.get(name).filter(|limit| limit.value() > 0) {
                Some(limit) => Some(*limit),
                None => self.without_limit(name)?,
            },
        };
        Ok(in_units(name, amount, field.divisor))
    }

    /// What a container without a limit may take: what the pod may, or all that the machine has.
    fn without_limit(&self, name: &str) -> Result<Option<Quantity>> {
        let of_pod = self.pod.resources.as_ref().and_then(|resources| resources.limits.get(name).copied());
        let amount = match (of_pod, name) {
            (Some(limit), _) => return Ok(Some(limit)),
            (None, "cpu") => sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1).to_string(),
            (None, "memory") => memory()?.to_string(),
            (None, "ephemeral-storage") => disk()?.to_string(),
            // Nobody can have huge pages without a limit.
            _ => return Ok(None),
        };
        Ok(Quantity::parse(&amount).ok())
    }

    /// The object that something refers to, or kubelet's words for its absence.
    pub fn object<K: Kind>(&self, name: &str, optional: bool, reason: &'static str) -> Result<Option<K>> {
        let found = self.objects.get::<K>(&self.pod.namespace, name)?;
        if found.is_none() && !optional {
            let message = format!("{} {name:?} not found", K::KIND.to_lowercase());
            return Err(Blocked::new(reason, message).into());
        }
        Ok(found)
    }
}

/// An amount in units of a divisor, rounded up: processors are counted in thousandths, all else in ones.
fn in_units(name: &str, amount: Option<Quantity>, divisor: Quantity) -> String {
    let count = |quantity: Quantity| if name == "cpu" { quantity.milli() } else { quantity.value() };
    let (amount, divisor) = (amount.map_or(0, count), count(divisor));
    let divisor = match (divisor, name) {
        (0, "cpu") => 1000,
        (0, _) => 1,
        (divisor, _) => divisor,
    };
    (amount.div_euclid(divisor) + i64::from(amount.rem_euclid(divisor) != 0)).to_string()
}

/// The machine's name, as a node has it.
fn node_name() -> Result<String> {
    let name = gethostname().context("ask for the machine's name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

/// The machine's addresses: those from which it speaks to the outside, of each family the one; else any it has.
pub fn host_ips() -> Vec<IpAddr> {
    let ask = |(from, to): (&str, &str)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    let found: Vec<IpAddr> = OUTSIDE.into_iter().filter_map(ask).collect();
    match found.is_empty() {
        false => found,
        true => any_address().into_iter().collect(),
    }
}

/// The first address of an interface that is not the loopback, else the loopback's.
fn any_address() -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    let of = |address: nix::ifaddrs::InterfaceAddress| {
        let address = address.address?;
        address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))
    };
    let (loopback, others): (Vec<IpAddr>, Vec<IpAddr>) = addresses.filter_map(of).partition(IpAddr::is_loopback);
    others.into_iter().chain(loopback).next()
}

/// The machine's bytes of memory.
pub fn memory() -> Result<u64> {
    const MEMINFO: &str = "/proc/meminfo";
    let text = fs::read_to_string(MEMINFO).with_context(|| format!("read {MEMINFO}"))?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let kib: u64 = total.and_then(|kib| kib.parse().ok()).with_context(|| format!("read {MEMINFO}: no MemTotal"))?;
    Ok(kib << 10)
}

/// The bytes of the disk that holds the root.
fn disk() -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs("/").context("ask for the size of /")?;
    Ok(stat.blocks().saturating_mul(stat.fragment_size()))
}

/// Labels or annotations as a file has them: a line for each, the value quoted as Go does.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", go_quoted(value))).collect();
    lines.join("\n")
}

fn go_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            ' '..='~' => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            // What Rust would not escape is what can be printed.
            c if c.escape_debug().count() == 1 && !c.is_whitespace() => out.push(c),
            c if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).unwrap()
    }

    #[test]
    fn amounts_are_rounded_up_to_their_unit() {
        for (name, amount, divisor, text) in [
            ("cpu", "250m", "1", "1"),
            ("cpu", "250m", "1m", "250"),
            ("cpu", "2", "0", "2"),
            ("cpu", "1500m", "1", "2"),
            ("memory", "64Mi", "1", "67108864"),
            ("memory", "64Mi", "1Mi", "64"),
            ("memory", "100M", "1Mi", "96"),
            ("memory", "1", "0", "1"),
            ("ephemeral-storage", "1Gi", "1Gi", "1"),
        ] {
            assert_eq!(in_units(name, Some(q(amount)), q(divisor)), text, "{name} {amount}/{divisor}");
        }
        assert_eq!(in_units("cpu", None, q("1m")), "0");
    }

    #[test]
    fn maps_are_lines_quoted_as_go_does() {
        let map = [("b", "x\"y\\z\n"), ("a", "plain"), ("c", "\u{1}ä\u{a0}\u{200b}😀")];
        let map = map.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(format_map(&map), "a=\"plain\"\nb=\"x\\\"y\\\\z\\n\"\nc=\"\\x01ä\\u00a0\\u200b😀\"");
    }

    #[test]
    fn the_machine_has_a_name_an_address_and_memory() {
        assert!(!node_name().unwrap().is_empty());
        assert!(memory().unwrap() > 1 << 20 && disk().unwrap() > 1 << 20);
        assert!(!host_ips().is_empty());
    }
}
