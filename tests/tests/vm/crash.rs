//! What is left when something of a virtual machine dies, and who hears of it.

use std::fs;
use std::path::Path;
use std::sync::MutexGuard;
use std::time::SystemTime;

use coracle_proto::coracle::{ConnectNetworkRequest, ConnectNetworkResponse, SandboxOptions, VmOptions};
use coracle_proto::ttrpc::{Code, method, service};
use coracle_tests::machine::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Vms, kernel_dir, turn};
use crate::pod::{Pod, SHIM};

/// A machine of this kernel's.
fn machine() -> VmOptions {
    let folder = kernel_dir();
    let file = |name: &str| {
        let path = folder.join(name);
        if path.exists() { path.display().to_string() } else { String::new() }
    };
    VmOptions {
        vmm: "/usr/bin/qemu-system-x86_64".into(),
        kernel: file("vmlinux"),
        modules: file("modules.cpio"),
        manifest: file("manifest.sha256"),
        allow_emulation: true,
        memory_bytes: 256 << 20,
        overhead_bytes: 300 << 20,
        cpus: 1,
        ..VmOptions::default()
    }
}

/// A ready pod in such a machine, with a cgroup; and the turn of the test.
fn pod(vm: VmOptions) -> (Pod, MutexGuard<'static, ()>) {
    let turn = turn();
    (pod_at_once(vm), turn)
}

fn pod_at_once(vm: VmOptions) -> Pod {
    let mut pod = Pod::launch();
    let cgroup_parent = pod.cgroup.clone();
    let options = SandboxOptions { vm: Some(vm), hostname: pod.id.clone(), cgroup_parent, ..Default::default() };
    pod.create_sandbox(options).expect("create the sandbox");
    let request = ConnectNetworkRequest::default();
    let connected = pod.client.call(service::CONTROL, method::CONNECT_NETWORK, &request);
    let _: ConnectNetworkResponse = connected.expect("the machine boots");
    pod.start_sandbox();
    pod
}

fn monitor(pod: &mut Pod) -> Pid {
    Pid::from_raw(pod.sandbox_status().info["vm_pid"].parse().expect("the monitor's pid"))
}

fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The supervisor's children that have this name.
fn children(pod: &Pod, name: &str) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).expect("list its children");
    let pids = list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a pid")));
    pids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)).collect()
}

fn said(pod: &mut Pod, exec: &str, command: &str) -> String {
    let heard = pod.exec("long", exec, &["sh", "-c", command], false).listen_to_the_end();
    assert_eq!(pod.wait("long", exec), 0, "{}", String::from_utf8_lossy(&heard.stderr));
    String::from_utf8(heard.stdout).expect("UTF-8").trim().to_owned()
}

/// All has ended for a reason, the supervisor too, and nothing of the machine is there any more.
fn assert_lost(pod: &Pod, words: &str) {
    until("the supervisor has ended", || !runs(Pid::from_raw(pod.pid)));
    let exit = fs::read(pod.bundle("long").join("exit.json")).expect("an exit");
    let exit: Value = serde_json::from_slice(&exit).expect("JSON");
    assert_eq!((exit["exit_status"].as_u64(), exit["reason"].as_str()), (Some(137), Some("VirtualMachineLost")));
    assert!(exit["message"].as_str().is_some_and(|message| message.contains(words)), "{exit}");
    assert!(!pod.path("vm").exists() && pod.cgroups().is_empty());
}

#[test]
fn a_killed_link_is_started_again_and_a_killed_monitor_ends_the_pod() {
    let (mut pod, _turn) = pod(machine());
    pod.run("long", &["sleep", "1000"]);
    let monitor = monitor(&mut pod);
    for number in 0..3 {
        let link = children(&pod, "coracle-link")[0];
        kill(link, Signal::SIGKILL).expect("kill the link");
        until("there is another link", || children(&pod, "coracle-link").iter().any(|other| *other != link));
        assert_eq!(said(&mut pod, &format!("e{number}"), "echo here"), "here");
    }
    assert_confined(monitor, &pod);
    kill(monitor, Signal::SIGKILL).expect("kill the monitor");
    assert_eq!(pod.wait("long", ""), 137);
    assert_lost(&pod, "killed by signal 9");
}

/// No rights, no network, no core dump, the pod's own user and cgroup, and of the host's files only those it was given.
fn assert_confined(monitor: Pid, pod: &Pod) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{monitor}/{name}")).expect("read what the kernel says");
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    let user: u32 = field("Uid")[0].parse().expect("a uid");
    assert!((0x7000_0000..0x7800_0000).contains(&user) && field("Groups").is_empty(), "{status}");
    assert!(read("limits").lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0  ")));
    let interfaces = read("net/dev").lines().skip(2).count();
    assert_eq!(interfaces, 1, "its loopback alone");
    assert!(read("cgroup").contains(&format!("{}/vm", pod.cgroup)));
    let root = Path::new("/proc").join(monitor.to_string()).join("root");
    let has = |name: &str| root.join(name).exists();
    assert!(has("usr") && has("dev/null") && !has("proc") && !has("home") && !has("root") && !has("etc/passwd"));
    assert!(read("mountinfo").lines().all(|mount| mount.contains(" ro,") || mount.contains(" /dev/")));
}

#[test]
fn a_guest_that_panics_is_lost_with_its_last_words() {
    let (mut pod, _turn) = pod(machine());
    pod.run("long", &["sleep", "1000"]);
    pod.run("sysrq", &["sh", "-c", "sleep 1; echo c > /proc/sysrq-trigger; sleep 1000"]);
    assert_eq!(pod.wait("sysrq", ""), 137);
    assert_eq!(pod.wait("long", ""), 137);
    assert_lost(&pod, "Kernel panic");
}

#[test]
fn a_machine_goes_with_its_supervisor() {
    let (mut pod, _turn) = pod(machine());
    pod.run("long", &["sleep", "1000"]);
    let (monitor, link) = (monitor(&mut pod), children(&pod, "coracle-link")[0]);
    kill(Pid::from_raw(pod.pid), Signal::SIGKILL).expect("kill the supervisor");
    until("its children have ended", || !runs(monitor) && !runs(link));
    let cleared = std::process::Command::new(coracle_tests::bin(SHIM))
        .args(["-id", &pod.id, "delete"])
        .current_dir(pod.dir.path())
        .status();
    assert!(cleared.expect("run delete").success());
    assert!(!pod.path("vm").exists() && pod.cgroups().is_empty());
}

#[test]
fn what_cannot_run_is_refused_by_name() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("manifest.sha256");
    fs::write(&manifest, format!("{}  vmlinux\n", "0".repeat(64))).expect("write a manifest");
    let wrong = VmOptions { manifest: manifest.display().to_string(), modules: String::new(), ..machine() };
    let shared = VmOptions { template_folder: "/t".into(), host_paths: vec!["/srv".into()], ..machine() };
    for (vm, words) in [(wrong, "has digest"), (shared, "exclude each other")] {
        let mut pod = Pod::launch();
        let cgroup_parent = pod.cgroup.clone();
        let options = SandboxOptions { vm: Some(vm), cgroup_parent, ..Default::default() };
        let refused = pod.create_sandbox(options).expect_err("refused");
        assert!(refused.message.contains(words), "{refused:?}");
        assert!(!pod.path("vm").exists() && pod.cgroups().is_empty());
        pod.shutdown();
    }
    // Where KVM runs this kernel nothing has to be allowed.
    let mut pod = Pod::launch();
    let vm = VmOptions { allow_emulation: false, ..machine() };
    if let Err(refused) = pod.create_sandbox(SandboxOptions { vm: Some(vm), ..Default::default() }) {
        assert_eq!(refused.code, Code::FailedPrecondition as i32);
        assert!(refused.message.contains("allow_emulation"), "{refused:?}");
    }
    pod.shutdown();
}

#[test]
fn copies_of_a_template_are_machines_of_their_own() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let vm = VmOptions { template_folder: folder.path().display().to_string(), ..machine() };
    let mut pods = [pod_at_once(vm.clone()), pod_at_once(vm)];
    let mut known = Vec::new();
    for pod in &mut pods {
        pod.run("long", &["sleep", "1000"]);
        assert_eq!(said(pod, "name", "hostname"), pod.id);
        let now: u64 = said(pod, "time", "/bin/busybox date +%s").parse().expect("seconds");
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs().abs_diff(now);
        assert!(since < 60, "{since} s apart");
        known.push(said(pod, "random", "head -c 32 /dev/urandom | /bin/busybox sha256sum"));
    }
    assert_ne!(known[0], known[1]);
    let templates =
        fs::read_dir(folder.path()).expect("list").filter(|entry| entry.as_ref().is_ok_and(|e| e.path().is_dir()));
    assert_eq!(templates.count(), 1, "made once");
    for mut pod in pods {
        pod.shutdown();
        assert!(pod.cgroups().is_empty());
    }
}

#[test]
fn boots_one_after_another_and_four_at_once() {
    let _turn = turn();
    for _ in 0..20 {
        pod_at_once(machine()).shutdown();
    }
    let boots: Vec<_> = (0..4).map(|_| std::thread::spawn(|| pod_at_once(machine()).shutdown())).collect();
    boots.into_iter().for_each(|boot| boot.join().expect("a boot"));
}

#[test]
fn a_lost_pod_is_shown_with_its_reason_and_removed_without_a_trace() {
    let vms = Vms::with("");
    vms.ok(&["run", "-d", &coracle_tests::machine::Machine::script_pod(&vms, "plain", "sleep 1000", "")]);
    let before = vms.traces();
    vms.ok(&["run", "-d", &vms.script_pod("lost", "sleep 1000", "  restartPolicy: Never\n")]);
    let monitors =
        || vms.processes().into_iter().filter(|(_, line)| line.starts_with("qemu-system")).map(|(pid, _)| pid);
    monitors().for_each(|pid| kill(pid, Signal::SIGKILL).expect("kill the monitor"));
    until("the pod's container has ended", || vms.view("lost").to_string().contains("VirtualMachineLost"));
    vms.ok(&["rm", "-f", "lost"]);
    // What KVM answered is kept.
    vms.assert_traces(&before, |trace| trace.contains("/state/vm"));
}
