//! The embedded pod network: a bridge on the host, one veth pair per pod, addresses from the bridge's subnet, ports of
//! the host that lead to pods. No CNI plugin, no daemon, no resident process.
//!
//! ```text
//! pod netns                       host
//!   lo  127.0.0.1
//!   eth0 10.88.0.5/16 ---veth---  cor1a2b3c4d --- coracle0 10.88.0.1/16 --- forwarding, masquerade --- the world
//!   default via 10.88.0.1                              inet coracle-coracle0: hostPort maps
//! ```
//!
//! | file | job |
//! |---|---|
//! | `lease` | which sandbox holds which address and ports: files, the lock, the turn of addresses |
//! | `bridge` | bridge, forwarding and table made on demand; what was changed is said |
//! | `nft` | the table's rules, its elements over netlink |
//! | `port` | port mappings and their conflicts, with pods and with processes of the host |
//! | `conntrack` | UDP flows that must not survive a change of ports |
//! | `forward` | hosts that drop what they forward: docker's iptables policy and others |
//! | `link`, `nl` | routing netlink, and netlink itself |
//! | `orphans` | what is left of sandboxes that are gone |
//! | `files` | /etc/hosts, /etc/hostname and /etc/resolv.conf as kubelet writes them |
//!
//! Order of an attachment: under the lock the bridge is checked or made, ports are checked and the lease is written; then
//! without the lock the kernel is changed; on failure all of it is undone. A lease always outlives what it stands for.
//!
//! Order of a detachment: elements, link, lease, each of which may be gone already. The pod's link is only set down, which
//! takes 0.2 ms: the kernel removes it by itself some milliseconds after the end of the pod's network namespace, while
//! removing it here would wait 20 ms for the kernel's readers.
//!
//! All functions block for some milliseconds at most (an engine calls them through `spawn_blocking`), and work in the
//! network namespace of the thread that called first: the host's.

mod bridge;
mod conntrack;
pub mod files;
mod forward;
mod ip;
mod lease;
mod link;
mod nft;
mod nl;
mod orphans;
mod port;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

pub use ip::{IpNet, Subnet};
pub use orphans::Orphan;

use crate::types::{PortMapping, Protocol};
use lease::{Lease, Leases};
use link::Veth;
use nl::{Refusal, Socket};

/// The pod's link inside its namespace, as everyone calls it.
const POD_INTERFACE: &str = "eth0";
/// What the host's ends are called: this and eight characters of the sandbox's id.
const HOST_PREFIX: &str = "cor";
/// Where `nft` and `iptables` are, also for a caller whose PATH leaves out the admin's folders.
const ADMIN_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
/// The kernel's limit of an interface name, without its ending zero.
const INTERFACE_NAME_MAX: usize = 15;

/// Why the pod network failed. Each is one line with operation, object and source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing}: {why}")]
    Kernel {
        /// Operation and object.
        doing: String,
        /// The errno, and the kernel's own words.
        why: String,
    },
    /// A file of ours, or of /proc.
    #[error("{doing} {path}: {why}")]
    File {
        /// Operation.
        doing: &'static str,
        /// Object.
        path: PathBuf,
        /// Source.
        why: io::Error,
    },
    /// `nft` failed.
    #[error("make nftables table inet {table}: {words}")]
    Nft {
        /// The table.
        table: String,
        /// What nft said.
        words: String,
    },
    /// The subnet is in use by something else.
    #[error("pod subnet {subnet} overlaps the route {route} (choose another subnet in [network] of the config)")]
    SubnetTaken {
        /// Ours.
        subnet: Subnet,
        /// Theirs.
        route: String,
    },
    /// No address is left.
    #[error("pod subnet {subnet} has no free address: {held} are held (coracle gc clears those of dead pods)")]
    Exhausted {
        /// The subnet.
        subnet: Subnet,
        /// How many addresses are held.
        held: usize,
    },
    /// A port of the host is not free.
    #[error("hostPort {port} is taken by {owner}")]
    PortTaken {
        /// The port.
        port: String,
        /// The pod or process that has it.
        owner: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    fn kernel(doing: impl Into<String>, why: Refusal) -> Error {
        Error::Kernel { doing: doing.into(), why: why.to_string() }
    }

    fn file(doing: &'static str, path: &Path, why: io::Error) -> Error {
        Error::File { doing, path: path.to_owned(), why }
    }
}

/// What the pod network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The bridge's name; also part of the table's and of the directory's, so that several can stand side by side.
    pub bridge: String,
    /// Where the pods' addresses come from; its first is the bridge's.
    pub subnet: Subnet,
    /// Addresses of the subnet never given to a pod.
    pub reserved: Vec<Ipv4Addr>,
    /// Whether what leaves the subnet carries the host's address.
    pub masquerade: bool,
    /// The MTU of bridge and pods; `None` takes that of the host's default route.
    pub mtu: Option<u32>,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            bridge: "coracle0".to_owned(),
            subnet: Subnet::new(Ipv4Addr::new(10, 88, 0, 0), 16),
            reserved: Vec::new(),
            masquerade: true,
            mtu: None,
        }
    }
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The link's name inside the pod.
    pub ifname: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses.
    pub ips: Vec<IpNet>,
    /// The default route's next hop: the bridge.
    pub gateway: Ipv4Addr,
    /// What was changed on the host for it, for the user to read; usually nothing.
    pub notes: Vec<String>,
}

/// The pod network of one bridge.
pub struct Network {
    config: NetConfig,
    leases: Leases,
    idle: Mutex<Vec<Kernel>>,
}

/// The two sockets to the kernel's network.
struct Kernel {
    route: Socket,
    filter: Socket,
}

/// Sockets on loan: they go back for the next act. They are kept because closing a netfilter socket waits some 13 ms for
/// the kernel to free what was removed through it.
struct Loan<'a> {
    idle: &'a Mutex<Vec<Kernel>>,
    kernel: Option<Kernel>,
}

impl Deref for Loan<'_> {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        self.kernel.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("present until dropped")
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        const MOST_IDLE: usize = 4;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.extend(self.kernel.take());
        }
    }
}

impl Network {
    /// Opens the network's state under `state_dir`. The kernel is not touched before a pod is attached.
    pub fn open(state_dir: &Path, config: NetConfig) -> Result<Network, Error> {
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
        Ok(Network { config, leases, idle: Mutex::new(Vec::new()) })
    }

    fn kernel(&self) -> Result<Loan<'_>, Error> {
        let spare = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let kernel = match spare {
            Some(kernel) => kernel,
            None => Kernel {
                route: Socket::route().map_err(|e| Error::kernel("open a routing netlink socket", e))?,
                filter: Socket::netfilter().map_err(|e| Error::kernel("open a netfilter netlink socket", e))?,
            },
        };
        Ok(Loan { idle: &self.idle, kernel: Some(kernel) })
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// Gives the sandbox whose network namespace is at `netns` a link, an address, a default route and its ports.
    ///
    /// Attaching again starts over: what the sandbox had is removed first.
    pub fn attach(&self, sandbox: &str, netns: &Path, ports: &[PortMapping]) -> Result<Attachment, Error> {
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
            port::check_free(&ports, &self.leases.read_all()?)?;
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
            gateway: self.gateway(),
            notes: ready.notes,
        })
    }

    /// Takes from a sandbox what [`Network::attach`] gave. Idempotent, and works when its namespace is gone.
    pub fn detach(&self, sandbox: &str) -> Result<(), Error> {
        check_id(sandbox)?;
        let Some(lease) = self.leases.of(sandbox)? else { return Ok(()) };
        let kernel = &mut *self.kernel()?;
        let lock = self.leases.lock()?;
        self.close_ports(kernel, &lease)?;
        self.link_down(&mut kernel.route, &lease)?;
        self.leases.release(&lock, lease.ip, sandbox)
    }

    /// The bridge's own address: the pods' next hop, and the host's address as they see it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.nth(1)
    }

    /// Makes the veth pair and sets up the pod's end.
    fn connect(&self, route: &mut Socket, lease: &Lease, netns: &File, ready: &bridge::Ready) -> Result<(), Error> {
        let veth = Veth {
            name: &lease.interface,
            bridge: ready.index,
            mtu: ready.mtu,
            hairpin: !lease.ports.is_empty(),
            peer_name: POD_INTERFACE,
            peer_mac: mac_of(lease.ip),
            peer_netns: netns.as_fd(),
        };
        // A network namespace belongs to a thread: this one enters the pod's and ends there. The socket of the host's
        // namespace goes along and stays what it is.
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| Error::kernel("enter the pod's network namespace", e.into()))?;
                self.set_up_pod(route, &veth, lease.ip)
            });
            inside.join().unwrap_or_else(|_| Err(Error::Invalid("the thread in the pod's namespace panicked".into())))
        })
    }

    /// Runs inside the pod's network namespace; `host` is a socket of the host's.
    fn set_up_pod(&self, host: &mut Socket, veth: &Veth, ip: Ipv4Addr) -> Result<(), Error> {
        // Another pod on the bridge must not become this one's router. For links yet to come, so it stands before them.
        let accept_ra = Path::new("/proc/sys/net/ipv6/conf/default/accept_ra");
        if let Err(e) = fs::write(accept_ra, "0")
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::file("write", accept_ra, e));
        }
        let mut pod = Socket::route().map_err(|e| Error::kernel("open a netlink socket in the pod", e))?;
        up(&mut pod, "lo").map_err(|e| Error::kernel("set up lo in the pod", e))?;
        link::add_veth(host, veth)
            .map_err(|e| Error::kernel(format!("make veth {} on bridge {}", veth.name, self.config.bridge), e))?;
        let index = up(&mut pod, POD_INTERFACE).map_err(|e| Error::kernel("set up eth0 in the pod", e))?;
        link::add_address(&mut pod, index, self.config.subnet, ip)
            .map_err(|e| Error::kernel(format!("give eth0 in the pod the address {ip}"), e))?;
        link::add_default_route(&mut pod, index, self.gateway())
            .map_err(|e| Error::kernel(format!("add the pod's default route by {}", self.gateway()), e))
    }

    /// Lets the host's ports of a lease lead to its pod.
    fn open_ports(&self, kernel: &mut Kernel, lease: &Lease) -> Result<(), Error> {
        let bridge = &self.config.bridge;
        if lease.ports.iter().any(PortMapping::on_loopback) {
            let path = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
            fs::write(&path, "1").map_err(|e| Error::file("write", path.as_ref(), e))?;
        }
        let doing = || format!("add hostPorts of {} to nftables table {}", lease.sandbox, nft::table(bridge));
        nft::add(&mut kernel.filter, bridge, &elements(lease)).map_err(|e| Error::kernel(doing(), e))?;
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
        nft::remove_elements(&mut kernel.filter, bridge, &elements(lease)).map_err(|e| Error::kernel(doing(), e))?;
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

    fn remove_link(&self, route: &mut Socket, lease: &Lease) -> Result<(), Error> {
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

fn up(socket: &mut Socket, name: &str) -> Result<u32, Refusal> {
    let link = link::find(socket, name)?.ok_or(Errno::ENODEV)?;
    link::set_up(socket, link.index, true)?;
    Ok(link.index)
}

fn has_udp(lease: &Lease) -> bool {
    lease.ports.iter().any(|port| port.protocol == Protocol::Udp)
}

fn elements(lease: &Lease) -> Vec<nft::Element> {
    lease.ports.iter().map(|port| nft::Element::new(port, lease.ip)).collect()
}

/// Opens a network namespace, and makes sure that it is one and not the caller's own, whose links it would change.
fn open_netns(path: &Path) -> Result<File, Error> {
    const OWN: &str = "/proc/thread-self/ns/net";
    let identity = |path: &Path, meta: io::Result<fs::Metadata>| {
        meta.map(|m| (m.dev(), m.ino())).map_err(|e| Error::file("stat network namespace", path, e))
    };
    let file = File::open(path).map_err(|e| Error::file("open network namespace", path, e))?;
    if identity(path, file.metadata())? == identity(OWN.as_ref(), fs::metadata(OWN))? {
        return Err(Error::Invalid(format!("network namespace {} is the host's own", path.display())));
    }
    Ok(file)
}

/// A sandbox's id becomes part of file names.
fn check_id(id: &str) -> Result<(), Error> {
    const LONGEST: usize = 128;
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if plain && (1..=LONGEST).contains(&id.len()) {
        return Ok(());
    }
    Err(Error::Invalid(format!("sandbox id {id:?}: 1 to {LONGEST} letters, digits, '_', '.' or '-' are needed")))
}

/// The host's end of a sandbox's veth pair: the start of its id where that is eight hex digits, else a hash of it (FNV-1a).
fn interface_name(sandbox: &str) -> String {
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
fn mac_of(ip: Ipv4Addr) -> link::Mac {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}
