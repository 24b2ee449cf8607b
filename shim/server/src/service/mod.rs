//! Services for local pods. No process carries their traffic: the kernel's rules do ([`coracle_engine::net::Services`]).
//!
//! | file | job |
//! |---|---|
//! | `allocate` | which Service has which address and ports of the machine |
//! | `endpoints` | from Services and pods to rules and names: pure |
//! | `dress` | host name and resolver settings of a new pod |
//!
//! [`refresh`] makes everything right, whatever it was: addresses for Services that have none, rules that lead to the pods
//! that are ready now, the table that the DNS server reads, the server itself. It is called when a pod starts, stops,
//! becomes ready or unready or goes, when an object changes, and by `gc`; calls wait for each other, and one that finds
//! nothing to change costs a look at each pod. Without Services it costs a look into a folder and at the sandboxes'
//! records: one of them may ask the DNS server.
//!
//! ```text
//! STATE/services/lock         held by who makes it right
//! STATE/services/table.json   what names stand for, written whole by rename
//! STATE/objects/NAMESPACE/ServiceAllocation/NAME.json
//! ```
//!
//! When no pod is left, or no Service, all rules are taken back and the server leaves: they come again with the next pod.
//! A pod has endpoints from the moment it is ready until it is asked to stop; one without readiness probes is ready while
//! all its containers run.

pub mod allocate;
mod dress;
pub mod endpoints;

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, Result};
use coracle_engine::net::{ServicePort, Services};
use coracle_engine::{
    ContainerFilter, Engine, Protocol as NetProtocol, SandboxFilter, SandboxState, SandboxStatus, lock, record,
};

use crate::dns::zone::Table;
use crate::dns::{self, server::Places};
use crate::exit::Coded;
use crate::kube::container::Protocol;
use crate::kube::meta::Meta;
use crate::kube::service::{ClusterIp, MASTER, Service};
use crate::objects::{AnyObject, Kind, Objects};
use crate::pod::condition;
use crate::pod::facts::host_ips;
use crate::pod::keep::{Folder, Kept};
use crate::pod::observe::Observed;
use allocate::Allocated;
pub use dress::dress;
use endpoints::Backend;

const MODE: u32 = 0o600;
/// The port of DNS.
const DNS: u16 = 53;

/// The variables that tell a pod of the namespace of Services, in the order of their names; `links` is the pod's
/// enableServiceLinks.
pub fn variables(objects: &Objects, namespace: &str, links: bool) -> Result<Vec<(String, String)>> {
    let mut services = match links {
        true => objects.list::<Service>(Some(namespace))?,
        false => Vec::new(),
    };
    if !services.iter().any(Service::is_master) {
        services.extend(objects.get::<Service>(MASTER.0, MASTER.1)?);
    }
    services.sort_by(|one, other| one.meta.name.cmp(&other.meta.name));
    let mut all = Vec::new();
    for service in services {
        let Meta { namespace, name, .. } = &service.meta;
        let given = objects.get::<Allocated>(namespace, name)?;
        all.extend(with_address(service, given.as_ref()).variables());
    }
    Ok(all)
}

/// The Service as the API server would show it: with the address it was given.
pub fn with_address(mut service: Service, given: Option<&Allocated>) -> Service {
    if let Some(ip) = given.and_then(|given| given.ip) {
        service.cluster_ip = ClusterIp::Given(ip.into());
    }
    service
}

/// Whether Services can be what their files want; asked before they are kept.
pub fn check(engine: &Engine, new: &[AnyObject]) -> Result<()> {
    let of_kind = |object: &AnyObject| match object {
        AnyObject::Service(service) => Some(service.clone()),
        _ => None,
    };
    let new: Vec<Service> = new.iter().filter_map(of_kind).collect();
    let mut all = Objects::open(engine.paths()).list::<Service>(None)?;
    for service in &new {
        all.retain(|other| key(&other.meta) != key(&service.meta));
        all.push(service.clone());
    }
    let subnet = engine.config().network.service_subnet;
    for service in &new {
        let told = allocate::check(service, &all, subnet, dns::address(engine));
        told.map_err(|why| Coded::usage(format!("Service {}: {why}", service.meta.name)))?;
    }
    Ok(())
}

fn key(meta: &Meta) -> (&str, &str) {
    (&meta.namespace, &meta.name)
}

/// Makes rules, names and addresses those of the present Services and pods.
pub async fn refresh(engine: &Engine) -> Result<()> {
    let engine = engine.clone();
    let refreshed = tokio::task::spawn_blocking(move || refresh_now(&engine));
    refreshed.await.context("refresh Services")?.context("refresh Services")
}

fn refresh_now(engine: &Engine) -> Result<()> {
    let objects = Objects::open(engine.paths());
    let dir = engine.paths().state.join("services");
    if !dir.exists() && objects.list::<Service>(None)?.is_empty() && users(engine, &ready(engine)?) == 0 {
        return Ok(());
    }
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let _lock = lock::section(&dir.join("lock"), true)?;
    // Looked at only now: what another saw before it had the lock would undo what it did.
    let services = objects.list::<Service>(None)?;
    let sandboxes = ready(engine)?;
    let users = users(engine, &sandboxes);
    let pods = if services.is_empty() { Vec::new() } else { local(engine, sandboxes)? };
    let allocated = give(engine, &objects, &services)?;
    let places = Places::of(&engine.paths().state);
    if pods.is_empty() && users == 0 {
        engine.network().set_services(None)?;
        return match fs::remove_file(places.table()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", places.table().display()))
            }
            _ => Ok(()),
        };
    }
    let mut backends = Vec::new();
    for (sandbox, kept) in &pods {
        backends.extend(backend(engine, sandbox, kept)?);
    }
    let network = &engine.config().network;
    let table = endpoints::table(&network.cluster_domain, &services, &allocated, &backends, users);
    if record::read_json::<Table>(places.table()).ok().flatten().as_ref() != Some(&table) {
        let bytes = serde_json::to_vec(&table).context("write the table of names")?;
        record::write_file(places.table(), &bytes, MODE)?;
    }
    let mut ports = endpoints::ports(&services, &allocated, &backends);
    if users > 0 {
        ports.extend(dns_ports(engine)?);
    }
    engine.network().set_services(Some(&Services { subnet: network.service_subnet, ports }))?;
    Ok(())
}

/// The ports of the DNS server, which is started if none lives.
fn dns_ports(engine: &Engine) -> Result<[ServicePort; 2]> {
    let server = dns::ensure(engine)?;
    Ok([NetProtocol::Udp, NetProtocol::Tcp].map(|protocol| ServicePort {
        name: "dns".to_owned(),
        addresses: vec![dns::address(engine)],
        protocol,
        port: DNS,
        node_port: None,
        sticky: false,
        backends: vec![server],
    }))
}

/// Gives each Service what it is to have, and forgets what was given to those that are gone.
fn give(engine: &Engine, objects: &Objects, services: &[Service]) -> Result<Vec<Allocated>> {
    let before = objects.list::<Allocated>(None)?;
    let subnet = engine.config().network.service_subnet;
    let busy = |port, protocol| engine.network().has_listener(port, net_protocol(protocol));
    let given = allocate::allocate(services, &before, subnet, dns::address(engine), busy);
    for one in given.iter().filter(|one| !before.contains(one)) {
        objects.put(one)?;
    }
    for old in before.iter().filter(|old| !given.iter().any(|one| key(&one.meta) == key(&old.meta))) {
        objects.delete::<Allocated>(&old.meta().namespace, &old.meta().name)?;
    }
    Ok(given)
}

fn net_protocol(protocol: Protocol) -> NetProtocol {
    match protocol {
        Protocol::Tcp => NetProtocol::Tcp,
        Protocol::Udp => NetProtocol::Udp,
        Protocol::Sctp => NetProtocol::Sctp,
    }
}

/// The sandboxes that live.
fn ready(engine: &Engine) -> Result<Vec<SandboxStatus>> {
    let mut sandboxes = engine.list_sandboxes(&SandboxFilter::default())?;
    sandboxes.retain(|sandbox| sandbox.state == SandboxState::Ready);
    Ok(sandboxes)
}

/// How many of them ask the DNS server. One whose pod is not written yet is about to be a pod.
fn users(engine: &Engine, sandboxes: &[SandboxStatus]) -> usize {
    let server = dns::address(engine).to_string();
    let asks =
        |sandbox: &&SandboxStatus| sandbox.config.dns.as_ref().is_some_and(|config| config.servers.contains(&server));
    sandboxes.iter().filter(asks).count()
}

/// The local pods among them; the others are another client's.
fn local(engine: &Engine, sandboxes: Vec<SandboxStatus>) -> Result<Vec<(SandboxStatus, Kept)>> {
    let mut pods = Vec::new();
    for sandbox in sandboxes {
        if let Some(kept) = Folder::of(engine.paths(), &sandbox.id).read_pod()? {
            pods.push((sandbox, kept));
        }
    }
    Ok(pods)
}

/// The pod as Services see it; None for one without an address.
fn backend(engine: &Engine, sandbox: &SandboxStatus, kept: &Kept) -> Result<Option<Backend>> {
    let (pod, folder) = (&kept.pod, Folder::of(engine.paths(), &sandbox.id));
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    let ip = match pod.host_network {
        true => host_ips().iter().find_map(v4),
        false => sandbox.ips.iter().find_map(v4),
    };
    let Some(ip) = ip else { return Ok(None) };
    let ports = pod.all_containers().flat_map(|container| &container.ports);
    Ok(Some(Backend {
        namespace: pod.namespace.clone(),
        labels: pod.labels.clone(),
        ip,
        hostname: pod.hostname.clone(),
        subdomain: pod.subdomain.clone(),
        ready: !folder.is_stopping() && is_ready(engine, &folder, sandbox, kept)?,
        ports: ports.map(|port| (port.name.clone(), port.protocol, port.container_port)).collect(),
    }))
}

/// Whether all containers are ready.
fn is_ready(engine: &Engine, folder: &Folder, sandbox: &SandboxStatus, kept: &Kept) -> Result<bool> {
    let filter = ContainerFilter { sandbox_id: sandbox.id.clone(), ..ContainerFilter::default() };
    let observed = Observed::new(engine.list_containers(&filter)?);
    let tended = folder.read_tended()?;
    let started = kept.pod.containers.iter().all(|container| observed.latest(&container.name).is_some());
    Ok(started && condition::unready(kept, &tended, &observed).is_empty())
}

/// What is wrong with Services, for `doctor`.
pub fn troubles(engine: &Engine) -> Result<Vec<String>> {
    let users = users(engine, &ready(engine)?);
    let mut troubles = Vec::new();
    if users > 0 && !dns::lives(engine)? {
        troubles.push(format!("the DNS server that {users} pod(s) ask does not run (`coracle gc` starts it again)"));
    }
    Ok(troubles)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn store() -> (tempfile::TempDir, Objects) {
        let dir = tempfile::tempdir().unwrap();
        let paths = coracle_engine::Paths { state: dir.path().to_owned(), ..Default::default() };
        let objects = Objects::open(&paths);
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{port: 5432}]}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: else}\nspec: {ports: [{port: 1}]}\n";
        for service in crate::kube::service::services(text).unwrap() {
            objects.put(&service).unwrap();
            let ip = Some(Ipv4Addr::new(10, 96, 1, 1));
            objects.put(&Allocated { meta: service.meta, ip, node_ports: Default::default() }).unwrap();
        }
        (dir, objects)
    }

    fn names(objects: &Objects, links: bool) -> Vec<String> {
        variables(objects, "default", links).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_pod_is_told_of_the_services_of_its_namespace_in_order() {
        let (_dir, objects) = store();
        let all = names(&objects, true);
        assert_eq!(all[..3], ["DB_SERVICE_HOST", "DB_SERVICE_PORT", "DB_PORT"]);
        assert!(all.contains(&"WEB_PORT_80_TCP_ADDR".to_owned()));
        assert!(!all.iter().any(|name| name.starts_with("OTHER")));
    }

    #[test]
    fn without_links_it_is_told_of_the_master_alone() {
        let (_dir, objects) = store();
        assert!(names(&objects, false).is_empty());
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}\n";
        objects.put(&crate::kube::service::services(text).unwrap()[0]).unwrap();
        assert!(names(&objects, false).contains(&"KUBERNETES_SERVICE_HOST".to_owned()));
    }
}
