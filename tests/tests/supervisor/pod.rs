//! A pod for one test: a supervisor, its client, bundles with busybox.

use coracle_proto::coracle::{NamespaceMode, SandboxOptions};
use coracle_proto::sandbox::*;
use coracle_proto::task::*;
use coracle_proto::ttrpc::{method, service};
use coracle_proto::types::Mount;
use coracle_proto::{Empty, Message, Status, any};
use coracle_tests::ttrpc::{Attach, Client, PATIENCE};
use coracle_tests::{bin, copy_program};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SHIM: &str = "containerd-shim-coracle-v1";
const APPLETS: &[&str] = &["sh", "cat", "sleep", "echo", "stty", "head", "tr", "kill", "ps", "hostname", "true", "seq"];

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Pod {
    pub id: String,
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub pid: i32,
    /// Beneath each cgroup hierarchy; everything in it is ours.
    pub cgroup: String,
}

/// A change of config.json.
pub type Edit = Box<dyn Fn(&mut Value)>;

/// How a container is to be made; the rest is the same for all.
#[derive(Default)]
pub struct Wish {
    pub terminal: bool,
    pub stdin: &'static str,
    /// Empty: a CRI log of the container's name. "null": nowhere.
    pub stdout: String,
    pub edit: Option<Edit>,
}

impl Pod {
    /// A sandbox with namespaces of its own, ready.
    pub fn new() -> Pod {
        Pod::with(SandboxOptions::default())
    }

    pub fn with(options: SandboxOptions) -> Pod {
        let mut pod = Pod::launch();
        pod.create_sandbox(options).expect("create sandbox");
        pod.start_sandbox();
        pod
    }

    pub fn create_sandbox(&mut self, options: SandboxOptions) -> Result<CreateSandboxResponse, Status> {
        let request = CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.dir.path().display().to_string(),
            options: Some(any::pack(&options)),
            ..Default::default()
        };
        self.client.call(service::SANDBOX, method::CREATE_SANDBOX, &request)
    }

    pub fn start_sandbox(&mut self) {
        let request = StartSandboxRequest { sandbox_id: self.id.clone() };
        let started: StartSandboxResponse =
            self.client.call(service::SANDBOX, method::START_SANDBOX, &request).expect("start sandbox");
        assert_eq!(started.pid as i32, self.pid);
    }

    /// A supervisor, with no sandbox asked for yet.
    pub fn launch() -> Pod {
        let dir = tempfile::Builder::new().prefix("coracle-sup-").tempdir().unwrap();
        Pod::launch_in(dir, &bin(SHIM))
    }

    /// The same by a copy of the program, whose pages nobody else shares.
    pub fn launch_alone() -> Pod {
        let dir = tempfile::Builder::new().prefix("coracle-sup-").tempdir().unwrap();
        let program = dir.path().join(SHIM);
        copy_program(bin(SHIM), &program);
        Pod::launch_in(dir, &program)
    }

    fn launch_in(dir: tempfile::TempDir, program: &Path) -> Pod {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("sup-{}-{number}", std::process::id());
        let address = start_by(program, &id, dir.path());
        assert_eq!(address, format!("unix://{}/supervisor.sock", dir.path().display()));
        let client = Client::connect(&dir.path().join("supervisor.sock"));
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap().parse().unwrap();
        let cgroup = format!("/coracle-test-{id}");
        Pod { id, dir, client, pid, cgroup }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn another_client(&self) -> Client {
        Client::connect(&self.path("supervisor.sock"))
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.path("containers").join(id)
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.log"))
    }

    /// The texts of a CRI log: `stdout F text`, without the times, whose form is checked.
    pub fn log_lines(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).unwrap();
        let line = |line: &str| {
            let (time, rest) = line.split_once(' ').expect("a time");
            assert_eq!((time.len(), &time[10..11], &time[29..]), (30, "T", "Z"), "{line}");
            rest.to_owned()
        };
        text.split_terminator('\n').map(line).collect()
    }

    /// Writes a bundle with busybox as its root and returns Create's request.
    pub fn request(&self, id: &str, args: &[&str], wish: &Wish) -> CreateTaskRequest {
        let bundle = self.bundle(id);
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root).unwrap();
        let lower = self.busybox();
        let namespace = |kind: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{}", self.pid, short(kind))});
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "terminal": wish.terminal,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "namespaces": [
                    {"type": "mount"}, {"type": "pid"}, namespace("network"), namespace("ipc"), namespace("uts"),
                ],
            },
        });
        if let Some(edit) = &wish.edit {
            edit(&mut config);
        }
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        for name in ["upper", "work"] {
            fs::create_dir_all(bundle.join(name)).unwrap();
        }
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let stdout = match wish.stdout.as_str() {
            "" => format!("cri:{}", self.log(id).display()),
            "null" => String::new(),
            other => other.to_owned(),
        };
        CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs: vec![Mount {
                r#type: "overlay".into(),
                source: "overlay".into(),
                target: String::new(),
                options: vec![
                    option("lowerdir", &lower),
                    option("upperdir", &bundle.join("upper")),
                    option("workdir", &bundle.join("work")),
                ],
            }],
            terminal: wish.terminal,
            stdin: wish.stdin.into(),
            stderr: if wish.terminal { String::new() } else { stdout.clone() },
            stdout,
            ..Default::default()
        }
    }

    fn busybox(&self) -> PathBuf {
        let lower = self.path("busybox");
        if !lower.exists() {
            for dir in ["bin", "proc", "dev", "tmp"] {
                fs::create_dir_all(lower.join(dir)).unwrap();
            }
            copy_program("/bin/busybox", lower.join("bin/busybox"));
            for applet in APPLETS {
                symlink("busybox", lower.join("bin").join(applet)).unwrap();
            }
        }
        lower
    }

    pub fn task<A: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<A, Status> {
        self.client.call(service::TASK_V2, method, request)
    }

    pub fn create(&mut self, id: &str, args: &[&str], wish: &Wish) -> Result<i32, Status> {
        let request = self.request(id, args, wish);
        self.task(method::CREATE, &request).map(|created: CreateTaskResponse| created.pid as i32)
    }

    pub fn start(&mut self, id: &str, exec: &str) -> Result<i32, Status> {
        let request = StartRequest { id: id.into(), exec_id: exec.into() };
        self.task(method::START, &request).map(|started: StartResponse| started.pid as i32)
    }

    /// Creates and starts.
    pub fn run(&mut self, id: &str, args: &[&str]) -> i32 {
        self.run_with(id, args, &Wish::default())
    }

    pub fn run_with(&mut self, id: &str, args: &[&str], wish: &Wish) -> i32 {
        let pid = self.create(id, args, wish).expect("create");
        assert_eq!(self.start(id, "").expect("start"), pid);
        pid
    }

    pub fn wait(&mut self, id: &str, exec: &str) -> u32 {
        let request = WaitRequest { id: id.into(), exec_id: exec.into() };
        let answer: WaitResponse = self.task(method::WAIT, &request).expect("wait");
        assert!(answer.exited_at.is_some());
        answer.exit_status
    }

    pub fn kill(&mut self, id: &str, exec: &str, signal: u32, all: bool) -> Result<Empty, Status> {
        self.task(method::KILL, &KillRequest { id: id.into(), exec_id: exec.into(), signal, all })
    }

    pub fn delete(&mut self, id: &str, exec: &str) -> Result<DeleteResponse, Status> {
        self.task(method::DELETE, &DeleteRequest { id: id.into(), exec_id: exec.into() })
    }

    pub fn state(&mut self, id: &str, exec: &str) -> Result<StateResponse, Status> {
        self.task(method::STATE, &StateRequest { id: id.into(), exec_id: exec.into() })
    }

    /// Describes an exec, attaches to it and starts it.
    pub fn exec(&mut self, id: &str, exec: &str, args: &[&str], terminal: bool) -> Attach {
        self.add_exec(id, exec, args, terminal).expect("exec");
        let attach = Attach::open(&self.path("attach.sock"), id, exec, true).expect("attach");
        self.start(id, exec).expect("start the exec");
        attach
    }

    pub fn add_exec(&mut self, id: &str, exec: &str, args: &[&str], terminal: bool) -> Result<Empty, Status> {
        self.add_exec_with("attach:", id, exec, args, terminal)
    }

    /// The same, with that word for its outputs.
    pub fn add_exec_with(
        &mut self,
        output: &str,
        id: &str,
        exec: &str,
        args: &[&str],
        terminal: bool,
    ) -> Result<Empty, Status> {
        let process = json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal,
            stdin: "attach:".into(),
            stderr: if terminal { String::new() } else { output.into() },
            stdout: output.into(),
            spec: Some(any::pack_json(any::OCI_PROCESS, process.to_string().into_bytes())),
        };
        self.task(method::EXEC, &request)
    }

    pub fn attach(&self, id: &str, stdin: bool) -> Attach {
        Attach::open(&self.path("attach.sock"), id, "", stdin).expect("attach")
    }

    pub fn sandbox_status(&mut self) -> SandboxStatusResponse {
        let request = SandboxStatusRequest { sandbox_id: self.id.clone(), verbose: true };
        self.client.call(service::SANDBOX, method::SANDBOX_STATUS, &request).expect("sandbox status")
    }

    pub fn stop_sandbox(&mut self, timeout_secs: u32) {
        let request = StopSandboxRequest { sandbox_id: self.id.clone(), timeout_secs };
        let _: StopSandboxResponse =
            self.client.call(service::SANDBOX, method::STOP_SANDBOX, &request).expect("stop sandbox");
    }

    pub fn shutdown(&mut self) {
        let request = ShutdownSandboxRequest { sandbox_id: self.id.clone() };
        let _: ShutdownSandboxResponse =
            self.client.call(service::SANDBOX, method::SHUTDOWN_SANDBOX, &request).expect("shut down");
        until("the supervisor has ended", || !alive(self.pid));
    }

    /// The cgroup directories of this pod, in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let roots = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.map(|root| root.join(&self.cgroup[1..])).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Pod {
    /// What a failed test leaves: processes in our cgroups, then the cgroups.
    fn drop(&mut self) {
        if alive(self.pid) {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let gone = Instant::now() + Duration::from_secs(5);
            while alive(self.pid) && Instant::now() < gone {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = Command::new(bin(SHIM)).args(["-id", &self.id, "delete"]).current_dir(self.dir.path()).output();
        for group in self.cgroups() {
            for inner in fs::read_dir(&group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                let _ = fs::remove_dir(inner.path());
            }
            let _ = fs::remove_dir(group);
        }
    }
}

fn short(namespace: &str) -> &str {
    if namespace == "network" { "net" } else { namespace }
}

/// Runs `start` and returns the address.
pub fn start(id: &str, bundle: &Path) -> String {
    start_by(&bin(SHIM), id, bundle)
}

fn start_by(program: &Path, id: &str, bundle: &Path) -> String {
    let output = Command::new(program)
        .args(["-namespace", "test", "-id", id, "-address", "", "-debug", "start"])
        .current_dir(bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "start: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a process runs; a zombie does not.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A sandbox that uses the node's namespaces.
pub fn on_the_node() -> SandboxOptions {
    let node = NamespaceMode::Node.into();
    SandboxOptions { network: node, ipc: node, uts: node, pid: NamespaceMode::Container.into(), ..Default::default() }
}

pub fn code(result: Result<impl std::fmt::Debug, Status>) -> coracle_proto::ttrpc::Code {
    result.expect_err("a failure was expected").meaning()
}
