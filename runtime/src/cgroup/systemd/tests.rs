//! The driver against a manager of our own making: what is asked of it, in which order, and what follows its answers.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use super::wire::{Kind, Message};
use super::*;
use crate::cgroup::Rootless;

/// What the manager answers to a call: values, or an error's name.
type Answer = std::result::Result<Vec<Value>, &'static str>;

/// A manager that answers as told and remembers what it was asked.
struct Manager {
    dir: tempfile::TempDir,
    thread: JoinHandle<Vec<Message>>,
}

impl Manager {
    fn new(mut answer: impl FnMut(&Message) -> Answer + Send + 'static) -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("private")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            authenticate(&mut stream);
            let mut seen = Vec::new();
            while let Some(call) = read(&mut stream) {
                let mut reply = Message::new(Kind::Return, 100 + seen.len() as u32);
                reply.reply_to = call.serial;
                match answer(&call) {
                    Ok(body) => reply.body = body,
                    Err(name) => {
                        reply.kind = Kind::Error;
                        reply.error = name.to_owned();
                        reply.body = vec![Value::str("as told")];
                    }
                }
                // A job's end may be told before the job.
                if let Some(Value::Path(job)) = reply.body.first() {
                    let mut signal = Message::new(Kind::Signal, 1);
                    signal.member = "JobRemoved".to_owned();
                    let result = if job.ends_with("/bad") { "failed" } else { "done" };
                    signal.body = vec![Value::U32(1), Value::Path(job.clone()), Value::str("u"), Value::str(result)];
                    stream.write_all(&signal.encode()).unwrap();
                }
                stream.write_all(&reply.encode()).unwrap();
                seen.push(call);
            }
            seen
        });
        Manager { dir, thread }
    }

    fn connect(&self) -> Bus {
        Bus::connect_to(&self.dir.path().join("private")).unwrap()
    }

    /// The calls seen, once the connection is closed.
    fn calls(self) -> Vec<Message> {
        self.thread.join().unwrap()
    }
}

fn authenticate(stream: &mut UnixStream) {
    let words = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
    let mut line = [0; 29];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, words);
    stream.write_all(b"DATA\r\nOK 0123\r\n").unwrap();
}

fn read(stream: &mut UnixStream) -> Option<Message> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).ok()?;
    let mut bytes = vec![0; Message::length(&fixed).unwrap()];
    bytes[..16].copy_from_slice(&fixed);
    stream.read_exact(&mut bytes[16..]).unwrap();
    Message::decode(&bytes)
}

fn job(name: &str) -> Answer {
    Ok(vec![Value::Path(format!("/org/freedesktop/systemd1/job/{name}"))])
}

fn members(calls: &[Message]) -> Vec<&str> {
    calls.iter().map(|call| call.member.as_str()).collect()
}

#[test]
fn a_unit_is_started_and_its_jobs_end_awaited() {
    let manager = Manager::new(|_| job("1"));
    let mut bus = manager.connect();
    start(&mut bus, "a.scope", &[("Delegate".to_owned(), Value::Bool(true))]).unwrap();
    drop(bus);
    let calls = manager.calls();
    assert_eq!(members(&calls), ["StartTransientUnit"]);
    assert_eq!(wire::signature_of(&calls[0].body), "ssa(sv)a(sa(sv))");
    assert_eq!(calls[0].path, "/org/freedesktop/systemd1");
    assert_eq!(calls[0].destination, "", "there is no bus to route it");
}

#[test]
fn a_failed_unit_in_the_way_is_forgotten_and_a_living_one_is_an_error() {
    let mut left = 1;
    let manager = Manager::new(move |call| match call.member.as_str() {
        "StartTransientUnit" if left > 0 => {
            left -= 1;
            Err("org.freedesktop.systemd1.UnitExists")
        }
        "StartTransientUnit" => job("2"),
        _ => Ok(vec![]),
    });
    let mut bus = manager.connect();
    start(&mut bus, "a.scope", &[]).unwrap();
    drop(bus);
    assert_eq!(members(&manager.calls()), ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);

    let manager = Manager::new(|call| match call.member.as_str() {
        "StartTransientUnit" => Err("org.freedesktop.systemd1.UnitExists"),
        _ => Ok(vec![]),
    });
    let error = start(&mut manager.connect(), "a.scope", &[]).unwrap_err().to_string();
    assert!(error.contains("a.scope, which exists already"), "{error}");
}

#[test]
fn a_job_that_fails_is_an_error_with_its_result() {
    let manager = Manager::new(|call| if call.member == "StartTransientUnit" { job("bad") } else { Ok(vec![]) });
    let error = start(&mut manager.connect(), "a.scope", &[]).unwrap_err().to_string();
    assert!(error.contains("start unit a.scope") && error.contains("failed"), "{error}");
}

#[test]
fn stopping_what_is_gone_is_no_error() {
    let manager = Manager::new(|_| Err("org.freedesktop.systemd1.NoSuchUnit"));
    let mut bus = manager.connect();
    bus.stop("a.scope").and_then(|()| bus.reset_failed("a.scope")).unwrap();
}

#[test]
fn refusals_carry_systemds_words() {
    let manager = Manager::new(|_| Err("org.freedesktop.DBus.Error.PropertyReadOnly"));
    let error = start(&mut manager.connect(), "a.scope", &[]).unwrap_err().to_string();
    assert_eq!(error, "start unit a.scope by systemd: as told (PropertyReadOnly)");
}

#[test]
fn a_manager_that_goes_away_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("private")).unwrap();
    let thread = std::thread::spawn(move || authenticate(&mut listener.accept().unwrap().0));
    let mut bus = Bus::connect_to(&dir.path().join("private")).unwrap();
    thread.join().unwrap();
    assert!(start(&mut bus, "a.scope", &[]).unwrap_err().to_string().contains("systemd"));
}

#[test]
fn what_fails_after_the_start_stops_the_unit_again() {
    let manager = Manager::new(|call| match call.member.as_str() {
        "StartTransientUnit" | "StopUnit" => job("1"),
        "Get" => Ok(vec![Value::Variant(Box::new(Value::str("/no-such.slice/a.scope")))]),
        _ => Ok(vec![]),
    });
    let mut bus = manager.connect();
    let layout = Layout::parse("30 23 0:26 / /nowhere rw - cgroup2 cgroup2 rw\n").unwrap();
    let options = CgroupOptions { systemd: true, rootless: Rootless::No, ..CgroupOptions::new(None, "a") };
    create_on(&layout, &mut bus, false, &options, None).unwrap_err();
    drop(bus);
    let calls = manager.calls();
    assert_eq!(members(&calls), ["StartTransientUnit", "Get", "StopUnit", "ResetFailedUnit"]);
    assert_eq!(calls[0].body[0], Value::str("coracle-a.scope"));
}

#[test]
fn paths_name_a_slice_a_prefix_and_a_name() {
    let asked = |path: Option<&str>, user| Asked::new(&CgroupOptions::new(path.map(Path::new), "id"), user);
    let unit = |slice: &str, name: &str| Asked { slice: slice.to_owned(), name: name.to_owned() };
    assert_eq!(asked(None, false).unwrap(), unit("system.slice", "coracle-id.scope"));
    assert_eq!(asked(None, true).unwrap(), unit("user.slice", "coracle-id.scope"));
    assert_eq!(asked(Some("pods-a.slice:crio:x"), false).unwrap(), unit("pods-a.slice", "crio-x.scope"));
    assert_eq!(asked(Some("::x"), false).unwrap(), unit("system.slice", "x.scope"));
    for bad in
        ["/a/b", "a:b", "a:b:c", "a.slice:b:", "a--b.slice:p:x", "a/b.slice:p:x", "-a.slice:p:x", "::a b", "::x.slice"]
    {
        assert!(asked(Some(bad), false).is_err(), "{bad}");
    }
}

#[test]
fn slices_lie_beneath_one_another() {
    assert_eq!(expanded("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
    assert_eq!(expanded("-.slice"), "");
}
