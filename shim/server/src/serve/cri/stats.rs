//! What containers and pods use.
//!
//! Lists leave out what is removed while they are made. What the machine does not count is absent from the answer.

use coracle_engine::stats::{
    ContainerStats, Cpu, DiskUsage, GroupStats, Interface, Memory, Psi, SandboxStats, Swap, Tasks,
};
use coracle_engine::{ContainerFilter, SandboxFilter};
use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri, blocking, convert, fault, filter};

impl Cri {
    pub(super) async fn container_stats_rpc(
        &self,
        request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse, Status> {
        let engine = self.engine().clone();
        let id = blocking(move || filter::known_container(&engine, &request.container_id)).await?;
        let stats = self.engine().container_stats(&id).await.map_err(fault::engine)?;
        Ok(v1::ContainerStatsResponse { stats: Some(self.container_stats_of(&stats)) })
    }

    pub(super) async fn list_container_stats_rpc(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse, Status> {
        Ok(v1::ListContainerStatsResponse { stats: self.all_container_stats(request.filter).await? })
    }

    pub(super) async fn stream_container_stats_rpc(
        &self,
        request: v1::StreamContainerStatsRequest,
    ) -> Result<Answers<v1::StreamContainerStatsResponse>, Status> {
        let all = self.all_container_stats(request.filter).await?;
        Ok(filter::batches(all, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    pub(super) async fn pod_sandbox_stats_rpc(
        &self,
        request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, Status> {
        let engine = self.engine().clone();
        let id = blocking(move || filter::known_sandbox(&engine, &request.pod_sandbox_id)).await?;
        let stats = self.engine().sandbox_stats(&id).await.map_err(fault::engine)?;
        Ok(v1::PodSandboxStatsResponse { stats: Some(self.sandbox_stats_of(&stats)) })
    }

    pub(super) async fn list_pod_sandbox_stats_rpc(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse, Status> {
        Ok(v1::ListPodSandboxStatsResponse { stats: self.all_sandbox_stats(request.filter).await? })
    }

    pub(super) async fn stream_pod_sandbox_stats_rpc(
        &self,
        request: v1::StreamPodSandboxStatsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxStatsResponse>, Status> {
        let all = self.all_sandbox_stats(request.filter).await?;
        Ok(filter::batches(all, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    /// ImageFsInfo: the store and the writable layers lie on one file system, and so are told with one path.
    pub(super) async fn fs_usage(&self) -> Result<v1::ImageFsInfoResponse, Status> {
        let fs = self.engine().fs_stats().await.map_err(fault::engine)?;
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(&fs.mountpoint, fs.images)],
            container_filesystems: vec![filesystem(&fs.mountpoint, fs.containers)],
        })
    }

    async fn all_container_stats(
        &self,
        wanted: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let wanted = wanted.unwrap_or_default();
        let wanted = ContainerFilter {
            id: wanted.id,
            sandbox_id: wanted.pod_sandbox_id,
            labels: filter::labels(wanted.label_selector),
            local: Some(false),
            ..Default::default()
        };
        let all = self.engine().list_container_stats(wanted).await.map_err(fault::engine)?;
        let whole = all.iter().filter(|stats| filter::shown_container(&stats.status).is_some());
        Ok(whole.map(|stats| self.container_stats_of(stats)).collect())
    }

    async fn all_sandbox_stats(
        &self,
        wanted: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let wanted = wanted.unwrap_or_default();
        let labels = filter::labels(wanted.label_selector);
        let wanted = SandboxFilter { id: wanted.id, labels, local: Some(false), ..Default::default() };
        let all = self.engine().list_sandbox_stats(wanted).await.map_err(fault::engine)?;
        let whole = all.iter().filter(|stats| filter::shown_sandbox(stats.status.state).is_some());
        Ok(whole.map(|stats| self.sandbox_stats_of(stats)).collect())
    }

    fn container_stats_of(&self, stats: &ContainerStats) -> v1::ContainerStats {
        let config = &stats.status.config;
        let group = stats.group.as_ref();
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: stats.status.id.clone(),
                metadata: Some(v1::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
                labels: config.labels.clone().into_iter().collect(),
                annotations: config.annotations.clone().into_iter().collect(),
            }),
            cpu: group.and_then(cpu),
            memory: group.and_then(memory),
            writable_layer: stats.writable_layer.map(|layer| filesystem(self.engine().store().root(), layer)),
            swap: group.and_then(swap),
            io: group.and_then(io),
        }
    }

    fn sandbox_stats_of(&self, stats: &SandboxStats) -> v1::PodSandboxStats {
        let config = &stats.status.config;
        let group = stats.group.as_ref();
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: stats.status.id.clone(),
                metadata: Some(convert::sandbox::metadata(config)),
                labels: config.labels.clone().into_iter().collect(),
                annotations: config.annotations.clone().into_iter().collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: group.and_then(cpu),
                memory: group.and_then(memory),
                network: stats.interfaces.as_ref().map(|all| network(all, stats.timestamp)),
                process: group.and_then(process),
                containers: stats.containers.iter().map(|one| self.container_stats_of(one)).collect(),
                io: group.and_then(io),
            }),
            windows: None,
        }
    }
}

/// A filesystem's usage; kubelet compares the path with that of the image store to see whether they are one.
pub(super) fn filesystem(path: &std::path::Path, found: DiskUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: found.timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
        used_bytes: value(found.usage.bytes),
        inodes_used: value(found.usage.inodes),
    }
}

pub(super) fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn optional(found: Option<u64>) -> Option<v1::UInt64Value> {
    found.and_then(value)
}

fn psi(psi: Psi) -> v1::PsiStats {
    let data = |p: coracle_engine::stats::Pressure| v1::PsiData {
        total: p.total,
        avg10: p.avg10,
        avg60: p.avg60,
        avg300: p.avg300,
    };
    v1::PsiStats { full: Some(data(psi.full)), some: Some(data(psi.some)) }
}

fn cpu(group: &GroupStats) -> Option<v1::CpuUsage> {
    let Cpu { usage, nano_cores, psi: pressure, .. } = group.cpu?;
    Some(v1::CpuUsage {
        timestamp: group.timestamp,
        usage_core_nano_seconds: value(usage),
        usage_nano_cores: optional(nano_cores),
        psi: pressure.map(psi),
    })
}

fn memory(group: &GroupStats) -> Option<v1::MemoryUsage> {
    let memory: Memory = group.memory?;
    Some(v1::MemoryUsage {
        timestamp: group.timestamp,
        working_set_bytes: value(memory.working_set),
        available_bytes: optional(memory.available()),
        usage_bytes: value(memory.usage),
        rss_bytes: optional(memory.rss),
        page_faults: optional(memory.page_faults),
        major_page_faults: optional(memory.major_page_faults),
        psi: memory.psi.map(psi),
    })
}

fn swap(group: &GroupStats) -> Option<v1::SwapUsage> {
    let Swap { usage, limit } = group.swap?;
    Some(v1::SwapUsage {
        timestamp: group.timestamp,
        swap_available_bytes: optional(limit.map(|limit| limit.saturating_sub(usage))),
        swap_usage_bytes: value(usage),
    })
}

fn io(group: &GroupStats) -> Option<v1::IoUsage> {
    let pressure = group.io.as_ref()?.psi?;
    Some(v1::IoUsage { timestamp: group.timestamp, psi: Some(psi(pressure)) })
}

fn process(group: &GroupStats) -> Option<v1::ProcessUsage> {
    let Tasks { count, .. } = group.tasks?;
    Some(v1::ProcessUsage { timestamp: group.timestamp, process_count: value(count) })
}

/// The default interface is `eth0`, as CNI clients name it, else the first.
fn network(all: &[Interface], timestamp: i64) -> v1::NetworkUsage {
    let usage = |one: &Interface| v1::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: value(one.rx_bytes),
        rx_errors: value(one.rx_errors),
        tx_bytes: value(one.tx_bytes),
        tx_errors: value(one.tx_errors),
    };
    let default = all.iter().position(|one| one.name == "eth0").unwrap_or(0);
    let rest = all.iter().enumerate().filter(|(at, _)| *at != default).map(|(_, one)| usage(one)).collect();
    v1::NetworkUsage { timestamp, default_interface: all.get(default).map(usage), interfaces: rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_absent() {
        let group = GroupStats { memory: Some(Memory { usage: 5, ..Default::default() }), ..Default::default() };
        let told = memory(&group).unwrap();
        assert_eq!(told.usage_bytes.unwrap().value, 5);
        assert!(told.available_bytes.is_none() && told.rss_bytes.is_none() && told.psi.is_none());
        assert!(cpu(&group).is_none() && swap(&group).is_none() && io(&group).is_none());
    }

    #[test]
    fn eth0_is_the_default_interface_wherever_it_stands() {
        let named = |name: &str| Interface { name: name.into(), rx_bytes: 7, ..Default::default() };
        let told = network(&[named("net1"), named("eth0")], 1);
        assert_eq!(told.default_interface.unwrap().name, "eth0");
        assert_eq!(told.interfaces[0].name, "net1");
        assert!(network(&[], 1).default_interface.is_none());
    }
}
