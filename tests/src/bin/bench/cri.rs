//! A node's runtime as kubelet sees it: `coracle serve` and Debian's containerd, through the same independent CRI client, with
//! the same CNI configuration list (bridge, host-local, portmap) and the same image, taking turns in one run.
//!
//! Each has a network namespace of its own, so that neither's bridge is the other's. containerd's sandbox image is made of
//! busybox's `sleep`, since there is no registry to pull a pause from; its plugins are Debian's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use coracle_tests::containerd::{self, Containerd};
use coracle_tests::cri::{self, Node, Runtime, node_with, script};
use coracle_tests::machine::Netns;
use k8s_cri::v1;
use nix::unistd::Pid;

use crate::series::{Series, table};

/// Pods that are made at the same time.
const AT_ONCE: usize = 10;

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

pub fn run(options: &Options) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let ours = scratch.path().join("coracle");
    let confs = containerd::conflist(&ours);
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
        fs::create_dir(&dir)?;
        let handler = containerd::Options { cri: Some("runc".into()), ..Default::default() };
        let peer = Containerd::place(&dir, Some(Netns::new()), &handler);
        contestants.push(std::sync::Arc::new(Contestant {
            name: "containerd",
            runtime: Runtime::new(cri::ready(&peer).await),
            daemon: peer.pid(),
            cgroup: peer.cgroup(),
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
