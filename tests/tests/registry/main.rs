//! Pulling from real registries by the library: authentication, TLS, mirrors, and all that goes wrong on the way.
//!
//! The registry is Debian's docker-registry and the images in it are pushed by skopeo. Where a server must misbehave,
//! a proxy stands before it or a closure answers in its stead.

mod command;
mod faults;
mod mirrors;
mod secrets;
mod tls;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_rootfs::auth::SearchPath;
use coracle_rootfs::progress::Silent;
use coracle_rootfs::registry::{ProxySettings, Retry, Timeouts};
use coracle_rootfs::{
    Credentials, Descriptor, Digest, ErrorKind, Keyring, Progress, ProgressEvent, Reference, Registry, RegistryConfig,
    Source,
};
use coracle_tests::http::{Fault, Proxy, Request, Response, Server, Tunnels};
use coracle_tests::image::Layout;
use coracle_tests::registry::{Authority, Options, Registry as TestRegistry};
use coracle_tests::token::{self, TokenService};

/// Big enough for several reads and cuts.
const BIG: usize = 6 << 20;

/// A layout with the images `small` and `big`, in a directory that goes with it.
struct Images {
    layout: Layout,
    _dir: tempfile::TempDir,
}

fn images() -> Images {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(&dir.path().join("layout"));
    layout.image("small").file("etc/motd", 0o644, b"hello").config(&["--config.cmd", "sh"]).build();
    layout.image("big").file("etc/motd", 0o644, b"hello").layer().file("noise", 0o644, &noise(BIG)).build();
    Images { layout, _dir: dir }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Quick retries, and nothing of this machine's configuration.
fn config() -> RegistryConfig {
    RegistryConfig {
        hosts_dir: Vec::new(),
        timeouts: Timeouts { connect: Duration::from_secs(5), stall: Duration::from_secs(2) },
        retry: Retry { attempts: 4, base: Duration::from_millis(20), limit: Duration::from_millis(100) },
        proxies: ProxySettings::default(),
        ..RegistryConfig::default()
    }
}

fn source(config: RegistryConfig, image: &str, credentials: Credentials) -> Box<dyn Source> {
    let image = Reference::parse(image).unwrap();
    Box::new(Registry::new(config).source(&image, credentials).unwrap())
}

/// Fetches the manifest and everything that it names, and checks all digests: how many bytes the blobs have.
fn fetch(source: &dyn Source, progress: &dyn Progress) -> coracle_rootfs::Result<u64> {
    let (top, bytes) = source.resolve(progress)?;
    top.check(&bytes)?;
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let mut blobs: Vec<Descriptor> = serde_json::from_value(manifest["layers"].clone()).unwrap();
    blobs.push(serde_json::from_value(manifest["config"].clone()).unwrap());
    blobs.iter().map(|blob| fetch_blob(source, blob, progress)).sum()
}

fn fetch_blob(source: &dyn Source, blob: &Descriptor, progress: &dyn Progress) -> coracle_rootfs::Result<u64> {
    let mut content = Vec::new();
    let mut reader = source.blob(blob, progress)?;
    reader.read_to_end(&mut content).map_err(|err| coracle_rootfs::Error::io("read", err))?;
    blob.check(&content)?;
    Ok(content.len() as u64)
}

/// Fetches without credentials and expects an error: its kind, and its line.
fn failure(config: RegistryConfig, image: &str) -> (ErrorKind, String) {
    failure_of(fetch(&*source(config, image, Credentials::Anonymous), &Silent))
}

fn failure_of<T: std::fmt::Debug>(result: coracle_rootfs::Result<T>) -> (ErrorKind, String) {
    let err = result.expect_err("this must fail");
    assert!(!err.to_string().contains('\n'), "{err}");
    (err.kind(), err.to_string())
}

#[track_caller]
fn assert_failure(failure: (ErrorKind, String), kind: ErrorKind, words: &[&str]) {
    assert_eq!(failure.0, kind, "{}", failure.1);
    for word in words {
        assert!(failure.1.contains(word), "{word:?} is missing in: {}", failure.1);
    }
}

/// Remembers why things were tried again.
#[derive(Default)]
struct Retries(Mutex<Vec<String>>);

impl Progress for Retries {
    fn event(&self, event: ProgressEvent<'_>) {
        if let ProgressEvent::Retry { what, why, .. } = event {
            self.0.lock().unwrap().push(format!("{what}: {why}"));
        }
    }
}

impl Retries {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A `certs.d` with one file for a registry.
struct CertsD(tempfile::TempDir);

impl CertsD {
    fn new(registry: &str, file: &str, content: &str) -> CertsD {
        let certs_d = CertsD(tempfile::tempdir().unwrap());
        certs_d.write(registry, file, content);
        certs_d
    }

    fn write(&self, registry: &str, file: &str, content: &str) {
        let dir = self.0.path().join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), content).unwrap();
    }

    fn config(&self) -> RegistryConfig {
        RegistryConfig { hosts_dir: vec![self.0.path().to_owned()], ..config() }
    }
}

#[test]
fn anyone_pulls_oci_and_docker_images_from_loopback() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "big", "team/app:oci", &[]);
    registry.push(&images.layout, "big", "team/app:docker", &["--format", "v2s2"]);
    for (tag, media_type) in [("oci", "vnd.oci.image.manifest"), ("docker", "vnd.docker.distribution.manifest")] {
        let source = source(config(), &registry.name(&format!("team/app:{tag}")), Credentials::Anonymous);
        let (top, _) = source.resolve(&Silent).unwrap();
        assert!(top.media_type.contains(media_type), "{}", top.media_type);
        assert!(fetch(&*source, &Silent).unwrap() > BIG as u64);
        let pinned = registry.name(&format!("team/app:ignored@{}", top.digest));
        let pinned = self::source(config(), &pinned, Credentials::Anonymous);
        assert_eq!(pinned.resolve(&Silent).unwrap().0, top);
        assert_eq!(source.manifest(&top, &Silent).unwrap().len() as u64, top.size);
    }
}

#[test]
fn what_is_not_there_is_told_apart() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "small", "app:v1", &[]);
    let unknown = |name: &str| failure(config(), &registry.name(name));
    assert_failure(unknown("app:v2"), ErrorKind::NotFound, &["manifest app:v2", "404", "has the tags v1"]);
    assert_failure(unknown("nope:v1"), ErrorKind::NotFound, &["manifest nope:v1", "404", "no such repository"]);
    let digest = Digest::of(b"nothing");
    assert_failure(unknown(&format!("app@{digest}")), ErrorKind::NotFound, &["no such tag or digest"]);
    let source = source(config(), &registry.name("app:v1"), Credentials::Anonymous);
    let (_, message) = failure_of(fetch_blob(&*source, &Descriptor::new("", digest, 7), &Silent));
    assert!(message.contains("has lost a part"), "{message}");
}

#[test]
fn what_is_no_registry_is_told_apart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let refused = failure(config(), &format!("{free}/app"));
    assert_failure(refused, ErrorKind::Unavailable, &["registry 127.0.0.1:", "connection refused", "port right"]);
    assert!(started.elapsed() < Duration::from_secs(1), "a wrong port is not tried again");
    let unknown = failure(config(), "registry.invalid/app");
    assert_failure(unknown, ErrorKind::Unavailable, &["registry registry.invalid", "DNS"]);
    let missing = Server::start(|_| Response::new(404, "<html>nothing here</html>"));
    let missing = failure(config(), &format!("{}/app", missing.host()));
    assert_failure(missing, ErrorKind::NotFound, &["is there a registry at this address"]);
    let html = Server::start(|_| Response::new(200, "<html>welcome</html>").header("content-type", "text/html"));
    let html = failure(config(), &format!("{}/app", html.host()));
    assert_failure(html, ErrorKind::Corrupt, &["is not a manifest", "is there a registry at this address"]);
}

#[test]
fn malformed_configuration_is_an_error_that_names_the_file() {
    let certs_d = CertsD::new("127.0.0.1:1", "hosts.toml", "[host.\"http://x\"]\nskip_verfy = true\n");
    let image = Reference::parse("127.0.0.1:1/app").unwrap();
    let failed = failure_of(Registry::new(certs_d.config()).source(&image, Credentials::Anonymous));
    assert_failure(failed, ErrorKind::Invalid, &["127.0.0.1:1/hosts.toml", "skip_verfy"]);
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("config.json");
    fs::write(&path, r#"{"auths":{"quay.io":{"auth":"%"}}}"#).unwrap();
    let search = SearchPath { config_json: vec![dir.path().to_owned()], ..SearchPath::default() };
    let failed = failure_of(Keyring::load(&search));
    assert_failure(failed, ErrorKind::Invalid, &[&path.to_string_lossy(), r#"auths."quay.io".auth"#]);
}
