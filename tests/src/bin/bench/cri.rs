//! A node's runtime as kubelet sees it: `coracle serve` and Debian's containerd, through the same independent CRI client, with
//! the same CNI configuration list (bridge, host-local, portmap) and the same image, taking turns in one run.
//!
//! Each has a network namespace of its own, so that neither's bridge is the other's. containerd's sandbox image is made of
//! busybox's `sleep`, since there is no registry to pull a pause from; its plugins are Debian's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_tests::cri::{self, IMAGE, Node, Runtime, node_with, script};
use coracle_tests::image::Layout;
use coracle_tests::machine::{Netns, sh};
use k8s_cri::v1;
use nix::unistd::Pid;
use tonic::transport::Endpoint;

use crate::series::{Series, table};

/// How long containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pods that are made at the same time.
const AT_ONCE: usize = 10;
/// The image of containerd's sandboxes.
const PAUSE: &str = "localhost/pause:latest";

#[derive(Args)]
pub struct Options {
    /// How often each contestant makes and removes a pod, one after the other.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How often each contestant makes pods ten at a time.
    #[arg(long, default_value_t = 3)]
    bursts: usize,
    /// Pods of each burst.
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// Without containerd.
    #[arg(long)]
    alone: bool,
}

/// A runtime and its client.
struct Contestant {
    name: &'static str,
    runtime: Runtime,
    daemon: Pid,
    cgroup: String,
    logs: PathBuf,
}

/// A running pod.
struct Pod {
    id: String,
    container: String,
}

impl Contestant {
    fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        let metadata =
            v1::PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "bench".into(), attempt: 0 };
        v1::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: self.logs.join(name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// RunPodSandbox, CreateContainer, StartContainer.
    async fn start(&self, name: &str) -> Result<Pod> {
        let mut runtime = self.runtime.clone();
        let config = self.pod(name);
        fs::create_dir_all(&config.log_directory)?;
        let run = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        let create = v1::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(script("main", "exec sleep 100000")),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(create).await?.into_inner().container_id;
        runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await?;
        Ok(Pod { id, container })
    }

    /// StopContainer, RemoveContainer, StopPodSandbox, RemovePodSandbox.
    async fn remove(&self, pod: Pod) -> Result<()> {
        let mut runtime = self.runtime.clone();
        let Pod { id, container } = pod;
        runtime.stop_container(v1::StopContainerRequest { container_id: container.clone(), timeout: 0 }).await?;
        runtime.remove_container(v1::RemoveContainerRequest { container_id: container }).await?;
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        Ok(())
    }

    /// Makes pods, ten at a time: pods per second, the daemon's resident memory with them in MB, and the pods.
    async fn burst(self: &std::sync::Arc<Self>, pods: usize) -> Result<(f64, f64, Vec<Pod>)> {
        let begin = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..AT_ONCE {
            let this = self.clone();
            workers.spawn(async move {
                let mut made = Vec::new();
                for number in (worker..pods).step_by(AT_ONCE) {
                    made.push(this.start(&format!("burst{number}")).await?);
                }
                anyhow::Ok(made)
            });
        }
        let mut made = Vec::new();
        for some in workers.join_all().await {
            made.extend(some?);
        }
        let rate = pods as f64 / begin.elapsed().as_secs_f64();
        Ok((rate, rss(self.daemon)?, made))
    }
}

/// Resident memory in MB.
fn rss(pid: Pid) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse::<f64>()? / 1024.0)
}

fn conflist(dir: &Path) -> Result<PathBuf> {
    let masquerade = Command::new("sh").args(["-c", "command -v iptables"]).stdout(Stdio::null()).status()?.success();
    let text = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [
            {
                "type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": masquerade,
                "ipam": {
                    "type": "host-local", "dataDir": dir.join("addresses"),
                    "ranges": [[{ "subnet": "10.99.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }]
                }
            },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    });
    let confs = dir.join("net.d");
    fs::create_dir_all(&confs)?;
    fs::write(confs.join("10-bench.conflist"), text.to_string())?;
    Ok(confs)
}

/// Debian's containerd with places of its own.
struct Containerd {
    dir: PathBuf,
    child: Child,
    cgroup: String,
    _netns: Netns,
}

impl Containerd {
    fn start(dir: &Path) -> Result<Containerd> {
        let confs = conflist(dir)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            r#"version = 2
root = {root:?}
state = {state:?}
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = {socket:?}
[ttrpc]
address = {ttrpc:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {PAUSE:?}
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {confs:?}
"#,
            root = path("root"),
            state = path("state"),
            socket = path("containerd.sock"),
            ttrpc = path("ttrpc.sock"),
        );
        fs::write(dir.join("config.toml"), config)?;
        let log = File::create(dir.join("log"))?;
        let netns = Netns::new();
        let mut command = Command::new("containerd");
        command.args(["--config", &path("config.toml")]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.run(|| command.spawn()).context("start containerd")?;
        let cgroup = format!("/bench-containerd-{}", std::process::id());
        Ok(Containerd { dir: dir.to_owned(), child, cgroup, _netns: netns })
    }

    async fn connect(&self) -> Result<Runtime> {
        let end = Instant::now() + PATIENCE;
        let endpoint = Endpoint::try_from(format!("unix://{}", self.dir.join("containerd.sock").display()))?;
        loop {
            if let Ok(channel) = endpoint.connect().await {
                let mut runtime = Runtime::new(channel);
                let status = runtime.status(v1::StatusRequest::default()).await;
                let conditions = status.ok().and_then(|answer| answer.into_inner().status).map(|s| s.conditions);
                if conditions.is_some_and(|all| !all.is_empty() && all.iter().all(|condition| condition.status)) {
                    return Ok(runtime);
                }
            }
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            ensure!(Instant::now() < end, "containerd is not ready:\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn load(&self, archive: &Path) {
        let socket = self.dir.join("containerd.sock");
        sh(&format!("ctr -a {} -n k8s.io images import {} >&2", socket.display(), archive.display()));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(Pid::from_raw(self.child.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
        for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // One that is not empty has a pod that was not removed, which the error tells.
            let _ = fs::remove_dir(tree.path().join(self.cgroup.trim_start_matches('/')));
        }
    }
}

/// An image whose program waits for ever, as a docker archive.
fn pause(dir: &Path) -> PathBuf {
    let layout = Layout::create(&dir.join("layout"));
    let entrypoint = ["--config.entrypoint", "/bin/sleep", "--config.entrypoint", "1000000"];
    layout.image("pause").busybox().config(&entrypoint).build();
    let archive = dir.join("pause.tar");
    layout.copy("pause", &format!("docker-archive:{}:{PAUSE}", archive.display()), &[]);
    archive
}

pub fn run(options: &Options) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let ours = scratch.path().join("coracle");
    let confs = conflist(&ours)?;
    let bins = r#"cni_bin_dirs = ["/usr/lib/cni"]"#;
    let config = format!("[network]\ncni_conf_dir = {confs:?}\n{bins}\nembedded = false\n");
    let mut result = Ok(());
    let node_options = cri::Options { config, deadline: Duration::from_secs(3600), ..cri::Options::default() };
    node_with(node_options, async |node| result = measure(options, node, scratch.path()).await);
    result
}

async fn measure(options: &Options, node: &Node, scratch: &Path) -> Result<()> {
    let mut contestants = vec![std::sync::Arc::new(Contestant {
        name: "coracle",
        runtime: node.runtime(),
        daemon: node.server(),
        cgroup: String::new(),
        logs: node.path("logs"),
    })];
    let mut containerd = None;
    if !options.alone {
        let dir = scratch.join("containerd");
        let peer = Containerd::start(&dir)?;
        let runtime = peer.connect().await?;
        let busybox = dir.join("busybox.tar");
        let maker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        sh(&format!("{} {} {IMAGE}", maker.display(), busybox.display()));
        peer.load(&busybox);
        peer.load(&pause(&dir));
        contestants.push(std::sync::Arc::new(Contestant {
            name: "containerd",
            runtime,
            daemon: Pid::from_raw(peer.child.id() as i32),
            cgroup: peer.cgroup.clone(),
            logs: dir.join("logs"),
        }));
        containerd = Some(peer);
    }
    let mut series = vec![<[Series; 5]>::default(); contestants.len()];
    for round in 0..options.rounds + 1 {
        for (contestant, [idle, starts, removals, ..]) in contestants.iter().zip(&mut series) {
            let begin = Instant::now();
            let pod = contestant.start(&format!("pod{round}")).await.context(contestant.name)?;
            let started = begin.elapsed();
            let begin = Instant::now();
            contestant.remove(pod).await.context(contestant.name)?;
            let removed = begin.elapsed();
            // The first round warms caches and makes bridges.
            if round > 0 {
                starts.add(started.as_secs_f64() * 1000.0);
                removals.add(removed.as_secs_f64() * 1000.0);
                idle.add(rss(contestant.daemon)?);
            }
        }
    }
    for _ in 0..options.bursts {
        for (contestant, [.., rates, memories]) in contestants.iter().zip(&mut series) {
            let (rate, memory, pods) = contestant.burst(options.pods).await.context(contestant.name)?;
            for pod in pods {
                contestant.remove(pod).await.context(contestant.name)?;
            }
            rates.add(rate);
            memories.add(memory);
        }
    }
    drop(containerd);
    let with_pods = format!("cri: the daemon's resident memory with {} pods", options.pods);
    let titles = [
        ("cri: the daemon's resident memory without pods", "MB"),
        ("cri: RunPodSandbox + CreateContainer + StartContainer", "ms"),
        ("cri: stop and remove container and pod", "ms"),
        ("cri: pods per second, 10 in parallel", "/s"),
        (with_pods.as_str(), "MB"),
    ];
    for (at, (title, unit)) in titles.iter().enumerate() {
        let rows: Vec<_> = contestants.iter().zip(&series).map(|(c, s)| (c.name.to_owned(), s[at].clone())).collect();
        table(title, unit, &rows);
    }
    Ok(())
}
