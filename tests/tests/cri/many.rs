//! Many things at once, and many pods: nothing waits for ever, and the server stays small.

use std::fs;
use std::time::Duration;

use coracle_tests::cri::{LONG, Node, Options, node, node_with, script};
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Mixed calls at the same time.
const CALLS: usize = 200;
/// Pods of a full node, as kubelet's default has it.
const PODS: usize = 110;
/// Pods that are made at the same time.
const AT_ONCE: usize = 10;
/// Resident memory of a server that has done nothing yet, and of one with a full node.
const IDLE_RSS_KIB: u64 = 15 << 10;
const FULL_RSS_KIB: u64 = 25 << 10;
/// A full node is made and removed in here, in a debug build on a loaded machine.
const FULL_DEADLINE: Duration = Duration::from_secs(400);

/// One of several kinds of calls; a pod's life is one of them.
async fn one_call(node: &Node, number: usize, pod: &str, container: &str) {
    let mut runtime = node.runtime();
    let name = format!("pod{number}");
    match number % 8 {
        0 => {
            let (pod, container) = node.launch_pod(&name, "echo hello; exit 3").await;
            assert_eq!(node.exited(&container).await.exit_code, 3);
            node.stop_pod(&pod).await.unwrap();
            node.remove_pod(&pod).await.unwrap();
        }
        1 => drop(runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap()),
        2 => drop(runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap()),
        3 => {
            let cmd = ["echo", "hi"].map(String::from).to_vec();
            let exec = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout: 60 };
            assert_eq!(runtime.exec_sync(exec).await.unwrap().into_inner().stdout, b"hi\n");
        }
        4 => drop(runtime.container_stats(v1::ContainerStatsRequest { container_id: container.into() }).await.unwrap()),
        5 => drop(node.images().list_images(v1::ListImagesRequest::default()).await.unwrap()),
        6 => {
            let config = node.pod("web");
            let id = node.launch(pod, &config, script(&name, "exit 0")).await;
            assert_eq!(node.exited(&id).await.exit_code, 0);
            node.remove_container(&id).await.unwrap();
        }
        _ => {
            node.pod_status(pod).await.unwrap();
            node.container_status(container).await.unwrap();
            runtime.status(v1::StatusRequest::default()).await.unwrap();
        }
    }
}

#[test]
fn two_hundred_mixed_calls_at_once_all_come_to_their_end() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let node = &*node;
        let (pod, container) = (pod.as_str(), container.as_str());
        let calls: Vec<_> = (0..CALLS).map(|number| Box::pin(one_call(node, number, pod, container))).collect();
        all(calls).await;
        assert_eq!(node.pods().await.len(), 1);
        assert_eq!(node.containers().await.len(), 1);
    });
}

/// Awaits all at the same time.
async fn all(mut futures: Vec<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
    std::future::poll_fn(move |context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

fn rss(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server's status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn a_server_with_a_full_node_of_pods_stays_small() {
    node_with(Options { deadline: FULL_DEADLINE, ..Options::default() }, async |node| {
        let idle = rss(node.server());
        assert!(idle <= IDLE_RSS_KIB, "{idle} KiB idle, at most {IDLE_RSS_KIB}");
        let node = &*node;
        let names: Vec<String> = (0..PODS).map(|n| format!("pod{n}")).collect();
        let mut pods = Vec::new();
        for some in names.chunks(AT_ONCE) {
            let made = std::sync::Mutex::new(&mut pods);
            let make = |name: &'_ String| {
                let name = name.clone();
                let made = &made;
                Box::pin(async move {
                    let (pod, container) = node.launch_pod(&name, "sleep 100000").await;
                    made.lock().unwrap().push((pod, container));
                })
            };
            all(some.iter().map(make).collect()).await;
        }
        assert_eq!(node.containers().await.len(), PODS);
        let mut runtime = node.runtime();
        let stats = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await.unwrap();
        assert_eq!(stats.into_inner().stats.len(), PODS);
        let full = rss(node.server());
        println!("the server: {idle} KiB idle, {full} KiB with {PODS} pods");
        assert!(full <= FULL_RSS_KIB, "{full} KiB with {PODS} pods, at most {FULL_RSS_KIB}");
        for some in pods.chunks(AT_ONCE) {
            let remove = |(pod, _): &(String, String)| {
                let pod = pod.clone();
                Box::pin(async move {
                    node.stop_pod(&pod).await.unwrap();
                    node.remove_pod(&pod).await.unwrap();
                })
            };
            all(some.iter().map(remove).collect()).await;
        }
    });
}

#[test]
fn a_stopped_supervisor_holds_up_neither_the_socket_nor_another_pod() {
    node(async |node| {
        let (hung, container) = node.launch_pod("hung", LONG).await;
        let supervisor = node.machine().supervisor(&hung).expect("the pod has a supervisor");
        kill(supervisor, Signal::SIGSTOP).unwrap();
        // A call that needs the stopped one waits for it, or for its deadline; none of the others may.
        let waiting = tokio::spawn({
            let (mut runtime, container) = (node.runtime(), container.clone());
            async move {
                let cmd = ["true"].map(String::from).to_vec();
                runtime.exec_sync(v1::ExecSyncRequest { container_id: container, cmd, timeout: 60 }).await
            }
        });
        for round in 0..3 {
            assert_eq!(node.containers().await.len(), 1 + round);
            let (_, other) = node.launch_pod(&format!("web{round}"), "exit 3").await;
            assert_eq!(node.exited(&other).await.exit_code, 3);
            assert_eq!(node.pod_status(&hung).await.unwrap().state(), v1::PodSandboxState::SandboxReady);
            node.container_status(&container).await.unwrap();
        }
        // Nor does it hold up a server that starts while it hangs.
        node.kill().await;
        node.start().await;
        let (_, other) = node.launch_pod("after", "exit 4").await;
        assert_eq!(node.exited(&other).await.exit_code, 4);
        assert!(waiting.await.unwrap().is_err(), "nobody answered it");
        kill(supervisor, Signal::SIGCONT).unwrap();
        let status = node.container_status(&container).await.unwrap();
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    });
}
