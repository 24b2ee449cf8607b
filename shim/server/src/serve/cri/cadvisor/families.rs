//! The families of metrics: cAdvisor's names, kinds and labels, so that dashboards and rules made for it go on working.

use coracle_proto::cri as v1;
use v1::MetricType::{Counter, Gauge};

/// The labels of every metric. `id` and `name` are the id of the container, or of the sandbox for what belongs to the
/// pod as a whole; then `image` and `container` are empty.
pub(super) const BASE: [&str; 6] = ["id", "name", "image", "container", "namespace", "pod"];

/// One family.
#[derive(Debug)]
pub(super) struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: v1::MetricType,
    /// Beyond [`BASE`].
    pub keys: &'static [&'static str],
}

const fn family(name: &'static str, kind: v1::MetricType, keys: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, kind, keys }
}

const NONE: &[&str] = &[];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

/// All of them. Seconds are whole: the wire has no fractions.
pub(super) const ALL: &[Family] = &[
    family("container_last_seen", Gauge, NONE, "When the container was last seen, in seconds since the epoch"),
    family("container_start_time_seconds", Gauge, NONE, "When it was started, in seconds since the epoch"),
    family("container_cpu_usage_seconds_total", Counter, &["cpu"], "CPU time used, in seconds"),
    family("container_cpu_user_seconds_total", Counter, NONE, "CPU time used in user mode, in seconds"),
    family("container_cpu_system_seconds_total", Counter, NONE, "CPU time used in the kernel, in seconds"),
    family("container_cpu_cfs_periods_total", Counter, NONE, "Periods of the CPU quota that have passed"),
    family("container_cpu_cfs_throttled_periods_total", Counter, NONE, "Periods in which the CPU quota ran out"),
    family("container_cpu_cfs_throttled_seconds_total", Counter, NONE, "Time spent throttled, in seconds"),
    family("container_memory_usage_bytes", Gauge, NONE, "Memory charged, page cache included"),
    family("container_memory_working_set_bytes", Gauge, NONE, "Memory charged less what can be dropped first"),
    family("container_memory_max_usage_bytes", Gauge, NONE, "The most memory charged so far"),
    family("container_memory_rss", Gauge, NONE, "Anonymous memory, in bytes"),
    family("container_memory_cache", Gauge, NONE, "Page cache, in bytes"),
    family("container_memory_mapped_file", Gauge, NONE, "Memory mapped files, in bytes"),
    family("container_memory_kernel_usage", Gauge, NONE, "Memory of the kernel, in bytes"),
    family("container_memory_swap", Gauge, NONE, "Memory swapped out, in bytes"),
    family("container_memory_failcnt", Counter, NONE, "How often the memory limit was met"),
    family("container_memory_failures_total", Counter, &["failure_type", "scope"], "Page faults"),
    family("container_memory_total_active_file_bytes", Gauge, NONE, "Page cache in use, in bytes"),
    family("container_memory_total_inactive_file_bytes", Gauge, NONE, "Page cache that goes first, in bytes"),
    family("container_oom_events_total", Counter, NONE, "Processes killed for want of memory"),
    family("container_fs_usage_bytes", Gauge, DEVICE, "Bytes that the writable layer takes"),
    family("container_fs_limit_bytes", Gauge, DEVICE, "Bytes of its file system"),
    family("container_fs_inodes_free", Gauge, DEVICE, "Free inodes of its file system"),
    family("container_fs_inodes_total", Gauge, DEVICE, "Inodes of its file system"),
    family("container_fs_reads_bytes_total", Counter, DEVICE, "Bytes read from the device"),
    family("container_fs_reads_total", Counter, DEVICE, "Requests to read from the device"),
    family("container_fs_writes_bytes_total", Counter, DEVICE, "Bytes written to the device"),
    family("container_fs_writes_total", Counter, DEVICE, "Requests to write to the device"),
    family(
        "container_blkio_device_usage_total",
        Counter,
        &["device", "major", "minor", "operation"],
        "Bytes by block device and operation",
    ),
    family("container_network_receive_bytes_total", Counter, INTERFACE, "Bytes received"),
    family("container_network_receive_packets_total", Counter, INTERFACE, "Packets received"),
    family("container_network_receive_packets_dropped_total", Counter, INTERFACE, "Packets dropped while receiving"),
    family("container_network_receive_errors_total", Counter, INTERFACE, "Errors while receiving"),
    family("container_network_transmit_bytes_total", Counter, INTERFACE, "Bytes sent"),
    family("container_network_transmit_packets_total", Counter, INTERFACE, "Packets sent"),
    family("container_network_transmit_packets_dropped_total", Counter, INTERFACE, "Packets dropped while sending"),
    family("container_network_transmit_errors_total", Counter, INTERFACE, "Errors while sending"),
    family("container_processes", Gauge, NONE, "Processes"),
    family("container_threads", Gauge, NONE, "Threads of all processes"),
    family("container_threads_max", Gauge, NONE, "Threads allowed, 0 for any number"),
    family("container_file_descriptors", Gauge, NONE, "Open descriptors of all processes"),
    family("container_sockets", Gauge, NONE, "Open sockets of all processes"),
    family("container_ulimits_soft", Gauge, &["ulimit"], "Soft limits of the first process"),
    family("container_pressure_cpu_stalled_seconds_total", Counter, NONE, "Time in which all tasks waited for a CPU"),
    family("container_pressure_cpu_waiting_seconds_total", Counter, NONE, "Time in which some task waited for a CPU"),
    family(
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        NONE,
        "Time in which all tasks waited for memory",
    ),
    family(
        "container_pressure_memory_waiting_seconds_total",
        Counter,
        NONE,
        "Time in which some task waited for memory",
    ),
    family("container_pressure_io_stalled_seconds_total", Counter, NONE, "Time in which all tasks waited for I/O"),
    family("container_pressure_io_waiting_seconds_total", Counter, NONE, "Time in which some task waited for I/O"),
    family("container_spec_cpu_period", Gauge, NONE, "Period of the CPU quota, in microseconds"),
    family("container_spec_cpu_quota", Gauge, NONE, "CPU quota, in microseconds"),
    family("container_spec_cpu_shares", Gauge, NONE, "CPU shares"),
    family("container_spec_memory_limit_bytes", Gauge, NONE, "Memory limit, 0 for none"),
    family("container_spec_memory_reservation_limit_bytes", Gauge, NONE, "Memory reservation, 0 for none"),
    family("container_spec_memory_swap_limit_bytes", Gauge, NONE, "Limit of memory and swap together, 0 for none"),
];

/// The family of that name, which is one of ours.
pub(super) fn find(name: &str) -> Option<&'static Family> {
    ALL.iter().find(|family| family.name == name)
}
