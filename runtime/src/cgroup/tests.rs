//! The module against the real kernel: the v1 controllers and the v2 tree of this host. Needs root.
//!
//! Each test works beneath a name of its own and removes what it made. A host with one of the two versions runs that
//! version's tests; the other's find no hierarchy and say so by passing over, which the message on stderr shows.

use std::{
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    mounts::{Hierarchy, OwnCgroups},
    *,
};

/// A cgroup that goes when the test ends, with what runs in it.
struct Scratch {
    cgroup: Cgroup,
    parent: Vec<PathBuf>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.cgroup.kill_all(libc::SIGKILL);
        let _ = self.cgroup.remove();
        for path in &self.parent {
            let _ = fs::remove_dir(path);
        }
    }
}

fn layouts() -> Vec<Layout> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v2_only: String = text.lines().filter(|l| l.contains(" - cgroup2 ")).map(|l| format!("{l}\n")).collect();
    let layouts: Vec<Layout> = [Layout::parse(&text), Layout::parse(&v2_only)].into_iter().flatten().collect();
    assert!(!layouts.is_empty(), "no cgroup file system is mounted");
    layouts
}

fn v1_layout() -> Option<Layout> {
    layouts().into_iter().find(|l| matches!(l, Layout::V1(_)))
}

fn v2_layout() -> Option<Layout> {
    layouts().into_iter().find(|l| matches!(l, Layout::V2(_)))
}

fn name(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("/coracle-test-{}-{}/{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn make(layout: &Layout, resources: &str) -> Result<Scratch> {
    let name = name("leaf");
    let resources: LinuxResources = serde_json::from_str(resources).unwrap();
    let cgroup = Cgroup::create_in(layout, &CgroupOptions::new(Some(Path::new(&name)), "x"), Some(&resources))?;
    let parent = cgroup.state.groups.iter().filter_map(|g| g.path.parent().map(Path::to_path_buf)).collect();
    Ok(Scratch { cgroup, parent })
}

fn sleeper(scratch: &Scratch) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    scratch.cgroup.join(child.id() as i32).unwrap();
    child
}

fn read(scratch: &Scratch, controller: &str, file: &str) -> String {
    fs::read_to_string(scratch.cgroup.dir_of(controller).unwrap().join(file)).unwrap().trim().to_owned()
}

#[test]
fn v1_limits_are_in_force_and_change() {
    let Some(layout) = v1_layout() else { return eprintln!("no v1 hierarchy here") };
    let scratch = make(
        &layout,
        r#"{"memory":{"limit":67108864,"swap":67108864,"swappiness":10},"pids":{"limit":33},
            "cpu":{"shares":512,"quota":20000,"period":50000,"cpus":"0","mems":"0"},
            "devices":[{"allow":false,"access":"rwm"}]}"#,
    )
    .unwrap();
    assert_eq!(read(&scratch, "memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(read(&scratch, "memory", "memory.memsw.limit_in_bytes"), "67108864");
    assert_eq!(read(&scratch, "pids", "pids.max"), "33");
    assert_eq!(read(&scratch, "cpu", "cpu.shares"), "512");
    assert_eq!(read(&scratch, "cpu", "cpu.cfs_quota_us"), "20000");
    assert_eq!(read(&scratch, "cpuset", "cpuset.cpus"), "0");
    let list = read(&scratch, "devices", "devices.list");
    assert!(list.contains("c 1:3 rwm") && !list.contains("a *:*"), "{list}");
    // Up: swap must be raised first. Down: memory must be lowered first.
    for (limit, swap) in [(134_217_728, 268_435_456), (33_554_432, 33_554_432)] {
        let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
        scratch.cgroup.apply(&serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(read(&scratch, "memory", "memory.limit_in_bytes"), limit.to_string());
        assert_eq!(read(&scratch, "memory", "memory.memsw.limit_in_bytes"), swap.to_string());
    }
    let devices = r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#;
    scratch.cgroup.apply(&serde_json::from_str(devices).unwrap()).unwrap();
    assert!(read(&scratch, "devices", "devices.list").contains("c 10:229 rw"));
    let mut child = sleeper(&scratch);
    let stats = scratch.cgroup.stats().unwrap();
    child.kill().and_then(|()| child.wait()).unwrap();
    assert_eq!((stats.pids.current, stats.pids.limit, stats.memory.usage.limit), (1, 33, 33_554_432));
    assert_eq!(stats.cpuset.cpus, [0]);
}

#[test]
fn processes_are_listed_frozen_thawed_killed_and_the_cgroup_goes() {
    for layout in layouts() {
        let scratch = make(&layout, "{}").unwrap();
        let mut child = sleeper(&scratch);
        assert_eq!(scratch.cgroup.pids().unwrap(), [child.id() as i32]);
        scratch.cgroup.freeze().unwrap();
        assert!(scratch.cgroup.frozen().unwrap());
        scratch.cgroup.thaw().unwrap();
        assert!(!scratch.cgroup.frozen().unwrap());
        // A kill reaches frozen processes, and those in child cgroups that the container made.
        let inner: Vec<PathBuf> = scratch.cgroup.state.groups.iter().map(|g| g.path.join("inner")).collect();
        for path in inner.iter().filter(|p| !p.to_string_lossy().contains("cpuset")) {
            fs::create_dir(path).unwrap();
            fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        scratch.cgroup.freeze().unwrap();
        scratch.cgroup.kill_all(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        scratch.cgroup.remove().unwrap();
        scratch.cgroup.remove().unwrap();
        assert!(scratch.cgroup.state.groups.iter().all(|g| !g.path.exists()));
        assert!(scratch.cgroup.pids().unwrap().is_empty());
    }
}

#[test]
fn a_living_process_keeps_its_cgroup_and_the_error_names_it() {
    let layout = layouts().remove(0);
    let scratch = make(&layout, "{}").unwrap();
    let mut child = sleeper(&scratch);
    let error = scratch.cgroup.remove().unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", child.id())), "{error}");
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_cgroup_with_processes_of_others_is_not_taken_over() {
    for layout in layouts() {
        let scratch = make(&layout, "{}").unwrap();
        let mut child = sleeper(&scratch);
        let path = scratch.cgroup.state.groups[0].path.clone();
        let mount = match &layout {
            Layout::V1(hierarchies) => &hierarchies[0].mount,
            Layout::V2(Hierarchy { mount, .. }) => mount,
        };
        let spec = Path::new("/").join(path.strip_prefix(mount).unwrap());
        let again = Cgroup::create_in(&layout, &CgroupOptions::new(Some(&spec), "x"), None);
        assert!(matches!(again.unwrap_err(), Error::NotEmpty { .. }));
        scratch.cgroup.kill_all(libc::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn what_cannot_be_enforced_is_named_and_leaves_nothing_behind() {
    for layout in layouts() {
        // rdma is compiled in on few hosts; where it is, there is no such device.
        let error = make(&layout, r#"{"rdma":{"none0":{"hcaHandles":1}}}"#).map(drop).unwrap_err().to_string();
        assert!(error.contains("linux.resources.rdma"), "{error}");
        let Error::MissingController { .. } =
            make(&layout, r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#).map(drop).unwrap_err()
        else {
            panic!("a page size that no kernel has")
        };
    }
}

#[test]
fn a_failed_creation_is_undone() {
    for layout in layouts() {
        let name = name("leaf");
        let path = CgroupOptions::new(Some(Path::new(&name)), "x");
        let resources = r#"{"rdma":{"none0":{"hcaHandles":1}}}"#;
        Cgroup::create_in(&layout, &path, Some(&serde_json::from_str(resources).unwrap())).unwrap_err();
        let mounts: Vec<PathBuf> = match layout {
            Layout::V1(hierarchies) => hierarchies.into_iter().map(|h| h.mount).collect(),
            Layout::V2(hierarchy) => vec![hierarchy.mount],
        };
        let parent = Path::new(&name).parent().unwrap().strip_prefix("/").unwrap().to_path_buf();
        assert!(mounts.iter().all(|mount| !mount.join(&parent).exists()));
    }
}

#[test]
fn v2_device_rules_are_enforced_by_the_kernel() {
    let Some(layout) = v2_layout() else { return eprintln!("no v2 hierarchy here") };
    let scratch = make(&layout, r#"{"devices":[{"allow":false}]}"#).unwrap();
    let attempt = |device: &str| {
        let procs = scratch.cgroup.state.groups[0].path.join("cgroup.procs");
        let script = format!("echo 0 > {} && exec cat < {device} > /dev/null", procs.display());
        Command::new("sh").arg("-c").arg(script).stderr(std::process::Stdio::null()).status().unwrap().success()
    };
    let made = std::env::temp_dir().join(format!("coracle-test-mem-{}", std::process::id()));
    let _ = fs::remove_file(&made);
    let mode = nix::sys::stat::Mode::S_IRUSR;
    nix::sys::stat::mknod(&made, nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 11)).unwrap();
    assert!(attempt("/dev/null"));
    assert!(!attempt(&made.display().to_string()), "the denied device opened");
    let before = sys::attached_device_programs(
        std::os::fd::AsFd::as_fd(&File::open(&scratch.cgroup.state.groups[0].path).unwrap()),
        8,
    );
    assert_eq!(before.unwrap().len(), 1);
    // Replaced by a wider list, then by none at all.
    for devices in [r#"{"devices":[{"allow":true,"type":"b"}]}"#, r#"{"devices":[{"allow":true}]}"#] {
        scratch.cgroup.apply(&serde_json::from_str(devices).unwrap()).unwrap();
    }
    let after = sys::attached_device_programs(
        std::os::fd::AsFd::as_fd(&File::open(&scratch.cgroup.state.groups[0].path).unwrap()),
        8,
    );
    assert!(after.unwrap().is_empty());
    fs::remove_file(&made).unwrap();
}

#[test]
fn v2_controllers_are_handed_down_to_where_a_limit_needs_them() {
    let Some(layout) = v2_layout() else { return eprintln!("no v2 hierarchy here") };
    let Layout::V2(hierarchy) = &layout else { unreachable!() };
    let offered = fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap();
    // A hybrid host leaves v2 the controllers that nobody bound to v1; which ones is the host's choice.
    let cases = [
        ("pids", r#"{"pids":{"limit":7}}"#, "pids.max", "7"),
        ("hugetlb", r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#, "hugetlb.2MB.max", "4194304"),
    ];
    for (controller, resources, file, value) in cases {
        let made = make(&layout, resources);
        if offered.split_whitespace().any(|c| c == controller) {
            assert_eq!(read(&made.unwrap(), controller, file), value);
        } else {
            let error = made.map(drop).unwrap_err().to_string();
            assert!(error.contains(&format!("controller {controller} is not enabled in")), "{error}");
        }
    }
}

#[test]
fn a_single_threaded_child_joins_by_itself() {
    for layout in layouts() {
        let scratch = make(&layout, "{}").unwrap();
        let files = scratch.cgroup.join_self_files().unwrap();
        let Layout::V1(hierarchies) = &layout else {
            assert!(files.is_empty() && scratch.cgroup.dir_fd_for_clone().unwrap().is_some());
            continue;
        };
        assert_eq!(files.len(), hierarchies.len());
        let paths: Vec<String> =
            scratch.cgroup.state.groups.iter().map(|g| g.path.join("tasks").display().to_string()).collect();
        let script: String = paths.iter().map(|p| format!("echo 0 > {p}; ")).collect();
        let output = Command::new("sh").arg("-c").arg(script + "cat /proc/self/cgroup").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.matches("/leaf\n").count(), hierarchies.len(), "{text}");
    }
}

#[test]
fn running_out_of_memory_is_counted_and_announced() {
    let Some(layout) = v1_layout() else { return eprintln!("no v1 hierarchy here") };
    let scratch = make(&layout, r#"{"memory":{"limit":8388608,"swap":8388608}}"#).unwrap();
    let event = scratch.cgroup.oom_event_fd().unwrap();
    assert_eq!(scratch.cgroup.oom_kill_count().unwrap(), 0);
    let tasks = scratch.cgroup.dir_of("memory").unwrap().join("tasks");
    let script = format!("echo 0 > {}; exec tail /dev/zero", tasks.display());
    let status = Command::new("sh").arg("-c").arg(script).stdout(std::process::Stdio::null()).status().unwrap();
    assert!(!status.success());
    assert_eq!(scratch.cgroup.oom_kill_count().unwrap(), 1);
    let mut count = [0; 8];
    assert_eq!(nix::unistd::read(&event, &mut count).unwrap(), 8);
}

#[test]
fn a_parent_that_another_process_has_only_just_made_is_no_obstacle() {
    let Some(layout @ Layout::V1(_)) = v1_layout() else { return eprintln!("no v1 hierarchy here") };
    let Layout::V1(hierarchies) = &layout else { return };
    let cpuset = hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "cpuset")).expect("a cpuset hierarchy");
    let name = name("leaf");
    let path = CgroupPath::new(Some(Path::new(&name)), "x").unwrap();
    let directory = path.in_v1(cpuset, &mut OwnCgroups::default()).unwrap();
    // The state between the other's mkdir and its first write: a parent without cpus and nodes.
    fs::create_dir(directory.parent().unwrap()).unwrap();
    let cgroup = Cgroup::create_in(&layout, &CgroupOptions::new(Some(Path::new(&name)), "x"), None).unwrap();
    let parent = cgroup.state.groups.iter().filter_map(|g| g.path.parent().map(Path::to_path_buf)).collect();
    let scratch = Scratch { cgroup, parent };
    sleeper(&scratch).kill().unwrap();
}
