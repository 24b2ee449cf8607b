//! The bridge and what goes with it, made when the first pod needs it and checked cheaply by each later one.
//!
//! What is prepared, and so what is said in the notes of the attachment that caused it: the bridge with the subnet's first
//! address, `net.ipv4.ip_forward` when it was off, the nftables table. The file `ready` beside the leases records for
//! which boot, bridge and version that was done; when it fits and both bridge and table are still there (two requests of
//! 20 us), nothing is done. When someone flushed the table or removed the bridge, both come back together with what the
//! leases say: ports, and links put on the new bridge.
//!
//! The bridge stays when the last pod has gone: removing it costs more than 20 ms and the next pod would make it again.
//! `Network::remove` removes bridge and table when nothing holds a lease. `ip_forward` is never switched back:
//! by then something else may rely on it.

use std::fs;

use nix::errno::Errno;

use super::embedded::{Embedded, mac_of};
use super::ip::Subnet;
use super::kernel::Kernel;
use super::lease::{Lock, write_whole};
use super::link::{self, Link};
use super::nl::Socket;
use super::{Error, forward, nft};

/// A route this short is a default route in disguise (VPN clients split it into two halves), not a claim on a subnet.
pub(super) const SHORTEST_REAL_PREFIX: u8 = 2;
const FALLBACK_MTU: u32 = 1500;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The bridge, ready for use.
pub(super) struct Ready {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) notes: Vec<String>,
}

impl Embedded {
    /// Makes what is missing of bridge, forwarding and table.
    pub(super) fn prepare(&self, lock: &Lock, kernel: &mut Kernel) -> Result<Ready, Error> {
        let Kernel { route, filter } = kernel;
        let name = &self.config.bridge;
        let mut notes = Vec::new();
        let found = link::find(route, name).map_err(|e| Error::kernel(format!("look up bridge {name}"), e))?;
        let table =
            nft::exists(filter, &nft::table(name)).map_err(|e| Error::kernel("look up the nftables table", e))?;
        let dropping = forward::dropping(filter).map_err(|e| Error::kernel("list nftables chains", e))?;
        let path = self.leases.beside("ready");
        if let Some(bridge) = &found {
            let mark = self.mark(bridge.index, &dropping)?;
            if table && fs::read_to_string(&path).is_ok_and(|text| text == mark) {
                switch_forwarding_on(&mut notes)?;
                return Ok(Ready { index: bridge.index, mtu: bridge.mtu, notes });
            }
        }
        let made = found.is_none();
        let result = self.make(route, found, &mut notes).and_then(|bridge| {
            forward::open(name, &dropping, &mut notes)?;
            Ok(bridge)
        });
        if result.is_err() && made {
            // Half a bridge helps nobody; the first error is what the caller hears.
            let _ = link::delete(route, name);
        }
        let bridge = result?;
        self.restore(lock, kernel, bridge.index)?;
        write_whole(&path, self.mark(bridge.index, &dropping)?.as_bytes())?;
        Ok(Ready { index: bridge.index, mtu: bridge.mtu, notes })
    }

    fn mark(&self, index: u32, dropping: &[forward::Chain]) -> Result<String, Error> {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT_ID).map_err(|e| Error::file("read", BOOT_ID.as_ref(), e))?;
        let (subnet, masquerade) = (self.config.subnet, self.config.masquerade);
        let (version, dropping) = (nft::RULES_VERSION, forward::fingerprint(dropping));
        let boot = boot.trim();
        Ok(format!(
            "boot {boot} bridge {index} subnet {subnet} masquerade {masquerade} rules {version} opened {dropping}\n"
        ))
    }

    fn make(&self, route: &mut Socket, found: Option<Link>, notes: &mut Vec<String>) -> Result<Link, Error> {
        let bridge = match found {
            Some(bridge) => self.adopt(route, bridge)?,
            None => self.make_bridge(route, notes)?,
        };
        let name = &self.config.bridge;
        let up = link::add_address(route, bridge.index, self.config.subnet.host(self.gateway()))
            .and_then(|()| link::set_up(route, bridge.index, true));
        up.map_err(|e| Error::kernel(format!("set up bridge {name}"), e))?;
        switch_forwarding_on(notes)?;
        nft::create(&self.config)?;
        Ok(bridge)
    }

    fn make_bridge(&self, route: &mut Socket, notes: &mut Vec<String>) -> Result<Link, Error> {
        let (name, subnet) = (&self.config.bridge, self.config.subnet);
        let mtu = self.check_routes(route)?;
        link::add_bridge(route, name, mac_of(self.gateway()), Some(mtu))
            .map_err(|e| Error::kernel(format!("make bridge {name}"), e))?;
        let bridge = link::find(route, name)
            .and_then(|bridge| bridge.ok_or(Errno::ENODEV.into()))
            .map_err(|e| Error::kernel(format!("look up bridge {name}"), e))?;
        // Before it is up: a pod must not become the host's router by announcing itself as one.
        let accept_ra = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        if let Err(e) = fs::write(&accept_ra, "0")
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::file("write", accept_ra.as_ref(), e));
        }
        notes.push(format!("made bridge {name} with {}", subnet.host(self.gateway())));
        Ok(bridge)
    }

    /// A bridge of the name that is there already is used when it is one, and has our address or none.
    fn adopt(&self, route: &mut Socket, bridge: Link) -> Result<Link, Error> {
        let name = &self.config.bridge;
        if bridge.kind != "bridge" {
            let kind = if bridge.kind.is_empty() { "another kind of link" } else { &bridge.kind };
            return Err(Error::Invalid(format!("{name} exists and is no bridge but {kind}; name another bridge")));
        }
        let addresses = link::addresses(route, bridge.index)
            .map_err(|e| Error::kernel(format!("list addresses of bridge {name}"), e))?;
        let wanted = self.config.subnet.host(self.gateway());
        match addresses.first() {
            Some(_) if addresses.contains(&wanted) => Ok(bridge),
            None => self.check_routes(route).map(|_| bridge),
            Some(other) => Err(Error::Invalid(format!(
                "bridge {name} exists with {other}, not {wanted}: it belongs to something else, or the subnet in the \
                 config was changed while the bridge was there (remove it, or name another)"
            ))),
        }
    }

    /// Fails when a route leads into the subnet already; returns the MTU of the way out.
    fn check_routes(&self, route: &mut Socket) -> Result<u32, Error> {
        let subnet = self.config.subnet;
        let routes = link::routes(route).map_err(|e| Error::kernel("list routes", e))?;
        let clash = routes.iter().find(|r| r.to.prefix() >= SHORTEST_REAL_PREFIX && r.to.overlaps(subnet));
        if let Some(clash) = clash {
            let via = match clash.link {
                Some(index) => link::name_of(route, index).unwrap_or_else(|_| format!("link {index}")),
                None => "no link".to_owned(),
            };
            return Err(Error::SubnetTaken { subnet, route: format!("{} by {via}", clash.to) });
        }
        if let Some(mtu) = self.config.mtu {
            return Ok(mtu);
        }
        let default = Subnet::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
        let out = routes.iter().filter(|r| r.to == default).find_map(|r| r.link);
        // A guess is good enough: with another MTU on the way, path MTU discovery does its work.
        Ok(out.and_then(|index| link::mtu_of(route, index).ok()).filter(|mtu| *mtu > 0).unwrap_or(FALLBACK_MTU))
    }

    /// What keeps attached pods from the network though all of ours stands for them, for `doctor`. Changes nothing.
    pub(super) fn troubles(&self) -> Result<Vec<String>, Error> {
        let leases = self.leases.read_all()?;
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let name = &self.config.bridge;
        let Kernel { route, filter } = &mut *self.kernel()?;
        let doing = |e| Error::kernel(format!("look at bridge {name}"), e);
        let mut troubles = Vec::new();
        let bridge = link::find(route, name).map_err(doing)?.map(|bridge| bridge.index);
        if bridge.is_none() {
            troubles.push(format!("bridge {name} is gone (the next pod's start makes it again)"));
        }
        if !nft::exists(filter, &nft::table(name)).map_err(doing)? {
            let table = nft::table(name);
            troubles.push(format!("nftables table inet {table} is gone (the next pod's start makes it again)"));
        }
        if self.lacks_services(filter)? {
            let table = super::service::table(name);
            troubles.push(format!("nftables table inet {table} is gone (the next pod's start makes it again)"));
        }
        if fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "0") {
            troubles
                .push("net.ipv4.ip_forward is 0: pods reach only this host (sysctl -w net.ipv4.ip_forward=1)".into());
        }
        troubles.extend(forward::closed(name, &forward::dropping(filter).map_err(doing)?));
        for lease in leases {
            if let Some(link) = link::find(route, &lease.interface).map_err(doing)?
                && bridge.is_some()
                && link.master != bridge
            {
                let (link, sandbox) = (link.name, lease.sandbox);
                troubles.push(format!("interface {link} of sandbox {sandbox} is not on bridge {name}"));
            }
        }
        Ok(troubles)
    }

    /// Puts back what live leases had on a bridge or in a table that were made anew.
    fn restore(&self, _lock: &Lock, kernel: &mut Kernel, bridge: u32) -> Result<(), Error> {
        let name = &self.config.bridge;
        for lease in self.leases.read_all()? {
            let veth = link::find(&mut kernel.route, &lease.interface);
            let veth = veth.map_err(|e| Error::kernel(format!("look up {}", lease.interface), e))?;
            let Some(veth) = veth else { continue };
            if veth.master != Some(bridge) {
                link::set_master(&mut kernel.route, veth.index, bridge)
                    .map_err(|e| Error::kernel(format!("put {} on bridge {name}", lease.interface), e))?;
            }
            self.open_ports(kernel, &lease)?;
        }
        Ok(())
    }
}

/// Pods reach other networks, and are reached by hostPort from outside, only when the host forwards.
fn switch_forwarding_on(notes: &mut Vec<String>) -> Result<(), Error> {
    let now = fs::read_to_string(FORWARDING).map_err(|e| Error::file("read", FORWARDING.as_ref(), e))?;
    if now.trim() == "0" {
        fs::write(FORWARDING, "1").map_err(|e| Error::file("write", FORWARDING.as_ref(), e))?;
        notes.push("set net.ipv4.ip_forward from 0 to 1".to_owned());
    }
    Ok(())
}
