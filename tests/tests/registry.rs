//! Pulling from real registries by the library: authentication, TLS, mirrors, and all that goes wrong on the way.
//!
//! The registry is Debian's docker-registry and the images in it are pushed by skopeo. Where a server must misbehave,
//! a proxy stands before it or a closure answers in its stead.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
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
    assert_failure(unknown("app:v2"), ErrorKind::NotFound, &["manifest app:v2", "404", "no such tag"]);
    let repository = unknown("nope:v1");
    assert_failure(repository, ErrorKind::NotFound, &["manifest nope:v1", "404"]);
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
fn a_password_is_asked_for_found_in_config_json_and_checked() {
    let images = images();
    let registry = TestRegistry::start_with(&Options { user: Some(("alice", "secret")), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let image = registry.name("app:v1");
    assert_failure(failure(config(), &image), ErrorKind::Unauthorized, &["401", "none were found"]);
    let wrong = source(config(), &image, Credentials::basic("alice", "wrong"));
    let wrong = failure_of(fetch(&*wrong, &Silent));
    assert_failure(wrong, ErrorKind::Unauthorized, &["401", "alice was refused"]);

    let dir = tempfile::tempdir().unwrap();
    let auths = serde_json::json!({ "auths": {
        registry.host(): { "auth": token::base64(b"alice:secret") },
        format!("{}/app", registry.host()): { "username": "alice", "password": "outdated" },
    }});
    fs::write(dir.path().join("config.json"), auths.to_string()).unwrap();
    let search = SearchPath { config_json: vec![dir.path().to_owned()], ..SearchPath::default() };
    let keyring = Keyring::load(&search).unwrap();
    let sources = Registry::new(config()).sources(&Reference::parse(&image).unwrap(), &keyring).unwrap();
    let results: Vec<bool> = sources.iter().map(|source| fetch(&**source, &Silent).is_ok()).collect();
    assert_eq!(results, [false, true], "the longer path is tried first, and then the host");
}

#[test]
fn a_credential_helper_is_asked() {
    let images = images();
    let registry = TestRegistry::start_with(&Options { user: Some(("alice", "secret")), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-vault");
    let script = format!(
        "#!/bin/sh\nread server; [ \"$1 $server\" = \"get {}\" ] || exit 1\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"alice\",\"Secret\":\"secret\"}}'\n",
        registry.host()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let text = serde_json::json!({ "credHelpers": { registry.host(): "vault" } }).to_string();
    fs::write(dir.path().join("config.json"), text).unwrap();
    let dirs = vec![dir.path().to_owned()];
    let search = SearchPath { config_json: dirs, helpers: Some(dir.path().into()), ..SearchPath::default() };
    let keyring = Keyring::load(&search).unwrap();
    let sources =
        Registry::new(config()).sources(&Reference::parse(&registry.name("app:v1")).unwrap(), &keyring).unwrap();
    fetch(&*sources[0], &Silent).unwrap();
}

/// A registry behind a token service, with `public/app:v1` and `private/app:v1`.
fn token_registry(lifetime: u64) -> (TokenService, TestRegistry) {
    let images = images();
    let service = TokenService::start(lifetime);
    let (realm, cert) = (service.realm(), service.cert());
    let registry = TestRegistry::start_with(&Options { token: Some((&realm, &cert)), ..Options::default() });
    let creds = format!("{}:{}", token::USER.0, token::USER.1);
    for name in ["public/app:v1", "private/app:v1"] {
        registry.push(&images.layout, "big", name, &["--dest-creds", &creds]);
    }
    (service, registry)
}

#[test]
fn tokens_are_fetched_once_and_shared() {
    let (service, registry) = token_registry(300);
    let before = service.requests().len();
    let anonymous = source(config(), &registry.name("public/app:v1"), Credentials::Anonymous);
    fetch(&*anonymous, &Silent).unwrap();
    let asked = &service.requests()[before..];
    assert_eq!(asked.len(), 1, "one token for a manifest and three blobs");
    assert!(asked[0].target.contains("scope=repository%3Apublic%2Fapp%3Apull"), "{}", asked[0].target);
    assert_eq!(asked[0].header("authorization"), "");

    let private = registry.name("private/app:v1");
    assert_failure(failure(config(), &private), ErrorKind::Unauthorized, &["401", "none were found"]);
    fetch(&*source(config(), &private, Credentials::basic(token::USER.0, token::USER.1)), &Silent).unwrap();
    fetch(&*source(config(), &private, Credentials::IdentityToken(token::USER.2.into())), &Silent).unwrap();
    assert_eq!(service.requests().last().unwrap().method, "POST");
}

#[test]
fn a_token_service_that_refuses_is_named() {
    let (service, registry) = token_registry(300);
    let image = registry.name("private/app:v1");
    for credentials in [Credentials::basic("token-user", "wrong"), Credentials::IdentityToken("stale".into())] {
        let refused = failure_of(fetch(&*source(config(), &image, credentials), &Silent));
        let realm = service.realm();
        assert_failure(
            refused,
            ErrorKind::Unauthorized,
            &["token for repository:private/app:pull", &realm, "was refused"],
        );
    }
}

#[test]
fn a_token_that_expires_is_replaced() {
    // Not used for the second half of its life, this token is too old at once.
    let (service, registry) = token_registry(0);
    let before = service.requests().len();
    fetch(&*source(config(), &registry.name("public/app:v1"), Credentials::Anonymous), &Silent).unwrap();
    assert!(service.requests().len() - before >= 4, "a new token for each request");
}

#[test]
fn secrets_do_not_travel_in_the_plain() {
    let bearer = r#"Bearer realm="http://tokens.invalid/token",service="s",scope="repository:app:pull""#;
    let server = Server::start(move |_| Response::new(401, "").header("www-authenticate", bearer));
    let image = format!("{}/app", server.host());
    let refused = failure_of(fetch(&*source(config(), &image, Credentials::basic("u", "p")), &Silent));
    assert_failure(refused, ErrorKind::Unavailable, &["tokens.invalid", "plain text"]);
}

#[test]
fn a_redirect_to_another_server_takes_no_secrets_along() {
    let content = b"the layer".to_vec();
    let blob = Descriptor::new("", Digest::of(&content), content.len() as u64);
    let storage = Server::start(move |_| Response::new(200, content.clone()));
    let location = format!("http://{}/signed?x=y", storage.host());
    let registry = Server::start(move |request: &Request| match request.header("authorization") {
        "" => Response::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
        _ => Response::new(307, "").header("location", &location),
    });
    let image = format!("{}/app", registry.host());
    let source = source(config(), &image, Credentials::basic("u", "p"));
    fetch_blob(&*source, &blob, &Silent).unwrap();
    let seen = storage.requests();
    assert_eq!((seen.len(), seen[0].target.as_str(), seen[0].header("authorization")), (1, "/signed?x=y", ""));
}

#[test]
fn redirects_without_end_are_an_error() {
    let server = Server::start(|_| Response::new(302, "").header("location", "/again"));
    let failed = failure(config(), &format!("{}/app", server.host()));
    assert_failure(failed, ErrorKind::Unavailable, &["redirects more than"]);
}

#[test]
fn tls_needs_an_authority_that_is_known() {
    let images = images();
    let authority = Authority::create();
    let registry = TestRegistry::start_with(&Options { tls: Some(&authority), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let (image, host) = (registry.name("app:v1"), registry.host());
    assert_failure(failure(config(), &image), ErrorKind::Tls, &["TLS", "UnknownIssuer", "certs.d/HOST/ca.crt"]);

    let extra = RegistryConfig { extra_cas: vec![authority.cert()], ..config() };
    fetch(&*source(extra, &image, Credentials::Anonymous), &Silent).unwrap();
    let ca = fs::read_to_string(authority.cert()).unwrap();
    let docker = CertsD::new(&host, "ca.crt", &ca);
    fetch(&*source(docker.config(), &image, Credentials::Anonymous), &Silent).unwrap();
    let escaped = format!("{}_", host.replace(':', "_"));
    let toml = CertsD::new(&escaped, "hosts.toml", &format!("server = \"https://{host}\"\nca = \"my.pem\"\n"));
    toml.write(&escaped, "my.pem", &ca);
    fetch(&*source(toml.config(), &image, Credentials::Anonymous), &Silent).unwrap();
    let skip = CertsD::new("_default", "hosts.toml", "skip_verify = true");
    fetch(&*source(skip.config(), &image, Credentials::Anonymous), &Silent).unwrap();
    let insecure = RegistryConfig { insecure: vec![host.clone()], ..config() };
    fetch(&*source(insecure, &image, Credentials::Anonymous), &Silent).unwrap();

    let plain = CertsD::new(&host, "hosts.toml", &format!("server = \"http://{host}\""));
    assert_failure(failure(plain.config(), &image), ErrorKind::Unavailable, &["400", "https is spoken here"]);
    let not_pem = RegistryConfig { extra_cas: vec!["/etc/passwd".into()], ..config() };
    assert_failure(failure(not_pem, &image), ErrorKind::Invalid, &["/etc/passwd", "no certificate"]);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::create();
    let registry = TestRegistry::start_with(&Options { tls: Some(&authority), ..Options::default() });
    let certs_d = CertsD::new("_default", "hosts.toml", &format!("server = \"https://127.0.0.1:{}\"", registry.port()));
    let config = RegistryConfig { extra_cas: vec![authority.cert()], ..certs_d.config() };
    assert_eq!(
        failure(config.clone(), "any.example/app").0,
        ErrorKind::NotFound,
        "the configured server has a good name"
    );
    let elsewhere = format!("server = \"https://[::ffff:127.0.0.1]:{}\"", registry.port());
    certs_d.write("_default", "hosts.toml", &elsewhere);
    let failed = failure(config, "any.example/app");
    assert_failure(failed, ErrorKind::Tls, &["not valid for name", "use the name that it is for"]);
}

#[test]
fn a_client_certificate_is_shown() {
    let images = images();
    let authority = Authority::create();
    let open = TestRegistry::start_with(&Options { tls: Some(&authority), ..Options::default() });
    open.push(&images.layout, "small", "app:v1", &[]);
    let registry =
        TestRegistry::start_with(&Options { tls: Some(&authority), client_certs: true, ..Options::default() });
    let image = registry.name("app:v1");
    let certs_d = CertsD::new(&registry.host(), "ca.crt", &fs::read_to_string(authority.cert()).unwrap());
    let (kind, message) = failure(certs_d.config(), &image);
    assert!(kind != ErrorKind::NotFound && message.contains("client certificate"), "{message}");
    let (cert, key) = authority.issue("client", "DNS:client");
    let (other, _) = authority.issue("other", "DNS:other");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    certs_d.write(&registry.host(), "client.cert", &read(&cert));
    certs_d.write(&registry.host(), "client.key", &read(&key));
    // It is empty: only someone who was let in learns that.
    assert_eq!(failure(certs_d.config(), &image).0, ErrorKind::NotFound);
    certs_d.write(&registry.host(), "client.cert", &read(&other));
    assert_failure(failure(certs_d.config(), &image), ErrorKind::Invalid, &["client.key"]);
}

#[test]
fn https_to_a_plain_registry_says_so() {
    let registry = TestRegistry::start();
    let host = registry.host();
    let certs_d = CertsD::new(&host, "hosts.toml", &format!("server = \"https://{host}\""));
    let failed = failure(certs_d.config(), &registry.name("app"));
    assert_failure(failed, ErrorKind::Tls, &["plain http may be spoken there"]);
}

#[test]
fn a_blob_survives_a_connection_that_is_cut_again_and_again() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "big", "app:v1", &[]);
    let proxy = Proxy::start(&registry.host(), |request| match request.target.contains("/blobs/") {
        true => Fault::CutAfter(1 << 20),
        false => Fault::None,
    });
    let retries = Retries::default();
    let source = source(config(), &format!("{}/app:v1", proxy.host()), Credentials::Anonymous);
    assert!(fetch(&*source, &retries).unwrap() > BIG as u64);
    let resumed: Vec<_> = proxy.requests().into_iter().filter(|request| !request.header("range").is_empty()).collect();
    assert!(resumed.len() >= 6, "{} ranges were asked for", resumed.len());
    assert_eq!(retries.all().len(), resumed.len());
    assert!(retries.all()[0].starts_with("blob sha256:"), "{:?}", retries.all());
}

#[test]
fn a_stalled_connection_is_left_and_resumed() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "big", "app:v1", &[]);
    let stalled = AtomicU32::new(0);
    let proxy = Proxy::start(&registry.host(), move |request| {
        // The second blob is the big one.
        let now = request.target.contains("/blobs/") && stalled.fetch_add(1, Ordering::SeqCst) == 1;
        if now { Fault::StallAfter(1 << 20, Duration::from_secs(20)) } else { Fault::None }
    });
    let retries = Retries::default();
    let started = Instant::now();
    fetch(&*source(config(), &format!("{}/app:v1", proxy.host()), Credentials::Anonymous), &retries).unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(retries.all()[0].contains("stalled"), "{:?}", retries.all());
}

#[test]
fn a_server_that_knows_no_ranges_sends_all_again() {
    let content = noise(300_000);
    let blob = Descriptor::new("", Digest::of(&content), content.len() as u64);
    let attempts = AtomicU32::new(0);
    let length = content.len().to_string();
    let server = Server::start(move |request| {
        if request.target == "/v2/" {
            return Response::new(200, "");
        }
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) as usize;
        let sent = content[..(attempt + 1) * 100_000].to_vec();
        Response::new(200, sent).header("content-length", &length)
    });
    let source = source(config(), &format!("{}/app", server.host()), Credentials::Anonymous);
    assert_eq!(fetch_blob(&*source, &blob, &Silent).unwrap(), 300_000);
}

#[test]
fn busy_and_broken_servers_are_asked_again_but_not_for_ever() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "small", "app:v1", &[]);
    let count = Arc::new(AtomicU32::new(0));
    let seen = count.clone();
    let proxy = Proxy::start(&registry.host(), move |request| {
        match request.target.contains("/manifests/").then(|| seen.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => Fault::Answer(Response::new(429, "").header("retry-after", "1")),
            Some(1) => Fault::Answer(Response::new(500, "")),
            Some(2) => Fault::CutAfter(10),
            _ => Fault::None,
        }
    });
    let retries = Retries::default();
    let started = Instant::now();
    fetch(&*source(config(), &format!("{}/app:v1", proxy.host()), Credentials::Anonymous), &retries).unwrap();
    assert_eq!((count.load(Ordering::SeqCst), retries.all().len()), (4, 3), "{:?}", retries.all());
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After is heeded");

    let broken = Server::start(|request| match request.target == "/v2/" {
        true => Response::new(200, ""),
        false => Response::new(503, r#"{"errors":[{"code":"X","message":"out of\nservice"}]}"#),
    });
    let failed = failure(config(), &format!("{}/app", broken.host()));
    assert_failure(failed, ErrorKind::Unavailable, &["503 service unavailable: out of service"]);
    assert_eq!(broken.requests().len(), 5, "a ping and four attempts");
}

#[test]
fn lies_about_content_are_found() {
    let manifest = |body: &str, claimed: &str| {
        let (body, claimed) = (body.to_owned(), claimed.to_owned());
        Server::start(move |request| match request.target.as_str() {
            "/v2/" => Response::new(200, ""),
            _ => Response::new(200, body.clone()).header("docker-content-digest", &claimed),
        })
    };
    let image = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let (right, wrong) = (Digest::of(image.as_bytes()).to_string(), Digest::of(b"x").to_string());
    let honest = manifest(image, &right);
    source(config(), &format!("{}/app", honest.host()), Credentials::Anonymous).resolve(&Silent).unwrap();
    let asked = failure(config(), &format!("{}/app@{wrong}", honest.host()));
    assert_failure(asked, ErrorKind::Corrupt, &["the content is", &right, &wrong]);
    let liar = manifest(image, &wrong);
    assert_failure(failure(config(), &format!("{}/app", liar.host())), ErrorKind::Corrupt, &["the content is"]);
    let huge = manifest(&format!("{{\"layers\":[],\"x\":\"{}\"}}", "x".repeat(4 << 20)), "");
    assert_failure(
        failure(config(), &format!("{}/app", huge.host())),
        ErrorKind::Limit,
        &["larger than 4194304 bytes"],
    );
    let old = manifest(r#"{"schemaVersion":1,"fsLayers":[]}"#, "");
    assert_failure(
        failure(config(), &format!("{}/app", old.host())),
        ErrorKind::Unsupported,
        &["schema 1", "push the image again"],
    );
}

#[test]
fn blobs_of_another_size_are_errors() {
    let content = noise(1000);
    let digest = Digest::of(&content);
    let server = Server::start(move |request| match request.target.as_str() {
        "/v2/" => Response::new(200, ""),
        target if target.contains("/chunked/") => {
            let mut body = b"3e8\r\n".to_vec();
            body.extend(&content);
            body.extend(b"\r\n0\r\n\r\n");
            Response::new(200, body).header("transfer-encoding", "chunked").header("content-length", "")
        }
        _ => Response::new(200, content.clone()),
    });
    let get = |repository: &str, size: u64| {
        let source = source(config(), &format!("{}/{repository}", server.host()), Credentials::Anonymous);
        fetch_blob(&*source, &Descriptor::new("", digest.clone(), size), &Silent)
    };
    assert_eq!(get("app", 1000).unwrap(), 1000);
    assert_failure(failure_of(get("app", 999)), ErrorKind::Corrupt, &["has 1000 bytes where 999 were promised"]);
    assert_failure(failure_of(get("app", 1001)), ErrorKind::Corrupt, &["has 1000 bytes where 1001 were promised"]);
    assert_failure(failure_of(get("chunked/app", 999)), ErrorKind::Corrupt, &["goes on after the 999 bytes"]);
}

/// `hosts.toml` with mirrors, as `(URL, further settings)`.
fn mirrors(hosts: &[(&str, &str)]) -> String {
    hosts.iter().map(|(url, settings)| format!("[host.\"{url}\"]\n{settings}\n")).collect()
}

#[test]
fn mirrors_are_asked_in_order_and_then_the_registry() {
    let images = images();
    let (empty, mirror, upstream) = (TestRegistry::start(), TestRegistry::start(), TestRegistry::start());
    mirror.push(&images.layout, "small", "app:v1", &[]);
    upstream.push(&images.layout, "small", "app:v1", &[]);
    upstream.push(&images.layout, "big", "app:v2", &[]);
    let front = Proxy::start(&mirror.host(), |_| Fault::None);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = [format!("http://{free}"), format!("http://{}", empty.host()), format!("http://{}", front.host())];
    let text = mirrors(&[(&urls[0], ""), (&urls[1], ""), (&urls[2], "")]);
    let certs_d = CertsD::new(&upstream.host(), "hosts.toml", &text);

    fetch(&*source(certs_d.config(), &upstream.name("app:v1"), Credentials::Anonymous), &Silent).unwrap();
    assert!(!upstream.log().contains("\"GET /v2/app/blobs/"), "the mirror has it all");
    let namespace = format!("?ns={}", upstream.host());
    assert!(front.requests().iter().all(|request| request.target.ends_with(&namespace)));
    fetch(&*source(certs_d.config(), &upstream.name("app:v2"), Credentials::Anonymous), &Silent).unwrap();

    let failed = failure(certs_d.config(), &upstream.name("app:v3"));
    let own = format!("registry {}: manifest app:v3: 404", upstream.host());
    let first = format!("before that, mirror {free} of {}", upstream.host());
    assert_failure(failed, ErrorKind::NotFound, &[&own, &first, "connection refused"]);
}

#[test]
fn a_mirror_does_what_it_may_and_gets_no_foreign_secrets() {
    let images = images();
    let mirror = TestRegistry::start();
    let upstream = TestRegistry::start_with(&Options { user: Some(("alice", "secret")), ..Options::default() });
    mirror.push(&images.layout, "small", "app:v1", &[]);
    upstream.push(&images.layout, "small", "app:v1", &[]);
    let front = Proxy::start(&mirror.host(), |request| match request.target.contains("/blobs/") {
        // It would like to know more.
        true if request.header("authorization").is_empty() => {
            Fault::Answer(Response::new(401, "").header("www-authenticate", "Basic realm=\"x\""))
        }
        _ => Fault::None,
    });
    let text =
        mirrors(&[(&format!("http://{}", front.host()), "capabilities = [\"pull\"]\nheader = { x-key = \"7\" }")]);
    let certs_d = CertsD::new(&upstream.host(), "hosts.toml", &text);
    let source = source(certs_d.config(), &upstream.name("app:v1"), Credentials::basic("alice", "secret"));
    fetch(&*source, &Silent).unwrap();
    let seen = front.requests();
    assert!(
        !seen.is_empty() && seen.iter().all(|request| request.target.contains("/blobs/")),
        "tags are not its business"
    );
    assert!(seen.iter().all(|request| request.header("authorization").is_empty() && request.header("x-key") == "7"));
}

#[test]
fn a_mirror_that_dies_in_the_middle_is_continued_by_the_registry() {
    let images = images();
    let upstream = TestRegistry::start();
    upstream.push(&images.layout, "big", "app:v1", &[]);
    let cut = AtomicU32::new(0);
    let dying = Proxy::start(&upstream.host(), move |request| match request.target.contains("/blobs/") {
        true if cut.fetch_add(1, Ordering::SeqCst) == 0 => Fault::CutAfter(1 << 20),
        true => Fault::CutAfter(0),
        false => Fault::None,
    });
    let certs_d = CertsD::new(&upstream.host(), "hosts.toml", &mirrors(&[(&format!("http://{}", dying.host()), "")]));
    fetch(&*source(certs_d.config(), &upstream.name("app:v1"), Credentials::Anonymous), &Silent).unwrap();
    let ranges = dying.requests().iter().filter(|request| !request.header("range").is_empty()).count();
    assert!(ranges <= 2, "a mirror that is down is not asked for ever: {ranges}");
}

#[test]
fn a_proxy_leads_to_registries_that_cannot_be_reached_otherwise() {
    let images = images();
    let authority = Authority::create();
    let registry = TestRegistry::start_with(&Options { tls: Some(&authority), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let tunnels = Tunnels::start(&registry.host());
    let proxies = ProxySettings { https: Some(tunnels.url()), ..ProxySettings::default() };
    let config = RegistryConfig { extra_cas: vec![authority.cert()], proxies: proxies.clone(), ..config() };
    fetch(&*source(config.clone(), "registry.test/app:v1", Credentials::Anonymous), &Silent).unwrap();
    assert!(tunnels.targets().iter().all(|target| target == "CONNECT registry.test:443"), "{:?}", tunnels.targets());

    let exception = ProxySettings { no_proxy: Some("test".into()), ..proxies };
    let direct = RegistryConfig { proxies: exception, ..config };
    assert_failure(failure(direct, "registry.test/app:v1"), ErrorKind::Unavailable, &["registry registry.test", "DNS"]);
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
