//! Mirrors by `hosts.toml`.

use super::*;

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
