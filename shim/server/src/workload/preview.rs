//! `--dry-run`: what would be done, with defaults filled in, and what would have no effect.

use anyhow::Result;
use serde::Serialize;

use crate::kube::container::{Container, PullPolicy};
use crate::kube::pod::Pod;
use crate::kube::workload::{Kind, Workload};
use crate::kube::{Documents, Note};
use crate::objects::AnyObject;
use crate::out::{self, Format};

/// What would be done, for programs.
#[derive(Serialize)]
struct Preview<'d> {
    pods: Vec<Pod>,
    objects: &'d [AnyObject],
    workloads: &'d [Workload],
    without_effect: &'d [Note],
}

/// Shows it.
pub fn print(documents: &Documents, format: Format) -> Result<()> {
    let pods = || documents.pods.iter().cloned().chain(documents.workloads.iter().flat_map(first_pods));
    if format == Format::Json {
        return out::json(&Preview {
            pods: pods().collect(),
            objects: &documents.objects,
            workloads: &documents.workloads,
            without_effect: &documents.notes,
        });
    }
    for object in &documents.objects {
        out::line(format!("{object} would be kept"))?;
    }
    for workload in &documents.workloads {
        out::line(format!("{}/{}: {}", workload.kind.as_str().to_lowercase(), workload.name, in_words(workload)))?;
    }
    for pod in pods() {
        print_pod(&pod)?;
    }
    for Note { of, field, why } in &documents.notes {
        let field = if field.is_empty() { String::new() } else { format!(": {field}") };
        out::line(format!("{of}{field} {why}: no effect on one machine"))?;
    }
    Ok(())
}

fn first_pods(workload: &Workload) -> Vec<Pod> {
    match workload.kind {
        Kind::Job(_) => vec![workload.pod(0)],
        _ => workload.pods(),
    }
}

fn in_words(workload: &Workload) -> String {
    let pods = workload.replicas;
    match &workload.kind {
        Kind::Deployment | Kind::ReplicaSet => format!("{pods} pods alike, started again in place"),
        Kind::DaemonSet => "one pod, since there is one node".to_owned(),
        Kind::StatefulSet { ordered: true, .. } => format!("{pods} pods, each started when the one before it is ready"),
        Kind::StatefulSet { .. } => format!("{pods} pods"),
        Kind::Job(job) => {
            let successes = job.completions.map_or("until one succeeds".to_owned(), |n| format!("until {n} succeed"));
            format!("pods {successes}, {pods} at a time, {} may fail", job.backoff_limit)
        }
    }
}

fn print_pod(pod: &Pod) -> Result<()> {
    out::line(format!("pod {} is valid", pod.name))?;
    let told = [
        ("namespace", pod.namespace.clone()),
        ("host name", pod.hostname.clone()),
        ("restart", format!("{:?}", pod.restart)),
        ("grace", format!("{} s", pod.grace)),
        ("network", if pod.host_network { "the machine's" } else { "its own" }.to_owned()),
    ];
    out::line(format!("  {}", told.map(|(name, value)| format!("{name} {value}")).join(", ")))?;
    for container in &pod.init {
        let what = if container.is_sidecar(true) { "sidecar" } else { "init container" };
        out::line(format!("  {what} {}", container_in_words(container)))?;
    }
    for container in &pod.containers {
        out::line(format!("  container {}", container_in_words(container)))?;
    }
    for volume in &pod.volumes {
        out::line(format!("  volume {}", volume.name))?;
    }
    Ok(())
}

fn container_in_words(container: &Container) -> String {
    let pull = match container.pull {
        PullPolicy::Always => "pulled always",
        PullPolicy::IfNotPresent => "pulled if missing",
        PullPolicy::Never => "never pulled",
    };
    let mut words = format!("{}: image {} ({pull})", container.name, container.image);
    for port in container.ports.iter().filter(|port| port.host_port.is_some()) {
        let host = port.host_port.unwrap_or_default();
        words += &format!(", port {host} of the machine leads to {}/{}", port.container_port, port.protocol);
    }
    if let Some(bytes) = container.resources.memory_limit {
        words += &format!(", memory {bytes} B at most");
    }
    words
}
