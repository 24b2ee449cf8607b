//! From a Pod's meaning to what the engine is asked for.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use coracle_engine::{ContainerConfig, HostAlias, NamespaceMode, Paths, PortMapping, Protocol, SandboxConfig};

use super::{needs, qos, secure};
use crate::kube::container::{Container, Protocol as KubeProtocol};
use crate::kube::pod::{PidMode, Pod};
use crate::objects::Objects;

/// The folder of a pod's logs, laid out as kubelet's are.
pub fn log_directory(paths: &Paths, pod: &Pod, uid: &str) -> PathBuf {
    paths.logs.join(format!("{}_{}_{uid}", pod.namespace, pod.name))
}

/// The sandbox of a pod, without its names ([`crate::service::dress`]); `on_exit` is the command that tends it when nobody does.
pub fn sandbox(pod: &Pod, uid: &str, paths: &Paths, on_exit: Vec<String>) -> Result<SandboxConfig> {
    let mode = |node| if node { NamespaceMode::Node } else { NamespaceMode::Pod };
    Ok(SandboxConfig {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: uid.to_owned(),
        exclusive_name: true,
        // In the machine's network a pod has the machine's name, as with kubelet.
        hostname: if pod.host_network { String::new() } else { pod.hostname.clone() },
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        network: mode(pod.host_network),
        pid: match pod.pid {
            PidMode::Container => NamespaceMode::Container,
            PidMode::Pod => NamespaceMode::Pod,
            PidMode::Node => NamespaceMode::Node,
        },
        ipc: mode(pod.host_ipc),
        own_users: pod.host_users == Some(false),
        selinux: pod.security.selinux.as_ref().map(secure::selinux),
        qos: qos::class(pod),
        resources: qos::pod_resources(pod),
        port_mappings: port_mappings(pod)?,
        host_aliases: host_aliases(pod)?,
        sysctls: pod.sysctls.iter().cloned().collect(),
        log_directory: Some(log_directory(paths, pod, uid)),
        on_exit,
        tender_stays: needs::stays(pod, &Objects::open(paths)),
        ..SandboxConfig::default()
    })
}

fn port_mappings(pod: &Pod) -> Result<Vec<PortMapping>> {
    let mut out = Vec::new();
    if pod.host_network {
        return Ok(out);
    }
    for port in pod.containers.iter().flat_map(|container| &container.ports) {
        let Some(host_port) = port.host_port else { continue };
        out.push(PortMapping {
            host_ip: port.host_ip.as_deref().map(address).transpose()?,
            host_port,
            container_port: port.container_port,
            protocol: match port.protocol {
                KubeProtocol::Tcp => Protocol::Tcp,
                KubeProtocol::Udp => Protocol::Udp,
                KubeProtocol::Sctp => Protocol::Sctp,
            },
        });
    }
    Ok(out)
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| format!("read the address {text:?}"))
}

fn host_aliases(pod: &Pod) -> Result<Vec<HostAlias>> {
    let alias = |(ip, hostnames): &(String, Vec<String>)| -> Result<HostAlias> {
        Ok(HostAlias { ip: address(ip)?, hostnames: hostnames.clone() })
    };
    pod.host_aliases.iter().map(alias).collect()
}

/// A container's `attempt`th incarnation, from an image of the store, but for its environment and mounts.
pub fn container(pod: &Pod, container: &Container, attempt: u32, image_id: &str) -> Result<ContainerConfig> {
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: image_id.to_owned(),
        image_ref: container.image.clone(),
        working_dir: container.working_dir.clone(),
        resources: qos::container_resources(pod, container, &qos::Machine::look()),
        security: secure::security(pod, container)?,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        log_path: Some(PathBuf::from(&container.name).join(format!("{attempt}.log"))),
        ..ContainerConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {spec}\n");
        crate::kube::pod::read("web.yaml", &text).unwrap().remove(0)
    }

    #[test]
    fn only_host_ports_are_mapped_and_none_in_the_machines_network() {
        let ports = "ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}, {containerPort: 81}]";
        let mappings = port_mappings(&pod(&format!("{{containers: [{{name: c, image: b, {ports}}}]}}"))).unwrap();
        assert_eq!(mappings.len(), 1);
        assert_eq!((mappings[0].host_port, mappings[0].container_port), (8080, 80));
        assert_eq!(mappings[0].host_ip, Some("127.0.0.1".parse().unwrap()));
        let host = "{hostNetwork: true, containers: [{name: c, image: b, ports: [{containerPort: 80, hostPort: 80}]}]}";
        assert!(port_mappings(&pod(host)).unwrap().is_empty());
    }
}
