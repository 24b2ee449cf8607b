//! `bridge`, `host-local` and `portmap` without running them: the same interfaces, addresses, routes and translation,
//! over netlink, in the time of the embedded network. Running plugins is most of a pod's start time.
//!
//! | file | job |
//! |---|---|
//! | `plan` | which configurations we know exactly |
//! | `store` | addresses, in host-local's own files |
//! | `table` | masquerade and hostPorts |
//!
//! What differs from the plugins, and does not show: the host's end of the pair is named after the sandbox and not at
//! random; hardware addresses follow the pod's address; the rules are nftables' and not iptables'; an IPv6 address is
//! not probed for duplicates, on the bridge either; nobody reaches the host's loopback by `route_localnet`.

mod plan;
mod store;
mod table;

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::conf::Version;
use super::record::{How, Record, Records};
use crate::net::kernel::{Kernel, Pool, inside, up};
use crate::net::link::{self, Link, Mac, Veth};
use crate::net::nl::Socket;
use crate::net::{Attach, Attachment, Error, IpNet, POD_INTERFACE, conntrack, nft};
use crate::types::{PortMapping, Protocol};
use plan::number;
pub(super) use plan::{Plan, store_dirs};
use store::Owner;
pub(super) use store::Store;
use table::Table;

/// The kernel's MTU of a veth pair, which the plugin takes, too.
const VETH_MTU: u32 = 1500;
const V4_FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const V6_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// What an attachment has, for its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) version: Version,
    pub(super) bridge: String,
    /// The host's end of the pair.
    pub(super) link: String,
    /// The pod's network namespace, as its creator called it.
    pub(super) netns: PathBuf,
    /// Where the addresses are kept.
    pub(super) store: PathBuf,
    pub(super) ips: Vec<IpNet>,
    pub(super) masquerade: bool,
    /// hostPorts are mapped; whether what comes from near carries the bridge's address.
    pub(super) portmap: Option<bool>,
    /// What the plugins would have answered.
    #[serde(default)]
    pub(super) result: Option<Value>,
}

/// Makes attachments in the plugins' place.
pub(super) struct Native {
    kernels: Arc<Pool>,
    table: Table,
}

impl Native {
    pub(super) fn new(kernels: Arc<Pool>) -> Native {
        Native { kernels, table: Table::default() }
    }

    /// What an attachment will have, as far as that is known before anything is done.
    pub(super) fn intend(&self, plan: &Plan, version: Version, attach: &Attach) -> Held {
        Held {
            version,
            bridge: plan.bridge.clone(),
            link: link_name(attach.sandbox),
            netns: attach.netns.to_owned(),
            store: plan.store.clone(),
            ips: Vec::new(),
            masquerade: plan.masquerade,
            portmap: plan.portmap.map(|portmap| portmap.snat),
            result: None,
        }
    }

    /// Makes what `record` intends, and writes into it what came of it before the kernel is changed for it.
    pub(super) fn attach(
        &self,
        plan: &Plan,
        record: &mut Record,
        netns: &File,
        records: &Records,
    ) -> Result<Attachment, Error> {
        let Record { sandbox, ports, how: How::Native(held), .. } = record else {
            unreachable!("a native record");
        };
        let kernel = &mut *self.kernels.kernel()?;
        let mut notes = Vec::new();
        let bridge = self.bridge(plan, &mut kernel.route, records, &mut notes)?;
        let owner = Owner { container: sandbox, ifname: POD_INTERFACE };
        held.ips = Store::open(&held.store)?.reserve(&plan.sets, owner)?;
        held.result = Some(result(plan, held, &bridge));
        let (held, ports) = (held.clone(), ports.clone());
        records.write(record)?;

        forward(plan, &mut notes)?;
        let made = |kernel: &mut Kernel| -> Result<(), Error> {
            self.connect(plan, &mut kernel.route, &held, bridge.index, netns)?;
            self.translate(kernel, &held, &ports, records)
        };
        made(kernel)?;
        let mut ips = held.ips.clone();
        ips.sort_by_key(|net| net.ip.is_ipv6());
        Ok(Attachment {
            ifname: POD_INTERFACE.to_owned(),
            mac: text(&pod_mac(&held.ips)),
            gateway: plan.sets.first().map(|set| set.gateway),
            dns: held.result.as_ref().and_then(|result| super::result::place(result, POD_INTERFACE).dns),
            ips,
            notes,
        })
    }

    /// The bridge, made or checked, with the gateways' addresses.
    fn bridge(
        &self,
        plan: &Plan,
        route: &mut Socket,
        records: &Records,
        notes: &mut Vec<String>,
    ) -> Result<Link, Error> {
        let name = &plan.bridge;
        let doing = |what: &str| format!("{what} bridge {name}");
        let look = |route: &mut Socket| link::find(route, name).map_err(|e| Error::kernel(doing("look up"), e));
        let found = match look(route)? {
            Some(link) => link,
            None => {
                let gateway: Vec<IpNet> = plan.sets.iter().map(|set| IpNet { ip: set.gateway, prefix: 0 }).collect();
                match link::add_bridge(route, name, pod_mac(&gateway), plan.mtu) {
                    Err(e) if e.errno != Errno::EEXIST => return Err(Error::kernel(doing("make"), e)),
                    _ => notes.push(format!("made bridge {name}")),
                }
                let link = look(route)?.ok_or_else(|| Error::kernel(doing("look up"), Errno::ENODEV.into()))?;
                bring_home(route, &link, records)?;
                link
            }
        };
        if found.kind != "bridge" {
            return Err(Error::Invalid(format!("{name} exists and is no bridge but {:?}", found.kind)));
        }
        if plan.promiscuous && !found.is_promiscuous() {
            link::set_promiscuous(route, found.index).map_err(|e| Error::kernel(doing("make promiscuous"), e))?;
        }
        if !found.is_up() {
            // As the plugin does, and as it does without asking for success.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
            link::set_up(route, found.index, true).map_err(|e| Error::kernel(doing("set up"), e))?;
        }
        if plan.gateway {
            gateways(plan, route, found.index)?;
        }
        Ok(found)
    }

    /// Makes the pair and sets up the pod's end.
    fn connect(&self, plan: &Plan, host: &mut Socket, held: &Held, bridge: u32, netns: &File) -> Result<(), Error> {
        let veth = Veth {
            name: &held.link,
            bridge,
            mtu: plan.mtu.unwrap_or(VETH_MTU),
            hairpin: plan.hairpin,
            mac: Some(host_mac(&held.ips)),
            peer_name: POD_INTERFACE,
            peer_mac: pod_mac(&held.ips),
            peer_netns: netns.as_fd(),
        };
        inside(netns, || set_up_pod(plan, host, held, &veth))?;
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_ra", held.link), "0");
        Ok(())
    }

    /// Masquerade and hostPorts.
    fn translate(
        &self,
        kernel: &mut Kernel,
        held: &Held,
        ports: &[PortMapping],
        records: &Records,
    ) -> Result<(), Error> {
        let mapped = held.portmap.is_some() && !ports.is_empty();
        if !held.masquerade && !mapped {
            return Ok(());
        }
        self.table.prepare(&mut kernel.filter, held, || {
            let all = records.all()?.into_iter();
            Ok(all
                .filter_map(|record| match record.how {
                    How::Native(held) => Some((held, record.ports)),
                    How::Exec(_) => None,
                })
                .collect())
        })?;
        if mapped && held.portmap == Some(true) {
            let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", held.bridge);
            fs::write(&path, "1").map_err(|e| Error::file("write", path.as_ref(), e))?;
        }
        table::add(&mut kernel.filter, held, ports)?;
        if mapped && ports.iter().any(|port| port.protocol == Protocol::Udp) {
            let forgotten = link::all_addresses(&mut kernel.route)
                .and_then(|local| conntrack::forget_host_flows(&mut kernel.filter, ports, &local));
            forgotten.map_err(|e| Error::kernel(format!("forget UDP flows to hostPorts of {}", held.link), e))?;
        }
        Ok(())
    }

    /// Undoes an attachment, however much of it was made. The pod's link is only set down: see `embedded`. Until what it
    /// returns is dropped, nobody puts its hostPorts back: the caller forgets the record before that.
    pub(super) fn detach(&self, record: &Record, held: &Held) -> Result<impl Sized + '_, Error> {
        let kernel = &mut *self.kernels.kernel()?;
        let settled = self.table.hold();
        table::remove(&mut kernel.filter, held, &record.ports)?;
        if record.ports.iter().any(|port| port.protocol == Protocol::Udp) {
            for ip in held.ips.iter().filter_map(|net| if let IpAddr::V4(ip) = net.ip { Some(ip) } else { None }) {
                conntrack::forget_pod_flows(&mut kernel.filter, ip)
                    .map_err(|e| Error::kernel(format!("forget UDP flows to {ip}"), e))?;
            }
        }
        let look = link::find(&mut kernel.route, &held.link);
        let link = look.map_err(|e| Error::kernel(format!("look up {}", held.link), e))?;
        if let Some(link) = link.filter(|link| link.kind == "veth") {
            match link::set_up(&mut kernel.route, link.index, false) {
                Err(e) if e.errno != Errno::ENODEV => return Err(Error::kernel(format!("set down {}", held.link), e)),
                _ => {}
            }
        }
        if held.store.is_dir() {
            let owner = Owner { container: &record.sandbox, ifname: &record.ifname };
            Store::open(&held.store)?.release(&held.ips, owner)?;
        }
        Ok(settled)
    }

    /// Removes the table; no attachment may be there.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let filter = &mut self.kernels.kernel()?.filter;
        let there = nft::exists(filter, table::TABLE);
        match there.map_err(|e| Error::kernel(format!("look up nftables table {}", table::TABLE), e))? {
            true => nft::remove(table::TABLE),
            false => Ok(()),
        }
    }

    /// Whether an attachment still is what it was made.
    pub(super) fn check(&self, record: &Record, held: &Held, netns: &File) -> Result<(), Error> {
        let missing = |what: String| Error::Invalid(format!("CNI network {}: {what}", record.network));
        let store = Store::open(&held.store)?;
        let owner = Owner { container: &record.sandbox, ifname: &record.ifname };
        if let Some(net) = held.ips.iter().find(|net| !store.holds(net.ip, owner)) {
            return Err(missing(format!("address {net} is not the pod's any more in {}", held.store.display())));
        }
        let mut host = self.kernels.kernel()?;
        let looked = link::find(&mut host.route, &held.link);
        if looked.map_err(|e| Error::kernel(format!("look up {}", held.link), e))?.is_none() {
            return Err(missing(format!("interface {} is gone", held.link)));
        }
        inside(netns, || {
            let mut pod = Socket::route().map_err(|e| Error::kernel("open a netlink socket in the pod", e))?;
            let doing = |e| Error::kernel("look at eth0 in the pod", e);
            let Some(link) = link::find(&mut pod, &record.ifname).map_err(doing)?.filter(Link::is_up) else {
                return Err(missing(format!("{} in the pod is gone or down", record.ifname)));
            };
            let there = link::nets(&mut pod, link.index).map_err(doing)?;
            match held.ips.iter().find(|net| !there.contains(net)) {
                Some(net) => Err(missing(format!("{} in the pod has lost its address {net}", record.ifname))),
                None => Ok(()),
            }
        })
    }
}

/// Puts the links of attachments that are there on a bridge that was made anew.
fn bring_home(route: &mut Socket, bridge: &Link, records: &Records) -> Result<(), Error> {
    for record in records.all()? {
        let How::Native(held) = record.how else { continue };
        let doing = |e| Error::kernel(format!("put {} on bridge {}", held.link, bridge.name), e);
        if held.bridge == bridge.name
            && let Some(link) = link::find(route, &held.link).map_err(doing)?
        {
            link::set_master(route, link.index, bridge.index).map_err(doing)?;
        }
    }
    Ok(())
}

/// Gives the bridge the gateways' addresses.
fn gateways(plan: &Plan, route: &mut Socket, bridge: u32) -> Result<(), Error> {
    let name = &plan.bridge;
    let doing = |e| Error::kernel(format!("give bridge {name} its addresses"), e);
    let there = link::nets(route, bridge).map_err(doing)?;
    for set in &plan.sets {
        let wanted = IpNet { ip: set.gateway, prefix: set.subnet.prefix };
        if there.contains(&wanted) {
            continue;
        }
        // Of IPv4 a bridge has one; of IPv6 it may have several, if they do not overlap.
        let in_the_way = |net: &&IpNet| {
            let shorter = net.prefix.min(wanted.prefix);
            let cut = |ip: IpAddr| table::subnet(IpNet { ip, prefix: shorter });
            net.ip.is_ipv4() == wanted.ip.is_ipv4() && (net.ip.is_ipv4() || cut(net.ip) == cut(wanted.ip))
        };
        for other in there.iter().filter(in_the_way) {
            if !plan.force_address {
                return Err(Error::Invalid(format!(
                    "bridge {name} has the address {other} and not {wanted}: the network's configuration was changed, or \
                     the bridge is another's (remove the address, name another bridge, or set forceAddress)"
                )));
            }
            link::remove_address(route, bridge, *other).map_err(doing)?;
        }
        link::add_address(route, bridge, wanted).map_err(doing)?;
    }
    Ok(())
}

/// Lets the host forward where the bridge is a gateway.
fn forward(plan: &Plan, notes: &mut Vec<String>) -> Result<(), Error> {
    for set in plan.sets.iter().filter(|_| plan.gateway) {
        let path = Path::new(if set.gateway.is_ipv4() { V4_FORWARDING } else { V6_FORWARDING });
        let now = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
        if now.trim() != "1" {
            fs::write(path, "1").map_err(|e| Error::file("write", path, e))?;
            notes.push(format!("set {} from {} to 1", path.display(), now.trim()));
        }
    }
    Ok(())
}

/// Runs inside the pod's network namespace; `host` is a socket of the host's.
fn set_up_pod(plan: &Plan, host: &mut Socket, held: &Held, veth: &Veth) -> Result<(), Error> {
    let mut pod = Socket::route().map_err(|e| Error::kernel("open a netlink socket in the pod", e))?;
    up(&mut pod, "lo").map_err(|e| Error::kernel("set up lo in the pod", e))?;
    link::add_veth(host, veth)
        .map_err(|e| Error::kernel(format!("make veth {} on bridge {}", veth.name, held.bridge), e))?;
    // As the plugin does, which does not ask for success either: a host without IPv6 has no accept_dad.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{POD_INTERFACE}/accept_dad"), "0");
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{POD_INTERFACE}/arp_notify"), "1");
    let doing = |what: &str| format!("{what} {POD_INTERFACE} in the pod");
    let index = link::find(&mut pod, POD_INTERFACE)
        .and_then(|link| link.ok_or(Errno::ENODEV.into()))
        .map_err(|e| Error::kernel(doing("look up"), e))?
        .index;
    if held.ips.iter().any(|net| net.ip.is_ipv6()) {
        for name in ["lo", POD_INTERFACE] {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            fs::write(&path, "0").map_err(|e| Error::file("write", path.as_ref(), e))?;
        }
    }
    for net in &held.ips {
        link::add_address(&mut pod, index, *net)
            .map_err(|e| Error::kernel(doing(&format!("give the address {net} to")), e))?;
    }
    link::set_up(&mut pod, index, true).map_err(|e| Error::kernel(doing("set up"), e))?;
    for route in &plan.routes {
        let Some(gateway) = plan.next_hop(route) else { continue };
        link::add_route(&mut pod, index, route.to, gateway)
            .map_err(|e| Error::kernel(format!("add the pod's route to {} by {gateway}", route.to), e))?;
    }
    Ok(())
}

/// What the plugins would have answered.
fn result(plan: &Plan, held: &Held, bridge: &Link) -> Value {
    let ip = |net: &IpNet| {
        let set = plan.sets.iter().find(|set| set.gateway.is_ipv4() == net.ip.is_ipv4());
        let mut ip = json!({"interface": 2, "address": net.to_string()});
        if let Some(set) = set {
            ip["gateway"] = set.gateway.to_string().into();
        }
        if held.version < Version::V1_0 {
            ip["version"] = if net.ip.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    };
    let route = |route: &plan::Route| match route.gateway {
        Some(gateway) => json!({"dst": route.to.to_string(), "gw": gateway.to_string()}),
        None => json!({"dst": route.to.to_string()}),
    };
    let mut result = json!({
        "cniVersion": held.version.as_str(),
        "interfaces": [
            {"name": plan.bridge, "mac": text(&bridge.mac)},
            {"name": held.link, "mac": text(&host_mac(&held.ips))},
            {"name": POD_INTERFACE, "mac": text(&pod_mac(&held.ips)), "sandbox": held.netns},
        ],
        "ips": held.ips.iter().map(ip).collect::<Vec<_>>(),
        "dns": plan.dns,
    });
    if !plan.routes.is_empty() {
        result["routes"] = plan.routes.iter().map(route).collect::<Vec<_>>().into();
    }
    result
}

/// The host's end of a sandbox's pair: as the plugin names them, but after the sandbox.
fn link_name(sandbox: &str) -> String {
    let hash = sandbox.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("veth{hash:08x}")
}

/// The hardware address that goes with a pod's first address: the same for the same address.
fn pod_mac(ips: &[IpNet]) -> Mac {
    let [a, b, c, d] = low(ips);
    [0x0a, 0x58, a, b, c, d]
}

/// The same of the host's end.
fn host_mac(ips: &[IpNet]) -> Mac {
    let [a, b, c, d] = low(ips);
    [0x0a, 0x59, a, b, c, d]
}

fn low(ips: &[IpNet]) -> [u8; 4] {
    let [.., a, b, c, d] = ips.first().map_or(0, |net| number(net.ip)).to_be_bytes();
    [a, b, c, d]
}

fn text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
