//! A node for one test: a [`Machine`] on which `coracle serve` runs, and an independent client of the CRI (the crate
//! `k8s-cri`) that talks to it over its socket. Calls that the crate does not know go through our own generated client.
//! With [`Options::containerd`], containerd's CRI plugin serves in its place, and our supervisor is its handler.
//!
//! [`node`] runs the body of a test in the node's network namespace, so that the URLs of the streaming server can be
//! reached, and then removes every pod by the CRI, stops the server and asserts that nothing is left. A test that fails
//! shows the server's log; what it left is removed with the machine.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::containerd::{self, Containerd};
pub use crate::machine::IMAGE;
use crate::machine::{Machine, patience, until};

/// The independent client of the runtime service.
pub type Runtime = RuntimeServiceClient<Channel>;
/// The independent client of the image service.
pub type Images = ImageServiceClient<Channel>;
/// Our own client, for calls that the independent one does not know.
pub type OwnRuntime = coracle_proto::cri::runtime_service_client::RuntimeServiceClient<Channel>;
/// Our own client of the image service.
pub type OwnImages = coracle_proto::cri::image_service_client::ImageServiceClient<Channel>;

/// A script that runs until it is stopped, and then ends at once.
pub const LONG: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
/// No test takes longer; one that must says so by [`Options::deadline`].
const TEST_DEADLINE: Duration = Duration::from_secs(120);
/// How long a server may take to answer after its start, loaded as the machine may be.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// More lines of the configuration; tables are fine.
    pub config: String,
    /// Variables of the server.
    pub env: Vec<(String, String)>,
    /// When the test counts as hanging.
    pub deadline: Duration,
    /// Not our server serves, but containerd with this handler for pods that ask for none.
    pub containerd: Option<String>,
}

impl Options {
    /// containerd as the server: `$CRI_HANDLER` is the handler, else ours.
    pub fn containerd() -> Options {
        let handler = std::env::var("CRI_HANDLER").unwrap_or_else(|_| containerd::HANDLERS[0].into());
        Options { containerd: Some(handler), ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options { config: String::new(), env: Vec::new(), deadline: patience(TEST_DEADLINE), containerd: None }
    }
}

/// A machine with a server.
#[derive(Debug)]
pub struct Node {
    machine: Machine,
    options: Options,
    server: Option<Child>,
    containerd: Option<Containerd>,
    channel: Option<Channel>,
}

/// Runs a test's body on a fresh node with the default configuration.
///
/// # Panics
/// When the body does, when it takes too long, or when something is left when the pods are removed.
pub fn node<F: AsyncFnOnce(&mut Node) + Send>(body: F) {
    node_with(Options::default(), body);
}

/// Runs a test's body on a fresh node.
///
/// # Panics
/// As [`node`].
pub fn node_with<F: AsyncFnOnce(&mut Node) + Send>(options: Options, body: F) {
    let machine = Machine::new();
    let netns = machine.netns().share();
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        runtime.block_on(async {
            let deadline = options.deadline;
            let containerd =
                options.containerd.clone().map(|handler| containerd_on(&machine, handler, &options.config));
            let mut node = Node { machine, options, server: None, containerd, channel: None };
            let test = async {
                node.start().await;
                tokio::time::timeout(deadline, body(&mut node)).await.expect("the test took too long");
                node.clean_up().await;
            };
            let result = catch(test).await;
            if let Err(panic) = result {
                eprintln!("--- the server's log ---\n{}", node.server_log());
                std::panic::resume_unwind(panic);
            }
        });
    });
}

/// A containerd of the machine's, not started yet.
fn containerd_on(machine: &Machine, handler: String, config: &str) -> Containerd {
    let options = containerd::Options { cri: Some(handler), config: config.to_owned() };
    machine.learn_id(&machine.name());
    Containerd::place(&machine.path(""), Some(machine.netns().share()), &options)
}

/// Starts a containerd, gives it its images, and waits until runtime and network are ready: a connection.
///
/// # Panics
/// When they do not become so.
pub async fn ready(containerd: &Containerd) -> Channel {
    containerd.launch();
    let deadline = Instant::now() + patience(START_DEADLINE);
    let socket = format!("unix://{}", containerd.path("c.sock").display());
    let channel = Endpoint::try_from(socket).expect("the socket's URI").connect().await.expect("connect to containerd");
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    loop {
        let status = runtime.status(v1::StatusRequest::default()).await;
        let conditions = status.ok().and_then(|answer| answer.into_inner().status).map(|s| s.conditions);
        if conditions.is_some_and(|all| !all.is_empty() && all.iter().all(|condition| condition.status)) {
            break;
        }
        assert!(Instant::now() < deadline, "containerd is not ready: {}", containerd.log());
        tokio::time::sleep(POLL).await;
    }
    let mut images = ImageServiceClient::new(channel.clone());
    let mut loaded = async || {
        let listed = images.list_images(v1::ListImagesRequest::default()).await.expect("list the images");
        listed.into_inner().images.len() >= 2
    };
    if !loaded().await {
        containerd.load_images(IMAGE);
    }
    // The plugin hears of them some time later.
    while !loaded().await {
        assert!(Instant::now() < deadline, "the images do not appear: {}", containerd.log());
        tokio::time::sleep(POLL).await;
    }
    channel
}

/// Awaits a future; its panic is a value.
async fn catch<T>(future: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |cx| match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
        Ok(std::task::Poll::Ready(value)) => std::task::Poll::Ready(Ok(value)),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

/// The server: its life.
impl Node {
    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// When it does not, or ends.
    pub async fn start(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        if self.containerd.is_some() {
            self.channel = Some(ready(self.containerd()).await);
            return;
        }
        self.write_config();
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the server's log");
        let mut command = self.command();
        command.stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        self.server = Some(self.machine.run(|| command.spawn()).expect("start coracle serve"));
        self.channel = None;
        let deadline = Instant::now() + patience(START_DEADLINE);
        loop {
            if let Ok(channel) = self.endpoint().connect().await {
                let mut runtime = RuntimeServiceClient::new(channel.clone());
                let answer = runtime.version(v1::VersionRequest::default()).await;
                if answer.map_or_else(|status| status.code() != tonic::Code::Unavailable, |_| true) {
                    self.channel = Some(channel);
                    return;
                }
            }
            let server = self.server.as_mut().expect("was just started");
            if let Some(status) = server.try_wait().expect("wait for the server") {
                panic!("the server ended: {status}: {}", self.server_log());
            }
            assert!(Instant::now() < deadline, "the server does not answer: {}", self.server_log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The containerd that serves.
    ///
    /// # Panics
    /// When it is our server.
    pub fn containerd(&self) -> &Containerd {
        self.containerd.as_ref().expect("containerd serves")
    }

    /// The command line of the server.
    pub fn command(&self) -> Command {
        let mut command = self.machine.command(&["--config".as_ref(), self.config_path().as_os_str()]);
        command.args(["serve", "--listen"]).arg(self.socket());
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Replaces the lines of the configuration; they count from the next start or reload on.
    pub fn set_config(&mut self, config: &str) {
        self.options.config = config.to_owned();
        self.write_config();
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.machine.path("config.toml")
    }

    /// The lines of the test, and where they name no other a folder of network configurations that is not the machine's.
    fn write_config(&self) {
        let mut text = self.options.config.clone();
        if !text.contains("cni_conf_dir") {
            let line = format!("cni_conf_dir = {:?}", self.machine.path("net.d"));
            match text.contains("[network]") {
                true => text = text.replacen("[network]", &format!("[network]\n{line}"), 1),
                false => text.push_str(&format!("\n[network]\n{line}\n")),
            }
        }
        fs::write(self.config_path(), text).expect("write the configuration");
    }

    /// The server's pid.
    ///
    /// # Panics
    /// When it does not run.
    pub fn server(&self) -> Pid {
        if let Some(containerd) = &self.containerd {
            return containerd.pid();
        }
        Pid::from_raw(self.server.as_ref().expect("the server runs").id() as i32)
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.server(), signal).expect("signal the server");
    }

    /// Asks the server to stop and waits for its end.
    ///
    /// # Panics
    /// When it fails or does not end.
    pub async fn stop(&mut self) {
        if let Some(containerd) = &self.containerd {
            self.channel = None;
            return containerd.stop(Signal::SIGTERM);
        }
        self.signal(Signal::SIGTERM);
        let status = self.ended(patience(STOP_DEADLINE)).await;
        assert!(status.success(), "the server ended with {status}: {}", self.server_log());
    }

    /// Kills the server in the middle of whatever it does.
    pub async fn kill(&mut self) {
        if let Some(containerd) = &self.containerd {
            self.channel = None;
            return containerd.stop(Signal::SIGKILL);
        }
        self.signal(Signal::SIGKILL);
        self.killed().await;
    }

    /// Waits for the end of a server that somebody kills.
    ///
    /// # Panics
    /// When it ends in another way.
    pub async fn killed(&mut self) {
        let status = self.ended(patience(STOP_DEADLINE)).await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}: {}", self.server_log());
    }

    /// Stops the server and starts it again.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    async fn ended(&mut self, within: Duration) -> ExitStatus {
        let mut server = self.server.take().expect("the server runs");
        self.channel = None;
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = server.try_wait().expect("wait for the server") {
                return status;
            }
            if Instant::now() >= deadline {
                let _ = server.kill();
                panic!("the server did not end: {}", self.server_log());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What the server has logged since the node was made.
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.machine.path(if self.containerd.is_some() { "log" } else { "serve.log" })
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.machine.path(if self.containerd.is_some() { "c.sock" } else { "coracle.sock" })
    }

    /// The machine below.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A path in the node's scratch place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.machine.path(name)
    }
}

/// The clients.
impl Node {
    fn endpoint(&self) -> Endpoint {
        Endpoint::try_from(format!("unix://{}", self.socket().display())).expect("the socket's URI")
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Channel {
        self.endpoint().connect().await.expect("connect to the server")
    }

    fn channel(&self) -> Channel {
        self.channel.clone().expect("the server runs")
    }

    /// The runtime service through the independent client.
    pub fn runtime(&self) -> Runtime {
        RuntimeServiceClient::new(self.channel())
    }

    /// The image service through the independent client.
    pub fn images(&self) -> Images {
        ImageServiceClient::new(self.channel())
    }

    /// The runtime service through our own client.
    pub fn own(&self) -> OwnRuntime {
        OwnRuntime::new(self.channel())
    }

    /// The image service through our own client.
    pub fn own_images(&self) -> OwnImages {
        OwnImages::new(self.channel())
    }
}

/// Pods and containers, in the words of the tests.
impl Node {
    /// A pod as kubelet would ask for it: a log directory, namespaces of its own.
    pub fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        let metadata = v1::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        };
        let security = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                pid: v1::NamespaceMode::Container.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        // containerd's default is a cgroup of all tests.
        let of_test = || format!("/coracle/pod{}", self.machine.name());
        let cgroup_parent = self.containerd.as_ref().map(|_| of_test()).unwrap_or_default();
        v1::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: self.log_dir(name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(security),
                cgroup_parent,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The log directory of a pod of that name.
    pub fn log_dir(&self, pod: &str) -> PathBuf {
        self.path("logs").join(format!("default_{pod}_uid-{pod}"))
    }

    /// Makes a pod.
    pub async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.machine.learn_ids();
        Ok(id)
    }

    /// Makes a container.
    pub async fn create(
        &self,
        pod: &str,
        pod_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.runtime().create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: id.into() };
        self.runtime().start_container(request).await.map(|_| ())
    }

    /// Makes and starts a container.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn launch(&self, pod: &str, pod_config: &v1::PodSandboxConfig, config: v1::ContainerConfig) -> String {
        let id = self.create(pod, pod_config, config).await.expect("create a container");
        self.start_container(&id).await.expect("start it");
        id
    }

    /// A pod of that name with one container `main` that runs `script`: their ids.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn launch_pod(&self, name: &str, text: &str) -> (String, String) {
        let config = self.pod(name);
        let pod = self.run_pod(&config).await.expect("run a pod");
        let container = self.launch(&pod, &config, script("main", text)).await;
        (pod, container)
    }

    /// What is known of a container.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.runtime().container_status(request).await?.into_inner().status.expect("a status"))
    }

    /// What is known of a pod.
    pub async fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        Ok(self.runtime().pod_sandbox_status(request).await?.into_inner().status.expect("a status"))
    }

    /// Whether its server is containerd.
    pub fn is_containerd(&self) -> bool {
        self.containerd.is_some()
    }

    /// Waits until a container has ended, as kubelet does: by asking.
    ///
    /// # Panics
    /// When the server refuses, or it does not end.
    pub async fn exited(&self, id: &str) -> v1::ContainerStatus {
        let deadline = Instant::now() + patience(START_DEADLINE);
        loop {
            let status = self.container_status(id).await.expect("status of a container");
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "container {id} does not end: {status:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs a container to its end: how it ended, and what it logged.
    pub async fn run_to_end(
        &self,
        pod: &str,
        pod_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> (v1::ContainerStatus, String) {
        let id = self.launch(pod, pod_config, config).await;
        let status = self.exited(&id).await;
        let path = Path::new(&status.log_path);
        if let Some(containerd) = &self.containerd {
            // It tells of the end and writes the last lines in any order.
            until("containerd to close the log", || !has_open(containerd.pid(), path));
        }
        let log = log_text(path);
        (status, log)
    }

    /// Stops a container.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime().stop_container(request).await.map(|_| ())
    }

    /// Removes a container.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: id.into() };
        self.runtime().remove_container(request).await.map(|_| ())
    }

    /// Stops a pod.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().stop_pod_sandbox(request).await.map(|_| ())
    }

    /// Removes a pod.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().remove_pod_sandbox(request).await.map(|_| ())
    }

    /// All pods.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn pods(&self) -> Vec<v1::PodSandbox> {
        let answer = self.runtime().list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        answer.expect("list the pods").into_inner().items
    }

    /// All containers.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn containers(&self) -> Vec<v1::Container> {
        let answer = self.runtime().list_containers(v1::ListContainersRequest::default()).await;
        answer.expect("list the containers").into_inner().containers
    }
}

/// The end.
impl Node {
    /// Removes every pod by the CRI, stops the server, and asserts that nothing is left.
    async fn clean_up(&mut self) {
        if self.channel.is_none() {
            self.start().await;
        }
        for pod in self.pods().await {
            self.stop_pod(&pod.id).await.expect("stop a pod that is left");
            self.remove_pod(&pod.id).await.expect("remove it");
        }
        self.stop().await;
        if let Some(containerd) = &self.containerd {
            containerd.assert_no_tasks();
            // The cgroup above the pods' is the client's to remove.
            self.machine.remove_cgroups();
        }
        self.assert_nothing_left();
    }

    /// Asserts that no pod has left anything on the machine.
    ///
    /// # Panics
    /// When one has.
    pub fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        let what = "nothing to be left of the pods";
        let gone = std::panic::catch_unwind(AssertUnwindSafe(|| {
            until(what, || {
                left = self.left();
                left.is_empty()
            });
        }));
        assert!(gone.is_ok(), "left behind: {left:#?}");
    }

    /// Everything of the pods that is there. What belongs to the node as a whole (bridge, nftables table) is not.
    pub fn left(&self) -> Vec<String> {
        let server = self.server.as_ref().map(|server| format!("process {} ", server.id()));
        let folders = ["state/pods", "state/names", "root/pods", "root/leases"].map(|f| self.path(f));
        let of_a_pod = |trace: &str| match trace.split_once(' ') {
            Some(("mount" | "cgroup", _)) => true,
            Some(("process", _)) => server.as_deref().is_none_or(|server| !trace.starts_with(server)),
            Some(("interface", name)) => name.contains('@'),
            Some(("file", path)) => folders.iter().any(|f| Path::new(path).starts_with(f)),
            _ => false,
        };
        // The folders themselves stay.
        let is_folder = |trace: &String| folders.iter().any(|f| *trace == format!("file {}", f.display()));
        self.machine.traces().into_iter().filter(|trace| of_a_pod(trace) && !is_folder(trace)).collect()
    }
}

impl Drop for Node {
    /// A failed test's server ends before the machine clears its places.
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A container that runs a shell script and logs to `NAME.log`.
pub fn script(name: &str, text: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: ["/bin/sh", "-c", text].map(String::from).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

/// Whether a process has a file open.
fn has_open(pid: Pid, path: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors");
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// The content of a log file, without times, streams and tags.
///
/// # Panics
/// When it cannot be read.
pub fn log_text(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
}
