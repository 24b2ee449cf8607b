//! Requests that make no sense: the code that containerd and CRI-O have for it, a message that names the field, and
//! nothing half done.

use coracle_tests::cri::{LONG, node, script};
use k8s_cri::v1;
use tonic::{Code, Status};

/// The code is one of these, and the message has the words.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code], words: &str) {
    let status = answer.expect_err(words);
    assert!(codes.contains(&status.code()), "{words}: {status}");
    assert!(status.message().contains(words), "wanted {words:?}: {status}");
}

#[test]
fn a_pod_that_cannot_be_is_refused_by_its_field() {
    node(async |node| {
        let mut runtime = node.runtime();
        let none = runtime.run_pod_sandbox(v1::RunPodSandboxRequest::default()).await;
        refused(none, &[Code::InvalidArgument], "config");
        type Change = fn(&mut v1::PodSandboxConfig);
        let cases: [(Change, &str); 6] = [
            (|c| c.metadata = None, "metadata"),
            (|c| c.metadata.as_mut().unwrap().name.clear(), "metadata.name"),
            (|c| c.metadata.as_mut().unwrap().name = "a/b".into(), "name"),
            (|c| c.hostname = "h".repeat(65), "hostname"),
            (|c| c.log_directory = "relative".into(), "log_directory"),
            (
                |c| {
                    c.port_mappings =
                        vec![v1::PortMapping { host_port: 70_000, container_port: 1, ..Default::default() }]
                },
                "port_mappings",
            ),
        ];
        for (change, words) in cases {
            let mut config = node.pod("web");
            change(&mut config);
            refused(node.run_pod(&config).await, &[Code::InvalidArgument], words);
        }
        let unknown = v1::RunPodSandboxRequest { config: Some(node.pod("web")), runtime_handler: "kata".into() };
        refused(runtime.run_pod_sandbox(unknown).await, &[Code::InvalidArgument, Code::NotFound], "known are coracle");
        assert!(node.pods().await.is_empty());
        assert_eq!(node.left(), Vec::<String>::new());
    });
}

#[test]
fn a_container_that_cannot_be_is_refused_by_its_field() {
    node(async |node| {
        let config = node.pod("web");
        let nowhere = "f".repeat(64);
        refused(node.create(&nowhere, &config, script("main", "true")).await, &[Code::NotFound], "ffffffff");
        let pod = node.run_pod(&config).await.unwrap();
        type Change = fn(&mut v1::ContainerConfig);
        let cases: [(Change, Code, &str); 6] = [
            (|c| c.metadata = None, Code::InvalidArgument, "metadata"),
            (|c| c.metadata.as_mut().unwrap().name.clear(), Code::InvalidArgument, "metadata.name"),
            (|c| c.image = None, Code::InvalidArgument, "image"),
            (|c| c.image.as_mut().unwrap().image = "localhost/none:1".into(), Code::NotFound, "localhost/none:1"),
            (|c| c.log_path = "../outside".into(), Code::InvalidArgument, "log_path"),
            (
                |c| {
                    c.mounts = vec![v1::Mount {
                        container_path: "relative".into(),
                        host_path: "/tmp".into(),
                        ..Default::default()
                    }]
                },
                Code::InvalidArgument,
                "mounts[0]",
            ),
        ];
        for (change, code, words) in cases {
            let mut wanted = script("main", "true");
            change(&mut wanted);
            refused(node.create(&pod, &config, wanted).await, &[code], words);
        }
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn what_is_unknown_or_makes_no_sense_is_told() {
    node(async |node| {
        let mut runtime = node.runtime();
        let nowhere = "f".repeat(64);
        let (_, id) = node.launch_pod("web", LONG).await;
        refused(node.start_container(&nowhere).await, &[Code::NotFound], "ffffffff");
        refused(node.container_status(&nowhere).await, &[Code::NotFound], "ffffffff");
        refused(node.pod_status(&nowhere).await, &[Code::NotFound], "ffffffff");
        refused(node.container_status("").await, &[Code::InvalidArgument, Code::NotFound], "container");
        refused(node.stop_container(&id, -1).await, &[Code::InvalidArgument], "timeout");
        let exec = |container: &str, cmd: &[&str]| v1::ExecSyncRequest {
            container_id: container.into(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 0,
        };
        refused(runtime.exec_sync(exec(&nowhere, &["true"])).await, &[Code::NotFound], "ffffffff");
        refused(runtime.exec_sync(exec(&id, &[])).await, &[Code::InvalidArgument], "cmd");
        let update = v1::UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
        refused(runtime.update_container_resources(update).await, &[Code::InvalidArgument], "linux");
        let mut huge = node.pod("huge");
        huge.labels.insert("key".into(), "v".repeat(17 << 20));
        refused(node.run_pod(&huge).await, &[Code::OutOfRange, Code::ResourceExhausted], "large");
        // The connection has survived it.
        assert_eq!(node.pods().await.len(), 1);
    });
}
