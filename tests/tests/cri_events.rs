//! Container events through the CRI: each thing is told, once, in its order, whoever did it and whatever the server went
//! through meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_tests::cri::{LONG, Node, node, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use tonic::{Code, Status, Streaming};
use v1::ContainerEventType as Kind;

/// Longer than anything takes; waiting for it only happens in a test that fails.
const DEADLINE: Duration = Duration::from_secs(30);

const CREATED: Kind = Kind::ContainerCreatedEvent;
const STARTED: Kind = Kind::ContainerStartedEvent;
const STOPPED: Kind = Kind::ContainerStoppedEvent;
const DELETED: Kind = Kind::ContainerDeletedEvent;

type Stream = Streaming<v1::ContainerEventResponse>;

async fn subscribe(node: &Node) -> Stream {
    node.runtime().get_container_events(v1::GetEventsRequest {}).await.expect("subscribe").into_inner()
}

async fn next(stream: &mut Stream) -> Result<v1::ContainerEventResponse, Status> {
    let next = tokio::time::timeout(DEADLINE, stream.message()).await.expect("an event in time");
    next.map(|event| event.expect("the stream goes on"))
}

/// The next events, which are these and in this order.
async fn expect(stream: &mut Stream, expected: &[(&str, Kind)]) -> Vec<v1::ContainerEventResponse> {
    let mut got = Vec::new();
    for (id, kind) in expected {
        let event = next(stream).await.expect("an event");
        assert_eq!((event.container_id.as_str(), event.container_event_type()), (*id, *kind), "after {got:#?}");
        got.push(event);
    }
    got
}

/// Everything up to an event of a pod that is made for the purpose: what is not among it was not told.
async fn all_until_now(node: &Node, stream: &mut Stream) -> Vec<(String, Kind)> {
    let marker = node.run_pod(&node.pod("marker")).await.expect("make the marking pod");
    let mut all = Vec::new();
    loop {
        let event = next(stream).await.expect("an event");
        if event.container_id == marker && event.container_event_type() == STARTED {
            break;
        }
        if event.container_id != marker {
            let kind = event.container_event_type();
            all.push((event.container_id, kind));
        }
    }
    node.remove_pod(&marker).await.expect("remove the marking pod");
    expect(stream, &[(&marker, STOPPED), (&marker, DELETED)]).await;
    all
}

/// How often each was told.
fn counted(all: &[(String, Kind)]) -> BTreeMap<(&str, i32), usize> {
    let mut counts = BTreeMap::new();
    for (id, kind) in all {
        *counts.entry((id.as_str(), *kind as i32)).or_default() += 1;
    }
    counts
}

#[test]
fn a_pods_life_is_told_with_its_status_to_every_subscriber() {
    node(async |node| {
        let mut streams = [subscribe(node).await, subscribe(node).await];
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let container = node.launch(&pod, &config, script("main", "exit 3")).await;
        node.exited(&container).await;
        node.remove_container(&container).await.unwrap();
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
        let (p, c) = (pod.as_str(), container.as_str());
        let expected = [
            (p, CREATED),
            (p, STARTED),
            (c, CREATED),
            (c, STARTED),
            (c, STOPPED),
            (c, DELETED),
            (p, STOPPED),
            (p, DELETED),
        ];
        for stream in &mut streams {
            let events = expect(stream, &expected).await;
            for event in &events {
                let status = event.pod_sandbox_status.as_ref().expect("a pod");
                assert_eq!(status.id, pod);
                assert_eq!(status.metadata.as_ref().unwrap().uid, "uid-web", "its names outlive it");
            }
            assert!(events.windows(2).all(|pair| pair[0].created_at < pair[1].created_at));
            let stopped = &events[4].containers_statuses;
            assert_eq!((stopped.len(), stopped[0].exit_code, stopped[0].reason.as_str()), (1, 3, "Error"));
            assert!(events[5].containers_statuses.is_empty());
        }
    });
}

#[test]
fn over_a_kill_of_the_server_nothing_is_lost_and_nothing_is_told_twice() {
    node(async |node| {
        node.launch_pod("before", LONG).await;
        let mut stream = subscribe(node).await;
        let (pod, runs) = node.launch_pod("web", LONG).await;
        let config = node.pod("web");
        let shared = node.path("shared");
        std::fs::create_dir(&shared).unwrap();
        let mut ending = script("ends", "while [ ! -e /shared/end ]; do sleep 0.05; done; exit 7");
        let host_path = shared.display().to_string();
        ending.mounts = vec![v1::Mount { host_path, container_path: "/shared".into(), ..Default::default() }];
        let ends = node.launch(&pod, &config, ending).await;
        let waits = node.create(&pod, &config, script("waits", LONG)).await.unwrap();
        let told = [
            (pod.as_str(), CREATED),
            (&pod, STARTED),
            (&runs, CREATED),
            (&runs, STARTED),
            (&ends, CREATED),
            (&ends, STARTED),
            (&waits, CREATED),
        ];
        expect(&mut stream, &told).await;
        node.kill().await;
        // One container ends while nobody serves.
        std::fs::write(shared.join("end"), "").unwrap();
        until("the container to end", || exit_file(node, &pod, &ends).exists());
        node.start().await;
        // Nobody listens yet.
        node.start_container(&waits).await.unwrap();
        node.remove_container(&runs).await.unwrap();
        let mut stream = subscribe(node).await;
        let all = all_until_now(node, &mut stream).await;
        let mut expected = vec![
            ((ends.as_str(), STOPPED as i32), 1),
            ((waits.as_str(), STARTED as i32), 1),
            ((runs.as_str(), STOPPED as i32), 1),
            ((runs.as_str(), DELETED as i32), 1),
        ];
        expected.sort_unstable();
        assert_eq!(counted(&all).into_iter().collect::<Vec<_>>(), expected);
        // What was told over the restart is not told after the next one.
        node.restart().await;
        let mut stream = subscribe(node).await;
        assert_eq!(all_until_now(node, &mut stream).await, []);
    });
}

#[test]
fn a_killed_supervisor_is_the_end_of_its_pod_and_a_stopped_one_hides_nobody_elses() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let (other, _) = node.launch_pod("other", LONG).await;
        let mut stream = subscribe(node).await;
        let stopped = node.machine().supervisor(&other).unwrap();
        kill(stopped, Signal::SIGSTOP).unwrap();
        kill(node.machine().supervisor(&pod).unwrap(), Signal::SIGKILL).unwrap();
        let events = expect(&mut stream, &[(&container, STOPPED), (&pod, STOPPED)]).await;
        assert_eq!(events[0].containers_statuses[0].exit_code, 255, "nobody knows how it ended");
        kill(stopped, Signal::SIGCONT).unwrap();
    });
}

#[test]
fn pods_of_coracle_run_are_not_told_and_a_stopping_server_ends_the_stream() {
    node(async |node| {
        let mut stream = subscribe(node).await;
        let local = node.machine().script_pod("local", "exit 0", "  restartPolicy: Never\n");
        node.machine().ok(&["run", "-d", &local]);
        assert_eq!(all_until_now(node, &mut stream).await, []);
        node.machine().ok(&["rm", "-f", "local"]);
        assert_eq!(all_until_now(node, &mut stream).await, []);
        node.stop().await;
        let ended = next(&mut stream).await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
        node.start().await;
    });
}

fn exit_file(node: &Node, pod: &str, container: &str) -> std::path::PathBuf {
    node.machine().state().join("pods").join(pod).join("containers").join(container).join("exit.json")
}

#[test]
fn a_container_that_is_killed_for_want_of_memory_is_told_so_with_its_event() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut stream = subscribe(node).await;
        let mut greedy = script("greedy", "exec tail /dev/zero");
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
        greedy.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() });
        let id = node.launch(&pod, &config, greedy).await;
        let events = expect(&mut stream, &[(&id, CREATED), (&id, STARTED), (&id, STOPPED)]).await;
        let told = &events[2].containers_statuses[0];
        assert_eq!((told.reason.as_str(), told.exit_code), ("OOMKilled", 137));
    });
}
