//! Parses one directory of `certs.d`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Host, Scheme};
use crate::error::{Error, ErrorKind, Result};

/// `hosts.toml` as it is written.
#[derive(Deserialize, Default)]
struct RawFile {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, RawHost>,
    // serde's flatten would lose the names of unknown keys; the same settings are spelt out.
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore<String>>,
    client: Option<OneOrMore<OneOrMore<String>>>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore<String>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore<String>>,
    client: Option<OneOrMore<OneOrMore<String>>>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore<String>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// The hosts of a directory; `server` is what the registry itself is like without it.
pub fn load(dir: &Path, server: Host) -> Result<Vec<Host>> {
    let path = dir.join("hosts.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
        Err(err) => return Err(Error::io(format_args!("read {}", path.display()), err)),
    };
    if text.trim().is_empty() {
        return Ok(vec![docker_certificates(dir, server)?]);
    }
    parse(&text, dir, server).map_err(|why| {
        Error::new(ErrorKind::Invalid, format!("registry configuration {}: {why}", path.display()))
            .hint("the format is that of containerd's hosts.toml")
    })
}

fn parse(text: &str, dir: &Path, server: Host) -> Result<Vec<Host>, String> {
    let raw: RawFile = toml::from_str(text).map_err(|err| one_line(text, &err))?;
    check_keys(text)?;
    let mut mirrors: Vec<(Spanned<String>, RawHost)> = raw.host.into_iter().collect();
    // The order of the file is the order of trying, and a map has none.
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let mut hosts = Vec::new();
    for (url, mirror) in mirrors {
        let url = url.into_inner();
        let mut host = Host { mirror: true, skip_verify: false, ..server.clone() };
        set_url(&mut host, &url, mirror.override_path).map_err(|why| format!("host.{url:?}: {why}"))?;
        settings(&mut host, mirror, dir).map_err(|why| format!("host.{url:?}.{why}"))?;
        hosts.push(host);
    }
    let mut last = server;
    if !raw.server.is_empty() {
        set_url(&mut last, &raw.server, raw.override_path).map_err(|why| format!("server: {why}"))?;
    }
    let own = RawHost {
        capabilities: raw.capabilities,
        ca: raw.ca,
        client: raw.client,
        skip_verify: raw.skip_verify,
        header: raw.header,
        override_path: raw.override_path,
        dial_timeout: raw.dial_timeout,
    };
    settings(&mut last, own, dir)?;
    hosts.push(last);
    Ok(hosts)
}

/// A misspelt `skip_verify` or `capabilities` must not be ignored.
fn check_keys(text: &str) -> Result<(), String> {
    const SETTINGS: [&str; 7] =
        ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];
    let table: toml::Table = toml::from_str(text).map_err(|err| one_line(text, &err))?;
    let unknown = |key: &str| format!("{key}: unknown key; known are server, host, {}", SETTINGS.join(", "));
    for (key, value) in &table {
        match (key.as_str(), value) {
            ("server", _) => {}
            ("host", toml::Value::Table(hosts)) => {
                for (url, host) in hosts {
                    let keys = host.as_table().into_iter().flat_map(|host| host.keys());
                    if let Some(bad) = keys.into_iter().find(|key| !SETTINGS.contains(&key.as_str())) {
                        return Err(unknown(&format!("host.{url:?}.{bad}")));
                    }
                }
            }
            (key, _) if SETTINGS.contains(&key) => {}
            (key, _) => return Err(unknown(key)),
        }
    }
    Ok(())
}

/// toml's errors draw the place over several lines.
fn one_line(text: &str, err: &toml::de::Error) -> String {
    let message = err.message().replace('\n', " ");
    match err.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

fn set_url(host: &mut Host, url: &str, override_path: bool) -> Result<(), String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some((other, _)) => return Err(format!("{other:?} is neither http nor https")),
        None => (Scheme::Https, url),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.is_empty()
        || authority.contains('@')
        || rest.contains(['?', '#'])
        || !rest.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(format!("{url:?} is not a URL of the form https://HOST[:PORT][/PATH]"));
    }
    let path = path.trim_end_matches('/');
    host.scheme = scheme;
    host.authority = authority.to_owned();
    host.path = match override_path || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    };
    Ok(())
}

fn settings(host: &mut Host, raw: RawHost, dir: &Path) -> Result<(), String> {
    if let Some(capabilities) = raw.capabilities.filter(|list| !list.is_empty()) {
        (host.pull, host.resolve) = (false, false);
        for capability in capabilities {
            match capability.to_ascii_lowercase().as_str() {
                "pull" => host.pull = true,
                "resolve" => host.resolve = true,
                "push" | "referrers" => {}
                _ => return Err(format!("capabilities: {capability:?} is none of pull, resolve, push, referrers")),
            }
        }
    }
    let absolute = |path: String| dir.join(path);
    host.ca.extend(raw.ca.map(OneOrMore::into_vec).unwrap_or_default().into_iter().map(absolute));
    for pair in raw.client.map(OneOrMore::into_vec).unwrap_or_default() {
        let mut files: Vec<PathBuf> = pair.into_vec().into_iter().map(absolute).collect();
        match (files.len(), files.pop(), files.pop()) {
            (1, Some(both), None) => host.client.push((both, None)),
            (2, Some(key), Some(cert)) => host.client.push((cert, Some(key))),
            _ => return Err("client: an inner list is a certificate and its key".into()),
        }
    }
    if let Some(skip_verify) = raw.skip_verify {
        host.skip_verify = skip_verify;
    }
    for (name, values) in raw.header {
        let plain = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~'));
        for value in values.into_vec() {
            if !plain(&value) || name.is_empty() || !plain(&name) || name.contains([' ', ':']) {
                return Err(format!("header.{name:?}: is not a header"));
            }
            host.headers.push((name.clone(), value));
        }
    }
    if let Some(text) = raw.dial_timeout.filter(|text| !text.is_empty()) {
        let timeout =
            parse_duration(&text).ok_or_else(|| format!("dial_timeout: {text:?} is not a duration as 3s or 500ms"))?;
        host.dial_timeout = Some(timeout);
    }
    Ok(())
}

/// Go's durations: `1m30s`, `1.5s`, `500ms`.
fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut total = 0.0;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(digits);
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        text = rest;
    }
    Duration::try_from_secs_f64(total).ok().filter(|duration| !duration.is_zero())
}

/// Docker's layout: authorities in `*.crt`, client certificates in `*.cert` with their keys in `*.key`.
fn docker_certificates(dir: &Path, mut server: Host) -> Result<Host> {
    let failed = |err| Error::io(format_args!("read {}", dir.display()), err);
    let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()).map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => server.ca.push(path),
            Some("cert") => {
                let key = Some(path.with_extension("key")).filter(|key| key.exists());
                server.client.push((path, key));
            }
            _ => {}
        }
    }
    if !server.ca.is_empty() || !server.client.is_empty() {
        // Who gives certificates wants TLS.
        server.scheme = Scheme::Https;
        server.skip_verify = false;
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Host>, String> {
        parse(text, Path::new("/certs"), Host::server("quay.io", false))
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_then_the_server() {
        let text = r#"
            server = "https://upstream.example/prefix"
            ca = "root.crt"
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = ["a.crt", "/abs/b.crt"]
              client = [["c.cert", "c.key"], "both.pem"]
              skip_verify = true
              dial_timeout = "1m1.5s"
              [host."https://z.example".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."http://a.example:8080/api/v2"]
            [host."m.example/odd"]
              override_path = true
        "#;
        let hosts = parsed(text).unwrap();
        let urls: Vec<_> =
            hosts.iter().map(|host| (host.scheme, host.authority.as_str(), host.path.as_str())).collect();
        assert_eq!(
            urls,
            [
                (Scheme::Https, "z.example", "/v2"),
                (Scheme::Http, "a.example:8080", "/api/v2"),
                (Scheme::Https, "m.example", "/odd"),
                (Scheme::Https, "upstream.example", "/prefix/v2"),
            ]
        );
        let z = &hosts[0];
        assert_eq!((z.pull, z.resolve, z.skip_verify, z.mirror), (true, false, true, true));
        assert_eq!(z.ca, [Path::new("/certs/a.crt"), Path::new("/abs/b.crt")]);
        assert_eq!(z.client, [("/certs/c.cert".into(), Some("/certs/c.key".into())), ("/certs/both.pem".into(), None)]);
        assert_eq!(z.dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(z.headers.len(), 3);
        assert!(hosts[1].resolve && hosts[1].ca.is_empty());
        assert_eq!((hosts[3].mirror, hosts[3].ca.len()), (false, 1));
    }

    #[test]
    fn no_server_means_the_registry_itself() {
        let hosts = parsed("[host.\"https://m\"]").unwrap();
        assert_eq!(hosts[1], Host::server("quay.io", false));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, words) in [
            ("server = ", "line 1: "),
            ("server = 7", "line 1: "),
            ("[host.\"ftp://x\"]", "host.\"ftp://x\": \"ftp\" is neither"),
            ("[host.\"https://x?y\"]", "is not a URL"),
            ("[host.\"x\"]\ncapabilities = [\"pul\"]", "host.\"x\".capabilities: \"pul\""),
            ("[host.\"x\"]\nskip_verfy = true", "host.\"x\".skip_verfy: unknown key"),
            ("mirrors = []", "mirrors: unknown key"),
            ("dial_timeout = \"soon\"", "dial_timeout: \"soon\""),
            ("client = [[\"a\",\"b\",\"c\"]]", "client: an inner list"),
            ("[host.\"x\".header]\n\"a b\" = \"c\"", "is not a header"),
        ] {
            let err = parsed(text).unwrap_err();
            assert!(err.contains(words) && !err.contains('\n'), "{text}: {err}");
        }
    }

    #[test]
    fn dockers_layout_of_certificates_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "bundle.cert", "README"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let hosts = load(dir.path(), Host::server("127.0.0.1:5000", false)).unwrap();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].scheme, Scheme::Https);
        assert_eq!(hosts[0].ca, [dir.path().join("ca.crt")]);
        let both = (dir.path().join("bundle.cert"), None);
        let pair = (dir.path().join("client.cert"), Some(dir.path().join("client.key")));
        assert_eq!(hosts[0].client, [both, pair]);
    }
}
