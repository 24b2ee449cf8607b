//! Registries, by the OCI distribution specification over HTTP.
//!
//! ```text
//!  Registry ── source(reference, credentials) ──> RegistrySource: one image
//!                                                    │ one Endpoint a host: mirrors, then the registry
//!                 hosts.toml ──> hosts ──────────────┤   scheme, 401 -> challenge -> token, retries
//!                                                    │      │
//!                                                    │   Transport: connections, TLS, proxy, redirects
//!                                                    └── BlobReader: a blob as one stream, resumed by Range
//! ```
//!
//! Hosts are asked in order until one delivers, for every manifest and every blob; a mirror that cannot be reached is
//! not asked twice. Credentials go to the registry that they are for, over TLS (or where the configuration allows plain
//! http), and to nobody that it redirects to; mirrors only see what the keyring has for *their* names.

mod answer;
mod blob;
mod challenge;
mod endpoint;
mod proxy;
mod retry;
mod tls;
mod token;
mod transport;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::header::CONTENT_TYPE;
use ureq::http::{HeaderMap, Response};

use crate::auth::{Credentials, Keyring};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::hosts::{Host, HostsConfig};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::{Descriptor, MANIFEST_LIMIT, Source, media_type};

use blob::BlobReader;
use endpoint::{Endpoint, Get};
pub use proxy::ProxySettings;
use retry::Failure;
pub use retry::Retry;
use transport::Transport;

/// The digest that the registry computed.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How to speak to registries.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// The `certs.d` directories, see [`crate::hosts`].
    pub hosts_dir: Vec<PathBuf>,
    /// PEM files with certificate authorities, besides the system's.
    pub extra_cas: Vec<PathBuf>,
    /// Registries that may be spoken to in plain http or with any certificate.
    pub insecure: Vec<String>,
    /// How we call ourselves.
    pub user_agent: String,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How often to try.
    pub retry: Retry,
    /// Which proxies to go through; by default those of the environment.
    pub proxies: ProxySettings,
}

/// How long to wait for what.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the next byte.
    pub stall: Duration,
}

impl Default for RegistryConfig {
    fn default() -> RegistryConfig {
        let hosts_dir = ["/etc/coracle/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"];
        RegistryConfig {
            hosts_dir: hosts_dir.map(PathBuf::from).to_vec(),
            extra_cas: Vec::new(),
            insecure: Vec::new(),
            user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")).into(),
            timeouts: Timeouts { connect: Duration::from_secs(20), stall: Duration::from_secs(30) },
            retry: Retry::default(),
            proxies: ProxySettings::from_env(),
        }
    }
}

impl RegistryConfig {
    fn hosts(&self) -> HostsConfig {
        HostsConfig { roots: self.hosts_dir.clone(), insecure: self.insecure.clone() }
    }
}

/// All registries; see the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Registry {
    config: Arc<RegistryConfig>,
}

impl Registry {
    /// Nothing is read or sent yet.
    pub fn new(config: RegistryConfig) -> Registry {
        Registry { config: Arc::new(config) }
    }

    /// An image at its registry, asked for with these credentials. Reads the registry's `hosts.toml`.
    pub fn source(&self, image: &Reference, credentials: Credentials) -> Result<RegistrySource> {
        self.source_with(image, credentials, &Keyring::default())
    }

    /// The sources to try for an image, in order: one for each of the keyring's credentials, or one without any.
    pub fn sources(&self, image: &Reference, keyring: &Keyring) -> Result<Vec<Box<dyn Source>>> {
        let mut credentials = keyring.lookup(image)?;
        if credentials.is_empty() {
            credentials.push(Credentials::Anonymous);
        }
        let source = |credentials| Ok(Box::new(self.source_with(image, credentials, keyring)?) as Box<dyn Source>);
        credentials.into_iter().map(source).collect()
    }

    /// Like [`source`](Self::source); mirrors are shown what the keyring has for them.
    fn source_with(&self, image: &Reference, credentials: Credentials, keyring: &Keyring) -> Result<RegistrySource> {
        let mut endpoints = Vec::new();
        for host in self.config.hosts().hosts(image.registry())? {
            let credentials = match host.mirror {
                true => mirror_credentials(&host, image, keyring)?,
                false => credentials.clone(),
            };
            let transport = Transport::new(host, self.config.clone())?;
            let retry = self.config.retry.clone();
            endpoints.push(Endpoint::new(image.registry(), image.repository(), transport, credentials, retry));
        }
        Ok(RegistrySource { image: image.clone(), endpoints })
    }
}

fn mirror_credentials(host: &Host, image: &Reference, keyring: &Keyring) -> Result<Credentials> {
    let mirrored = Reference::parse(&format!("{}/{}", host.authority, image.repository()));
    // A host of one word is no host to a reference, but a path at the default registry, whose secrets are not its own.
    let Some(mirrored) = mirrored.ok().filter(|mirrored| mirrored.registry() == host.authority) else {
        return Ok(Credentials::Anonymous);
    };
    Ok(keyring.lookup(&mirrored)?.into_iter().next().unwrap_or_default())
}

/// One image at its registry.
#[derive(Debug)]
pub struct RegistrySource {
    image: Reference,
    endpoints: Vec<Endpoint>,
}

impl RegistrySource {
    /// The hosts that may be asked, in order.
    fn eligible(&self, may: impl Fn(&Host) -> bool) -> Result<Vec<&Endpoint>> {
        let able: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| may(endpoint.host())).collect();
        let up: Vec<&Endpoint> = able.iter().copied().filter(|endpoint| !endpoint.is_down()).collect();
        if able.is_empty() {
            let message = format!("registry {}: no configured host has the capability", self.image.registry());
            let hint = "see the capabilities in its hosts.toml: tags need resolve, everything else pull";
            return Err(Error::new(ErrorKind::Invalid, message).hint(hint));
        }
        Ok(if up.is_empty() { able } else { up })
    }

    /// Fetches a manifest by tag or digest from the first host that has it.
    fn fetch_manifest(&self, target: &str, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest> {
        let separator = if digest.is_some() { '@' } else { ':' };
        let what = format!("manifest {}{separator}{target}", self.image.repository());
        let (path, accept) = (format!("manifests/{target}"), accept());
        let get = Get { path: &path, what: &what, accept: Some(&accept), from: 0 };
        let mut before = Vec::new();
        for endpoint in self.eligible(|host| if digest.is_some() { host.pull } else { host.resolve })? {
            let fetched = endpoint.retrying(&what, progress, || {
                let response = endpoint.get(get)?;
                Manifest::read(endpoint, &what, response)
            });
            match fetched.and_then(|manifest| manifest.check(endpoint.name(), &what, digest)) {
                Ok(manifest) => return Ok(manifest),
                Err(err) => {
                    endpoint.note(&err);
                    before.push(err);
                }
            }
        }
        let last = before.pop().expect("eligible gives at least one host");
        let last = match digest {
            None if last.kind() == ErrorKind::NotFound => self.explain_missing(last, target),
            _ => last,
        };
        Err(summary(last, &before))
    }
}

impl RegistrySource {
    /// Registries say the same of a tag and of a repository that they do not know; their lists of tags differ.
    fn explain_missing(&self, err: Error, tag: &str) -> Error {
        let Some(registry) = self.endpoints.iter().rfind(|endpoint| !endpoint.host().mirror) else { return err };
        match registry.tags() {
            Ok(None) => err.better_hint("there is no such repository: check its name"),
            Ok(Some(tags)) if tags.is_empty() => err.better_hint("the repository has no tags"),
            Ok(Some(tags)) => err.better_hint(format!("the repository has {}", name_some(tags, tag))),
            // Not every registry tells; the first error says enough.
            Err(_) => err,
        }
    }
}

/// A few of the tags, those that begin most like the wanted one first.
fn name_some(mut tags: Vec<String>, wanted: &str) -> String {
    const SHOWN: usize = 6;
    let alike = |tag: &str| tag.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
    tags.sort_by(|a, b| alike(b).cmp(&alike(a)).then_with(|| a.cmp(b)));
    let more = tags.len().saturating_sub(SHOWN);
    tags.truncate(SHOWN);
    let list = tags.join(", ");
    match more {
        0 => format!("the tags {list}"),
        more => format!("the tags {list} and {more} more"),
    }
}

impl Source for RegistrySource {
    fn describe(&self) -> String {
        let mirrors = self.endpoints.iter().filter(|endpoint| endpoint.host().mirror).count();
        match mirrors {
            0 => format!("registry {}", self.image.registry()),
            mirrors => format!("registry {} and {mirrors} of its mirrors", self.image.registry()),
        }
    }

    fn resolve(&self, progress: &dyn Progress) -> Result<(Descriptor, Vec<u8>)> {
        let manifest = match (self.image.digest(), self.image.tag()) {
            (Some(digest), _) => self.fetch_manifest(&digest.to_string(), Some(digest), progress)?,
            (None, tag) => self.fetch_manifest(tag.unwrap_or(crate::reference::DEFAULT_TAG), None, progress)?,
        };
        let descriptor = Descriptor::new(&manifest.media_type, manifest.digest, manifest.bytes.len() as u64);
        Ok((descriptor, manifest.bytes))
    }

    fn manifest(&self, descriptor: &Descriptor, progress: &dyn Progress) -> Result<Vec<u8>> {
        let digest = &descriptor.digest;
        let manifest = self.fetch_manifest(&digest.to_string(), Some(digest), progress)?;
        descriptor.check(&manifest.bytes).map_err(|err| err.context(self.describe()))?;
        Ok(manifest.bytes)
    }

    fn blob<'a>(&'a self, descriptor: &Descriptor, progress: &'a dyn Progress) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(Box::new(BlobReader::open(self, descriptor, progress)?))
    }
}

/// The last host's error leads, being the registry's own; the mirrors' follow.
fn summary(last: Error, before: &[Error]) -> Error {
    if before.is_empty() {
        return last;
    }
    let before: Vec<String> = before.iter().map(Error::to_string).collect();
    Error::new(last.kind(), format!("{last}; before that, {}", before.join("; ")))
}

fn accept() -> String {
    let plain = [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_LIST, media_type::DOCKER_MANIFEST];
    plain.join(", ")
}

/// A manifest or an index, as it came.
#[derive(Debug)]
struct Manifest {
    media_type: String,
    digest: Digest,
    /// What the registry says that the digest is.
    claimed: Option<Digest>,
    bytes: Vec<u8>,
}

impl Manifest {
    fn read(endpoint: &Endpoint, what: &str, response: Response<ureq::Body>) -> Result<Manifest, Failure> {
        let header = |headers: &HeaderMap, name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let content_type = header(response.headers(), CONTENT_TYPE.as_str());
        let claimed = Digest::parse(&header(response.headers(), CONTENT_DIGEST)).ok();
        let mut bytes = Vec::new();
        let mut reader = response.into_body().into_reader().take(MANIFEST_LIMIT + 1);
        reader.read_to_end(&mut bytes).map_err(|err| endpoint.body_failure(what, err))?;
        if bytes.len() as u64 > MANIFEST_LIMIT {
            let message = format!("{}: {what}: larger than {MANIFEST_LIMIT} bytes", endpoint.name());
            return Err(Error::new(ErrorKind::Limit, message).into());
        }
        let media_type =
            detect(&content_type, &bytes).map_err(|err| err.context(format_args!("{}: {what}", endpoint.name())))?;
        Ok(Manifest { media_type, digest: Digest::of(&bytes), claimed, bytes })
    }

    /// Is it what was asked for, and what the registry says it is?
    fn check(self, server: &str, what: &str, asked: Option<&Digest>) -> Result<Manifest> {
        for expected in asked.into_iter().chain(&self.claimed) {
            if !expected.matches(&self.bytes) {
                let message = format!("{server}: {what}: the content is {}, not {expected}", self.digest);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
        }
        // A pinned image keeps the digest that pins it, whatever its algorithm.
        let digest = asked.cloned().unwrap_or(self.digest);
        Ok(Manifest { digest, ..self })
    }
}

/// What the bytes are. The header and the document must not contradict each other, nor the document itself: what is
/// an index to one reader and an image to another would escape every check of the first.
fn detect(content_type: &str, bytes: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
    }
    let corrupt = |why: String| Error::new(ErrorKind::Corrupt, why);
    let header = content_type.split(';').next().unwrap_or_default().trim();
    let shape: Shape = serde_json::from_slice(bytes).map_err(|err| {
        corrupt(format!("is not a manifest but {header:?}: {err}")).hint("is there a registry at this address?")
    })?;
    if shape.schema_version == Some(1) || media_type::DOCKER_SCHEMA1.contains(&header) {
        let message = "is in docker's schema 1, which was given up in 2019".to_owned();
        return Err(Error::new(ErrorKind::Unsupported, message).hint("push the image again with a current tool"));
    }
    let index = shape.manifests.is_some();
    let image = shape.layers.is_some() || shape.config.is_some();
    let document = shape.media_type.as_deref().filter(|text| !text.is_empty());
    let known = |text: &str| media_type::is_index(text) || media_type::is_manifest(text);
    let declared = document.or(Some(header).filter(|header| known(header)));
    let media_type = match (declared, index, image) {
        (_, true, true) => return Err(corrupt("is an index and an image at once".into())),
        (Some(declared), ..) => declared,
        (None, true, false) => media_type::OCI_INDEX,
        (None, false, true) => media_type::OCI_MANIFEST,
        (None, false, false) => return Err(corrupt("is neither an index nor an image".into())),
    };
    if !known(media_type) {
        return Err(Error::new(ErrorKind::Unsupported, format!("is a {media_type:?}, which is not an image")));
    }
    if (known(header) && header != media_type) || media_type::is_index(media_type) != index {
        return Err(corrupt(format!("is served as {header:?} and calls itself {media_type:?}")));
    }
    Ok(media_type.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_of_one_word_is_no_repository_of_the_default_registry() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("docker.io")).unwrap();
        let text = "[host.\"http://mirrorbox\"]\n[host.\"http://mirror.example\"]\n";
        std::fs::write(dir.path().join("docker.io/hosts.toml"), text).unwrap();
        let config = crate::hosts::HostsConfig { roots: vec![dir.path().to_owned()], insecure: Vec::new() };
        let auths =
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOmh1Yg=="},"mirror.example":{"auth":"bTpt"}}}"#;
        let keyring = Keyring::parse(auths, std::path::Path::new("config.json")).unwrap();
        let image = Reference::parse("busybox").unwrap();
        let shown: Vec<_> = config
            .hosts("docker.io")
            .unwrap()
            .into_iter()
            .filter(|host| host.mirror)
            .map(|host| (host.authority.clone(), mirror_credentials(&host, &image, &keyring).unwrap()))
            .collect();
        let [(first, one_word), (second, own)] = &shown[..] else { panic!("{shown:?}") };
        assert_eq!((first.as_str(), second.as_str()), ("mirrorbox", "mirror.example"));
        assert!(matches!(one_word, Credentials::Anonymous), "{one_word:?}");
        assert!(matches!(own, Credentials::Basic { username, .. } if username == "m"), "{own:?}");
    }

    #[test]
    fn tags_alike_are_named_first() {
        let tags = ["latest", "1.1", "1.20", "1.21", "2", "3", "4", "5"].map(String::from).to_vec();
        assert_eq!(name_some(tags, "1.2"), "the tags 1.20, 1.21, 1.1, 2, 3, 4 and 2 more");
        assert_eq!(name_some(vec!["v1".into()], "latest"), "the tags v1");
    }

    #[test]
    fn documents_are_what_they_and_their_headers_agree_upon() {
        let (index, image) = (media_type::OCI_INDEX, media_type::OCI_MANIFEST);
        let docker = media_type::DOCKER_MANIFEST;
        for (header, body, expected) in [
            (index, r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), Some(index)),
            ("application/json; charset=utf-8", r#"{"manifests":[]}"#.into(), Some(index)),
            ("", r#"{"config":{},"layers":[]}"#.into(), Some(image)),
            ("text/plain", format!(r#"{{"mediaType":"{docker}","config":{{}},"layers":[]}}"#), Some(docker)),
            (docker, r#"{"config":{},"layers":[]}"#.into(), Some(docker)),
            (index, format!(r#"{{"mediaType":"{image}","config":{{}},"layers":[]}}"#), None),
            (image, r#"{"manifests":[]}"#.into(), None),
            (image, r#"{"config":{},"layers":[],"manifests":[]}"#.into(), None),
            (image, r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), None),
            ("", r#"{"mediaType":"application/x-helm","config":{},"layers":[]}"#.into(), None),
            ("text/html", "<html>".into(), None),
            ("", "{}".into(), None),
        ] {
            let found = detect(header, body.as_bytes());
            assert_eq!(found.as_deref().ok(), expected, "{header} {body}: {found:?}");
        }
    }
}
