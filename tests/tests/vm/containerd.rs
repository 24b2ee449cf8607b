//! Pods of containerd in virtual machines: our shim with `Vm = true` among its runtime options.

use crate::common::{kernel_dir, turn};
use coracle_tests::containerd::Containerd;
use coracle_tests::cri::{LONG, Node, Options, node_with, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of runtime options in a folder, with more of them.
fn options(folder: &Path, more: &str) -> PathBuf {
    let file = folder.join("vm.toml");
    let text = format!("Vm = true\nVmKernelDir = {:?}\nVmAllowEmulation = true\nVmMemory = 192\n{more}", kernel_dir());
    fs::write(&file, text).expect("write the options");
    file
}

#[test]
fn ctr_runs_containers_in_machines() {
    let _turn = turn();
    let containerd = Containerd::new("");
    let allowed = containerd.path("allowed");
    fs::create_dir(&allowed).expect("make a folder");
    fs::write(allowed.join("word"), "of the host\n").expect("write a file");
    let file = options(&containerd.path(""), &format!("VmHostPaths = [{allowed:?}]\n")).display().to_string();
    let run = |flags: &[&str], name: &str, script: &str, input: &str| {
        let args = containerd.run_args(&[&["--runtime-config-path", &file], flags].concat(), name, script);
        containerd.ctr_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), input)
    };
    let said = run(&["--rm"], "once", "read line; echo got $line; echo err >&2; cat /proc/version; exit 3", "typed\n");
    assert_eq!((said.code, said.out.lines().next()), (3, Some("got typed")), "{said:?}");
    assert!(said.err.contains("err\n"), "{said:?}");
    let host = fs::read_to_string("/proc/version").unwrap();
    assert_ne!(said.out.lines().nth(1), host.lines().next(), "a kernel of its own");

    run(&["--detach", "--null-io"], "web", "trap 'exit 5' TERM; while :; do sleep 0.1; done", "").ok();
    let (status, pid) = containerd.task("web").unwrap();
    assert_eq!((status.as_str(), containerd.supervisors()[0].as_raw()), ("RUNNING", pid), "the supervisor's pid");
    let said = containerd.exec("web", "cat; exit 4", "in\n");
    assert_eq!((said.code, said.out.as_str()), (4, "in\n"));
    assert!(containerd.ctr(&["tasks", "metrics", "web"]).ok().contains("memory"));
    containerd.ctr(&["tasks", "pause", "web"]).ok();
    containerd.wait_status("web", "PAUSED");
    containerd.ctr(&["tasks", "resume", "web"]).ok();
    containerd.ctr(&["tasks", "kill", "web"]).ok();
    containerd.wait_status("web", "STOPPED");
    let ended = containerd.ctr(&["tasks", "delete", "web"]);
    assert!(ended.err.contains("exit code 5") && ended.code == 0, "{ended:?}");
    containerd.ctr(&["containers", "delete", "web"]).ok();

    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", allowed.display());
    run(&["--rm", "--mount", &mount], "shares", "cat /mnt/word; echo inside > /mnt/said", "").ok();
    assert_eq!(fs::read_to_string(allowed.join("said")).unwrap(), "inside\n");
    let mount = "type=bind,src=/etc,dst=/mnt,options=rbind:ro";
    let refused = run(&["--rm", "--mount", mount], "no", "true", "");
    assert!(
        refused.err.contains("/etc is a folder or file of the machine (hostPath)") && refused.code != 0,
        "{refused:?}"
    );
    containerd.assert_clean();
}

async fn exec(node: &Node, container: &str, line: &str) -> String {
    let cmd = ["sh", "-c", line].map(String::from).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout: 20 };
    let answer = node.runtime().exec_sync(request).await.unwrap().into_inner();
    assert_eq!(answer.exit_code, 0, "{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

#[test]
fn pods_of_the_cri_are_in_machines() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let table = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.vm";
    let config = format!(
        "[{table}]\nruntime_type = \"io.containerd.coracle.v1\"\n[{table}.options]\nConfigPath = {:?}\n",
        options(folder.path(), "")
    );
    node_with(Options { config, ..Options::containerd() }, async |node| {
        let config = node.pod("inside");
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "vm".into() };
        let pod = node.runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        let ip = node.pod_status(&pod).await.unwrap().network.unwrap().ip;
        let (ended, log) = node.run_to_end(&pod, &config, script("short", "hostname; exit 3")).await;
        assert_eq!((ended.exit_code, log.as_str()), (3, "inside\n"));
        let one = node.launch(&pod, &config, script("one", LONG)).await;
        let two = node.launch(&pod, &config, script("two", LONG)).await;
        assert!(exec(node, &one, "ip -4 addr show eth0").await.contains(&ip), "the network that the plugins made");
        assert_eq!(exec(node, &two, "cat /etc/hostname; hostname").await, "inside\ninside\n");
        exec(node, &one, "echo shared > /dev/shm/file").await;
        assert_eq!(exec(node, &two, "cat /dev/shm/file").await, "shared\n");
        node.stop_container(&one, 20).await.unwrap();
        assert_eq!(node.exited(&one).await.exit_code, 0, "its TERM was heard");
        node.stop_pod(&pod).await.unwrap();
        assert_eq!(node.exited(&two).await.exit_code, 137);
        node.remove_pod(&pod).await.unwrap();
        until("the supervisor to be gone", || node.containerd().supervisors().is_empty());
    });
}
