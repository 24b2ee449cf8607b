//! The few URLs that probes and hooks ask for: made from fields, and followed through redirects.

use std::fmt;

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// With TLS, whose certificate nobody checks.
    Https,
}

impl Scheme {
    /// The port that needs not be named.
    fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

/// A URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The scheme.
    pub scheme: Scheme,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query, escaped, with a leading slash.
    pub path: String,
}

impl Url {
    /// From the fields of an httpGet; what may not stand in a URL is escaped, and a fragment is left out.
    pub fn new(scheme: Scheme, host: &str, port: u16, path: &str) -> Url {
        let path = path.split('#').next().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        Url { scheme, host: host.trim_matches(['[', ']']).to_owned(), port, path: format!("{slash}{}", escape(path)) }
    }

    /// Host and port, as a Host header and a dialer have them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Where a redirect leads from here. None for what is no http URL.
    pub fn follow(&self, location: &str) -> Option<Url> {
        let location = location.trim();
        if let Some(rest) = location.strip_prefix("http://") {
            return Url::with_authority(Scheme::Http, rest);
        }
        if let Some(rest) = location.strip_prefix("https://") {
            return Url::with_authority(Scheme::Https, rest);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Url::with_authority(self.scheme, rest);
        }
        let end = location.find(['/', '?', '#']).unwrap_or(location.len());
        if location[..end].contains(':') {
            return None;
        }
        let here = self.path.split('?').next().unwrap_or_default();
        let folder = &here[..here.rfind('/').map_or(0, |slash| slash + 1)];
        let path = match location.chars().next() {
            None | Some('#') => self.path.clone(),
            Some('/') => location.to_owned(),
            Some('?') => format!("{here}{location}"),
            Some(_) => format!("{folder}{location}"),
        };
        Some(Url::new(self.scheme, &self.host, self.port, &path))
    }

    fn with_authority(scheme: Scheme, rest: &str) -> Option<Url> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, ""),
        };
        let port = if port.is_empty() { scheme.port() } else { port.parse().ok()? };
        (!host.is_empty()).then(|| Url::new(scheme, host, port, path))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority(), self.path)
    }
}

fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f.. => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(path: &str) -> Url {
        Url::new(Scheme::Http, "10.0.0.1", 8080, path)
    }

    #[test]
    fn fields_make_a_url_that_may_have_a_query() {
        assert_eq!(url("healthz?deep=1").to_string(), "http://10.0.0.1:8080/healthz?deep=1");
        assert_eq!(url("/a b#part").to_string(), "http://10.0.0.1:8080/a%20b");
        assert_eq!(url("").to_string(), "http://10.0.0.1:8080/");
        assert_eq!(Url::new(Scheme::Https, "fd00::1", 443, "/").to_string(), "https://[fd00::1]:443/");
    }

    #[test]
    fn redirects_lead_where_browsers_go() {
        let from = url("/a/b?q=1");
        let to = |location: &str| from.follow(location).map(|url| url.to_string());
        assert_eq!(to("/c").as_deref(), Some("http://10.0.0.1:8080/c"));
        assert_eq!(to("c").as_deref(), Some("http://10.0.0.1:8080/a/c"));
        assert_eq!(to("?r=2").as_deref(), Some("http://10.0.0.1:8080/a/b?r=2"));
        assert_eq!(to("https://other/x").as_deref(), Some("https://other:443/x"));
        assert_eq!(to("//[fd00::2]:81/x").as_deref(), Some("http://[fd00::2]:81/x"));
        assert_eq!((to("ftp://other/"), to("http://"), to("http://h:99999/")), (None, None, None));
    }

    proptest! {
        #[test]
        fn no_location_breaks_the_request_line(location in "\\PC*") {
            if let Some(url) = url("/").follow(&location) {
                prop_assert!(url.path.starts_with('/') && url.path.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
