//! What the names of the cluster's domain stand for, by Kubernetes' DNS specification 1.1.0 and, where that is silent, as
//! CoreDNS answers. One pure function from a question to an answer.
//!
//! | name | type | answer |
//! |---|---|---|
//! | `SVC.NS.svc.DOMAIN` | A | the cluster address; of a headless one the addresses of its ready pods |
//! | the same | SRV | its ports |
//! | the same, `ExternalName` | any | CNAME, which the server follows |
//! | `_PORT._PROTO.SVC.NS.svc.DOMAIN` | SRV | that port; of a headless one at each pod |
//! | `POD.SVC.NS.svc.DOMAIN` | A | a pod of the service, by its hostname where its subdomain is SVC, else by its address with dashes |
//! | `10-88-0-5.NS.pod.DOMAIN` | A | that address, if a pod of the namespace has it |
//! | `D.C.B.A.in-addr.arpa` | PTR | the service, or the pod's name in a service, with that address |
//! | `dns-version.DOMAIN` | TXT | 1.1.0 |
//!
//! A name with something below or beside it, but nothing of the type, has an empty answer; any other is no name
//! (NXDOMAIN). Both carry the SOA, so that they may be kept for a while. Answers turn round: each begins with another
//! address.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::wire::{Answer, Code, Data, Name, Question, Record, Soa, kind};

/// For how long an answer may be kept: CoreDNS' five seconds, since pods come and go.
const TTL: u32 = 5;
/// What `dns-version` says.
const VERSION: &str = "1.1.0";
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// All that is known: what `service::refresh` writes and the server reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The cluster's domain.
    pub domain: String,
    /// The services.
    pub services: Vec<Service>,
    /// Each pod's namespace and address.
    pub pods: Vec<(String, Ipv4Addr)>,
    /// How many pods ask the server.
    pub users: usize,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address; none for a headless one.
    pub ip: Option<IpAddr>,
    /// The name that its name is another word for.
    pub external: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// The pods that its name stands for.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a service or of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The service's name of it; may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The number.
    pub port: u16,
}

/// A pod of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its hostname, if its subdomain is the service.
    pub hostname: Option<String>,
    /// Its ports, where the service's lead.
    pub ports: Vec<Port>,
}

impl Endpoint {
    /// What it is called below its service.
    fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.ip))
    }
}

fn dashed(ip: Ipv4Addr) -> String {
    ip.to_string().replace('.', "-")
}

/// What is to be said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This.
    Answer(Answer),
    /// This alias, and then what its target stands for.
    Follow(Record, Name),
    /// The name is not ours: others know.
    Foreign,
}

impl Table {
    /// Answers a question; `turn` is another for each.
    pub fn answer(&self, question: &Question, turn: usize) -> Verdict {
        if ![CLASS_IN, CLASS_ANY].contains(&question.class) {
            return Verdict::Answer(Answer::code(Code::Refused));
        }
        let Some(labels) = question.name.plain() else { return Verdict::Foreign };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if let Some(ip) = reversed(&labels) {
            return self.reverse(question, ip);
        }
        let domain: Vec<&str> = self.domain.split('.').collect();
        match labels.strip_suffix(domain.as_slice()) {
            Some(inner) => self.inner(question, inner, turn),
            None => Verdict::Foreign,
        }
    }

    fn inner(&self, question: &Question, labels: &[&str], turn: usize) -> Verdict {
        let answer = |found| Verdict::Answer(self.told(question, found));
        let reversed: Vec<&str> = labels.iter().rev().copied().collect();
        match reversed.as_slice() {
            [] => answer(Some(Found::default())),
            ["dns-version"] => answer(Some(Found::of(vec![Data::Txt(VERSION.to_owned())]))),
            ["svc" | "pod"] => answer(Some(Found::default())),
            ["pod", namespace] => answer(self.has_namespace(namespace).then(Found::default)),
            ["pod", namespace, address] => answer(self.pod(namespace, address)),
            ["svc", namespace] => answer(self.has_namespace(namespace).then(Found::default)),
            ["svc", namespace, name, rest @ ..] => {
                let Some(service) = self.service(namespace, name) else { return answer(None) };
                match (&service.external, rest) {
                    (Some(target), []) => follow(question, target),
                    (Some(_), _) => answer(None),
                    (None, rest) => answer(self.of_service(service, rest, turn)),
                }
            }
            _ => answer(None),
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.namespace == namespace && service.name == name)
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.services.iter().any(|service| service.namespace == namespace)
            || self.pods.iter().any(|(other, _)| other == namespace)
    }

    fn pod(&self, namespace: &str, address: &str) -> Option<Found> {
        let ip: Ipv4Addr = address.replace('-', ".").parse().ok()?;
        let known = self.pods.iter().any(|(other, of)| other == namespace && *of == ip);
        known.then(|| Found::of(vec![Data::A(ip)]))
    }

    /// What a name of a service stands for; `rest` are the labels left of it, the nearest first.
    fn of_service(&self, service: &Service, rest: &[&str], turn: usize) -> Option<Found> {
        match (service.ip, rest) {
            (Some(ip), []) => {
                let host = self.name_of(service, None)?;
                let mut found = Found::of(vec![address(ip)]);
                for port in &service.ports {
                    found.srv(port.port, &host, address(ip));
                }
                Some(found)
            }
            (None, []) => {
                let mut found = Found::default();
                for endpoint in &service.endpoints {
                    found.data.push(Data::A(endpoint.ip));
                    let host = self.name_of(service, Some(endpoint))?;
                    endpoint.ports.iter().for_each(|port| found.srv(port.port, &host, Data::A(endpoint.ip)));
                }
                found.turn(turn);
                // As CoreDNS: a headless service without a ready pod is no name.
                (!found.data.is_empty()).then_some(found)
            }
            (ip, [protocol, rest @ ..]) if protocol.starts_with('_') => {
                let protocol = &protocol[1..];
                let known = |port: &&Port| port.protocol == protocol;
                match rest {
                    [] => service.ports.iter().any(|port| known(&port)).then(Found::default),
                    [name] => {
                        let name = name.strip_prefix('_')?;
                        let wanted = |port: &&Port| known(port) && port.name == name && !name.is_empty();
                        let mut found = Found::default();
                        match ip {
                            Some(ip) => {
                                let host = self.name_of(service, None)?;
                                let port = service.ports.iter().find(wanted)?;
                                found.srv(port.port, &host, address(ip));
                            }
                            None => {
                                for endpoint in &service.endpoints {
                                    let Some(port) = endpoint.ports.iter().find(wanted) else { continue };
                                    let host = self.name_of(service, Some(endpoint))?;
                                    found.srv(port.port, &host, Data::A(endpoint.ip));
                                }
                            }
                        }
                        (!found.services.is_empty()).then_some(found)
                    }
                    _ => None,
                }
            }
            (_, [label]) => {
                let mut found = Found::default();
                for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.label() == *label) {
                    found.data.push(Data::A(endpoint.ip));
                    let host = self.name_of(service, Some(endpoint))?;
                    endpoint.ports.iter().for_each(|port| found.srv(port.port, &host, Data::A(endpoint.ip)));
                }
                (!found.data.is_empty()).then_some(found)
            }
            _ => None,
        }
    }

    /// The name of a service, or of a pod in it.
    fn name_of(&self, service: &Service, endpoint: Option<&Endpoint>) -> Option<Name> {
        let below = endpoint.map(|endpoint| format!("{}.", endpoint.label())).unwrap_or_default();
        Name::parse(&format!("{below}{}.{}.svc.{}", service.name, service.namespace, self.domain))
    }

    fn reverse(&self, question: &Question, ip: Ipv4Addr) -> Verdict {
        let mut names: Vec<Name> = self
            .services
            .iter()
            .filter(|service| service.ip == Some(ip.into()))
            .filter_map(|service| self.name_of(service, None))
            .collect();
        if names.is_empty() {
            for service in &self.services {
                let here = service.endpoints.iter().filter(|endpoint| endpoint.ip == ip);
                names.extend(here.filter_map(|endpoint| self.name_of(service, Some(endpoint))));
            }
        }
        match names.is_empty() {
            true => Verdict::Foreign,
            false => Verdict::Answer(self.told(question, Some(Found::of(names.into_iter().map(Data::Ptr).collect())))),
        }
    }

    /// The answer made of what was found; `None` for no such name.
    fn told(&self, question: &Question, found: Option<Found>) -> Answer {
        let code = if found.is_some() { Code::Ok } else { Code::NxDomain };
        let found = found.unwrap_or_default();
        let record = |data| Record { name: question.name.clone(), ttl: TTL, data };
        let wanted = |data: &Data| {
            let kind = match data {
                Data::A(_) => kind::A,
                Data::Aaaa(_) => kind::AAAA,
                Data::Cname(_) => kind::CNAME,
                Data::Ptr(_) => kind::PTR,
                Data::Srv { .. } => kind::SRV,
                Data::Txt(_) => kind::TXT,
            };
            [kind, kind::ANY].contains(&question.kind)
        };
        let weight = u16::try_from(100 / found.services.len().max(1)).unwrap_or_default().max(1);
        let services =
            found.services.iter().map(|(port, target, _)| Data::Srv { weight, port: *port, target: target.clone() });
        let answers: Vec<Record> = found.data.iter().cloned().chain(services).filter(wanted).map(record).collect();
        let mut additional: Vec<Record> = Vec::new();
        if question.kind == kind::SRV {
            for (_, target, data) in found.services {
                let help = Record { name: target, ttl: TTL, data };
                if !additional.contains(&help) {
                    additional.push(help);
                }
            }
        }
        let soa = answers.is_empty().then(|| self.soa()).flatten();
        Answer { code, authoritative: true, answers, soa, additional }
    }

    fn soa(&self) -> Option<Soa> {
        Some(Soa {
            zone: Name::parse(&self.domain)?,
            server: Name::parse(&format!("ns.dns.{}", self.domain))?,
            mailbox: Name::parse(&format!("hostmaster.{}", self.domain))?,
            serial: 1,
            ttl: TTL,
        })
    }
}

/// What a name stands for.
#[derive(Debug, Default)]
struct Found {
    data: Vec<Data>,
    /// Ports, with the host and its address.
    services: Vec<(u16, Name, Data)>,
}

impl Found {
    fn of(data: Vec<Data>) -> Found {
        Found { data, services: Vec::new() }
    }

    fn srv(&mut self, port: u16, host: &Name, address: Data) {
        self.services.push((port, host.clone(), address));
    }

    fn turn(&mut self, turn: usize) {
        if !self.data.is_empty() {
            let by = turn % self.data.len();
            self.data.rotate_left(by);
        }
    }
}

fn address(ip: IpAddr) -> Data {
    match ip {
        IpAddr::V4(ip) => Data::A(ip),
        IpAddr::V6(ip) => Data::Aaaa(ip),
    }
}

fn follow(question: &Question, target: &str) -> Verdict {
    match Name::parse(target) {
        Some(target) => {
            let data = Data::Cname(target.clone());
            Verdict::Follow(Record { name: question.name.clone(), ttl: TTL, data }, target)
        }
        None => Verdict::Answer(Answer::code(Code::ServFail)),
    }
}

/// The address that a name of `in-addr.arpa` is about.
fn reversed(labels: &[&str]) -> Option<Ipv4Addr> {
    let [d, c, b, a, "in-addr", "arpa"] = labels else { return None };
    format!("{a}.{b}.{c}.{d}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, port: u16) -> Port {
        Port { name: name.into(), protocol: "tcp".into(), port }
    }

    fn endpoint(last: u8, hostname: Option<&str>) -> Endpoint {
        let ip = Ipv4Addr::new(10, 88, 0, last);
        Endpoint { ip, hostname: hostname.map(str::to_owned), ports: vec![port("http", 8080)] }
    }

    fn table() -> Table {
        let service = |name: &str| Service { namespace: "default".into(), name: name.into(), ..Service::default() };
        Table {
            domain: "cluster.local".into(),
            services: vec![
                Service {
                    ip: Some("10.96.0.7".parse().unwrap()),
                    ports: vec![port("http", 80)],
                    endpoints: vec![endpoint(5, None)],
                    ..service("web")
                },
                Service {
                    ports: vec![port("http", 8080)],
                    endpoints: vec![endpoint(6, Some("db-0")), endpoint(7, None)],
                    ..service("db")
                },
                Service { external: Some("example.com".into()), ..service("out") },
                service("empty"),
            ],
            pods: vec![("default".into(), Ipv4Addr::new(10, 88, 0, 5))],
            users: 1,
        }
    }

    fn ask(name: &str, kind: u16) -> Verdict {
        table().answer(&Question { name: Name::parse(name).unwrap(), kind, class: 1 }, 0)
    }

    fn told(name: &str, kind: u16) -> Answer {
        match ask(name, kind) {
            Verdict::Answer(answer) => answer,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn addresses(name: &str) -> Vec<String> {
        let answer = told(name, kind::A);
        assert!(answer.authoritative && answer.code == Code::Ok && !answer.answers.is_empty(), "{name}: {answer:?}");
        let text = |record: &Record| match record.data {
            Data::A(ip) => ip.to_string(),
            ref other => panic!("{other:?}"),
        };
        answer.answers.iter().map(text).collect()
    }

    #[test]
    fn services_and_pods_have_their_addresses() {
        for (name, wanted) in [
            ("web.default.svc.cluster.local", vec!["10.96.0.7"]),
            ("WEB.Default.svc.cluster.LOCAL", vec!["10.96.0.7"]),
            ("db.default.svc.cluster.local", vec!["10.88.0.6", "10.88.0.7"]),
            ("db-0.db.default.svc.cluster.local", vec!["10.88.0.6"]),
            ("10-88-0-7.db.default.svc.cluster.local", vec!["10.88.0.7"]),
            ("10-88-0-5.default.pod.cluster.local", vec!["10.88.0.5"]),
        ] {
            assert_eq!(addresses(name), wanted, "{name}");
        }
        let question = Question { name: Name::parse("db.default.svc.cluster.local").unwrap(), kind: kind::A, class: 1 };
        let Verdict::Answer(second) = table().answer(&question, 1) else { panic!() };
        assert_eq!(second.answers[0].data, Data::A(Ipv4Addr::new(10, 88, 0, 7)), "another comes first");
    }

    #[test]
    fn there_is_nothing_of_a_type_or_there_is_no_such_name() {
        for (name, kind, code) in [
            ("web.default.svc.cluster.local", kind::AAAA, Code::Ok),
            ("default.svc.cluster.local", kind::A, Code::Ok),
            ("svc.cluster.local", kind::A, Code::Ok),
            ("cluster.local", kind::A, Code::Ok),
            ("_tcp.web.default.svc.cluster.local", kind::SRV, Code::Ok),
            ("none.default.svc.cluster.local", kind::A, Code::NxDomain),
            ("web.other.svc.cluster.local", kind::A, Code::NxDomain),
            ("empty.default.svc.cluster.local", kind::A, Code::NxDomain),
            ("_udp.web.default.svc.cluster.local", kind::SRV, Code::NxDomain),
            ("_ssh._tcp.web.default.svc.cluster.local", kind::SRV, Code::NxDomain),
            ("x.db.default.svc.cluster.local", kind::A, Code::NxDomain),
            ("10-88-0-6.default.pod.cluster.local", kind::A, Code::NxDomain),
            ("example.com.cluster.local", kind::A, Code::NxDomain),
        ] {
            let answer = told(name, kind);
            assert_eq!((answer.code, answer.answers.len()), (code, 0), "{name}");
            assert!(answer.soa.is_some() && answer.authoritative, "{name}");
        }
    }

    #[test]
    fn ports_are_found_by_name_with_the_address_beside() {
        let answer = told("_http._tcp.web.default.svc.cluster.local", kind::SRV);
        let target = Name::parse("web.default.svc.cluster.local").unwrap();
        assert_eq!(answer.answers[0].data, Data::Srv { weight: 100, port: 80, target: target.clone() });
        assert_eq!(answer.additional[0].name, target);
        let answer = told("_http._tcp.db.default.svc.cluster.local", kind::SRV);
        let targets: Vec<String> = answer.additional.iter().map(|record| format!("{:?}", record.name)).collect();
        let of = |label: &str| format!("{label}.db.default.svc.cluster.local.");
        assert_eq!(targets, [of("db-0"), of("10-88-0-7")]);
    }

    #[test]
    fn an_external_name_is_followed_and_other_domains_are_foreign() {
        let Verdict::Follow(_, target) = ask("out.default.svc.cluster.local", kind::A) else { panic!() };
        assert_eq!(target, Name::parse("example.com").unwrap());
        for name in ["example.com", "local", "xcluster.local", "9.9.9.9.in-addr.arpa"] {
            assert_eq!(ask(name, kind::A), Verdict::Foreign, "{name}");
        }
    }

    #[test]
    fn addresses_have_names() {
        let name = |ip: &str| format!("{:?}", told(ip, kind::PTR).answers[0].data);
        assert!(name("7.0.96.10.in-addr.arpa").contains("web.default.svc.cluster.local."));
        assert!(name("6.0.88.10.in-addr.arpa").contains("db-0.db.default.svc.cluster.local."));
    }

    #[test]
    fn another_class_is_refused() {
        let question = Question { name: Name::parse("web").unwrap(), kind: kind::A, class: 3 };
        assert_eq!(table().answer(&question, 0), Verdict::Answer(Answer::code(Code::Refused)));
    }
}
