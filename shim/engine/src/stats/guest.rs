//! What containers in virtual machines use: their cgroups are the guest's, and its supervisor is asked for them by the one
//! on the host (Task.Stats), each with a deadline and all at once. One that does not answer leaves `None`, as a cgroup
//! that is not there does. The numbers are the guest's word, and nothing but shown.

use std::time::{Duration, Instant};

use coracle_proto::cgroups_v2 as v2;
use coracle_proto::ttrpc::method;
use coracle_proto::{any, task};

use super::{Block, Cpu, GroupStats, Io, Memory, Pressure, Psi, Swap, Tasks, Throttling};
use crate::engine::Engine;
use crate::id;
use crate::record::now;

/// How long a guest may take: kubelet asks for all pods at once, and one that hangs must not delay the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// More block devices no guest of ours has.
const MAX_DEVICES: usize = 64;

impl Engine {
    /// What a container's cgroup in its guest counted.
    pub(super) async fn guest_group(&self, sandbox: &str, container: &str) -> Option<GroupStats> {
        let what = format!("ask for the statistics of container {}", id::short(container));
        let request = task::StatsRequest { id: container.to_owned() };
        let said: task::StatsResponse =
            self.task(sandbox, method::STATS, &what, &request, Some(PATIENCE)).await.ok()?;
        let metrics: v2::Metrics = any::unpack(said.stats.as_ref()?)?.ok()?;
        let mut group = group(metrics);
        if let Some(cpu) = &mut group.cpu {
            cpu.nano_cores = self.stats.rate(container, cpu.usage, Instant::now());
        }
        Some(group)
    }
}

fn group(metrics: v2::Metrics) -> GroupStats {
    let events = metrics.memory_events.unwrap_or_default();
    GroupStats {
        timestamp: now(),
        cpu: metrics.cpu.map(cpu),
        swap: metrics.memory.as_ref().map(|m| Swap { usage: m.swap_usage, limit: limit(m.swap_limit) }),
        memory: metrics.memory.map(|memory| memory_of(&memory, &events)),
        tasks: metrics.pids.map(|pids| Tasks { count: pids.current, limit: limit(pids.limit) }),
        io: metrics.io.map(io),
    }
}

/// Nothing and everything both stand for no limit.
fn limit(bytes: u64) -> Option<u64> {
    Some(bytes).filter(|bytes| *bytes != 0 && *bytes != u64::MAX)
}

fn cpu(cpu: v2::CpuStat) -> Cpu {
    let nanos = |micros: u64| micros.saturating_mul(1000);
    let throttling = Throttling {
        periods: cpu.nr_periods,
        throttled_periods: cpu.nr_throttled,
        throttled_time: nanos(cpu.throttled_usec),
    };
    Cpu {
        usage: nanos(cpu.usage_usec),
        user: Some(nanos(cpu.user_usec)),
        system: Some(nanos(cpu.system_usec)),
        nano_cores: None,
        throttling: Some(throttling),
        psi: psi(cpu.psi),
    }
}

fn memory_of(memory: &v2::MemoryStat, events: &v2::MemoryEvents) -> Memory {
    Memory {
        usage: memory.usage,
        working_set: memory.usage.saturating_sub(memory.inactive_file),
        rss: Some(memory.anon),
        cache: Some(memory.file),
        mapped_file: Some(memory.file_mapped),
        kernel: Some(memory.kernel_stack.saturating_add(memory.slab)),
        active_file: Some(memory.active_file),
        inactive_file: Some(memory.inactive_file),
        page_faults: Some(memory.pgfault),
        major_page_faults: Some(memory.pgmajfault),
        own_page_faults: Some(memory.pgfault),
        own_major_page_faults: Some(memory.pgmajfault),
        limit: limit(memory.usage_limit),
        max_usage: Some(memory.max_usage).filter(|most| *most > 0),
        failures: Some(events.max),
        oom_kills: Some(events.oom_kill),
        psi: psi(memory.psi),
    }
}

fn io(io: v2::IoStat) -> Io {
    let block = |entry: v2::IoEntry| Block {
        major: entry.major,
        minor: entry.minor,
        read_bytes: entry.rbytes,
        written_bytes: entry.wbytes,
        reads: entry.rios,
        writes: entry.wios,
    };
    Io { devices: io.usage.into_iter().take(MAX_DEVICES).map(block).collect(), psi: psi(io.psi) }
}

fn psi(stats: Option<v2::PsiStats>) -> Option<Psi> {
    let line = |data: v2::PsiData| Pressure {
        total: data.total.saturating_mul(1000),
        avg10: data.avg10,
        avg60: data.avg60,
        avg300: data.avg300,
    };
    let stats = stats?;
    Some(Psi { some: line(stats.some?), full: stats.full.map(line).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_counters_are_told_in_the_units_of_the_hosts() {
        let cpu = v2::CpuStat { usage_usec: 5, ..Default::default() };
        let memory = v2::MemoryStat {
            usage: 100,
            inactive_file: 30,
            usage_limit: u64::MAX,
            swap_limit: 7,
            ..Default::default()
        };
        let events = v2::MemoryEvents { oom_kill: 2, ..Default::default() };
        let metrics =
            v2::Metrics { cpu: Some(cpu), memory: Some(memory), memory_events: Some(events), ..Default::default() };
        let group = group(metrics);
        let memory = group.memory.unwrap();
        assert_eq!(group.cpu.unwrap().usage, 5000);
        assert_eq!((memory.working_set, memory.limit, memory.oom_kills), (70, None, Some(2)));
        assert_eq!(group.swap.unwrap().limit, Some(7));
        assert_eq!((group.tasks, group.io), (None, None));
    }
}
