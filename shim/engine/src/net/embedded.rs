//! The embedded network: one bridge, one IPv4 subnet, one nftables table; nothing but the kernel and `nft`.
//!
//! Order of an attachment: under the lock the bridge is checked or made, ports are checked and the lease is written; then
//! without the lock the kernel is changed; on failure all of it is undone. A lease always outlives what it stands for.
//!
//! Order of a detachment: elements, link, lease, each of which may be gone already. The pod's link is only set down, which
//! takes 0.2 ms: the kernel removes it by itself some milliseconds after the end of the pod's network namespace, while
//! removing it here would wait 20 ms for the kernel's readers.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::kernel::{Kernel, Loan, Pool, inside, open_netns, up};
use super::lease::{Lease, Leases};
use super::link::{self, Veth};
use super::nl::Socket;
use super::port::Holder;
use super::{Attachment, Error, HOST_PREFIX, INTERFACE_NAME_MAX, NetConfig, POD_INTERFACE, check_id};
use super::{bridge, conntrack, nft, port};
use crate::types::{PortMapping, Protocol};

/// The pod network of one bridge.
pub(super) struct Embedded {
    pub(super) config: NetConfig,
    pub(super) leases: Leases,
    kernels: Arc<Pool>,
}

impl Embedded {
    /// Opens the network's state under `state_dir`. The kernel is not touched before a pod is attached.
    pub(super) fn open(state_dir: &Path, config: NetConfig, kernels: Arc<Pool>) -> Result<Embedded, Error> {
        let bridge = &config.bridge;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let named = (1..=INTERFACE_NAME_MAX).contains(&bridge.len()) && bridge.bytes().all(plain);
        if !named || bridge.starts_with(['.', '-']) {
            return Err(Error::Invalid(format!(
                "bridge name {bridge:?}: 1 to {INTERFACE_NAME_MAX} letters, digits, '_', '.' or '-' are needed"
            )));
        }
        const LONGEST_PREFIX: u8 = 30; // network, gateway, one pod, broadcast
        if !(8..=LONGEST_PREFIX).contains(&config.subnet.prefix()) {
            return Err(Error::Invalid(format!(
                "pod subnet {}: the prefix must be 8 to {LONGEST_PREFIX}",
                config.subnet
            )));
        }
        let leases = Leases::open(state_dir.join("net").join(bridge))?;
        Ok(Embedded { config, leases, kernels })
    }

    pub(super) fn kernel(&self) -> Result<Loan<'_>, Error> {
        self.kernels.kernel()
    }

    /// The bridge's name.
    pub(super) fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// Gives the sandbox whose network namespace is at `netns` a link, an address, a default route and its ports.
    ///
    /// Attaching again starts over: what the sandbox had is removed first.
    pub(super) fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        ports: &[PortMapping],
        others: &[Holder],
    ) -> Result<Attachment, Error> {
        check_id(sandbox)?;
        let ports = port::validate(ports)?;
        let netns = open_netns(netns)?;
        let kernel = &mut *self.kernel()?;

        let lock = self.leases.lock()?;
        if let Some(old) = self.leases.of(sandbox)? {
            self.close_ports(kernel, &old)?;
            self.remove_link(&mut kernel.route, &old)?;
            self.leases.release(&lock, old.ip, sandbox)?;
        }
        let ready = self.prepare(&lock, kernel)?;
        if !ports.is_empty() {
            port::check_free(&ports, others)?;
            port::check_free(&ports, &self.holders()?)?;
        }
        let lease = self.leases.take(&lock, self.config.subnet, &self.config.reserved, sandbox, &ports)?;
        drop(lock);

        let made =
            self.connect(&mut kernel.route, &lease, &netns, &ready).and_then(|()| self.open_ports(kernel, &lease));
        if let Err(e) = made {
            // The first error is what the caller hears; what cannot be undone now is an orphan that gc finds.
            let _ = self.close_ports(kernel, &lease);
            let _ = self.remove_link(&mut kernel.route, &lease);
            let _ = self.leases.lock().and_then(|lock| self.leases.release(&lock, lease.ip, sandbox));
            return Err(e);
        }
        Ok(Attachment {
            ifname: POD_INTERFACE.to_owned(),
            mac: mac_of(lease.ip).map(|byte| format!("{byte:02x}")).join(":"),
            ips: vec![self.config.subnet.host(lease.ip)],
            gateway: Some(self.gateway().into()),
            dns: None,
            notes: ready.notes,
        })
    }

    /// Makes bridge and table without a pod.
    pub(super) fn stand(&self) -> Result<(), Error> {
        let lock = self.leases.lock()?;
        self.prepare(&lock, &mut *self.kernel()?).map(drop)
    }

    /// Who has which ports here.
    pub(super) fn holders(&self) -> Result<Vec<Holder>, Error> {
        Ok(self.leases.read_all()?.into_iter().map(Holder::from).collect())
    }

    /// Takes from a sandbox what [`Embedded::attach`] gave. Idempotent, and works when its namespace is gone.
    pub(super) fn detach(&self, sandbox: &str) -> Result<(), Error> {
        check_id(sandbox)?;
        let Some(lease) = self.leases.of(sandbox)? else { return Ok(()) };
        let kernel = &mut *self.kernel()?;
        let lock = self.leases.lock()?;
        self.close_ports(kernel, &lease)?;
        self.link_down(&mut kernel.route, &lease)?;
        self.leases.release(&lock, lease.ip, sandbox)
    }

    /// The bridge's own address: the pods' next hop, and the host's address as they see it.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.nth(1)
    }

    /// Makes the veth pair and sets up the pod's end.
    fn connect(&self, route: &mut Socket, lease: &Lease, netns: &File, ready: &bridge::Ready) -> Result<(), Error> {
        let veth = Veth {
            name: &lease.interface,
            bridge: ready.index,
            mtu: ready.mtu,
            hairpin: !lease.ports.is_empty(),
            mac: None,
            peer_name: POD_INTERFACE,
            peer_mac: mac_of(lease.ip),
            peer_netns: netns.as_fd(),
        };
        inside(netns, || self.set_up_pod(route, &veth, lease.ip))
    }

    /// Runs inside the pod's network namespace; `host` is a socket of the host's.
    fn set_up_pod(&self, host: &mut Socket, veth: &Veth, ip: Ipv4Addr) -> Result<(), Error> {
        // Another pod on the bridge must not become this one's router, by no means. And what the machine itself would
        // redirect is what it translates, so that the answers must come back to it. For links yet to come, so it stands
        // before them.
        for setting in
            ["ipv6/conf/default/accept_ra", "ipv4/conf/default/accept_redirects", "ipv4/conf/all/accept_redirects"]
        {
            let path = Path::new("/proc/sys/net").join(setting);
            if let Err(e) = fs::write(&path, "0")
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::file("write", &path, e));
            }
        }
        let mut pod = Socket::route().map_err(|e| Error::kernel("open a netlink socket in the pod", e))?;
        up(&mut pod, "lo").map_err(|e| Error::kernel("set up lo in the pod", e))?;
        link::add_veth(host, veth)
            .map_err(|e| Error::kernel(format!("make veth {} on bridge {}", veth.name, self.config.bridge), e))?;
        let index = up(&mut pod, POD_INTERFACE).map_err(|e| Error::kernel("set up eth0 in the pod", e))?;
        link::add_address(&mut pod, index, self.config.subnet.host(ip))
            .map_err(|e| Error::kernel(format!("give eth0 in the pod the address {ip}"), e))?;
        link::add_default_route(&mut pod, index, self.gateway())
            .map_err(|e| Error::kernel(format!("add the pod's default route by {}", self.gateway()), e))
    }

    /// Lets the host's ports of a lease lead to its pod.
    pub(super) fn open_ports(&self, kernel: &mut Kernel, lease: &Lease) -> Result<(), Error> {
        let bridge = &self.config.bridge;
        if lease.ports.iter().any(PortMapping::on_loopback) {
            let path = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
            fs::write(&path, "1").map_err(|e| Error::file("write", path.as_ref(), e))?;
        }
        let doing = || format!("add hostPorts of {} to nftables table {}", lease.sandbox, nft::table(bridge));
        nft::add(&mut kernel.filter, &nft::table(bridge), &elements(lease)).map_err(|e| Error::kernel(doing(), e))?;
        if has_udp(lease) {
            let forgotten = link::all_addresses(&mut kernel.route)
                .and_then(|local| conntrack::forget_host_flows(&mut kernel.filter, &lease.ports, &local));
            forgotten.map_err(|e| Error::kernel(format!("forget UDP flows to hostPorts of {}", lease.sandbox), e))?;
        }
        Ok(())
    }

    fn close_ports(&self, kernel: &mut Kernel, lease: &Lease) -> Result<(), Error> {
        let bridge = &self.config.bridge;
        let doing = || format!("remove hostPorts of {} from nftables table {}", lease.sandbox, nft::table(bridge));
        nft::remove_elements(&mut kernel.filter, &nft::table(bridge), &elements(lease))
            .map_err(|e| Error::kernel(doing(), e))?;
        if has_udp(lease) {
            conntrack::forget_pod_flows(&mut kernel.filter, lease.ip)
                .map_err(|e| Error::kernel(format!("forget UDP flows to {}", lease.ip), e))?;
        }
        Ok(())
    }

    fn link_down(&self, route: &mut Socket, lease: &Lease) -> Result<(), Error> {
        let Some(veth) = self.our_link(route, lease)? else { return Ok(()) };
        match link::set_up(route, veth.index, false) {
            Err(e) if e.errno != Errno::ENODEV => Err(Error::kernel(format!("set down {}", lease.interface), e)),
            _ => Ok(()),
        }
    }

    pub(super) fn remove_link(&self, route: &mut Socket, lease: &Lease) -> Result<(), Error> {
        if self.our_link(route, lease)?.is_none() {
            return Ok(());
        }
        link::delete(route, &lease.interface).map_err(|e| Error::kernel(format!("remove {}", lease.interface), e))
    }

    /// The host's end of a lease's veth pair, when it is there and is one.
    fn our_link(&self, route: &mut Socket, lease: &Lease) -> Result<Option<link::Link>, Error> {
        let link = link::find(route, &lease.interface);
        let link = link.map_err(|e| Error::kernel(format!("look up {}", lease.interface), e))?;
        Ok(link.filter(|link| link.kind == "veth"))
    }
}

fn has_udp(lease: &Lease) -> bool {
    lease.ports.iter().any(|port| port.protocol == Protocol::Udp)
}

fn elements(lease: &Lease) -> Vec<nft::Element> {
    lease.ports.iter().map(|port| nft::Element::new(port, lease.ip)).collect()
}

/// The host's end of a sandbox's veth pair: the start of its id where that is eight hex digits, else a hash of it (FNV-1a).
pub(super) fn interface_name(sandbox: &str) -> String {
    const DIGITS: usize = 8;
    match sandbox.get(..DIGITS) {
        Some(start) if start.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) => {
            format!("{HOST_PREFIX}{start}")
        }
        _ => {
            let hash = sandbox.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
            format!("{HOST_PREFIX}{hash:08x}")
        }
    }
}

/// The hardware address that goes with an address: the same for the same address, so that a neighbour's cache is still
/// right when the address has passed to another pod.
pub(super) fn mac_of(ip: Ipv4Addr) -> link::Mac {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}
