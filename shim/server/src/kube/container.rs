//! A container as it is meant: command, environment, ports, resources and mounts, validated and complete.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::env::{self, EnvFrom, EnvVar};
use super::lifecycle::{self, Lifecycle, MessagePolicy, Probe, Which};
use super::mount::{Mount, convert_mounts};
use super::pod::{RestartPolicy, check_ip, checked, choice, required, value};
use super::raw::{self, At, IntOrString, List};
pub use super::resources::Resources;
use super::security::{PodDefaults, Security};
use super::volume::Volume;
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
    /// Replaces the image's entrypoint; references are not expanded yet.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments; references are not expanded yet.
    pub args: Option<Vec<String>>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Variables in the order of the file, not composed yet; the last of a name wins.
    pub env: Vec<EnvVar>,
    /// Variables from all keys of objects; those of `env` win.
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Limits and shares.
    pub resources: Resources,
    /// Mounted volumes.
    pub mounts: Vec<Mount>,
    /// Identity and privileges.
    pub security: Security,
    /// Instead of the pod's restart policy. `Always` makes an init container a sidecar.
    #[serde(default)]
    pub restart: Option<RestartPolicy>,
    /// Exit codes after which it starts again whatever the policy says.
    #[serde(default)]
    pub restart_rules: Vec<RestartRule>,
    /// Its hooks.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Holds back the other probes until it succeeds.
    #[serde(default)]
    pub startup: Option<Probe>,
    /// Ends it when it fails.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// Decides whether Services send it traffic.
    #[serde(default)]
    pub readiness: Option<Probe>,
    /// Where it may leave a last message.
    #[serde(default = "message_path")]
    pub message_path: String,
    /// What its last message is.
    #[serde(default)]
    pub message_policy: MessagePolicy,
    /// Whether standard input is kept open for attached clients.
    pub stdin: bool,
    /// Whether it is closed when the first client leaves.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

impl Container {
    /// Whether it is a sidecar: an init container that stays.
    pub fn is_sidecar(&self, init: bool) -> bool {
        init && self.restart == Some(RestartPolicy::Always)
    }
}

/// An item of `restartPolicyRules`: after these exit codes it starts again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRule {
    /// Whether any other exit code is meant instead.
    pub not: bool,
    /// The exit codes.
    pub codes: Vec<i32>,
}

/// Where a container leaves its last message unless it says.
const MESSAGE_PATH: &str = "/dev/termination-log";

fn message_path() -> String {
    MESSAGE_PATH.to_owned()
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
    /// A name by which Services and probes find it.
    #[serde(default)]
    pub name: Option<String>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// What a container needs to know of its pod.
pub struct Context<'p> {
    /// Whether the pod uses the machine's own network.
    pub host_network: bool,
    /// The pod's security context.
    pub defaults: &'p PodDefaults,
    /// The pod's volumes.
    pub volumes: &'p [Volume],
    /// Seconds that the pod may take to stop.
    pub grace: u64,
    /// Whether these are init containers.
    pub init: bool,
}

/// Gives a container its meaning.
pub fn convert(at: At<raw::Container>, context: &Context<'_>) -> Result<Container, Fault> {
    let At { value: raw, place } = at;
    let name = checked(&required(raw.name, &place, "name")?, names::label)?;
    let image = required(raw.image, &place, "image")?;
    check_image(&image)?;
    let pull = pull_policy(raw.image_pull_policy.as_ref(), &image.value)?;
    if let Some(at) = raw.working_dir.as_ref().filter(|at| !at.value.is_empty() && !at.value.starts_with('/')) {
        return Err(at.fault("must be an absolute path"));
    }
    let restart = raw.restart.as_ref().map(RestartPolicy::convert).transpose()?;
    let sidecar = context.init && restart == Some(RestartPolicy::Always);
    if context.init && !sidecar {
        let places = [
            raw.lifecycle.as_ref().map(|at| (&at.place, "lifecycle")),
            raw.liveness.as_ref().map(|at| (&at.place, "livenessProbe")),
            raw.readiness.as_ref().map(|at| (&at.place, "readinessProbe")),
            raw.startup.as_ref().map(|at| (&at.place, "startupProbe")),
        ];
        if let Some((place, what)) = places.into_iter().flatten().next() {
            let text = format!("an init container has no {what}, unless restartPolicy: Always makes it a sidecar");
            return Err(place.fault(text));
        }
    }
    let words = |list: Option<At<List<String>>>| -> Option<Vec<String>> {
        let list = value(list).filter(|list| !list.is_empty())?;
        Some(list.into_iter().map(|at| at.value).collect())
    };
    let policies = [("File", MessagePolicy::File), ("FallbackToLogsOnError", MessagePolicy::FallbackToLogsOnError)];
    let message_policy = raw.message_policy.as_ref().map(|at| choice(at, &policies)).transpose()?;
    let message_path = raw.message_path.filter(|at| !at.value.is_empty());
    if let Some(at) = message_path.as_ref().filter(|at| !at.value.starts_with('/')) {
        return Err(at.fault("must be an absolute path"));
    }
    Ok(Container {
        name,
        pull,
        image: image.value,
        command: words(raw.command),
        args: words(raw.args),
        working_dir: value(raw.working_dir).filter(|dir| !dir.is_empty()),
        env: env::variables(raw.env)?,
        env_from: env::all_keys(raw.env_from)?,
        ports: ports(raw.ports, context.host_network)?,
        resources: Resources::convert(value(raw.resources).unwrap_or_default())?,
        mounts: convert_mounts(raw.volume_mounts, context.volumes, &raw.security)?,
        security: Security::convert(raw.security, context.defaults)?,
        restart_rules: restart_rules(raw.restart_rules, restart)?,
        restart,
        lifecycle: lifecycle::hooks(raw.lifecycle, context.grace)?,
        startup: Probe::convert(raw.startup, Which::Startup)?,
        liveness: Probe::convert(raw.liveness, Which::Liveness)?,
        readiness: Probe::convert(raw.readiness, Which::Readiness)?,
        message_path: value(message_path).unwrap_or_else(self::message_path),
        message_policy: message_policy.unwrap_or_default(),
        stdin: value(raw.stdin).unwrap_or(false),
        stdin_once: value(raw.stdin_once).unwrap_or(false),
        tty: value(raw.tty).unwrap_or(false),
    })
}

/// Most rules and exit codes of one container, as in Kubernetes.
const MAX_RULES: usize = 20;
/// Most exit codes of a rule.
const MAX_CODES: usize = 255;

fn restart_rules(
    list: Option<At<List<raw::RestartRule>>>,
    restart: Option<RestartPolicy>,
) -> Result<Vec<RestartRule>, Fault> {
    let Some(list) = list.filter(|list| !list.value.is_empty()) else { return Ok(Vec::new()) };
    if restart.is_none() {
        return Err(list.fault("needs restartPolicy of this container beside it"));
    }
    if list.value.len() > MAX_RULES {
        return Err(list.fault(format!("more than {MAX_RULES} rules")));
    }
    let mut out = Vec::new();
    for At { value: raw, place } in list.value {
        choice(&required(raw.action, &place, "action")?, &[("Restart", ())])?;
        let At { value: raw, place } = required(raw.exit_codes, &place, "exitCodes")?;
        let operator = required(raw.operator, &place, "operator")?;
        let values = required(raw.values, &place, "values")?;
        if values.value.is_empty() || values.value.len() > MAX_CODES {
            return Err(values.fault(format!("names 1 to {MAX_CODES} exit codes")));
        }
        let code = |at: &At<i64>| i32::try_from(at.value).map_err(|_| at.fault("is not an exit code"));
        out.push(RestartRule {
            not: choice(&operator, &[("In", false), ("NotIn", true)])?,
            codes: values.value.iter().map(code).collect::<Result<_, _>>()?,
        });
    }
    Ok(out)
}

/// When an image is pulled: as written, else by its tag.
pub(super) fn pull_policy(at: Option<&At<String>>, image: &str) -> Result<PullPolicy, Fault> {
    let choices =
        [("Always", PullPolicy::Always), ("IfNotPresent", PullPolicy::IfNotPresent), ("Never", PullPolicy::Never)];
    match at.filter(|at| !at.value.is_empty()) {
        None => Ok(default_pull(image)),
        Some(at) => choice(at, &choices),
    }
}

pub(super) fn check_image(at: &At<String>) -> Result<(), Fault> {
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
        out.push(Port { name: value(raw.name), container_port, host_port, host_ip: value(host_ip), protocol });
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
