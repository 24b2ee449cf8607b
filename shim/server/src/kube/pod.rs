//! A Pod as it is meant: validated as the API server validates, with its defaults filled in.
//!
//! Everything after this module works with such types alone. They are also what a running pod's `pod.json` holds, so
//! that whoever tends the pod later needs neither the file nor its validation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::container::{self, Container, Protocol, Resources};
use super::env::{self, EnvValue};
use super::meta::Meta;
use super::quantity::Quantities;
use super::raw::{self, At, List, Place};
use super::security::{PodDefaults, PodSecurity};
use super::volume::{self, Volume};
use super::{Fault, config, names, resources};

/// Seconds between SIGTERM and SIGKILL when the Pod does not say.
const DEFAULT_GRACE: u64 = 30;
/// Most containers of a pod: far above what one machine can use, far below what hurts.
const MAX_CONTAINERS: usize = 500;

/// A Pod to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// The host name inside: `spec.hostname`, else the name, cut to what a host name may be.
    pub hostname: String,
    /// Whether the pod uses the machine's own network.
    pub host_network: bool,
    /// Who shares a process namespace.
    pub pid: PidMode,
    /// Lines for /etc/hosts: an address and its names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// What resolv.conf says beyond, or instead of, the machine's.
    pub dns: Dns,
    /// When ended containers start again.
    pub restart: RestartPolicy,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace: u64,
    /// Seconds from the pod's start after which it is ended and has failed.
    #[serde(default)]
    pub deadline: Option<u64>,
    /// Kernel settings of the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// What else its security context says for the whole pod.
    #[serde(default)]
    pub security: PodSecurity,
    /// Whether it shares the machine's IPC.
    #[serde(default)]
    pub host_ipc: bool,
    /// Whether it has the machine's user ids; Some(false): ids of its own.
    #[serde(default)]
    pub host_users: Option<bool>,
    /// The RuntimeClass.
    #[serde(default)]
    pub runtime_class: Option<String>,
    /// What its handler takes: as the file says; else the RuntimeClass does.
    #[serde(default)]
    pub overhead: Quantities,
    /// What all its containers together ask for and may take.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// The headless Service below which it has a DNS name.
    #[serde(default)]
    pub subdomain: Option<String>,
    /// Whether the host name inside is the full DNS name.
    #[serde(default)]
    pub hostname_as_fqdn: bool,
    /// The host name inside, whatever the others say.
    #[serde(default)]
    pub hostname_override: Option<String>,
    /// Whether it gets variables for the Services of its namespace.
    #[serde(default = "yes")]
    pub service_links: bool,
    /// Secrets for pulling its images.
    #[serde(default)]
    pub pull_secrets: Vec<String>,
    /// Its ServiceAccount.
    #[serde(default)]
    pub service_account: Option<String>,
    /// `generateName`, if its name was made of it.
    #[serde(default)]
    pub generated: Option<String>,
    /// Containers that run to completion, one after another, before the others start; sidecars among them stay.
    pub init: Vec<Container>,
    /// The containers.
    pub containers: Vec<Container>,
    /// The volumes that containers mount.
    pub volumes: Vec<Volume>,
}

fn yes() -> bool {
    true
}

/// `spec.restartPolicy`, or a container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// Unless it exited with 0.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    /// Reads one.
    pub fn convert(at: &At<String>) -> Result<RestartPolicy, Fault> {
        let choices = [
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ];
        choice(at, &choices)
    }
}

/// `spec.dnsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsPolicy {
    /// Names of Services first, then the machine's; the machine's alone in the machine's network.
    #[default]
    ClusterFirst,
    /// The same in the machine's network, too.
    ClusterFirstWithHostNet,
    /// The machine's.
    Default,
    /// Only what dnsConfig says.
    None,
}

/// Who shares a process namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Each container has its own.
    Container,
    /// One for the pod: `shareProcessNamespace`.
    Pod,
    /// The machine's: `hostPID`.
    Node,
}

/// `spec.dnsPolicy` and `spec.dnsConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// What its resolv.conf begins with.
    pub policy: DnsPolicy,
    /// Whether the machine's resolv.conf is left out (`dnsPolicy: None`).
    pub only_these: bool,
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options, as resolv.conf writes them.
    pub options: Vec<String>,
}

impl Pod {
    /// Gives the pod another name; a host name that followed from the old one follows from the new.
    pub fn rename(&mut self, name: &str) {
        if self.hostname == host_name(&self.name) {
            self.hostname = host_name(name);
        }
        self.name = name.to_owned();
    }

    /// All containers, the init containers first.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init.iter().chain(&self.containers)
    }
}

/// Reads the pods of a file's text; `file` is its name for messages.
#[cfg(test)]
pub fn read(file: &str, text: &str) -> Result<Vec<Pod>, Fault> {
    let source = super::Source { name: file.to_owned(), text: text.to_owned() };
    super::read(&[source]).map(|documents| documents.pods)
}

/// A field that must be there.
pub(super) fn required<T>(field: Option<At<T>>, place: &Place, name: &str) -> Result<At<T>, Fault> {
    field.ok_or_else(|| place.fault(format!("{name} is missing")))
}

/// The value of an optional field.
pub(super) fn value<T>(field: Option<At<T>>) -> Option<T> {
    field.map(|at| at.value)
}

/// Applies a rule for names to a value.
pub(super) fn checked(at: &At<String>, rule: fn(&str) -> names::Check) -> Result<String, Fault> {
    match rule(&at.value) {
        Ok(()) => Ok(at.value.clone()),
        Err(why) => Err(at.fault(why)),
    }
}

/// Picks the choice that a word names.
pub(super) fn choice<T: Copy>(at: &At<String>, choices: &[(&str, T)]) -> Result<T, Fault> {
    match choices.iter().find(|(word, _)| *word == at.value) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).filter(|word| !word.is_empty()).collect();
            Err(at.fault(format!("{:?} is not one of {}", at.value, words.join(", "))))
        }
    }
}

/// Gives a Pod its meaning.
pub fn convert(object: raw::Pod, root: &Place) -> Result<Pod, Fault> {
    let meta = Meta::namespaced(object.metadata, root, names::subdomain)?;
    of_spec(meta, required(object.spec, root, "spec")?)
}

/// Gives a spec its meaning, under this name.
pub fn of_spec(meta: Meta, spec: At<raw::PodSpec>) -> Result<Pod, Fault> {
    of_template(meta, spec, Vec::new())
}

/// The same for a workload's pods, which have these volumes besides.
pub fn of_template(meta: Meta, spec: At<raw::PodSpec>, more: Vec<Volume>) -> Result<Pod, Fault> {
    let At { value: spec, place } = spec;
    let Meta { name, namespace, labels, annotations, generated } = meta;
    let host_network = value(spec.host_network).unwrap_or(false);
    let hostname = match spec.hostname.as_ref().filter(|at| !at.value.is_empty()) {
        Some(at) => checked(at, names::label)?,
        None => host_name(&name),
    };
    let host_pid = value(spec.host_pid).unwrap_or(false);
    let pid = pid_mode(host_pid, spec.share_process_namespace)?;
    let host_ipc = value(spec.host_ipc).unwrap_or(false);
    if let Some(at) = spec.host_users.as_ref().filter(|at| !at.value && (host_network || host_pid || host_ipc)) {
        return Err(at.fault("cannot be false together with hostNetwork, hostPID or hostIPC"));
    }
    if let Some(at) = spec.automount_token.filter(|at| at.value) {
        return Err(at.fault("there is no API server whose token could be mounted: remove it"));
    }
    if let Some(at) = value(spec.os).and_then(|os| os.name).filter(|at| at.value != "linux") {
        return Err(at.fault(format!("{:?} does not run here: linux does", at.value)));
    }
    let dns = dns(spec.dns_policy, spec.dns_config)?;
    let (defaults, security, sysctls) = PodDefaults::convert(value(spec.security).unwrap_or_default())?;
    let mut volumes = volume::convert_all(spec.volumes)?;
    volumes.retain(|volume| !more.iter().any(|other| other.name == volume.name));
    volumes.extend(more);
    let grace = grace(spec.grace_seconds)?;
    let context = |init| container::Context { host_network, defaults: &defaults, volumes: &volumes, grace, init };
    let mut names = HashSet::new();
    let init = containers(spec.init_containers, &context(true), &mut names)?;
    let list = required(spec.containers, &place, "containers")?;
    if list.value.is_empty() {
        return Err(list.fault("a Pod has at least one container"));
    }
    if list.value.len() + init.len() > MAX_CONTAINERS {
        return Err(list.fault(format!("more than {MAX_CONTAINERS} containers")));
    }
    let ports_place = list.place.clone();
    let containers = containers(Some(list), &context(false), &mut names)?;
    host_ports(init.iter().filter(|container| container.is_sidecar(true)).chain(&containers), &ports_place)?;
    let fqdn = spec.hostname_as_fqdn.as_ref().is_some_and(|at| at.value);
    let account = spec.service_account_name.or(spec.service_account).filter(|at| !at.value.is_empty());
    let text = |at: Option<At<String>>| at.filter(|at| !at.value.is_empty());
    let pod = Pod {
        name,
        namespace,
        labels,
        annotations,
        generated,
        hostname,
        host_network,
        pid,
        host_aliases: host_aliases(spec.host_aliases)?,
        dns,
        restart: text(spec.restart_policy)
            .as_ref()
            .map(RestartPolicy::convert)
            .transpose()?
            .unwrap_or(RestartPolicy::Always),
        grace,
        deadline: spec.deadline.as_ref().map(deadline).transpose()?,
        sysctls,
        security,
        host_ipc,
        host_users: value(spec.host_users),
        runtime_class: text(spec.runtime_class).map(|at| checked(&at, names::subdomain)).transpose()?,
        overhead: config::quantities(spec.overhead)?,
        resources: value(spec.resources).map(Resources::convert).transpose()?,
        subdomain: text(spec.subdomain).map(|at| checked(&at, names::label)).transpose()?,
        hostname_as_fqdn: fqdn,
        hostname_override: hostname_override(text(spec.hostname_override), host_network, fqdn)?,
        service_links: value(spec.service_links).unwrap_or(true),
        pull_secrets: config::references(spec.pull_secrets)?,
        service_account: account.map(|at| checked(&at, names::subdomain)).transpose()?,
        init,
        containers,
        volumes,
    };
    check_references(&pod, &place)?;
    if let Some(Err(why)) = pod.resources.as_ref().map(|own| resources::check(own, &pod.containers)) {
        return Err(place.fault(format!("resources.{why}")));
    }
    // As the API server has it: who sees all of /proc must not be the machine's root.
    let unmasked = pod.all_containers().find(|container| container.security.proc_unmasked);
    if let Some(container) = unmasked.filter(|_| pod.host_users != Some(false)) {
        let text = format!("procMount of container {}: hostUsers must be false to use Unmasked", container.name);
        return Err(place.fault(text));
    }
    Ok(pod)
}

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

fn hostname_override(at: Option<At<String>>, host_network: bool, fqdn: bool) -> Result<Option<String>, Fault> {
    let Some(at) = at else { return Ok(None) };
    if host_network || fqdn {
        return Err(at.fault("cannot stand beside hostNetwork or setHostnameAsFQDN"));
    }
    if at.value.len() > MAX_HOSTNAME {
        return Err(at.fault(format!("must be no more than {MAX_HOSTNAME} characters")));
    }
    checked(&at, names::subdomain).map(Some)
}

fn deadline(at: &At<i64>) -> Result<u64, Fault> {
    match i32::try_from(at.value) {
        Ok(seconds) if seconds > 0 => Ok(u64::from(seconds.unsigned_abs())),
        _ => Err(at.fault(format!("{} is not from 1 to {}", at.value, i32::MAX))),
    }
}

/// Checks that the containers named by references to resources exist.
fn check_references(pod: &Pod, place: &Place) -> Result<(), Fault> {
    let names: Vec<&str> = pod.all_containers().map(|container| container.name.as_str()).collect();
    let variables = pod.all_containers().flat_map(|container| &container.env);
    let of_variables = variables.filter_map(|variable| match &variable.value {
        EnvValue::Resource(field) => Some(field),
        _ => None,
    });
    let of_volumes = pod.volumes.iter().flat_map(volume::Volume::resources);
    of_variables.chain(of_volumes).try_for_each(|field| env::check_container(field, &names, place))
}

fn containers(
    list: Option<At<List<raw::Container>>>,
    context: &container::Context<'_>,
    names: &mut HashSet<String>,
) -> Result<Vec<Container>, Fault> {
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let name = item.value.name.clone();
        let container = container::convert(item, context)?;
        if !names.insert(container.name.clone())
            && let Some(at) = name
        {
            return Err(at.fault(format!("a second container is named {:?}", container.name)));
        }
        out.push(container);
    }
    Ok(out)
}

/// The pod's name as a host name: at most 63 characters, as kubelet cuts it.
fn host_name(name: &str) -> String {
    let cut = &name[..name.len().min(names::MAX_LABEL)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn pid_mode(host: bool, share: Option<At<bool>>) -> Result<PidMode, Fault> {
    match (host, share.filter(|at| at.value)) {
        (true, Some(at)) => Err(at.fault("cannot be true together with hostPID")),
        (true, None) => Ok(PidMode::Node),
        (false, Some(_)) => Ok(PidMode::Pod),
        (false, None) => Ok(PidMode::Container),
    }
}

fn grace(at: Option<At<i64>>) -> Result<u64, Fault> {
    match at {
        None => Ok(DEFAULT_GRACE),
        Some(at) => u64::try_from(at.value).map_err(|_| at.fault("must not be negative")),
    }
}

fn host_aliases(list: Option<At<List<raw::HostAlias>>>) -> Result<Vec<(String, Vec<String>)>, Fault> {
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let ip = required(item.value.ip, &item.place, "ip")?;
        check_ip(&ip)?;
        let mut hostnames = Vec::new();
        for name in value(item.value.hostnames).unwrap_or_default() {
            hostnames.push(checked(&name, names::subdomain)?);
        }
        out.push((ip.value, hostnames));
    }
    Ok(out)
}

pub(super) fn check_ip(at: &At<String>) -> Result<IpAddr, Fault> {
    at.value.parse().map_err(|_| at.fault(format!("{:?} is not an IP address", at.value)))
}

/// Name servers of one resolv.conf, as in Kubernetes.
const MAX_NAMESERVERS: usize = 3;
/// Search domains of one resolv.conf, as in Kubernetes.
const MAX_SEARCHES: usize = 32;

fn dns(policy: Option<At<String>>, config: Option<At<raw::PodDnsConfig>>) -> Result<Dns, Fault> {
    let choices = [
        ("Default", DnsPolicy::Default),
        ("ClusterFirst", DnsPolicy::ClusterFirst),
        ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
        ("None", DnsPolicy::None),
    ];
    let policy = policy.filter(|at| !at.value.is_empty());
    let word = policy.as_ref().map(|at| choice(at, &choices)).transpose()?.unwrap_or_default();
    let only_these = word == DnsPolicy::None;
    let config = value(config).unwrap_or_default();
    let mut out = Dns { policy: word, only_these, ..Dns::default() };
    if let Some(list) = config.nameservers {
        if list.value.len() > MAX_NAMESERVERS {
            return Err(list.fault(format!("more than {MAX_NAMESERVERS} name servers")));
        }
        for at in list.value {
            check_ip(&at)?;
            out.nameservers.push(at.value);
        }
    }
    if let Some(list) = config.searches {
        if list.value.len() > MAX_SEARCHES {
            return Err(list.fault(format!("more than {MAX_SEARCHES} search domains")));
        }
        for at in list.value {
            names::subdomain(at.value.trim_end_matches('.')).map_err(|why| at.fault(why))?;
            out.searches.push(at.value);
        }
    }
    for at in value(config.options).unwrap_or_default() {
        out.options.push(dns_option(at)?);
    }
    match policy {
        Some(at) if only_these && out.nameservers.is_empty() => {
            Err(at.fault("with policy None, dnsConfig.nameservers must name at least one server"))
        }
        _ => Ok(out),
    }
}

fn dns_option(at: At<raw::PodDnsConfigOption>) -> Result<String, Fault> {
    let name = required(at.value.name, &at.place, "name")?;
    let one_word = |at: &At<String>| match at.value.is_empty() || at.value.contains(char::is_whitespace) {
        true => Err(at.fault("must be one word")),
        false => Ok(()),
    };
    one_word(&name)?;
    match at.value.value {
        None => Ok(name.value),
        Some(value) => {
            one_word(&value)?;
            Ok(format!("{}:{}", name.value, value.value))
        }
    }
}

/// Two containers cannot take one port of the machine.
fn host_ports<'c>(containers: impl Iterator<Item = &'c Container>, place: &Place) -> Result<(), Fault> {
    let mut taken: HashMap<(u16, Protocol, String), &str> = HashMap::new();
    for container in containers {
        for port in &container.ports {
            let Some(host_port) = port.host_port else { continue };
            let host_ip = port.host_ip.clone().unwrap_or_default();
            if let Some(other) = taken.insert((host_port, port.protocol, host_ip), &container.name) {
                let (protocol, name) = (port.protocol, &container.name);
                let text = format!("hostPort {host_port}/{protocol} is asked for by {other:?} and again by {name:?}");
                return Err(place.fault(text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
