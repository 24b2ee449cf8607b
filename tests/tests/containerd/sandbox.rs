//! The handler as containerd 2.3 and later drive it, by a client of the test's own: parameters on standard input, then the
//! sandbox API with CRI's configuration, and containers of that sandbox by version 3 of the task API.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_proto::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use coracle_proto::pod_sandbox::*;
use coracle_proto::sandbox::*;
use coracle_proto::task::*;
use coracle_proto::ttrpc::{Code, method, service};
use coracle_proto::{Any, Empty, Message, any, runtime_options};
use coracle_tests::bin;
use coracle_tests::machine::until;
use coracle_tests::ttrpc::Client;
use serde_json::json;

const NAMESPACE: &str = "k8s.io";

/// A network namespace with a process that holds it.
struct Network(Child);

impl Network {
    fn new() -> Network {
        let child = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("unshare is needed");
        let network = Network(child);
        until("a network namespace", || network.link("self") != network.link(&network.0.id().to_string()));
        network
    }

    fn link(&self, pid: &str) -> String {
        link(pid, "net")
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(pid: &str, namespace: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap().display().to_string()
}

/// Runs `start` and connects.
fn start(id: &str, bundle: &Path, sockets: &Path) -> Client {
    let options = runtime_options::Options { config_body: b"SystemdCgroup = false".to_vec(), ..Default::default() };
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: NAMESPACE.into(),
        containerd_version: "2.3.4".into(),
        extensions: vec![Extension { value: Some(any::pack(&options)) }],
        socket_dir: Some(sockets.display().to_string()),
        ..Default::default()
    };
    let mut command = Command::new(bin("containerd-shim-coracle-v1"));
    command.args([
        "-namespace",
        NAMESPACE,
        "-address",
        "/no/containerd.sock",
        "-publish-binary",
        "/bin/true",
        "-id",
        id,
    ]);
    command.arg("start").current_dir(bundle).env("MAX_SHIM_VERSION", "2");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&params.encode_to_vec()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let result = BootstrapResult::decode(output.stdout.as_slice()).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let socket = Path::new(result.address.strip_prefix("unix://").unwrap());
    assert!(socket.starts_with(sockets), "{}", socket.display());
    Client::connect(socket)
}

/// A container's bundle, in the namespaces of a process.
fn container(bundle: &Path, pid: u32, args: &[&str]) {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir(bundle.join("rootfs/proc")).unwrap();
    coracle_tests::copy_program("/bin/busybox", bin.join("busybox"));
    for applet in ["sh", "hostname", "readlink", "ps", "sleep"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let of_pod = |kind: &str, name: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") });
    let name = bundle.file_name().unwrap().to_string_lossy();
    let config = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "env": ["PATH=/bin"], "cwd": "/" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "cgroupsPath": format!("/coracle-sandbox-{}/{name}", std::process::id()),
            "namespaces": [
                { "type": "mount" }, of_pod("network", "net"), of_pod("ipc", "ipc"), of_pod("uts", "uts"), of_pod("pid", "pid"),
            ],
        },
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_sandbox_of_the_cri_has_its_network_its_names_and_its_containers() {
    let dir = tempfile::Builder::new().prefix("ctrd-").tempdir().unwrap();
    let (bundle, sockets, network) = (dir.path().join("pod"), dir.path().join("s"), Network::new());
    fs::create_dir(&bundle).unwrap();
    let mut client = start("pod", &bundle, &sockets);
    let linux = LinuxPodSandboxConfig {
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned())].into(),
        ..Default::default()
    };
    let config = PodSandboxConfig { hostname: "web".into(), linux: Some(linux) };
    let create = CreateSandboxRequest {
        sandbox_id: "pod".into(),
        bundle_path: bundle.display().to_string(),
        options: Some(Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: config.encode_to_vec() }),
        netns_path: network.path(),
        ..Default::default()
    };
    let sandbox = service::SANDBOX;
    client.call::<CreateSandboxResponse>(sandbox, method::CREATE_SANDBOX, &create).unwrap();
    let again = client.call::<CreateSandboxResponse>(sandbox, method::CREATE_SANDBOX, &create).unwrap_err();
    assert_eq!(again.meaning(), Code::AlreadyExists);
    let request = StartSandboxRequest { sandbox_id: "pod".into() };
    let started: StartSandboxResponse = client.call(sandbox, method::START_SANDBOX, &request).unwrap();
    let pid = started.pid.to_string();
    assert_eq!(link(&pid, "net"), network.link(&network.0.id().to_string()));
    for name in ["ipc", "uts", "pid"] {
        assert_ne!(link(&pid, name), link("self", name), "{name}");
    }
    let request = SandboxStatusRequest { sandbox_id: "pod".into(), verbose: true };
    let status: SandboxStatusResponse = client.call(sandbox, method::SANDBOX_STATUS, &request).unwrap();
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", started.pid));
    let platform: PlatformResponse =
        client.call(sandbox, method::PLATFORM, &PlatformRequest { sandbox_id: "pod".into() }).unwrap();
    assert_eq!(platform.platform.unwrap().os, "linux");

    let web = dir.path().join("web");
    let script = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; readlink /proc/self/ns/pid; exit 4";
    container(&web, started.pid, &["sh", "-c", &script.replace("cat", "busybox cat")]);
    let (task, out) = (service::TASK_V3, dir.path().join("out"));
    let create = CreateTaskRequest {
        id: "web".into(),
        bundle: web.display().to_string(),
        stdout: format!("file://{}", out.display()),
        ..Default::default()
    };
    client.call::<CreateTaskResponse>(task, method::CREATE, &create).unwrap();
    let wait = client.send(task, method::WAIT, &WaitRequest { id: "web".into(), ..Default::default() });
    client
        .call::<StartResponse>(task, method::START, &StartRequest { id: "web".into(), ..Default::default() })
        .unwrap();
    assert_eq!(client.receive::<WaitResponse>(wait).unwrap().exit_status, 4);
    assert_eq!(fs::read_to_string(&out).unwrap(), format!("web\n7\n{}\n", link(&pid, "pid")));
    let delete = DeleteRequest { id: "web".into(), ..Default::default() };
    client.call::<DeleteResponse>(task, method::DELETE, &delete).unwrap();
    // containerd sends this after each task; the sandbox stays.
    client.call::<Empty>(task, method::SHUTDOWN, &ShutdownRequest { id: "web".into(), now: false }).unwrap();
    client.call::<PingResponse>(sandbox, method::PING_SANDBOX, &PingRequest { sandbox_id: "pod".into() }).unwrap();

    let wait = client.send(sandbox, method::WAIT_SANDBOX, &WaitSandboxRequest { sandbox_id: "pod".into() });
    let stop = StopSandboxRequest { sandbox_id: "pod".into(), timeout_secs: 10 };
    client.call::<StopSandboxResponse>(sandbox, method::STOP_SANDBOX, &stop).unwrap();
    assert!(client.receive::<WaitSandboxResponse>(wait).unwrap().exited_at.is_some());
    let status: SandboxStatusResponse = client.call(sandbox, method::SANDBOX_STATUS, &request).unwrap();
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    let end = ShutdownSandboxRequest { sandbox_id: "pod".into() };
    client.call::<ShutdownSandboxResponse>(sandbox, method::SHUTDOWN_SANDBOX, &end).unwrap();
    assert!(client.is_closed_by_server());
    until("the socket to be gone", || fs::read_dir(&sockets).unwrap().next().is_none());
    for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = fs::remove_dir(tree.path().join(format!("coracle-sandbox-{}", std::process::id())));
    }
}
