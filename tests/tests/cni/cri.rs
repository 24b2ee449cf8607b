//! CNI as a CRI client sees it.

use std::fs;
use std::path::Path;

use coracle_tests::cri::{Node, Options, node_with};
use k8s_cri::v1;

use crate::common::REAL;

/// A scratch place with a folder of configurations, and a server's settings that name it.
fn place() -> (tempfile::TempDir, Options) {
    let dir = tempfile::Builder::new().prefix("coracle-cni.").tempdir().expect("make a scratch place");
    fs::create_dir(dir.path().join("conf")).expect("make a folder");
    let config = format!(
        "[network]\nembedded = false\ncni_conf_dir = {:?}\ncni_bin_dirs = [{REAL:?}]\n",
        dir.path().join("conf")
    );
    (dir, Options { config, ..Options::default() })
}

/// A network of both families, with a plugin more that is run.
fn dual(dir: &Path, more: &str) {
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "testnet", "plugins": [
            {{"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "ipam": {{"type": "host-local",
              "dataDir": "{}", "ranges": [[{{"subnet": "fd77::/64"}}], [{{"subnet": "10.77.0.0/24"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}{more}]}}"#,
        dir.join("data").display()
    );
    fs::write(dir.join("conf/10-test.conflist"), text).expect("write a configuration");
}

async fn network_ready(node: &Node) -> (bool, String, String) {
    let status =
        node.runtime().status(v1::StatusRequest { verbose: false }).await.unwrap().into_inner().status.unwrap();
    let condition = status.conditions.into_iter().find(|c| c.r#type == "NetworkReady").unwrap();
    (condition.status, condition.reason, condition.message)
}

#[test]
fn a_node_is_ready_when_its_network_is_and_pods_have_addresses_of_both_families() {
    let (dir, options) = place();
    node_with(options, async |node| {
        let (ready, reason, message) = network_ready(node).await;
        assert!(!ready && reason == "NetworkPluginNotReady", "{reason}: {message}");
        assert!(message.contains("no CNI network configuration is in"), "{message}");
        let refused = node.run_pod(&node.pod("early")).await.unwrap_err();
        assert!(refused.message().contains("the pod network is not ready"), "{refused:?}");
        for more in ["", r#", {"type": "tuning"}"#] {
            dual(dir.path(), more);
            assert_eq!(network_ready(node).await, (true, String::new(), String::new()));
            let pod = node.run_pod(&node.pod("web")).await.unwrap();
            let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
            let status = node.runtime().pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
            let network = status.network.unwrap();
            assert!(network.ip.starts_with("10.77.0."), "{network:?}");
            assert!(network.additional_ips[0].ip.starts_with("fd77::"), "{network:?}");
            for _ in 0..2 {
                let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
                node.runtime().stop_pod_sandbox(request).await.unwrap();
            }
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod };
            node.runtime().remove_pod_sandbox(request).await.unwrap();
            let leases = fs::read_dir(dir.path().join("data/testnet")).unwrap().flatten();
            let held = leases.filter(|e| {
                e.file_name().to_string_lossy().contains("77:") || e.file_name().to_string_lossy().starts_with("10.")
            });
            assert_eq!(held.count(), 0);
        }
    });
}

#[test]
fn a_server_that_comes_after_a_kill_ends_the_attachments_of_pods_that_are_gone() {
    let (dir, options) = place();
    dual(dir.path(), r#", {"type": "tuning"}"#);
    node_with(options, async |node| {
        let pod = node.run_pod(&node.pod("web")).await.unwrap();
        let pin = format!("/run/netns/coracle-{pod}");
        assert!(Path::new(&pin).exists());
        node.kill().await;
        // What a kill in the middle of a removal may leave: the attachment without its pod.
        let supervisor = node.machine().supervisor(&pod).unwrap();
        nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
        node.start().await;
        coracle_tests::machine::until("the attachment to be undone", || !Path::new(&pin).exists());
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod };
        node.runtime().remove_pod_sandbox(request).await.unwrap();
    });
}
