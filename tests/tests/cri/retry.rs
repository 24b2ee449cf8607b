//! Clients that go away and come back, and supervisors that do not answer: nothing is left half made, nobody else waits.

use std::time::Duration;

use coracle_tests::cri::{LONG, node, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use tonic::{Code, Request};

#[test]
fn a_pod_whose_client_went_away_is_finished_and_found_by_its_repetition() {
    node(async |node| {
        let config = node.pod("web");
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let mut given_up = Request::new(request);
        given_up.set_timeout(Duration::from_millis(3));
        // Whether it was quick enough or not, the pod is the same one afterwards.
        let _ = node.runtime().run_pod_sandbox(given_up).await;
        let mut again = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let mut runtime = node.runtime();
            let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            again.spawn(async move { runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id });
        }
        let ids = again.join_all().await;
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        node.machine().learn_ids();
        assert_eq!(node.pods().await.len(), 1);

        let create = || v1::CreateContainerRequest {
            pod_sandbox_id: ids[0].clone(),
            config: Some(script("main", LONG)),
            sandbox_config: Some(config.clone()),
        };
        let mut given_up = Request::new(create());
        given_up.set_timeout(Duration::from_millis(2));
        let _ = node.runtime().create_container(given_up).await;
        let mut again = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (mut runtime, request) = (node.runtime(), create());
            again.spawn(async move { runtime.create_container(request).await.unwrap().into_inner().container_id });
        }
        let containers = again.join_all().await;
        assert!(containers.iter().all(|id| *id == containers[0]), "{containers:?}");
        assert_eq!(node.containers().await.len(), 1);
    });
}

#[test]
fn a_stopped_supervisor_delays_no_list_no_status_and_no_other_pod() {
    node(async |node| {
        let (stuck, container) = node.launch_pod("stuck", LONG).await;
        let supervisor = node.machine().supervisor(&stuck).unwrap();
        kill(supervisor, Signal::SIGSTOP).unwrap();
        // Somebody waits for it meanwhile.
        let mut runtime = node.runtime();
        let id = container.clone();
        let waiting = tokio::spawn(async move {
            runtime.stop_container(v1::StopContainerRequest { container_id: id, timeout: 1 }).await
        });
        assert_eq!(node.pods().await.len(), 1);
        assert_eq!(node.containers().await.len(), 1);
        assert_eq!(node.pod_status(&stuck).await.unwrap().state(), v1::PodSandboxState::SandboxReady);
        let shown = node.container_status(&container).await.unwrap();
        assert_eq!(shown.state(), v1::ContainerState::ContainerRunning);
        assert!(!waiting.is_finished(), "all of this was told while the other call still waited");
        let (other, _) = node.launch_pod("other", LONG).await;
        node.stop_pod(&other).await.unwrap();
        node.remove_pod(&other).await.unwrap();
        // The stop fails in time or the pod is taken down: what is asked for a hung pod itself comes to an end.
        let _ = waiting.await.unwrap();
        node.stop_pod(&stuck).await.unwrap();
        assert_eq!(node.exited(&container).await.state(), v1::ContainerState::ContainerExited);
        node.remove_pod(&stuck).await.unwrap();
    });
}

#[test]
fn a_container_whose_supervisor_was_killed_is_shown_as_ended_at_one_time() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        kill(node.machine().supervisor(&pod).unwrap(), Signal::SIGKILL).unwrap();
        let first = node.exited(&container).await;
        assert_eq!((first.exit_code, first.reason.as_str()), (255, "Unknown"));
        assert!(first.finished_at > first.started_at, "{first:?}");
        assert_eq!(node.container_status(&container).await.unwrap(), first);
        assert_eq!(node.pod_status(&pod).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
        node.stop_pod(&pod).await.unwrap();
        assert_eq!(node.container_status(&container).await.unwrap().finished_at, first.finished_at);
    });
}

#[test]
fn a_new_server_finds_what_the_old_one_ran() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let before = node.container_status(&container).await.unwrap();
        node.restart().await;
        assert_eq!(node.container_status(&container).await.unwrap(), before);
        assert_eq!(node.run_pod(&node.pod("web")).await.unwrap(), pod);
        node.stop_container(&container, 0).await.unwrap();
        assert_eq!(node.exited(&container).await.exit_code, 137);
    });
}

#[test]
fn verbose_statuses_are_json_with_what_people_look_for() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let json = |info: std::collections::HashMap<String, String>| -> serde_json::Value {
            serde_json::from_str(&info["info"]).unwrap()
        };
        let request = v1::ContainerStatusRequest { container_id: container.clone(), verbose: true };
        let info = json(node.runtime().container_status(request).await.unwrap().into_inner().info);
        let pid = info["pid"].as_i64().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(info["sandboxID"], pod.as_str());
        assert_eq!(info["config"]["metadata"]["name"], "main");
        assert_eq!(info["runtimeSpec"]["process"]["args"][0], "/bin/sh");
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
        let answer = node.runtime().pod_sandbox_status(request).await.unwrap().into_inner();
        assert_eq!(answer.containers_statuses.len(), 1);
        assert!(answer.timestamp > 0);
        let info = json(answer.info);
        assert_eq!(info["pid"], node.machine().supervisor(&pod).unwrap().as_raw());
        assert_eq!(info["config"]["metadata"]["uid"], "uid-web");
        assert!(info["networkNamespace"].as_str().unwrap().ends_with("/ns/net"), "{info}");
        until("the network namespace to be there", || {
            std::fs::metadata(info["networkNamespace"].as_str().unwrap()).is_ok()
        });
    });
}

#[test]
fn a_request_of_absurd_size_is_refused_and_the_others_go_on() {
    node(async |node| {
        let mut config = node.pod("big");
        // Each byte takes six in a record.
        config.annotations.insert("note".into(), "\u{1}".repeat(3 << 20));
        let error = node.run_pod(&config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{}", error.code());
        config.annotations.insert("note".into(), "x".repeat(17 << 20));
        assert!(node.run_pod(&config).await.is_err());
        assert!(node.pods().await.is_empty());
        let (pod, _) = node.launch_pod("small", LONG).await;
        // What is damaged hides nothing else.
        let (damaged, _) = node.launch_pod("damaged", LONG).await;
        let record = node.machine().state().join("pods").join(&damaged).join("record.json");
        let whole = std::fs::read(&record).unwrap();
        std::fs::write(&record, "{").unwrap();
        assert_eq!(node.pods().await.into_iter().map(|pod| pod.id).collect::<Vec<_>>(), [pod]);
        assert_eq!(node.containers().await.len(), 1);
        assert!(node.pod_status(&damaged).await.unwrap_err().message().contains("record.json"));
        std::fs::write(&record, whole).unwrap();
    });
}

#[test]
fn ids_that_mean_nothing_are_told_so_and_may_be_stopped_and_removed() {
    node(async |node| {
        let unknown = "0".repeat(64);
        node.stop_pod(&unknown).await.unwrap();
        node.remove_pod(&unknown).await.unwrap();
        node.stop_container(&unknown, 0).await.unwrap();
        node.remove_container(&unknown).await.unwrap();
        assert_eq!(node.pod_status(&unknown).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(node.container_status(&unknown).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(node.start_container(&unknown).await.unwrap_err().code(), Code::NotFound);
        let config = node.pod("web");
        assert_eq!(node.create(&unknown, &config, script("main", LONG)).await.unwrap_err().code(), Code::NotFound);
        for empty in [node.stop_pod("").await, node.remove_container("").await] {
            assert_eq!(empty.unwrap_err().code(), Code::InvalidArgument);
        }
        assert_eq!(node.stop_container(&unknown, -1).await.unwrap_err().code(), Code::InvalidArgument);
        let handler = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: "gvisor".into() };
        let error = node.runtime().run_pod_sandbox(handler).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with("runtime_handler: ") && error.message().contains("coracle"), "{error:?}");
    });
}
