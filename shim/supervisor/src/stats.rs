//! Task.Stats and Sandbox.SandboxMetrics: the runtime's statistics as the messages containerd's clients know, one for each
//! cgroup version.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use coracle_proto::sandbox::{SandboxMetricsRequest, SandboxMetricsResponse};
use coracle_proto::ttrpc::Code;
use coracle_proto::types::Metric;
use coracle_proto::{Any, Message, any, cgroups_v1 as v1, cgroups_v2 as v2};
use coracle_runtime::cgroup::{Cgroup, MemoryEntry, Psi, PsiData, Rdma, RdmaEntry, Stats, Version};

use crate::connection::Call;
use crate::exits::MemoryCounts;
use crate::failure::{Fail, Failure};
use crate::ops;
use crate::sandbox::CGROUP_RECORD;
use crate::service::{Outcome, decode};
use crate::supervisor::{Job, Supervisor};

impl Supervisor {
    /// Sandbox.SandboxMetrics
    pub(crate) fn sandbox_metrics(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: SandboxMetricsRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        self.sandbox.check_open()?;
        let record = self.sandbox.bundle.join(CGROUP_RECORD);
        let body = Box::new(move || of_pod(&record, request.sandbox_id));
        self.work(Job::Answer { call }, &[], body)?;
        Ok(None)
    }
}

/// What the pod's cgroup has counted.
fn of_pod(record: &Path, id: String) -> Result<Vec<u8>, Failure> {
    let Some(state) = ops::pod_cgroup(record)? else {
        return Err(Code::FailedPrecondition.failure(format!("metrics of sandbox {id}: it was made without a cgroup")));
    };
    let failed = |error| Code::Unknown.failure(format!("metrics of sandbox {id}: {error}"));
    let cgroup = Cgroup::open(&state);
    let counts = MemoryCounts::read(&ops::oom_file(&state).unwrap_or_default());
    let data = message(&cgroup.stats().map_err(failed)?, state.version, &counts);
    let metrics = Metric { timestamp: Some(SystemTime::now().into()), id: id.clone(), data: Some(data) };
    Ok(SandboxMetricsResponse { metrics: Some(metrics) }.encode_to_vec())
}

/// The kernel's list of disks: major, minor, name, and what each has done.
const DISKS: &str = "/proc/diskstats";
/// The disks' device nodes by major and minor, as clients of v1's message know them.
type Devices = BTreeMap<(u64, u64), String>;

fn device_names(disks: &str) -> Devices {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", words.next()?)))
    };
    disks.lines().filter_map(name).collect()
}

/// The message for this version.
pub fn message(stats: &Stats, version: Version, counts: &MemoryCounts) -> Any {
    match version {
        Version::V1 => {
            let disks = std::fs::read_to_string(DISKS).unwrap_or_default();
            any::pack(&metrics_v1(stats, counts, &device_names(&disks)))
        }
        Version::V2 => any::pack(&metrics_v2(stats, counts)),
    }
}

fn metrics_v1(stats: &Stats, counts: &MemoryCounts, devices: &Devices) -> v1::Metrics {
    let usage = v1::CpuUsage {
        total: stats.cpu.usage.total,
        kernel: stats.cpu.usage.kernel,
        user: stats.cpu.usage.user,
        per_cpu: stats.cpu.usage.percpu.clone(),
    };
    let throttling = v1::Throttle {
        periods: stats.cpu.throttling.periods,
        throttled_periods: stats.cpu.throttling.throttled_periods,
        throttled_time: stats.cpu.throttling.throttled_time,
    };
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| v1::HugetlbStat {
        usage: pages.usage,
        max: pages.max,
        failcnt: pages.failcnt,
        pagesize: size.clone(),
    });
    v1::Metrics {
        hugetlb: hugetlb.collect(),
        pids: Some(v1::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v1::CpuStat { usage: Some(usage), throttling: Some(throttling) }),
        memory: Some(memory_v1(stats)),
        blkio: Some(blkio_v1(stats, devices)),
        rdma: (stats.rdma != Rdma::default()).then(|| rdma_v1(&stats.rdma)),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill_disable: counts.of("oom_kill_disable"),
            under_oom: counts.of("under_oom"),
            oom_kill: counts.of("oom_kill"),
        }),
    }
}

fn rdma_v1(rdma: &Rdma) -> v1::RdmaStat {
    let entry = |one: &RdmaEntry| v1::RdmaEntry {
        device: one.device.clone(),
        hca_handles: one.hca_handles,
        hca_objects: one.hca_objects,
    };
    v1::RdmaStat { current: rdma.current.iter().map(entry).collect(), limit: rdma.limit.iter().map(entry).collect() }
}

fn rdma_v2(rdma: &Rdma) -> v2::RdmaStat {
    let entry = |one: &RdmaEntry| v2::RdmaEntry {
        device: one.device.clone(),
        hca_handles: one.hca_handles,
        hca_objects: one.hca_objects,
    };
    v2::RdmaStat { current: rdma.current.iter().map(entry).collect(), limit: rdma.limit.iter().map(entry).collect() }
}

fn pressure(psi: &Option<Psi>) -> Option<v2::PsiStats> {
    let data =
        |one: &PsiData| Some(v2::PsiData { avg10: one.avg10, avg60: one.avg60, avg300: one.avg300, total: one.total });
    psi.as_ref().map(|psi| v2::PsiStats { some: data(&psi.some), full: data(&psi.full) })
}

fn memory_v1(stats: &Stats) -> v1::MemoryStat {
    let raw = |name: &str| stats.memory.raw.get(name).copied().unwrap_or(0);
    let entry = |entry: &MemoryEntry| {
        Some(v1::MemoryEntry { limit: entry.limit, usage: entry.usage, max: entry.max, failcnt: entry.failcnt })
    };
    v1::MemoryStat {
        cache: raw("cache"),
        rss: raw("rss"),
        rss_huge: raw("rss_huge"),
        mapped_file: raw("mapped_file"),
        dirty: raw("dirty"),
        writeback: raw("writeback"),
        pg_pg_in: raw("pgpgin"),
        pg_pg_out: raw("pgpgout"),
        pg_fault: raw("pgfault"),
        pg_maj_fault: raw("pgmajfault"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        hierarchical_memory_limit: raw("hierarchical_memory_limit"),
        hierarchical_swap_limit: raw("hierarchical_memsw_limit"),
        total_cache: raw("total_cache"),
        total_rss: raw("total_rss"),
        total_rss_huge: raw("total_rss_huge"),
        total_mapped_file: raw("total_mapped_file"),
        total_dirty: raw("total_dirty"),
        total_writeback: raw("total_writeback"),
        total_pg_pg_in: raw("total_pgpgin"),
        total_pg_pg_out: raw("total_pgpgout"),
        total_pg_fault: raw("total_pgfault"),
        total_pg_maj_fault: raw("total_pgmajfault"),
        total_inactive_anon: raw("total_inactive_anon"),
        total_active_anon: raw("total_active_anon"),
        total_inactive_file: raw("total_inactive_file"),
        total_active_file: raw("total_active_file"),
        total_unevictable: raw("total_unevictable"),
        usage: entry(&stats.memory.usage),
        swap: entry(&stats.memory.swap),
        kernel: entry(&stats.memory.kernel),
        kernel_tcp: entry(&stats.memory.kernel_tcp),
    }
}

fn blkio_v1(stats: &Stats, devices: &Devices) -> v1::BlkIoStat {
    let entries = |list: &[coracle_runtime::cgroup::BlkioEntry]| {
        let entry = |one: &coracle_runtime::cgroup::BlkioEntry| v1::BlkIoEntry {
            op: one.op.clone(),
            device: devices.get(&(one.major, one.minor)).cloned().unwrap_or_default(),
            major: one.major,
            minor: one.minor,
            value: one.value,
        };
        list.iter().map(entry).collect()
    };
    v1::BlkIoStat {
        io_service_bytes_recursive: entries(&stats.blkio.io_service_bytes_recursive),
        io_serviced_recursive: entries(&stats.blkio.io_serviced_recursive),
        io_queued_recursive: entries(&stats.blkio.io_queued_recursive),
        io_service_time_recursive: entries(&stats.blkio.io_service_time_recursive),
        io_wait_time_recursive: entries(&stats.blkio.io_wait_time_recursive),
        io_merged_recursive: entries(&stats.blkio.io_merged_recursive),
        io_time_recursive: entries(&stats.blkio.io_time_recursive),
        sectors_recursive: entries(&stats.blkio.sectors_recursive),
    }
}

const NANOS_PER_MICRO: u64 = 1000;

/// The runtime's 0 is no limit, as in v1's message.
fn v2_limit(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

fn metrics_v2(stats: &Stats, counts: &MemoryCounts) -> v2::Metrics {
    let cpu = v2::CpuStat {
        usage_usec: stats.cpu.usage.total / NANOS_PER_MICRO,
        user_usec: stats.cpu.usage.user / NANOS_PER_MICRO,
        system_usec: stats.cpu.usage.kernel / NANOS_PER_MICRO,
        nr_periods: stats.cpu.throttling.periods,
        nr_throttled: stats.cpu.throttling.throttled_periods,
        throttled_usec: stats.cpu.throttling.throttled_time / NANOS_PER_MICRO,
        psi: pressure(&stats.cpu.psi),
    };
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| v2::HugeTlbStat {
        current: pages.usage,
        max: pages.max,
        pagesize: size.clone(),
        failcnt: pages.failcnt,
    });
    v2::Metrics {
        pids: Some(v2::PidsStat { current: stats.pids.current, limit: v2_limit(stats.pids.limit) }),
        cpu: Some(cpu),
        memory: Some(memory_v2(stats)),
        io: Some(io_v2(stats)),
        hugetlb: hugetlb.collect(),
        rdma: (stats.rdma != Rdma::default()).then(|| rdma_v2(&stats.rdma)),
        memory_events: Some(v2::MemoryEvents {
            low: counts.of("low"),
            high: counts.of("high"),
            max: counts.of("max"),
            oom: counts.of("oom"),
            oom_kill: counts.of("oom_kill"),
            oom_group_kill: counts.of("oom_group_kill"),
        }),
    }
}

fn memory_v2(stats: &Stats) -> v2::MemoryStat {
    let raw = |name: &str| stats.memory.raw.get(name).copied().unwrap_or(0);
    let (memory, swap) = (&stats.memory.usage, &stats.memory.swap);
    v2::MemoryStat {
        anon: raw("anon"),
        file: raw("file"),
        kernel_stack: raw("kernel_stack"),
        slab: raw("slab"),
        sock: raw("sock"),
        shmem: raw("shmem"),
        file_mapped: raw("file_mapped"),
        file_dirty: raw("file_dirty"),
        file_writeback: raw("file_writeback"),
        anon_thp: raw("anon_thp"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        slab_reclaimable: raw("slab_reclaimable"),
        slab_unreclaimable: raw("slab_unreclaimable"),
        pgfault: raw("pgfault"),
        pgmajfault: raw("pgmajfault"),
        workingset_refault: raw("workingset_refault_file") + raw("workingset_refault_anon"),
        workingset_activate: raw("workingset_activate_file") + raw("workingset_activate_anon"),
        workingset_nodereclaim: raw("workingset_nodereclaim"),
        pgrefill: raw("pgrefill"),
        pgscan: raw("pgscan"),
        pgsteal: raw("pgsteal"),
        pgactivate: raw("pgactivate"),
        pgdeactivate: raw("pgdeactivate"),
        pglazyfree: raw("pglazyfree"),
        pglazyfreed: raw("pglazyfreed"),
        thp_fault_alloc: raw("thp_fault_alloc"),
        thp_collapse_alloc: raw("thp_collapse_alloc"),
        usage: memory.usage,
        usage_limit: memory.limit,
        // The runtime counts memory and swap together, as v1 does; here they are apart.
        swap_usage: swap.usage.saturating_sub(memory.usage),
        swap_limit: if swap.limit == u64::MAX { u64::MAX } else { swap.limit.saturating_sub(memory.limit) },
        max_usage: memory.max,
        swap_max_usage: swap.max,
        psi: pressure(&stats.memory.psi),
    }
}

/// One entry for each device, from the runtime's list of one entry for each counter.
fn io_v2(stats: &Stats) -> v2::IoStat {
    let mut usage: Vec<v2::IoEntry> = Vec::new();
    let mut add = |major: u64, minor: u64, set: &dyn Fn(&mut v2::IoEntry)| {
        let at = usage.iter().position(|entry| (entry.major, entry.minor) == (major, minor)).unwrap_or_else(|| {
            usage.push(v2::IoEntry { major, minor, ..Default::default() });
            usage.len() - 1
        });
        set(&mut usage[at]);
    };
    for one in &stats.blkio.io_service_bytes_recursive {
        add(one.major, one.minor, &|entry| match one.op.to_ascii_lowercase().as_str() {
            "read" => entry.rbytes = one.value,
            "write" => entry.wbytes = one.value,
            _ => {}
        });
    }
    for one in &stats.blkio.io_serviced_recursive {
        add(one.major, one.minor, &|entry| match one.op.to_ascii_lowercase().as_str() {
            "read" => entry.rios = one.value,
            "write" => entry.wios = one.value,
            _ => {}
        });
    }
    v2::IoStat { usage, psi: pressure(&stats.blkio.psi) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_runtime::cgroup::BlkioEntry;

    fn sample() -> Stats {
        let mut stats = Stats::default();
        stats.cpu.usage.total = 5_000_000;
        stats.memory.usage.usage = 4096;
        stats.memory.raw.insert("total_inactive_file".into(), 12);
        stats.memory.raw.insert("inactive_file".into(), 7);
        let entry = |op: &str, value| BlkioEntry { major: 8, minor: 1, op: op.into(), value };
        stats.blkio.io_service_bytes_recursive = vec![entry("Read", 10), entry("Write", 20)];
        stats.blkio.io_serviced_recursive = vec![entry("Read", 1)];
        stats
    }

    #[test]
    fn disks_are_called_by_their_names() {
        let devices = device_names("   8       1 sda1 5 6\nnonsense\n 254 0 vda 1 2 3\n");
        assert_eq!(devices[&(8, 1)], "/dev/sda1");
        assert_eq!(devices.len(), 2);
        let blkio = metrics_v1(&sample(), &MemoryCounts::read("/"), &devices).blkio.unwrap();
        assert!(blkio.io_serviced_recursive.iter().all(|entry| entry.device == "/dev/sda1"));
    }

    #[test]
    fn each_version_has_its_message() {
        let dir = tempfile::tempdir().unwrap();
        let counts = |text: &str| {
            let path = dir.path().join("counts");
            std::fs::write(&path, text).unwrap();
            MemoryCounts::read(path.to_str().unwrap())
        };
        let any = message(&sample(), Version::V1, &counts("oom_kill_disable 1\nunder_oom 0\noom_kill 3\n"));
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics: v1::Metrics = any::unpack(&any).unwrap().unwrap();
        assert_eq!(metrics.cpu.unwrap().usage.unwrap().total, 5_000_000);
        assert_eq!(metrics.memory.as_ref().unwrap().total_inactive_file, 12);
        let oom = metrics.memory_oom_control.unwrap();
        assert_eq!((oom.oom_kill, oom.oom_kill_disable, oom.under_oom), (3, 1, 0));

        let stats = Stats { rdma: Rdma { current: vec![RdmaEntry::default()], limit: vec![] }, ..sample() };
        let any = message(&stats, Version::V2, &counts("low 0\nhigh 5\nmax 6\noom 2\noom_kill 1\noom_group_kill 1\n"));
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics: v2::Metrics = any::unpack(&any).unwrap().unwrap();
        assert_eq!(metrics.cpu.unwrap().usage_usec, 5_000);
        let events = metrics.memory_events.unwrap();
        assert_eq!((events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill), (5, 6, 2, 1, 1));
        assert_eq!(metrics.rdma.unwrap().current.len(), 1);
        let expected = v2::IoEntry { major: 8, minor: 1, rbytes: 10, wbytes: 20, rios: 1, wios: 0 };
        assert_eq!(metrics.io.unwrap().usage, [expected]);
    }
}
