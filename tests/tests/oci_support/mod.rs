//! The harness of the OCI suite: a bundle from Debian's static busybox, and any runtime with runc's command line.
//!
//! `OCI_RUNTIME=runc|crun|/path` picks the runtime; without it the suite tests `coracle-oci`. Where the peers differ
//! from ours, the test says so by [`peer`].

#![allow(dead_code)]

use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "id", "mount", "sleep", "echo", "env", "hostname", "stat", "touch", "mkdir", "grep", "readlink",
    "test", "kill", "ps", "tty", "stty", "ulimit", "dd", "wc", "nproc", "ip", "true", "false", "trap", "chmod", "ln",
    "rm", "head", "sed", "cut", "pwd", "mknod", "umount", "date", "printf", "find", "sort", "tr", "uname",
];

/// The runtime under test.
pub fn runtime() -> PathBuf {
    match std::env::var_os("OCI_RUNTIME") {
        Some(name) if !name.is_empty() => PathBuf::from(name),
        _ => coracle_tests::bin("coracle-oci"),
    }
}

/// Whether the runtime under test is this peer.
pub fn peer(name: &str) -> bool {
    runtime().file_name().is_some_and(|n| n.to_string_lossy() == name)
}

/// Whether it is ours.
pub fn ours() -> bool {
    peer("coracle-oci")
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answer {
    /// The same answer, which must be success.
    #[track_caller]
    pub fn ok(self) -> Answer {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// The same answer, which must be a failure that mentions the words.
    #[track_caller]
    pub fn fails(self, words: &str) -> Answer {
        assert_ne!(self.code, 0, "stdout: {}", self.out);
        assert!(self.err.to_lowercase().contains(&words.to_lowercase()), "{words:?} is not in: {}", self.err);
        self
    }
}

/// Makes a root filesystem of busybox.
pub fn busybox_rootfs(rootfs: &Path) {
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin).expect("rootfs");
    coracle_tests::copy_program(BUSYBOX, bin.join("busybox"));
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("symlink");
    }
    for name in ["proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir(rootfs.join(name)).expect("mkdir");
    }
}

/// A bundle, its container, and everything to remove at the end.
pub struct Bundle {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

impl Bundle {
    /// A container that runs these words, with the usual namespaces and mounts, no terminal, and a cgroup of its own.
    pub fn new(args: &[&str]) -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("coracle-oci-").tempdir().expect("temporary directory");
        let id = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        busybox_rootfs(&dir.path().join("rootfs"));
        let config = config(args, &format!("/coracle-test-oci-{id}"));
        Bundle { dir, id, config }
    }

    /// The same, running a shell script.
    pub fn sh(script: &str) -> Bundle {
        Bundle::new(&["/bin/sh", "-c", script])
    }

    /// A running container that only sleeps.
    pub fn sleeping() -> Bundle {
        let bundle = Bundle::new(&["/bin/sleep", "1000"]);
        bundle.create().ok();
        bundle.oci(&["start", &bundle.id]).ok();
        bundle
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub fn state_root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Sets a value of the configuration by JSON pointer; missing parents are made.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Bundle {
        let mut at = &mut self.config;
        for part in pointer.trim_start_matches('/').split('/') {
            at = match part.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[part],
            };
        }
        *at = value;
        self
    }

    pub fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> &mut Bundle {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        self.config["mounts"].as_array_mut().expect("mounts").push(mount);
        self
    }

    /// Removes a namespace, or gives it a path.
    pub fn namespace(&mut self, kind: &str, path: Option<Option<&str>>) -> &mut Bundle {
        let list = self.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        list.retain(|n| n["type"] != kind);
        match path {
            None => {}
            Some(None) => list.push(json!({ "type": kind })),
            Some(Some(path)) => list.push(json!({ "type": kind, "path": path })),
        }
        self
    }

    pub fn write_config(&self) {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).expect("config.json");
    }

    /// The runtime with the state root of this bundle.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.state_root()).args(args).stdin(Stdio::null());
        command
    }

    pub fn oci(&self, args: &[&str]) -> Answer {
        self.command(args).output().expect("the runtime runs").into()
    }

    /// `create`, with the container's output in files: a pipe would stay open as long as the container.
    pub fn create(&self) -> Answer {
        self.create_with(&[])
    }

    pub fn create_with(&self, flags: &[&str]) -> Answer {
        self.write_config();
        let file = |name: &str| fs::File::create(self.dir.path().join(name)).expect("file");
        let bundle = self.dir.path().to_str().expect("UTF-8");
        let mut args = vec!["create", "--bundle", bundle];
        args.extend(flags);
        args.push(&self.id);
        let status = self.command(&args).stdout(file("out")).stderr(file("err")).status().expect("the runtime runs");
        Answer { code: status.code().unwrap_or(-1), out: self.file("out"), err: self.file("err") }
    }

    /// What the created container wrote to stdout or stderr.
    pub fn file(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join(name)).unwrap_or_default()).into_owned()
    }

    pub fn run(&self) -> Answer {
        self.run_with(&[])
    }

    pub fn run_with(&self, flags: &[&str]) -> Answer {
        self.write_config();
        let mut args = vec!["run", "--bundle", self.dir.path().to_str().expect("UTF-8")];
        args.extend(flags);
        args.push(&self.id);
        self.oci(&args)
    }

    pub fn exec(&self, args: &[&str]) -> Answer {
        let mut all = vec!["exec", self.id.as_str()];
        all.extend(args);
        self.oci(&all)
    }

    /// `exec` with its flags before the id.
    pub fn exec_first(&self, flags: &[&str]) -> Answer {
        let mut all = vec!["exec"];
        all.extend(flags);
        all.push(&self.id);
        self.oci(&all)
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.oci(&["state", &self.id]).ok().out).expect("JSON")
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status").to_owned()
    }

    pub fn wait_status(&self, wanted: &str) {
        wait_for(&format!("status {wanted}"), || self.status() == wanted);
    }

    /// Directories of the container's cgroup on this machine, v1 and v2.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let name =
            self.config["linux"]["cgroupsPath"].as_str().expect("cgroupsPath").trim_start_matches('/').to_owned();
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(top).expect("/sys/fs/cgroup").flatten().map(|e| e.path());
        hierarchies.chain([top.to_owned()]).map(|h| h.join(&name)).filter(|p| p.is_dir()).collect()
    }

    /// Nothing may be left of the container.
    #[track_caller]
    pub fn assert_gone(&self) {
        let mut cgroups = self.cgroups();
        if peer("crun") {
            // On a hybrid host it runs only with the v2 tree unmounted, and then makes plain directories there.
            cgroups.retain(|c| !c.starts_with("/sys/fs/cgroup/unified"));
        }
        assert_eq!(cgroups, Vec::<PathBuf>::new(), "cgroups are left");
        assert!(!self.state_root().join(&self.id).exists(), "the state directory is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(self.dir.path().to_str().expect("UTF-8")), "mounts are left: {mounts}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.id]);
        for cgroup in self.cgroups() {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// What a seccomp agent is sent: a descriptor and its description.
pub fn receive_listener(agent: &UnixListener) -> (OwnedFd, Value) {
    agent.set_nonblocking(true).expect("no waiting");
    let mut accepted = None;
    wait_for("a connection", || {
        accepted = agent.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.expect("a connection");
    let mut bytes = vec![0; 64 << 10];
    let mut control = nix::cmsg_space!([i32; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("a message");
    let fds: Vec<i32> = message
        .cmsgs()
        .expect("control messages")
        .flat_map(|c| if let ControlMessageOwned::ScmRights(fds) = c { fds } else { Vec::new() })
        .collect();
    let [fd] = fds[..] else { panic!("{} descriptors", fds.len()) };
    let length = message.bytes;
    // One state for each connection, which ends with it. The peers keep it until an exec ends, which waits for us.
    assert!(!ours() || (&stream).read_to_end(&mut Vec::new()).expect("the end") == 0);
    (coracle_tests::sys::adopt(fd), serde_json::from_slice(&bytes[..length]).expect("JSON"))
}

/// Polls until it holds; a test that waits longer than this fails.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The configuration most tests start from.
fn config(args: &[&str], cgroup: &str) -> Value {
    let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/does-not-exist"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"],
        },
    })
}
