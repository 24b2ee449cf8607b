//! Pods in virtual machines over the CRI, as a kubelet has them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use coracle_tests::cri::{LONG, Node, Options, log_text, node_with, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use tonic::Code;

use crate::common::{handler, turn};

const MIB: i64 = 1 << 20;

/// Runs a test's body on a node whose handler `vm` emulates.
fn node<F: AsyncFnOnce(&mut Node) + Send>(more: &str, body: F) {
    let _turn = turn();
    node_with(
        Options { config: format!("{more}{}", handler()), deadline: Duration::from_secs(240), ..Options::default() },
        body,
    );
}

/// A kubelet's pod of so many bytes.
fn pod(node: &Node, name: &str, memory: i64) -> v1::PodSandboxConfig {
    let mut config = node.pod(name);
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() });
    config
}

async fn run(node: &Node, config: &v1::PodSandboxConfig) -> Result<String, tonic::Status> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "vm".into() };
    Ok(node.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn exec(node: &Node, id: &str, line: &str) -> String {
    let cmd = ["sh", "-c", line].map(String::from).to_vec();
    let request = v1::ExecSyncRequest { container_id: id.into(), cmd, timeout: 30 };
    let said = node.runtime().exec_sync(request).await.unwrap().into_inner();
    assert_eq!(said.exit_code, 0, "{line}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

fn limited(mut config: v1::ContainerConfig, memory: i64) -> v1::ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() });
    config
}

/// A volume of kubelet's, at the path that tells what it is.
fn volume(node: &Node, plugin: &str, name: &str) -> std::path::PathBuf {
    let path = node.path("kubelet/pods/3fa85f64-5717-4562-b3fc-2c963f66afa6/volumes").join(plugin).join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn mount(host: &Path, at: &str) -> v1::Mount {
    v1::Mount { host_path: host.display().to_string(), container_path: at.into(), ..Default::default() }
}

#[test]
fn a_kubelets_pod_lives_in_a_virtual_machine() {
    node("", async |node| {
        let config = pod(node, "web", 160 * MIB);
        let id = run(node, &config).await.unwrap();
        let status = node.pod_status(&id).await.unwrap();
        assert_eq!((status.state(), status.runtime_handler.as_str()), (v1::PodSandboxState::SandboxReady, "vm"));
        let ip = status.network.unwrap().ip;

        let (map, scratch) =
            (volume(node, "kubernetes.io~configmap", "map"), volume(node, "kubernetes.io~empty-dir", "s"));
        fs::write(map.join("word"), "old").unwrap();
        let mounts = vec![mount(&map, "/map"), mount(&scratch, "/scratch")];
        let with = |name: &str, memory| {
            let mut config = limited(script(name, LONG), memory);
            config.mounts = mounts.clone();
            config
        };
        let main = node.launch(&id, &config, with("main", 96 * MIB)).await;
        let side = node.launch(&id, &config, with("side", 64 * MIB)).await;

        assert_eq!(exec(node, &main, "hostname").await, "web\n");
        assert!(exec(node, &main, "ip -4 addr show eth0").await.contains(&format!("inet {ip}/")));
        assert_eq!(exec(node, &main, "cat /sys/fs/cgroup/memory.max").await, format!("{}\n", 96 * MIB));
        exec(node, &main, "echo shared > /scratch/file").await;
        assert_eq!(exec(node, &side, "cat /scratch/file /map/word").await, "shared\nold");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "what is in it is the guest's alone");
        fs::write(map.join("word"), "new").unwrap();
        while exec(node, &side, "cat /map/word").await != "new" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // A command whose time is over is killed with what it has started.
        let cmd = ["sh", "-c", "for i in 1 2 3; do sleep 4711 & done; wait"].map(String::from).to_vec();
        let late = v1::ExecSyncRequest { container_id: main.clone(), cmd, timeout: 3 };
        let late = node.runtime().exec_sync(late).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
        assert_eq!(exec(node, &main, "ps -o args | grep -c '^[s]leep 4711' || true").await, "0\n");

        // What they use: the containers by the guest's count, the pod by the host's.
        let mut runtime = node.runtime();
        let stats = runtime.container_stats(v1::ContainerStatsRequest { container_id: main.clone() }).await.unwrap();
        let stats = stats.into_inner().stats.unwrap();
        assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
        let used = stats.memory.unwrap().usage_bytes.unwrap().value;
        assert!(used > 0 && used < 96 << 20, "{used}");
        let stats = runtime.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        let stats = stats.into_inner().stats.unwrap().linux.unwrap();
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 32 << 20, "QEMU and what the guest has touched");
        assert_eq!(stats.containers.len(), 2);

        // Limits change within the machine's size, and not beyond.
        let update = |memory| {
            let linux = v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
            let container_id = main.clone();
            v1::UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() }
        };
        runtime.update_container_resources(update(128 * MIB)).await.unwrap();
        assert_eq!(exec(node, &main, "cat /sys/fs/cgroup/memory.max").await, format!("{}\n", 128 * MIB));
        let refused = runtime.update_container_resources(update(512 * MIB)).await.unwrap_err();
        assert!(refused.message().contains("the size of a pod's virtual machine is fixed"), "{refused:?}");

        // Its server goes and comes; the machine stays.
        node.restart().await;
        assert_eq!(exec(node, &side, "cat /scratch/file").await, "shared\n");

        let log = node.container_status(&main).await.unwrap().log_path;
        until("the log", || log_text(log.as_ref()) == "ready\n");
        node.stop_container(&main, 5).await.unwrap();
        assert_eq!(node.exited(&main).await.exit_code, 0);
        node.remove_container(&main).await.unwrap();
        let (ended, said) = node.run_to_end(&id, &config, script("again", "echo once more; exit 3")).await;
        assert_eq!((ended.exit_code, ended.reason.as_str(), said.as_str()), (3, "Error", "once more\n"));
        let (ended, _) = node.run_to_end(&id, &config, limited(script("greedy", "tail /dev/zero"), 32 * MIB)).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
        node.stop_pod(&id).await.unwrap();
        assert_eq!(node.pod_status(&id).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(node.container_status(&side).await.unwrap().state(), v1::ContainerState::ContainerExited);
    });
}

/// What the handler allows, and what only the guest's kernel has to.
#[test]
fn a_kubelets_host_paths_are_shared_where_the_handler_lets_them_in() {
    let shared = tempfile::Builder::new().prefix("coracle-vm-cri.").tempdir().unwrap();
    let (allowed, other) = (shared.path().join("allowed"), shared.path().join("other"));
    for folder in [&allowed, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("word"), "of the host").unwrap();
    }
    let options = Options {
        config: format!("{}host_paths = [{allowed:?}]\n", handler()),
        deadline: Duration::from_secs(240),
        ..Options::default()
    };
    let _turn = turn();
    node_with(options, async |node| {
        let config = pod(node, "web", 128 * MIB);
        let id = run(node, &config).await.unwrap();
        let mut main = script("main", LONG);
        let read_only = v1::Mount { readonly: true, ..mount(&allowed, "/seen") };
        main.mounts = vec![mount(&allowed, "/data"), read_only];
        let security = main.linux.get_or_insert_default().security_context.get_or_insert_default();
        // Whatever this machine has to give: the kernel is the pod's own.
        let add_capabilities = vec!["SYS_RESOURCE".to_owned(), "SYS_MODULE".to_owned()];
        security.capabilities = Some(v1::Capability { add_capabilities, ..Default::default() });
        let main = node.launch(&id, &config, main).await;
        assert_eq!(exec(node, &main, "cat /data/word /seen/word").await, "of the hostof the host");
        exec(node, &main, "echo inside > /data/said; ! touch /seen/no 2>/dev/null").await;
        assert_eq!(fs::read_to_string(allowed.join("said")).unwrap(), "inside\n");
        let held = exec(node, &main, "sed -n 's/CapEff:\t//p' /proc/1/status").await;
        let held = u64::from_str_radix(held.trim(), 16).unwrap();
        assert_eq!(held >> 24 & 1, 1, "CAP_SYS_RESOURCE: {held:x}");
        assert_eq!(held >> 16 & 1, 1, "CAP_SYS_MODULE: {held:x}");

        for (name, path) in [("other", &other), ("parent", &shared.path().to_owned())] {
            let mut container = script(name, LONG);
            container.mounts = vec![mount(path, "/v")];
            let refused = node.create(&id, &config, container).await.unwrap_err();
            let words = format!("{} is a folder or file of the machine (hostPath)", path.display());
            assert!(refused.message().contains(&words), "{refused:?}");
        }
    });
}

#[test]
fn what_a_kubelet_asks_and_a_virtual_machine_has_not_is_refused_by_name() {
    node("", async |node| {
        let namespaces = |set: fn(&mut v1::NamespaceOption)| {
            let mut config = pod(node, "web", 128 * MIB);
            let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            set(security.namespace_options.as_mut().unwrap());
            config
        };
        let host = v1::NamespaceMode::Node as i32;
        assert_eq!(host, 2);
        for (config, words) in [
            (namespaces(|n| n.network = 2), "hostNetwork: "),
            (namespaces(|n| n.pid = 2), "hostPID: "),
            (namespaces(|n| n.ipc = 2), "hostIPC: "),
            (pod(node, "web", MIB), "resources.limits.memory: 1048576 bytes"),
        ] {
            let refused = run(node, &config).await.unwrap_err();
            assert!(refused.message().contains(words), "{words}: {refused:?}");
        }
        let config = pod(node, "web", 128 * MIB);
        let id = run(node, &config).await.unwrap();
        let device =
            v1::Device { container_path: "/dev/x".into(), host_path: "/dev/null".into(), permissions: "r".into() };
        let mut containers = vec![(script("device", LONG), "devices: /dev/null is a device of the host")];
        containers[0].0.devices = vec![device];
        let mut path = script("path", LONG);
        path.mounts = vec![mount(Path::new("/etc"), "/v")];
        containers.push((path, "/etc is a folder or file of the machine (hostPath)"));
        for (container, words) in containers {
            let refused = node.create(&id, &config, container).await.unwrap_err();
            assert!(refused.message().contains(words), "{words}: {refused:?}");
        }
        assert_eq!(node.containers().await.len(), 0);
    });
}

#[test]
fn without_kvm_and_without_leave_to_emulate_nothing_runs_and_the_status_says_why() {
    let _turn = turn();
    let config = handler().replace("allow_emulation = true", "");
    node_with(Options { config, ..Options::default() }, async |node| {
        let refused = match run(node, &pod(node, "web", 128 * MIB)).await {
            Err(refused) => refused,
            // KVM works here: there is nothing to refuse.
            Ok(_) => return,
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let told = refused.message();
        assert!(told.contains("KVM cannot be used here: ") && told.contains("allow_emulation"), "{told}");
        let status = node.runtime().status(v1::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        let condition = status.conditions.iter().find(|condition| condition.r#type == "HandlersReady").unwrap();
        assert!(!condition.status && condition.message.contains("allow_emulation"), "{condition:?}");
        assert!(status.conditions.iter().all(|other| other.status || other.r#type == "HandlersReady"));
    });
}
