//! Metrics of a pod of which everything is known, and of one of which little is.

use std::collections::{BTreeMap, BTreeSet};

use coracle_engine::stats::{Pressure, Swap, Tasks, Throttling};
use coracle_engine::{ContainerConfig, ContainerState, ContainerStatus, SandboxConfig, SandboxStatus};

use super::*;

/// A pod of which everything is known.
fn pod() -> SandboxStats {
    let psi = Some(Psi { some: Pressure { total: 3 * SECOND, ..Default::default() }, ..Default::default() });
    let group = GroupStats {
        timestamp: 9,
        cpu: Some(Cpu {
            usage: 5 * SECOND + 1,
            user: Some(3 * SECOND),
            system: Some(2 * SECOND),
            nano_cores: None,
            throttling: Some(Throttling { periods: 7, throttled_periods: 1, throttled_time: SECOND }),
            psi,
        }),
        memory: Some(Memory {
            usage: 100,
            working_set: 90,
            rss: Some(1),
            cache: Some(2),
            mapped_file: Some(3),
            kernel: Some(4),
            active_file: Some(5),
            inactive_file: Some(6),
            page_faults: Some(7),
            major_page_faults: Some(8),
            own_page_faults: Some(7),
            own_major_page_faults: Some(8),
            limit: None,
            max_usage: Some(120),
            failures: Some(0),
            oom_kills: Some(1),
            psi,
        }),
        swap: Some(Swap { usage: 11, limit: None }),
        tasks: Some(Tasks { count: 3, limit: None }),
        io: Some(Io { devices: vec![Block { major: 1, read_bytes: 10, ..Default::default() }], psi }),
    };
    let resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory: Some(1 << 20),
        ..Default::default()
    };
    let config = ContainerConfig { name: "main".into(), image_ref: "busybox".into(), resources, ..Default::default() };
    let status = ContainerStatus {
        id: "c".into(),
        sandbox_id: "p".into(),
        config,
        image_id: String::new(),
        image_digest: String::new(),
        stop_signal: 15,
        user: None,
        state: ContainerState::Running,
        created_at: 1,
        started_at: 2_000_000_000,
        pid: Some(std::process::id() as i32),
        exit: None,
        log_path: None,
    };
    let writable_layer = Some(DiskUsage { timestamp: 77, usage: usage::Usage { bytes: 4096, inodes: 2 } });
    let container = ContainerStats { status, group: Some(group.clone()), writable_layer };
    let sandbox = SandboxStatus {
        id: "p".into(),
        config: SandboxConfig { name: "web".into(), namespace: "default".into(), ..Default::default() },
        state: SandboxState::Ready,
        created_at: 1,
        ips: Vec::new(),
        notes: Vec::new(),
        supervisor: None,
    };
    let interface = |name: &str| Interface { name: name.into(), rx_bytes: 1, ..Default::default() };
    SandboxStats {
        status: sandbox,
        group: Some(group),
        interfaces: Some(vec![interface("eth0"), interface("net1")]),
        timestamp: 9,
        containers: vec![container],
    }
}

fn all() -> Vec<v1::Metric> {
    let pod = pod();
    let processes = Processes { count: 2, descriptors: Some((9, 3)) };
    let disk = Disk { device: "/dev/sda".into(), capacity: Some(Capacity { bytes: 1 << 30, ..Default::default() }) };
    let mut devices = Devices::default();
    let own = of_container(&pod, &pod.containers[0], Some(processes), &disk, &mut devices);
    of_pod(&pod).into_iter().chain(own).collect()
}

#[test]
fn every_metric_has_a_descriptor_with_as_many_labels_and_no_two_are_the_same() {
    let mut seen = BTreeSet::new();
    for metric in all() {
        let family = families::find(&metric.name).unwrap();
        assert_eq!(metric.label_values.len(), BASE.len() + family.keys.len(), "{metric:?}");
        assert_eq!(metric.metric_type, family.kind as i32);
        assert!(seen.insert((metric.name.clone(), metric.label_values.clone())), "{metric:?} is there twice");
    }
    let told: BTreeSet<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    let described: BTreeSet<_> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(told, described, "all that is described is told where all is known");
    assert_eq!(described.len(), ALL.len(), "a family is described once");
}

#[test]
fn units_labels_and_times_are_cadvisors() {
    let metrics = all();
    let of = |name: &str, container: &str| {
        let found = metrics.iter().find(|m| m.name == name && m.label_values[3] == container).unwrap();
        (found.value.unwrap().value, found.label_values.clone(), found.timestamp)
    };
    let base = ["c", "c", "busybox", "main", "default", "web"];
    let (seconds, labels, timestamp) = of("container_cpu_usage_seconds_total", "main");
    assert_eq!((seconds, timestamp), (5, 0));
    assert_eq!(labels[..6], base);
    assert_eq!(labels[6], "total");
    let (bytes, labels, timestamp) = of("container_fs_usage_bytes", "main");
    assert_eq!((bytes, labels[6].as_str(), timestamp), (4096, "/dev/sda", 77), "what is remembered has its time");
    let (_, labels, _) = of("container_network_receive_bytes_total", "");
    assert_eq!(labels, ["p", "p", "", "", "default", "web", "eth0"]);
    assert_eq!(of("container_pressure_cpu_waiting_seconds_total", "main").0, 3);
    assert_eq!(of("container_spec_memory_swap_limit_bytes", "main").0, 0);
    assert_eq!(of("container_start_time_seconds", "main").0, 2);
    assert!(of("container_ulimits_soft", "main").0 > 0);
}

#[test]
fn what_the_machine_does_not_count_is_not_told() {
    let mut pod = pod();
    let group = GroupStats { memory: Some(Memory { usage: 1, ..Default::default() }), ..Default::default() };
    pod.group = Some(group);
    pod.interfaces = None;
    let counts = of_pod(&pod).into_iter().fold(BTreeMap::new(), |mut counts, metric| {
        *counts.entry(metric.name).or_insert(0) += 1;
        counts
    });
    let expected = ["container_memory_usage_bytes", "container_memory_working_set_bytes"];
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), expected);
}
