//! containerd's CRI plugin with our supervisor as its handler: what is the handler's share, and handlers side by side.

use std::collections::BTreeMap;
use std::fs;

use coracle_tests::containerd::HANDLERS;
use coracle_tests::cri::{LONG, Node, log_text, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use nix::unistd::Pid;
use tonic::Status;

use crate::node;

async fn run(node: &Node, config: &v1::PodSandboxConfig, handler: &str) -> Result<String, Status> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
    Ok(node.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn exec(node: &Node, container: &str, line: &str) -> v1::ExecSyncResponse {
    let cmd = ["sh", "-c", line].map(String::from).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout: 20 };
    node.runtime().exec_sync(request).await.unwrap().into_inner()
}

/// The supervisors that live, by their programs.
fn programs(node: &Node) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let name = |pid: &Pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(program).rsplit('/').next().unwrap_or_default().to_owned()
    };
    for pid in node.containerd().supervisors() {
        *found.entry(name(&pid)).or_default() += 1;
    }
    found
}

#[test]
fn pods_of_two_handlers_run_side_by_side_each_with_one_supervisor() {
    node(async |node| {
        let mut made = Vec::new();
        for handler in HANDLERS {
            let config = node.pod(&format!("of-{handler}"));
            let pod = run(node, &config, handler).await.unwrap();
            assert_eq!(node.pod_status(&pod).await.unwrap().runtime_handler, handler);
            let both = ["one", "two"].map(|name| script(name, LONG));
            let mut containers = Vec::new();
            for container in both {
                containers.push(node.launch(&pod, &config, container).await);
            }
            made.push((handler, config, pod, containers));
        }
        let wanted = [("containerd-shim-coracle-v1", 1), ("containerd-shim-runc-v2", 1)];
        assert_eq!(programs(node), wanted.map(|(name, count)| (name.to_owned(), count)).into());
        for (handler, config, pod, containers) in made {
            for container in &containers {
                let said = exec(node, container, "hostname; echo err >&2; exit 7").await;
                let wanted = (format!("of-{handler}\n").into_bytes(), b"err\n".to_vec(), 7);
                assert_eq!((said.stdout, said.stderr, said.exit_code), wanted);
            }
            let (ended, log) = node.run_to_end(&pod, &config, script("short", "hostname; exit 3")).await;
            assert_eq!((ended.exit_code, log), (3, format!("of-{handler}\n")));
            node.stop_container(&containers[0], 20).await.unwrap();
            assert_eq!(node.exited(&containers[0]).await.reason, "Completed", "its TERM was heard");
            // A pod's stop does not wait for its containers.
            node.stop_pod(&pod).await.unwrap();
            assert_eq!(node.exited(&containers[1]).await.exit_code, 137);
            node.remove_pod(&pod).await.unwrap();
        }
        until("the supervisors to be gone", || node.containerd().supervisors().is_empty());
    });
}

#[test]
fn a_containerd_that_starts_again_finds_its_pods() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        for kill in [false, true] {
            let before = node.containerd().supervisors();
            match kill {
                true => node.kill().await,
                false => node.stop().await,
            }
            node.start().await;
            assert_eq!(node.containerd().supervisors(), before, "the same one");
            assert_eq!(node.pod_status(&pod).await.unwrap().state(), v1::PodSandboxState::SandboxReady);
            let status = node.container_status(&container).await.unwrap();
            assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
            assert_eq!(exec(node, &container, "echo still here").await.stdout, b"still here\n");
        }
        let (ended, log) = node.run_to_end(&pod, &node.pod("web"), script("more", "echo more; exit 2")).await;
        assert_eq!((ended.exit_code, log.as_str()), (2, "more\n"));
        node.stop_container(&container, 10).await.unwrap();
        assert_eq!(node.exited(&container).await.exit_code, 0);
    });
}

#[test]
fn a_containerd_that_was_killed_loses_no_exit() {
    node(async |node| {
        let volume = node.path("volume");
        fs::create_dir(&volume).unwrap();
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut waits = script("main", "until [ -e /vol/go ]; do sleep 0.05; done; touch /vol/gone; exit 9");
        waits.mounts = vec![v1::Mount {
            host_path: volume.display().to_string(),
            container_path: "/vol".into(),
            ..Default::default()
        }];
        let container = node.launch(&pod, &config, waits).await;
        node.kill().await;
        fs::write(volume.join("go"), "").unwrap();
        until("the container to end", || volume.join("gone").exists());
        node.start().await;
        assert_eq!(node.exited(&container).await.exit_code, 9);
    });
}

#[test]
fn what_is_killed_for_want_of_memory_is_told_as_such() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut hungry = script("main", "");
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
        hungry.command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"].map(String::from).to_vec();
        hungry.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() });
        let (ended, _) = node.run_to_end(&pod, &config, hungry).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    });
}

#[test]
fn limits_change_and_use_is_counted_while_a_container_runs() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let resources =
            |memory: i64| v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
        let mut main = script("main", LONG);
        main.linux.get_or_insert_default().resources = Some(resources(100 << 20));
        let id = node.launch(&pod, &config, main).await;
        let limit = async || {
            let line = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
            String::from_utf8(exec(node, &id, line).await.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(limit().await, (100 << 20).to_string());
        let linux = Some(resources(150 << 20));
        let update = v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
        node.runtime().update_container_resources(update).await.unwrap();
        assert_eq!(limit().await, (150 << 20).to_string());
        let request = v1::ContainerStatsRequest { container_id: id.clone() };
        let stats = node.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
        assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    });
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let cmd = ["sleep", "1000"].map(String::from).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 };
        let error = node.runtime().exec_sync(request).await.unwrap_err();
        assert!(error.message().contains("timeout"), "{error}");
        assert_eq!(exec(node, &id, "ps -o args | grep -c '^sleep 1000$'; true").await.stdout, b"0\n");
        let log = node.container_status(&id).await.unwrap().log_path;
        assert_eq!(log_text(log.as_ref()), "ready\n");
    });
}
