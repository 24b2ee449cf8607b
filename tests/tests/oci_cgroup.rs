//! Cgroups through the front door of any OCI runtime: limits, devices, freezing, statistics, removal.
//!
//! `OCI_RUNTIME=runc` runs the same against a peer.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

mod oci_support;
use oci_support::{Bundle, ours, peer, wait_for};

/// A file of the container's cgroup, by its v1 name or its v2 name: whichever exists on this host.
fn file(bundle: &Bundle, names: [&str; 2]) -> Option<String> {
    let found = bundle.cgroups().into_iter().flat_map(|dir| names.map(|name| dir.join(name))).find(|p| p.exists())?;
    Some(fs::read_to_string(found).expect("cgroup file").trim().to_owned())
}

#[test]
fn limits_are_in_force_and_update_changes_them() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/resources/memory", json!({"limit": 67_108_864, "swap": 67_108_864, "reservation": 33_554_432}));
    bundle.set("/linux/resources/cpu", json!({"shares": 512, "quota": 20_000, "period": 50_000}));
    bundle.set("/linux/resources/pids", json!({"limit": 33}));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    assert_eq!(file(&bundle, ["memory.limit_in_bytes", "memory.max"]).unwrap(), "67108864");
    assert_eq!(file(&bundle, ["memory.soft_limit_in_bytes", "memory.low"]).unwrap(), "33554432");
    assert!(["20000", "20000 50000"].contains(&file(&bundle, ["cpu.cfs_quota_us", "cpu.max"]).unwrap().as_str()));
    assert_eq!(file(&bundle, ["pids.max", "pids.max"]).unwrap(), "33");
    let update = ["update", "--memory", "134217728", "--memory-swap", "134217728", "--pids-limit", "44", &bundle.id];
    bundle.oci(&update).ok();
    assert_eq!(file(&bundle, ["memory.limit_in_bytes", "memory.max"]).unwrap(), "134217728");
    assert_eq!(file(&bundle, ["pids.max", "pids.max"]).unwrap(), "44");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn half_an_update_keeps_the_other_half() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/resources/cpu", json!({"quota": 20_000, "period": 50_000}));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let file_name = bundle.dir.path().join("resources.json");
    let update = |resources: Value| {
        fs::write(&file_name, resources.to_string()).expect("resources.json");
        bundle.oci(&["update", "--resources", file_name.to_str().expect("UTF-8"), &bundle.id])
    };
    update(json!({"cpu": {"quota": 30_000}})).ok();
    let bandwidth = || {
        let quota = file(&bundle, ["cpu.cfs_quota_us", "cpu.max"]).unwrap();
        file(&bundle, ["cpu.cfs_period_us", "-"]).map_or(quota.clone(), |period| format!("{quota} {period}"))
    };
    assert_eq!(bandwidth(), "30000 50000");
    update(json!({"cpu": {"period": 60_000}})).ok();
    assert_eq!(bandwidth(), "30000 60000");
    if !peer("crun") {
        update(json!({})).ok();
    }
    assert_eq!(bandwidth(), "30000 60000");
    // Nothing to change is no error; that the container has ended is.
    if ours() {
        bundle.oci(&["update", &bundle.id]).ok();
        bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
        bundle.wait_status("stopped");
        bundle.oci(&["update", &bundle.id]).fails("stopped");
    }
}

#[test]
fn pids_without_a_limit_are_not_limited() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/resources/pids", json!({}));
    if peer("runc") {
        return; // Before 1.4 it cannot tell this from a limit of 0.
    }
    bundle.create().ok();
    assert_eq!(file(&bundle, ["pids.max", "pids.max"]).unwrap(), "max");
}

#[test]
fn a_user_namespaces_container_owns_its_cgroup_on_v2() {
    let v2 = PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists();
    if !ours() {
        return; // runc does so with the systemd driver only.
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    bundle.namespace("user", Some(None)).namespace("cgroup", Some(None));
    if v2 {
        bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw", "nosuid", "noexec", "nodev"]);
    }
    bundle.create().ok();
    for dir in bundle.cgroups() {
        let owner = |name: &str| std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.join(name)).expect("stat"));
        // v1 knows no delegation.
        assert_eq!([owner("."), owner("cgroup.procs")], [if v2 { 100_000 } else { 0 }; 2], "{}", dir.display());
        if v2 {
            assert_eq!(owner("pids.max"), 0, "the limits are not the container's to change");
        }
    }
}

#[test]
fn more_processes_than_the_limit_cannot_be_made() {
    let mut bundle = Bundle::sh("sleep 1 & sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait");
    bundle.set("/linux/resources/pids", json!({"limit": 4}));
    let answer = bundle.run();
    assert!(answer.err.contains("can't fork"), "{answer:?}");
}

#[test]
fn more_memory_than_the_limit_kills() {
    let mut bundle = Bundle::new(&["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    bundle.set("/linux/resources/memory", json!({"limit": 16_777_216, "swap": 16_777_216}));
    assert_eq!(bundle.run().code, 128 + 9);
}

#[test]
fn only_allowed_devices_open() {
    let script = "mknod /tmp/allowed c 1 5 && mknod /tmp/denied c 1 11 || exit 9
        head -c 1 /tmp/allowed > /dev/null || exit 8; head -c 1 /tmp/denied > /dev/null && exit 7; exit 0";
    let mut bundle = Bundle::sh(script);
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_MKNOD"]));
    }
    let answer = bundle.run().ok();
    assert!(answer.err.contains("denied") && answer.err.contains("not permitted"), "{answer:?}");
}

#[test]
fn pause_stops_everything_and_resume_goes_on() {
    let bundle = Bundle::sh("while true; do date +%s%N > /tmp/now; sleep 0.02; done");
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let beat = || fs::read_to_string(bundle.rootfs().join("tmp/now")).unwrap_or_default();
    wait_for("a first beat", || !beat().is_empty());
    bundle.oci(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    let last = beat();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(beat(), last);
    bundle.oci(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    wait_for("another beat", || beat() != last && !beat().is_empty());
}

#[test]
fn statistics_have_the_names_of_runc() {
    if peer("crun") {
        return; // It has no `events` command.
    }
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/resources/pids", json!({"limit": 33}));
    bundle.set("/linux/resources/memory", json!({"limit": 67_108_864}));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let event: Value = serde_json::from_str(&bundle.oci(&["events", "--stats", &bundle.id]).ok().out).expect("JSON");
    assert_eq!(event["type"], "stats");
    assert_eq!(event["data"]["pids"]["limit"], 33);
    // runc's init, which has threads, may not be gone yet.
    let current = event["data"]["pids"]["current"].as_u64().expect("a number of processes");
    assert!(current == 1 || current > 1 && peer("runc"), "{event}");
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 67_108_864);
    assert!(event["data"]["memory"]["raw"].as_object().is_some_and(|raw| !raw.is_empty()));
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "{event}");
}

#[test]
fn child_cgroups_that_the_container_made_go_with_it() {
    // v1: each hierarchy is a directory; v2: the container's own cgroup is the mount, in a namespace.
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/pids; do
        [ -e $d/cgroup.procs ] && mkdir -p $d/inner/most && echo $$ > $d/inner/most/cgroup.procs; done
        touch /tmp/ready; exec sleep 1000";
    let mut bundle = Bundle::sh(script);
    bundle.namespace("cgroup", Some(None));
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw", "nosuid", "noexec", "nodev"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_DAC_OVERRIDE"]));
    }
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("the script", || bundle.rootfs().join("tmp/ready").exists());
    let inner: Vec<PathBuf> = bundle.cgroups().into_iter().map(|dir| dir.join("inner/most")).collect();
    assert!(inner.iter().any(|dir| dir.exists()), "the container made no child cgroup");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name_and_leaves_nothing() {
    if peer("crun") {
        return; // It drops a limit whose file is missing, and takes too few shares for the fewest.
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/linux/resources/hugepageLimits", json!([{"pageSize": "3MB", "limit": 1}]));
    let words = if ours() { "linux.resources.hugepageLimits" } else { "hugetlb" };
    bundle.create().fails(words);
    if ours() {
        bundle.assert_gone();
    }
    bundle.set("/linux/resources", json!({"cpu": {"shares": 1}}));
    bundle.create().fails("shares");
}

#[test]
fn two_containers_do_not_share_a_cgroup() {
    let first = Bundle::sleeping();
    let mut second = Bundle::new(&["/bin/true"]);
    second.set("/linux/cgroupsPath", first.config["linux"]["cgroupsPath"].clone());
    let answer = second.create();
    // runc before 1.2 only warns.
    if ours() {
        answer.fails("already holds processes");
    }
    // The second's failure took nothing of the first's away.
    assert_eq!(first.status(), "running");
    assert!(!first.cgroups().is_empty());
    second.oci(&["delete", "--force", &second.id]);
    second.set("/linux/cgroupsPath", json!(format!("/coracle-test-oci-{}", second.id)));
}
