//! What goes wrong on the way: cuts, stalls, busy servers, lies.

use super::*;

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
