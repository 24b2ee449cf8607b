//! A container as it is meant: command, environment, ports, resources and mounts, validated and complete.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::expand::expand;
use super::pod::{check_ip, checked, choice, required, value};
use super::quantity::Quantity;
use super::raw::{self, Amount, At, IntOrString, List, Map};
use super::security::{PodDefaults, Security};
use super::volume::{Mount, Volume, convert_mounts};
use super::{Fault, names};

/// A container to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// The image, as the user wrote it.
    pub image: String,
    /// When to pull it.
    pub pull: PullPolicy,
    /// Replaces the image's entrypoint; references expanded.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments; references expanded.
    pub args: Option<Vec<String>>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Variables in the order of the file; references expanded, the last of a name wins.
    pub env: Vec<(String, String)>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Limits and shares.
    pub resources: Resources,
    /// Mounted volumes.
    pub mounts: Vec<Mount>,
    /// Identity and privileges.
    pub security: Security,
    /// Whether standard input is kept open for attached clients.
    pub stdin: bool,
    /// Whether it is closed when the first client leaves.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry at every start.
    Always,
    /// Only what the store lacks.
    IfNotPresent,
    /// Never: the store must have it.
    Never,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The port inside.
    pub container_port: u16,
    /// The machine's port that leads to it.
    pub host_port: Option<u16>,
    /// The machine's address it is bound to; all, when absent.
    pub host_ip: Option<String>,
    /// The protocol.
    pub protocol: Protocol,
}

/// A port's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port, by its number or by its name in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortRef {
    /// This one.
    Number(u16),
    /// The one of this name.
    Name(String),
}

impl PortRef {
    /// Reads one.
    pub fn convert(at: &At<IntOrString>) -> Result<PortRef, Fault> {
        match &at.value {
            IntOrString::Int(number) => {
                let at = At { value: *number, place: at.place.clone() };
                port_number(&at).map(PortRef::Number)
            }
            IntOrString::Text(name) => {
                names::port_name(name).map_err(|why| at.fault(why))?;
                Ok(PortRef::Name(name.clone()))
            }
        }
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortRef::Number(number) => write!(f, "{number}"),
            PortRef::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// `resources`, as the kernel takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 `cpu.shares`; v2 weights follow from it.
    pub cpu_shares: u64,
    /// Microseconds of CPU in each period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: u64,
    /// Bytes.
    pub memory_limit: Option<i64>,
}

/// The CFS period that kubelet uses, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// The kernel takes no smaller quota, in microseconds.
const MIN_QUOTA: i64 = 1_000;
/// The kernel's bounds for cpu.shares.
const SHARES: (i64, i64) = (2, 262_144);
/// runc, containerd and kubelet's validation all refuse less: a process cannot start in it.
const MIN_MEMORY: i64 = 4096;

/// What a container needs to know of its pod.
pub struct Context<'p> {
    /// Whether the pod uses the machine's own network.
    pub host_network: bool,
    /// The pod's security context.
    pub defaults: &'p PodDefaults,
    /// The pod's volumes.
    pub volumes: &'p [Volume],
}

/// Gives a container its meaning.
pub fn convert(at: At<raw::Container>, context: &Context<'_>) -> Result<Container, Fault> {
    let At { value: raw, place } = at;
    let name = checked(&required(raw.name, &place, "name")?, names::label)?;
    let image = required(raw.image, &place, "image")?;
    check_image(&image)?;
    let pull = match &raw.image_pull_policy {
        None => default_pull(&image.value),
        Some(at) => choice(
            at,
            &[("Always", PullPolicy::Always), ("IfNotPresent", PullPolicy::IfNotPresent), ("Never", PullPolicy::Never)],
        )?,
    };
    if let Some(at) = raw.working_dir.as_ref().filter(|at| !at.value.is_empty() && !at.value.starts_with('/')) {
        return Err(at.fault("must be an absolute path"));
    }
    let env = environment(raw.env)?;
    let vars: HashMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let words = |list: Option<At<List<String>>>| {
        let list = value(list).filter(|list| !list.is_empty())?;
        Some(list.iter().map(|at| expand(&at.value, |name| vars.get(name).copied())).collect())
    };
    let (command, args) = (words(raw.command), words(raw.args));
    Ok(Container {
        name,
        pull,
        image: image.value,
        command,
        args,
        working_dir: value(raw.working_dir).filter(|dir| !dir.is_empty()),
        ports: ports(raw.ports, context.host_network)?,
        resources: resources(value(raw.resources).unwrap_or_default())?,
        mounts: convert_mounts(raw.volume_mounts, context.volumes, &raw.security)?,
        security: Security::convert(raw.security, context.defaults)?,
        stdin: value(raw.stdin).unwrap_or(false),
        stdin_once: value(raw.stdin_once).unwrap_or(false),
        tty: value(raw.tty).unwrap_or(false),
        env,
    })
}

fn check_image(at: &At<String>) -> Result<(), Fault> {
    if at.value.trim() != at.value {
        return Err(at.fault("must not have leading or trailing whitespace"));
    }
    match coracle_rootfs::Reference::parse(&at.value) {
        Ok(_) => Ok(()),
        Err(error) => Err(at.fault(error.to_string())),
    }
}

/// Kubernetes' rule: `:latest`, written or implied, is pulled always; a tag or digest that was chosen, if missing.
fn default_pull(image: &str) -> PullPolicy {
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    let tag = name.split_once(':').map(|(_, tag)| tag);
    match (name.contains('@'), tag) {
        (true, _) => PullPolicy::IfNotPresent,
        (false, None | Some("latest")) => PullPolicy::Always,
        (false, Some(_)) => PullPolicy::IfNotPresent,
    }
}

/// The variables in order; a value may use those before it.
fn environment(list: Option<At<List<raw::EnvVar>>>) -> Result<Vec<(String, String)>, Fault> {
    let mut env: Vec<(String, String)> = Vec::new();
    for item in value(list).unwrap_or_default() {
        let name = checked(&required(item.value.name, &item.place, "name")?, names::env_var)?;
        let text = value(item.value.value).unwrap_or_default();
        let lookup = |name: &str| env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let text = expand(&text, lookup);
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, value)) => *value = text,
            None => env.push((name, text)),
        }
    }
    Ok(env)
}

fn ports(list: Option<At<List<raw::ContainerPort>>>, host_network: bool) -> Result<Vec<Port>, Fault> {
    let mut names = HashSet::new();
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let raw = item.value;
        if let Some(at) = &raw.name {
            checked(at, names::port_name)?;
            if !names.insert(at.value.clone()) {
                return Err(at.fault(format!("a second port of this container is named {:?}", at.value)));
            }
        }
        let container = required(raw.container_port, &item.place, "containerPort")?;
        let container_port = port_number(&container)?;
        let host_port = raw.host_port.as_ref().filter(|at| at.value != 0).map(port_number).transpose()?;
        if let (true, Some(at), Some(host)) = (host_network, &raw.host_port, host_port)
            && host != container_port
        {
            return Err(at.fault("with hostNetwork it must be the same as containerPort"));
        }
        let host_ip = raw.host_ip.filter(|at| !at.value.is_empty());
        if let Some(at) = &host_ip {
            check_ip(at)?;
        }
        let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
        let protocol = raw.protocol.as_ref().map(|at| choice(at, &protocols)).transpose()?;
        let protocol = protocol.unwrap_or(Protocol::Tcp);
        out.push(Port { container_port, host_port, host_ip: value(host_ip), protocol });
    }
    Ok(out)
}

/// A port's number.
pub(super) fn port_number(at: &At<i64>) -> Result<u16, Fault> {
    match u16::try_from(at.value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(at.fault(format!("{} is not a port: 1 to 65535", at.value))),
    }
}

fn resources(raw: raw::ResourceRequirements) -> Result<Resources, Fault> {
    let limits = quantities(raw.limits)?;
    let requests = quantities(raw.requests)?;
    for (name, (limit, _)) in &limits {
        if let Some((request, at)) = requests.get(name)
            && request > limit
        {
            return Err(at.fault(format!("{request} is more than the limit, {limit}")));
        }
    }
    let get = |map: &HashMap<String, (Quantity, At<Amount>)>, name: &str| map.get(name).map(|(q, _)| *q);
    let cpu_limit = get(&limits, "cpu").filter(|q| q.milli() > 0);
    // A limit without a request is also the request.
    let cpu_request = get(&requests, "cpu").or(cpu_limit).map_or(0, Quantity::milli);
    let shares = cpu_request.saturating_mul(1024) / 1000;
    let quota = cpu_limit.map(|q| (q.milli().saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA));
    if let Some((limit, at)) = limits.get("memory")
        && (1..MIN_MEMORY).contains(&limit.value())
    {
        let hint = if at.value.0.ends_with('m') { " (`m` is a thousandth of a byte: `Mi` was meant?)" } else { "" };
        return Err(at.fault(format!("{} bytes are too few to start a process{hint}", limit.value())));
    }
    Ok(Resources {
        cpu_shares: shares.clamp(SHARES.0, SHARES.1).unsigned_abs(),
        cpu_quota: quota,
        cpu_period: CPU_PERIOD.unsigned_abs(),
        memory_limit: get(&limits, "memory").map(Quantity::value).filter(|bytes| *bytes > 0),
    })
}

fn quantities(map: Option<At<Map<Amount>>>) -> Result<HashMap<String, (Quantity, At<Amount>)>, Fault> {
    let mut out = HashMap::new();
    for (name, at) in value(map).unwrap_or_default() {
        if !matches!(name.value.as_str(), "cpu" | "memory") {
            return Err(name.fault("is not honoured yet, cpu and memory are: remove it"));
        }
        let quantity = Quantity::parse(&at.value.0).map_err(|why| at.fault(why))?;
        if quantity.is_negative() {
            return Err(at.fault("must not be negative"));
        }
        out.insert(name.value, (quantity, at));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_pulled_always_and_a_chosen_tag_if_missing() {
        for (image, policy) in [
            ("busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("localhost:5000/busybox", PullPolicy::Always),
            ("localhost:5000/busybox:1", PullPolicy::IfNotPresent),
            ("busybox@sha256:00", PullPolicy::IfNotPresent),
            ("busybox:latest@sha256:00", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(default_pull(image), policy, "{image}");
        }
    }
}
