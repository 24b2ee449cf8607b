//! From Services and pods to where traffic goes and what names stand for. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use coracle_engine::Protocol as NetProtocol;
use coracle_engine::net::ServicePort;

use super::allocate::Allocated;
use crate::dns::zone;
use crate::kube::container::{PortRef, Protocol};
use crate::kube::service::{ClusterIp, Port, Service, Type};

/// A pod as Services see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its hostname.
    pub hostname: String,
    /// Its subdomain.
    pub subdomain: Option<String>,
    /// Whether traffic may come.
    pub ready: bool,
    /// Its containers' ports: name, protocol, number.
    pub ports: Vec<(Option<String>, Protocol, u16)>,
}

impl Backend {
    fn is_selected(&self, service: &Service) -> bool {
        let has = |(key, value): (&String, &String)| self.labels.get(key) == Some(value);
        !service.selector.is_empty()
            && self.namespace == service.meta.namespace
            && service.selector.iter().all(has)
            && (self.ready || service.publish_not_ready)
    }

    /// Where a port of a Service leads in this pod; names are looked up among its containers' ports.
    pub fn target(&self, port: &Port) -> Option<u16> {
        match &port.target {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(wanted) => {
                let here = |(name, protocol, _): &&(Option<String>, Protocol, u16)| {
                    name.as_ref() == Some(wanted) && *protocol == port.protocol
                };
                self.ports.iter().find(here).map(|(.., number)| *number)
            }
        }
    }
}

/// The pods of a Service, in the order of their addresses.
pub fn selected<'b>(service: &Service, pods: &'b [Backend]) -> Vec<&'b Backend> {
    let mut pods: Vec<&Backend> = pods.iter().filter(|pod| pod.is_selected(service)).collect();
    pods.sort_by_key(|pod| pod.ip);
    pods
}

/// The kernel's part: one for each port of each Service that has an address.
pub fn ports(services: &[Service], allocated: &[Allocated], pods: &[Backend]) -> Vec<ServicePort> {
    let mut out = Vec::new();
    for (service, given) in services.iter().zip(allocated) {
        let Some(ip) = given.ip else { continue };
        let selected = selected(service, pods);
        for port in &service.ports {
            let name = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
            let backend = |pod: &&Backend| Some(SocketAddrV4::new(pod.ip, pod.target(port)?));
            out.push(ServicePort {
                name: format!("{}/{}:{name}", service.meta.namespace, service.meta.name),
                addresses: vec![ip],
                protocol: protocol(port.protocol),
                port: port.port,
                node_port: given.node_port(port),
                sticky: service.affinity.is_some(),
                backends: selected.iter().filter_map(backend).collect(),
            });
        }
    }
    out
}

/// The server's part.
pub fn table(
    domain: &str,
    services: &[Service],
    allocated: &[Allocated],
    pods: &[Backend],
    users: usize,
) -> zone::Table {
    let named = |name: &str, protocol: Protocol, port: u16| zone::Port {
        name: name.to_owned(),
        protocol: protocol.to_string().to_lowercase(),
        port,
    };
    let endpoint = |service: &Service, pod: &Backend| zone::Endpoint {
        ip: pod.ip,
        hostname: (pod.subdomain.as_ref() == Some(&service.meta.name)).then(|| pod.hostname.to_lowercase()),
        ports: (service.ports.iter())
            .filter_map(|port| Some(named(&port.name, port.protocol, pod.target(port)?)))
            .collect(),
    };
    let service = |(service, given): (&Service, &Allocated)| zone::Service {
        namespace: service.meta.namespace.clone(),
        name: service.meta.name.clone(),
        ip: given.ip.map(IpAddr::V4),
        external: (service.external_name.clone()).filter(|_| service.kind == Type::ExternalName),
        ports: service.ports.iter().map(|port| named(&port.name, port.protocol, port.port)).collect(),
        endpoints: selected(service, pods).into_iter().map(|pod| endpoint(service, pod)).collect(),
    };
    // One that should have an address and has none (there was none left, or it is somebody else's) is no headless one.
    let whole = |(service, given): &(&Service, &Allocated)| {
        given.ip.is_some() || service.kind == Type::ExternalName || service.cluster_ip == ClusterIp::Headless
    };
    zone::Table {
        domain: domain.to_owned(),
        services: services.iter().zip(allocated).filter(whole).map(service).collect(),
        pods: pods.iter().map(|pod| (pod.namespace.clone(), pod.ip)).collect(),
        users,
    }
}

fn protocol(protocol: Protocol) -> NetProtocol {
    match protocol {
        Protocol::Tcp => NetProtocol::Tcp,
        Protocol::Udp => NetProtocol::Udp,
        Protocol::Sctp => NetProtocol::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(last: u8, ready: bool) -> Backend {
        Backend {
            namespace: "default".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ip: Ipv4Addr::new(10, 88, 0, last),
            hostname: format!("web-{last}"),
            subdomain: (last == 5).then(|| "web".to_owned()),
            ready,
            ports: vec![(Some("http".into()), Protocol::Tcp, 8000 + u16::from(last))],
        }
    }

    fn services(spec: &str) -> (Vec<Service>, Vec<Allocated>) {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
        let services = crate::kube::service::services(&text).unwrap();
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        let given =
            super::super::allocate::allocate(&services, &[], "10.96.0.0/16".parse().unwrap(), dns, |_, _| false);
        (services, given)
    }

    fn backends(spec: &str, pods: &[Backend]) -> Vec<String> {
        let (services, given) = services(spec);
        let ports = ports(&services, &given, pods);
        ports.iter().flat_map(|port| &port.backends).map(ToString::to_string).collect()
    }

    #[test]
    fn ready_pods_whose_labels_match_are_behind_a_service() {
        let spec = "{selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}";
        let other = Backend { namespace: "else".into(), ..pod(7, true) };
        assert_eq!(
            backends(spec, &[pod(6, true), pod(5, true), other, pod(8, false)]),
            ["10.88.0.5:8080", "10.88.0.6:8080"]
        );
        assert!(backends("{selector: {app: web, tier: x}, ports: [{port: 80}]}", &[pod(5, true)]).is_empty());
        assert!(backends("{ports: [{port: 80}]}", &[pod(5, true)]).is_empty(), "without a selector");
        let all = "{selector: {app: web}, publishNotReadyAddresses: true, ports: [{port: 80}]}";
        assert_eq!(backends(all, &[pod(8, false)]), ["10.88.0.8:80"]);
    }

    #[test]
    fn a_named_port_is_each_pods_own() {
        let spec = "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}";
        let without = Backend { ports: Vec::new(), ..pod(7, true) };
        assert_eq!(backends(spec, &[pod(5, true), pod(6, true), without]), ["10.88.0.5:8005", "10.88.0.6:8006"]);
        let udp = "{selector: {app: web}, ports: [{port: 80, targetPort: http, protocol: UDP}]}";
        assert!(backends(udp, &[pod(5, true)]).is_empty(), "of the same protocol");
    }

    #[test]
    fn names_stand_for_a_headless_services_pods() {
        let (services, given) =
            services("{clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}");
        let table = table("cluster.local", &services, &given, &[pod(6, true), pod(5, true)], 2);
        let web = &table.services[0];
        assert!(web.ip.is_none() && table.users == 2 && table.pods.len() == 2);
        let told: Vec<_> = web.endpoints.iter().map(|one| (one.hostname.clone(), one.ports[0].port)).collect();
        assert_eq!(told, [(Some("web-5".to_owned()), 8005), (None, 8006)]);
    }
}
