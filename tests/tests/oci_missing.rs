//! Kernels that are older than a system call, and sandboxes that hide it: the runtime does the same without, or refuses in
//! words that name the call and the kernel it takes. `scripts/faults` runs the whole suite of the runtime this way.

mod oci_support;

use std::fs::File;
use std::process::{Command, Stdio};

use oci_support::{Answer, Bundle, runtime, wait_for};
use serde_json::json;

/// The runtime under a kernel without these calls.
fn without(calls: &str, bundle: &Bundle, args: &[&str]) -> Answer {
    let file = |name: &str| File::create(bundle.dir.path().join(name)).expect("file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_faulty"));
    command.args(["missing", calls]).arg(runtime()).arg("--root").arg(bundle.state_root()).args(args);
    let status =
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).status().expect("the helper runs");
    Answer { code: status.code().unwrap_or(-1), out: bundle.file("out"), err: bundle.file("err") }
}

fn create(calls: &str, bundle: &Bundle) -> Answer {
    bundle.write_config();
    without(calls, bundle, &["create", "--bundle", bundle.dir.path().to_str().expect("UTF-8"), &bundle.id])
}

/// A container with paths of every kind, that sleeps.
fn bundle() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/cwd", json!("/deep/er"));
    let source = bundle.dir.path().join("source");
    std::fs::create_dir(&source).expect("a directory to bind");
    let source = source.to_str().expect("UTF-8").to_owned();
    std::fs::create_dir(bundle.rootfs().join("by")).expect("mkdir");
    bundle.mount("/by/../made/./here", "bind", &source, &["rbind", "ro"]);
    bundle.mount("/link/inside", "tmpfs", "tmpfs", &["tmpcopyup"]);
    std::os::unix::fs::symlink("../../../../elsewhere", bundle.rootfs().join("link")).expect("a link");
    bundle
}

/// A whole life.
fn lives(calls: &str) {
    let bundle = bundle();
    let oci = |args: &[&str]| without(calls, &bundle, args);
    create(calls, &bundle).ok();
    oci(&["start", &bundle.id]).ok();
    let mounts = oci(&["exec", "--user", "7:8", &bundle.id, "/bin/cat", "/proc/self/mounts"]).ok().out;
    for place in [" /made/here ", " /elsewhere/inside ", " /proc/keys ", " /proc/sys "] {
        assert!(mounts.contains(place), "{place:?} is not in {mounts}");
    }
    assert!(bundle.rootfs().join("elsewhere/inside").is_dir(), "the link leads inside");
    let fds = oci(&["exec", &bundle.id, "/bin/ls", "/proc/self/fd"]).ok().out;
    assert_eq!(fds.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is what ls itself opened");
    oci(&["pause", &bundle.id]).ok();
    oci(&["resume", &bundle.id]).ok();
    oci(&["kill", &bundle.id, "KILL"]).ok();
    wait_for("the end", || bundle.status() == "stopped");
    oci(&["kill", &bundle.id, "KILL"]).fails("not running");
    oci(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
    create(calls, &bundle).ok();
    oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn without_openat2_paths_are_walked() {
    lives("openat2");
}

#[test]
fn without_clone3_the_old_clone_does() {
    lives("clone3");
}

#[test]
fn without_close_range_descriptors_are_closed_one_by_one() {
    lives("close_range");
}

#[test]
fn without_pidfds_processes_are_held_by_their_folder_in_proc() {
    lives("pidfd_open,pidfd_send_signal");
    lives("pidfd_send_signal");
}

#[test]
fn without_execveat_or_memfds_the_program_is_out_of_reach_all_the_same() {
    lives("execveat");
    lives("memfd_create");
}

#[test]
fn without_all_of_them_a_container_lives() {
    lives("openat2,clone3,close_range,pidfd_open,pidfd_send_signal,execveat");
}

#[test]
fn a_user_namespace_takes_none_of_them() {
    let calls = "openat2,clone3,close_range,pidfd_open,pidfd_send_signal,execveat";
    let mut bundle = bundle();
    bundle.namespace("user", Some(None));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    for place in ["", "etc"] {
        std::os::unix::fs::chown(bundle.rootfs().join(place), Some(100_000), Some(100_000)).expect("chown");
    }
    create(calls, &bundle).ok();
    without(calls, &bundle, &["start", &bundle.id]).ok();
    let id = without(calls, &bundle, &["exec", &bundle.id, "/bin/id", "-u"]).ok().out;
    assert_eq!(id.trim(), "0");
    without(calls, &bundle, &["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_hook_with_a_timeout_is_killed_at_its_time_without_pidfds() {
    let mut bundle = bundle();
    let hook = json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }]);
    bundle.set("/hooks", json!({ "createRuntime": hook }));
    create("pidfd_open,pidfd_send_signal", &bundle).fails("timeout of 1 s");
    bundle.assert_gone();
}

#[test]
fn what_nothing_replaces_is_refused_by_name_and_nothing_is_left() {
    let calls = [
        ("open_tree", "5.2"),
        ("move_mount", "5.2"),
        ("fsopen", "5.2"),
        ("fsconfig", "5.2"),
        ("fsmount", "5.2"),
        ("mount_setattr", "5.12"),
    ];
    for (call, linux) in calls {
        let bundle = bundle();
        let answer = create(call, &bundle).fails(&format!("{call}(2) is missing: it needs Linux {linux}"));
        assert_eq!(answer.err.trim().lines().count(), 1, "{}", answer.err);
        bundle.assert_gone();
    }
}

#[test]
fn a_time_namespace_without_clone3_is_refused_by_name() {
    let mut bundle = bundle();
    bundle.namespace("time", Some(None));
    create("clone3", &bundle).fails("clone3(2) is missing: it needs Linux 5.3");
    bundle.assert_gone();
}

#[test]
fn hooks_without_memfds_are_refused_by_name() {
    let mut bundle = bundle();
    bundle.set("/hooks", json!({ "createRuntime": [{ "path": "/bin/true" }] }));
    create("memfd_create", &bundle).fails("memfd_create(2) is missing: it needs Linux 3.17");
    bundle.assert_gone();
}
