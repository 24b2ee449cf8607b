//! From `linux.resources` to the list of writes that enforces it: pure, so that it can be tested without a kernel.
//!
//! Every field of the resources ends in one of three ways: a write, a refusal that names it, or (where runc and the kernel
//! agree that it means nothing any more) a comment here. Writes that constrain one another form one step; the executor
//! tries the writes of a step in rounds, since which order the kernel accepts depends on the values in force.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxRdma, LinuxResources,
    LinuxThrottleDevice,
};
use std::collections::BTreeMap;

use super::{
    convert,
    error::{Error, Result},
};

/// One value to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The field it enforces, for messages.
    pub field: String,
    pub controller: &'static str,
    pub file: String,
    /// Another name of the file, tried when the first does not exist.
    pub or_file: Option<String>,
    pub value: String,
    /// True when the absence of the file means that there is nothing to enforce.
    pub optional: bool,
}

impl Write {
    fn new(field: &str, controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Write {
            field: format!("linux.resources.{field}"),
            controller,
            file: file.into(),
            or_file: None,
            value: value.to_string(),
            optional: false,
        }
    }

    fn or_file(mut self, file: impl Into<String>) -> Self {
        self.or_file = Some(file.into());
        self
    }

    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// Writes that constrain one another.
pub(super) type Step = Vec<Write>;

/// The writes for v1.
pub(super) fn v1(resources: &LinuxResources) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(unified) = resources.unified()
        && !unified.is_empty()
    {
        return Err(refuse("unified", "exists on cgroup v2 only, and this host runs the controllers on v1"));
    }
    if let Some(memory) = resources.memory() {
        memory_v1(memory, &mut steps)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v1(cpu, &mut steps)?;
        cpuset(cpu, &mut steps);
    }
    if let Some(pids) = resources.pids() {
        steps.push(vec![Write::new("pids.limit", "pids", "pids.max", convert::pids_limit(pids.limit()))]);
    }
    if let Some(io) = resources.block_io() {
        block_io_v1(io, &mut steps)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        hugetlb(limit, "limit_in_bytes", "-1", &mut steps)?;
    }
    if let Some(network) = resources.network() {
        network_v1(network, &mut steps)?;
    }
    rdma(resources, &mut steps)?;
    Ok(steps)
}

/// The writes for v2.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_v2(memory, &mut steps)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v2(cpu, &mut steps)?;
        cpuset(cpu, &mut steps);
    }
    if let Some(pids) = resources.pids() {
        steps.push(vec![Write::new("pids.limit", "pids", "pids.max", convert::pids_limit(pids.limit()))]);
    }
    if let Some(io) = resources.block_io() {
        block_io_v2(io, &mut steps)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        hugetlb(limit, "max", "max", &mut steps)?;
    }
    if let Some(network) = resources.network()
        && (network.class_id().is_some_and(|id| id != 0)
            || network.priorities().as_ref().is_some_and(|p| !p.is_empty()))
    {
        return Err(refuse("network", "needs net_cls and net_prio, which cgroup v2 does not have"));
    }
    rdma(resources, &mut steps)?;
    unified(resources, &mut steps)?;
    Ok(steps)
}

fn refuse(field: &str, why: impl Into<String>) -> Error {
    Error::refused(format!("linux.resources.{field}"), why)
}

/// Zero stands for "unset" in the OCI configuration's memory and cpu fields, as runc reads it.
fn set<T: PartialEq + From<u8>>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::from(0))
}

/// `swappiness` with -1 (which callers send as an unsigned number) meaning unset.
fn swappiness(memory: &LinuxMemory) -> Result<Option<u64>> {
    match memory.swappiness() {
        None | Some(u64::MAX) => Ok(None),
        Some(value) if value <= 100 => Ok(Some(value)),
        Some(value) => Err(refuse("memory.swappiness", format!("{value} is outside of 0..100"))),
    }
}

fn memory_v1(memory: &LinuxMemory, steps: &mut Vec<Step>) -> Result<()> {
    // memory.kernel and memory.kernelTCP are ignored, as in runc: the kernel took the limits away (5.16), since
    // memory.limit counts kernel memory as well. checkBeforeUpdate: v1 itself refuses a limit below what is used.
    if memory.use_hierarchy() == Some(false) {
        return Err(refuse("memory.useHierarchy", "cannot be false: the kernel always accounts hierarchically"));
    }
    let mut limits = Vec::new();
    let (limit, swap) = (set(memory.limit()), set(memory.swap()));
    if let Some(limit) = limit {
        limits.push(Write::new("memory.limit", "memory", "memory.limit_in_bytes", limit));
    }
    match (limit, swap) {
        (_, Some(swap)) => {
            let write = Write::new("memory.swap", "memory", "memory.memsw.limit_in_bytes", swap);
            limits.push(if swap == -1 { write.optional() } else { write });
        }
        // No limit on memory takes the one on memory and swap along, or the kernel would refuse it.
        (Some(-1), None) => {
            limits.push(Write::new("memory.swap", "memory", "memory.memsw.limit_in_bytes", -1).optional());
        }
        _ => {}
    }
    steps.push(limits);
    if let Some(soft) = set(memory.reservation()) {
        steps.push(vec![Write::new("memory.reservation", "memory", "memory.soft_limit_in_bytes", soft)]);
    }
    if memory.disable_oom_killer() == Some(true) {
        steps.push(vec![Write::new("memory.disableOOMKiller", "memory", "memory.oom_control", 1)]);
    }
    if let Some(value) = swappiness(memory)? {
        steps.push(vec![Write::new("memory.swappiness", "memory", "memory.swappiness", value)]);
    }
    Ok(())
}

fn memory_v2(memory: &LinuxMemory, steps: &mut Vec<Step>) -> Result<()> {
    if memory.use_hierarchy() == Some(false) {
        return Err(refuse("memory.useHierarchy", "cannot be false: the kernel always accounts hierarchically"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(refuse("memory.disableOOMKiller", "exists on cgroup v1 only"));
    }
    if swappiness(memory)?.is_some() {
        return Err(refuse("memory.swappiness", "exists on cgroup v1 only; memory.swap limits swap on v2"));
    }
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if let Some(value) = convert::swap_to_v2(swap, limit).map_err(|why| refuse("memory.swap", why))? {
        let nothing_to_do = value == "max" || value == "0";
        let write = Write::new("memory.swap", "memory", "memory.swap.max", value);
        // Without swap in the kernel there is none to limit.
        steps.push(vec![if nothing_to_do { write.optional() } else { write }]);
    }
    if let Some(value) = convert::limit_to_v2(limit) {
        steps.push(vec![Write::new("memory.limit", "memory", "memory.max", value)]);
    }
    if let Some(value) = convert::limit_to_v2(memory.reservation().unwrap_or(0)) {
        steps.push(vec![Write::new("memory.reservation", "memory", "memory.low", value)]);
    }
    Ok(())
}

/// `cpu.shares` within the kernel's range: outside of it the kernel would silently take the nearest value.
fn shares(cpu: &LinuxCpu) -> Result<Option<u64>> {
    match set(cpu.shares()) {
        Some(value) if !convert::SHARES.contains(&value) => Err(refuse(
            "cpu.shares",
            format!("{value} is outside of {}..{}", convert::SHARES.start(), convert::SHARES.end()),
        )),
        other => Ok(other),
    }
}

/// Both came late (5.15, 5.14); without the files there is nothing to turn off.
fn idle_and_burst(cpu: &LinuxCpu, burst_file: &str, weight: &mut Step, bandwidth: &mut Step) {
    let late = |field: &str, file: &str, value: i128| {
        let write = Write::new(field, "cpu", file, value);
        if value == 0 { write.optional() } else { write }
    };
    weight.extend(cpu.idle().map(|idle| late("cpu.idle", "cpu.idle", idle.into())));
    bandwidth.extend(cpu.burst().map(|burst| late("cpu.burst", burst_file, burst.into())));
}

fn cpu_v1(cpu: &LinuxCpu, steps: &mut Vec<Step>) -> Result<()> {
    let (mut weight, mut bandwidth) = (Vec::new(), Vec::new());
    if let Some(value) = shares(cpu)? {
        weight.push(Write::new("cpu.shares", "cpu", "cpu.shares", value));
    }
    idle_and_burst(cpu, "cpu.cfs_burst_us", &mut weight, &mut bandwidth);
    if let Some(value) = set(cpu.period()) {
        bandwidth.push(Write::new("cpu.period", "cpu", "cpu.cfs_period_us", value));
    }
    if let Some(value) = set(cpu.quota()) {
        bandwidth.push(Write::new("cpu.quota", "cpu", "cpu.cfs_quota_us", value));
    }
    let mut realtime = Vec::new();
    if let Some(value) = set(cpu.realtime_period()) {
        realtime.push(Write::new("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", value));
    }
    if let Some(value) = set(cpu.realtime_runtime()) {
        realtime.push(Write::new("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", value));
    }
    steps.extend([weight, bandwidth, realtime]);
    Ok(())
}

/// The period of v2 when a quota comes without one: the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;

fn cpu_v2(cpu: &LinuxCpu, steps: &mut Vec<Step>) -> Result<()> {
    if set(cpu.realtime_period()).is_some() || set(cpu.realtime_runtime()).is_some() {
        return Err(refuse("cpu.realtimeRuntime", "exists on cgroup v1 only"));
    }
    let (mut weight, mut bandwidth) = (Vec::new(), Vec::new());
    if let Some(value) = shares(cpu)? {
        weight.push(Write::new("cpu.shares", "cpu", "cpu.weight", convert::shares_to_weight(value)));
    }
    idle_and_burst(cpu, "cpu.max.burst", &mut weight, &mut bandwidth);
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|q| *q > 0).map_or("max".to_owned(), |q| q.to_string());
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US));
        bandwidth.push(Write::new("cpu.quota", "cpu", "cpu.max", value));
    }
    steps.extend([weight, bandwidth]);
    Ok(())
}

fn cpuset(cpu: &LinuxCpu, steps: &mut Vec<Step>) {
    for (field, file, value) in [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            steps.push(vec![Write::new(field, "cpuset", file, value)]);
        }
    }
}

type Throttles<'a> = (&'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>, &'static str);

/// The four throttle lists: field, v1 file, list, v2 key.
fn throttles(io: &LinuxBlockIo) -> [Throttles<'_>; 4] {
    [
        ("throttleReadBpsDevice", "read_bps_device", io.throttle_read_bps_device(), "rbps"),
        ("throttleWriteBpsDevice", "write_bps_device", io.throttle_write_bps_device(), "wbps"),
        ("throttleReadIOPSDevice", "read_iops_device", io.throttle_read_iops_device(), "riops"),
        ("throttleWriteIOPSDevice", "write_iops_device", io.throttle_write_iops_device(), "wiops"),
    ]
}

fn io_weight(io: &LinuxBlockIo) -> Result<Option<u16>> {
    match set(io.weight()) {
        Some(value) if !convert::BLKIO_WEIGHT.contains(&value) => {
            Err(refuse("blockIO.weight", format!("{value} is outside of 10..1000")))
        }
        other => Ok(other),
    }
}

fn block_io_v1(io: &LinuxBlockIo, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(value) = io_weight(io)? {
        let write = Write::new("blockIO.weight", "blkio", "blkio.bfq.weight", value).or_file("blkio.weight");
        steps.push(vec![write]);
    }
    if let Some(value) = set(io.leaf_weight()) {
        steps.push(vec![Write::new("blockIO.leafWeight", "blkio", "blkio.leaf_weight", value)]);
    }
    for device in io.weight_device().iter().flatten() {
        let (major, minor) = (device.major(), device.minor());
        if let Some(weight) = set(device.weight()) {
            let value = format!("{major}:{minor} {weight}");
            let write = Write::new("blockIO.weightDevice", "blkio", "blkio.bfq.weight_device", value);
            steps.push(vec![write.or_file("blkio.weight_device")]);
        }
        if let Some(weight) = set(device.leaf_weight()) {
            let value = format!("{major}:{minor} {weight}");
            steps.push(vec![Write::new("blockIO.weightDevice.leafWeight", "blkio", "blkio.leaf_weight_device", value)]);
        }
    }
    for (field, file, list, _) in throttles(io) {
        for device in list.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            steps.push(vec![Write::new(&format!("blockIO.{field}"), "blkio", format!("blkio.throttle.{file}"), value)]);
        }
    }
    Ok(())
}

fn block_io_v2(io: &LinuxBlockIo, steps: &mut Vec<Step>) -> Result<()> {
    let leaf_weights = io.weight_device().iter().flatten().any(|d| set(d.leaf_weight()).is_some());
    if set(io.leaf_weight()).is_some() || leaf_weights {
        return Err(refuse("blockIO.leafWeight", "exists on cgroup v1 only"));
    }
    // The kernel offers io.weight (iocost) or io.bfq.weight, each only with its scheduler; bfq's scale is the OCI's.
    if let Some(value) = io_weight(io)? {
        steps.push(vec![io_weight_v2("", value)]);
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = set(device.weight()) {
            steps.push(vec![io_weight_v2(&format!("{}:{} ", device.major(), device.minor()), weight)]);
        }
    }
    let mut by_device: BTreeMap<(i64, i64), Vec<String>> = BTreeMap::new();
    for (_, _, list, key) in throttles(io) {
        for device in list.iter().flatten() {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            by_device.entry((device.major(), device.minor())).or_default().push(format!("{key}={rate}"));
        }
    }
    for ((major, minor), limits) in by_device {
        let value = format!("{major}:{minor} {}", limits.join(" "));
        steps.push(vec![Write::new("blockIO.throttle*Device", "io", "io.max", value)]);
    }
    Ok(())
}

/// `io.bfq.weight` takes the OCI's own scale; the executor falls back to `io.weight` with the converted value.
fn io_weight_v2(device: &str, weight: u16) -> Write {
    Write::new("blockIO.weight", "io", "io.bfq.weight", format!("{device}{weight}"))
        .or_file(format!("io.weight={device}{}", convert::blkio_to_io_weight(weight)))
}

fn hugetlb(limit: &LinuxHugepageLimit, suffix: &str, unlimited: &str, steps: &mut Vec<Step>) -> Result<()> {
    let size = limit.page_size();
    if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(refuse("hugepageLimits.pageSize", format!("{size:?} is no page size, such as 2MB or 1GB")));
    }
    let value = if limit.limit() < 0 { unlimited.to_owned() } else { limit.limit().to_string() };
    let plain = format!("hugetlb.{size}.{suffix}");
    let reserved = format!("hugetlb.{size}.rsvd.{suffix}");
    steps.push(vec![Write::new("hugepageLimits", "hugetlb", plain, &value)]);
    // Reservations are limited as well where the kernel can (5.7), so that a mapping fails at mmap and not by SIGBUS.
    steps.push(vec![Write::new("hugepageLimits", "hugetlb", reserved, &value).optional()]);
    Ok(())
}

fn network_v1(network: &LinuxNetwork, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(id) = set(network.class_id()) {
        steps.push(vec![Write::new("network.classID", "net_cls", "net_cls.classid", id)]);
    }
    for priority in network.priorities().iter().flatten() {
        if priority.name().contains(char::is_whitespace) {
            return Err(refuse("network.priorities", format!("{:?} is no interface name", priority.name())));
        }
        let value = format!("{} {}", priority.name(), priority.priority());
        steps.push(vec![Write::new("network.priorities", "net_prio", "net_prio.ifpriomap", value)]);
    }
    Ok(())
}

fn rdma(resources: &LinuxResources, steps: &mut Vec<Step>) -> Result<()> {
    for (device, limit) in resources.rdma().iter().flatten() {
        if device.contains(char::is_whitespace) {
            return Err(refuse("rdma", format!("{device:?} is no device name")));
        }
        steps.push(vec![Write::new("rdma", "rdma", "rdma.max", format!("{device}{}", rdma_limits(limit)))]);
    }
    Ok(())
}

fn rdma_limits(limit: &LinuxRdma) -> String {
    let handles = limit.hca_handles().map(|n| format!(" hca_handle={n}")).unwrap_or_default();
    let objects = limit.hca_objects().map(|n| format!(" hca_object={n}")).unwrap_or_default();
    handles + &objects
}

/// Names that a `unified` key may begin with, as the `controller` of its write.
const V2_CONTROLLERS: &[&str] =
    &["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc", "perf_event", "dmem", "cgroup"];

fn unified(resources: &LinuxResources, steps: &mut Vec<Step>) -> Result<()> {
    let sorted: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in sorted {
        let field = format!("unified[{file:?}]");
        let controller = file.split_once('.').map(|(controller, _)| controller).unwrap_or("");
        let Some(controller) = V2_CONTROLLERS.iter().copied().find(|known| *known == controller) else {
            return Err(refuse(&field, "is not CONTROLLER.NAME with a controller of cgroup v2"));
        };
        if file.contains('/') {
            return Err(refuse(&field, "must be a file name without `/`"));
        }
        // Some files take one line a write (io.max with several devices).
        for line in value.lines() {
            steps.push(vec![Write::new(&field, controller, file.as_str(), line)]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn lines(steps: Vec<Step>) -> Vec<String> {
        steps.into_iter().flatten().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    const COMMON: &str = r#"{"memory":{"limit":1000,"swap":1500,"reservation":500},"pids":{"limit":9},
        "cpu":{"shares":1024,"quota":5000,"period":10000,"cpus":"0-1","mems":"0"},
        "hugepageLimits":[{"pageSize":"2MB","limit":4}],
        "blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":7}],
                   "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]},
        "rdma":{"mlx5":{"hcaHandles":3,"hcaObjects":4}}}"#;

    #[test]
    fn v1_writes_only_what_was_asked() {
        assert_eq!(
            lines(v1(&resources(COMMON)).unwrap()),
            [
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=1500",
                "memory.soft_limit_in_bytes=500",
                "cpu.shares=1024",
                "cpu.cfs_period_us=10000",
                "cpu.cfs_quota_us=5000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=9",
                "blkio.bfq.weight=10",
                "blkio.throttle.read_bps_device=8:0 7",
                "blkio.throttle.write_iops_device=8:0 0",
                "hugetlb.2MB.limit_in_bytes=4",
                "hugetlb.2MB.rsvd.limit_in_bytes=4",
                "rdma.max=mlx5 hca_handle=3 hca_object=4",
            ]
        );
        assert!(lines(v1(&LinuxResources::default()).unwrap()).is_empty());
    }

    #[test]
    fn v2_writes_the_same_in_its_own_words() {
        assert_eq!(
            lines(v2(&resources(COMMON)).unwrap()),
            [
                "memory.swap.max=500",
                "memory.max=1000",
                "memory.low=500",
                "cpu.weight=100",
                "cpu.max=5000 10000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=9",
                "io.bfq.weight=10",
                "io.max=8:0 rbps=7 wiops=max",
                "hugetlb.2MB.max=4",
                "hugetlb.2MB.rsvd.max=4",
                "rdma.max=mlx5 hca_handle=3 hca_object=4",
            ]
        );
    }

    #[test]
    fn unlimited_memory_takes_swap_along() {
        let unlimited = resources(r#"{"memory":{"limit":-1}}"#);
        let v1 = v1(&unlimited).unwrap().concat();
        assert_eq!((v1[1].value.as_str(), v1[1].optional), ("-1", true));
        assert_eq!(lines(v2(&unlimited).unwrap()), ["memory.swap.max=max", "memory.max=max"]);
    }

    #[test]
    fn what_a_version_cannot_enforce_is_refused_by_name() {
        let v2_only = [r#"{"unified":{"memory.high":"1"}}"#];
        let v1_only = [
            (r#"{"memory":{"swappiness":10}}"#, "linux.resources.memory.swappiness"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "linux.resources.memory.disableOOMKiller"),
            (r#"{"cpu":{"realtimeRuntime":10}}"#, "linux.resources.cpu.realtimeRuntime"),
            (r#"{"network":{"classID":10}}"#, "linux.resources.network"),
            (r#"{"blockIO":{"leafWeight":10}}"#, "linux.resources.blockIO.leafWeight"),
        ];
        for text in v2_only {
            assert!(v1(&resources(text)).unwrap_err().to_string().starts_with("linux.resources.unified"));
        }
        for (text, field) in v1_only {
            let error = v2(&resources(text)).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
            v1(&resources(text)).unwrap();
        }
    }

    #[test]
    fn nonsense_is_refused_in_both_versions() {
        let nonsense = [
            r#"{"cpu":{"shares":1}}"#,
            r#"{"memory":{"swappiness":101}}"#,
            r#"{"memory":{"useHierarchy":false}}"#,
            r#"{"hugepageLimits":[{"pageSize":"../x","limit":4}]}"#,
            r#"{"rdma":{"a b":{}}}"#,
            r#"{"unified":{"../memory.high":"1"}}"#,
            r#"{"unified":{"cgroup.procs/x":"1"}}"#,
        ];
        for text in nonsense {
            assert!(v1(&resources(text)).is_err() && v2(&resources(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_and_minus_one_stand_for_unset_where_runc_says_so() {
        let unset = resources(
            r#"{"memory":{"limit":0,"swap":0,"swappiness":18446744073709551615},"cpu":{"shares":0,"quota":0}}"#,
        );
        assert!(lines(v1(&unset).unwrap()).is_empty());
        assert!(lines(v2(&unset).unwrap()).is_empty());
    }
}
