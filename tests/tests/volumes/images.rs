//! Images: policies, secrets for a registry that asks for a password, images as volumes.

use coracle_tests::image::Layout;
use coracle_tests::machine::Machine;
use coracle_tests::registry::{Options, Registry};
use serde_json::json;

use crate::{apply, lines, pod, secret, until};

/// Runs a test with a registry for one user, with an image `app:v1`, on the loopback of the test's machine.
fn with_registry(test: impl FnOnce(&Machine, &Registry) + Send) {
    let machine = Machine::new();
    machine.run(|| test(&machine, &registry(&machine)));
}

fn registry(machine: &Machine) -> Registry {
    let layout = Layout::create(&machine.path("layout"));
    layout.image("app").busybox().file("etc/word", 0o644, b"from the registry\n").build();
    let registry = Registry::start_with(&Options { user: Some(("ann", "pw")), ..Options::default() });
    registry.push(&layout, "app", "app:v1", &[]);
    registry
}

fn app(machine: &Machine, name: &str, image: &str, policy: &str, spec: &str) -> String {
    let text = format!(
        "  restartPolicy: Never\n{spec}  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: {policy}, \
         command: [cat, /etc/word]}}\n"
    );
    machine.pod(name, &text)
}

/// A config.json for the registry.
fn login(registry: &Registry, password: &str) -> String {
    json!({ "auths": { registry.host(): { "username": "ann", "password": password } } }).to_string()
}

#[test]
fn a_pull_secret_opens_the_registry_and_none_is_told() {
    with_registry(|machine, registry| {
        let image = registry.name("app:v1");
        let file = app(machine, "denied", &image, "IfNotPresent", "");
        let error = machine.coracle(&["run", &file]).err;
        assert!(error.contains("ErrImagePull") && error.contains(&image), "{error}");
        assert!(machine.pods().is_empty(), "nothing of it is left");

        secret(machine, "wrong", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &login(registry, "no"));
        secret(machine, "right", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &login(registry, "pw"));
        let both = "  imagePullSecrets: [{name: wrong}, {name: right}, {name: absent}]\n";
        let file = app(machine, "allowed", &image, "Always", both);
        assert_eq!(lines(machine, &file), ["from the registry"]);

        // What is here needs no secret, unless the registry is to be asked each time.
        assert_eq!(lines(machine, &app(machine, "here", &image, "IfNotPresent", "")), ["from the registry"]);
        assert_eq!(lines(machine, &app(machine, "never", &image, "Never", "")), ["from the registry"]);
        let error = machine.coracle(&["run", &app(machine, "always", &image, "Always", "")]).err;
        assert!(error.contains("ErrImagePull"), "{error}");
    });
}

#[test]
fn a_restart_whose_pull_fails_waits_as_kubelet_does() {
    let machine = Machine::new();
    machine.run(|| {
        let registry = registry(&machine);
        let image = registry.name("app:v1");
        secret(&machine, "right", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &login(&registry, "pw"));
        let spec = format!(
            "  imagePullSecrets: [{{name: right}}]\n  containers:\n  - {{name: main, image: '{image}', \
             imagePullPolicy: Always, command: [sh, -c, 'sleep 3; exit 1']}}\n"
        );
        machine.ok(&["run", "-d", &machine.pod("again", &spec)]);
        drop(registry);
        until("the delay", || machine.view("again")["status"] == "ImagePullBackOff");
        let events = machine.ok(&["events"]);
        for words in [
            format!("Successfully pulled image \"{image}\" in "),
            format!("Failed to pull image \"{image}\": "),
            "Error: ErrImagePull".to_owned(),
            format!("Back-off pulling image \"{image}\""),
            "Error: ImagePullBackOff".to_owned(),
        ] {
            assert!(events.contains(&words), "{words}: {events}");
        }
        machine.ok(&["rm", "-f", "again"]);
    });
}

#[test]
fn a_service_account_carries_secrets_for_pods_that_name_none() {
    with_registry(|machine, registry| {
        let image = registry.name("app:v1");
        let old = json!({ registry.host(): { "username": "ann", "password": "pw" } }).to_string();
        secret(machine, "old", "kubernetes.io/dockercfg", ".dockercfg", &old);
        apply(machine, "default", json!({ "kind": "ServiceAccount", "imagePullSecrets": [{ "name": "old" }] }));
        assert_eq!(lines(machine, &app(machine, "account", &image, "IfNotPresent", "")), ["from the registry"]);
    });
}

#[test]
fn an_image_that_is_not_here_and_never_pulled_is_told_so() {
    let machine = Machine::new();
    let line = machine.fails(&["run", "-d", &app(&machine, "x", "localhost/none:1", "Never", "")]);
    assert!(line.contains("ErrImageNeverPull"), "{line}");
}

#[test]
fn an_image_is_a_volume() {
    with_registry(|machine, registry| {
        let image = registry.name("app:v1");
        secret(machine, "right", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &login(registry, "pw"));
        let spec = format!(
            "  imagePullSecrets: [{{name: right}}]\n  volumes: [{{name: i, image: {{reference: '{image}'}}}}]\n"
        );
        let mounts = "    volumeMounts: [{name: i, mountPath: /i}, {name: i, mountPath: /etc2, subPath: etc}]\n";
        let script = "cat /i/etc/word /etc2/word; touch /i/x 2>/dev/null || echo readonly";
        let seen = lines(machine, &pod(machine, "volume", script, mounts, &spec));
        assert_eq!(seen, ["from the registry", "from the registry", "readonly"]);
    });
}
