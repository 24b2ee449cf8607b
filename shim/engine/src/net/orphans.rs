//! What is left of sandboxes that are gone: found for `doctor`, cleared for `gc`.
//!
//! Only what is provably ours is looked at: leases in our directory, links on our bridge with a name of our making, and
//! elements of our table. Leases come last when reading and first when asking who is alive: a lease is written before
//! anything it stands for, so what is there without a lease is nobody's.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::embedded::Embedded;
use super::kernel::Kernel;
use super::nl::Socket;
use super::{Error, HOST_PREFIX, conntrack, forward, link, nft, service};

/// Something that no live sandbox stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// An address, with the ports and the link that go with it, held by a sandbox that is not alive.
    Lease {
        /// The sandbox.
        sandbox: String,
        /// The address.
        ip: Ipv4Addr,
    },
    /// A link on the bridge that no lease names.
    Interface {
        /// The link.
        name: String,
    },
    /// What plugins made, or we in their place, for a sandbox that is not alive.
    Attachment {
        /// The sandbox.
        sandbox: String,
        /// The network's name.
        network: String,
    },
    /// A pod that services lead to, and that holds no address.
    Backend {
        /// The address.
        ip: Ipv4Addr,
    },
    /// The rules of services, without the file that says which.
    Services {
        /// The table.
        table: String,
    },
    /// Elements in the table that lead to an address nobody holds.
    Ports {
        /// The address.
        ip: Ipv4Addr,
        /// How many.
        count: usize,
    },
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Orphan::Lease { sandbox, ip } => write!(f, "address {ip} is held by sandbox {sandbox}, which is not alive"),
            Orphan::Interface { name } => write!(f, "interface {name} belongs to no sandbox"),
            Orphan::Attachment { sandbox, network } => {
                write!(f, "sandbox {sandbox}, which is not alive, is attached to CNI network {network}")
            }
            Orphan::Backend { ip } => write!(f, "services lead to {ip}, which no sandbox holds"),
            Orphan::Services { table } => write!(f, "nftables table inet {table} belongs to no service"),
            Orphan::Ports { ip, count } => write!(f, "{count} hostPort(s) lead to {ip}, which no sandbox holds"),
        }
    }
}

impl Embedded {
    /// What no live sandbox stands for. `live` is asked about each sandbox that holds a lease, *after* the lease was
    /// seen; a sandbox is recorded before it is attached, so one that starts meanwhile is not mistaken for a dead one as
    /// long as `live` looks at that moment (and a set made earlier is used only while nothing can start).
    pub(super) fn orphans(&self, live: impl Fn(&str) -> bool) -> Result<Vec<Orphan>, Error> {
        let _lock = self.leases.lock()?;
        let Kernel { route, filter } = &mut *self.kernel()?;
        let bridge = &self.config.bridge;
        let doing = |what: &str| format!("list {what} of bridge {bridge}");

        let index = link::find(route, bridge).map_err(|e| Error::kernel(doing("links"), e))?.map(|b| b.index);
        let links = match index {
            Some(index) => self.stray_links(route, index)?,
            None => HashSet::new(),
        };
        let elements = nft::list(filter, &nft::table(bridge)).map_err(|e| Error::kernel(doing("hostPorts"), e))?;
        let leases = self.leases.read_all()?;

        let mut orphans: Vec<Orphan> = leases
            .iter()
            .filter(|lease| !live(&lease.sandbox))
            .map(|lease| Orphan::Lease { sandbox: lease.sandbox.clone(), ip: lease.ip })
            .collect();
        orphans.extend(links.into_iter().map(|name| Orphan::Interface { name }));

        let leased: Vec<Ipv4Addr> = leases.iter().map(|lease| lease.ip).collect();
        orphans.extend(self.stray_backends(&leased).into_iter().map(|ip| Orphan::Backend { ip }));
        if self.stray_table(filter)? {
            orphans.push(Orphan::Services { table: service::table(bridge) });
        }
        let mut addresses: Vec<Ipv4Addr> = elements.iter().filter_map(nft::Element::target).collect();
        addresses.retain(|ip| !leases.iter().any(|lease| lease.ip == *ip));
        addresses.sort();
        for group in addresses.chunk_by(|a, b| a == b) {
            orphans.push(Orphan::Ports { ip: group[0], count: group.len() });
        }
        Ok(orphans)
    }

    /// Links on the bridge that no lease names, and that stay: the link of a pod that just ended is removed by the kernel.
    fn stray_links(&self, route: &mut Socket, bridge: u32) -> Result<HashSet<String>, Error> {
        const KERNELS_TURN: Duration = Duration::from_millis(100);
        let mut look = || -> Result<HashSet<String>, Error> {
            let links = link::ports_of(route, bridge)
                .map_err(|e| Error::kernel(format!("list links of bridge {}", self.config.bridge), e))?;
            let leases = self.leases.read_all()?;
            let named = |name: &String| leases.iter().any(|lease| lease.interface == *name);
            Ok(links.into_iter().map(|link| link.name).filter(|name| ours(name) && !named(name)).collect())
        };
        let first = look()?;
        if first.is_empty() {
            return Ok(first);
        }
        std::thread::sleep(KERNELS_TURN);
        Ok(look()?.intersection(&first).cloned().collect())
    }

    /// Clears orphans that [`Embedded::orphans`] found; what is gone meanwhile is passed over.
    pub(super) fn clear(&self, orphans: &[Orphan]) -> Result<(), Error> {
        let lock = self.leases.lock()?;
        let Kernel { route, filter } = &mut *self.kernel()?;
        for orphan in orphans {
            match orphan {
                Orphan::Lease { sandbox, ip } => {
                    let Some(lease) = self.leases.read(*ip, sandbox)? else { continue };
                    self.clear_ports(filter, *ip)?;
                    conntrack::forget_pod_flows(filter, *ip)
                        .map_err(|e| Error::kernel(format!("forget UDP flows to {ip}"), e))?;
                    self.remove_link(route, &lease)?;
                    self.leases.release(&lock, *ip, sandbox)?;
                    self.drop_backend(&lock, *ip)?;
                }
                Orphan::Backend { ip } => {
                    if !self.leases.list()?.iter().any(|(held, _)| held == ip) {
                        self.drop_backend(&lock, *ip)?;
                    }
                }
                Orphan::Services { .. } => {
                    if self.stray_table(filter)? {
                        self.remove_services(&lock)?;
                    }
                }
                Orphan::Attachment { .. } => {}
                Orphan::Interface { name } => {
                    let leases = self.leases.read_all()?;
                    if !leases.iter().any(|lease| lease.interface == *name) && ours(name) {
                        link::delete(route, name).map_err(|e| Error::kernel(format!("remove {name}"), e))?;
                    }
                }
                Orphan::Ports { ip, .. } => {
                    if !self.leases.list()?.iter().any(|(held, _)| held == ip) {
                        self.clear_ports(filter, *ip)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes bridge and table, and says whether: not while anything holds a lease, and not when nothing was made. The
    /// next pod makes them again.
    pub(super) fn remove(&self) -> Result<bool, Error> {
        let lock = self.leases.lock()?;
        let bridge = &self.config.bridge;
        let ready = self.leases.beside("ready");
        if !self.leases.list()?.is_empty() {
            return Ok(false);
        }
        self.remove_services(&lock)?;
        if !ready.exists() {
            return Ok(false);
        }
        let Kernel { route, filter } = &mut *self.kernel()?;
        let dropping = forward::dropping(filter).map_err(|e| Error::kernel("list nftables chains", e))?;
        forward::close(bridge, &dropping);
        nft::remove(&nft::table(bridge))?;
        link::delete(route, bridge).map_err(|e| Error::kernel(format!("remove bridge {bridge}"), e))?;
        // The directory and its lock stay: somebody may be waiting for the lock.
        std::fs::remove_file(&ready).map_err(|e| Error::file("remove", &ready, e))?;
        Ok(true)
    }

    /// Removes every element that leads to `ip`.
    fn clear_ports(&self, filter: &mut Socket, ip: Ipv4Addr) -> Result<(), Error> {
        let bridge = &self.config.bridge;
        nft::list(filter, &nft::table(bridge))
            .and_then(|mut elements| {
                elements.retain(|element| element.target() == Some(ip));
                nft::remove_elements(filter, &nft::table(bridge), &elements)
            })
            .map_err(|e| Error::kernel(format!("remove hostPorts of {ip} from nftables table"), e))
    }
}

/// Whether a link's name is of our making.
fn ours(name: &str) -> bool {
    let digits = name.strip_prefix(HOST_PREFIX).unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}
