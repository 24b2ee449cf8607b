//! Pulling from real registries: authentication, TLS, mirrors, faults on the way.

use coracle_tests::image::{Layout, run};
use coracle_tests::registry::{Authority, Options, Registry};
use coracle_tests::token::{self, TokenService};

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(&dir.path().join("layout"));
    layout.image("box").busybox().layer().file("etc/motd", 0o644, b"hi").config(&["--config.cmd", "sh"]).build();
    let plain = Registry::start();
    plain.push(&layout, "box", "app:v1", &[]);
    let authority = Authority::create();
    let tls = Registry::start_with(&Options { user: Some(("u", "p")), tls: Some(&authority), token: None });
    tls.push(&layout, "box", "app:v1", &["--format", "v2s2"]);
    let service = TokenService::start(300);
    let (realm, cert) = (service.realm(), service.cert());
    let bearer = Registry::start_with(&Options { token: Some((&realm, &cert)), ..Options::default() });
    bearer.push(&layout, "box", "public/app:v1", &["--dest-creds", &format!("{}:{}", token::USER.0, token::USER.1)]);
    run("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{}", bearer.name("public/app:v1"))]);
}
