//! The same by `coracle pull`: what it finds in its environment, what it says, its exit codes.

use super::*;

/// `coracle pull` with a store, a home and an environment of its own: exit code and standard error.
fn coracle_pull(dir: &Path, image: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(coracle_tests::bin("coracle"));
    command.arg("--root").arg(dir.join("root")).arg("--state").arg(dir.join("state")).args(["pull", image]);
    command.env("HOME", dir).current_dir(dir).envs(variables.iter().copied());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_command_finds_the_credentials_of_the_home_directory() {
    let images = images();
    let registry = TestRegistry::start_with(&Options { user: Some(("alice", "secret")), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let (dir, image) = (tempfile::tempdir().unwrap(), registry.name("app:v1"));
    let (code, stderr) = coracle_pull(dir.path(), &image, &[]);
    assert_eq!(code, Some(5), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("coracle: ") && last.contains("401") && last.contains("log in"), "{stderr}");

    let docker = dir.path().join(".docker");
    fs::create_dir(&docker).unwrap();
    let auths = |password: &str| {
        let auth = token::base64(format!("alice:{password}").as_bytes());
        serde_json::json!({ "auths": { registry.host(): { "auth": auth } } }).to_string()
    };
    fs::write(docker.join("config.json"), auths("secret")).unwrap();
    let (code, stderr) = coracle_pull(dir.path(), &image, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("done"), "plain lines of progress: {stderr}");
    // The working directory comes before the home, and there only the first file counts.
    fs::write(dir.path().join("config.json"), auths("wrong")).unwrap();
    assert_eq!(coracle_pull(dir.path(), &image, &[]).0, Some(5));
    fs::write(dir.path().join("config.json"), "{\"auths\":7}").unwrap();
    let (code, stderr) = coracle_pull(dir.path(), &image, &[]);
    assert!(code == Some(2) && stderr.contains("config.json: auths: is not an object"), "{code:?} {stderr}");
}

#[test]
fn the_command_goes_through_the_proxy_of_the_environment() {
    let images = images();
    let authority = Authority::create();
    let registry = TestRegistry::start_with(&Options { tls: Some(&authority), ..Options::default() });
    registry.push(&images.layout, "small", "app:v1", &[]);
    let tunnels = Tunnels::start(&registry.host());
    let dir = tempfile::tempdir().unwrap();
    // The proxy, and the authorities of the system, which this variable puts in their place.
    let (ca, url) = (authority.cert(), tunnels.url());
    let variables = [("HTTPS_PROXY", url.as_str()), ("SSL_CERT_FILE", ca.to_str().unwrap())];
    let (code, stderr) = coracle_pull(dir.path(), "registry.test/app:v1", &variables);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!tunnels.targets().is_empty());
}

#[test]
fn the_command_tells_of_retries_and_survives_them() {
    let images = images();
    let registry = TestRegistry::start();
    registry.push(&images.layout, "big", "app:v1", &[]);
    let proxy = Proxy::start(&registry.host(), |request| match request.target.contains("/blobs/") {
        true => Fault::CutAfter(4 << 20),
        false => Fault::None,
    });
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = coracle_pull(dir.path(), &format!("{}/app:v1", proxy.host()), &[]);
    assert!(code == Some(0) && stderr.contains("the connection ended at byte"), "{stderr}");
}
