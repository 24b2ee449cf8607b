//! Which configurations we can do ourselves: `bridge` with `host-local`, and after it `portmap` or nothing.
//!
//! The plugins have many more settings than are known here, and get new ones; a setting that is not known, and a known
//! one of a value for which we are not sure to do the same, means that the plugins are run. That is never wrong, only
//! slower.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::conf::{Conf, Plugin};
use super::super::result::parse_net;
use crate::net::{INTERFACE_NAME_MAX, IpNet};
use crate::types::PortMapping;

/// Where host-local keeps addresses, a folder for each network.
const DATA_DIR: &str = "/var/lib/cni/networks";
const BRIDGE: &str = "cni0";

/// Where a plugin's addresses are kept, if `host-local` is who keeps them.
fn store_dir(plugin: &Plugin, network: &str) -> Option<PathBuf> {
    let ipam = plugin.body.get("ipam")?;
    let dir = ipam.get("dataDir").and_then(Value::as_str).filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR);
    (ipam.get("type")?.as_str()? == "host-local").then(|| Path::new(dir).join(network))
}

/// Where a network's addresses are kept by `host-local`, as far as its configuration tells. A plugin without an `ipam` (flannel,
/// and others that have the work done by a plugin of their choice) keeps them in the usual place if anywhere: that is only
/// looked at when it is there.
pub(in crate::net::cni) fn store_dirs(plugins: &[Plugin], network: &str) -> Vec<PathBuf> {
    dirs_with(plugins, network, Path::new(DATA_DIR))
}

fn dirs_with(plugins: &[Plugin], network: &str, usual: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = plugins.iter().filter_map(|plugin| store_dir(plugin, network)).collect();
    if plugins.iter().all(|plugin| plugin.body.get("ipam").is_none()) {
        dirs.push(usual.join(network));
    }
    dirs.retain(|dir| dir.is_dir());
    dirs
}

/// What to do in the plugins' place.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::net::cni) struct Plan {
    pub(super) bridge: String,
    pub(super) mtu: Option<u32>,
    /// The bridge has the gateways' addresses, and the host forwards.
    pub(super) gateway: bool,
    /// Another address of the bridge gives way to the gateway's.
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    /// The resolver settings as they were written.
    pub(super) dns: Value,
    /// Where the network's addresses are kept.
    pub(super) store: PathBuf,
    /// The sets of ranges, in order: a pod gets an address of each. At most one of a family.
    pub(super) sets: Vec<RangeSet>,
    pub(super) routes: Vec<Route>,
    /// hostPorts are mapped.
    pub(super) portmap: Option<Portmap>,
}

/// Ranges of one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeSet {
    pub(super) subnet: IpNet,
    pub(super) gateway: IpAddr,
    /// First and last address of each range.
    pub(super) ranges: Vec<(IpAddr, IpAddr)>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: IpNet,
    /// `None` takes the gateway of the address's range.
    pub(super) gateway: Option<IpAddr>,
}

/// How hostPorts are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portmap {
    /// What comes from the host's loopback or the pod's own subnet carries the bridge's address.
    pub(super) snat: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)] // the plugins' names
struct Bridge {
    #[serde(rename = "type")]
    _type: String,
    #[serde(rename = "name", default)]
    _name: Option<String>,
    #[serde(rename = "cniVersion", default)]
    _version: Option<String>,
    #[serde(rename = "capabilities", default)]
    _capabilities: BTreeMap<String, bool>,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    isGateway: bool,
    #[serde(default)]
    isDefaultGateway: bool,
    #[serde(default)]
    forceAddress: bool,
    #[serde(default)]
    ipMasq: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpinMode: bool,
    #[serde(default)]
    promiscMode: bool,
    #[serde(default)]
    dns: Dns,
    ipam: Ipam,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Dns {
    nameservers: Vec<String>,
    domain: String,
    search: Vec<String>,
    options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
struct Ipam {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    subnet: Option<String>,
    #[serde(default)]
    rangeStart: Option<IpAddr>,
    #[serde(default)]
    rangeEnd: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    ranges: Vec<Vec<Range>>,
    #[serde(default)]
    routes: Vec<RawRoute>,
    #[serde(default)]
    dataDir: Option<PathBuf>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
struct Range {
    subnet: String,
    #[serde(default)]
    rangeStart: Option<IpAddr>,
    #[serde(default)]
    rangeEnd: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    dst: String,
    #[serde(default)]
    gw: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPortmap {
    #[serde(rename = "type")]
    _type: String,
    #[serde(default)]
    capabilities: BTreeMap<String, bool>,
    #[serde(default)]
    snat: Option<bool>,
}

impl Plan {
    /// The plan for a network; `None` when the plugins have to be run.
    pub(in crate::net::cni) fn of(conf: &Conf) -> Option<Plan> {
        let (bridge, portmap) = match conf.plugins.as_slice() {
            [bridge] if bridge.kind == "bridge" => (bridge, None),
            [bridge, portmap] if bridge.kind == "bridge" && portmap.kind == "portmap" => (bridge, Some(portmap)),
            _ => return None,
        };
        let portmap: Option<RawPortmap> = match portmap {
            Some(portmap) => Some(serde_json::from_value(Value::Object(portmap.body.clone())).ok()?),
            None => None,
        };
        // Without the capability the plugin is told of no ports, and does nothing.
        let portmap = portmap.filter(|raw| raw.capabilities.get("portMappings") == Some(&true));
        let raw: Bridge = serde_json::from_value(Value::Object(bridge.body.clone())).ok()?;
        let portmap = portmap.map(|raw| Portmap { snat: raw.snat.unwrap_or(true) });
        plan(raw, &conf.name, portmap)
    }

    /// Whether a pod with these hostPorts can be attached by it.
    pub(in crate::net::cni) fn fits(&self, ports: &[PortMapping]) -> bool {
        // Ports into IPv6, and those of an address of another family than the pod's, are the plugin's to understand.
        let plain = |port: &PortMapping| port.host_ip.is_none_or(|ip| ip.is_ipv4());
        let v4_only = self.sets.iter().all(|set| set.gateway.is_ipv4());
        self.portmap.is_none() || ports.is_empty() || (v4_only && ports.iter().all(plain))
    }

    /// Whether addresses or ports are translated for some pod.
    pub(in crate::net::cni) fn translates(&self) -> bool {
        self.masquerade || self.portmap.is_some()
    }

    /// The next hop of a route for a pod of this network.
    pub(super) fn next_hop(&self, route: &Route) -> Option<IpAddr> {
        let same_family = |set: &&RangeSet| set.gateway.is_ipv4() == route.to.ip.is_ipv4();
        route.gateway.or_else(|| self.sets.iter().find(same_family).map(|set| set.gateway))
    }
}

fn plan(raw: Bridge, network: &str, portmap: Option<Portmap>) -> Option<Plan> {
    let bridge = raw.bridge.unwrap_or_else(|| BRIDGE.to_owned());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let named = (1..=INTERFACE_NAME_MAX).contains(&bridge.len()) && bridge.bytes().all(plain);
    if raw.ipam.kind != "host-local" || !named || bridge.starts_with('.') || (raw.hairpinMode && raw.promiscMode) {
        return None;
    }
    let data_dir = raw.ipam.dataDir.clone().filter(|dir| !dir.as_os_str().is_empty());
    let data_dir = data_dir.unwrap_or_else(|| DATA_DIR.into());
    let sets = sets(&raw.ipam)?;
    let families: Vec<bool> = sets.iter().map(|set| set.gateway.is_ipv4()).collect();
    let mut routes = Vec::new();
    for route in &raw.ipam.routes {
        let to = network_of(&route.dst)?;
        if !families.contains(&to.ip.is_ipv4()) || route.gw.is_some_and(|gw| gw.is_ipv4() != to.ip.is_ipv4()) {
            return None;
        }
        routes.push(Route { to, gateway: route.gw });
    }
    if raw.isDefaultGateway {
        for set in &sets {
            let default = |route: &&Route| route.to.prefix == 0 && route.to.ip.is_ipv4() == set.gateway.is_ipv4();
            match routes.iter().find(default) {
                None => routes.push(Route { to: default_of(set.gateway), gateway: Some(set.gateway) }),
                Some(Route { gateway: Some(_), .. }) => {}
                // The plugin adds the same route twice, which fails.
                Some(Route { gateway: None, .. }) => return None,
            }
        }
    }
    Some(Plan {
        bridge,
        mtu: (raw.mtu > 0).then_some(raw.mtu),
        gateway: raw.isGateway || raw.isDefaultGateway,
        force_address: raw.forceAddress,
        masquerade: raw.ipMasq,
        hairpin: raw.hairpinMode,
        promiscuous: raw.promiscMode,
        dns: dns(raw.dns),
        store: data_dir.join(network),
        sets,
        routes,
        portmap,
    })
}

fn default_of(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => IpNet { ip: [0, 0, 0, 0].into(), prefix: 0 },
        IpAddr::V6(_) => IpNet { ip: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 },
    }
}

/// The settings as a result tells them: without what is empty.
fn dns(raw: Dns) -> Value {
    let mut dns = Map::new();
    for (key, list) in [("nameservers", raw.nameservers), ("search", raw.search), ("options", raw.options)] {
        if !list.is_empty() {
            dns.insert(key.into(), list.into());
        }
    }
    if !raw.domain.is_empty() {
        dns.insert("domain".into(), raw.domain.into());
    }
    dns.into()
}

/// The sets of ranges, the one in the old form first.
fn sets(ipam: &Ipam) -> Option<Vec<RangeSet>> {
    let mut raw = ipam.ranges.clone();
    let old = ipam.rangeStart.is_some() || ipam.rangeEnd.is_some() || ipam.gateway.is_some();
    match &ipam.subnet {
        Some(subnet) => raw.insert(
            0,
            vec![Range {
                subnet: subnet.clone(),
                rangeStart: ipam.rangeStart,
                rangeEnd: ipam.rangeEnd,
                gateway: ipam.gateway,
            }],
        ),
        None if old => return None,
        None => {}
    }
    let sets: Option<Vec<RangeSet>> = raw.iter().map(|set| range_set(set)).collect();
    let sets = sets.filter(|sets| !sets.is_empty())?;
    let of = |v4: bool| sets.iter().filter(|set| set.gateway.is_ipv4() == v4).count();
    (of(true) <= 1 && of(false) <= 1).then_some(sets)
}

fn range_set(raw: &[Range]) -> Option<RangeSet> {
    let mut set: Option<RangeSet> = None;
    for range in raw {
        let subnet = network_of(&range.subnet)?;
        let bits = if subnet.ip.is_ipv4() { 32 } else { 128 };
        if subnet.prefix > bits - 2 {
            return None; // too small for host-local
        }
        let base = number(subnet.ip);
        let last = base | (u128::MAX >> (128 - u32::from(bits - subnet.prefix)));
        let inside = |ip: IpAddr| ip.is_ipv4() == subnet.ip.is_ipv4() && (base..=last).contains(&number(ip));
        let first = address(base + 1, subnet.ip);
        // The last of an IPv4 subnet is its broadcast address.
        let end = address(if subnet.ip.is_ipv4() { last - 1 } else { last }, subnet.ip);
        let (start, end) = (range.rangeStart.unwrap_or(first), range.rangeEnd.unwrap_or(end));
        let gateway = range.gateway.unwrap_or(first);
        if !inside(start) || !inside(end) || !inside(gateway) || number(start) > number(end) {
            return None;
        }
        let set = set.get_or_insert_with(|| RangeSet { subnet, gateway, ranges: Vec::new() });
        if (set.subnet, set.gateway) != (subnet, gateway) {
            return None;
        }
        set.ranges.push((start, end));
    }
    set
}

/// A network without bits below its prefix.
fn network_of(text: &str) -> Option<IpNet> {
    let net = parse_net(text)?;
    if let IpAddr::V6(ip) = net.ip
        && ip.to_ipv4_mapped().is_some()
    {
        return None;
    }
    let bits = if net.ip.is_ipv4() { 32u32 } else { 128 };
    let below = u128::MAX.checked_shr(128 - bits + u32::from(net.prefix)).unwrap_or(0);
    (number(net.ip) & below == 0).then_some(net)
}

/// An address as a number.
pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The address of a number, in the family of another address.
pub(super) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
pub(in crate::net::cni) mod tests {
    use super::super::super::conf::tests::conf;
    use super::*;
    use crate::types::Protocol;

    /// The plan for a bridge with the settings `more` and the address management `ipam`.
    pub(in crate::net::cni) fn of(more: &str, ipam: &str, portmap: &str) -> Option<Plan> {
        let bridge = format!(r#"{{"type": "bridge", {more} "ipam": {{"type": "host-local", {ipam}}}}}"#);
        Plan::of(&conf(&format!(r#"{{"cniVersion": "1.0.0", "name": "net", "plugins": [{bridge}{portmap}]}}"#)))
    }

    const PORTMAP: &str = r#", {"type": "portmap", "capabilities": {"portMappings": true}}"#;

    #[test]
    fn addresses_are_found_where_a_delegating_plugin_has_them_kept() {
        let place = tempfile::tempdir().unwrap();
        let dirs = |plugins: &str| {
            let conf = conf(&format!(r#"{{"cniVersion": "0.3.1", "name": "net", "plugins": [{plugins}]}}"#));
            dirs_with(&conf.plugins, "net", place.path())
        };
        let flannel = r#"{"type": "flannel", "delegate": {"isDefaultGateway": true}}, {"type": "portmap"}"#;
        assert_eq!(dirs(flannel), Vec::<PathBuf>::new(), "they are not there");
        std::fs::create_dir(place.path().join("net")).unwrap();
        assert_eq!(dirs(flannel), [place.path().join("net")]);
        let own = format!(r#"{{"type": "macvlan", "ipam": {{"type": "host-local", "dataDir": {:?}}}}}"#, place.path());
        assert_eq!(dirs(&own), [place.path().join("net")]);
        assert_eq!(dirs(r#"{"type": "macvlan", "ipam": {"type": "dhcp"}}"#), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_common_configuration_is_done_natively() {
        let more = r#""bridge": "br1", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
            "dns": {"nameservers": ["10.1.0.1"]}, "capabilities": {"ips": true},"#;
        let ipam = r#""dataDir": "/d", "ranges": [[{"subnet": "10.22.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]"#;
        let plan = of(more, ipam, PORTMAP).unwrap();
        assert_eq!((plan.bridge.as_str(), plan.mtu, plan.gateway), ("br1", Some(1400), true));
        assert!(plan.masquerade && plan.hairpin && !plan.promiscuous);
        assert_eq!(plan.store, PathBuf::from("/d/net"));
        let set = &plan.sets[0];
        assert_eq!(set.gateway.to_string(), "10.22.0.1");
        assert_eq!(set.ranges, [("10.22.0.1".parse().unwrap(), "10.22.255.254".parse().unwrap())]);
        assert_eq!(plan.next_hop(&plan.routes[0]), Some(set.gateway));
        assert_eq!(plan.portmap, Some(Portmap { snat: true }));
        assert_eq!(plan.dns, serde_json::json!({"nameservers": ["10.1.0.1"]}));
    }

    #[test]
    fn the_old_form_of_a_range_and_two_families_are_known() {
        let ipam = r#""subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.254",
            "ranges": [[{"subnet": "fd00:1::/64"}]]"#;
        let plan = of(r#""isDefaultGateway": true,"#, ipam, "").unwrap();
        assert_eq!((plan.bridge.as_str(), plan.store), ("cni0", PathBuf::from("/var/lib/cni/networks/net")));
        assert_eq!(plan.sets[0].ranges, [("10.1.0.10".parse().unwrap(), "10.1.0.20".parse().unwrap())]);
        assert_eq!(
            plan.sets[1].ranges,
            [("fd00:1::1".parse().unwrap(), "fd00:1::ffff:ffff:ffff:ffff".parse().unwrap())]
        );
        let routes: Vec<_> = plan.routes.iter().map(|r| format!("{} {}", r.to, r.gateway.unwrap())).collect();
        assert_eq!(routes, ["0.0.0.0/0 10.1.0.254", "::/0 fd00:1::1"]);
    }

    #[test]
    fn what_is_not_known_exactly_is_left_to_the_plugins() {
        let subnet = r#""subnet": "10.1.0.0/24""#;
        assert!(of("", subnet, "").is_some());
        for more in [
            r#""vlan": 5,"#,
            r#""macspoofchk": true,"#,
            r#""enabledad": true,"#,
            r#""ipMasqBackend": "nftables","#,
            r#""args": {"cni": {"ips": []}},"#,
            r#""hairpinMode": true, "promiscMode": true,"#,
            r#""bridge": "a/b","#,
            r#""mtu": "1500","#,
            r#""portIsolation": true,"#,
        ] {
            assert!(of(more, subnet, "").is_none(), "{more}");
        }
        for ipam in [
            r#""x": 1"#,
            r#""subnet": "10.1.0.5/24""#,
            r#""subnet": "10.1.0.0/31""#,
            r#""rangeStart": "10.1.0.5""#,
            r#""subnet": "10.1.0.0/24", "resolvConf": "/etc/resolv.conf""#,
            r#""subnet": "10.1.0.0/24", "gateway": "10.2.0.1""#,
            r#""subnet": "10.1.0.0/24", "rangeEnd": "10.1.1.1""#,
            r#""subnet": "10.1.0.0/24", "routes": [{"dst": "::/0"}]"#,
            r#""subnet": "10.1.0.0/24", "routes": [{"dst": "10.0.0.1/8"}]"#,
            r#""subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}]"#,
            r#""ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]"#,
            r#""ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}]]"#,
            r#""ranges": []"#,
            r#""ranges": [[]]"#,
            r#""subnet": "::ffff:10.1.0.0/120""#,
        ] {
            assert!(of("", ipam, "").is_none(), "{ipam}");
        }
        let twice = r#""subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]"#;
        assert!(of(r#""isDefaultGateway": true,"#, twice, "").is_none());
        for more in [
            r#", {"type": "tuning"}"#,
            r#", {"type": "portmap", "conditionsV4": []}"#,
            r#", {"type": "portmap", "backend": "nftables"}"#,
            r#", {"type": "portmap"}, {"type": "firewall"}"#,
        ] {
            assert!(of("", subnet, more).is_none(), "{more}");
        }
    }

    #[test]
    fn ports_of_ipv6_are_the_plugins_and_a_portmap_without_the_capability_does_nothing() {
        let port = |ip: &str| PortMapping {
            host_ip: ip.parse().ok(),
            host_port: 1,
            container_port: 1,
            protocol: Protocol::Tcp,
        };
        let v4 = of("", r#""subnet": "10.1.0.0/24""#, PORTMAP).unwrap();
        assert!(v4.fits(&[port(""), port("127.0.0.1")]) && !v4.fits(&[port("::")]));
        let both = of("", r#""subnet": "10.1.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]]"#, PORTMAP).unwrap();
        assert!(both.fits(&[]) && !both.fits(&[port("")]));
        let without = of("", r#""subnet": "10.1.0.0/24""#, r#", {"type": "portmap", "snat": false}"#).unwrap();
        assert!(without.portmap.is_none() && without.fits(&[port("::")]));
    }
}
