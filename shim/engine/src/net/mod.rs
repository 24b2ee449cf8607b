//! The pods' network: CNI's, as `cni_conf_dir` says, or with nothing there the embedded one.
//!
//! The embedded network is a bridge on the host, one veth pair per pod, addresses from the bridge's subnet, ports of the
//! host that lead to pods. No CNI plugin, no daemon, no resident process.
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
//! | `cni` | networks by CNI: configurations, plugins, and the common ones without plugins |
//! | `embedded` | the embedded network's attachments |
//! | `lease` | which sandbox holds which address and ports: files, the lock, the turn of addresses |
//! | `bridge` | bridge, forwarding and table made on demand; what was changed is said |
//! | `nft` | the table's rules, its elements over netlink |
//! | `port` | port mappings and their conflicts, with pods and with processes of the host |
//! | `service` | addresses and ports that lead to any of several pods |
//! | `conntrack` | UDP flows that must not survive a change of ports |
//! | `forward` | hosts that drop what they forward: docker's iptables policy and others |
//! | `kernel`, `link`, `nl` | sockets and namespaces, routing netlink, and netlink itself |
//! | `orphans` | what is left of sandboxes that are gone |
//! | `user` | the network of an ordinary user's pods, by a program |
//! | `files` | /etc/hosts, /etc/hostname and /etc/resolv.conf as kubelet writes them |
//!
//! Local pods (`coracle run`) have the embedded network unless the configuration says otherwise. Which network a sandbox
//! got is told by what that network keeps of it on disk, so that it is left as it was joined, whatever the configuration
//! says by then.
//!
//! All functions block (an engine calls them through `spawn_blocking`), and work in the network namespace of the thread
//! that called first: the host's.

mod bridge;
mod cni;
mod conntrack;
mod embedded;
mod error;
pub mod files;
mod forward;
mod ip;
mod kernel;
mod lease;
mod link;
mod nft;
mod nl;
mod orphans;
mod port;
mod service;
#[cfg(test)]
mod tests;
mod user;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use error::Error;
pub use ip::{IpNet, Subnet};
pub use orphans::Orphan;
pub use service::{ServicePort, Services};

use crate::types::{DnsConfig, PortMapping, Protocol};
use cni::Cni;
use embedded::Embedded;
use kernel::Pool;
use user::User;

/// The pod's link inside its namespace, as everyone calls it.
const POD_INTERFACE: &str = "eth0";
/// What the host's ends are called: this and eight characters of the sandbox's id.
const HOST_PREFIX: &str = "cor";
/// Where `nft` and `iptables` are, also for a caller whose PATH leaves out the admin's folders.
const ADMIN_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
/// The kernel's limit of an interface name, without its ending zero.
const INTERFACE_NAME_MAX: usize = 15;

/// What the pod network is made of: the embedded network's settings, and CNI's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The bridge's name; also part of the table's and of the directory's, so that several can stand side by side.
    pub bridge: String,
    /// Where the pods' addresses come from; its first is the bridge's.
    pub subnet: Subnet,
    /// Addresses of the subnet never given to a pod.
    pub reserved: Vec<Ipv4Addr>,
    /// Where the cluster addresses of local pods' services come from.
    pub service_subnet: Subnet,
    /// The domain that services and local pods have their names in.
    pub cluster_domain: String,
    /// Whether what leaves the subnet carries the host's address.
    pub masquerade: bool,
    /// The MTU of bridge and pods; `None` takes that of the host's default route.
    pub mtu: Option<u32>,
    /// Where CNI's network configurations are; the first usable one, by file name, is the pods' network.
    pub cni_conf_dir: PathBuf,
    /// Where CNI's plugins are, looked through in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long one command of a plugin may take; then it is killed with all that it started.
    pub cni_timeout: Duration,
    /// With no network configuration at all, pods get the embedded network. Otherwise there is no network then.
    pub embedded: bool,
    /// Do what the plugins `bridge`, `host-local` and `portmap` would do without running them, where that is the same.
    pub native: bool,
    /// Local pods, too, get the network of `cni_conf_dir`, not the embedded one.
    pub cni_for_local_pods: bool,
    /// Pods are an ordinary user's, who may change nothing of the host's network: their way out is a program of his.
    pub unprivileged: bool,
}

/// Containerd's and kubelet's folder of network configurations.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Where plugins are installed: the ecosystem's place, and Debian's.
pub const CNI_BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// Three plugins in a row still fit into kubelet's four minutes for a sandbox.
const CNI_TIMEOUT: Duration = Duration::from_secs(60);

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            bridge: "coracle0".to_owned(),
            subnet: Subnet::new(Ipv4Addr::new(10, 88, 0, 0), 16),
            service_subnet: Subnet::new(Ipv4Addr::new(10, 96, 0, 0), 16),
            cluster_domain: "cluster.local".to_owned(),
            reserved: Vec::new(),
            masquerade: true,
            mtu: None,
            cni_conf_dir: CNI_CONF_DIR.into(),
            cni_bin_dirs: CNI_BIN_DIRS.map(PathBuf::from).to_vec(),
            cni_timeout: CNI_TIMEOUT,
            embedded: true,
            native: true,
            cni_for_local_pods: false,
            unprivileged: false,
        }
    }
}

/// What a sandbox is and wants, for the network.
#[derive(Clone, Copy, Debug)]
pub struct Attach<'a> {
    /// Its id.
    pub sandbox: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's uid.
    pub uid: &'a str,
    /// Its network namespace.
    pub netns: &'a Path,
    /// Ports of the host that lead into the pod.
    pub ports: &'a [PortMapping],
    /// The pod's annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// The pod's resolver settings, where it has its own.
    pub dns: Option<&'a DnsConfig>,
    /// The pod's cgroup, as its creator named it.
    pub cgroup: &'a str,
    /// A local pod, not a kubelet's.
    pub local: bool,
}

/// A pod's place in the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The link's name inside the pod.
    pub ifname: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses, the primary one first: the first of IPv4, where there is one.
    pub ips: Vec<IpNet>,
    /// The default route's next hop.
    pub gateway: Option<IpAddr>,
    /// The resolver settings that the network recommends, for a pod without its own.
    pub dns: Option<DnsConfig>,
    /// What was changed on the host for it, for the user to read; usually nothing.
    pub notes: Vec<String>,
}

/// Whether pods get a network, as CRI's condition `NetworkReady` wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether they do.
    pub ready: bool,
    /// Why not, in one word of Kubernetes'; empty when ready.
    pub reason: String,
    /// More in words.
    pub message: String,
}

/// The pods' network.
pub struct Network {
    config: NetConfig,
    embedded: Embedded,
    cni: Cni,
    user: User,
}

impl Network {
    /// Opens the network's state under `state_dir`. The kernel is not touched before a pod is attached.
    pub fn open(state_dir: &Path, config: NetConfig) -> Result<Network, Error> {
        let kernels = Arc::new(Pool::default());
        Ok(Network {
            embedded: Embedded::open(state_dir, config.clone(), kernels.clone())?,
            cni: Cni::open(state_dir, config.clone(), kernels)?,
            user: User::open(state_dir),
            config,
        })
    }

    /// The embedded network's bridge.
    pub fn bridge(&self) -> &str {
        self.embedded.bridge()
    }

    /// Gives a sandbox its place in the network: addresses, routes, ports.
    ///
    /// Attaching again starts over: what the sandbox had is removed first.
    pub fn attach(&self, attach: &Attach) -> Result<Attachment, Error> {
        check_id(attach.sandbox)?;
        if self.config.unprivileged {
            return self.user.attach(attach.sandbox, attach.netns, attach.ports);
        }
        if attach.local && !self.config.cni_for_local_pods {
            return self.embed(attach);
        }
        let found = self.cni.found();
        match found.conf {
            Some(conf) => {
                self.embedded.detach(attach.sandbox)?;
                self.cni.attach(conf, attach, &self.embedded.holders()?)
            }
            // A configuration that makes no sense is no reason to give pods another network than the one it means.
            None if self.config.embedded && found.skipped.is_empty() => self.embed(attach),
            None => Err(Error::NotReady(self.cni.absence(&found))),
        }
    }

    fn embed(&self, attach: &Attach) -> Result<Attachment, Error> {
        self.cni.detach(attach.sandbox)?;
        self.embedded.attach(attach.sandbox, attach.netns, attach.ports, &self.cni.holders()?)
    }

    /// Takes from a sandbox what [`Network::attach`] gave. Idempotent, and works when its namespace is gone.
    pub fn detach(&self, sandbox: &str) -> Result<(), Error> {
        check_id(sandbox)?;
        if self.config.unprivileged {
            return self.user.detach(sandbox);
        }
        self.cni.detach(sandbox)?;
        self.embedded.detach(sandbox)
    }

    /// Whether a sandbox's place in its network still is what it was made; `netns` is the pod's namespace. Only what CNI
    /// made can be asked.
    pub fn check(&self, sandbox: &str, netns: &Path) -> Result<(), Error> {
        check_id(sandbox)?;
        self.cni.check(sandbox, netns)
    }

    /// Whether a pod (not a local one) that starts now would get a network. Plugins may be asked, for some seconds at
    /// most.
    pub fn status(&self) -> NetworkStatus {
        let found = self.cni.found();
        if found.conf.is_none() && found.skipped.is_empty() && self.config.embedded {
            return NetworkStatus { ready: true, ..NetworkStatus::default() };
        }
        self.cni.status(&found)
    }

    /// What no live sandbox stands for. `live` is asked about each sandbox that holds something, *after* that was seen; a
    /// sandbox is recorded before it is attached, so one that starts meanwhile is not mistaken for a dead one as long as
    /// `live` looks at that moment (and a set made earlier is used only while nothing can start).
    pub fn orphans(&self, live: impl Fn(&str) -> bool) -> Result<Vec<Orphan>, Error> {
        if self.config.unprivileged {
            let dead = self.user.attached().into_iter().filter(|sandbox| !live(sandbox));
            let network = "user".to_owned();
            return Ok(dead.map(|sandbox| Orphan::Attachment { sandbox, network: network.clone() }).collect());
        }
        let attached = self.cni.attached()?.into_iter().filter(|(sandbox, _)| !live(sandbox));
        let mut orphans: Vec<Orphan> =
            attached.map(|(sandbox, network)| Orphan::Attachment { sandbox, network }).collect();
        orphans.extend(self.embedded.orphans(&live)?);
        Ok(orphans)
    }

    /// Clears orphans that [`Network::orphans`] found; what is gone meanwhile is passed over.
    pub fn clear(&self, orphans: &[Orphan]) -> Result<(), Error> {
        for orphan in orphans {
            if let Orphan::Attachment { sandbox, .. } = orphan {
                self.detach(sandbox)?;
            }
        }
        if self.config.unprivileged {
            return Ok(());
        }
        self.embedded.clear(orphans)
    }

    /// Makes the rules of services those given, in one transaction, and says whether anything changed; `None` takes
    /// everything back. Doing it again costs next to nothing.
    pub fn set_services(&self, services: Option<&Services>) -> Result<bool, Error> {
        self.embedded.set_services(services)
    }

    /// Whether a program of the machine has a port.
    pub fn has_listener(&self, port: u16, protocol: Protocol) -> bool {
        let asked = PortMapping { host_ip: None, host_port: port, container_port: port, protocol };
        port::listener(&asked).is_some()
    }

    /// The bridge's own address, on a bridge that is there once this returns: what listens on it is reached by all pods.
    pub fn gateway(&self) -> Result<Ipv4Addr, Error> {
        self.embedded.stand()?;
        Ok(self.embedded.gateway())
    }

    /// Lets the plugins of the present CNI network clear what belongs to no attachment (the command GC), where they can
    /// and the configuration lets them.
    pub fn collect(&self) -> Result<(), Error> {
        if self.config.unprivileged {
            return Ok(());
        }
        self.cni.collect()
    }

    /// What keeps attached pods from the network though all of ours stands for them, for `doctor`. Changes nothing.
    pub fn troubles(&self) -> Result<Vec<String>, Error> {
        if self.config.unprivileged {
            return Ok(Vec::new());
        }
        let mut troubles = self.embedded.troubles()?;
        for holder in self.embedded.holders()?.into_iter().chain(self.cni.holders()?) {
            for port in &holder.ports {
                // Nothing holds a hostPort bound; who binds it later is told so by nobody else.
                if let Some(owner) = port::listener(port) {
                    let sandbox = &holder.sandbox;
                    troubles.push(format!(
                        "hostPort {port} leads to sandbox {sandbox}: {owner}, which has it too, is not reached there"
                    ));
                }
            }
        }
        Ok(troubles)
    }

    /// Removes the embedded network's bridge and table, and says whether: not while anything holds a lease, and not when
    /// nothing was made. The next pod makes them again. The table of CNI networks goes, too, when no pod has part in it;
    /// their bridges are the administrator's.
    pub fn remove(&self) -> Result<bool, Error> {
        if self.config.unprivileged {
            return Ok(false);
        }
        self.cni.remove()?;
        self.embedded.remove()
    }
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
