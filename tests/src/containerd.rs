//! Debian's containerd with places of its own and our runtime handler in its PATH, driven by `ctr`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::until;

/// The runtime handler's name.
pub const HANDLER: &str = "io.containerd.coracle.v1";
/// No command takes longer; one that does is a hang.
const PATIENCE: &str = "60";
const APPLETS: &[&str] =
    &["sh", "cat", "echo", "sleep", "id", "ls", "kill", "stty", "test", "readlink", "dd", "ps", "true", "touch"];

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Error output.
    pub err: String,
}

impl Said {
    /// The output of a success.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

/// The daemon and its folder.
pub struct Containerd {
    folder: tempfile::TempDir,
    daemon: Mutex<Child>,
    count: AtomicU32,
}

impl Containerd {
    /// Starts it. `config` is added to its configuration.
    pub fn new(config: &str) -> Containerd {
        let folder = tempfile::Builder::new().prefix("ctrd-").tempdir().expect("temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n{config}",
            path("root"),
            path("state"),
            path("c.sock"),
            path("c.sock.ttrpc")
        );
        fs::write(folder.path().join("config.toml"), text).expect("write the configuration");
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("make the root filesystem");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is needed");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("link an applet");
        }
        for name in ["proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir(folder.path().join("rootfs").join(name)).expect("make the root filesystem");
        }
        let daemon = Mutex::new(Self::spawn(folder.path()));
        let containerd = Containerd { folder, daemon, count: AtomicU32::new(0) };
        containerd.wait_ready();
        containerd
    }

    fn spawn(folder: &Path) -> Child {
        let log = File::options().create(true).append(true).open(folder.join("log")).expect("the daemon's log");
        let programs = crate::bin("containerd-shim-coracle-v1").parent().expect("a folder").to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("containerd");
        command.arg("-c").arg(folder.join("config.toml")).env("PATH", path).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log")).stderr(log).spawn().expect("containerd is needed")
    }

    fn wait_ready(&self) {
        until("containerd to answer", || self.ctr(&["version"]).code == 0);
    }

    /// A file of its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Ends the daemon, and not the tasks.
    pub fn stop(&self, signal: Signal) {
        let mut daemon = self.daemon.lock().expect("the daemon");
        let _ = kill(Pid::from_raw(daemon.id() as i32), signal);
        let _ = daemon.wait();
    }

    /// Starts it again.
    pub fn restart(&self) {
        *self.daemon.lock().expect("the daemon") = Self::spawn(self.folder.path());
        self.wait_ready();
    }

    /// A `ctr` command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", PATIENCE, "ctr", "--address"]).arg(self.path("c.sock")).args(args);
        command
    }

    /// Runs `ctr` without input.
    pub fn ctr(&self, args: &[&str]) -> Said {
        self.ctr_with(args, "")
    }

    /// Runs `ctr` with this input.
    pub fn ctr_with(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ctr is needed");
        let (mut pipe, input) = (child.stdin.take().expect("a pipe"), input.to_owned());
        // Beside the reading, or both sides could wait for each other. Who does not read its input has closed it.
        let writer = std::thread::spawn(move || drop(pipe.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("ctr's output");
        writer.join().expect("the writer");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// `ctr run` of a shell script with our handler.
    pub fn run_args<'a>(&self, flags: &[&'a str], name: &'a str, script: &'a str) -> Vec<String> {
        let rootfs = self.path("rootfs").display().to_string();
        let fifos = self.path("fifos").display().to_string();
        let cgroup = format!("/{}/{name}", self.folder.path().file_name().unwrap_or_default().to_string_lossy());
        let first = ["run", "--runtime", HANDLER, "--cgroup", &cgroup, "--fifo-dir", &fifos, "--rootfs"];
        let words = first.iter().chain(flags).copied().chain([rootfs.as_str(), name, "/bin/sh", "-c", script]);
        words.map(str::to_owned).collect()
    }

    /// Runs a script in the foreground and removes its container.
    pub fn run(&self, script: &str, input: &str) -> Said {
        let name = format!("once{}", self.count.fetch_add(1, Ordering::Relaxed));
        let args = self.run_args(&["--rm"], &name, script);
        self.ctr_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), input)
    }

    /// A container that runs a script in the background.
    pub fn start(&self, flags: &[&str], name: &str, script: &str) {
        let args = self.run_args(&[&["--detach", "--null-io"], flags].concat(), name, script);
        self.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    }

    /// Runs a script in a container.
    pub fn exec(&self, name: &str, script: &str, input: &str) -> Said {
        let id = format!("e{}", self.count.fetch_add(1, Ordering::Relaxed));
        let fifos = self.path("fifos").display().to_string();
        let args = ["tasks", "exec", "--fifo-dir", &fifos, "--exec-id", &id, name, "/bin/sh", "-c", script];
        self.ctr_with(&args, input)
    }

    /// A task's status and pid, if there is such a task.
    pub fn task(&self, name: &str) -> Option<(String, i32)> {
        let tasks = self.ctr(&["tasks", "ls"]).ok();
        let words = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found = words.filter(|words| words.len() == 3 && words[0] == name);
        found.next().map(|words| (words[2].to_owned(), words[1].parse().expect("a pid")))
    }

    /// Waits for a task's status.
    pub fn wait_status(&self, name: &str, status: &str) {
        until(&format!("{name} to be {status}"), || self.task(name).is_some_and(|(now, _)| now == status));
    }

    /// Supervisors of this daemon that live.
    pub fn supervisors(&self) -> Vec<Pid> {
        let state = self.path("state");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if comm.trim() == "containerd-shim" && cwd.starts_with(&state) {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }

    /// Hears the daemon's events from now on.
    pub fn events(&self) -> Events {
        let mut child = self.command(&["events"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ctr");
        let (lines, out) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().expect("a pipe"));
        let heard = lines.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| heard.lock().expect("lines").push(line));
        });
        let events = Events { child, lines };
        // It hears only once it is connected: an event of our own shows that.
        until("events to be heard", || {
            let name = format!("probe{}", self.count.fetch_add(1, Ordering::Relaxed));
            let rootfs = self.path("rootfs").display().to_string();
            self.ctr(&["containers", "create", "--rootfs", &rootfs, &name, "/bin/true"]).ok();
            self.ctr(&["containers", "delete", &name]).ok();
            !events.all().is_empty()
        });
        events
    }

    /// Nothing of tasks may be left: no supervisor, socket, bundle or cgroup.
    #[track_caller]
    pub fn assert_clean(&self) {
        until("supervisors to end", || self.supervisors().is_empty());
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(self.path("s")), Vec::<String>::new(), "sockets are left");
        let bundles = self.path("state/io.containerd.runtime.v2.task/default");
        assert_eq!(names(bundles), Vec::<String>::new(), "bundles are left");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for name in self.ctr(&["tasks", "ls", "-q"]).out.lines() {
            let _ = self.ctr(&["tasks", "delete", "--force", name]);
        }
        self.stop(Signal::SIGTERM);
        for pid in self.supervisors() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let group = self.folder.path().file_name().unwrap_or_default().to_owned();
        for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(tree.path().join(&group));
        }
    }
}

/// Events as `ctr events` prints them.
pub struct Events {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    /// All so far.
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().expect("lines").clone()
    }

    /// The topics of a container's events, in order.
    pub fn of(&self, name: &str) -> Vec<String> {
        let id = format!("\"container_id\":{name:?}");
        let lines = self.all();
        let found = lines.iter().filter(|line| line.contains(&id));
        found
            .map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")).unwrap_or("?").to_owned())
            .collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
