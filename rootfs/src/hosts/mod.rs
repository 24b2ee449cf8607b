//! Where a registry's content is really fetched from: `certs.d/HOST/hosts.toml`, as containerd reads it.
//!
//! ```toml
//! server = "https://registry.example"       # the registry itself, tried last; default: https://HOST
//! # capabilities, ca, client, skip_verify, header, override_path and dial_timeout up here are the server's
//!
//! [host."https://mirror.example"]            # mirrors, tried first, in the order of the file
//!   capabilities = ["pull", "resolve"]       # resolve: may say what a tag means
//!   ca = "ca.crt"                            # or a list; relative to this file's directory
//!   client = [["client.cert", "client.key"]] # or one file, or a list of files with both
//!   skip_verify = false
//!   override_path = true                     # the URL's path is the API's root: no "/v2" is appended
//!   dial_timeout = "3s"
//!   [host."https://mirror.example".header]
//!     x-token = "value"
//! ```
//!
//! The directory is the first of `HOST_PORT_`, `HOST:PORT` in any of the roots, then `_default` in any. A directory
//! without `hosts.toml` is docker's: `*.crt` are authorities, `*.cert` with `*.key` are client certificates. A
//! malformed file is an error (containerd logs it, and goes on without the mirrors and without their restrictions).
//!
//! Without any of these, a registry is reached by https; plain http is only an option on a loopback address and for
//! registries that the configuration calls insecure, and is only used after https was seen not to be spoken there.

mod file;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::reference::DEFAULT_REGISTRY;

/// Where Docker Hub's registry is.
const HUB_SERVER: &str = "registry-1.docker.io";
/// The directory for registries that have none of their own.
const DEFAULT_DIR: &str = "_default";

/// How to speak to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TLS.
    Https,
    /// Plain.
    Http,
    /// TLS if it is spoken there, else plain.
    Probe,
}

/// One place to fetch from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// How to speak to it.
    pub scheme: Scheme,
    /// `HOST[:PORT]`.
    pub authority: String,
    /// The root of the API: `/v2`, unless overridden.
    pub path: String,
    /// May blobs and manifests by digest be fetched here?
    pub pull: bool,
    /// May it say what a tag means?
    pub resolve: bool,
    /// Files with further authorities.
    pub ca: Vec<PathBuf>,
    /// Files with client certificates and keys; without the second, the first has both.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Takes any certificate.
    pub skip_verify: bool,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// Limits connecting.
    pub dial_timeout: Option<Duration>,
    /// A mirror, as opposed to the registry itself: gets none of the registry's credentials.
    pub mirror: bool,
}

impl Host {
    /// The registry itself, nothing being configured.
    fn server(registry: &str, insecure: bool) -> Host {
        let scheme = if insecure || is_loopback(registry) { Scheme::Probe } else { Scheme::Https };
        Host {
            scheme,
            authority: if registry == DEFAULT_REGISTRY { HUB_SERVER } else { registry }.to_owned(),
            path: "/v2".into(),
            pull: true,
            resolve: true,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: insecure,
            headers: Vec::new(),
            dial_timeout: None,
            mirror: false,
        }
    }
}

/// Where to look, and what else is configured.
#[derive(Debug, Clone, Default)]
pub struct HostsConfig {
    /// The `certs.d` directories.
    pub roots: Vec<PathBuf>,
    /// Registries (`HOST[:PORT]`, as in references) that may be spoken to in plain http, or with any certificate.
    pub insecure: Vec<String>,
}

impl HostsConfig {
    /// The places to fetch a registry's content from, in order: mirrors, then the registry itself.
    pub fn hosts(&self, registry: &str) -> Result<Vec<Host>> {
        let server = Host::server(registry, self.insecure.iter().any(|insecure| insecure == registry));
        match self.directory(registry)? {
            Some(dir) => file::load(&dir, server),
            None => Ok(vec![server]),
        }
    }

    fn directory(&self, registry: &str) -> Result<Option<PathBuf>> {
        let escaped = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        let own = self.roots.iter().flat_map(|root| {
            let escaped = escaped.as_ref().map(|name| root.join(name));
            escaped.into_iter().chain([root.join(registry)])
        });
        for dir in own.chain(self.roots.iter().map(|root| root.join(DEFAULT_DIR))) {
            if is_dir(&dir)? {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }
}

fn is_dir(path: &Path) -> Result<bool> {
    match path.metadata() {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(err) => Err(Error::io(format_args!("look up registry configuration {}", path.display()), err)),
    }
}

/// Is `HOST[:PORT]` this machine, by its name alone? A name that merely resolves to loopback does not count: whoever
/// controls the name could have the plain text.
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    match host.parse::<IpAddr>().or_else(|_| host.parse::<Ipv6Addr>().map(IpAddr::V6)) {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn config(root: &Path) -> HostsConfig {
        HostsConfig { roots: vec![root.join("a"), root.join("b")], insecure: vec!["old.example:80".into()] }
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn without_configuration_only_loopback_and_insecure_hosts_may_be_plain() {
        let dir = tempfile::tempdir().unwrap();
        let scheme = |registry: &str| config(dir.path()).hosts(registry).unwrap()[0].scheme;
        for loopback in ["127.0.0.1:5000", "localhost", "localhost:80", "[::1]:5000", "127.9.9.9", "a.localhost"] {
            assert_eq!(scheme(loopback), Scheme::Probe, "{loopback}");
        }
        for remote in ["quay.io", "10.0.0.1:5000", "[::2]", "127.0.0.1.evil.example", "localhost.example"] {
            assert_eq!(scheme(remote), Scheme::Https, "{remote}");
        }
        let insecure = &config(dir.path()).hosts("old.example:80").unwrap()[0];
        assert_eq!((insecure.scheme, insecure.skip_verify), (Scheme::Probe, true));
        let hub = &config(dir.path()).hosts("docker.io").unwrap()[0];
        assert_eq!(hub.authority, "registry-1.docker.io");
    }

    #[test]
    fn a_registrys_own_directory_comes_before_the_default_of_any_root() {
        let dir = tempfile::tempdir().unwrap();
        let first = |registry: &str| config(dir.path()).hosts(registry).unwrap()[0].authority.clone();
        let mirror = |name: &str| format!("[host.\"https://{name}\"]\n");
        write(dir.path(), "a/_default/hosts.toml", &mirror("default"));
        write(dir.path(), "b/quay.io/hosts.toml", &mirror("quay"));
        write(dir.path(), "b/reg.example:5000/hosts.toml", &mirror("colon"));
        assert_eq!(first("quay.io"), "quay");
        assert_eq!(first("ghcr.io"), "default");
        assert_eq!(first("reg.example:5000"), "colon");
        write(dir.path(), "b/reg.example_5000_/hosts.toml", &mirror("underscore"));
        assert_eq!(first("reg.example:5000"), "underscore");
    }
}
