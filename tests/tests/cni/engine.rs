//! Whole pods on CNI networks.

use std::fs;
use std::path::Path;

use coracle_engine::net::NetConfig;
use coracle_engine::{EngineConfig, Finding, IdMapping, SandboxConfig, UserNamespace};
use coracle_tests::machine::sh;
use coracle_tests::rig::{Rig, rig_with, script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::REAL;

/// Folders of configurations and plugins, and an engine's settings that name them.
fn place(native: bool, bins: &[&Path]) -> (tempfile::TempDir, EngineConfig) {
    let dir = tempfile::Builder::new().prefix("coracle-cni.").tempdir().expect("make a scratch place");
    fs::create_dir(dir.path().join("conf")).expect("make a folder");
    let network = NetConfig {
        cni_conf_dir: dir.path().join("conf"),
        cni_bin_dirs: bins.iter().map(Into::into).collect(),
        embedded: false,
        native,
        ..NetConfig::default()
    };
    (dir, EngineConfig { network, ..EngineConfig::default() })
}

fn bridge(dir: &Path, more: &str) {
    let data = dir.join("data");
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "testnet", "plugins": [
            {{"type": "bridge", "bridge": "cni9", "isGateway": true, "dns": {{"nameservers": ["10.77.0.53"], "search": ["a.test"]}},
              "ipam": {{"type": "host-local", "dataDir": "{}", "subnet": "10.77.0.0/24", "routes": [{{"dst": "0.0.0.0/0"}}]}}}}{more}]}}"#,
        data.display()
    );
    fs::write(dir.join("conf/10-test.conflist"), text).expect("write a configuration");
}

/// A pod as a kubelet makes it.
fn pod(rig: &Rig, name: &str) -> SandboxConfig {
    SandboxConfig { exclusive_name: false, ..rig.pod(name) }
}

fn held(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("data/testnet")).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).filter(|name| name.starts_with("10.")).collect()
}

#[test]
fn a_pod_has_the_networks_address_and_resolver_and_gives_all_back() {
    for native in [true, false] {
        let (dir, config) = place(native, &[REAL.as_ref()]);
        bridge(dir.path(), "");
        rig_with(config, async |rig| {
            let web = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
            assert_eq!(web.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.2"]);
            let look = "cat /etc/resolv.conf; grep web /etc/hosts; ip -o addr show eth0; ip route";
            let (_, log) = rig.run(&web.id, script("look", look)).await;
            for part in [
                "search a.test\nnameserver 10.77.0.53\n",
                "10.77.0.2\tweb",
                "inet 10.77.0.2/24",
                "default via 10.77.0.1",
            ] {
                assert!(log.contains(part), "{part}: {log}");
            }
            // Its own settings win over the network's.
            let dns = Some(coracle_engine::DnsConfig { servers: vec!["192.0.2.53".into()], ..Default::default() });
            let own = rig.engine.run_sandbox(SandboxConfig { dns, ..pod(rig, "own") }).await.unwrap();
            let (_, log) = rig.run(&own.id, script("look", "cat /etc/resolv.conf")).await;
            assert_eq!(log, "nameserver 192.0.2.53\n");
            assert!(rig.engine.doctor().await.unwrap().is_empty());
            fs::remove_file(dir.path().join("conf/10-test.conflist")).unwrap();
            // Whoever comes later, and with other settings, undoes what was done.
            let other = rig.another_with(&EngineConfig::default());
            other.stop_sandbox(&web.id).await.unwrap();
            assert_eq!(held(dir.path()), ["10.77.0.3"]);
            rig.engine.remove_sandbox(&own.id).await.unwrap();
            assert!(held(dir.path()).is_empty());
            let refused = rig.engine.run_sandbox(pod(rig, "late")).await.unwrap_err().to_string();
            assert!(refused.contains("the pod network is not ready: no CNI network configuration"), "{refused}");
        });
    }
}

#[test]
fn a_pod_in_a_user_namespace_is_attached_the_same_way() {
    for native in [true, false] {
        let (dir, config) = place(native, &[REAL.as_ref()]);
        bridge(dir.path(), "");
        rig_with(config, async |rig| {
            let all = vec![IdMapping { container_id: 0, host_id: 1_000_000, length: 65_536 }];
            let user_namespace = Some(UserNamespace { uids: all.clone(), gids: all });
            let web = rig.engine.run_sandbox(SandboxConfig { user_namespace, ..pod(rig, "web") }).await.unwrap();
            let (exit, log) = rig.run(&web.id, script("look", "ip -o addr show eth0; ip link show lo")).await;
            assert!(exit.code == 0 && log.contains("inet 10.77.0.2/24") && log.contains("LOOPBACK,UP"), "{log}");
            rig.engine.remove_sandbox(&web.id).await.unwrap();
            assert!(held(dir.path()).is_empty());
        });
    }
}

#[test]
fn a_plugin_that_fails_is_the_pods_error_and_nothing_is_left() {
    let (dir, config) = place(true, &[REAL.as_ref()]);
    bridge(dir.path(), r#", {"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}}"#);
    rig_with(config, async |rig| {
        let error = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap_err().to_string();
        assert!(
            error.contains("CNI network testnet: plugin tuning: ADD: ") && error.contains("no_such_thing"),
            "{error}"
        );
        assert!(held(dir.path()).is_empty());
        assert_eq!(rig.left(), Vec::<String>::new());
    });
}

#[test]
fn a_pod_whose_supervisor_was_killed_is_detached_in_its_own_namespace() {
    let (dir, config) = place(false, &[REAL.as_ref()]);
    bridge(dir.path(), r#", {"type": "portmap", "capabilities": {"portMappings": true}}"#);
    rig_with(config, async |rig| {
        let web = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let pin = format!("/run/netns/coracle-{}", web.id);
        let inside = || sh(&format!("nsenter --net={pin} ip -o link show eth0"));
        assert!(inside().contains("eth0"));
        let pid = Pid::from_raw(web.supervisor.unwrap());
        // What doctor says while the pod lives but its address is gone.
        sh(&format!("nsenter --net={pin} ip addr flush dev eth0"));
        let found = rig.engine.doctor().await.unwrap();
        assert!(
            matches!(&found[..], [Finding::Trouble { what }] if what.contains("pod web") && what.contains("CHECK")),
            "{found:?}"
        );
        kill(pid, Signal::SIGKILL).unwrap();
        coracle_tests::machine::until("the supervisor to be gone", || {
            !Path::new(&format!("/proc/{pid}/ns/net")).exists()
        });
        assert!(inside().contains("eth0"), "the namespace outlives its pod for the plugins");
        let done = rig.engine.gc().await.unwrap();
        assert!(done.iter().all(|action| action.error.is_none()) && !done.is_empty(), "{done:?}");
        assert!(held(dir.path()).is_empty() && !Path::new(&pin).exists());
        assert!(!sh("ip -o link").contains("veth"), "its link has gone");
    });
}

#[test]
fn local_pods_have_the_embedded_network_unless_the_configuration_says_otherwise() {
    let (dir, mut config) = place(true, &[]);
    bridge(dir.path(), "");
    rig_with(config.clone(), async |rig| {
        let local = rig.engine.run_sandbox(rig.pod("local")).await.unwrap();
        assert!(local.ips[0].to_string().starts_with("10.88."), "{:?}", local.ips);
    });
    config.network.cni_for_local_pods = true;
    rig_with(config, async |rig| {
        let local = rig.engine.run_sandbox(rig.pod("local")).await.unwrap();
        assert_eq!(local.ips[0].to_string(), "10.77.0.2");
    });
}
