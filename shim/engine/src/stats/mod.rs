//! What containers and pods use.
//!
//! Everything is read by the process that is asked, from the kernel's own files: no supervisor is called but those of
//! virtual machines, so one that hangs or is stopped delays nobody. What a machine or kernel does not count is `None`, and never a zero.
//!
//! | file | what |
//! |---|---|
//! | `meter` | cgroups of both versions: CPU, memory, swap, tasks, block devices, pressure |
//! | `guest` | what the containers of a virtual machine use, which their supervisor is asked for |
//! | `net` | the interfaces of a pod's network namespace |
//! | `cache` | rates, and writable layers that were walked |
//!
//! A pod's CPU, memory and tasks are those of its own cgroup, which holds its containers and its supervisor's helpers.
//! Its network is read through its supervisor, who lives in it. A container that does not run has no statistics but its
//! writable layer's.

mod cache;
mod guest;
mod meter;
mod net;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Instant;

use coracle_rootfs::usage::{Capacity, Usage};

pub(crate) use self::cache::Cache;
use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::lock::Holder;
use crate::record::now;
use crate::status::{ContainerState, SandboxState};
use crate::types::{ContainerFilter, ContainerStatus, NamespaceMode, SandboxFilter, SandboxStatus};

/// Descriptors are counted in a container's processes up to this many; more are not counted at all.
const MAX_DESCRIPTORS: u64 = 100_000;

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// All of it.
    pub usage: u64,
    /// In user mode.
    pub user: Option<u64>,
    /// In the kernel.
    pub system: Option<u64>,
    /// Billionths of a CPU, over the time since the question before; `None` the first time.
    pub nano_cores: Option<u64>,
    /// What the quota did.
    pub throttling: Option<Throttling>,
    /// Pressure.
    pub psi: Option<Psi>,
}

/// What the CPU quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods passed.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Nanoseconds spent waiting.
    pub throttled_time: u64,
}

/// Memory, in bytes; of the cgroup and all below it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// All that is charged.
    pub usage: u64,
    /// Without the page cache that can be dropped first.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// The kernel's own.
    pub kernel: Option<u64>,
    /// Page cache in use.
    pub active_file: Option<u64>,
    /// Page cache that goes first.
    pub inactive_file: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that had to read.
    pub major_page_faults: Option<u64>,
    /// Page faults of the cgroup alone (v1; on v2 the same as those of the whole).
    pub own_page_faults: Option<u64>,
    /// Those that had to read, of the cgroup alone.
    pub own_major_page_faults: Option<u64>,
    /// The cgroup's limit; `None` for none.
    pub limit: Option<u64>,
    /// The most that was charged so far.
    pub max_usage: Option<u64>,
    /// How often the limit was met.
    pub failures: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Pressure.
    pub psi: Option<Psi>,
}

impl Memory {
    /// What is left below the limit; `None` without one.
    pub fn available(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.working_set))
    }
}

/// Swap, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// Swapped out.
    pub usage: u64,
    /// The limit; `None` for none.
    pub limit: Option<u64>,
}

/// Tasks: threads of all processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Now.
    pub count: u64,
    /// The limit; `None` for none.
    pub limit: Option<u64>,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Io {
    /// Each device that was used.
    pub devices: Vec<Block>,
    /// Pressure.
    pub psi: Option<Psi>,
}

/// One block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub major: u64,
    /// Its number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

/// Pressure stall information.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// Some task waited.
    pub some: Pressure,
    /// All tasks waited.
    pub full: Pressure,
}

/// One line of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Nanoseconds since the beginning.
    pub total: u64,
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Interface {
    /// Its name.
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Disk space, as it was found at some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// When.
    pub timestamp: i64,
    /// What.
    pub usage: Usage,
}

/// What the processes of a container have open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// Descriptors and, among them, sockets; `None` if they were too many to count.
    pub descriptors: Option<(u64, u64)>,
}

/// What a cgroup counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupStats {
    /// When it was read.
    pub timestamp: i64,
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap; `None` where it is not counted.
    pub swap: Option<Swap>,
    /// Tasks.
    pub tasks: Option<Tasks>,
    /// Block devices.
    pub io: Option<Io>,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    /// Whose.
    pub status: ContainerStatus,
    /// Its cgroup; `None` if it does not run.
    pub group: Option<GroupStats>,
    /// Its writable layer.
    pub writable_layer: Option<DiskUsage>,
}

/// What a pod uses.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxStats {
    /// Whose.
    pub status: SandboxStatus,
    /// Its cgroup; `None` if it does not run.
    pub group: Option<GroupStats>,
    /// Its interfaces; `None` in the host's network, and if it does not run.
    pub interfaces: Option<Vec<Interface>>,
    /// When they were read.
    pub timestamp: i64,
    /// Its containers that run.
    pub containers: Vec<ContainerStats>,
}

/// The image store and the writable layers, which lie on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsStats {
    /// A path on that file system.
    pub mountpoint: std::path::PathBuf,
    /// What images take.
    pub images: DiskUsage,
    /// What writable layers take.
    pub containers: DiskUsage,
    /// The file system as such.
    pub capacity: Capacity,
}

fn trees() -> &'static meter::Trees {
    static TREES: OnceLock<meter::Trees> = OnceLock::new();
    TREES.get_or_init(meter::Trees::mounted)
}

/// What is known of a cgroup; `None` if it is not there.
fn group(cache: &Cache, path: &str) -> Option<GroupStats> {
    let trees = trees();
    let mut cpu = meter::cpu(trees, path);
    let at = Instant::now();
    if let Some(cpu) = &mut cpu {
        cpu.nano_cores = cache.rate(path, cpu.usage, at);
    }
    let (memory, swap) = meter::memory(trees, path).map_or((None, None), |(memory, swap)| (Some(memory), swap));
    let stats = GroupStats {
        timestamp: now(),
        cpu,
        memory,
        swap,
        tasks: meter::tasks(trees, path),
        io: meter::io(trees, path),
    };
    (stats.cpu.is_some() || stats.memory.is_some() || stats.tasks.is_some()).then_some(stats)
}

/// Descriptors of these processes, and how many of them are sockets.
fn descriptors(pids: &[i32]) -> Option<(u64, u64)> {
    let (mut all, mut sockets) = (0, 0);
    for pid in pids {
        // Ended since the list was read.
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            all += 1;
            if all > MAX_DESCRIPTORS {
                return None;
            }
            let target = std::fs::read_link(entry.path());
            sockets += u64::from(target.is_ok_and(|t| t.as_os_str().as_encoded_bytes().starts_with(b"socket:")));
        }
    }
    Some((all, sockets))
}

/// Where a pod's containers have their cgroups.
enum Place {
    /// Below this one.
    Host(String),
    /// In its virtual machine.
    Guest,
}

/// What is known of a container's cgroup so far.
enum Group {
    /// All of it.
    Read(Option<Box<GroupStats>>),
    /// Its guest is still to be asked.
    Asked,
}

impl Engine {
    /// What one container uses.
    pub async fn container_stats(&self, container: &str) -> Result<ContainerStats> {
        let (engine, wanted) = (self.clone(), container.to_owned());
        let (status, group) = blocking(move || {
            let status = engine.container_status(&wanted)?;
            let place = engine.place(&status.sandbox_id)?;
            let group = engine.container_group(&status, &place);
            Ok((status, group))
        })
        .await?;
        let mut stats = self.with_layers(vec![(status, group)]).await;
        stats.pop().ok_or_else(|| crate::engine::not_found("container", container))
    }

    /// What containers use, the oldest first.
    pub async fn list_container_stats(&self, filter: ContainerFilter) -> Result<Vec<ContainerStats>> {
        let engine = self.clone();
        let read = blocking(move || {
            let list = engine.list_containers(&filter)?;
            let mut places = HashMap::new();
            let mut read = Vec::with_capacity(list.len());
            for status in list {
                let place = match places.get(&status.sandbox_id) {
                    Some(place) => place,
                    None => match engine.place(&status.sandbox_id) {
                        Ok(place) => places.entry(status.sandbox_id.clone()).or_insert(place),
                        // Removed since.
                        Err(e) if e.is_not_found() => continue,
                        Err(e) => return Err(e),
                    },
                };
                let group = engine.container_group(&status, place);
                read.push((status, group));
            }
            Ok(read)
        })
        .await?;
        Ok(self.with_layers(read).await)
    }

    /// What one pod uses.
    pub async fn sandbox_stats(&self, sandbox: &str) -> Result<SandboxStats> {
        let (engine, wanted) = (self.clone(), sandbox.to_owned());
        let status = blocking(move || engine.sandbox_status(&wanted)).await?;
        let of_it = ContainerFilter { sandbox_id: status.id.clone(), ..Default::default() };
        let mut stats = self.stats_of_sandboxes(vec![status], of_it).await?;
        stats.pop().ok_or_else(|| crate::engine::not_found("sandbox", sandbox))
    }

    /// What pods use, the oldest first.
    pub async fn list_sandbox_stats(&self, filter: SandboxFilter) -> Result<Vec<SandboxStats>> {
        let engine = self.clone();
        let of_them = ContainerFilter { local: filter.local, ..Default::default() };
        let list = blocking(move || engine.list_sandboxes(&filter)).await?;
        self.stats_of_sandboxes(list, of_them).await
    }

    async fn stats_of_sandboxes(&self, list: Vec<SandboxStatus>, wanted: ContainerFilter) -> Result<Vec<SandboxStats>> {
        let running = ContainerFilter { state: Some(ContainerState::Running), ..wanted };
        let mut containers: HashMap<String, Vec<ContainerStats>> = HashMap::new();
        for container in self.list_container_stats(running).await? {
            containers.entry(container.status.sandbox_id.clone()).or_default().push(container);
        }
        let engine = self.clone();
        blocking(move || {
            let mut stats = Vec::with_capacity(list.len());
            for status in list {
                let containers = containers.remove(&status.id).unwrap_or_default();
                match engine.stats_of_sandbox(status, containers) {
                    Ok(one) => stats.push(one),
                    // Removed since.
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(stats)
        })
        .await
    }

    fn stats_of_sandbox(&self, status: SandboxStatus, containers: Vec<ContainerStats>) -> Result<SandboxStats> {
        let runs = status.state == SandboxState::Ready;
        let cgroup = self.sandbox_cgroup(&status.id)?;
        // A pod without a cgroup of its own is not what the whole machine uses.
        let group = if runs && !cgroup.is_empty() { group(&self.stats, &cgroup) } else { None };
        let interfaces = if runs { self.interfaces(&status)? } else { None };
        Ok(SandboxStats { status, group, interfaces, timestamp: now(), containers })
    }

    /// What a container's processes have open. It costs a look at every descriptor.
    pub async fn container_processes(&self, status: &ContainerStatus) -> Result<Option<Processes>> {
        if status.state != ContainerState::Running {
            return Ok(None);
        }
        let (engine, sandbox, id) = (self.clone(), status.sandbox_id.clone(), status.id.clone());
        blocking(move || {
            let cgroup = engine.sandbox_cgroup(&sandbox)?;
            let pids = meter::processes(trees(), &format!("{cgroup}/{id}"));
            Ok(pids.map(|pids| Processes { count: pids.len() as u64, descriptors: descriptors(&pids) }))
        })
        .await
    }

    /// What the image store and the writable layers of all containers take.
    pub async fn fs_stats(&self) -> Result<FsStats> {
        let engine = self.clone();
        let all = blocking(move || engine.list_containers(&ContainerFilter::default())).await?;
        self.stats.forget_layers_but(|id| all.iter().any(|c| c.id == id));
        let layers: Vec<DiskUsage> = self.layers(all.iter()).await.into_iter().flatten().collect();
        let oldest = layers.iter().map(|layer| layer.timestamp).min();
        let containers =
            DiskUsage { timestamp: oldest.unwrap_or_else(now), usage: layers.iter().map(|layer| layer.usage).sum() };
        let engine = self.clone();
        blocking(move || {
            let mountpoint = engine.store.root().to_owned();
            let capacity =
                coracle_rootfs::usage::capacity(&mountpoint).map_err(Error::io("ask for the size of", &mountpoint))?;
            Ok(FsStats { images: engine.stats.images(&engine.store)?, containers, capacity, mountpoint })
        })
        .await
    }

    fn place(&self, sandbox: &str) -> Result<Place> {
        let record = self.sandbox_record(sandbox)?;
        Ok(if record.vm.is_some() { Place::Guest } else { Place::Host(record.cgroup) })
    }

    fn container_group(&self, status: &ContainerStatus, place: &Place) -> Group {
        match place {
            _ if status.state != ContainerState::Running => Group::Read(None),
            Place::Host(cgroup) => Group::Read(group(&self.stats, &format!("{cgroup}/{}", status.id)).map(Box::new)),
            Place::Guest => Group::Asked,
        }
    }

    /// Asks the guests, all at once.
    async fn with_guests(&self, read: Vec<(ContainerStatus, Group)>) -> Vec<(ContainerStatus, Option<GroupStats>)> {
        let ask = |status: &ContainerStatus| {
            let (engine, sandbox, id) = (self.clone(), status.sandbox_id.clone(), status.id.clone());
            tokio::spawn(async move { engine.guest_group(&sandbox, &id).await })
        };
        let asked = |(status, group): &(ContainerStatus, Group)| matches!(group, Group::Asked).then(|| ask(status));
        let asked: Vec<_> = read.iter().map(asked).collect();
        let mut all = Vec::with_capacity(read.len());
        for ((status, group), asked) in read.into_iter().zip(asked) {
            let group = match (group, asked) {
                (Group::Read(group), _) => group.map(|group| *group),
                (Group::Asked, Some(answer)) => answer.await.unwrap_or_default(),
                (Group::Asked, None) => None,
            };
            all.push((status, group));
        }
        all
    }

    async fn with_layers(&self, read: Vec<(ContainerStatus, Group)>) -> Vec<ContainerStats> {
        let read = self.with_guests(read).await;
        let layers = self.layers(read.iter().map(|(status, _)| status)).await;
        let whole = |((status, group), writable_layer)| ContainerStats { status, group, writable_layer };
        read.into_iter().zip(layers).map(whole).collect()
    }

    async fn layers(&self, of: impl Iterator<Item = &ContainerStatus>) -> Vec<Option<DiskUsage>> {
        let upper = |c: &ContainerStatus| cache::upper(&self.paths.container_data(&c.sandbox_id, &c.id));
        self.stats.layers(of.map(|c| (c.id.as_str(), upper(c))).collect()).await
    }

    /// The pod's interfaces, through its supervisor. Its lock is asked before and after: in between the pid was its own.
    fn interfaces(&self, status: &SandboxStatus) -> Result<Option<Vec<Interface>>> {
        if status.config.network == NamespaceMode::Node {
            return Ok(None);
        }
        let holder = self.supervisor_of(&status.id)?;
        let Holder::Pid(pid) = holder else { return Ok(None) };
        let found = net::interfaces(pid);
        Ok(found.filter(|_| self.supervisor_of(&status.id).is_ok_and(|now| now == holder)))
    }
}
