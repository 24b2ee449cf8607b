//! The programs people run containers with, from Debian, each with this runtime in runc's place: podman, containerd with its
//! runc shim, buildah, docker.
//!
//! Each test has a program of its own: own storage, state, sockets, cgroup parent; daemons in a mount namespace with an own
//! /run, ended by pid. The image is Debian's busybox. `OCI_RUNTIME=runc` runs the same with a peer.

#[path = "../oci_support/mod.rs"]
mod oci_support;

mod buildah;
mod containerd;
mod docker;
mod podman;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_support::Answer;

/// The image that every program has.
const IMAGE: &str = "localhost/busybox:latest";

/// No single command takes longer, loaded as the machine may be.
const PATIENCE: &str = "120";

/// The scratch place of one program.
struct Place {
    dir: tempfile::TempDir,
    /// The parent of its containers' cgroups.
    cgroup: String,
}

impl Place {
    fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("coracle-users.").tempdir().expect("temporary directory");
        // A user namespace's root walks through.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("chmod");
        let cgroup = format!("/coracle-users-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let place = Place { dir, cgroup };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        let made =
            Command::new(script).arg(place.path("image.tar")).arg(IMAGE).status().expect("scripts/busybox-image");
        assert!(made.success());
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// A directory to mount, with one file.
    fn volume(&self) -> String {
        let volume = self.path("volume");
        fs::create_dir_all(&volume).expect("mkdir");
        fs::write(format!("{volume}/f"), "data\n").expect("write");
        volume
    }

    /// What is mounted, and what runs, in this place.
    fn traces(&self) -> Vec<String> {
        let name = self.dir.path().to_str().expect("UTF-8");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut traces: Vec<String> = mounts.lines().filter(|line| line.contains(name)).map(str::to_owned).collect();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(name) {
                traces.push(format!("{} {command}", entry.file_name().display()));
            }
        }
        traces
    }

    /// Asserts that the containers left nothing, and removes the cgroups that were their parents.
    fn close(&self) {
        for top in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()) {
            remove_cgroups(&top.join(&self.cgroup[1..]));
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(&self.cgroup[1..]));
        if !std::thread::panicking() {
            oci_support::wait_for("all to be gone", || self.traces().is_empty());
        }
    }
}

/// Empty ones; one with a process in it stays.
fn remove_cgroups(dir: &Path) {
    for child in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_cgroups(&child.path());
    }
    let _ = fs::remove_dir(dir);
}

/// Where the runtime under test is, for programs that want a path.
fn runtime() -> String {
    let name = oci_support::runtime();
    let places =
        ["", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"].map(|dir| Path::new(dir).join(&name));
    let found: Option<PathBuf> = places.into_iter().find_map(|path| path.canonicalize().ok());
    found.unwrap_or_else(|| panic!("{} is nowhere", name.display())).to_str().expect("UTF-8").to_owned()
}

/// Runs a command to its end, with these bytes as its input.
fn say_with(mut command: Command, input: &str) -> Answer {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    // Who does not read it has closed it.
    let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("wait").into()
}

/// The command in a terminal of 33 rows and 44 columns, with one line of input; both its outputs.
fn in_terminal(command: &Command, line: &str) -> String {
    let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().expect("UTF-8").replace('\'', r"'\''"));
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
    let mut script = Command::new("script");
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    script.args(["-qec", &format!("stty rows 33 cols 44; exec {}", words.join(" ")), "/dev/null"]);
    say_with(script, line).ok().out
}

/// A daemon of a test, ended with it.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        for _ in 0..1000 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The script that prints a container's own limits: memory, processes, CPU quota, CPU shares; from v1 or v2.
const LIMITS: &str = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max pids/pids.max pids.max \
    cpu/cpu.cfs_quota_us cpu.max cpu/cpu.shares cpu.weight 2>/dev/null | cut -d ' ' -f 1; true";
