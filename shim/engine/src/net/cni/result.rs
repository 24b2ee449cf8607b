//! What plugins answer to ADD: read, converted between versions, and what of it is the pod's.
//!
//! A result stays the JSON that the plugin wrote, since it is handed on to the next plugin and kept for DEL; keys that
//! are not known here pass through. Between versions little differs: up to 0.4.0 each address says its version of IP;
//! up to 0.2.0, which plugins of other times may still answer in, there was one address for each.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::conf::Version;
use crate::net::IpNet;
use crate::types::DnsConfig;

/// The result as one of `version`. What an answer without a version says is taken as written for the one asked in.
pub(super) fn convert(answer: &[u8], version: Version) -> Result<Value, String> {
    let mut result = match serde_json::from_slice(answer) {
        Ok(Value::Object(result)) => result,
        Ok(_) => return Err("its answer is no JSON object".into()),
        Err(_) if answer.iter().all(u8::is_ascii_whitespace) => return Err("it answered nothing".into()),
        Err(e) => return Err(format!("its answer is no JSON: {e}")),
    };
    match result.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(said)) if said.is_empty() || matches!(said.as_str(), "0.1.0" | "0.2.0") => {}
        Some(Value::String(said)) if Version::parse(said).is_some() => {}
        Some(said) => return Err(format!("its answer is of version {said}, which is not known")),
    }
    if result.contains_key("ip4") || result.contains_key("ip6") {
        result = from_one_address_each(&result);
    }
    if let Some(ips) = result.get_mut("ips") {
        for ip in ips.as_array_mut().ok_or("`ips` of its answer is no list")? {
            let ip = ip.as_object_mut().ok_or("`ips` of its answer is no list of objects")?;
            let address = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let net = parse_net(address).ok_or_else(|| format!("`ips` of its answer has the address {address:?}"))?;
            if version < Version::V1_0 {
                ip.insert("version".into(), if net.ip.is_ipv4() { "4" } else { "6" }.into());
            } else {
                ip.remove("version");
            }
        }
    }
    result.insert("cniVersion".into(), version.as_str().into());
    Ok(Value::Object(result))
}

/// A result of 0.2.0: `ip4` and `ip6`, each with an address, a gateway and routes.
fn from_one_address_each(old: &Map<String, Value>) -> Map<String, Value> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for config in ["ip4", "ip6"].iter().filter_map(|key| old.get(*key)) {
        let mut ip = Map::new();
        ip.insert("address".into(), config["ip"].clone());
        if let Some(gateway) = config.get("gateway").filter(|g| !g.is_null()) {
            ip.insert("gateway".into(), gateway.clone());
        }
        ips.push(Value::Object(ip));
        routes.extend(config.get("routes").and_then(Value::as_array).into_iter().flatten().cloned());
    }
    let mut new = Map::new();
    new.insert("ips".into(), ips.into());
    new.insert("routes".into(), routes.into());
    new.insert("dns".into(), old.get("dns").cloned().unwrap_or_else(|| json!({})));
    new
}

/// An address with a prefix, as `10.0.0.5/16`.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix = prefix.parse().ok().filter(|p| *p <= if ip.is_ipv4() { 32 } else { 128 })?;
    Some(IpNet { ip, prefix })
}

/// What of a result is the pod's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) mac: String,
    pub(super) ips: Vec<IpNet>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) dns: Option<DnsConfig>,
}

/// Finds the pod's link and its addresses: those of the interface `ifname` in a sandbox, and those that name no
/// interface. The first of IPv4 is the primary one, as other runtimes choose.
pub(super) fn place(result: &Value, ifname: &str) -> Place {
    let list = |key: &str| result.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let inside = |link: &Value| text(link, "name") == ifname && !text(link, "sandbox").is_empty();
    let links = list("interfaces");
    let ours = |ip: &&Value| match ip.get("interface").and_then(Value::as_u64) {
        Some(at) => usize::try_from(at).ok().and_then(|at| links.get(at)).is_some_and(inside),
        None => true,
    };
    let mut place = Place {
        mac: links.iter().find(|link| inside(link)).map(|link| text(link, "mac")).unwrap_or_default(),
        ..Place::default()
    };
    for ip in list("ips").iter().filter(ours) {
        place.ips.extend(parse_net(&text(ip, "address")));
        place.gateway = place.gateway.or_else(|| text(ip, "gateway").parse().ok());
    }
    if let Some(at) = place.ips.iter().position(|net| net.ip.is_ipv4()) {
        place.ips[..=at].rotate_right(1);
    }
    place.dns = result.get("dns").and_then(dns);
    place
}

/// The resolver settings of a result; `None` when they say nothing.
fn dns(dns: &Value) -> Option<DnsConfig> {
    let texts = |key: &str| -> Vec<String> {
        let list = dns.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut config = DnsConfig { servers: texts("nameservers"), searches: texts("search"), options: texts("options") };
    if let Some(domain) = dns.get("domain").and_then(Value::as_str).filter(|d| !d.is_empty())
        && config.searches.is_empty()
    {
        config.searches.push(domain.to_owned());
    }
    (config != DnsConfig::default()).then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn addresses_say_their_version_of_ip_where_the_version_of_the_result_wants_it() {
        let new = br#"{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}, {"address": "fd00::5/64"}], "x": 1}"#;
        let old = convert(new, version("0.4.0")).unwrap();
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!((&old["cniVersion"], &old["x"]), (&json!("0.4.0"), &json!(1)));
        let again = convert(old.to_string().as_bytes(), version("1.1.0")).unwrap();
        assert!(again["ips"][0].get("version").is_none());
        assert_eq!(again["cniVersion"], "1.1.0");
    }

    #[test]
    fn a_result_of_another_time_is_understood() {
        let old =
            br#"{"ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]}, "dns": {}}"#;
        let new = convert(old, version("1.0.0")).unwrap();
        assert_eq!(new["ips"], json!([{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}]));
        assert_eq!(new["routes"], json!([{"dst": "0.0.0.0/0"}]));
    }

    #[test]
    fn answers_that_make_no_sense_are_told() {
        for (answer, words) in [
            ("", "answered nothing"),
            ("[]", "no JSON object"),
            ("ok", "no JSON"),
            (r#"{"cniVersion": "7.0.0"}"#, "7.0.0"),
            (r#"{"ips": [{"address": "10.1.0.5"}]}"#, "10.1.0.5"),
            (r#"{"ips": {}}"#, "no list"),
        ] {
            let error = convert(answer.as_bytes(), version("1.0.0")).unwrap_err();
            assert!(error.contains(words), "{answer}: {error}");
        }
    }

    #[test]
    fn the_pods_place_is_what_is_inside_and_ipv4_comes_first() {
        let result = json!({
            "interfaces": [{"name": "cni0", "mac": "aa"}, {"name": "eth0", "mac": "bb", "sandbox": "/run/netns/x"}, {"name": "eth0", "mac": "cc"}],
            "ips": [
                {"address": "192.0.2.1/24", "interface": 0}, {"address": "fd00::5/64", "interface": 1, "gateway": "fd00::1"},
                {"address": "fd00::6/64"}, {"address": "10.1.0.5/16", "interface": 1}, {"address": "10.2.0.5/16", "interface": 9},
            ],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "example.test"},
        });
        let place = place(&result, "eth0");
        let ips: Vec<_> = place.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.1.0.5/16", "fd00::5/64", "fd00::6/64"]);
        assert_eq!((place.mac.as_str(), place.gateway), ("bb", "fd00::1".parse().ok()));
        let dns = place.dns.unwrap();
        assert_eq!((dns.servers, dns.searches), (vec!["10.1.0.1".to_owned()], vec!["example.test".to_owned()]));
        assert_eq!(super::place(&json!({"dns": {}}), "eth0"), Place::default());
    }
}
