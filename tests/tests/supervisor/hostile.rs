//! Calls out of order, and clients and readers that stall: the codes are containerd's, nobody else waits, nothing grows.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use coracle_proto::Empty;
use coracle_proto::sandbox::{SandboxStatusRequest, SandboxStatusResponse, WaitSandboxRequest};
use coracle_proto::task::*;
use coracle_proto::ttrpc::{Code, encode_request, method, service};
use coracle_tests::ttrpc::{Attach, Client, PATIENCE};

use crate::pod::{Pod, Wish, code, descriptors, until};

/// Waits at the same time, on one connection and on as many.
const WAITS: usize = 300;
/// As many wait for one end.
const MAX_WAITS: usize = 4096;
/// Resident memory that a test's clients may cost for good. A debug build's pages of code come and go.
const GROWTH_KB: u64 = 4096;

fn rss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("Anonymous");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Asserts that a supervisor is as it was: its descriptors and, within [`GROWTH_KB`], its memory.
struct Size(i32, usize, u64);

impl Size {
    fn of(pod: &Pod) -> Size {
        Size(pod.pid, descriptors(pod.pid), rss(pod.pid))
    }

    fn assert_unchanged(&self) {
        let Size(pid, open, memory) = *self;
        until("the descriptors to be closed", || descriptors(pid) <= open);
        let now = rss(pid);
        assert!(now <= memory + GROWTH_KB, "{memory} kB before, {now} kB now");
    }
}

fn wait_request(id: &str) -> WaitRequest {
    WaitRequest { id: id.into(), exec_id: String::new() }
}

#[test]
fn calls_out_of_order_are_refused_with_containerds_codes() {
    let mut pod = Pod::new();
    for method in [method::START, method::WAIT, method::DELETE, method::STATE, method::PAUSE, method::STATS] {
        // Their first field is the id.
        let request = StartRequest { id: "nobody".into(), ..Default::default() };
        assert_eq!(code(pod.task::<Empty>(method, &request)), Code::NotFound, "{method}");
    }
    assert_eq!(code(pod.kill("nobody", "", 9, false)), Code::NotFound);
    assert_eq!(code(pod.add_exec("nobody", "x", &["true"], false)), Code::NotFound);

    pod.create("web", &["sleep", "1000"], &Wish::default()).unwrap();
    assert_eq!(code(pod.create("web", &["true"], &Wish::default())), Code::AlreadyExists);
    assert_eq!(code(pod.start("web", "nobody")), Code::NotFound);
    assert_eq!(code(pod.add_exec("web", "early", &["true"], false)), Code::FailedPrecondition);
    pod.start("web", "").unwrap();
    assert_eq!(code(pod.start("web", "")), Code::FailedPrecondition);
    assert_eq!(code(pod.delete("web", "")), Code::FailedPrecondition, "it runs");
    assert_eq!(code(pod.task::<Empty>(method::RESUME, &ResumeRequest { id: "web".into() })), Code::FailedPrecondition);
    pod.add_exec("web", "one", &["sleep", "1000"], false).unwrap();
    assert_eq!(code(pod.add_exec("web", "one", &["true"], false)), Code::AlreadyExists);
    assert_eq!(code(pod.delete("web", "nobody")), Code::NotFound);
    assert_eq!(code(pod.kill("web", "nobody", 9, false)), Code::NotFound);

    pod.kill("web", "", 9, false).unwrap();
    assert_eq!(pod.wait("web", ""), 137);
    assert_eq!(pod.wait("web", ""), 137, "an exit is told as often as it is asked for");
    assert_eq!(code(pod.kill("web", "", 9, false)), Code::NotFound, "containerd's word for it");
    assert_eq!(code(pod.start("web", "")), Code::FailedPrecondition);
    assert_eq!(code(pod.add_exec("web", "late", &["true"], false)), Code::FailedPrecondition);
    assert_eq!(code(pod.task::<Empty>(method::PAUSE, &PauseRequest { id: "web".into() })), Code::FailedPrecondition);
    pod.delete("web", "").unwrap();
    assert_eq!(code(pod.delete("web", "")), Code::NotFound);
    pod.shutdown();
}

#[test]
fn hundreds_of_waits_are_all_answered_and_forgotten() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    pod.run("other", &["sleep", "1000"]);
    let size = Size::of(&pod);
    let mut one = pod.another_client();
    let calls: Vec<u32> = (0..WAITS).map(|_| one.send(service::TASK_V2, method::WAIT, &wait_request("web"))).collect();
    let mut many: Vec<(Client, u32)> = (0..WAITS)
        .map(|_| {
            let mut client = pod.another_client();
            let call = client.send(service::TASK_V3, method::WAIT, &wait_request("web"));
            (client, call)
        })
        .collect();
    // Every tenth leaves again.
    many.retain(|(_, call)| call % 10 != 0);
    pod.kill("web", "", 9, false).unwrap();
    for call in calls {
        assert_eq!(one.receive::<WaitResponse>(call).unwrap().exit_status, 137);
    }
    for (client, call) in &mut many {
        assert_eq!(client.receive::<WaitResponse>(*call).unwrap().exit_status, 137);
    }
    drop((one, many));
    size.assert_unchanged();
    pod.shutdown();
}

#[test]
fn more_waits_than_anybody_needs_are_refused_until_their_client_leaves() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let of_sandbox = WaitSandboxRequest { sandbox_id: pod.id.clone() };
    let of_task = wait_request("web");
    let wait = |client: &mut Client, task: bool| match task {
        true => client.send(service::TASK_V3, method::WAIT, &of_task),
        false => client.send(service::SANDBOX, method::WAIT_SANDBOX, &of_sandbox),
    };
    for task in [true, false] {
        let (mut greedy, mut other) = (pod.another_client(), pod.another_client());
        let last = (0..MAX_WAITS + 1).map(|_| wait(&mut greedy, task)).last().unwrap();
        assert_eq!(code(greedy.receive::<Empty>(last)), Code::ResourceExhausted);
        let refused = wait(&mut other, task);
        assert_eq!(code(other.receive::<Empty>(refused)), Code::ResourceExhausted);
        drop(greedy);
        let status = SandboxStatusRequest { sandbox_id: pod.id.clone(), verbose: false };
        until("a wait is one: what is asked after it is answered, and it is not", || {
            let waits = wait(&mut other, task);
            other.call::<SandboxStatusResponse>(service::SANDBOX, method::SANDBOX_STATUS, &status).unwrap();
            !other.is_answered(waits)
        });
    }
    pod.shutdown();
}

#[test]
fn a_client_that_takes_no_answers_costs_little_and_holds_up_nobody() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let size = Size::of(&pod);
    let stream = UnixStream::connect(pod.path("supervisor.sock")).unwrap();
    stream.set_nonblocking(true).unwrap();
    let state = StateRequest { id: "web".into(), ..Default::default() };
    // Until the supervisor takes no more of it: its answers, and then its requests, fill the socket.
    let mut deaf = &stream;
    let mut refused = 0;
    for number in 0..200_000u32 {
        let frame = encode_request(2 * number + 1, service::TASK_V2, method::STATE, &state, 0).unwrap();
        match deaf.write_all(&frame) {
            Ok(()) => refused = 0,
            Err(_) => refused += 1,
        }
        if refused > 100 {
            break;
        }
    }
    for _ in 0..50 {
        pod.state("web", "").unwrap();
    }
    assert!(rss(pod.pid) <= size.2 + GROWTH_KB, "{} kB before, {} kB now", size.2, rss(pod.pid));
    drop(stream);
    size.assert_unchanged();
    pod.shutdown();
}

#[test]
fn headers_that_never_end_and_lengths_that_never_come_cost_a_descriptor_each() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let size = Size::of(&pod);
    let announced = encode_request(1, service::TASK_V2, method::STATE, &StateRequest::default(), 0).unwrap();
    let mut slow: Vec<UnixStream> =
        (0..200).map(|_| UnixStream::connect(pod.path("supervisor.sock")).unwrap()).collect();
    for at in 0..announced.len() - 1 {
        for client in &mut slow {
            client.write_all(&announced[at..=at]).unwrap();
        }
        pod.state("web", "").unwrap();
    }
    // The longest message that is allowed, of which nothing comes.
    let mut large: Vec<UnixStream> =
        (0..100).map(|_| UnixStream::connect(pod.path("supervisor.sock")).unwrap()).collect();
    for client in &mut large {
        client.write_all(&[0, 0x40, 0, 0, 0, 0, 0, 1, 1, 0]).unwrap();
    }
    let mut attach: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(pod.path("attach.sock")).unwrap()).collect();
    for client in &mut attach {
        client.write_all(b"{\"container\":").unwrap();
    }
    pod.state("web", "").unwrap();
    assert!(rss(pod.pid) <= size.2 + GROWTH_KB, "{} kB before, {} kB now", size.2, rss(pod.pid));
    drop((slow, large, attach));
    size.assert_unchanged();
    pod.shutdown();
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_others_served() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let size = Size::of(&pod);
    let many: Vec<UnixStream> = (0..600).map(|_| UnixStream::connect(pod.path("supervisor.sock")).unwrap()).collect();
    pod.state("web", "").unwrap();
    let mut last = many.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0, "closed at once");
    drop(many);
    size.assert_unchanged();
    pod.shutdown();
}

#[test]
fn fifos_that_nobody_reads_hold_up_their_process_alone() {
    let mut pod = Pod::new();
    let size = Size::of(&pod);
    let fifo = pod.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let wish = Wish { stdout: fifo.display().to_string(), ..Wish::default() };
    pod.run_with("full", &["sh", "-c", "seq 1 1000000"], &wish);
    pod.run("web", &["sh", "-c", "exit 4"]);
    assert_eq!(pod.wait("web", ""), 4);
    pod.state("full", "").unwrap();
    pod.kill("full", "", 9, false).unwrap();
    assert_eq!(pod.wait("full", ""), 137);
    // Who comes late finds what the fifo holds, and its end.
    let mut late = fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo).unwrap();
    let mut text = String::new();
    late.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("1\n2\n3\n"), "{} bytes", text.len());
    for name in ["full", "web"] {
        pod.delete(name, "").unwrap();
    }
    size.assert_unchanged();
    pod.shutdown();
}

#[test]
fn a_reader_of_a_containers_output_that_stalls_loses_its_place_and_no_line_of_the_log() {
    let mut pod = Pod::new();
    pod.run("web", &["sh", "-c", "until [ -e /proc/1/root/go ]; do sleep 0.05; done; seq 1 300000"]);
    let size = Size::of(&pod);
    let stalled: Vec<Attach> = (0..10).map(|_| pod.attach("web", false)).collect();
    pod.exec("web", "go", &["sh", "-c", "echo > /go"], false).listen_to_the_end();
    assert_eq!(pod.wait("web", ""), 0);
    assert_eq!(pod.log_lines("web").len(), 300_000);
    pod.state("web", "").unwrap();
    drop(stalled);
    size.assert_unchanged();
    pod.shutdown();
}
