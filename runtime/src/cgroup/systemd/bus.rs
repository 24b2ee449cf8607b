//! A connection to systemd's manager, and the calls the driver makes.
//!
//! The manager listens on a socket of its own (`/run/systemd/private`, `$XDG_RUNTIME_DIR/systemd/private`): that is D-Bus
//! between two peers, with no bus, no names and no subscription. Where there is none the message bus does; there the
//! connection has to say hello, to name whom it calls, and to ask for signals.
//!
//! A job's end is told by the signal JobRemoved, which may come before the answer that names the job: signals are
//! collected whenever anything is read. Every wait ends at a deadline.

use std::env;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::wire::{FIXED_HEADER, Kind, MAX_MESSAGE, Message, Value};

/// How long one call and its job may take, as long as runc waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of the authentication.
const MAX_LINE: usize = 512;
/// Ends of jobs that are kept while waiting for one: the manager tells everyone's.
const MAX_JOBS: usize = 1024;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";
const SERVICE: &str = "org.freedesktop.systemd1";

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The socket.
    Io(String, io::Error),
    /// systemd refused; the error's name and its words.
    Refused { name: String, words: String },
    /// What came was no D-Bus, or not the answer.
    Protocol(String),
}

impl Failure {
    /// Whether it is the error of this name.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Failure::Refused { name, .. } if name.ends_with(wanted))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Io(what, cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "{what}: no answer within {} seconds", PATIENCE.as_secs())
            }
            Failure::Io(what, cause) => write!(f, "{what}: {cause}"),
            Failure::Refused { name, words } if words.is_empty() => write!(f, "{name}"),
            Failure::Refused { name, words } => {
                let short = name.rsplit('.').next().unwrap_or(name);
                write!(f, "{words} ({short})")
            }
            Failure::Protocol(what) => write!(f, "not understood: {what}"),
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// A property of a unit.
pub(super) type Property = (String, Value);

fn as_value(properties: &[Property]) -> Value {
    let one = |(name, value): &Property| {
        Value::Struct(vec![Value::str(name.as_str()), Value::Variant(Box::new(value.clone()))])
    };
    Value::Array("(sv)".to_owned(), properties.iter().map(one).collect())
}

/// Where a manager may be reached.
enum Address {
    /// Its own socket.
    Private(PathBuf),
    /// A message bus.
    Bus(PathBuf),
    /// A message bus in the abstract namespace.
    Abstract(String),
}

impl Address {
    fn of_system() -> Vec<Address> {
        let private = Address::Private("/run/systemd/private".into());
        vec![private, Address::Bus("/run/dbus/system_bus_socket".into())]
    }

    /// Those of a user's manager, the likeliest first.
    fn of_user(uid: u32) -> Vec<Address> {
        let directory = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let directory = directory.map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
        let mut all = vec![Address::Private(directory.join("systemd/private"))];
        all.extend(env::var("DBUS_SESSION_BUS_ADDRESS").ok().and_then(|text| Address::parse(&text)));
        all.push(Address::Bus(directory.join("bus")));
        all
    }

    /// The first usable one of `unix:path=/run/user/1/bus,guid=x;unix:abstract=y`.
    fn parse(text: &str) -> Option<Address> {
        text.split(';').filter_map(|address| address.strip_prefix("unix:")).find_map(|address| {
            address.split(',').find_map(|pair| match pair.split_once('=')? {
                ("path", path) => Some(Address::Bus(path.into())),
                ("abstract", name) => Some(Address::Abstract(name.to_owned())),
                _ => None,
            })
        })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Address::Private(path) | Address::Bus(path) => UnixStream::connect(path),
            Address::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        }
    }

    fn name(&self) -> String {
        match self {
            Address::Private(path) | Address::Bus(path) => path.display().to_string(),
            Address::Abstract(name) => format!("@{name}"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    /// A message bus is between us and the manager.
    routed: bool,
    serial: u32,
    /// Paths and results of the jobs that ended since the connection was made.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the manager of the system, or of a user.
    pub fn connect(user: Option<u32>) -> Result<Bus> {
        let addresses = user.map_or_else(Address::of_system, Address::of_user);
        let mut first = None;
        for address in &addresses {
            match address.connect() {
                Ok(stream) => return Bus::open(stream, !matches!(address, Address::Private(_))),
                Err(cause) => first.get_or_insert((address.name(), cause)),
            };
        }
        let (name, cause) = first.unwrap_or_else(|| (String::new(), io::ErrorKind::NotFound.into()));
        Err(Failure::Io(format!("connect to {name}"), cause))
    }

    /// Connects to a socket that a test listens on.
    #[cfg(test)]
    pub fn connect_to(path: &std::path::Path) -> Result<Bus> {
        let stream = UnixStream::connect(path).map_err(|e| Failure::Io(format!("connect to {}", path.display()), e))?;
        Bus::open(stream, false)
    }

    fn open(stream: UnixStream, routed: bool) -> Result<Bus> {
        let mut bus = Bus { stream, routed, serial: 0, ended: Vec::new() };
        bus.set_deadline(PATIENCE)?;
        bus.authenticate()?;
        if routed {
            let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
            bus.call(name, path, name, "Hello", vec![])?;
            let rule = format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'");
            bus.call(name, path, name, "AddMatch", vec![Value::Str(rule)])?;
            bus.manager("Subscribe", vec![])?;
        }
        Ok(bus)
    }

    fn set_deadline(&self, left: Duration) -> Result<()> {
        let left = Some(left.max(Duration::from_millis(1)));
        let set = self.stream.set_read_timeout(left).and_then(|()| self.stream.set_write_timeout(left));
        set.map_err(|e| Failure::Io("set the time limit of the connection to systemd".to_owned(), e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|e| Failure::Io("send to systemd".to_owned(), e))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream.read_exact(buffer).map_err(|e| Failure::Io("hear from systemd".to_owned(), e))
    }

    /// By the credentials of the socket: no id is named, so it works from within a user namespace as well.
    ///
    /// All is said at once, as sd-bus does. BEGIN must not come together with the first call: systemd would read both, and
    /// then wait for more before it looks at the call.
    fn authenticate(&mut self) -> Result<()> {
        self.write(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut line = self.line()?;
        if line.trim_end() == "DATA" {
            line = self.line()?;
        }
        if !line.starts_with("OK ") {
            let words = format!("{} (is this the manager of another user?)", line.trim_end());
            return Err(Failure::Refused { name: "authentication".to_owned(), words });
        }
        Ok(())
    }

    /// One line; by bytes, since what follows is not ours to read yet.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
            if line.len() > MAX_LINE {
                return Err(Failure::Protocol("a line of the authentication without end".to_owned()));
            }
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn message(&mut self) -> Result<Message> {
        let mut fixed = [0; FIXED_HEADER];
        self.read(&mut fixed)?;
        let length = Message::length(&fixed)
            .ok_or_else(|| Failure::Protocol(format!("a message's head, or one beyond {MAX_MESSAGE} bytes")))?;
        let mut bytes = vec![0; length];
        bytes[..FIXED_HEADER].copy_from_slice(&fixed);
        self.read(&mut bytes[FIXED_HEADER..])?;
        let message = Message::decode(&bytes).ok_or_else(|| Failure::Protocol("a message".to_owned()))?;
        if message.kind == Kind::Signal && message.member == "JobRemoved" {
            // Number, job, unit, result.
            if let [_, Value::Path(job), _, Value::Str(result)] = &message.body[..]
                && self.ended.len() < MAX_JOBS
            {
                self.ended.push((job.clone(), result.clone()));
            }
        }
        Ok(message)
    }

    /// Calls a method and waits for its answer.
    fn call(&mut self, to: &str, path: &str, interface: &str, member: &str, body: Vec<Value>) -> Result<Vec<Value>> {
        self.serial += 1;
        let mut message = Message::new(Kind::Call, self.serial);
        message.path = path.to_owned();
        message.interface = interface.to_owned();
        message.member = member.to_owned();
        if self.routed {
            message.destination = to.to_owned();
        }
        message.body = body;
        let deadline = Instant::now() + PATIENCE;
        self.set_deadline(PATIENCE)?;
        self.write(&message.encode())?;
        loop {
            let answer = self.message()?;
            match answer.kind {
                Kind::Return if answer.reply_to == message.serial => return Ok(answer.body),
                Kind::Error if answer.reply_to == message.serial => {
                    let words = answer.body.first().and_then(Value::text).unwrap_or_default().replace('\n', " ");
                    return Err(Failure::Refused { name: answer.error, words });
                }
                _ => self.set_deadline(deadline.saturating_duration_since(Instant::now()))?,
            }
        }
    }

    fn manager(&mut self, member: &str, body: Vec<Value>) -> Result<Vec<Value>> {
        self.call(SERVICE, OBJECT, MANAGER, member, body)
    }

    /// Waits until a job has ended; its result, `done` for success.
    fn job(&mut self, answer: &[Value]) -> Result<String> {
        let Some(Value::Path(job)) = answer.first() else {
            return Err(Failure::Protocol("the answer names no job".to_owned()));
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                return Ok(result.clone());
            }
            self.set_deadline(deadline.saturating_duration_since(Instant::now()))?;
            self.message()?;
        }
    }

    /// Makes a transient unit and waits until it is started.
    pub fn start(&mut self, unit: &str, properties: &[Property]) -> Result<String> {
        let auxiliary = Value::Array("(sa(sv))".to_owned(), vec![]);
        let body = vec![Value::str(unit), Value::str("replace"), as_value(properties), auxiliary];
        let answer = self.manager("StartTransientUnit", body)?;
        self.job(&answer)
    }

    /// Stops a unit and waits until it is stopped. One that is not there is no error.
    pub fn stop(&mut self, unit: &str) -> Result<()> {
        match self.manager("StopUnit", vec![Value::str(unit), Value::str("replace")]) {
            Err(failure) if failure.is("NoSuchUnit") => Ok(()),
            Err(failure) => Err(failure),
            // Whatever the job's result: what is left is seen in the file system.
            Ok(answer) => self.job(&answer).map(drop),
        }
    }

    /// Lets the manager forget a unit that failed, as one does whose processes ran out of memory.
    pub fn reset_failed(&mut self, unit: &str) -> Result<()> {
        match self.manager("ResetFailedUnit", vec![Value::str(unit)]) {
            Err(failure) if failure.is("NoSuchUnit") => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Changes properties until the unit ends.
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        self.manager("SetUnitProperties", vec![Value::str(unit), Value::Bool(true), as_value(properties)]).map(drop)
    }

    /// Moves processes into a unit's cgroup.
    pub fn attach(&mut self, unit: &str, beneath: &str, pid: u32) -> Result<()> {
        let pids = Value::Array("u".to_owned(), vec![Value::U32(pid)]);
        self.manager("AttachProcessesToUnit", vec![Value::str(unit), Value::str(beneath), pids]).map(drop)
    }

    fn get(&mut self, path: &str, interface: &str, name: &str) -> Result<String> {
        let body = vec![Value::str(interface), Value::str(name)];
        let answer = self.call(SERVICE, path, "org.freedesktop.DBus.Properties", "Get", body)?;
        match &answer[..] {
            [Value::Variant(value)] => value.text().map(str::to_owned),
            _ => None,
        }
        .ok_or_else(|| Failure::Protocol(format!("the property {name}")))
    }

    /// The cgroup of a scope.
    pub fn control_group(&mut self, unit: &str) -> Result<String> {
        let path = format!("{OBJECT}/unit/{}", escaped(unit));
        self.get(&path, "org.freedesktop.systemd1.Scope", "ControlGroup")
    }

    /// The manager's own cgroup, beneath which all units are: empty for the system's.
    pub fn root(&mut self) -> Result<String> {
        self.get(OBJECT, MANAGER, "ControlGroup")
    }

    /// systemd's version: 252 for `252.38-1~deb12u1` or `v252`.
    pub fn version(&mut self) -> Result<u32> {
        let text = self.get(OBJECT, MANAGER, "Version")?;
        version(&text).ok_or_else(|| Failure::Protocol(format!("the version {text:?}")))
    }
}

fn version(text: &str) -> Option<u32> {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A unit's name as a part of an object path: all but letters and digits (and a first digit) as `_` and hexadecimal.
fn escaped(name: &str) -> String {
    let one = |(at, byte): (usize, u8)| {
        let plain = byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && at > 0);
        if plain { char::from(byte).to_string() } else { format!("_{byte:02x}") }
    };
    name.bytes().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_become_object_paths() {
        assert_eq!(escaped("crio-1a.scope"), "crio_2d1a_2escope");
        assert_eq!(escaped("1.scope"), "_31_2escope");
    }

    #[test]
    fn versions_are_the_first_number() {
        assert_eq!([version("252.38-1~deb12u1"), version("v245"), version("x")], [Some(252), Some(245), None]);
    }

    #[test]
    fn bus_addresses_are_understood() {
        let name = |text| Address::parse(text).map(|address| address.name());
        assert_eq!(name("unix:path=/run/user/1/bus,guid=1f").as_deref(), Some("/run/user/1/bus"));
        assert_eq!(name("tcp:host=x;unix:guid=1,abstract=/tmp/a").as_deref(), Some("@/tmp/a"));
        assert_eq!(name("tcp:host=x"), None);
    }
}
