//! Statistics through the CRI: what a container does is what they show.

use std::time::Duration;

use coracle_proto::cri as own;
use coracle_tests::cri::{LONG, Node, Options, log_text, node, node_with, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use tonic::Code;

const MIB: u64 = 1 << 20;
/// A layer is walked at most every ten seconds; this is enough for two walks.
const PATIENCE: Duration = Duration::from_secs(40);

async fn stats(node: &Node, id: &str) -> own::ContainerStats {
    let request = own::ContainerStatsRequest { container_id: id.into() };
    node.own().container_stats(request).await.expect("statistics").into_inner().stats.expect("statistics")
}

async fn pod_stats(node: &Node, id: &str) -> own::LinuxPodSandboxStats {
    let request = own::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    let stats = node.own().pod_sandbox_stats(request).await.expect("statistics").into_inner().stats;
    stats.expect("statistics").linux.expect("of Linux")
}

fn value(found: &Option<own::UInt64Value>) -> u64 {
    found.as_ref().expect("it is counted here").value
}

/// Waits for a container to say a word.
async fn says(node: &Node, id: &str, word: &str) {
    let log = node.container_status(id).await.unwrap().log_path;
    until("the container to get there", || log_text(log.as_ref()).contains(word));
}

#[test]
fn time_memory_tasks_and_files_of_a_container_are_seen() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let idle = node.launch(&pod, &config, script("idle", "echo ready; exec sleep 1000")).await;
        // A fifth of a second of CPU time and more, 24 MiB of memory (a variable of the shell), 12 MiB of files.
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; \
                    a=$(head -c 25165824 /dev/zero | tr '\\0' x); \
                    mkdir /d; head -c 12582912 /dev/zero > /d/file; sleep 1000 & echo ready; wait";
        let mut busy = script("busy", work);
        let limit = 256 * MIB;
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: limit as i64, ..Default::default() };
        busy.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() });
        busy.labels.insert("app".into(), "busy".into());
        let busy = node.launch(&pod, &config, busy).await;
        for id in [&idle, &busy] {
            says(node, id, "ready").await;
        }
        let (still, used) = (stats(node, &idle).await, stats(node, &busy).await);
        let attributes = used.attributes.as_ref().unwrap();
        assert_eq!((attributes.id.as_str(), attributes.labels["app"].as_str()), (busy.as_str(), "busy"));
        assert_eq!(attributes.metadata.as_ref().unwrap().name, "busy");
        let time = |stats: &own::ContainerStats| value(&stats.cpu.as_ref().unwrap().usage_core_nano_seconds);
        assert!(time(&used) > 50_000_000 && time(&used) > time(&still), "{used:?}");
        let memory = used.memory.as_ref().unwrap();
        assert!(value(&memory.rss_bytes) >= 24 * MIB && value(&memory.working_set_bytes) >= 24 * MIB, "{memory:?}");
        assert!(value(&memory.usage_bytes) >= value(&memory.working_set_bytes));
        assert_eq!(value(&memory.available_bytes), limit - value(&memory.working_set_bytes));
        assert!(value(&memory.page_faults) > 1000);
        let idle_memory = still.memory.as_ref().unwrap();
        assert!(value(&idle_memory.usage_bytes) < 24 * MIB && idle_memory.available_bytes.is_none());
        let layer = used.writable_layer.as_ref().unwrap();
        assert!(value(&layer.used_bytes) >= 12 * MIB && value(&layer.inodes_used) >= 3, "{layer:?}");
        assert!(value(&still.writable_layer.as_ref().unwrap().used_bytes) < MIB);

        // A rate needs a second question, some time later; an idle one's is small and there.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let rate = stats(node, &idle).await.cpu.unwrap().usage_nano_cores.expect("two samples");
        assert!(rate.value < 500_000_000, "{rate:?}");

        let whole = pod_stats(node, &pod).await;
        assert_eq!(whole.containers.len(), 2);
        assert!(value(&whole.memory.as_ref().unwrap().usage_bytes) >= value(&memory.working_set_bytes));
        assert!(value(&whole.process.as_ref().unwrap().process_count) >= 3);
        assert!(value(&whole.cpu.as_ref().unwrap().usage_core_nano_seconds) >= time(&used));
    });
}

#[test]
fn bytes_that_a_pod_receives_are_seen_by_interface() {
    node(async |node| {
        let (pod, _) = node.launch_pod("web", "nc -l -p 8080 >/dev/null; sleep 1000").await;
        let before = pod_stats(node, &pod).await.network.unwrap().default_interface.unwrap();
        assert_eq!(before.name, "eth0");
        let ip = node.pod_status(&pod).await.unwrap().network.unwrap().ip;
        let sent = vec![0u8; 2 * MIB as usize];
        until("the pod to listen", || {
            use std::io::Write;
            std::net::TcpStream::connect((ip.as_str(), 8080)).is_ok_and(|mut to| to.write_all(&sent).is_ok())
        });
        until("the bytes to be counted", || {
            let text = std::fs::read_to_string(format!("/proc/{}/net/dev", node.machine().supervisor(&pod).unwrap()));
            let line = text.unwrap().lines().find(|l| l.trim().starts_with("eth0")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() > 2 * MIB
        });
        let after = pod_stats(node, &pod).await.network.unwrap().default_interface.unwrap();
        assert!(value(&after.rx_bytes) >= value(&before.rx_bytes) + 2 * MIB, "{before:?} {after:?}");
        assert_eq!(value(&after.rx_errors), 0);
    });
}

#[test]
fn lists_are_filtered_streams_are_whole_and_what_ended_has_only_its_files() {
    node(async |node| {
        let (pod, container) = node.launch_pod("a", LONG).await;
        let (other, ended) = node.launch_pod("b", "echo x > /file").await;
        node.exited(&ended).await;
        let list = async |filter: own::ContainerStatsFilter| {
            let request = own::ListContainerStatsRequest { filter: Some(filter) };
            node.own().list_container_stats(request).await.unwrap().into_inner().stats
        };
        assert_eq!(list(own::ContainerStatsFilter::default()).await.len(), 2);
        let of_pod = own::ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..Default::default() };
        assert_eq!(list(of_pod).await[0].attributes.as_ref().unwrap().id, container);
        let by_prefix = own::ContainerStatsFilter { id: ended[..16].into(), ..Default::default() };
        let found = list(by_prefix).await;
        assert_eq!(found.len(), 1);
        assert!(found[0].cpu.is_none() && found[0].memory.is_none());
        assert!(value(&found[0].writable_layer.as_ref().unwrap().inodes_used) >= 2);

        let request = own::StreamContainerStatsRequest::default();
        let mut stream = node.own().stream_container_stats(request).await.unwrap().into_inner();
        let mut streamed = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            streamed.extend(message.container_stats);
        }
        assert_eq!(streamed.len(), 2);

        node.stop_pod(&other).await.unwrap();
        let filter = own::PodSandboxStatsFilter { id: other.clone(), ..Default::default() };
        let request = own::ListPodSandboxStatsRequest { filter: Some(filter) };
        let stopped = node.own().list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
        let linux = stopped[0].linux.as_ref().unwrap();
        assert!(linux.cpu.is_none() && linux.network.is_none() && linux.containers.is_empty());

        let unknown = own::ContainerStatsRequest { container_id: "0".repeat(64) };
        assert_eq!(node.own().container_stats(unknown).await.unwrap_err().code(), Code::NotFound);
        let empty = own::PodSandboxStatsRequest::default();
        let refused = node.own().pod_sandbox_stats(empty).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("pod_sandbox_id"), "{refused:?}");
    });
}

#[test]
fn a_stopped_supervisor_delays_no_statistics_not_even_its_own() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let supervisor = node.machine().supervisor(&pod).unwrap();
        kill(supervisor, Signal::SIGSTOP).unwrap();
        let used = stats(node, &container).await;
        assert!(used.cpu.is_some() && used.memory.is_some());
        assert!(pod_stats(node, &pod).await.network.is_some());
        kill(supervisor, Signal::SIGCONT).unwrap();
    });
}

#[test]
fn the_disk_that_images_and_containers_take_is_told_with_one_path() {
    node(async |node| {
        let info = async || node.own_images().image_fs_info(own::ImageFsInfoRequest {}).await.unwrap().into_inner();
        let before = info().await;
        let (images, containers) = (&before.image_filesystems[0], &before.container_filesystems[0]);
        assert!(value(&images.used_bytes) > MIB / 2 && value(&images.inodes_used) > 10, "{images:?}");
        assert_eq!(images.fs_id, containers.fs_id);
        assert_eq!(value(&containers.used_bytes), 0);
        let text = "head -c 4194304 /dev/zero > /file; echo ready; exec sleep 1000";
        let (_, container) = node.launch_pod("web", text).await;
        says(node, &container, "ready").await;
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let now = info().await;
            if value(&now.container_filesystems[0].used_bytes) >= 4 * MIB {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{now:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn metrics_fit_their_descriptors_and_show_the_pod() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let (_, ended) = node.launch_pod("over", "exit 0").await;
        node.exited(&ended).await;
        let described = node.own().list_metric_descriptors(own::ListMetricDescriptorsRequest {}).await.unwrap();
        let keys: std::collections::BTreeMap<_, _> =
            described.into_inner().descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
        let answer = node.own().list_pod_sandbox_metrics(own::ListPodSandboxMetricsRequest {}).await.unwrap();
        let pods = answer.into_inner().pod_metrics;
        let told = pods.iter().find(|told| told.pod_sandbox_id == pod).expect("a pod that runs");
        assert!(pods.iter().flat_map(|p| &p.container_metrics).all(|c| c.container_id == container), "{ended}");
        let own_metrics = &told.container_metrics[0].metrics;
        let mut seen = std::collections::BTreeSet::new();
        for metric in
            pods.iter().flat_map(|p| p.metrics.iter().chain(p.container_metrics.iter().flat_map(|c| &c.metrics)))
        {
            assert_eq!(metric.label_values.len(), keys[&metric.name].len(), "{metric:?}");
            assert!(seen.insert((metric.name.clone(), metric.label_values.clone())), "{metric:?} twice");
        }
        let of = |name: &str| own_metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name}"));
        assert!(value(&of("container_memory_working_set_bytes").value) > 0);
        assert!(value(&of("container_processes").value) >= 1);
        assert!(value(&of("container_file_descriptors").value) >= 3);
        assert!(value(&of("container_start_time_seconds").value) > 1_700_000_000);
        let label = |metric: &own::Metric, key: &str| {
            let at = keys[&metric.name].iter().position(|k| k == key).unwrap();
            metric.label_values[at].clone()
        };
        let cpu = of("container_cpu_usage_seconds_total");
        assert_eq!([label(cpu, "namespace"), label(cpu, "pod"), label(cpu, "container")], ["default", "web", "main"]);
        let received = told.metrics.iter().find(|m| m.name == "container_network_receive_bytes_total").unwrap();
        assert_eq!(label(received, "interface"), "eth0");
        let request = own::StreamPodSandboxMetricsRequest {};
        let mut stream = node.own().stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().expect("one answer");
        assert_eq!(first.pod_sandbox_metrics.len(), pods.len());
    });
}

/// The answer of the server's own metrics to a request for a path: the status line and the rest.
fn get(path: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect("127.0.0.1:9095").expect("connect to the metrics");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn prometheus_finds_the_servers_own_metrics() {
    let config = "[serve]\nmetrics_address = \"127.0.0.1:9095\"\n".into();
    node_with(Options { config, ..Default::default() }, async |node| {
        let (_, container) = node.launch_pod("web", LONG).await;
        assert!(node.container_status("0000").await.is_err());
        let (status, body) = get("/metrics");
        assert!(status.contains("200") && body.contains("version=0.0.4"), "{status} {body}");
        let lines: Vec<_> = body.lines().collect();
        for line in [
            "coracle_cri_calls_total{rpc=\"RunPodSandbox\",code=\"OK\"} 1",
            "coracle_cri_calls_total{rpc=\"ContainerStatus\",code=\"NotFound\"} 1",
            "coracle_cri_call_duration_seconds_count{rpc=\"StartContainer\",code=\"OK\"} 1",
            "coracle_sandboxes{state=\"ready\",origin=\"cri\"} 1",
            "coracle_containers{state=\"running\",origin=\"cri\"} 1",
            "coracle_state_errors{part=\"disk\"} 0",
        ] {
            assert!(lines.contains(&line), "{line} for {container} in {body}");
        }
        for name in ["coracle_image_store_bytes ", "process_resident_memory_bytes ", "process_open_fds "] {
            let line = lines.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0, "{line}");
        }
        assert!(get("/").0.contains("404"));
    });
}
