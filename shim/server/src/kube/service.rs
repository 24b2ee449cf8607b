//! A Service as it is meant, for the variables that Kubernetes makes of it: `FOO_SERVICE_HOST` and its kin, and the set
//! that docker's links had.

use std::net::IpAddr;

use super::Fault;
use super::names;
use super::raw::{self, Place, Raw};
use super::yaml;

/// A Service with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `spec.clusterIP`; `None` for a headless one, which has no variables.
    pub ip: Option<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<Port>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name; may be empty.
    pub name: String,
    /// The service's port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Reads all Services of a file.
pub fn services(text: &str) -> Result<Vec<Service>, Fault> {
    let documents = yaml::documents(text)?;
    documents.iter().map(|node| service(raw::Service::read(node, &Place::root(node))?, &Place::root(node))).collect()
}

fn service(raw: raw::Service, root: &Place) -> Result<Service, Fault> {
    match &raw.kind {
        Some(kind) if kind.value == "Service" => {}
        Some(kind) => return Err(kind.fault(format!("expected Service, found {}", kind.value))),
        None => return Err(root.fault("kind is missing: expected Service")),
    }
    let missing = |what: &str| root.fault(format!("{what} is missing"));
    let meta = raw.metadata.ok_or_else(|| missing("metadata"))?.value;
    let name = meta.name.ok_or_else(|| missing("metadata.name"))?;
    names::label(&name.value).map_err(|why| name.fault(why))?;
    let spec = raw.spec.ok_or_else(|| missing("spec"))?.value;
    let ip = match spec.cluster_ip.filter(|ip| !ip.value.is_empty() && ip.value != "None") {
        Some(ip) => Some(ip.value.parse().map_err(|_| ip.fault(format!("{:?} is no address", ip.value)))?),
        None => None,
    };
    let ports = spec.ports.map(|ports| ports.value).unwrap_or_default();
    Ok(Service {
        name: name.value,
        namespace: meta.namespace.map_or_else(|| "default".to_owned(), |namespace| namespace.value),
        ip,
        ports: ports.into_iter().map(|at| port(at.value, &at.place)).collect::<Result<_, _>>()?,
    })
}

fn port(raw: raw::ServicePort, place: &Place) -> Result<Port, Fault> {
    let number = raw.port.ok_or_else(|| place.fault("port is missing"))?;
    let port = u16::try_from(number.value).ok().filter(|port| *port != 0);
    let protocol = raw.protocol.map_or_else(|| "TCP".to_owned(), |protocol| protocol.value);
    if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) {
        return Err(place.fault(format!("protocol {protocol:?}: known are TCP, UDP and SCTP")));
    }
    Ok(Port {
        name: raw.name.map(|name| name.value).unwrap_or_default(),
        port: port.ok_or_else(|| number.fault(format!("{} is no port: 1 to 65535", number.value)))?,
        protocol,
    })
}

impl Service {
    /// Its variables, as kubelet makes them.
    pub fn variables(&self) -> Vec<(String, String)> {
        let (Some(ip), Some(first)) = (self.ip, self.ports.first()) else { return Vec::new() };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let name = upper(&self.name);
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let url = |port: &Port| format!("{}://{host}:{}", port.protocol.to_lowercase(), port.port);
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
                (format!("{prefix}_PROTO"), port.protocol.to_lowercase()),
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
        spec:\n  clusterIP: 10.0.0.11\n  selector: {app: redis}\n  ports:\n  - {port: 6379}\n  - {name: admin-x, port: 80, protocol: UDP}\n";

    #[test]
    fn the_variables_are_those_that_the_documentation_of_kubernetes_shows() {
        let variables = services(REDIS).unwrap()[0].variables();
        let text: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let wanted = [
            "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
            "REDIS_PRIMARY_SERVICE_PORT=6379",
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
            (REDIS.replace("6379", "70000"), "f:8:12: spec.ports[0].port: 70000 is no port: 1 to 65535"),
        ] {
            assert_eq!(services(&text).unwrap_err().in_file("f").to_string(), wanted);
        }
    }
}
