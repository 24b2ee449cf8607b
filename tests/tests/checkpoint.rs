//! Checkpoint and restore with Debian's CRIU. Run by `scripts/check-checkpoint`, in a machine with Debian's kernel.

mod oci_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_support::{Answer, Bundle, wait_for};
use serde_json::json;

/// Counts in a variable of its own, so that only the same process can go on with it.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i >> /data/log; echo $i > /tmp/now; sleep 0.1; done";

fn counter() -> Bundle {
    let mut bundle = Bundle::sh(COUNTER);
    let data = bundle.dir.path().join("data");
    fs::create_dir(&data).expect("mkdir");
    bundle.mount("/data", "bind", data.to_str().expect("UTF-8"), &["rbind", "rw"]);
    bundle.mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev"]);
    bundle.set("/linux/resources/pids", json!({ "limit": 77 }));
    bundle
}

fn started(bundle: &Bundle) {
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
}

fn log(bundle: &Bundle) -> Vec<u64> {
    let text = fs::read_to_string(bundle.dir.path().join("data/log")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn counts_further(bundle: &Bundle) {
    let before = log(bundle).len();
    wait_for("the counter", || log(bundle).len() > before + 2);
}

fn images(bundle: &Bundle, name: &str) -> PathBuf {
    bundle.dir.path().join(name)
}

fn checkpoint(bundle: &Bundle, images: &Path, flags: &[&str]) -> Answer {
    let mut args = vec!["checkpoint", "--image-path", images.to_str().expect("UTF-8")];
    args.extend(flags);
    args.push(&bundle.id);
    bundle.oci(&args)
}

/// With its output in the files of [`Bundle::file`], which a pipe would hold open.
fn restore(bundle: &Bundle, images: &Path, flags: &[&str]) -> Answer {
    let dir = bundle.dir.path();
    let mut args =
        vec!["restore", "--bundle", dir.to_str().expect("UTF-8"), "--image-path", images.to_str().expect("UTF-8")];
    args.extend(flags);
    args.push(&bundle.id);
    let file = |name: &str| fs::File::create(dir.join(name)).expect("file");
    let status = bundle.command(&args).stdout(file("out")).stderr(file("err")).status().expect("the runtime runs");
    Answer { code: status.code().unwrap_or(-1), out: bundle.file("out"), err: bundle.file("err") }
}

#[test]
fn a_container_goes_on_where_it_was_with_its_volumes_and_limits() {
    let bundle = counter();
    started(&bundle);
    counts_further(&bundle);
    let saved = images(&bundle, "images");
    checkpoint(&bundle, &saved, &[]).ok();
    bundle.assert_gone();
    let before = log(&bundle);
    let pid_file = bundle.dir.path().join("pid");
    restore(&bundle, &saved, &["--detach", "--pid-file", pid_file.to_str().expect("UTF-8")]).ok();
    assert_eq!(bundle.status(), "running");
    assert_eq!(fs::read_to_string(pid_file).expect("pid file"), bundle.state()["pid"].to_string());
    counts_further(&bundle);
    let after = log(&bundle);
    assert_eq!(after[..before.len()], before);
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "it counts on: {after:?}");
    let seen = bundle.exec(&["/bin/sh", "-c", "cat /tmp/now; cat /proc/1/comm; ls /proc/kcore; echo $$"]).ok().out;
    assert!(
        seen.lines().next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n >= before.len() as u64),
        "{seen}"
    );
    let cgroup = &bundle.cgroups()[0];
    assert_eq!(fs::read_to_string(cgroup.join("pids.max")).expect("pids.max").trim(), "77");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains("criu-root"), "the host has no mount of it: {mounts}");
    bundle.oci(&["pause", &bundle.id]).ok();
    bundle.oci(&["resume", &bundle.id]).ok();
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_container_that_is_left_running_runs_on_and_one_that_is_paused_stays_so() {
    let bundle = counter();
    started(&bundle);
    checkpoint(&bundle, &images(&bundle, "running"), &["--leave-running"]).ok();
    assert_eq!(bundle.status(), "running");
    counts_further(&bundle);
    bundle.oci(&["pause", &bundle.id]).ok();
    checkpoint(&bundle, &images(&bundle, "paused"), &["--leave-running"]).ok();
    assert_eq!(bundle.status(), "paused");
    bundle.oci(&["resume", &bundle.id]).ok();
    counts_further(&bundle);
}

#[test]
fn a_pre_dump_saves_memory_ahead() {
    let bundle = counter();
    started(&bundle);
    let saved = images(&bundle, "second");
    checkpoint(&bundle, &images(&bundle, "first"), &["--pre-dump"]).ok();
    counts_further(&bundle);
    checkpoint(&bundle, &saved, &["--parent-path", "/first"]).fails("--parent-path");
    checkpoint(&bundle, &saved, &["--parent-path", "../none"]).fails("--parent-path");
    checkpoint(&bundle, &saved, &["--parent-path", "../first"]).ok();
    restore(&bundle, &saved, &["--detach"]).ok();
    counts_further(&bundle);
}

#[test]
fn a_restore_in_the_foreground_has_the_output_and_the_exit_code() {
    let bundle = Bundle::sh("until [ -e /go ]; do sleep 0.1; done; echo after; echo words >&2; exit 7");
    started(&bundle);
    let saved = images(&bundle, "images");
    checkpoint(&bundle, &saved, &[]).ok();
    fs::write(bundle.rootfs().join("go"), "").expect("write");
    let answer = restore(&bundle, &saved, &[]);
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (7, "after\n", "words\n"));
    bundle.assert_gone();
}

#[test]
fn a_network_namespace_that_was_joined_is_joined_again() {
    let other = Bundle::sleeping();
    let path = format!("/proc/{}/ns/net", other.state()["pid"]);
    let mut bundle = counter();
    bundle.namespace("network", Some(Some(&path)));
    started(&bundle);
    let saved = images(&bundle, "images");
    checkpoint(&bundle, &saved, &[]).ok();
    restore(&bundle, &saved, &["--detach"]).ok();
    let inode = |path: &str| fs::read_link(path).expect("namespace");
    assert_eq!(inode(&format!("/proc/{}/ns/net", bundle.state()["pid"])), inode(&path));
    counts_further(&bundle);
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_the_container_alone() {
    let mut bundle = counter();
    bundle.create().ok();
    let saved = images(&bundle, "images");
    checkpoint(&bundle, &saved, &[]).fails("created");
    bundle.oci(&["start", &bundle.id]).ok();
    checkpoint(&bundle, &saved, &["--lazy-pages"]).fails("--lazy-pages");
    checkpoint(&bundle, &saved, &["--manage-cgroups-mode", "hard"]).fails("hard");
    checkpoint(&bundle, &saved, &["--empty-ns", "pid"]).fails("pid");
    checkpoint(&bundle, &saved, &["--page-server", "x"]).fails("page-server");
    bundle.oci(&["--criu", "/none", "checkpoint", "--image-path", saved.to_str().unwrap(), &bundle.id]).fails("/none");
    assert_eq!(bundle.status(), "running");
    counts_further(&bundle);
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.set("/process/terminal", json!(true));
    bundle.write_config();
    fs::write(saved.join("mounts.json"), "[]").expect("write");
    fs::write(saved.join("descriptors.json"), "[]").expect("write");
    restore(&bundle, &saved, &["--detach"]).fails("process.terminal");
    bundle.assert_gone();
}

#[test]
fn a_restore_that_fails_says_crius_words_and_leaves_nothing() {
    let bundle = counter();
    started(&bundle);
    let saved = images(&bundle, "images");
    restore(&bundle, &images(&bundle, "none"), &[]).fails("none");
    checkpoint(&bundle, &saved, &[]).ok();
    fs::remove_file(saved.join("core-1.img")).expect("an image");
    restore(&bundle, &saved, &["--detach"]).fails("criu restore failed: Error (").fails("restore.log");
    bundle.assert_gone();
    fs::remove_file(saved.join("mounts.json")).expect("a file of ours");
    restore(&bundle, &saved, &["--detach"]).fails("mounts.json");
    bundle.assert_gone();
}

/// Podman with a store of its own.
struct Podman {
    dir: PathBuf,
    name: String,
}

impl Podman {
    fn call(&self, args: &[&str]) -> Answer {
        let mut podman = Command::new("podman");
        podman.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs"]);
        podman.arg("--runtime").arg(oci_support::runtime());
        podman.arg("--root").arg(self.dir.join("store")).arg("--runroot").arg(self.dir.join("run"));
        podman.args(args).output().expect("podman is needed: apt-get install podman").into()
    }

    fn lines(&self) -> usize {
        self.call(&["logs", &self.name]).ok().out.lines().count()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["rm", "--force", "--time", "0", &self.name]);
    }
}

#[test]
fn podman_checkpoints_and_restores() {
    let bundle = Bundle::new(&[]);
    let podman = Podman { dir: bundle.dir.path().join("podman"), name: bundle.id.clone() };
    let rootfs = bundle.rootfs();
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    let run = ["run", "--detach", "--name", &podman.name, "--network", "none", "--log-driver", "k8s-file", "--rootfs"];
    podman.call(&[&run[..], &[rootfs.to_str().expect("UTF-8"), "sh", "-c", script]].concat()).ok();
    wait_for("the counter", || podman.lines() > 3);
    podman.call(&["container", "checkpoint", &podman.name]).ok();
    let status = podman.call(&["inspect", "--format", "{{.State.Status}}", &podman.name]).ok().out;
    assert_eq!(status.trim(), "exited");
    let before = podman.lines();
    podman.call(&["container", "restore", &podman.name]).ok();
    wait_for("the counter", || podman.lines() > before + 2);
    let log = podman.call(&["logs", &podman.name]).ok().out;
    let counted: Vec<usize> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(counted, (1..=counted.len()).collect::<Vec<_>>(), "it counts on");
    assert_eq!(podman.call(&["exec", &podman.name, "echo", "in"]).ok().out, "in\n");
}
