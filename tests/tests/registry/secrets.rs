//! Who is shown what: passwords, helpers, tokens, and what redirects must not see.

use super::*;

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
fn who_is_redirected_to_cannot_ask_for_credentials() {
    let tokens = Server::start(|_| Response::new(200, r#"{"token":"t"}"#));
    let bearer = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.host());
    let storage = Server::start(move |_| Response::new(401, "").header("www-authenticate", &bearer));
    let location = format!("http://{}/signed", storage.host());
    let registry = Server::start(move |_| Response::new(307, "").header("location", &location));
    let source = source(config(), &format!("{}/app", registry.host()), Credentials::basic("u", "p"));
    fetch_blob(&*source, &Descriptor::new("", Digest::of(b"x"), 1), &Silent).unwrap_err();
    assert!(!storage.requests().is_empty() && tokens.requests().is_empty(), "{:?}", tokens.requests());
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_empty()));
}

#[test]
fn redirects_without_end_are_an_error() {
    let server = Server::start(|_| Response::new(302, "").header("location", "/again"));
    let failed = failure(config(), &format!("{}/app", server.host()));
    assert_failure(failed, ErrorKind::Unavailable, &["redirects more than"]);
}
