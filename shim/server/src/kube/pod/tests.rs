//! What a Pod in a file comes to mean, and what each mistake is answered with.

use super::super::container::PullPolicy;
use super::super::security::Seccomp;
use super::super::volume::{HostPathKind, Source};
use super::*;

const HEAD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n";

fn pod(spec: &str) -> Pod {
    read("web.yaml", &format!("{HEAD}{spec}")).unwrap().remove(0)
}

fn fault(spec: &str) -> String {
    read("web.yaml", &format!("{HEAD}{spec}")).unwrap_err().to_string()
}

/// A pod with one container that has these further fields.
fn with(fields: &str) -> String {
    format!("  containers:\n  - name: c\n    image: busybox:1\n{fields}")
}

#[test]
fn a_plain_pod_gets_kubernetes_defaults() {
    let pod = pod(&with(""));
    assert_eq!((pod.name.as_str(), pod.namespace.as_str(), pod.hostname.as_str()), ("web", "default", "web"));
    assert_eq!((pod.restart, pod.grace, pod.pid), (RestartPolicy::Always, 30, PidMode::Container));
    let container = &pod.containers[0];
    assert_eq!(container.pull, PullPolicy::IfNotPresent);
    assert_eq!(container.resources.cpu_shares, 2);
    assert_eq!(container.resources.memory_limit, None);
    assert_eq!(container.security.seccomp, Seccomp::RuntimeDefault);
    assert!(container.security.allow_escalation && !container.security.privileged);
}

#[test]
fn unhonoured_and_unknown_fields_are_told_apart_with_their_place() {
    assert_eq!(
        fault(&with("    volumeDevices: [{name: d, devicePath: /dev/x}]\n")),
        "web.yaml:8:5: spec.containers[0].volumeDevices is block storage, which is not done here: mount a directory"
    );
    assert_eq!(
        fault(&with("    imagee: x\n")),
        "web.yaml:8:5: spec.containers[0]: unknown field `imagee`: did you mean `image`?"
    );
}

#[test]
fn names_are_checked_as_the_api_server_checks_them() {
    let named = |name: &str| read("f", &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{}}\n"));
    assert!(named("Web").unwrap_err().to_string().starts_with("f:3:18: metadata.name: \"Web\" must consist of"));
    assert!(fault("  containers: [{name: a, image: b}, {name: a, image: b}]").contains("a second container is named"));
    let init = "  initContainers: [{name: a, image: b}]\n  containers: [{name: a, image: b}]";
    assert!(fault(init).contains("a second container is named"), "init containers share the names");
    assert!(fault("  containers: []").contains("at least one container"));
    assert!(fault("  containers: [{name: a}]").contains("spec.containers[0]: image is missing"));
}

#[test]
fn a_long_name_is_cut_to_a_host_name() {
    assert_eq!(host_name(&format!("{}-.b", "a".repeat(62))), "a".repeat(62));
}

#[test]
fn references_to_variables_are_kept_for_the_start() {
    let pod = pod(&with("    env: [{name: A, value: '1'}, {name: B, value: $(A)}]\n    command: [echo, $(B)]\n"));
    let container = &pod.containers[0];
    assert_eq!(container.env[1].value, EnvValue::Literal("$(A)".into()));
    assert_eq!(container.command.as_ref().unwrap()[1], "$(B)");
}

#[test]
fn records_of_earlier_versions_are_read() {
    let pod = pod(&format!("  volumes: [{{name: v, emptyDir: {{}}}}]\n{}", with("    env: [{name: A, value: x}]\n")));
    let mut json = serde_json::to_value(&pod).unwrap();
    json["containers"][0]["env"] = serde_json::json!([["A", "$x"]]);
    json["volumes"][0]["source"] = "EmptyDir".into();
    for field in ["deadline", "security", "service_links", "pull_secrets", "host_ipc", "overhead"] {
        json.as_object_mut().unwrap().remove(field);
    }
    for field in ["env_from", "lifecycle", "message_path", "message_policy", "restart", "restart_rules", "liveness"] {
        json["containers"][0].as_object_mut().unwrap().remove(field);
    }
    let mut read: Pod = serde_json::from_value(json).unwrap();
    assert_eq!(read.containers[0].env[0].value, EnvValue::Literal("$$x".into()), "it was expanded already");
    read.containers[0].env.clone_from(&pod.containers[0].env);
    assert_eq!(read, pod);
}

#[test]
fn ports_are_checked() {
    let port = |fields: &str| fault(&with(&format!("    ports: [{fields}]\n")));
    assert!(port("{containerPort: 0}").contains("0 is not a port"));
    assert!(port("{containerPort: 70000}").contains("70000 is not a port"));
    assert!(port("{hostPort: 80}").contains("containerPort is missing"));
    assert!(port("{containerPort: 80, protocol: HTTP}").contains("\"HTTP\" is not one of TCP, UDP, SCTP"));
    assert!(port("{containerPort: 80, hostIP: here}").contains("is not an IP address"));
    assert!(port("{containerPort: 1, name: a}, {containerPort: 2, name: a}").contains("a second port"));
    let twice = port("{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}");
    assert!(twice.contains("hostPort 80/TCP is asked for"), "{twice}");
    let host = "  hostNetwork: true\n  containers: [{name: c, image: b, ports: [{containerPort: 1, hostPort: 2}]}]";
    assert!(fault(host).contains("must be the same as containerPort"));
}

#[test]
fn resources_become_what_the_kernel_takes() {
    let pod = pod(&with("    resources: {limits: {cpu: 500m, memory: 128Mi}, requests: {cpu: 0.25}}\n"));
    let resources = &pod.containers[0].resources;
    assert_eq!((resources.cpu_shares, resources.cpu_quota), (256, Some(50_000)));
    assert_eq!(resources.memory_limit, Some(128 << 20));
    let bad = |text: &str| fault(&with(&format!("    resources: {text}\n")));
    assert!(bad("{limits: {cpu: 1}, requests: {cpu: 2}}").contains("requests.cpu: 2 is more than the limit, 1"));
    assert!(bad("{limits: {memory: -1}}").contains("must not be negative"));
    assert!(bad("{limits: {memory: 128m}}").contains("`Mi` was meant?"));
    assert!(bad("{limits: {memory: lots}}").contains("is not a quantity"));
    assert!(bad("{limits: {nvidia.com/gpu: 1}}").contains("limits.nvidia.com/gpu: is offered by a device plugin"));
}

#[test]
fn volumes_and_mounts_are_checked() {
    let volumes =
        "  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /tmp/x, type: DirectoryOrCreate}}]\n";
    let spec = |mounts: &str| format!("{volumes}{}", with(&format!("    volumeMounts: [{mounts}]\n")));
    let good = pod(&spec("{name: v, mountPath: /data/}, {name: h, mountPath: h, readOnly: true}"));
    assert_eq!(good.containers[0].mounts[0].path, "/data");
    assert_eq!(good.containers[0].mounts[1].path, "/h");
    let source = Source::HostPath { path: "/tmp/x".into(), kind: HostPathKind::DirectoryOrCreate };
    assert_eq!(good.volumes[1].source, source);
    assert!(fault(&spec("{name: none, mountPath: /a}")).contains("the pod has no volume \"none\""));
    assert!(fault(&spec("{name: v, mountPath: /a}, {name: h, mountPath: /a/}")).contains("a second volume is mounted"));
    assert!(fault(&spec("{name: v, mountPath: /a, subPath: ../b}")).contains("subPath: must not contain '..'"));
    assert!(fault(&spec("{name: v, mountPath: /a/../b}")).contains("'..'"));
    assert!(fault(&spec("{name: v, mountPath: /, readOnly: true}")).contains("whole filesystem"));
    assert!(
        fault(&format!("  volumes: [{{name: v, configMap: {{optional: true}}}}]\n{}", with("")))
            .contains("configMap: name is missing")
    );
    assert!(fault(&format!("  volumes: [{{name: v, hostPath: {{path: /a/../b}}}}]\n{}", with(""))).contains("'..'"));
}

#[test]
fn security_contexts_merge_and_conflicts_are_refused() {
    let pod = pod(&format!(
        "  securityContext: {{runAsUser: 1000, supplementalGroups: [7], runAsNonRoot: true}}\n{}",
        with("    securityContext: {runAsUser: 5, capabilities: {add: [CAP_NET_ADMIN], drop: [all]}}\n")
    ));
    let security = &pod.containers[0].security;
    assert_eq!((security.user, security.groups.as_slice(), security.non_root), (Some(5), &[7][..], true));
    assert_eq!(
        (security.cap_add.as_slice(), security.cap_drop.as_slice()),
        (&["NET_ADMIN".into()][..], &["ALL".into()][..])
    );
    let bad = |text: &str| fault(&with(&format!("    securityContext: {{{text}}}\n")));
    assert!(bad("privileged: true, allowPrivilegeEscalation: false").contains("cannot be false"));
    assert!(bad("runAsNonRoot: true, runAsUser: 0").contains("runAsNonRoot forbids"));
    assert!(bad("runAsUser: -1").contains("is not an id"));
    assert!(bad("capabilities: {add: [NET_ADMN]}").contains("did you mean NET_ADMIN?"));
    assert!(bad("seccompProfile: {type: Localhost}").contains("localhostProfile is missing"));
    assert!(bad("seccompProfile: {type: Unconfined, localhostProfile: a}").contains("with the type Localhost alone"));
    assert!(bad("windowsOptions: {hostProcess: true}").contains("windowsOptions is for Windows"));
}

#[test]
fn a_token_and_two_process_namespaces_are_refused() {
    assert!(fault(&format!("  automountServiceAccountToken: true\n{}", with(""))).contains("no API server"));
    assert!(fault(&format!("  hostPID: true\n  shareProcessNamespace: true\n{}", with(""))).contains("hostPID"));
    assert!(fault(&format!("  dnsPolicy: None\n{}", with(""))).contains("at least one server"));
}

#[test]
fn what_kubectl_writes_for_a_dry_run_is_taken() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  creationTimestamp: null\n  labels:\n    run: web\n  name: web\n\
        spec:\n  containers:\n  - image: busybox\n    name: web\n    resources: {}\n  dnsPolicy: ClusterFirst\n  \
        restartPolicy: Always\nstatus: {}\n";
    assert_eq!(read("f", text).unwrap()[0].labels["run"], "web");
}

#[test]
fn a_pod_survives_its_way_through_json() {
    let pod = pod(&with("    ports: [{containerPort: 80, hostPort: 8080}]\n"));
    let json = serde_json::to_string(&pod).unwrap();
    assert_eq!(serde_json::from_str::<Pod>(&json).unwrap(), pod);
}
