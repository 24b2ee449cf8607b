//! Proxies from the environment, by the rules that Go programs have made common.
//!
//! `HTTPS_PROXY` serves https, `HTTP_PROXY` http, `ALL_PROXY` either if its own is unset; names in lower case count
//! too. Loopback is never proxied. `NO_PROXY` lists, with commas: `*`; an address or a network (`10.0.0.0/8`); a name,
//! which covers the names below it; `.name` or `*.name`, which covers only those; each with an optional `:PORT`.

use std::net::IpAddr;

use ureq::Proxy;

use crate::error::{Error, ErrorKind, Result};
use crate::hosts::is_loopback;

/// Proxies as they are configured: URLs, and the list of exceptions.
#[derive(Clone, Default)]
pub struct ProxySettings {
    /// For https.
    pub https: Option<String>,
    /// For plain http.
    pub http: Option<String>,
    /// Who is reached without.
    pub no_proxy: Option<String>,
}

impl ProxySettings {
    /// From this process's environment.
    pub fn from_env() -> ProxySettings {
        ProxySettings::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> ProxySettings {
        let get = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let all = get("ALL_PROXY");
        ProxySettings {
            https: get("HTTPS_PROXY").or_else(|| all.clone()),
            http: get("HTTP_PROXY").or(all),
            no_proxy: get("NO_PROXY"),
        }
    }
}

/// URLs of proxies may hold passwords.
impl std::fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProxySettings(https: {}, http: {})", self.https.is_some(), self.http.is_some())
    }
}

/// Which proxy serves which URL.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    what: What,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    All,
    Network(IpAddr, u8),
    /// The name itself, if `true`, and all below it.
    Name(String, bool),
}

impl Proxies {
    /// Makes sense of the settings.
    pub fn new(settings: &ProxySettings) -> Result<Proxies> {
        let parse = |name, url: &Option<String>| url.as_deref().map(|url| parse_proxy(name, url)).transpose();
        let exceptions =
            settings.no_proxy.iter().flat_map(|list| list.split(',')).filter_map(parse_exception).collect();
        Ok(Proxies {
            http: parse("HTTP_PROXY", &settings.http)?,
            https: parse("HTTPS_PROXY", &settings.https)?,
            exceptions,
        })
    }

    /// The proxy for a server, if it has one.
    pub fn of(&self, https: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if https { &self.https } else { &self.http };
        let direct = || is_loopback(host) || self.exceptions.iter().any(|exception| exception.covers(host, port));
        proxy.as_ref().filter(|_| !direct())
    }
}

fn parse_proxy(name: &str, url: &str) -> Result<Proxy> {
    let invalid = |why: &str| {
        // The URL may hold a password, so it is not shown.
        Error::new(ErrorKind::Invalid, format!("{name} or ALL_PROXY: {why}"))
            .hint("as in http://proxy.example:3128; unset it to go without")
    };
    if url.starts_with("socks") {
        return Err(invalid("SOCKS proxies are not supported"));
    }
    Proxy::new(url).map_err(|_| invalid("is not the URL of a proxy"))
}

fn parse_exception(text: &str) -> Option<Exception> {
    let text = text.trim().to_ascii_lowercase();
    if let Some((address, bits)) = text.split_once('/') {
        let what = What::Network(address.parse().ok()?, bits.parse().ok()?);
        return Some(Exception { what, port: None });
    }
    if let Ok(address) = bare(&text).parse::<IpAddr>() {
        return Some(Exception { what: What::Network(address, 128), port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text.as_str(), None),
    };
    let what = match (bare(host).parse(), host.trim_start_matches('*').strip_prefix('.')) {
        (Ok(address), _) => What::Network(address, 128),
        (_, Some(suffix)) => What::Name(suffix.to_owned(), false),
        _ if host == "*" => What::All,
        _ if host.is_empty() => return None,
        _ => What::Name(host.to_owned(), true),
    };
    Some(Exception { what, port })
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

impl Exception {
    fn covers(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        let host = bare(host).to_ascii_lowercase();
        match &self.what {
            What::All => true,
            What::Network(network, bits) => host.parse().is_ok_and(|address| within(address, *network, *bits)),
            What::Name(name, itself) => match host.strip_suffix(name.as_str()) {
                Some("") => *itself,
                Some(rest) => rest.ends_with('.'),
                None => false,
            },
        }
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let shift = width.saturating_sub(u32::from(bits));
        shift >= width || (a >> shift) == (b >> shift)
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Proxies::new(&ProxySettings::from(find))
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let found = proxies(&[("https_proxy", "http://p:1"), ("HTTP_PROXY", "q:2")]).unwrap();
        assert_eq!(found.of(true, "quay.io", 443).map(Proxy::port), Some(1));
        assert_eq!(found.of(false, "quay.io", 80).map(Proxy::host), Some("q"));
        assert!(found.of(true, "127.0.0.1", 443).is_none(), "loopback is never proxied");
        let all = proxies(&[("ALL_PROXY", "http://p:1"), ("HTTP_PROXY", "")]).unwrap();
        assert!(all.of(true, "x", 443).is_some() && all.of(false, "x", 80).is_some());
        assert!(proxies(&[]).unwrap().of(true, "x", 443).is_none());
        for bad in ["http://", "socks5://x:1"] {
            let err = proxies(&[("HTTPS_PROXY", bad)]).unwrap_err().to_string();
            assert!(err.contains("HTTPS_PROXY"), "{err}");
        }
    }

    #[test]
    fn no_proxy_knows_names_addresses_networks_and_ports() {
        for (list, host, port, direct) in [
            ("*", "a.b", 443, true),
            ("a.b", "a.b", 443, true),
            ("a.b", "x.a.b", 443, true),
            ("a.b", "xa.b", 443, false),
            (".a.b", "a.b", 443, false),
            ("*.a.b", "x.a.b", 443, true),
            ("x, A.B:5000", "a.b", 5000, true),
            ("a.b:5000", "a.b", 443, false),
            ("10.0.0.0/8", "10.9.9.9", 443, true),
            ("10.0.0.0/8", "11.9.9.9", 443, false),
            ("10.0.0.1", "10.0.0.1", 443, true),
            ("10.0.0.1:80", "10.0.0.1", 443, false),
            ("fd00::/8", "[fd00::1]", 443, true),
            ("0.0.0.0/0", "1.2.3.4", 443, true),
            ("", "a.b", 443, false),
        ] {
            let found = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)]).unwrap();
            assert_eq!(found.of(true, host, port).is_none(), direct, "{list} {host}:{port}");
        }
    }
}
