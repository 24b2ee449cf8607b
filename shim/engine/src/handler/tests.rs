//! What may be written of handlers, and what comes of it.

use super::*;

fn settings(kind: HandlerType, binary: &str) -> HandlerSettings {
    HandlerSettings { kind, binary: Some(binary.into()), ..Default::default() }
}

fn refusal(name: &str, settings: HandlerSettings) -> String {
    Handlers::new("", BTreeMap::from([(name.to_owned(), settings)])).unwrap_err().to_string()
}

#[test]
fn the_empty_name_is_the_default_and_an_unknown_one_is_told_the_known_ones() {
    let runc = BTreeMap::from([("runc".to_owned(), settings(HandlerType::Oci, "runc"))]);
    let handlers = Handlers::new("runc", runc).unwrap();
    assert_eq!(handlers.find("").unwrap().name, "runc");
    assert_eq!(handlers.find("coracle").unwrap().kind, HandlerKind::Coracle);
    let error = handlers.find("kata").unwrap_err().to_string();
    assert_eq!(error, "runtime_handler: no handler \"kata\" is configured; known are coracle, runc");
    assert!(Handlers::new("kata", BTreeMap::new()).unwrap_err().to_string().starts_with("default_handler"));
}

#[test]
fn names_are_dns_labels() {
    for name in ["", "A", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
        assert!(refusal(name, HandlerSettings::default()).contains("DNS-1123"), "{name}");
    }
    assert!(is_label("a") && is_label("0-9") && is_label(&"a".repeat(63)));
}

#[test]
fn settings_that_would_not_be_applied_are_refused() {
    let large = HandlerOptions { memory: Some(1 << 30), ..Default::default() };
    let crun = HandlerSettings { options: large, ..settings(HandlerType::Oci, "crun") };
    assert!(refusal("x", crun).contains("handlers.x.options.memory: a handler of type oci has no such option"));
    let rooted = HandlerOptions { root: Some("/r".into()), ..Default::default() };
    let vm = HandlerSettings { options: rooted, ..settings(HandlerType::Vm, "") };
    assert!(refusal("x", vm).contains("handlers.x.options.root: a handler of type vm has no such option"));
    assert!(refusal("x", settings(HandlerType::Coracle, "runc")).contains("handlers.x.binary"));
    assert!(refusal("x", settings(HandlerType::Oci, "")).contains("handlers.x.binary"));
    let rooted = HandlerOptions { sandbox_container: true, ..Default::default() };
    let oci = HandlerSettings { options: rooted, ..settings(HandlerType::Oci, "runc") };
    assert!(refusal("x", oci).contains("handlers.x.options.sandbox_container"));
    let pattern = HandlerSettings { allowed_annotations: vec!["[".into()], ..Default::default() };
    assert!(refusal("x", pattern).contains("handlers.x.allowed_annotations"));
}

#[test]
fn a_shim_is_named_by_its_runtime_type_or_its_path() {
    assert_eq!(shim_program(Path::new("io.containerd.runc.v2")), Path::new("containerd-shim-runc-v2"));
    assert_eq!(shim_program(Path::new("/opt/a.b.c")), Path::new("/opt/a.b.c"));
    assert_eq!(shim_program(Path::new("containerd-shim-kata-v2")), Path::new("containerd-shim-kata-v2"));
}

#[tokio::test]
async fn a_handler_whose_program_is_missing_says_so() {
    let gone = settings(HandlerType::Oci, "/no/such/runtime");
    let handlers = Handlers::new("", BTreeMap::from([("gone".to_owned(), gone)])).unwrap();
    let error = handlers.find("gone").unwrap().check().await.unwrap_err().to_string();
    assert!(error.starts_with("handler gone: its program /no/such/runtime"), "{error}");
    assert_eq!(handlers.features("gone").await.unwrap(), Features::default());
}

#[test]
fn only_allowed_annotations_reach_the_specification() {
    let handler = Handler { allowed_annotations: vec!["io.kata.*".into()], ..Default::default() };
    let annotations = |key: &str| BTreeMap::from([(key.to_owned(), "yes".to_owned()), ("other".into(), "no".into())]);
    let pod: SandboxRecord = serde_json::from_value(serde_json::json!({
        "boot_id": "", "id": "p1", "state": "ready", "created_at": 0, "cgroup": "",
        "config": { "name": "web", "annotations": annotations("io.kata.a") },
    }))
    .unwrap();
    assert_eq!(pod.handler, Handler::default(), "a record of an older version is of the only handler there was");
    let container: ContainerRecord = serde_json::from_value(serde_json::json!({
        "id": "c1", "sandbox_id": "p1", "state": "created", "created_at": 0,
        "config": { "name": "app", "annotations": annotations("io.kata.b") },
    }))
    .unwrap();
    let keys: Vec<_> = handler.annotations(&pod, &container).into_keys().collect();
    assert_eq!(
        keys,
        [
            "io.kata.a",
            "io.kata.b",
            "io.kubernetes.cri.container-name",
            "io.kubernetes.cri.container-type",
            "io.kubernetes.cri.sandbox-id",
            "io.kubernetes.cri.sandbox-name"
        ]
    );
}

#[test]
fn overhead_is_counted_as_kubernetes_counts_it() {
    let overhead = Overhead { memory: Some(1 << 20), cpu_millis: Some(250) }.resources();
    assert_eq!(
        (overhead.cpu_shares, overhead.cpu_quota, overhead.cpu_period),
        (Some(256), Some(25_000), Some(100_000))
    );
    assert_eq!(Overhead::default().resources(), Resources::default());
}

#[test]
fn the_record_keeps_a_handler_as_it_was() {
    let options = HandlerOptions { systemd_cgroup: true, ..Default::default() };
    let kind = HandlerKind::Oci { binary: "/usr/bin/crun".into(), options };
    let handler = Handler { name: "crun".into(), kind, ..Default::default() };
    let text = serde_json::to_string(&handler).unwrap();
    assert!(
        text.contains(r#""kind":{"type":"oci","binary":"/usr/bin/crun","options":{"systemd_cgroup":true}}"#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Handler>(&text).unwrap(), handler);
}
