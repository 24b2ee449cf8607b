//! Certificates: whom to believe, what to show, and the way through a proxy.

use super::*;

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
