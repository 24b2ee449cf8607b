//! Limits: at the start, and changed while a container or a pod runs.

use std::path::{Path, PathBuf};

use coracle_engine::{Engine, EngineConfig, HugepageLimit, Resources, SandboxConfig};
use coracle_tests::rig::{Rig, rig, script};

use crate::{LONG, ready, refusal};

const MIB: i64 = 1 << 20;

/// A cgroup's folder of a controller, on a host of either generation.
fn folder(controller: &str, group: &str) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup").join(controller).join(group.trim_start_matches('/'));
    if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/')) }
}

/// The first of these files that a cgroup has.
fn read(controller: &str, group: &str, files: [&str; 2]) -> String {
    let folder = folder(controller, group);
    let text = files.iter().find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
    text.unwrap_or_else(|| panic!("{} has none of {files:?}", folder.display())).trim().to_owned()
}

fn memory(group: &str) -> i64 {
    read("memory", group, ["memory.limit_in_bytes", "memory.max"]).parse().unwrap_or(i64::MAX)
}

fn pids(group: &str) -> String {
    read("pids", group, ["pids.max", "pids.max"])
}

fn pod_group(rig: &Rig, sandbox: &str) -> String {
    format!("{}/pod{sandbox}", rig.engine.config().cgroup_parent)
}

#[test]
fn an_update_changes_the_cgroup_and_what_status_tells() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", LONG);
        config.resources = Resources { memory: Some(100 * MIB), pids: Some(50), ..Default::default() };
        let status = ready(rig, &sandbox.id, config).await;
        let group = format!("{}/{}", pod_group(rig, &sandbox.id), status.id);
        assert_eq!((memory(&group), pids(&group).as_str()), (100 * MIB, "50"));
        let update = Resources { memory: Some(200 * MIB), cpu_shares: Some(512), ..Default::default() };
        rig.engine.update_container(&status.id, &update).await.unwrap();
        assert_eq!((memory(&group), pids(&group).as_str()), (200 * MIB, "50"));
        let seen = rig.another().container_status(&status.id).unwrap().config.resources;
        assert_eq!((seen.memory, seen.pids, seen.cpu_shares), (Some(200 * MIB), Some(50), Some(512)));
        rig.engine.update_container(&status.id, &Resources { pids: Some(60), ..Default::default() }).await.unwrap();
        assert_eq!(pids(&group), "60");
    });
}

#[test]
fn a_limit_below_what_is_used_changes_nothing() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script(
            "main",
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=30 2>/dev/null; echo ready; while :; do sleep 0.05; done",
        );
        config.resources = Resources { memory: Some(100 * MIB), cpu_shares: Some(512), ..Default::default() };
        let status = ready(rig, &sandbox.id, config).await;
        let group = format!("{}/{}", pod_group(rig, &sandbox.id), status.id);
        let update = Resources { memory: Some(10 * MIB), cpu_shares: Some(1024), pids: Some(7), ..Default::default() };
        let error = rig.engine.update_container(&status.id, &update).await.unwrap_err().to_string();
        assert!(error.contains("memory.limit"), "{error}");
        assert_eq!(memory(&group), 100 * MIB);
        assert_ne!(pids(&group), "7");
        let seen = rig.engine.container_status(&status.id).unwrap();
        assert_eq!((seen.config.resources.memory, seen.config.resources.pids), (Some(100 * MIB), None));
        // What was written before the refusal is put back, too.
        let update = Resources { cpu_shares: Some(1024), cpuset_cpus: Some("4000".into()), ..Default::default() };
        let error = rig.engine.update_container(&status.id, &update).await.unwrap_err().to_string();
        assert!(error.contains("cpu.cpus"), "{error}");
        let shares = read("cpu", &group, ["cpu.shares", "cpu.weight"]);
        assert!(shares == "512" || shares.parse::<u64>().unwrap() < 100, "{shares}");
    });
}

#[test]
fn only_what_has_not_ended_can_be_updated() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let id = rig.engine.create_container(&sandbox.id, script("main", "true")).await.unwrap();
        let update = Resources { memory: Some(50 * MIB), ..Default::default() };
        rig.engine.update_container(&id, &update).await.unwrap();
        rig.engine.start_container(&id).await.unwrap();
        rig.engine.wait_container(&id).await.unwrap();
        let error = rig.engine.update_container(&id, &update).await.unwrap_err().to_string();
        assert!(error.contains("exited"), "{error}");
        assert!(rig.engine.update_container("nobody", &update).await.unwrap_err().is_not_found());
    });
}

#[test]
fn a_pods_cgroup_is_its_resources_and_its_overhead() {
    rig(async |rig| {
        let limits = |memory: i64| Resources { memory: Some(memory * MIB), ..Default::default() };
        let config = SandboxConfig { resources: limits(100), overhead: limits(20), ..rig.pod("web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        let group = pod_group(rig, &sandbox.id);
        assert_eq!(memory(&group), 120 * MIB);
        rig.engine.update_sandbox(&sandbox.id, None, Some(limits(200))).await.unwrap();
        assert_eq!(memory(&group), 220 * MIB);
        rig.engine.update_sandbox(&sandbox.id, Some(limits(50)), None).await.unwrap();
        assert_eq!(memory(&group), 250 * MIB);
        let seen = rig.another().sandbox_status(&sandbox.id).unwrap().config;
        assert_eq!((seen.resources.memory, seen.overhead.memory), (Some(200 * MIB), Some(50 * MIB)));
        let cpus = Resources { cpuset_cpus: Some("4000".into()), memory: Some(300 * MIB), ..Default::default() };
        let error = rig.engine.update_sandbox(&sandbox.id, None, Some(cpus)).await.unwrap_err().to_string();
        assert!(error.contains("cpu.cpus"), "{error}");
        assert_eq!(memory(&group), 250 * MIB, "put back");
        rig.engine.stop_sandbox(&sandbox.id).await.unwrap();
        let error = rig.engine.update_sandbox(&sandbox.id, None, Some(limits(1))).await.unwrap_err().to_string();
        assert!(error.contains("update sandbox"), "{error}");
    });
}

#[test]
fn a_container_grows_with_its_pod_where_the_client_states_sums() {
    rig(async |rig| {
        let parent = format!("{}/kubelets", rig.engine.config().cgroup_parent);
        let limits = |cpus: i64| Resources {
            memory: Some(64 * cpus * MIB),
            cpu_quota: Some(50_000 * cpus),
            cpu_period: Some(100_000),
            ..Default::default()
        };
        let config = SandboxConfig { cgroup_parent: parent.clone(), resources: limits(1), ..rig.pod("web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        let mut main = script("main", LONG);
        main.resources = limits(1);
        let status = ready(rig, &sandbox.id, main).await;
        rig.engine.update_container(&status.id, &limits(2)).await.unwrap();
        let group = format!("{parent}/pod{}", sandbox.id);
        assert_eq!((memory(&group), memory(&format!("{group}/{}", status.id))), (128 * MIB, 128 * MIB));
        rig.engine.remove_sandbox(&sandbox.id).await.unwrap();
        remove_parent(&parent);
    });
}

/// Takes away a parent that the test named.
fn remove_parent(parent: &str) {
    let relative = parent.trim_start_matches('/');
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(relative));
    for tree in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(tree.path().join(relative));
    }
}

#[test]
fn a_container_without_a_limit_is_not_held_to_the_sum_of_the_others() {
    rig(async |rig| {
        // As kubelet does: a parent that it limits itself, and for the pod the sum of its containers' limits.
        let parent = format!("{}/kubelets", rig.engine.config().cgroup_parent);
        let resources = Resources { memory: Some(64 * MIB), ..Default::default() };
        let config = SandboxConfig { cgroup_parent: parent.clone(), resources, ..rig.pod("web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        let group = format!("{parent}/pod{}", sandbox.id);
        let mut limited = script("limited", LONG);
        limited.resources.memory = Some(64 * MIB);
        ready(rig, &sandbox.id, limited).await;
        assert_eq!(memory(&group), 64 * MIB);
        ready(rig, &sandbox.id, script("unlimited", LONG)).await;
        assert!(memory(&group) > 1 << 40, "{}", memory(&group));
        let more = Resources { memory: Some(128 * MIB), ..Default::default() };
        rig.engine.update_sandbox(&sandbox.id, None, Some(more)).await.unwrap();
        assert!(memory(&group) > 1 << 40);
        rig.engine.remove_sandbox(&sandbox.id).await.unwrap();
        remove_parent(&parent);
    });
}

#[test]
fn what_the_hosts_cgroups_cannot_do_is_refused_by_name() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", LONG);
        config.resources.hugepage_limits = vec![HugepageLimit { page_size: "3MB".into(), limit: 0 }];
        let error = refusal(rig, &sandbox.id, config.clone()).await;
        assert!(error.contains("hugepageLimits"), "{error}");
        config.resources.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: u64::MAX }];
        let error = refusal(rig, &sandbox.id, config.clone()).await;
        assert!(error.contains("hugepage_limits"), "{error}");
        config.resources =
            Resources { unified: [("nonsense".to_owned(), "1".to_owned())].into(), ..Default::default() };
        let error = refusal(rig, &sandbox.id, config).await;
        assert!(error.contains("unified"), "{error}");
    });
}

#[test]
fn huge_pages_are_limited_or_there_are_none() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", LONG);
        // As kubelet does for every container, on hosts without huge pages as well.
        config.resources.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }];
        ready(rig, &sandbox.id, config).await;
    });
}

/// Whether this process may lower OOM scores: without CAP_SYS_RESOURCE it may not.
fn may_lower() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caps = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap().trim();
    u64::from_str_radix(caps, 16).unwrap() & 1 << 24 != 0
}

#[test]
fn an_oom_score_that_may_not_be_set_is_an_error_or_raised_as_the_settings_say() {
    rig(async |rig| {
        // Those of a local pod, whose name nobody else has, are always raised.
        let pod = SandboxConfig { exclusive_name: false, ..rig.pod("web") };
        let sandbox = rig.engine.run_sandbox(pod).await.unwrap();
        let mut config = script("main", LONG);
        config.resources.oom_score_adj = Some(321);
        let status = ready(rig, &sandbox.id, config.clone()).await;
        let score = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score(status.pid.unwrap()).trim(), "321");
        (config.name, config.resources.oom_score_adj) = ("low".into(), Some(-900));
        if !may_lower() {
            let error = refusal(rig, &sandbox.id, config.clone()).await;
            assert!(error.contains("-900") && error.contains("restrict_oom_score_adj"), "{error}");
        }
        let settings = EngineConfig { restrict_oom_score_adj: true, ..rig.engine.config().clone() };
        let engine = Engine::open(rig.engine.paths().clone(), settings).unwrap();
        let id = engine.create_container(&sandbox.id, config.clone()).await.unwrap();
        engine.start_container(&id).await.unwrap();
        let status = engine.container_status(&id).unwrap();
        let told = status.config.resources.oom_score_adj.unwrap();
        assert_eq!(score(status.pid.unwrap()).trim(), told.to_string());
        assert_eq!(told == -900, may_lower());
    });
}
