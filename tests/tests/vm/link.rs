//! The link to a virtual machine: killed in the middle of its work, and with a guest at its other end that does wrong.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_proto::coracle::{
    ConnectNetworkRequest, ConnectNetworkResponse, InfoRequest, InfoResponse, SandboxOptions, VmOptions,
};
use coracle_proto::task::{StateRequest, StateResponse, WaitRequest, WaitResponse};
use coracle_proto::ttrpc::{Code, method, service};
use coracle_tests::cri::{Options, node_with, script};
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{forward, noise};
use crate::common::{Vms, handler, turn};
use crate::pod::{Pod, alive, until};
use crate::spdy;
use crate::tasks::{pod, said};

/// Plays the machine monitor: it gets its descriptors as QEMU does, and is the guest at the end of one of them.
const MONITOR: &str = include_str!("hostile.py");
/// What the link may hold, however much it is sent: its own pages, and the windows of the few streams in a test.
const MAX_RESIDENT_KIB: u64 = 12 << 10;
/// How long a client waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The children of a process with this name.
fn children(parent: i32, name: &str) -> Vec<i32> {
    let pids = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    pids.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(named).collect()
}

fn link_of(pod: &Pod) -> i32 {
    let mut links = Vec::new();
    until("there is one link", || {
        links = children(pod.pid, "coracle-link");
        links.len() == 1
    });
    links[0]
}

/// Kills the link and waits for the next.
fn kill_link(pod: &Pod) {
    let link = link_of(pod);
    kill(Pid::from_raw(link), Signal::SIGKILL).expect("kill the link");
    until("there is another link", || children(pod.pid, "coracle-link").iter().any(|pid| *pid != link));
}

#[test]
fn a_link_killed_in_the_middle_of_its_work_is_started_again_and_nothing_ends() {
    let (mut pod, _turn) = pod();
    let script = "while [ ! -e /stop ]; do seq 1 2000; done; echo the end; exit 5";
    pod.run("busy", &["sh", "-c", script]);
    let mut waiting = pod.another_client();
    let wait = waiting.send(service::TASK_V3, method::WAIT, &WaitRequest { id: "busy".into(), exec_id: String::new() });
    // Frames are on their way all the time, so most of these cut one.
    for round in 0..5 {
        let before = fs::metadata(pod.log("busy")).map_or(0, |log| log.len());
        until("output comes", || fs::metadata(pod.log("busy")).is_ok_and(|log| log.len() > before + 100_000));
        kill_link(&pod);
        let exec = format!("round{round}");
        assert_eq!(said(&mut pod, "busy", &exec, &format!("echo {exec}")), format!("{exec}\n"));
    }
    // With its first process go all others of the container, this one too if it is still there.
    assert!(pod.exec("busy", "stop", &["sh", "-c", "touch /stop"], false).listen_to_the_end().ended);
    let exit: WaitResponse = waiting.receive(wait).expect("the wait outlives the link");
    assert_eq!(exit.exit_status, 5);
    let lines = pod.log_lines("busy");
    assert!(lines.last().is_some_and(|line| line == "stdout F the end"), "{:?}", lines.last());
    pod.delete("busy", "").expect("delete");
    pod.shutdown();
}

/// A pod whose machine does what `deed` says.
fn hostile(deed: &str) -> Pod {
    let mut pod = Pod::launch();
    let monitor = pod.path("monitor");
    fs::write(&monitor, MONITOR).unwrap();
    fs::set_permissions(&monitor, fs::Permissions::from_mode(0o755)).unwrap();
    // Others may pass: it runs as a user of its own.
    fs::set_permissions(pod.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = monitor.display().to_string();
    let vm = VmOptions {
        vmm: path.clone(),
        kernel: path,
        kernel_arguments: format!("deed={deed}"),
        allow_emulation: true,
        memory_bytes: 128 << 20,
        cpus: 1,
        ..Default::default()
    };
    pod.create_sandbox(SandboxOptions { vm: Some(vm), ..Default::default() }).expect("create");
    pod.start_sandbox();
    pod
}

/// How often the hostile guest has had a session.
fn sessions(pod: &Pod) -> usize {
    fs::read_to_string(pod.path("vm/console.log")).unwrap_or_default().matches("session").count()
}

/// A client of the guest's supervisor that asks something.
fn ask(pod: &Pod) -> UnixStream {
    let mut client = UnixStream::connect(pod.path("vm/task.sock")).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(&[1; 4096]).expect("it waits where it is accepted");
    client
}

/// Whether a client is told the end.
fn ends(mut client: UnixStream) -> bool {
    match client.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the link lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The pod is none the worse, but for its guest, and ends as any other.
fn is_unharmed(mut pod: Pod) {
    let link = link_of(&pod);
    let resident = resident_kib(link);
    assert!(resident < MAX_RESIDENT_KIB, "the link holds {resident} KiB");
    let info: InfoResponse = pod.client.call(service::CONTROL, method::INFO, &InfoRequest {}).expect("info");
    assert_eq!(info.sandbox_id, pod.id);
    let unknown = StateRequest { id: "nothing".into(), exec_id: String::new() };
    let answer = pod.client.call::<StateResponse>(service::TASK_V3, method::STATE, &unknown);
    assert_eq!(answer.unwrap_err().code, Code::NotFound as i32);
    pod.shutdown();
    assert!(!alive(link), "the link ends with its pod");
}

#[test]
fn a_guest_that_sends_only_noise_is_never_heard() {
    let _turn = turn();
    let pod = hostile("noise");
    until("it has been given a beginning more than once", || sessions(&pod) > 2);
    let client = ask(&pod);
    until("it goes on", || sessions(&pod) > 3);
    is_unharmed(pod);
    assert!(ends(client), "with the pod");
}

#[test]
fn a_guest_that_breaks_the_rules_of_its_session_loses_it() {
    let _turn = turn();
    for deed in ["nonsense", "flood", "grants", "cut"] {
        let pod = hostile(deed);
        // It does not read, so that nothing that comes for it is granted again.
        let client = ask(&pod);
        until("there is another session", || sessions(&pod) > 1);
        assert!(ends(client), "{deed}: with its session");
        is_unharmed(pod);
    }
}

#[test]
fn a_guest_whose_supervisor_lies_is_no_supervisor() {
    let _turn = turn();
    let pod = hostile("lies");
    let mut client = pod.another_client();
    let connecting = client.send(service::CONTROL, method::CONNECT_NETWORK, &ConnectNetworkRequest::default());
    until("it is asked", || sessions(&pod) > 0);
    is_unharmed(pod);
    client.receive::<ConnectNetworkResponse>(connecting).expect_err("it ends with the pod");
}

#[test]
fn a_port_of_this_machine_leads_into_a_virtual_one() {
    let vms = Vms::with("");
    let script = "mkdir /www && echo inside > /www/name && exec httpd -f -p 127.0.0.1:8080 -h /www";
    vms.ok(&["run", "-d", &vms.script_pod("web", script, "")]);
    let mut forward = vms.start(&["port-forward", "pod/web", "7070:8080", "7071:81"]);
    let mut answer = String::new();
    coracle_tests::machine::until("the port leads there", || match vms.run(|| get(7070)) {
        Ok(said) => {
            answer = said;
            answer.ends_with("inside\n")
        }
        Err(_) => false,
    });
    assert_eq!(vms.run(|| get(7071)).unwrap_or_default(), "", "nobody listens there");
    vms.ok(&["rm", "-f", "web"]);
    assert_eq!(forward.wait().unwrap().code(), Some(1), "the pod is gone");
}

/// What an HTTP server says, asked by a client that ends its request and then reads to the end.
fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The two streams of one forwarded connection, and what came on them: an error's words, and the server's.
async fn forwarded(connection: &mut spdy::Connection, port: &str, request: &str, said: &[u8]) -> (String, Vec<u8>) {
    let mut stream = |kind| connection.stream(&[("streamType", kind), ("port", port), ("requestID", request)]);
    let (mut error, mut data) = (stream("error"), stream("data"));
    error.close();
    data.write(said);
    data.close();
    (String::from_utf8(error.rest().await).expect("text"), data.rest().await)
}

#[test]
fn a_kubelet_forwards_ports_into_a_virtual_machine() {
    let _turn = turn();
    let options = Options { config: handler(), deadline: Duration::from_secs(240), ..Options::default() };
    node_with(options, async |node| {
        let config = node.pod("web");
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "vm".into() };
        let pod = node.runtime().run_pod_sandbox(request).await.expect("run a pod").into_inner().pod_sandbox_id;
        let servers = "head -c 3000000 /dev/zero > /big; nc -ll -p 7000 -e cat & exec httpd -f -p 127.0.0.1:8080 -h /";
        let container = node.launch(&pod, &config, script("main", servers)).await;
        let listen =
            "until grep -qs :1F90 /proc/net/tcp && grep -qs :1B58 /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done";
        let cmd = ["sh", "-c", listen].map(String::from).to_vec();
        let request = v1::ExecSyncRequest { container_id: container, cmd, timeout: 30 };
        assert_eq!(node.runtime().exec_sync(request).await.expect("exec").into_inner().exit_code, 0);

        let url = forward(node, &pod, &[]).await;
        let mut connection = spdy::Connection::open(&url, &["portforward.k8s.io"]).await.expect("upgrade");
        let (error, answer) = forwarded(&mut connection, "8080", "1", b"GET /big HTTP/1.0\r\n\r\n").await;
        assert!(answer.len() > 3_000_000 && error.is_empty(), "{} bytes; {error}", answer.len());
        let bytes = noise(1 << 20);
        let (error, answer) = forwarded(&mut connection, "7000", "2", &bytes).await;
        assert!(answer == bytes && error.is_empty(), "{} bytes; {error}", answer.len());
        let (error, answer) = forwarded(&mut connection, "9", "3", b"").await;
        assert!(error.contains("port 9") && error.contains("refused") && answer.is_empty(), "{error}");
    });
}
