//! The engine as a library on a machine of its own: scratch places, a network namespace, one busybox image.
//!
//! [`rig`] runs the body of a test and then removes every pod, so that a failed test leaves nothing behind either; a
//! test that succeeded must itself have left nothing, which is asserted.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_engine::{ContainerConfig, ContainerFilter, Engine, EngineConfig, NamespaceMode, Paths, SandboxConfig};
use coracle_engine::{Error, Exit, Output};
use coracle_rootfs::{PullOptions, progress::Silent};

use crate::machine::{Netns, patience, sh};

/// The image every rig has.
pub const IMAGE: &str = "localhost/busybox:latest";
/// No single thing in these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// An engine and its places.
pub struct Rig {
    /// The scratch place.
    pub dir: PathBuf,
    /// The engine under test.
    pub engine: Engine,
    config: EngineConfig,
}

/// Runs a test's body on a fresh machine.
///
/// # Panics
/// When the body does, when it takes too long, or when something is left when the pods are removed.
pub fn rig<F: AsyncFnOnce(&Rig) + Send>(body: F) {
    rig_with(EngineConfig::default(), body);
}

/// The same with settings of one's own.
///
/// # Panics
/// As [`rig`].
pub fn rig_with<F: AsyncFnOnce(&Rig) + Send>(config: EngineConfig, body: F) {
    let dir = tempfile::Builder::new().prefix("coracle-engine.").tempdir().expect("make a scratch place");
    let netns = Netns::new();
    eprintln!("rig in {}; nsenter --net={}", dir.path().display(), netns.path());
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        runtime.block_on(async {
            let rig = Rig::new(dir.path(), config);
            let result = CatchUnwind(Box::pin(tokio::time::timeout(patience(DEADLINE), body(&rig)))).await;
            rig.clean_up().await;
            match result {
                Ok(in_time) => in_time.expect("the test took too long"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
            assert_eq!(rig.left(), Vec::<String>::new(), "something is left");
        });
    });
}

/// A future whose panic is a value.
struct CatchUnwind<F>(std::pin::Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = std::thread::Result<F::Output>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        use std::task::Poll;
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl Rig {
    fn new(dir: &Path, config: EngineConfig) -> Rig {
        let engine = open(dir, &config);
        let archive = dir.join("busybox.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        sh(&format!("{} {} {IMAGE} >&2", script.display(), archive.display()));
        engine.store().load(&archive, &PullOptions::default(), &Silent).expect("load busybox");
        Rig { dir: dir.to_owned(), engine, config }
    }

    /// Another engine on the same places, as another process would open it.
    pub fn another(&self) -> Engine {
        open(&self.dir, &self.config)
    }

    /// Another engine on the same places that was given other settings.
    pub fn another_with(&self, config: &EngineConfig) -> Engine {
        open(&self.dir, config)
    }

    /// A pod of one's own PID namespaces and the embedded network.
    pub fn pod(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            exclusive_name: true,
            pid: NamespaceMode::Container,
            log_directory: Some(self.dir.join("logs").join(name)),
            ..Default::default()
        }
    }

    /// Makes and starts a container.
    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
        let id = self.engine.create_container(sandbox, config).await?;
        self.engine.start_container(&id).await?;
        Ok(id)
    }

    /// Runs a script in a pod to its end; returns how it ended and what it logged.
    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> (Exit, String) {
        let id = self.start(sandbox, config).await.expect("start a container");
        let exit = self.engine.wait_container(&id).await.expect("wait for it");
        (exit, self.log(&id))
    }

    /// What a container logged, without times and streams.
    pub fn log(&self, container: &str) -> String {
        let path = self.engine.container_status(container).expect("status").log_path.expect("a log path");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    async fn clean_up(&self) {
        let engine = self.another();
        for pod in engine.list_sandboxes(&Default::default()).expect("list the pods") {
            if let Err(e) = engine.remove_sandbox(&pod.id).await {
                eprintln!("remove pod {}: {e}", pod.id);
            }
        }
        engine.gc().await.expect("gc");
    }

    /// Everything of this rig that is still there.
    pub fn left(&self) -> Vec<String> {
        let place = self.dir.display().to_string();
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        left.extend(mounts.lines().filter(|l| l.contains(&place)).map(|l| format!("mount {l}")));
        for folder in ["state/pods", "state/names", "root/pods", "root/leases"] {
            let entries = std::fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|e| format!("file {}", e.path().display())));
        }
        let parent = self.engine.config().cgroup_parent.trim_start_matches('/').to_owned();
        for tree in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
            let pods = std::fs::read_dir(tree.path().join(&parent)).into_iter().flatten().flatten();
            left.extend(pods.filter(|e| e.path().is_dir()).map(|e| format!("cgroup {}", e.path().display())));
        }
        left
    }
}

impl Drop for Rig {
    /// The parent cgroup is this scratch place's alone.
    fn drop(&mut self) {
        let parent = self.engine.config().cgroup_parent.trim_start_matches('/').to_owned();
        for tree in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(tree.path().join(&parent));
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&parent));
    }
}

fn open(dir: &Path, config: &EngineConfig) -> Engine {
    let paths = Paths {
        state: dir.join("state"),
        root: dir.join("root"),
        logs: dir.join("logs"),
        supervisor: crate::bin(coracle_engine::config::SUPERVISOR),
    };
    Engine::open(paths, config.clone()).expect("open the engine")
}

/// A container that runs a shell script and logs to `NAME.log`.
pub fn script(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        image: IMAGE.into(),
        command: Some(["/bin/sh", "-c", script].map(String::from).to_vec()),
        log_path: Some(format!("{name}.log").into()),
        ..Default::default()
    }
}

/// All output of a session, standard output and standard error apart.
pub async fn drain(output: &mut coracle_engine::OutputStream) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(piece) = output.next().await.expect("read output") {
        match piece {
            Output::Stdout(bytes) => out.extend(bytes),
            Output::Stderr(bytes) => err.extend(bytes),
        }
    }
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
}

/// All containers of a pod.
pub fn containers(engine: &Engine, sandbox: &str) -> Vec<coracle_engine::ContainerStatus> {
    let filter = ContainerFilter { sandbox_id: sandbox.into(), ..Default::default() };
    engine.list_containers(&filter).expect("list containers")
}
