//! A pod sandbox's configuration and its status.

use std::net::IpAddr;

use coracle_engine::{DnsConfig, NamespaceMode, PortMapping, Protocol, SandboxConfig, SandboxStatus, UserNamespace};
use coracle_proto::cri as v1;
use tonic::Status;

use super::{invalid, mappings, mappings_of, mode, mode_of, name, optional_name, path, resources, selinux};
use crate::kube::names;
use crate::serve::cri::filter::{labels, shown_sandbox};

/// What systemd's way of naming a parent cgroup ends in.
const SLICE: &str = ".slice";
/// A hostname's length, by the kernel.
const MAX_HOSTNAME: usize = 64;
/// More ports than there are in a protocol's number space make no sense.
const MAX_PORTS: usize = 1 << 16;

/// What a sandbox is to be.
pub fn config(request: v1::RunPodSandboxRequest) -> Result<SandboxConfig, Status> {
    let config = request.config.ok_or_else(|| invalid("config", "is missing"))?;
    let metadata = config.metadata.ok_or_else(|| invalid("config.metadata", "is missing"))?;
    if config.windows.is_some() {
        return Err(invalid("config.windows", "this node runs Linux"));
    }
    if config.hostname.len() > MAX_HOSTNAME {
        let why = format!("has {} bytes, more than {MAX_HOSTNAME}", config.hostname.len());
        return Err(invalid("config.hostname", why));
    }
    let mut sandbox = SandboxConfig {
        name: name("config.metadata.name", &metadata.name)?,
        namespace: name("config.metadata.namespace", &metadata.namespace)?,
        uid: optional_name("config.metadata.uid", &metadata.uid)?,
        attempt: metadata.attempt,
        hostname: optional_name("config.hostname", &config.hostname)?,
        labels: labels(config.labels),
        annotations: labels(config.annotations),
        handler: handler(request.runtime_handler)?,
        dns: dns(config.dns_config)?,
        port_mappings: ports(config.port_mappings)?,
        log_directory: match config.log_directory.as_str() {
            "" => None,
            directory => Some(path("config.log_directory", directory)?),
        },
        ..Default::default()
    };
    linux(&mut sandbox, config.linux.unwrap_or_default())?;
    Ok(sandbox)
}

/// A handler's name as RuntimeClass has it: a DNS-1123 label or subdomain.
fn handler(name: String) -> Result<String, Status> {
    match name.is_empty() || names::subdomain(&name).is_ok() {
        true => Ok(name),
        false => Err(invalid("runtime_handler", format!("{name:?} is no name of lower-case letters, digits and '-'"))),
    }
}

fn linux(sandbox: &mut SandboxConfig, linux: v1::LinuxPodSandboxConfig) -> Result<(), Status> {
    sandbox.cgroup_parent = cgroup_parent(linux.cgroup_parent)?;
    for (key, value) in &linux.sysctls {
        super::text("config.linux.sysctls", key)?;
        super::text("config.linux.sysctls", value)?;
    }
    sandbox.sysctls = labels(linux.sysctls);
    if let Some(given) = linux.overhead {
        sandbox.overhead = resources::changes("config.linux.overhead", given)?;
    }
    if let Some(given) = linux.resources {
        sandbox.resources = resources::changes("config.linux.resources", given)?;
    }
    // The user, groups, profiles and the root filesystem of the context are those of a pause process, and there is none:
    // a pod's namespaces are held by its supervisor.
    let security = linux.security_context.unwrap_or_default();
    sandbox.privileged = security.privileged;
    sandbox.selinux = selinux(security.selinux_options);
    let options = security.namespace_options.unwrap_or_default();
    let field = |name: &str| format!("config.linux.security_context.namespace_options.{name}");
    let pod_or_node = |name: &str, value| match mode(&field(name), value)? {
        v1::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
        v1::NamespaceMode::Node => Ok(NamespaceMode::Node),
        other => Err(invalid(field(name), format!("a pod's is POD or NODE, not {}", other.as_str_name()))),
    };
    sandbox.network = pod_or_node("network", options.network)?;
    sandbox.ipc = pod_or_node("ipc", options.ipc)?;
    sandbox.pid = match mode(&field("pid"), options.pid)? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => return Err(invalid(field("pid"), "TARGET is for containers, not for a pod")),
    };
    sandbox.user_namespace = user_namespace(&field("userns_options"), options.userns_options)?;
    if sandbox.user_namespace.is_some() && sandbox.privileged {
        let why = "a privileged pod cannot have a user namespace of its own";
        return Err(invalid("config.linux.security_context.privileged", why));
    }
    conflicts(sandbox)
}

/// What is fine by itself and not together.
fn conflicts(sandbox: &SandboxConfig) -> Result<(), Status> {
    if sandbox.network == NamespaceMode::Node {
        // kubelet gives a pod of the host's network hostPorts that are its containerPorts; they map nothing.
        for (i, port) in sandbox.port_mappings.iter().enumerate() {
            if port.host_port != port.container_port {
                let why = format!(
                    "in the host's network the host port {} must be the container port {}",
                    port.host_port, port.container_port
                );
                return Err(invalid(format!("config.port_mappings[{i}].host_port"), why));
            }
        }
    }
    let of_the_node = [("network", sandbox.network), ("pid", sandbox.pid), ("ipc", sandbox.ipc)];
    if sandbox.user_namespace.is_some()
        && let Some((name, _)) = of_the_node.iter().find(|(_, mode)| *mode == NamespaceMode::Node)
    {
        let field = format!("config.linux.security_context.namespace_options.{name}");
        return Err(invalid(field, "NODE cannot go with a user namespace of the pod's own"));
    }
    Ok(())
}

fn cgroup_parent(parent: String) -> Result<String, Status> {
    const FIELD: &str = "config.linux.cgroup_parent";
    if parent.is_empty() {
        return Ok(parent);
    }
    if parent.ends_with(SLICE) {
        let why =
            format!("{parent:?} is a slice of systemd: this runtime uses cgroupfs (kubelet: cgroupDriver: cgroupfs)");
        return Err(invalid(FIELD, why));
    }
    let path = path(FIELD, &parent)?;
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(invalid(FIELD, format!("{parent:?} must have no \"..\"")));
    }
    Ok(parent)
}

/// The pod's own user namespace, if it is to have one.
pub fn user_namespace(field: &str, options: Option<v1::UserNamespace>) -> Result<Option<UserNamespace>, Status> {
    let Some(options) = options else { return Ok(None) };
    match mode(&format!("{field}.mode"), options.mode)? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => Err(invalid(format!("{field}.uids"), "the host's user namespace maps no ids")),
        v1::NamespaceMode::Pod => {
            let uids = mappings(&format!("{field}.uids"), options.uids)?;
            let gids = mappings(&format!("{field}.gids"), options.gids)?;
            for (name, list) in [("uids", &uids), ("gids", &gids)] {
                if list.is_empty() {
                    return Err(invalid(format!("{field}.{name}"), "a user namespace needs at least one range"));
                }
            }
            Ok(Some(UserNamespace { uids, gids }))
        }
        other => Err(invalid(format!("{field}.mode"), format!("is POD or NODE, not {}", other.as_str_name()))),
    }
}

fn dns(config: Option<v1::DnsConfig>) -> Result<Option<DnsConfig>, Status> {
    let Some(v1::DnsConfig { servers, searches, options }) = config else { return Ok(None) };
    for (name, list) in [("servers", &servers), ("searches", &searches), ("options", &options)] {
        for (i, entry) in list.iter().enumerate() {
            if entry.is_empty() || entry.chars().any(|c| c.is_whitespace() || c.is_control()) {
                let field = format!("config.dns_config.{name}[{i}]");
                return Err(invalid(field, format!("{entry:?} is no word for a resolv.conf")));
            }
        }
    }
    // One that says nothing at all asks for the host's.
    let says = !(servers.is_empty() && searches.is_empty() && options.is_empty());
    Ok(says.then_some(DnsConfig { servers, searches, options }))
}

fn ports(list: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, Status> {
    if list.len() > MAX_PORTS {
        return Err(invalid("config.port_mappings", format!("has {} entries", list.len())));
    }
    let mut ports = Vec::new();
    for (i, port) in list.into_iter().enumerate() {
        let field = |name: &str| format!("config.port_mappings[{i}].{name}");
        let number = |name: &str, value: i32| {
            u16::try_from(value).map_err(|_| invalid(field(name), format!("{value} is no port")))
        };
        let (host_port, container_port) =
            (number("host_port", port.host_port)?, number("container_port", port.container_port)?);
        let protocol = match v1::Protocol::try_from(port.protocol) {
            Ok(v1::Protocol::Tcp) => Protocol::Tcp,
            Ok(v1::Protocol::Udp) => Protocol::Udp,
            Ok(v1::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err(invalid(field("protocol"), format!("{} is no protocol", port.protocol))),
        };
        let host_ip = match port.host_ip.as_str() {
            "" => None,
            ip => Some(ip.parse::<IpAddr>().map_err(|_| invalid(field("host_ip"), format!("{ip:?} is no address")))?),
        };
        // kubelet lists all ports of all containers; those without a host port map nothing.
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(invalid(field("container_port"), "0 is no port"));
        }
        let host_ip = host_ip.filter(|ip| !ip.is_unspecified());
        ports.push(PortMapping { host_ip, host_port, container_port, protocol });
    }
    Ok(ports)
}

/// Who a sandbox is.
pub fn metadata(config: &SandboxConfig) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

/// A sandbox in a list.
pub fn listed(status: SandboxStatus) -> v1::PodSandbox {
    v1::PodSandbox {
        metadata: Some(metadata(&status.config)),
        state: shown_sandbox(status.state).unwrap_or(v1::PodSandboxState::SandboxNotready) as i32,
        created_at: status.created_at,
        labels: status.config.labels.into_iter().collect(),
        annotations: status.config.annotations.into_iter().collect(),
        runtime_handler: status.config.handler,
        id: status.id,
    }
}

/// A sandbox by itself.
pub fn status(status: &SandboxStatus) -> v1::PodSandboxStatus {
    let config = &status.config;
    let mut ips = status.ips.iter().map(IpAddr::to_string);
    let namespaces = v1::NamespaceOption {
        network: mode_of(config.network),
        pid: mode_of(config.pid),
        ipc: mode_of(config.ipc),
        target_id: String::new(),
        userns_options: config.user_namespace.as_ref().map(shown_user_namespace),
    };
    v1::PodSandboxStatus {
        id: status.id.clone(),
        metadata: Some(metadata(config)),
        state: shown_sandbox(status.state).unwrap_or(v1::PodSandboxState::SandboxNotready) as i32,
        created_at: status.created_at,
        // In the host's network the addresses are the node's, which kubelet knows better.
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(namespaces) }) }),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.handler.clone(),
    }
}

fn shown_user_namespace(namespace: &UserNamespace) -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod as i32,
        uids: mappings_of(&namespace.uids),
        gids: mappings_of(&namespace.gids),
    }
}
