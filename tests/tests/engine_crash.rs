//! The engine after a crash: what is left is named, cleared, and nothing alive is touched.

use std::time::{Duration, Instant};

use coracle_engine::record::{SandboxRecord, boot_id, now};
use coracle_engine::{ContainerState, SandboxState};
use coracle_tests::machine::sh;
use coracle_tests::rig::{Rig, containers, rig, script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: &str = "echo ready; while :; do sleep 0.05; done";

/// Whether a process does anything any more; a zombie that its new parent has yet to reap does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

async fn findings(rig: &Rig) -> Vec<String> {
    rig.another().doctor().await.unwrap().iter().map(ToString::to_string).collect()
}

async fn gc(rig: &Rig) {
    for action in rig.another().gc().await.unwrap() {
        assert_eq!(action.error, None, "{}", action.finding);
    }
}

#[test]
fn a_killed_supervisor_is_named_with_what_it_left_and_the_other_pod_lives() {
    rig(async |rig| {
        let dead = rig.engine.run_sandbox(rig.pod("dead")).await.unwrap();
        let alive = rig.engine.run_sandbox(rig.pod("alive")).await.unwrap();
        let orphan = rig.start(&dead.id, script("main", LONG)).await.unwrap();
        let kept = rig.start(&alive.id, script("main", LONG)).await.unwrap();
        let pid = rig.engine.container_status(&orphan).unwrap().pid.unwrap();
        assert_eq!(findings(rig).await, Vec::<String>::new());

        let supervisor = Pid::from_raw(dead.supervisor.unwrap());
        let waiting = {
            let (engine, id) = (rig.engine.clone(), orphan.clone());
            tokio::spawn(async move { engine.wait_container(&id).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        kill(supervisor, Signal::SIGKILL).unwrap();
        let exit = waiting.await.unwrap().unwrap();
        assert_eq!((exit.code, exit.reason.as_str()), (255, "Unknown"));

        let found = findings(rig).await;
        assert!(found.iter().any(|f| f.contains("pod dead") && f.contains(&pid.to_string())), "{found:?}");
        assert_eq!(rig.engine.sandbox_status("dead").unwrap().state, SandboxState::NotReady);
        gc(rig).await;
        assert_eq!(findings(rig).await, Vec::<String>::new());
        assert!(!runs(pid), "what it left running was ended");
        assert_eq!(rig.engine.container_status(&kept).unwrap().state, ContainerState::Running);
        assert_eq!(containers(&rig.engine, &dead.id)[0].state, ContainerState::Exited);
        rig.engine.remove_sandbox("dead").await.unwrap();
        rig.engine.run_sandbox(rig.pod("dead")).await.unwrap();
    });
}

#[test]
fn a_removal_does_not_need_the_supervisor() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        rig.start(&pod.id, script("main", LONG)).await.unwrap();
        kill(Pid::from_raw(pod.supervisor.unwrap()), Signal::SIGKILL).unwrap();
        rig.engine.remove_sandbox("web").await.unwrap();
        assert_eq!(rig.left(), Vec::<String>::new());
    });
}

#[test]
fn a_stopped_supervisor_delays_nobody_and_is_never_cleared() {
    rig(async |rig| {
        let hung = rig.engine.run_sandbox(rig.pod("hung")).await.unwrap();
        let id = rig.start(&hung.id, script("main", LONG)).await.unwrap();
        let supervisor = Pid::from_raw(hung.supervisor.unwrap());
        kill(supervisor, Signal::SIGSTOP).unwrap();
        let begun = Instant::now();
        let other = rig.another();
        assert_eq!(other.list_sandboxes(&Default::default()).unwrap().len(), 1);
        assert_eq!(other.container_status(&id).unwrap().state, ContainerState::Running);
        let pod = other.run_sandbox(rig.pod("web")).await.unwrap();
        let (exit, _) = rig.run(&pod.id, script("main", "true")).await;
        assert_eq!(exit.code, 0);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let found = findings(rig).await;
        assert!(found.len() == 1 && found[0].contains("does not answer"), "{found:?}");
        gc(rig).await;
        assert_eq!(rig.engine.container_status(&id).unwrap().state, ContainerState::Running);
        kill(supervisor, Signal::SIGCONT).unwrap();
        assert_eq!(findings(rig).await, Vec::<String>::new());
    });
}

#[test]
fn an_interrupted_creation_is_cleared_and_keeps_no_name() {
    rig(async |rig| {
        // What a creator leaves that was killed right after its first record.
        let id = "ab".repeat(32);
        let folder = rig.dir.join("state/pods").join(&id);
        std::fs::create_dir_all(folder.join("containers")).unwrap();
        let record = SandboxRecord {
            boot_id: boot_id().to_owned(),
            id: id.clone(),
            config: rig.pod("web"),
            state: SandboxState::Creating,
            created_at: now(),
            supervisor: None,
            pid_ns_pid: None,
            user_ns: None,
            ips: Vec::new(),
            notes: Vec::new(),
            cgroup: format!("{}/pod{id}", rig.engine.config().cgroup_parent),
            handler: Default::default(),
            vm: None,
        };
        coracle_engine::record::write(&folder, &record).unwrap();
        let found = findings(rig).await;
        assert!(found.len() == 1 && found[0].contains("interrupted"), "{found:?}");
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        gc(rig).await;
        assert!(!folder.exists());
        assert_eq!(rig.engine.sandbox_status("web").unwrap().id, pod.id);
    });
}

#[test]
fn strays_on_disk_and_in_cgroups_are_found_and_others_are_left_alone() {
    rig(async |rig| {
        let id = "cd".repeat(32);
        let data = rig.dir.join("root/pods").join(&id);
        std::fs::create_dir_all(data.join("x/upper")).unwrap();
        // Without the mark of this state folder it may be another engine's.
        assert_eq!(findings(rig).await, Vec::<String>::new());
        std::fs::write(data.join("owner"), rig.dir.join("state").to_str().unwrap()).unwrap();
        let group = format!("{}/pod{id}", rig.engine.config().cgroup_parent);
        let tree = sh("grep -o ' /sys/fs/cgroup[^ ]*pids ' /proc/self/mountinfo || echo /sys/fs/cgroup");
        let dir = std::path::PathBuf::from(format!("{}{group}", tree.trim()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(dir.join("cgroup.procs"), sleep.id().to_string()).unwrap();
        let found = findings(rig).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|f| f.contains(&format!("pid {}", sleep.id()))), "{found:?}");
        let reaper = std::thread::spawn(move || sleep.wait().unwrap());
        gc(rig).await;
        assert!(!reaper.join().unwrap().success());
        assert!(!data.exists() && !dir.exists());
    });
}

#[test]
fn an_exit_is_known_when_the_supervisor_dies_after_it() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let (exit, _) = rig.run(&pod.id, script("main", "exit 9")).await;
        assert_eq!(exit.code, 9);
        kill(Pid::from_raw(pod.supervisor.unwrap()), Signal::SIGKILL).unwrap();
        let seen = &containers(&rig.another(), &pod.id)[0];
        assert_eq!(seen.exit.as_ref().unwrap().code, 9);
        gc(rig).await;
        assert_eq!(containers(&rig.another(), &pod.id)[0].exit.as_ref().unwrap().code, 9);
    });
}
