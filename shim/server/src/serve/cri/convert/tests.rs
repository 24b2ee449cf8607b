//! Requests that cannot be meant, as tables: what is wrong, and the field that the answer names first.

use coracle_engine::{AppArmor, NamespaceMode, PidNamespace, SandboxConfig, Seccomp};
use coracle_proto::cri as v1;
use tonic::{Code, Status};
use v1::NamespaceMode as Mode;
use v1::security_profile::ProfileType;

use super::{container, sandbox};

fn pod() -> v1::PodSandboxConfig {
    let metadata =
        v1::PodSandboxMetadata { name: "web".into(), uid: "1".into(), namespace: "default".into(), attempt: 0 };
    v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}

fn request(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> v1::RunPodSandboxRequest {
    let mut config = pod();
    change(&mut config);
    v1::RunPodSandboxRequest { config: Some(config), ..Default::default() }
}

fn in_linux(change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> v1::RunPodSandboxRequest {
    request(|config| change(config.linux.get_or_insert_default()))
}

fn in_pod_security(change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> v1::RunPodSandboxRequest {
    in_linux(|linux| change(linux.security_context.get_or_insert_default()))
}

fn in_pod_namespaces(change: impl FnOnce(&mut v1::NamespaceOption)) -> v1::RunPodSandboxRequest {
    in_pod_security(|security| change(security.namespace_options.get_or_insert_default()))
}

fn port(host_port: i32, container_port: i32) -> v1::PortMapping {
    v1::PortMapping { host_port, container_port, ..Default::default() }
}

fn users(length: u32) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: 65536, container_id: 0, length }]
}

fn userns(mode: Mode, length: u32) -> Option<v1::UserNamespace> {
    Some(v1::UserNamespace { mode: mode as i32, uids: users(length), gids: users(length) })
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, field: &str) {
    let error = result.expect_err(field);
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    let named = error.message().strip_prefix(field).is_some_and(|rest| rest.starts_with(": "));
    assert!(named, "{field} is not named first: {}", error.message());
}

#[test]
fn a_sandbox_that_cannot_be_is_refused_by_its_field() {
    const LINUX: &str = "config.linux";
    let ns = |name: &str| format!("{LINUX}.security_context.namespace_options.{name}");
    let long = "x".repeat(300);
    let dns = |server: &str| v1::DnsConfig { servers: vec![server.into()], ..Default::default() };
    let table: Vec<(String, v1::RunPodSandboxRequest)> = vec![
        ("config".into(), v1::RunPodSandboxRequest::default()),
        ("config.metadata".into(), request(|c| c.metadata = None)),
        ("config.metadata.name".into(), request(|c| c.metadata.as_mut().unwrap().name.clear())),
        ("config.metadata.name".into(), request(|c| c.metadata.as_mut().unwrap().name = "a/b".into())),
        ("config.metadata.name".into(), request(|c| c.metadata.as_mut().unwrap().name.clone_from(&long))),
        ("config.metadata.namespace".into(), request(|c| c.metadata.as_mut().unwrap().namespace.clear())),
        ("config.metadata.uid".into(), request(|c| c.metadata.as_mut().unwrap().uid = "a\nb".into())),
        ("config.hostname".into(), request(|c| c.hostname.clone_from(&long))),
        ("config.log_directory".into(), request(|c| c.log_directory = "logs".into())),
        ("config.log_directory".into(), request(|c| c.log_directory = format!("/{}", "x".repeat(5000)))),
        ("config.windows".into(), request(|c| c.windows = Some(Default::default()))),
        ("config.dns_config.servers[0]".into(), request(|c| c.dns_config = Some(dns("1.1.1.1\nsearch evil")))),
        ("config.dns_config.servers[0]".into(), request(|c| c.dns_config = Some(dns("")))),
        ("config.port_mappings[1].host_port".into(), request(|c| c.port_mappings = vec![port(80, 80), port(-1, 80)])),
        ("config.port_mappings[0].host_port".into(), request(|c| c.port_mappings = vec![port(65536, 80)])),
        ("config.port_mappings[0].container_port".into(), request(|c| c.port_mappings = vec![port(80, 0)])),
        (
            "config.port_mappings[0].protocol".into(),
            request(|c| c.port_mappings = vec![v1::PortMapping { protocol: 7, ..port(80, 80) }]),
        ),
        (
            "config.port_mappings[0].host_ip".into(),
            request(|c| c.port_mappings = vec![v1::PortMapping { host_ip: "all".into(), ..port(80, 80) }]),
        ),
        ("config.port_mappings[0].host_port".into(), {
            let mut host = in_pod_namespaces(|n| n.network = Mode::Node as i32);
            host.config.as_mut().unwrap().port_mappings = vec![port(8080, 80)];
            host
        }),
        (format!("{LINUX}.cgroup_parent"), in_linux(|l| l.cgroup_parent = "kubepods.slice".into())),
        (format!("{LINUX}.cgroup_parent"), in_linux(|l| l.cgroup_parent = "relative/pod".into())),
        (format!("{LINUX}.cgroup_parent"), in_linux(|l| l.cgroup_parent = "/kubepods/../..".into())),
        (
            format!("{LINUX}.resources.memory_limit_in_bytes"),
            in_linux(|l| {
                l.resources =
                    Some(v1::LinuxContainerResources { memory_limit_in_bytes: i64::MIN, ..Default::default() });
            }),
        ),
        (ns("network"), in_pod_namespaces(|n| n.network = Mode::Container as i32)),
        (ns("network"), in_pod_namespaces(|n| n.network = 9)),
        (ns("ipc"), in_pod_namespaces(|n| n.ipc = Mode::Target as i32)),
        (ns("pid"), in_pod_namespaces(|n| n.pid = Mode::Target as i32)),
        (ns("userns_options.mode"), in_pod_namespaces(|n| n.userns_options = userns(Mode::Container, 1))),
        (ns("userns_options.uids"), in_pod_namespaces(|n| n.userns_options = userns(Mode::Node, 1))),
        (ns("userns_options.uids[0]"), in_pod_namespaces(|n| n.userns_options = userns(Mode::Pod, 0))),
        (ns("userns_options.uids[0]"), in_pod_namespaces(|n| n.userns_options = userns(Mode::Pod, u32::MAX))),
        (ns("userns_options.uids"), in_pod_namespaces(|n| n.userns_options = Some(v1::UserNamespace::default()))),
        (
            ns("network"),
            in_pod_namespaces(|n| (n.userns_options, n.network) = (userns(Mode::Pod, 65536), Mode::Node as i32)),
        ),
        (
            format!("{LINUX}.security_context.privileged"),
            in_pod_security(|s| {
                s.privileged = true;
                s.namespace_options.get_or_insert_default().userns_options = userns(Mode::Pod, 65536);
            }),
        ),
        ("runtime_handler".into(), v1::RunPodSandboxRequest { runtime_handler: "Bad_Name".into(), ..request(|_| {}) }),
        ("runtime_handler".into(), v1::RunPodSandboxRequest { runtime_handler: "../x".into(), ..request(|_| {}) }),
    ];
    for (field, request) in table {
        assert_refused(sandbox::config(request), &field);
    }
}

#[test]
fn what_says_nothing_leaves_the_default() {
    let config = sandbox::config(request(|c| {
        c.dns_config = Some(v1::DnsConfig::default());
        // kubelet lists the ports of all containers; those without a host port lead nowhere.
        c.port_mappings = vec![port(0, 80), v1::PortMapping { host_ip: "0.0.0.0".into(), ..port(8080, 80) }];
    }))
    .unwrap();
    assert_eq!(config.dns, None);
    assert_eq!(config.port_mappings.len(), 1);
    assert_eq!(config.port_mappings[0].host_ip, None);
    assert_eq!((config.network, config.pid, config.ipc), (NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Pod));
    let node = sandbox::config(in_pod_namespaces(|n| {
        n.userns_options = Some(v1::UserNamespace { mode: Mode::Node as i32, ..Default::default() });
        n.pid = Mode::Container as i32;
    }))
    .unwrap();
    assert_eq!((node.user_namespace, node.pid), (None, NamespaceMode::Container));
    // In the host's network kubelet names host ports that are the containers'.
    let mut host = in_pod_namespaces(|n| n.network = Mode::Node as i32);
    host.config.as_mut().unwrap().port_mappings = vec![port(80, 80)];
    sandbox::config(host).unwrap();
}

fn plain() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn with(change: impl FnOnce(&mut v1::ContainerConfig)) -> v1::ContainerConfig {
    let mut config = plain();
    change(&mut config);
    config
}

fn in_security(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> v1::ContainerConfig {
    with(|c| change(c.linux.get_or_insert_default().security_context.get_or_insert_default()))
}

fn in_namespaces(change: impl FnOnce(&mut v1::NamespaceOption)) -> v1::ContainerConfig {
    in_security(|s| change(s.namespace_options.get_or_insert_default()))
}

fn with_mount(change: impl FnOnce(&mut v1::Mount)) -> v1::ContainerConfig {
    let mut mount = v1::Mount { host_path: "/var/data".into(), container_path: "/data".into(), ..Default::default() };
    change(&mut mount);
    with(|c| c.mounts = vec![mount])
}

fn localhost(reference: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: reference.into() })
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn image() -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: "tools".into(), ..Default::default() })
}

fn logs() -> SandboxConfig {
    SandboxConfig { log_directory: Some("/var/log/pods/x".into()), ..Default::default() }
}

#[test]
fn a_container_that_cannot_be_is_refused_by_its_field() {
    let env = |key: &str, value: &[u8]| vec![v1::KeyValue { key: key.into(), value: value.to_vec() }];
    let device = |path: &str, permissions: &str| {
        let device = v1::Device { host_path: path.into(), permissions: permissions.into(), ..Default::default() };
        vec![device]
    };
    let table: Vec<(&str, v1::ContainerConfig)> = vec![
        ("config.metadata", with(|c| c.metadata = None)),
        ("config.metadata.name", with(|c| c.metadata.as_mut().unwrap().name.clear())),
        ("config.metadata.name", with(|c| c.metadata.as_mut().unwrap().name = "../x".into())),
        ("config.image", with(|c| c.image = None)),
        ("config.image.image", with(|c| c.image.as_mut().unwrap().image.clear())),
        ("config.windows", with(|c| c.windows = Some(Default::default()))),
        ("config.command[1]", with(|c| c.command = vec!["sh".into(), "a\0b".into()])),
        ("config.args[0]", with(|c| c.args = vec!["\0".into()])),
        ("config.working_dir", with(|c| c.working_dir = "data".into())),
        ("config.envs[0].key", with(|c| c.envs = env("", b"x"))),
        ("config.envs[0].key", with(|c| c.envs = env("A=B", b"x"))),
        ("config.envs[0].value", with(|c| c.envs = env("A", b"\xff"))),
        ("config.envs[0].value", with(|c| c.envs = env("A", b"x\0"))),
        ("config.log_path", with(|c| c.log_path = "../other.log".into())),
        ("config.log_path", with(|c| c.log_path = "/var/log/x".into())),
        ("config.stop_signal", with(|c| c.stop_signal = 99)),
        ("config.mounts[0].container_path", with_mount(|m| m.container_path = "data".into())),
        ("config.mounts[0].container_path", with_mount(|m| m.container_path = "/".into())),
        ("config.mounts[0].container_path", with_mount(|m| m.container_path = "/a/../..".into())),
        ("config.mounts[0].host_path", with_mount(|m| m.host_path.clear())),
        ("config.mounts[0].host_path", with_mount(|m| m.host_path = "data".into())),
        ("config.mounts[0].host_path", with_mount(|m| m.image = image())),
        ("config.mounts[0].propagation", with_mount(|m| m.propagation = 5)),
        ("config.mounts[0].recursive_read_only", with_mount(|m| m.recursive_read_only = true)),
        (
            "config.mounts[0].recursive_read_only",
            with_mount(|m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 2)),
        ),
        ("config.mounts[0].uidMappings", with_mount(|m| m.uid_mappings = users(1))),
        ("config.mounts[0].image_sub_path", with_mount(|m| m.image_sub_path = "bin".into())),
        (
            "config.mounts[0].image_sub_path",
            with_mount(|m| {
                m.host_path.clear();
                (m.image, m.image_sub_path) = (image(), "../etc".into());
            }),
        ),
        ("config.devices[0].host_path", with(|c| c.devices = device("null", "rwm"))),
        ("config.devices[0].permissions", with(|c| c.devices = device("/dev/null", "rx"))),
        ("config.CDI_devices[0].name", with(|c| c.cdi_devices = vec![v1::CdiDevice { name: "gpu0".into() }])),
        ("config.linux.security_context.privileged", in_security(|s| s.privileged = true)),
        ("config.linux.security_context.run_as_user", in_security(|s| s.run_as_user = id(-1))),
        ("config.linux.security_context.run_as_user", in_security(|s| s.run_as_user = id(1 << 40))),
        ("config.linux.security_context.run_as_user", in_security(|s| s.run_as_user = id(i64::from(u32::MAX)))),
        ("config.linux.security_context.run_as_group", in_security(|s| s.run_as_group = id(1))),
        (
            "config.linux.security_context.run_as_username",
            in_security(|s| (s.run_as_user, s.run_as_username) = (id(1), "www".into())),
        ),
        ("config.linux.security_context.supplemental_groups", in_security(|s| s.supplemental_groups = vec![1, -5])),
        ("config.linux.security_context.supplemental_groups_policy", in_security(|s| s.supplemental_groups_policy = 3)),
        (
            "config.linux.security_context.capabilities.add_capabilities",
            in_security(|s| {
                s.capabilities =
                    Some(v1::Capability { add_capabilities: vec!["NET ADMIN".into()], ..Default::default() });
            }),
        ),
        ("config.linux.security_context.seccomp.localhost_ref", in_security(|s| s.seccomp = localhost(""))),
        ("config.linux.security_context.seccomp.localhost_ref", in_security(|s| s.seccomp = localhost("x.json"))),
        ("config.linux.security_context.apparmor.localhost_ref", in_security(|s| s.apparmor = localhost(""))),
        ("config.linux.security_context.masked_paths[0]", in_security(|s| s.masked_paths = vec!["proc".into()])),
        ("config.linux.security_context.namespace_options.network", in_namespaces(|n| n.network = Mode::Node as i32)),
        ("config.linux.security_context.namespace_options.pid", in_namespaces(|n| n.pid = Mode::Node as i32)),
        ("config.linux.security_context.namespace_options.target_id", in_namespaces(|n| n.pid = Mode::Target as i32)),
        (
            "config.linux.security_context.namespace_options.userns_options",
            in_namespaces(|n| n.userns_options = userns(Mode::Pod, 65536)),
        ),
    ];
    assert_refused(container::config(None, &logs()), "config");
    for (field, config) in table {
        assert_refused(container::config(Some(config), &logs()), field);
    }
}

#[test]
fn security_that_is_not_asked_for_is_as_other_runtimes_have_it() {
    let of = |config| container::config(Some(config), &logs()).unwrap();
    // No context at all, as by hand: confined as usual.
    assert_eq!(of(plain()).security.seccomp, Seccomp::RuntimeDefault);
    // kubelet always sends one, and a profile in it when the pod has one.
    let bare = of(in_security(|_| {}));
    assert_eq!((bare.security.seccomp, bare.security.apparmor), (Seccomp::Unconfined, AppArmor::RuntimeDefault));
    assert_eq!(bare.security.masked_paths, Some(Vec::new()));
    let profile = of(in_security(|s| s.seccomp = localhost("localhost//profiles/x.json")));
    assert_eq!(profile.security.seccomp, Seccomp::Localhost("/profiles/x.json".into()));
    #[allow(deprecated, reason = "older clients know no other field")]
    let old = of(in_security(|s| {
        s.seccomp_profile_path = "runtime/default".into();
        s.apparmor_profile = "localhost/mine".into();
    }));
    assert_eq!(old.security.seccomp, Seccomp::RuntimeDefault);
    assert_eq!(old.security.apparmor, AppArmor::Localhost("mine".into()));
}

#[test]
fn a_containers_process_namespace_is_its_own_its_pods_the_nodes_or_anothers() {
    let node = SandboxConfig { pid: NamespaceMode::Node, ..logs() };
    let of = |pod: &SandboxConfig, pid: Mode| {
        let config = in_namespaces(|n| (n.pid, n.target_id) = (pid as i32, "abc".into()));
        container::config(Some(config), pod).unwrap().pid
    };
    assert_eq!(of(&logs(), Mode::Pod), PidNamespace::Sandbox);
    assert_eq!(of(&logs(), Mode::Container), PidNamespace::Container);
    assert_eq!(of(&logs(), Mode::Target), PidNamespace::Target("abc".into()));
    assert_eq!(of(&node, Mode::Node), PidNamespace::Node);
}

#[test]
fn a_container_is_shown_as_it_was_asked_for() {
    let mut asked = with_mount(|m| (m.readonly, m.propagation) = (true, 1));
    asked.mounts.push(v1::Mount {
        container_path: "/tools".into(),
        image: image(),
        image_sub_path: "bin".into(),
        readonly: true,
        ..Default::default()
    });
    asked.image.as_mut().unwrap().user_specified_image = "busybox:1.36".into();
    asked.annotations.insert("note".into(), "one\ntwo \u{1f980}".into());
    asked.log_path = "main/0.log".into();
    asked.stop_signal = v1::Signal::Sigrtminplus3 as i32;
    let resources = v1::LinuxContainerResources { cpu_shares: 2, oom_score_adj: 5, ..Default::default() };
    asked.linux.get_or_insert_default().resources = Some(resources.clone());
    let config = container::config(Some(asked.clone()), &logs()).unwrap();
    assert_eq!(config.stop_signal.as_deref(), Some("37"));
    let status = container::status(&coracle_engine::ContainerStatus {
        id: "c".into(),
        sandbox_id: "s".into(),
        config,
        image_id: "sha256:1".into(),
        image_digest: "docker.io/library/busybox@sha256:2".into(),
        stop_signal: 37,
        user: None,
        state: coracle_engine::ContainerState::Running,
        created_at: 1,
        started_at: 2,
        pid: None,
        exit: None,
        log_path: Some("/var/log/pods/x/main/0.log".into()),
    });
    assert_eq!((status.annotations, status.mounts[0].clone()), (asked.annotations, asked.mounts[0].clone()));
    assert_eq!(status.mounts[1].image.as_ref().unwrap().image, "tools");
    assert_eq!(status.resources.unwrap().linux, Some(resources));
    let shown = status.image.unwrap();
    assert_eq!((shown.image.as_str(), shown.user_specified_image.as_str()), ("busybox:1.36", "busybox:1.36"));
    assert_eq!(
        (status.image_ref.as_str(), status.image_id.as_str()),
        ("docker.io/library/busybox@sha256:2", "sha256:1")
    );
    assert_eq!((status.stop_signal, status.finished_at, status.exit_code), (asked.stop_signal, 0, 0));
}
