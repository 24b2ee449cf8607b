//! Debian's containerd with places of its own and our runtime handler in its PATH, driven by `ctr` or through its CRI.
//! `CONTAINERD=/path/to/containerd` gives the same tests to another one, with the `ctr` beside it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::{Netns, sh, until};

/// The runtime handler's name.
pub const HANDLER: &str = "io.containerd.coracle.v1";
/// The name of runc's, which Debian's shim is.
pub const RUNC: &str = "io.containerd.runc.v2";
/// The CRI plugin's names of its handlers: ours, and runc's with its own shim.
pub const HANDLERS: [&str; 2] = ["coracle", "runc"];
/// The image of the CRI plugin's sandboxes: busybox, whose program waits for ever.
pub const PAUSE: &str = "localhost/pause:latest";
/// The namespace of the CRI plugin's containers and images.
const CRI_NAMESPACE: &str = "k8s.io";
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

/// What a containerd is started with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More lines of its configuration; tables are fine.
    pub config: String,
    /// Its CRI plugin is on, and this handler is the one of pods that ask for none: one of [`HANDLERS`].
    pub cri: Option<String>,
}

/// A mount namespace that lives as long as this. Its /run is its own: there are the sockets of runc's shims and the pods'
/// network namespaces, whatever containerd is told, and what is mounted there is nobody else's.
#[derive(Debug)]
struct Mounts(File);

impl Mounts {
    fn new() -> Mounts {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root: unshare(CLONE_NEWNS)");
            sh(
                "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib/cni 2>/dev/null || true",
            );
            Mounts(File::open("/proc/thread-self/ns/mnt").expect("open the new mount namespace"))
        });
        made.join().expect("the thread that makes a mount namespace")
    }

    /// A program inside. By nsenter, since a thread that shares its file system's view with others may not enter.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()));
        command.arg("--wd=/").arg(program);
        command
    }
}

/// A program of the containerd under test: of the folder of `$CONTAINERD`, else Debian's.
pub fn program(name: &str) -> PathBuf {
    std::env::var_os("CONTAINERD").map_or_else(|| name.into(), |path| Path::new(&path).with_file_name(name))
}

/// A list of network configurations in a folder of its own: a bridge, addresses noted beside it, port mappings.
pub fn conflist(folder: &Path) -> PathBuf {
    let confs = folder.join("net.d");
    fs::create_dir_all(&confs).expect("make the folder of network configurations");
    let masquerade = Command::new("iptables").arg("--version").stdout(Stdio::null()).status().is_ok();
    let ipam = serde_json::json!({
        "type": "host-local", "dataDir": folder.join("addresses"),
        "ranges": [[{ "subnet": "10.99.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let bridge = serde_json::json!({
        "type": "bridge", "bridge": "test0", "isGateway": true, "ipMasq": masquerade, "ipam": ipam,
    });
    let portmap = serde_json::json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let list = serde_json::json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [bridge, portmap] });
    fs::write(confs.join("10-test.conflist"), list.to_string()).expect("write the network configuration");
    confs
}

/// The CRI plugin's configuration: the handlers are ours and runc's, side by side.
fn cri_config(folder: &Path, handler: &str) -> String {
    let confs = conflist(folder);
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {PAUSE:?}
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {confs:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = {handler:?}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.coracle]
runtime_type = "io.containerd.coracle.v1"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The daemon and its folder.
#[derive(Debug)]
pub struct Containerd {
    folder: PathBuf,
    /// Removed at the end, unless it is somebody else's.
    _scratch: Option<tempfile::TempDir>,
    mounts: Mounts,
    netns: Option<Netns>,
    daemon: Mutex<Option<Child>>,
    count: AtomicU32,
}

impl Containerd {
    /// One in a folder of its own, without the CRI. `config` is added to its configuration.
    pub fn new(config: &str) -> Containerd {
        let folder = tempfile::Builder::new().prefix("ctrd-").tempdir().expect("temporary folder");
        let options = Options { config: config.into(), ..Options::default() };
        let mut containerd = Containerd::place(folder.path(), None, &options);
        containerd._scratch = Some(folder);
        let bin = containerd.path("rootfs/bin");
        fs::create_dir_all(&bin).expect("make the root filesystem");
        crate::copy_program("/bin/busybox", bin.join("busybox"));
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("link an applet");
        }
        for name in ["proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir(containerd.path("rootfs").join(name)).expect("make the root filesystem");
        }
        containerd.launch();
        containerd
    }

    /// One in somebody's folder and network namespace; it is not started yet.
    pub fn place(folder: &Path, netns: Option<Netns>, options: &Options) -> Containerd {
        let path = |name: &str| folder.join(name).display().to_string();
        let mut text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\ndisabled_plugins = [\"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"{}]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n{}",
            path("root"),
            path("state"),
            if options.cri.is_some() { "" } else { ", \"io.containerd.grpc.v1.cri\"" },
            path("c.sock"),
            path("c.sock.ttrpc"),
            options.config,
        );
        if let Some(handler) = &options.cri {
            text.push_str(&cri_config(folder, handler));
        }
        fs::write(folder.join("config.toml"), text).expect("write the configuration");
        let (daemon, count) = Default::default();
        Containerd { folder: folder.to_owned(), _scratch: None, mounts: Mounts::new(), netns, daemon, count }
    }

    /// Starts it and waits until it answers.
    pub fn launch(&self) {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("the daemon's log");
        let programs = crate::bin("containerd-shim-coracle-v1").parent().expect("a folder").to_owned();
        let beside = program("containerd").parent().map(|dir| format!("{}:", dir.display())).unwrap_or_default();
        let path = format!("{}:{beside}{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = self.mounts.command(program("containerd"));
        command.arg("-c").arg(self.path("config.toml")).env("PATH", path).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log")).stderr(log);
        let mut spawn = || command.spawn().expect("containerd is needed");
        let child = match &self.netns {
            Some(netns) => netns.run(spawn),
            None => spawn(),
        };
        *self.daemon.lock().expect("the daemon") = Some(child);
        until("containerd to answer", || self.ctr(&["version"]).code == 0);
    }

    /// A file of its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The pid of the daemon.
    pub fn pid(&self) -> Pid {
        let daemon = self.daemon.lock().expect("the daemon");
        Pid::from_raw(daemon.as_ref().expect("containerd runs").id() as i32)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Ends the daemon, and not the tasks.
    pub fn stop(&self, signal: Signal) {
        if let Some(mut daemon) = self.daemon.lock().expect("the daemon").take() {
            let _ = kill(Pid::from_raw(daemon.id() as i32), signal);
            let _ = daemon.wait();
        }
    }

    /// Gives the CRI plugin its images: the one of sandboxes, and busybox under this name.
    pub fn load_images(&self, name: &str) {
        let maker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        for (image, command) in [(name, "sh"), (PAUSE, "sleep 1000000")] {
            let archive = self.path("image.tar");
            sh(&format!("{} {} {image} {command}", maker.display(), archive.display()));
            self.ctr(&["-n", CRI_NAMESPACE, "images", "import", &archive.display().to_string()]).ok();
            fs::remove_file(archive).expect("remove the loaded archive");
        }
    }

    /// A program where the daemon is: in its mount namespace.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.mounts.command(program)
    }

    /// A `ctr` command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.inside("timeout");
        command
            .args(["--signal=KILL", PATIENCE])
            .arg(program("ctr"))
            .arg("--address")
            .arg(self.path("c.sock"))
            .args(args);
        command
    }

    /// The parent of its containers' cgroups.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.folder.file_name().unwrap_or_default().to_string_lossy())
    }

    /// What is mounted below its folder.
    pub fn mounts(&self) -> Vec<String> {
        let output = self.inside("cat").arg("/proc/self/mountinfo").output().expect("read the mounts");
        let folder = self.folder.display().to_string();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.contains(&folder))
            .map(str::to_owned)
            .collect()
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
        let cgroup = format!("{}/{name}", self.cgroup());
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

    /// The same with another handler than ours.
    pub fn start_by(&self, handler: &str, flags: &[&str], name: &str, script: &str) {
        let mut args = self.run_args(&[&["--detach", "--null-io"], flags].concat(), name, script);
        args.iter_mut().filter(|word| *word == HANDLER).for_each(|word| handler.clone_into(word));
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
        self.assert_no_tasks();
    }

    /// Nothing of tasks may be left in its folder.
    #[track_caller]
    pub fn assert_no_tasks(&self) {
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(self.path("s")), Vec::<String>::new(), "sockets are left");
        for namespace in ["default", CRI_NAMESPACE] {
            let bundles = self.path("state/io.containerd.runtime.v2.task").join(namespace);
            assert_eq!(names(bundles), Vec::<String>::new(), "bundles are left");
        }
        let mounted = self.mounts();
        assert!(!mounted.iter().any(|line| line.contains("/rootfs ") || line.contains("/shm ")), "{mounted:#?}");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end();
    }
}

impl Containerd {
    /// Ends its tasks, itself, and what is left of either.
    pub fn end(&self) {
        let runs = self.daemon.lock().is_ok_and(|daemon| daemon.is_some());
        // A shim outlives containerd as long as its task does.
        for namespace in ["default", "moby", "k8s.io"].into_iter().filter(|_| runs) {
            for name in self.ctr(&["-n", namespace, "tasks", "ls", "-q"]).out.lines() {
                let _ = self.ctr(&["-n", namespace, "tasks", "delete", "--force", name]);
            }
        }
        self.stop(Signal::SIGTERM);
        for pid in self.supervisors() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(tree.path().join(&self.cgroup()[1..]));
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
