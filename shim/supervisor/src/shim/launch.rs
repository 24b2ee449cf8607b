//! Starting and ending the pod's shim.
//!
//! It is started as containerd starts it: `SHIM -namespace coracle -address A -id POD start` in its folder, with the
//! address of the event service in `TTRPC_ADDRESS`. It prints the address it listens at, as text or, since containerd
//! 1.7, as JSON with the version of its API.

use super::Shim;
use super::client::Client;
use crate::failure::{Fail, Failure};
use crate::remote::SHORT;
use coracle_proto::ttrpc::{Code, method};
use coracle_proto::{Empty, task};
use coracle_runtime::cgroup::{Cgroup, CgroupOptions, CgroupPath};
use nix::fcntl::{Flock, FlockArg};
use nix::libc::SIGKILL;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The file that tells where it listens; with no address in it while it is being started.
const ADDRESS: &str = "listening.json";
/// The same as text, as some shims write it themselves: all there is when its starter was killed.
const OWN_ADDRESS: &str = "address";
/// The fifo for its messages.
pub const LOG: &str = "log";
/// Ours among containerd's namespaces.
const NAMESPACE: &str = "coracle";
/// The newest version of the shim API that is understood.
const MAX_VERSION: u32 = 3;
/// What a failed start says of itself is shown up to here.
const MAX_WORDS: usize = 1000;
/// The longest socket path the kernel takes.
const MAX_SOCKET_PATH: usize = 107;
/// How long it may take to end once it was asked, and how often we look.
const END_WAIT: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(10);

/// Where a shim listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// A URL, or a path.
    pub address: String,
    /// The version of its API.
    #[serde(default = "oldest")]
    pub version: u32,
    /// `ttrpc`, or what we do not speak.
    #[serde(default)]
    pub protocol: String,
    /// The cgroup it was started in; empty for the supervisor's.
    #[serde(default)]
    cgroup: String,
}

fn oldest() -> u32 {
    2
}

impl Address {
    /// What the shim printed.
    fn parse(text: &str) -> Result<Address, String> {
        let text = text.trim();
        let address = match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| format!("its address {text:?}: {error}"))?,
            false => {
                Address { address: text.into(), version: oldest(), protocol: String::new(), cgroup: String::new() }
            }
        };
        if !matches!(address.protocol.as_str(), "" | "ttrpc") {
            return Err(format!("it speaks {}, and only ttrpc is supported", address.protocol));
        }
        if address.version > MAX_VERSION {
            return Err(format!(
                "it has version {} of the API, and {MAX_VERSION} is the newest known",
                address.version
            ));
        }
        address.path().map(|_| address)
    }

    /// The path of its socket.
    pub fn path(&self) -> Result<PathBuf, String> {
        let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
        match path.starts_with('/') {
            true => Ok(path.into()),
            false => Err(format!("its address {:?} is no path of a unix socket", self.address)),
        }
    }
}

/// Where the shim of this folder listens.
pub fn read_address(folder: &Path) -> io::Result<Address> {
    let address: Address = serde_json::from_slice(&fs::read(folder.join(ADDRESS))?)?;
    match address.address.is_empty() {
        false => Ok(address),
        true => Ok(Address { address: fs::read_to_string(folder.join(OWN_ADDRESS))?.trim().to_owned(), ..address }),
    }
}

fn write_address(folder: &Path, address: &Address) -> io::Result<()> {
    let new = folder.join(".listening.json.new");
    fs::write(&new, serde_json::to_vec(address)?)?;
    fs::rename(&new, folder.join(ADDRESS))
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Failure {
    Code::Unknown.failure(format!("{what}: {error}"))
}

/// Makes a shim's folder with the fifo for its messages; returns the fifo's path. The supervisor reads it.
pub fn prepare(folder: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).create(folder)?;
    let fifo = folder.join(LOG);
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok(fifo)
}

/// A connection to the pod's shim, which is started if it does not run. Only in a worker: this process changes its
/// cgroup and its mount namespace for it.
pub fn started(shim: &Shim) -> Result<Client, Failure> {
    let path = shim.folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = lock.map_err(|error| failed(format!("open {}", path.display()), error))?;
    // Released when it closes. Its flag keeps it from the shim.
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| failed(format!("lock {}", path.display()), error))?;
    match Client::of(&shim.folder) {
        Err(failure) if failure.code == Code::Unavailable => start(shim),
        known => known,
    }
}

fn start(shim: &Shim) -> Result<Client, Failure> {
    let what = format!("start shim {}", shim.binary.display());
    let config = json!({
        "ociVersion": "1.0.2",
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": shim.sandbox,
        },
    });
    let file = shim.folder.join("config.json");
    fs::write(&file, config.to_string()).map_err(|error| failed(format!("write {}", file.display()), error))?;
    let cgroup = enter_cgroup(shim).map_err(|error| failed(&what, error))?;
    let none = Address { address: String::new(), version: oldest(), protocol: String::new(), cgroup };
    let _ = fs::remove_file(shim.folder.join(OWN_ADDRESS));
    write_address(&shim.folder, &none).map_err(|error| failed(&what, error))?;
    coracle_runtime::leave_mount_namespace(shim.folder.parent().unwrap_or(&shim.folder))?;

    let events = events_address(&shim.folder);
    let mut command = Command::new(&shim.binary);
    command.args(["-namespace", NAMESPACE, "-address", &events, "-publish-binary", "", "-id", &shim.sandbox, "start"]);
    command.current_dir(&shim.folder).env("TTRPC_ADDRESS", &events).env("GRPC_ADDRESS", &events);
    command.env("NAMESPACE", NAMESPACE).env("MAX_SHIM_VERSION", MAX_VERSION.to_string());
    crate::foreign::forget_own_environment(&mut command);
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&what, error))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().replace('\n', "; ").chars().take(MAX_WORDS).collect();
        return Err(failed(what, format!("{}: {words}", output.status)));
    }
    let address = Address::parse(&String::from_utf8_lossy(&output.stdout)).map_err(|why| failed(&what, why))?;
    let address = Address { cgroup: none.cgroup, ..address };
    let client = Client::connect(&address)?;
    // If that fails nobody finds it again, and its cgroup has it killed with the pod.
    write_address(&shim.folder, &address).map_err(|error| failed(&what, error))?;
    Ok(client)
}

/// Moves this process to a cgroup of the shim's below the pod's, where its child then begins.
fn enter_cgroup(shim: &Shim) -> Result<String, coracle_runtime::cgroup::Error> {
    if shim.cgroup.is_empty() {
        return Ok(String::new());
    }
    let path = format!("{}/shim", shim.cgroup);
    let cgroup = CgroupOptions::new(Some(Path::new(&path)), "shim");
    Cgroup::create(&cgroup, None)?.join(std::process::id() as i32)?;
    Ok(path)
}

/// The supervisor's own socket takes the events. A path that is too long is told from where the shim is.
fn events_address(folder: &Path) -> String {
    let socket = folder.parent().unwrap_or(folder).join(crate::sandbox::SOCKET).to_string_lossy().into_owned();
    if socket.len() <= MAX_SOCKET_PATH { socket } else { format!("../{}", crate::sandbox::SOCKET) }
}

/// Ends the shim of a pod whose containers are all gone, and takes away what it leaves on the machine. No shim is no
/// error.
pub fn end(folder: &Path, sandbox: &str) -> Result<(), Failure> {
    let Ok(text) = fs::read(folder.join(ADDRESS)) else { return Ok(()) };
    let started: Address = serde_json::from_slice(&text).map_err(|error| failed("end the shim", error))?;
    let listening = read_address(folder).ok();
    if let Some(address) = &listening {
        shut_down(address, sandbox);
    }
    if !started.cgroup.is_empty() {
        clear(&started.cgroup).map_err(|error| failed("end the shim", error))?;
    }
    // The name of a file that is no socket was not made by a shim.
    if let Some(socket) = listening.and_then(|address| address.path().ok())
        && fs::symlink_metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket())
    {
        let _ = fs::remove_file(&socket);
    }
    let _ = fs::remove_dir_all(folder);
    Ok(())
}

/// Asks a shim to end and waits until it has. One that does not is killed with its cgroup.
fn shut_down(address: &Address, sandbox: &str) {
    let Ok(mut client) = Client::connect(address) else { return };
    let request = task::ShutdownRequest { id: sandbox.to_owned(), now: true };
    // It may end before it answers.
    let _ = client.call::<Empty>(method::SHUTDOWN, &request, Some(SHORT));
    let deadline = Instant::now() + END_WAIT;
    while Client::connect(address).is_ok() && Instant::now() < deadline {
        std::thread::sleep(END_PAUSE);
    }
}

fn clear(path: &str) -> Result<(), coracle_runtime::cgroup::Error> {
    match Cgroup::find(&CgroupPath::new(Some(Path::new(path)), path)?)? {
        Some(cgroup) => cgroup.kill_all(SIGKILL).and_then(|()| cgroup.remove()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_address_are_understood() {
        let plain = Address::parse("unix:///run/containerd/s/1\n").unwrap();
        assert_eq!((plain.version, plain.path().unwrap()), (2, PathBuf::from("/run/containerd/s/1")));
        let json = Address::parse(r#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#).unwrap();
        assert_eq!((json.version, json.path().unwrap()), (3, PathBuf::from("/s")));
        let error = |text: &str| Address::parse(text).unwrap_err();
        assert!(error(r#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#).contains("only ttrpc"));
        assert!(error(r#"{"version":4,"address":"unix:///s"}"#).contains("version 4"));
        assert!(error("vsock://3:1024").contains("no path"));
    }

    #[test]
    fn a_long_path_of_the_event_socket_is_told_from_the_shims_folder() {
        assert_eq!(events_address(Path::new("/p/shim")), "/p/supervisor.sock");
        assert_eq!(events_address(Path::new(&format!("/{}/shim", "p".repeat(100)))), "../supervisor.sock");
    }
}
