//! The server is killed between any two steps of each call that changes a pod, and a new one is started: every container
//! that ran still runs, every exit code is known, every line of the logs is there, the call succeeds when it is repeated,
//! and in the end nothing is left.
//!
//! The steps are found from outside (see `trace`): the Nth system call that changes anything, for every N until the call
//! is through. Each sweep runs on a node of its own.

use std::time::Duration;

use coracle_tests::cri::{LONG, Node, Options, log_text, node_with, script};
use coracle_tests::machine::until;
use coracle_tests::trace::Tracer;
use k8s_cri::v1;
use tonic::Status;

/// A sweep has some hundred steps, with a start of the server each.
const SWEEP_DEADLINE: Duration = Duration::from_secs(600);
/// More steps than this are a loop.
const MAX_STEPS: usize = 1000;
/// Counts without end.
const COUNT: &str = "trap 'exit 5' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
/// Ends with a code of its own when it is asked to.
const STOPPABLE: &str = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.02; done";

/// What lives through all kills: a pod with a container that counts and one that has ended.
struct Witness {
    counts: String,
    started_at: i64,
    pod: String,
    ended: String,
}

impl Witness {
    async fn launch(node: &Node) -> Witness {
        let (pod, counts) = node.launch_pod("witness", COUNT).await;
        let config = node.pod("witness");
        let ended = node.launch(&pod, &config, script("ended", "echo last words; exit 9")).await;
        assert_eq!(node.exited(&ended).await.exit_code, 9);
        let started_at = node.container_status(&counts).await.unwrap().started_at;
        Witness { counts, started_at, pod, ended }
    }

    /// After each kill: as if nothing had happened.
    async fn check(&self, node: &Node, step: &str) {
        let status = node.container_status(&self.counts).await.unwrap();
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning, "after a kill at {step}");
        assert_eq!(status.started_at, self.started_at, "after a kill at {step}");
        let pod = node.pod_status(&self.pod).await.unwrap();
        assert_eq!(pod.state(), v1::PodSandboxState::SandboxReady, "after a kill at {step}");
        let ended = node.container_status(&self.ended).await.unwrap();
        assert_eq!(
            (ended.state(), ended.exit_code),
            (v1::ContainerState::ContainerExited, 9),
            "after a kill at {step}"
        );
    }

    /// In the end: no line is missing or doubled.
    async fn close(&self, node: &Node) {
        node.stop_container(&self.counts, 10).await.unwrap();
        assert_eq!(node.exited(&self.counts).await.exit_code, 5);
        let log = log_text(&node.log_dir("witness").join("main.log"));
        let lines: Vec<usize> = log.lines().map(|line| line.parse().expect("a number")).collect();
        assert_eq!(lines, (0..lines.len()).collect::<Vec<_>>());
        assert_eq!(log_text(&node.log_dir("witness").join("ended.log")), "last words\n");
    }
}

/// Makes one call and kills the server at its Nth step: `Err(step)`, after a new server was started, or `Ok(answer)` if
/// the call has fewer steps.
async fn cut_off<T>(node: &mut Node, step: usize, call: impl Future<Output = Result<T, Status>>) -> Result<T, String> {
    let tracer = Tracer::kill_at(node.server(), step);
    let answer = call.await;
    match tracer.finish() {
        Some(name) => {
            node.killed().await;
            node.start().await;
            Err(format!("step {step}, {name}"))
        }
        None => Ok(answer.expect("a call that nothing cut off")),
    }
}

/// Runs a sweep: `once` is given a step, and answers the step's name when the server was killed there.
fn sweep(call: &str, once: impl AsyncFn(&mut Node, usize) -> Option<String> + Send + Sync) {
    node_with(Options { deadline: SWEEP_DEADLINE, ..Options::default() }, async |node| {
        let witness = Witness::launch(node).await;
        for step in 1..MAX_STEPS {
            let Some(name) = once(node, step).await else {
                println!("{call}: {} steps", step - 1);
                assert!(step > 1, "{call} has no step");
                return witness.close(node).await;
            };
            witness.check(node, &name).await;
        }
        panic!("{call} has no end");
    });
}

#[test]
fn a_kill_at_any_step_of_run_pod_sandbox_is_survived() {
    sweep("RunPodSandbox", async |node, step| {
        let config = node.pod("web");
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let mut runtime = node.runtime();
        let killed = cut_off(node, step, runtime.run_pod_sandbox(request)).await.err();
        let why = killed.clone().unwrap_or_default();
        let pod = node.run_pod(&config).await.unwrap_or_else(|e| panic!("the call repeated after {why}: {e}"));
        let (ended, log) = node.run_to_end(&pod, &config, script("main", "echo hello; exit 3")).await;
        assert_eq!((ended.exit_code, log.as_str()), (3, "hello\n"), "{why}");
        assert_eq!(node.pods().await.len(), 2, "{why}");
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
        std::fs::remove_dir_all(node.log_dir("web")).unwrap();
        killed
    });
}

#[test]
fn a_kill_at_any_step_of_create_container_is_survived() {
    sweep("CreateContainer", async |node, step| {
        let config = node.pod("witness");
        let pod = node.pods().await[0].id.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(script("main2", "echo hello; exit 3")),
            sandbox_config: Some(config.clone()),
        };
        let mut runtime = node.runtime();
        let killed = cut_off(node, step, runtime.create_container(request.clone())).await.err();
        let why = killed.clone().unwrap_or_default();
        let again = node.runtime().create_container(request).await;
        let id = again.unwrap_or_else(|e| panic!("the call repeated after {why}: {e}")).into_inner().container_id;
        node.start_container(&id).await.unwrap_or_else(|e| panic!("the start after {why}: {e}"));
        assert_eq!(node.exited(&id).await.exit_code, 3, "{why}");
        assert_eq!(log_text(&node.log_dir("witness").join("main2.log")), "hello\n", "{why}");
        assert_eq!(node.containers().await.len(), 3, "{why}");
        node.remove_container(&id).await.unwrap();
        std::fs::remove_file(node.log_dir("witness").join("main2.log")).unwrap();
        killed
    });
}

#[test]
fn a_kill_at_any_step_of_start_container_is_survived() {
    sweep("StartContainer", async |node, step| {
        let config = node.pod("witness");
        let pod = node.pods().await[0].id.clone();
        let id = node.create(&pod, &config, script("main2", STOPPABLE)).await.unwrap();
        let request = v1::StartContainerRequest { container_id: id.clone() };
        let mut runtime = node.runtime();
        let killed = cut_off(node, step, runtime.start_container(request.clone())).await.err();
        let why = killed.clone().unwrap_or_default();
        let again = node.runtime().start_container(request).await;
        again.unwrap_or_else(|e| panic!("the call repeated after {why}: {e}"));
        let log = node.log_dir("witness").join("main2.log");
        until("the container to be up", || log_text(&log) == "up\n");
        node.stop_container(&id, 10).await.unwrap();
        assert_eq!(node.exited(&id).await.exit_code, 7, "{why}");
        assert_eq!(log_text(&log), "up\nbye\n", "{why}");
        node.remove_container(&id).await.unwrap();
        std::fs::remove_file(log).unwrap();
        killed
    });
}

#[test]
fn a_kill_at_any_step_of_stop_pod_sandbox_is_survived() {
    sweep("StopPodSandbox", async |node, step| {
        let (pod, running) = node.launch_pod("web", LONG).await;
        let ended = node.launch(&pod, &node.pod("web"), script("ended", "echo done; exit 4")).await;
        assert_eq!(node.exited(&ended).await.exit_code, 4);
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        let mut runtime = node.runtime();
        let killed = cut_off(node, step, runtime.stop_pod_sandbox(request)).await.err();
        let why = killed.clone().unwrap_or_default();
        node.stop_pod(&pod).await.unwrap_or_else(|e| panic!("the call repeated after {why}: {e}"));
        assert_eq!(node.pod_status(&pod).await.unwrap().state(), v1::PodSandboxState::SandboxNotready, "{why}");
        let status = node.container_status(&running).await.unwrap();
        assert_eq!(status.state(), v1::ContainerState::ContainerExited, "{why}");
        assert!([0, 137].contains(&status.exit_code), "{why}: {status:?}");
        let status = node.container_status(&ended).await.unwrap();
        assert_eq!(status.exit_code, 4, "{why}");
        assert_eq!(log_text(&node.log_dir("web").join("ended.log")), "done\n", "{why}");
        node.remove_pod(&pod).await.unwrap();
        std::fs::remove_dir_all(node.log_dir("web")).unwrap();
        killed
    });
}

#[test]
fn a_kill_at_any_step_of_remove_pod_sandbox_is_survived() {
    sweep("RemovePodSandbox", async |node, step| {
        let (pod, _) = node.launch_pod("web", LONG).await;
        node.stop_pod(&pod).await.unwrap();
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        let mut runtime = node.runtime();
        let killed = cut_off(node, step, runtime.remove_pod_sandbox(request)).await.err();
        let why = killed.clone().unwrap_or_default();
        node.remove_pod(&pod).await.unwrap_or_else(|e| panic!("the call repeated after {why}: {e}"));
        assert_eq!(node.pods().await.len(), 1, "{why}");
        // Its name is free.
        let (pod, _) = node.launch_pod("web", "exit 0").await;
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
        killed
    });
}
