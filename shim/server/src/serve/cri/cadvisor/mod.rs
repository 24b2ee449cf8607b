//! The metrics that kubelet passes on, by the names of cAdvisor.
//!
//! A metric's label values are in the order of its descriptor's keys, and no two metrics have the same ones: kubelet
//! refuses a whole scrape otherwise. Values that are read for the answer have the time 0, which says so; those of the
//! writable layers are remembered and have their own. Only pods and containers that run are told of.

mod families;

use std::collections::HashMap;

use coracle_engine::stats::{
    Block, ContainerStats, Cpu, DiskUsage, GroupStats, Interface, Io, Memory, Processes, Psi, SandboxStats,
};
use coracle_engine::{Resources, SandboxFilter, SandboxState};
use coracle_proto::cri as v1;
use coracle_rootfs::usage::{self, Capacity};
use tonic::Status;

use self::families::{ALL, BASE};
use super::stats::value;
use super::{Answers, Cri, fault, filter};

/// The wire has whole seconds.
const SECOND: u64 = 1_000_000_000;

impl Cri {
    pub(super) async fn list_metric_descriptors_rpc(
        &self,
        _request: v1::ListMetricDescriptorsRequest,
    ) -> Result<v1::ListMetricDescriptorsResponse, Status> {
        let descriptors = ALL.iter().map(|family| v1::MetricDescriptor {
            name: family.name.into(),
            help: family.help.into(),
            label_keys: BASE.iter().chain(family.keys).map(|key| (*key).to_owned()).collect(),
        });
        Ok(v1::ListMetricDescriptorsResponse { descriptors: descriptors.collect() })
    }

    pub(super) async fn list_pod_sandbox_metrics_rpc(
        &self,
        _request: v1::ListPodSandboxMetricsRequest,
    ) -> Result<v1::ListPodSandboxMetricsResponse, Status> {
        Ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.all_metrics().await? })
    }

    pub(super) async fn stream_pod_sandbox_metrics_rpc(
        &self,
        _request: v1::StreamPodSandboxMetricsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxMetricsResponse>, Status> {
        let all = self.all_metrics().await?;
        Ok(filter::batches(all, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn all_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let ready = SandboxFilter { state: Some(SandboxState::Ready), local: Some(false), ..Default::default() };
        let pods = self.engine().list_sandbox_stats(ready).await.map_err(fault::engine)?;
        let root = self.engine().store().root().to_owned();
        let mut devices = Devices::default();
        let disk = Disk { device: devices.of_path(&root), capacity: usage::capacity(&root).ok() };
        let mut all = Vec::with_capacity(pods.len());
        for pod in &pods {
            let mut metrics = v1::PodSandboxMetrics {
                pod_sandbox_id: pod.status.id.clone(),
                metrics: of_pod(pod),
                container_metrics: Vec::with_capacity(pod.containers.len()),
            };
            for container in &pod.containers {
                // Removed since: it has no processes.
                let processes = self.engine().container_processes(&container.status).await.ok().flatten();
                let own = of_container(pod, container, processes, &disk, &mut devices);
                let container_id = container.status.id.clone();
                metrics.container_metrics.push(v1::ContainerMetrics { container_id, metrics: own });
            }
            all.push(metrics);
        }
        Ok(all)
    }
}

/// The file system of the writable layers.
struct Disk {
    device: String,
    capacity: Option<Capacity>,
}

/// Names of block devices; asked for once in a scrape.
#[derive(Default)]
struct Devices {
    names: HashMap<(u64, u64), String>,
}

impl Devices {
    fn name(&mut self, major: u64, minor: u64) -> String {
        let found = self.names.entry((major, minor)).or_insert_with(|| {
            let event = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
            match event.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
                Some(name) => format!("/dev/{name}"),
                None => format!("{major}:{minor}"),
            }
        });
        found.clone()
    }

    fn of_path(&mut self, path: &std::path::Path) -> String {
        match nix::sys::stat::stat(path) {
            Ok(stat) => self.name(nix::sys::stat::major(stat.st_dev), nix::sys::stat::minor(stat.st_dev)),
            Err(_) => String::new(),
        }
    }
}

/// Metrics of one object, with its labels.
struct Metrics {
    base: [String; 6],
    list: Vec<v1::Metric>,
}

impl Metrics {
    fn add(&mut self, name: &'static str, labels: &[&str], number: u64) {
        self.add_at(0, name, labels, number);
    }

    fn add_at(&mut self, timestamp: i64, name: &'static str, labels: &[&str], number: u64) {
        // A name that is not described would be a mistake of ours, which the tests find.
        let Some(family) = families::find(name).filter(|family| family.keys.len() == labels.len()) else { return };
        self.list.push(v1::Metric {
            name: name.into(),
            timestamp,
            metric_type: family.kind as i32,
            label_values: self.base.iter().cloned().chain(labels.iter().map(|l| (*l).to_owned())).collect(),
            value: value(number),
        });
    }

    fn some(&mut self, name: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.add(name, &[], number);
        }
    }

    fn group(&mut self, group: &GroupStats) {
        if let Some(cpu) = group.cpu {
            self.cpu(&cpu);
        }
        if let Some(memory) = group.memory {
            self.memory(&memory);
        }
        self.some("container_memory_swap", group.swap.map(|swap| swap.usage));
        self.some("container_threads", group.tasks.map(|tasks| tasks.count));
        self.some("container_threads_max", group.tasks.map(|tasks| tasks.limit.unwrap_or(0)));
    }

    fn cpu(&mut self, cpu: &Cpu) {
        self.add("container_cpu_usage_seconds_total", &["total"], cpu.usage / SECOND);
        self.some("container_cpu_user_seconds_total", cpu.user.map(|n| n / SECOND));
        self.some("container_cpu_system_seconds_total", cpu.system.map(|n| n / SECOND));
        if let Some(throttling) = cpu.throttling {
            self.add("container_cpu_cfs_periods_total", &[], throttling.periods);
            self.add("container_cpu_cfs_throttled_periods_total", &[], throttling.throttled_periods);
            self.add("container_cpu_cfs_throttled_seconds_total", &[], throttling.throttled_time / SECOND);
        }
        let names = ["container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total"];
        self.pressure(names, cpu.psi);
    }

    fn pressure(&mut self, [stalled, waiting]: [&'static str; 2], psi: Option<Psi>) {
        self.some(stalled, psi.map(|psi| psi.full.total / SECOND));
        self.some(waiting, psi.map(|psi| psi.some.total / SECOND));
    }

    fn memory(&mut self, memory: &Memory) {
        self.add("container_memory_usage_bytes", &[], memory.usage);
        self.add("container_memory_working_set_bytes", &[], memory.working_set);
        self.some("container_memory_max_usage_bytes", memory.max_usage);
        self.some("container_memory_rss", memory.rss);
        self.some("container_memory_cache", memory.cache);
        self.some("container_memory_mapped_file", memory.mapped_file);
        self.some("container_memory_kernel_usage", memory.kernel);
        self.some("container_memory_failcnt", memory.failures);
        self.some("container_memory_total_active_file_bytes", memory.active_file);
        self.some("container_memory_total_inactive_file_bytes", memory.inactive_file);
        self.some("container_oom_events_total", memory.oom_kills);
        let failures = [
            ("pgfault", "container", memory.own_page_faults),
            ("pgmajfault", "container", memory.own_major_page_faults),
            ("pgfault", "hierarchy", memory.page_faults),
            ("pgmajfault", "hierarchy", memory.major_page_faults),
        ];
        for (kind, scope, count) in failures {
            if let Some(count) = count {
                self.add("container_memory_failures_total", &[kind, scope], count);
            }
        }
        let names =
            ["container_pressure_memory_stalled_seconds_total", "container_pressure_memory_waiting_seconds_total"];
        self.pressure(names, memory.psi);
    }

    fn network(&mut self, interface: &Interface) {
        let label = [interface.name.as_str()];
        let counters = [
            ("container_network_receive_bytes_total", interface.rx_bytes),
            ("container_network_receive_packets_total", interface.rx_packets),
            ("container_network_receive_packets_dropped_total", interface.rx_dropped),
            ("container_network_receive_errors_total", interface.rx_errors),
            ("container_network_transmit_bytes_total", interface.tx_bytes),
            ("container_network_transmit_packets_total", interface.tx_packets),
            ("container_network_transmit_packets_dropped_total", interface.tx_dropped),
            ("container_network_transmit_errors_total", interface.tx_errors),
        ];
        for (name, number) in counters {
            self.add(name, &label, number);
        }
    }

    fn io(&mut self, io: &Io, devices: &mut Devices) {
        for block in &io.devices {
            let &Block { major, minor, .. } = block;
            let device = devices.name(major, minor);
            self.add("container_fs_reads_bytes_total", &[&device], block.read_bytes);
            self.add("container_fs_reads_total", &[&device], block.reads);
            self.add("container_fs_writes_bytes_total", &[&device], block.written_bytes);
            self.add("container_fs_writes_total", &[&device], block.writes);
            let (major, minor) = (major.to_string(), minor.to_string());
            for (operation, bytes) in [("Read", block.read_bytes), ("Write", block.written_bytes)] {
                self.add("container_blkio_device_usage_total", &[&device, &major, &minor, operation], bytes);
            }
        }
        let names = ["container_pressure_io_stalled_seconds_total", "container_pressure_io_waiting_seconds_total"];
        self.pressure(names, io.psi);
    }

    fn disk(&mut self, layer: Option<DiskUsage>, disk: &Disk) {
        let device = [disk.device.as_str()];
        if let Some(layer) = layer {
            self.add_at(layer.timestamp, "container_fs_usage_bytes", &device, layer.usage.bytes);
        }
        if let Some(capacity) = disk.capacity {
            self.add("container_fs_limit_bytes", &device, capacity.bytes);
            self.add("container_fs_inodes_free", &device, capacity.inodes_free);
            self.add("container_fs_inodes_total", &device, capacity.inodes);
        }
    }

    fn processes(&mut self, processes: &Processes) {
        self.add("container_processes", &[], processes.count);
        self.some("container_file_descriptors", processes.descriptors.map(|(all, _)| all));
        self.some("container_sockets", processes.descriptors.map(|(_, sockets)| sockets));
    }

    fn spec(&mut self, resources: &Resources) {
        let positive = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        self.some("container_spec_cpu_period", resources.cpu_period);
        self.some("container_spec_cpu_quota", positive(resources.cpu_quota));
        self.some("container_spec_cpu_shares", resources.cpu_shares);
        self.add("container_spec_memory_limit_bytes", &[], positive(resources.memory).unwrap_or(0));
        self.add("container_spec_memory_reservation_limit_bytes", &[], 0);
        self.add("container_spec_memory_swap_limit_bytes", &[], positive(resources.memory_swap).unwrap_or(0));
    }
}

/// What belongs to the pod as a whole.
fn of_pod(pod: &SandboxStats) -> Vec<v1::Metric> {
    let (id, config) = (&pod.status.id, &pod.status.config);
    let base = [id.clone(), id.clone(), String::new(), String::new(), config.namespace.clone(), config.name.clone()];
    let mut metrics = Metrics { base, list: Vec::new() };
    if let Some(group) = &pod.group {
        metrics.group(group);
    }
    for interface in pod.interfaces.iter().flatten() {
        metrics.network(interface);
    }
    metrics.list
}

fn of_container(
    pod: &SandboxStats,
    container: &ContainerStats,
    processes: Option<Processes>,
    disk: &Disk,
    devices: &mut Devices,
) -> Vec<v1::Metric> {
    let (status, pod) = (&container.status, &pod.status.config);
    let base = [
        status.id.clone(),
        status.id.clone(),
        status.config.image_ref.clone(),
        status.config.name.clone(),
        pod.namespace.clone(),
        pod.name.clone(),
    ];
    let mut metrics = Metrics { base, list: Vec::new() };
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds).unwrap_or(0) / SECOND;
    metrics.add("container_last_seen", &[], seconds(coracle_engine::record::now()));
    metrics.add("container_start_time_seconds", &[], seconds(status.started_at));
    if let Some(group) = &container.group {
        metrics.group(group);
        if let Some(io) = &group.io {
            metrics.io(io, devices);
        }
    }
    metrics.disk(container.writable_layer, disk);
    if let Some(processes) = processes {
        metrics.processes(&processes);
    }
    if let Some(open_files) = status.pid.and_then(max_open_files) {
        metrics.add("container_ulimits_soft", &["max_open_files"], open_files);
    }
    metrics.spec(&status.config.resources);
    metrics.list
}

/// The soft limit of a process's descriptors; `None` for any number, and for a process that is gone.
fn max_open_files(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests;
