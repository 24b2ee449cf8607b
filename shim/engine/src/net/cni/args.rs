//! What the runtime tells plugins of a pod: CNI_ARGS, and the arguments of the capabilities that plugins ask for.
//!
//! | capability | value |
//! |---|---|
//! | `portMappings` | the pod's hostPorts |
//! | `bandwidth` | the annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth` |
//! | `dns` | the pod's resolver settings |
//! | `cgroupPath` | the pod's cgroup |
//! | `io.kubernetes.cri.pod-annotations` | the pod's annotations |
//!
//! Names and values are those of containerd and CRI-O, since that is what plugins were tried with. Nobody agreed on
//! annotations for the capabilities `ips` and `mac`: networks have their own, and read them by themselves.

use serde_json::{Map, Value, json};

use crate::net::{Attach, Error};
use crate::types::PortMapping;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits a second that make sense, as kubelet has it.
const LEAST_BANDWIDTH: u128 = 1_000;
const MOST_BANDWIDTH: u128 = 1_000_000_000_000_000;

/// CNI_ARGS of a pod.
pub(super) fn cni_args(attach: &Attach) -> Result<String, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", attach.namespace),
        ("K8S_POD_NAME", attach.name),
        ("K8S_POD_INFRA_CONTAINER_ID", attach.sandbox),
        ("K8S_POD_UID", attach.uid),
    ];
    for (key, value) in pairs {
        if value.contains([';', '=']) {
            return Err(Error::Invalid(format!("{key} {value:?}: CNI plugins cannot be told a text with ';' or '='")));
        }
    }
    Ok(pairs.map(|(key, value)| format!("{key}={value}")).join(";"))
}

/// What can be told for each capability.
pub(super) fn capabilities(attach: &Attach, ports: &[PortMapping]) -> Result<Map<String, Value>, Error> {
    let mut all = Map::new();
    if !ports.is_empty() {
        let entry = |port: &PortMapping| {
            let mut entry = json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.to_string(),
            });
            if let Some(ip) = port.host_ip {
                entry["hostIP"] = ip.to_string().into();
            }
            entry
        };
        all.insert("portMappings".into(), ports.iter().map(entry).collect());
    }
    let mut bandwidth = Map::new();
    for (annotation, direction) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        if let Some(text) = attach.annotations.get(annotation) {
            let rate = rate(text).map_err(|why| Error::Invalid(format!("annotation {annotation} {text:?}: {why}")))?;
            bandwidth.insert(format!("{direction}Rate"), rate.into());
            bandwidth.insert(format!("{direction}Burst"), u32::MAX.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".into(), bandwidth.into());
    }
    if let Some(dns) = attach.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".into(), dns);
    }
    if !attach.cgroup.is_empty() {
        all.insert("cgroupPath".into(), attach.cgroup.into());
    }
    if !attach.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(attach.annotations));
    }
    Ok(all)
}

/// Bits a second of a quantity such as `10M`.
fn rate(text: &str) -> Result<u64, String> {
    let rate = quantity(text).ok_or("it is no quantity such as 10M")?;
    match u64::try_from(rate) {
        Ok(fits) if (LEAST_BANDWIDTH..=MOST_BANDWIDTH).contains(&rate) => Ok(fits),
        _ => Err("it must be 1k to 1P bits a second".into()),
    }
}

/// A quantity of Kubernetes as a whole number, rounded up: digits with a point, and a suffix or an exponent.
fn quantity(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    const MOST_DIGITS: usize = 18;
    if number.len() == usize::from(number.contains('.')) || number.len() > MOST_DIGITS || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let ten = |power: u32| 10u128.checked_pow(power);
    let (up, down) = match suffix {
        "" => (1, 1),
        "n" => (1, ten(9)?),
        "u" => (1, ten(6)?),
        "m" => (1, ten(3)?),
        "k" => (ten(3)?, 1),
        "M" => (ten(6)?, 1),
        "G" => (ten(9)?, 1),
        "T" => (ten(12)?, 1),
        "P" => (ten(15)?, 1),
        "E" => (ten(18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => match exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()? {
            power @ 0..=18 => (ten(power.unsigned_abs())?, 1),
            power @ -18..0 => (1, ten(power.unsigned_abs())?),
            _ => return None,
        },
    };
    let down = ten(u32::try_from(fraction.len()).ok()?)?.checked_mul(down)?;
    Some(digits.checked_mul(up)?.div_ceil(down))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DnsConfig, Protocol};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn attach<'a>(name: &'a str, annotations: &'a BTreeMap<String, String>, dns: Option<&'a DnsConfig>) -> Attach<'a> {
        Attach {
            sandbox: "abc",
            name,
            namespace: "default",
            uid: "u-1",
            netns: Path::new("/proc/1/ns/net"),
            ports: &[],
            annotations,
            dns,
            cgroup: "/kubepods/pod1",
            local: false,
        }
    }

    #[test]
    fn plugins_are_told_the_pods_names() {
        let none = BTreeMap::new();
        assert_eq!(
            cni_args(&attach("web", &none, None)).unwrap(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
        let error = cni_args(&attach("web;K8S_POD_UID=other", &none, None)).unwrap_err().to_string();
        assert!(error.contains("K8S_POD_NAME"), "{error}");
    }

    #[test]
    fn each_capability_has_its_argument() {
        let annotations = BTreeMap::from([(INGRESS.to_owned(), "10M".to_owned()), ("a".to_owned(), "b".to_owned())]);
        let dns = DnsConfig { servers: vec!["10.0.0.1".into()], ..DnsConfig::default() };
        let ports = [
            PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp },
            PortMapping { host_ip: "::1".parse().ok(), host_port: 53, container_port: 53, protocol: Protocol::Udp },
        ];
        let all = capabilities(&attach("web", &annotations, Some(&dns)), &ports).unwrap();
        assert_eq!(
            Value::Object(all),
            json!({
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                    {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "::1"},
                ],
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": u32::MAX},
                "dns": {"servers": ["10.0.0.1"], "searches": [], "options": []},
                "cgroupPath": "/kubepods/pod1",
                "io.kubernetes.cri.pod-annotations": {INGRESS: "10M", "a": "b"},
            })
        );
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("10M", 10_000_000),
            ("1.5k", 1500),
            ("2Ki", 2048),
            ("1e6", 1_000_000),
            ("0.5", 1),
            ("1500m", 2),
            ("+7", 7),
            (".5k", 500),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for wrong in ["", "M", "1.2.3", "-1", "1 M", "10mb", "1e99", ".", "9999999999999999999", "1e"] {
            assert_eq!(quantity(wrong), None, "{wrong}");
        }
        assert!(rate("999").is_err() && rate("2P").is_err() && rate("1k").is_ok());
    }

    #[test]
    fn a_bandwidth_that_makes_no_sense_is_an_error_that_names_the_annotation() {
        let annotations = BTreeMap::from([(EGRESS.to_owned(), "fast".to_owned())]);
        let error = capabilities(&attach("web", &annotations, None), &[]).unwrap_err().to_string();
        assert!(error.contains(EGRESS) && error.contains("\"fast\""), "{error}");
    }
}
