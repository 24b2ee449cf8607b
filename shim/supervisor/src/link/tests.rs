//! Both ends of the link against each other, over a socket pair that stands for the port; and the host's end against a
//! guest that does wrong.

use super::guest::Guest;
use super::host::{AGENT_SOCKET, Host, Listeners, start_host};
use crate::sys;
use coracle_proto::link::{Event, FILL, Link, MAGIC};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, geteuid};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with its sockets and a guest with its own.
struct Rig {
    folder: tempfile::TempDir,
    /// The host's end of the port, while nobody serves it.
    port: Option<UnixStream>,
    guest: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

fn listen(folder: &Path, name: &str) -> UnixListener {
    UnixListener::bind(folder.join(name)).unwrap()
}

fn listeners(folder: &Path) -> Listeners {
    let [task, attach, dial] = ["task.sock", "attach.sock", "dial.sock"].map(|name| listen(folder, name));
    Listeners { task, attach, dial }
}

fn pair() -> (UnixStream, UnixStream) {
    let (one, other) = UnixStream::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    (one, other)
}

/// Answers each client with what it sent, in capitals, and ends when it ends.
fn serve_echo<S: Read + Write + Send + 'static>(clients: impl Iterator<Item = S> + Send + 'static) {
    thread::spawn(move || {
        for mut client in clients {
            thread::spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(count @ 1..) = client.read(&mut chunk) {
                    chunk[..count].make_ascii_uppercase();
                    client.write_all(&chunk[..count]).unwrap();
                }
            });
        }
    });
}

impl Rig {
    fn new() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("guest");
        fs::create_dir(&inside).unwrap();
        for name in ["supervisor.sock", "attach.sock"] {
            let listener = listen(&inside, name);
            serve_echo(std::iter::from_fn(move || Some(listener.accept().unwrap().0)));
        }
        let (port, guest) = pair();
        guest.set_nonblocking(true).unwrap();
        Rig { folder, port: Some(port), guest, threads: Vec::new() }
    }

    /// With both ends at work.
    fn running() -> Rig {
        let mut rig = Rig::new();
        rig.start_host();
        rig.start_guest();
        rig
    }

    fn start_host(&mut self) {
        let mut host = Host::new(listeners(self.folder.path())).unwrap();
        let port = File::from(OwnedFd::from(self.port.take().unwrap()));
        self.threads.push(thread::spawn(move || host.serve(port).unwrap()));
    }

    fn start_guest(&mut self) {
        let mut guest = Guest::new(&self.folder.path().join("guest"));
        let mut port = File::from(OwnedFd::from(self.guest.try_clone().unwrap()));
        self.threads.push(thread::spawn(move || while guest.turn(&mut port).unwrap() {}));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(name)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn dial(&self, line: &str) -> (UnixStream, String) {
        let mut stream = self.connect("dial.sock");
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        let mut byte = [0];
        while !answer.ends_with('\n') && stream.read(&mut byte).unwrap() == 1 {
            answer.push(char::from(byte[0]));
        }
        (stream, answer)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The port's end is the end of both.
        let _ = self.guest.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let done = thread.join();
            assert!(done.is_ok() || thread::panicking(), "a link's thread failed");
        }
    }
}

fn rest_of(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_of_each_socket_reaches_its_service_and_may_end_its_half() {
    let rig = Rig::running();
    for name in ["task.sock", "attach.sock"] {
        let mut client = rig.connect(name);
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest_of(&mut client), b"HELLO", "{name}");
    }
}

#[test]
fn who_connects_before_the_guest_is_there_is_served_when_it_is() {
    let mut rig = Rig::new();
    rig.start_host();
    // The listeners are made by the thread before it waits for the port.
    let mut client = rig.connect("task.sock");
    client.write_all(b"early").unwrap();
    rig.start_guest();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"EARLY");
}

#[test]
fn a_port_of_the_loopback_is_dialled() {
    let rig = Rig::running();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    serve_echo(std::iter::from_fn(move || server.accept().ok().map(|(client, _)| client)));
    let (mut client, answer) = rig.dial(&format!("{port}\nright behind"));
    assert_eq!(answer, "ok\n");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest_of(&mut client), b"RIGHT BEHIND");
    let six = TcpListener::bind("[::1]:0").unwrap();
    let port = six.local_addr().unwrap().port();
    assert_eq!(rig.dial(&format!("{port}\n")).1, "ok\n");
    drop(six);
    let (mut client, answer) = rig.dial(&format!("{port}\n"));
    assert_eq!(answer, format!("error: 127.0.0.1:{port}: Connection refused\n"));
    assert_eq!(rest_of(&mut client), b"");
    for line in ["0\n", "65536\n", "-1\n", "http\n", "123456789", "\n"] {
        assert_eq!(rig.dial(line).1, "error: the first line is not a port\n", "{line:?}");
    }
}

#[test]
fn a_server_that_leaves_without_an_end_resets_and_one_that_ends_does_not() {
    let rig = Rig::running();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!("{}\n", server.local_addr().unwrap().port());
    let (mut client, _) = rig.dial(&line);
    let (mut served, _) = server.accept().unwrap();
    served.write_all(b"bye").unwrap();
    drop(served);
    assert_eq!(rest_of(&mut client), b"bye");
    let (client, _) = rig.dial(&line);
    let (mut served, _) = server.accept().unwrap();
    drop(client);
    assert_eq!(rest_of(&mut served), b"", "the client's end reaches it");
}

#[test]
fn much_goes_both_ways_at_once_and_arrives_in_order() {
    let rig = Rig::running();
    let clients: Vec<_> = (0..4u8)
        .map(|number| {
            let mut client = rig.connect("attach.sock");
            let mut writer = client.try_clone().unwrap();
            let letters: Vec<u8> =
                (0..1_000_000u32).map(|at| b'a' + ((at / 7 + u32::from(number)) % 26) as u8).collect();
            let sent = letters.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            thread::spawn(move || {
                assert!(rest_of(&mut client) == letters.to_ascii_uppercase());
                writing.join().unwrap();
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let rig = Rig::running();
    let slow = rig.connect("task.sock");
    slow.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut full = 0;
    // Until neither the sockets nor the window take any more.
    while full < 20 {
        match (&slow).write(&[b'x'; 4096]) {
            Ok(count) => (sent, full) = (sent + count, 0),
            Err(_) => {
                full += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    assert!(sent < 4 << 20, "{sent} bytes are held for a reader that does not read");
    let mut quick = rig.connect("task.sock");
    quick.write_all(b"me").unwrap();
    quick.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest_of(&mut quick), b"ME");
    slow.set_nonblocking(false).unwrap();
    slow.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest_of(&mut &slow).len(), sent);
}

#[test]
fn hundreds_of_clients_at_once() {
    super::raise_limit().unwrap();
    let rig = Rig::running();
    let mut clients: Vec<UnixStream> = (0..300).map(|_| rig.connect("task.sock")).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("n{number:03}").as_bytes()).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("N{number:03}").as_bytes());
    }
}

#[test]
fn when_the_guest_leaves_its_clients_see_the_end() {
    let mut rig = Rig::running();
    let mut client = rig.connect("task.sock");
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    rig.guest.shutdown(Shutdown::Both).unwrap();
    assert_eq!(rest_of(&mut client), b"");
    rig.threads.drain(..).for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_beginning_that_is_read_before_the_host_is_announced_is_answered() {
    let rig = Rig::new();
    let mut guest = Guest::new(&rig.path("guest"));
    let mut port = File::from(OwnedFd::from(rig.guest.try_clone().unwrap()));
    let mut host = Link::host();
    host.restart(1);
    (&mut rig.port.as_ref().unwrap()).write_all(host.output()).unwrap();
    // What a port shows to who reads on: the beginning is there, nobody at the other end.
    rig.guest.shutdown(Shutdown::Read).unwrap();
    while guest.turn(&mut port).unwrap() {}
    guest.host_left();
    while !guest.end.link.output().is_empty() {
        guest.end.write_port(&mut port).unwrap();
    }
    let mut answer = vec![0; FILL + 32];
    rig.port.as_ref().unwrap().set_nonblocking(false).unwrap();
    (&mut rig.port.as_ref().unwrap()).read_exact(&mut answer).unwrap();
    assert_eq!(host.receive(&mut &answer[..]), Some(Event::Up));
}

/// Reads the beginning of a session, as a guest that then does what it likes.
fn nonce(port: &mut UnixStream) -> [u8; 16] {
    port.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut beginning = vec![0; FILL + 32];
    port.read_exact(&mut beginning).unwrap();
    let (fill, rest) = beginning.split_at(FILL);
    assert!(fill.iter().all(|byte| *byte == 0) && rest[..16] == MAGIC.to_be_bytes());
    rest[16..].try_into().unwrap()
}

#[test]
fn a_guest_that_sends_nonsense_loses_its_clients_and_may_begin_again() {
    let mut rig = Rig::new();
    rig.start_host();
    let mut port = rig.guest.try_clone().unwrap();
    port.set_nonblocking(false).unwrap();
    for _ in 0..3 {
        let nonce = nonce(&mut port);
        port.write_all(b"what an earlier guest had to say").unwrap();
        port.write_all(&MAGIC.to_be_bytes()).unwrap();
        port.write_all(&nonce).unwrap();
        let mut caller = rig.connect("dial.sock");
        caller.write_all(b"80\n").unwrap();
        // The stream's frame: eight bytes, three, and the seal, which is the nonce's end.
        let mut open = [0; 15];
        port.read_exact(&mut open).unwrap();
        assert_eq!((&open[4..11], &open[11..]), (&[1, 0, 0, 3, 3, 0, 80][..], &nonce[12..]));
        port.write_all(&[0xff; 100_000]).unwrap();
        assert_eq!(rest_of(&mut caller), b"error: the link to the virtual machine broke\n");
    }
}

#[test]
fn the_hosts_process_is_nobody_and_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let agent = listen(folder.path(), AGENT_SOCKET);
    let user = geteuid().is_root().then_some(65_533);
    let pid = start_host(folder.path(), &listeners(folder.path()), user).unwrap();
    let (mut port, _) = agent.accept().unwrap();
    nonce(&mut port);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = user.unwrap_or(geteuid().as_raw());
    for line in [
        &format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Name:\tcoracle-link",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    // Standard input, output and error; three listeners, QEMU's socket by its path, and the connection.
    assert!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() <= 3 + 3 + 2);
    // It connects again when its connection breaks, in spite of the folder that is closed to it.
    drop(port);
    let (mut port, _) = agent.accept().unwrap();
    nonce(&mut port);
    sys::kill(pid, nix::libc::SIGKILL).unwrap();
    waitpid(Pid::from_raw(pid), None).unwrap();
}
