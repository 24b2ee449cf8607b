//! A pod's life through the CRI: made, started, looked at, stopped, removed, each of it twice. Our server and containerd alike.

use coracle_tests::cri::{IMAGE, LONG, log_text, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use tonic::Code;

use crate::node;

#[test]
fn a_pod_lives_and_its_end_is_told_with_code_and_reason() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let status = node.pod_status(&pod).await.unwrap();
        assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
        assert_eq!(status.metadata, config.metadata);
        assert!(!status.network.unwrap().ip.is_empty());

        let (ended, log) = node.run_to_end(&pod, &config, script("main", "echo out; echo err >&2; exit 3")).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"));
        let mut lines: Vec<_> = log.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"]);
        assert!(ended.created_at > 0 && ended.started_at >= ended.created_at && ended.finished_at >= ended.created_at);
        // containerd notes a start when it has heard of it, which may be after the end.
        assert!(node.is_containerd() || ended.finished_at >= ended.started_at, "{ended:?}");
        assert_eq!(ended.image.unwrap().image, IMAGE);
        assert_eq!(ended.log_path, node.log_dir("web").join("main.log").display().to_string());

        let (ended, _) = node.run_to_end(&pod, &config, script("well", "exit 0")).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    });
}

#[test]
fn stop_and_remove_may_be_repeated_and_forget_what_is_unknown() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let log = node.log_dir("web").join("main.log");
        until("the container to be ready", || log_text(&log).contains("ready"));
        for _ in 0..2 {
            node.stop_container(&container, 5).await.unwrap();
            assert_eq!(node.exited(&container).await.exit_code, 0);
        }
        for _ in 0..2 {
            node.remove_container(&container).await.unwrap();
        }
        assert_eq!(node.container_status(&container).await.unwrap_err().code(), Code::NotFound);
        for _ in 0..2 {
            node.stop_pod(&pod).await.unwrap();
            assert_eq!(node.pod_status(&pod).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
        }
        for _ in 0..2 {
            node.remove_pod(&pod).await.unwrap();
        }
        assert_eq!(node.pod_status(&pod).await.unwrap_err().code(), Code::NotFound);
        assert!(node.pods().await.is_empty() && node.containers().await.is_empty());
    });
}

#[test]
fn removing_a_pod_takes_its_running_containers_along_and_leaves_their_logs() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let log = node.container_status(&container).await.unwrap().log_path;
        node.remove_pod(&pod).await.unwrap();
        assert!(node.containers().await.is_empty());
        assert_eq!(node.container_status(&container).await.unwrap_err().code(), Code::NotFound);
        log_text(log.as_ref());
    });
}

#[test]
fn lists_are_filtered_by_prefix_state_label_and_pod() {
    node(async |node| {
        let mut config = node.pod("a");
        config.labels.insert("app".into(), "a".into());
        config.annotations.insert("note".into(), "line one\nline two".into());
        let pod = node.run_pod(&config).await.unwrap();
        let mut labelled = script("main", LONG);
        labelled.labels.insert("app".into(), "a".into());
        let running = node.launch(&pod, &config, labelled).await;
        let created = node.create(&pod, &config, script("other", LONG)).await.unwrap();
        let (other, _) = node.launch_pod("b", LONG).await;
        node.stop_pod(&other).await.unwrap();

        let pods = async |filter: v1::PodSandboxFilter| {
            let request = v1::ListPodSandboxRequest { filter: Some(filter) };
            let items = node.runtime().list_pod_sandbox(request).await.unwrap().into_inner().items;
            items.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() };
        let app = || [("app".to_owned(), "a".to_owned())].into();
        assert_eq!(
            pods(v1::PodSandboxFilter { state: Some(ready), ..Default::default() }).await,
            std::slice::from_ref(&pod)
        );
        assert_eq!(
            pods(v1::PodSandboxFilter { label_selector: app(), ..Default::default() }).await,
            std::slice::from_ref(&pod)
        );
        assert_eq!(
            pods(v1::PodSandboxFilter { id: other[..12].into(), ..Default::default() }).await,
            std::slice::from_ref(&other)
        );
        assert_eq!(node.pods().await.len(), 2);
        let listed = node.pods().await.into_iter().find(|listed| listed.id == pod).unwrap();
        assert_eq!((listed.labels, listed.annotations), (config.labels.clone(), config.annotations.clone()));

        let containers = async |filter: v1::ContainerFilter| {
            let request = v1::ListContainersRequest { filter: Some(filter) };
            let items = node.runtime().list_containers(request).await.unwrap().into_inner().containers;
            items.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerCreated.into() };
        assert_eq!(
            containers(v1::ContainerFilter { state: Some(state), ..Default::default() }).await,
            std::slice::from_ref(&created)
        );
        let of_a = v1::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() };
        // containerd's list has no order.
        let (mut listed, mut wanted) = (containers(of_a).await, [running.clone(), created]);
        listed.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(listed, wanted);
        let by_label = v1::ContainerFilter { label_selector: app(), ..Default::default() };
        assert_eq!(containers(by_label).await, [running]);
    });
}

#[test]
fn a_container_that_cannot_be_made_says_why_and_leaves_its_name_free() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut missing = script("main", LONG);
        missing.command = vec!["/no/such/program".into()];
        // Runtimes differ in when they look; kubelet shows the words of either call.
        let error = match node.create(&pod, &config, missing).await {
            Err(error) => error,
            Ok(id) => {
                let error = node.start_container(&id).await.unwrap_err();
                let status = node.container_status(&id).await.unwrap();
                assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
                node.remove_container(&id).await.unwrap();
                error
            }
        };
        assert!(error.message().contains("/no/such/program"), "{error:?}");
        assert!(node.containers().await.is_empty());
        let mut nobody = script("main", LONG);
        let security =
            v1::LinuxContainerSecurityContext { run_as_username: "nobody-here".into(), ..Default::default() };
        nobody.linux = Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() });
        let error = node.create(&pod, &config, nobody).await.unwrap_err();
        // The second are containerd's words.
        let words = ["nobody-here", "no users found"];
        assert!(words.iter().any(|words| error.message().contains(words)), "{error:?}");
        // The name is free: nothing dead holds it.
        node.launch(&pod, &config, script("main", LONG)).await;
        assert_eq!(node.containers().await.len(), 1);
    });
}
