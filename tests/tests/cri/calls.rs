//! Every call of the CRI: through the independent client, and, for those that it does not know, through our own.

use coracle_proto::cri as own;
use coracle_tests::cri::{IMAGE, LONG, node, script};
use k8s_cri::v1;
use tonic::Code;

#[test]
fn every_call_about_a_running_container_answers() {
    node(async |node| {
        let (pod, id) = node.launch_pod("web", LONG).await;
        let mut runtime = node.runtime();
        let linux = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let update =
            v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
        runtime.update_container_resources(update).await.unwrap();
        runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();

        let cmd = ["sh", "-c", "echo out; echo err >&2; exit 4"].map(String::from).to_vec();
        let exec = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
        let said = runtime.exec_sync(exec).await.unwrap().into_inner();
        assert_eq!((said.stdout.as_slice(), said.stderr.as_slice(), said.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));

        let exec =
            v1::ExecRequest { container_id: id.clone(), cmd: vec!["sh".into()], stdout: true, ..Default::default() };
        let attach = v1::AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() };
        let forward = v1::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![80] };
        let urls = [
            runtime.exec(exec).await.unwrap().into_inner().url,
            runtime.attach(attach).await.unwrap().into_inner().url,
            runtime.port_forward(forward).await.unwrap().into_inner().url,
        ];
        assert!(urls.iter().all(|url| url.starts_with("http://127.0.0.1:")), "{urls:?}");

        let stats = runtime.container_stats(v1::ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
        assert_eq!(stats.into_inner().stats.unwrap().attributes.unwrap().id, id);
        let list = runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await.unwrap();
        assert_eq!(list.into_inner().stats.len(), 1);
        let stats =
            runtime.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() }).await.unwrap();
        assert_eq!(stats.into_inner().stats.unwrap().attributes.unwrap().id, pod);
        let list = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await.unwrap();
        assert_eq!(list.into_inner().stats.len(), 1);
        let metrics = runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest::default()).await.unwrap();
        assert_eq!(metrics.into_inner().pod_metrics.len(), 1);

        let checkpoint = v1::CheckpointContainerRequest { container_id: id, ..Default::default() };
        assert_eq!(runtime.checkpoint_container(checkpoint).await.unwrap_err().code(), Code::Unimplemented);
    });
}

#[test]
fn every_call_about_the_node_and_its_images_answers() {
    node(async |node| {
        let mut runtime = node.runtime();
        let descriptors = runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest::default()).await.unwrap();
        assert!(!descriptors.into_inner().descriptors.is_empty());
        runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await.unwrap();
        runtime.runtime_config(v1::RuntimeConfigRequest::default()).await.unwrap();

        let mut images = node.images();
        let spec = |image: &str| Some(v1::ImageSpec { image: image.into(), ..Default::default() });
        let listed = images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].repo_tags, [IMAGE]);
        let status = images.image_status(v1::ImageStatusRequest { image: spec(IMAGE), verbose: true }).await.unwrap();
        assert_eq!(status.into_inner().image.unwrap().id, listed[0].id);
        let usage = images.image_fs_info(v1::ImageFsInfoRequest::default()).await.unwrap().into_inner();
        assert!(!usage.image_filesystems.is_empty());
        let pull = v1::PullImageRequest { image: spec("127.0.0.1:1/none:1"), ..Default::default() };
        let refused = images.pull_image(pull).await.unwrap_err();
        assert!(refused.message().contains("127.0.0.1:1"), "{refused}");
        for _ in 0..2 {
            images.remove_image(v1::RemoveImageRequest { image: spec(IMAGE) }).await.unwrap();
        }
        assert!(images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty());
    });
}

#[test]
fn the_newer_calls_answer_as_the_older_ones_do() {
    node(async |node| {
        let (pod, id) = node.launch_pod("web", LONG).await;
        let mut client = node.own();
        let mut pods =
            client.stream_pod_sandboxes(own::StreamPodSandboxesRequest::default()).await.unwrap().into_inner();
        assert_eq!(pods.message().await.unwrap().unwrap().pod_sandboxes[0].id, pod);
        let mut all = client.stream_containers(own::StreamContainersRequest::default()).await.unwrap().into_inner();
        assert_eq!(all.message().await.unwrap().unwrap().containers[0].id, id);
        let mut stats =
            client.stream_container_stats(own::StreamContainerStatsRequest::default()).await.unwrap().into_inner();
        assert_eq!(stats.message().await.unwrap().unwrap().container_stats.len(), 1);
        let mut stats =
            client.stream_pod_sandbox_stats(own::StreamPodSandboxStatsRequest::default()).await.unwrap().into_inner();
        assert_eq!(stats.message().await.unwrap().unwrap().pod_sandbox_stats.len(), 1);
        let mut metrics = client
            .stream_pod_sandbox_metrics(own::StreamPodSandboxMetricsRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(metrics.message().await.unwrap().is_some());
        let mut images =
            node.own_images().stream_images(own::StreamImagesRequest::default()).await.unwrap().into_inner();
        assert_eq!(images.message().await.unwrap().unwrap().images.len(), 1);

        let resources = own::LinuxContainerResources { memory_limit_in_bytes: 256 << 20, ..Default::default() };
        let update = own::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod,
            resources: Some(resources),
            ..Default::default()
        };
        client.update_pod_sandbox_resources(update).await.unwrap();
    });
}

#[test]
fn an_event_comes_for_each_step_of_a_container() {
    node(async |node| {
        let mut events =
            node.runtime().get_container_events(v1::GetEventsRequest::default()).await.unwrap().into_inner();
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let (ended, _) = node.run_to_end(&pod, &config, script("main", "exit 6")).await;
        assert_eq!(ended.exit_code, 6);
        node.remove_container(&ended.id).await.unwrap();
        let mut kinds = Vec::new();
        while kinds.len() < 4 {
            let event = events.message().await.unwrap().expect("events do not end");
            if event.container_id == ended.id {
                kinds.push(event.container_event_type());
            }
        }
        use v1::ContainerEventType as Kind;
        let wanted = [
            Kind::ContainerCreatedEvent,
            Kind::ContainerStartedEvent,
            Kind::ContainerStoppedEvent,
            Kind::ContainerDeletedEvent,
        ];
        assert_eq!(kinds, wanted);
    });
}
