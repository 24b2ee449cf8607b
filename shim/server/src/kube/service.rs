//! A Service as it is meant, and the variables that Kubernetes makes of it: `FOO_SERVICE_HOST` and its kin, and the set
//! that docker's links had.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::container::{PortRef, Protocol, port_number};
use super::meta::{Meta, string_map};
use super::pod::{checked, choice, required, value};
use super::raw::{self, At, IntOrString, List, Place, Raw};
use super::yaml::{self, Node};
use super::{Fault, names};
use crate::objects::Kind;

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name and labels.
    pub meta: Meta,
    /// `spec.type`.
    pub kind: Type,
    /// `spec.clusterIP`.
    pub cluster_ip: ClusterIp,
    /// For `ExternalName`: the name that its name is another word for.
    pub external_name: Option<String>,
    /// Labels of the pods behind it; empty for none.
    pub selector: BTreeMap<String, String>,
    /// `spec.ports`.
    pub ports: Vec<Port>,
    /// Whether pods that are not ready count too.
    pub publish_not_ready: bool,
    /// For how many seconds a client keeps its pod.
    pub affinity: Option<u32>,
}

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// An address of the service network.
    ClusterIP,
    /// And a port of the machine.
    NodePort,
    /// The same here: there is no load balancer to ask.
    LoadBalancer,
    /// Another word for a name.
    ExternalName,
}

/// `spec.clusterIP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterIp {
    /// To be chosen.
    Unset,
    /// None: its name leads to the pods themselves.
    Headless,
    /// This one.
    Given(IpAddr),
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name; may be empty where there is one port.
    pub name: String,
    /// Its number at the Service's address.
    pub port: u16,
    /// The pods' port.
    pub target: PortRef,
    /// The machine's port that leads to it.
    pub node_port: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
}

impl Kind for Service {
    const KIND: &'static str = "Service";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        match (self.cluster_ip, new.cluster_ip) {
            (ClusterIp::Given(_), ClusterIp::Given(_)) if self.cluster_ip != new.cluster_ip => {
                Err("spec.clusterIP is immutable: delete it first".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Reads all Services of a file.
pub fn services(text: &str) -> Result<Vec<Service>, Fault> {
    let documents = yaml::documents(text)?;
    documents.iter().map(of_node).collect()
}

fn of_node(node: &Node) -> Result<Service, Fault> {
    let root = Place::root(node);
    let raw = raw::Service::read(node, &root)?;
    match &raw.kind {
        Some(kind) if kind.value == "Service" => Service::convert(raw, &root),
        Some(kind) => Err(kind.fault(format!("expected Service, found {}", kind.value))),
        None => Err(root.fault("kind is missing: expected Service")),
    }
}

/// How long a client keeps its pod where nothing is said.
const AFFINITY: i64 = 10_800;
/// At most.
const MAX_AFFINITY: i64 = 86_400;

impl Service {
    /// Gives a Service its meaning.
    pub fn convert(raw: raw::Service, root: &Place) -> Result<Service, Fault> {
        let meta = Meta::namespaced(raw.metadata, root, names::service)?;
        let At { value: spec, place } = required(raw.spec, root, "spec")?;
        let types = [
            ("ClusterIP", Type::ClusterIP),
            ("NodePort", Type::NodePort),
            ("LoadBalancer", Type::LoadBalancer),
            ("ExternalName", Type::ExternalName),
        ];
        let kind = spec.class.as_ref().map(|at| choice(at, &types)).transpose()?.unwrap_or(Type::ClusterIP);
        let cluster_ip = cluster_ip(spec.cluster_ip, spec.cluster_ips)?;
        let external_name = spec.external_name.filter(|at| !at.value.is_empty());
        if let (Type::ExternalName, None) = (kind, &external_name) {
            return Err(place.fault("externalName is missing: a Service of this type is another word for it"));
        }
        if let (Type::NodePort | Type::LoadBalancer, ClusterIp::Headless) = (kind, cluster_ip) {
            return Err(place.fault("clusterIP: None goes with the type ClusterIP alone"));
        }
        if let Some(at) = &external_name {
            names::subdomain(at.value.trim_end_matches('.')).map_err(|why| at.fault(why))?;
        }
        let ports = ports(spec.ports, kind, cluster_ip, &place)?;
        let client_ip = spec.affinity.as_ref().map(|at| choice(at, &[("None", false), ("ClientIP", true)]));
        let client_ip = client_ip.transpose()?.unwrap_or(false);
        let timeout = value(spec.affinity_config).and_then(|raw| value(raw.client_ip)).and_then(|raw| raw.timeout);
        let affinity = match timeout {
            Some(at) if !(1..=MAX_AFFINITY).contains(&at.value) => {
                return Err(at.fault(format!("{} is not from 1 to {MAX_AFFINITY}", at.value)));
            }
            Some(at) => at.value,
            None => AFFINITY,
        };
        Ok(Service {
            meta,
            kind,
            cluster_ip,
            external_name: value(external_name),
            selector: string_map(spec.selector, Some(names::label_value))?,
            ports,
            publish_not_ready: value(spec.publish_not_ready).unwrap_or(false),
            affinity: client_ip.then(|| u32::try_from(affinity).unwrap_or_default()),
        })
    }

    /// Its address, once it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.cluster_ip {
            ClusterIp::Given(ip) if self.kind != Type::ExternalName => Some(ip),
            _ => None,
        }
    }
}

fn cluster_ip(one: Option<At<String>>, list: Option<At<List<String>>>) -> Result<ClusterIp, Fault> {
    let list = value(list).unwrap_or_default();
    if let Some(second) = list.get(1) {
        return Err(second.fault("a second address is not done here: remove it"));
    }
    let listed = list.into_iter().next();
    if let (Some(one), Some(listed)) = (&one, &listed)
        && one.value != listed.value
    {
        return Err(listed.fault(format!("must be clusterIP, {:?}", one.value)));
    }
    let Some(at) = one.or(listed) else { return Ok(ClusterIp::Unset) };
    match at.value.as_str() {
        "" => Ok(ClusterIp::Unset),
        "None" => Ok(ClusterIp::Headless),
        text => match text.parse() {
            Ok(ip) => Ok(ClusterIp::Given(ip)),
            Err(_) => Err(at.fault(format!("{text:?} is no address"))),
        },
    }
}

fn ports(
    list: Option<At<List<raw::ServicePort>>>,
    kind: Type,
    ip: ClusterIp,
    spec: &Place,
) -> Result<Vec<Port>, Fault> {
    let list = value(list).unwrap_or_default();
    if list.is_empty() && kind != Type::ExternalName && ip != ClusterIp::Headless {
        return Err(spec.fault("ports is missing: a Service with an address has at least one"));
    }
    let several = list.len() > 1;
    let mut out: Vec<Port> = Vec::new();
    for at in list {
        let place = at.place.clone();
        let port = port(at.value, &place, kind)?;
        if several && port.name.is_empty() {
            return Err(place.fault("name is missing: of several ports each has one"));
        }
        if let Some(other) = out.iter().find(|other| (other.port, other.protocol) == (port.port, port.protocol)) {
            return Err(place.fault(format!("{}/{} is the port {:?} already", port.port, port.protocol, other.name)));
        }
        if several && out.iter().any(|other| other.name == port.name) {
            return Err(place.fault(format!("a second port is named {:?}", port.name)));
        }
        out.push(port);
    }
    Ok(out)
}

fn port(raw: raw::ServicePort, place: &Place, kind: Type) -> Result<Port, Fault> {
    let number = required(raw.port, place, "port")?;
    let port = port_number(&number)?;
    let name = raw.name.filter(|at| !at.value.is_empty());
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    let protocol = raw.protocol.as_ref().map(|at| choice(at, &protocols)).transpose()?;
    let target =
        raw.target_port.filter(|at| at.value != IntOrString::Int(0) && at.value != IntOrString::Text(String::new()));
    let node_port = raw.node_port.filter(|at| at.value != 0);
    if let (Type::ClusterIP | Type::ExternalName, Some(at)) = (kind, &node_port) {
        return Err(at.fault("goes with the types NodePort and LoadBalancer"));
    }
    Ok(Port {
        name: name.map(|at| checked(&at, names::label)).transpose()?.unwrap_or_default(),
        port,
        target: target.map(|at| PortRef::convert(&at)).transpose()?.unwrap_or(PortRef::Number(port)),
        node_port: node_port.as_ref().map(port_number).transpose()?,
        protocol: protocol.unwrap_or(Protocol::Tcp),
    })
}

/// The Service that pods of every namespace are told of, as by kubelet: its namespace and name.
pub const MASTER: (&str, &str) = ("default", "kubernetes");

impl Service {
    /// Whether pods of every namespace are told of it.
    pub fn is_master(&self) -> bool {
        (&*self.meta.namespace, &*self.meta.name) == MASTER
    }

    /// Its variables, as kubelet makes them.
    pub fn variables(&self) -> Vec<(String, String)> {
        let (Some(ip), Some(first)) = (self.ip(), self.ports.first()) else { return Vec::new() };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let name = upper(&self.meta.name);
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let url = |port: &Port| format!("{}://{host}:{}", port.protocol.to_string().to_lowercase(), port.port);
        let mut all = vec![
            (format!("{name}_SERVICE_HOST"), ip.to_string()),
            (format!("{name}_SERVICE_PORT"), first.port.to_string()),
        ];
        for port in self.ports.iter().filter(|port| !port.name.is_empty()) {
            all.push((format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string()));
        }
        all.push((format!("{name}_PORT"), url(first)));
        for port in &self.ports {
            let prefix = format!("{name}_PORT_{}_{}", port.port, port.protocol);
            all.extend([
                (prefix.clone(), url(port)),
                (format!("{prefix}_PROTO"), port.protocol.to_string().to_lowercase()),
                (format!("{prefix}_PORT"), port.port.to_string()),
                (format!("{prefix}_ADDR"), ip.to_string()),
            ]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: redis-primary, resourceVersion: '7'}\n\
        spec:\n  clusterIP: 10.0.0.11\n  selector: {app: redis}\n  ports:\n  - {name: main, port: 6379}\n  - {name: admin-x, port: 80, protocol: UDP}\n";

    #[test]
    fn the_variables_are_those_that_the_documentation_of_kubernetes_shows() {
        let variables = services(REDIS).unwrap()[0].variables();
        let text: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let wanted = [
            "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
            "REDIS_PRIMARY_SERVICE_PORT=6379",
            "REDIS_PRIMARY_SERVICE_PORT_MAIN=6379",
            "REDIS_PRIMARY_SERVICE_PORT_ADMIN_X=80",
            "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
            "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
            "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
            "REDIS_PRIMARY_PORT_80_UDP=udp://10.0.0.11:80",
            "REDIS_PRIMARY_PORT_80_UDP_PROTO=udp",
            "REDIS_PRIMARY_PORT_80_UDP_PORT=80",
            "REDIS_PRIMARY_PORT_80_UDP_ADDR=10.0.0.11",
        ];
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_headless_service_has_none_and_what_is_no_service_is_refused() {
        assert!(services(&REDIS.replace("10.0.0.11", "None")).unwrap()[0].variables().is_empty());
        for (text, wanted) in [
            (REDIS.replace("kind: Service", "kind: Pod"), "f:2:7: kind: expected Service, found Pod"),
            (REDIS.replace("10.0.0.11", "ten"), "f:5:14: spec.clusterIP: \"ten\" is no address"),
            (REDIS.replace("6379", "70000"), "f:8:24: spec.ports[0].port: 70000 is not a port: 1 to 65535"),
        ] {
            assert_eq!(services(&text).unwrap_err().in_file("f").to_string(), wanted);
        }
    }
}
