//! Isolation and limits through the CRI: what kubelet asks for is what the container sees and what the status tells.

use std::fs;
use std::path::Path;

use coracle_proto::cri as own;
use coracle_tests::cri::{IMAGE, LONG, Node, log_text, node, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use tonic::Code;

const MIB: i64 = 1 << 20;
const FIRST: u32 = 300_000;

fn maps() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { container_id: 0, host_id: FIRST, length: 65_536 }]
}

/// A pod with a user namespace of its own.
fn mapped_pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let mut config = node.pod(name);
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
    security.namespace_options.as_mut().unwrap().userns_options =
        Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: maps(), gids: maps() });
    config
}

/// The security context of a container.
fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

async fn refused(
    node: &Node,
    pod: &str,
    config: &v1::PodSandboxConfig,
    container: v1::ContainerConfig,
) -> tonic::Status {
    node.create(pod, config, container).await.expect_err("it must be refused")
}

#[test]
fn a_pod_with_a_user_namespace_is_root_inside_only() {
    node(async |node| {
        let config = mapped_pod(node, "web");
        let pod = node.run_pod(&config).await.unwrap();
        let volume = node.path("volume");
        fs::create_dir(&volume).unwrap();
        let mut main = script("main", "cat /proc/self/uid_map; id -u; stat -c %u /bin/busybox; touch /vol/x; hostname");
        main.mounts = vec![v1::Mount {
            host_path: volume.display().to_string(),
            container_path: "/vol".into(),
            uid_mappings: maps(),
            gid_mappings: maps(),
            ..Default::default()
        }];
        // kubelet says it again for each container.
        security(&mut main).namespace_options =
            config.linux.as_ref().unwrap().security_context.as_ref().unwrap().namespace_options.clone();
        let (ended, log) = node.run_to_end(&pod, &config, main).await;
        assert_eq!(ended.exit_code, 0, "{log}");
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "300000", "65536"]);
        assert_eq!(lines[1..], ["0", "0", "web"]);
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(volume.join("x")).unwrap()), 0);
        let status = node.pod_status(&pod).await.unwrap();
        let namespaces = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(namespaces.userns_options.unwrap().uids, maps());
    });
}

#[test]
fn a_user_namespace_that_cannot_be_is_an_invalid_argument() {
    node(async |node| {
        let mut config = mapped_pod(node, "web");
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
        security.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Node.into();
        let error = node.run_pod(&config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    });
}

#[test]
fn the_user_of_a_container_is_told_as_it_was_resolved() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut main = script("main", "true");
        let context = security(&mut main);
        context.run_as_user = Some(v1::Int64Value { value: 33 });
        context.run_as_group = Some(v1::Int64Value { value: 34 });
        context.supplemental_groups = vec![35];
        context.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
        let id = node.create(&pod, &config, main).await.unwrap();
        let user = node.container_status(&id).await.unwrap().user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 35]));
    });
}

/// The memory limit of a container's cgroup, of the pod's own without one.
fn memory(node: &Node, pod: &str, container: &str) -> i64 {
    let record = fs::read(node.path("state/pods").join(pod).join("record.json")).expect("the pod's record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let group = Path::new(record["cgroup"].as_str().expect("its cgroup")).join(container);
    let limit = |file: &str| {
        let tree = if file == "memory.max" { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
        fs::read_to_string(Path::new(tree).join(group.strip_prefix("/").unwrap()).join(file)).ok()
    };
    let text = ["memory.limit_in_bytes", "memory.max"].into_iter().find_map(limit).expect("a memory cgroup");
    text.trim().parse().unwrap_or(i64::MAX)
}

#[test]
fn limits_change_while_a_container_and_its_pod_run() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut main = script("main", LONG);
        let resources =
            |memory: i64| v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
        main.linux.get_or_insert_default().resources = Some(resources(100 * MIB));
        let id = node.launch(&pod, &config, main).await;
        assert_eq!(memory(node, &pod, &id), 100 * MIB);
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(resources(150 * MIB)),
            ..Default::default()
        };
        node.runtime().update_container_resources(request).await.unwrap();
        assert_eq!(memory(node, &pod, &id), 150 * MIB);
        let told = node.container_status(&id).await.unwrap().resources.unwrap().linux.unwrap();
        assert_eq!(told.memory_limit_in_bytes, 150 * MIB);

        let resources =
            |memory: i64| own::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
        let request = own::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.clone(),
            overhead: Some(resources(20 * MIB)),
            resources: Some(resources(200 * MIB)),
        };
        node.own().update_pod_sandbox_resources(request).await.unwrap();
        assert_eq!(memory(node, &pod, ""), 220 * MIB);
        let request = v1::UpdateContainerResourcesRequest { container_id: "nobody".into(), ..Default::default() };
        let error = node.runtime().update_container_resources(request).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    });
}

#[test]
fn volumes_are_read_only_to_the_bottom_or_images() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut main =
            script("main", "touch /ro/x 2>/dev/null || echo readonly; test -e /img/bin/busybox && echo image");
        let host = v1::Mount {
            host_path: node.path("made").display().to_string(),
            container_path: "/ro".into(),
            readonly: true,
            recursive_read_only: true,
            ..Default::default()
        };
        let image = Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() });
        let volume = v1::Mount { container_path: "/img".into(), image, readonly: true, ..Default::default() };
        main.mounts = vec![host.clone(), volume];
        let (_, log) = node.run_to_end(&pod, &config, main).await;
        assert_eq!(log, "readonly\nimage\n");
        let mut wrong = script("wrong", "true");
        wrong.mounts = vec![v1::Mount { readonly: false, ..host }];
        assert_eq!(refused(node, &pod, &config, wrong).await.code(), Code::InvalidArgument);
    });
}

#[test]
fn what_the_host_does_not_have_is_an_error_that_names_it() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut cdi = script("cdi", "true");
        cdi.cdi_devices = vec![v1::CdiDevice { name: "vendor.com/gpu=0".into() }];
        let mut device = script("device", "true");
        let missing =
            v1::Device { host_path: "/dev/no-such".into(), container_path: "/dev/x".into(), permissions: "r".into() };
        device.devices = vec![missing];
        let mut apparmor = script("apparmor", "true");
        security(&mut apparmor).apparmor = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "coracle-test-no-such".into(),
        });
        let mut selinux = script("selinux", "true");
        security(&mut selinux).selinux_options =
            Some(v1::SeLinuxOption { r#type: "coracle_test_t".into(), ..Default::default() });
        for (container, words) in [
            (cdi, "vendor.com/gpu=0"),
            (device, "/dev/no-such"),
            (apparmor, "coracle-test-no-such"),
            (selinux, "coracle_test_t"),
        ] {
            let error = refused(node, &pod, &config, container).await;
            assert!(error.message().contains(words), "{error}");
        }
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn an_ephemeral_container_sees_its_targets_processes() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let target = node.launch(&pod, &config, script("target", LONG)).await;
        let log = node.log_dir("web").join("target.log");
        until("the target to be ready", || log_text(&log).contains("ready"));
        let mut debug = script("debug", "tr '\\0' ' ' < /proc/1/cmdline | grep -c 'echo ready'");
        security(&mut debug).namespace_options = Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Target.into(),
            target_id: target,
            ..Default::default()
        });
        let (_, log) = node.run_to_end(&pod, &config, debug).await;
        assert_eq!(log, "1\n");
    });
}
