//! Speaking with the guest's supervisor, for workers.
//!
//! Until a guest has booted its port says nothing: who connects waits for its first answer. A machine that has died in the
//! meantime is said to have, with the last words of its console.

use super::net::Network;
use super::{DIAL_PAUSE, Machine, TASK_SOCKET};
use crate::failure::{Fail, Failure};
use crate::shim::client::Client;
use coracle_proto::any;
use coracle_proto::coracle::{GuestSetUpRequest, GuestSetUpResponse, InfoRequest, InfoResponse, SandboxOptions};
use coracle_proto::sandbox::{
    CreateSandboxRequest, CreateSandboxResponse, SandboxStatusRequest, SandboxStatusResponse, StartSandboxRequest,
    StartSandboxResponse,
};
use coracle_proto::ttrpc::{Code, method, service};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Says that the guest has answered once.
const UP: &str = "up";
/// How long the guest may take for each step of its making.
const STEP: Duration = Duration::from_secs(20);
/// Random bytes for the guest.
const SEED: usize = 64;

/// A connection to the guest's supervisor; of a guest that boots, when it has.
pub fn client(folder: &Path) -> Result<Client, Failure> {
    if folder.join(UP).exists() {
        Machine::living(folder)?;
        return connect(folder);
    }
    let machine = Machine::living(folder)?;
    let deadline = Instant::now() + machine.boot_time_left();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let failure = match connect(folder).and_then(|mut client| info(&mut client, left).map(|_| client)) {
            Ok(client) => {
                let _ = fs::write(folder.join(UP), []);
                return Ok(client);
            }
            Err(failure) => failure,
        };
        Machine::living(folder)?;
        if Instant::now() >= deadline {
            let words = super::console::last_words(folder);
            let text = format!("the virtual machine has not booted in time: {}; its console: {words}", failure.message);
            return Err(Code::DeadlineExceeded.failure(text));
        }
        std::thread::sleep(DIAL_PAUSE);
    }
}

fn connect(folder: &Path) -> Result<Client, Failure> {
    let socket = super::connect(folder, TASK_SOCKET).and_then(|socket| {
        socket.set_nonblocking(false)?;
        Ok(socket)
    });
    let socket =
        socket.map_err(|error| Code::Unavailable.failure(format!("connect to the virtual machine: {error}")))?;
    Ok(Client::over(socket, "the virtual machine"))
}

fn info(client: &mut Client, patience: Duration) -> Result<InfoResponse, Failure> {
    client.call_of(service::CONTROL, method::INFO, &InfoRequest {}, Some(patience.max(DIAL_PAUSE)))
}

/// Makes the guest the pod: sets it up with this network, and makes its sandbox. Answers the pid of the first process of
/// the pod's PID namespace in the guest, or 0. It can be repeated.
pub fn set_up(folder: &Path, sandbox: &str, network: Network, options: &SandboxOptions) -> Result<i32, Failure> {
    let mut client = client(folder)?;
    // Until it is told it has no name; a machine from a template may have one.
    let id = match info(&mut client, STEP)?.sandbox_id {
        id if id.is_empty() => sandbox.to_owned(),
        id => id,
    };
    let (interfaces, routes, neighbours) = network;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_nanos = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    let request = GuestSetUpRequest { unix_nanos, seed: seed()?, interfaces, routes, neighbours };
    let _: GuestSetUpResponse = client.call_of(service::GUEST, method::SET_UP, &request, Some(STEP))?;
    let options = Some(any::pack(options));
    let request = CreateSandboxRequest { sandbox_id: id.clone(), options, ..Default::default() };
    match client.call_of::<CreateSandboxResponse>(service::SANDBOX, method::CREATE_SANDBOX, &request, Some(STEP)) {
        Err(failure) if failure.code != Code::AlreadyExists => return Err(failure),
        _ => {}
    }
    let request = StartSandboxRequest { sandbox_id: id.clone() };
    let _: StartSandboxResponse = client.call_of(service::SANDBOX, method::START_SANDBOX, &request, Some(STEP))?;
    let request = SandboxStatusRequest { sandbox_id: id, verbose: true };
    let status: SandboxStatusResponse =
        client.call_of(service::SANDBOX, method::SANDBOX_STATUS, &request, Some(STEP))?;
    Ok(pid_of(&status))
}

fn pid_of(status: &SandboxStatusResponse) -> i32 {
    status.info.get("pid_ns_pid").and_then(|pid| pid.parse().ok()).unwrap_or(0)
}

fn seed() -> Result<Vec<u8>, Failure> {
    let mut seed = vec![0; SEED];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
    read.map_err(|error| Code::Unknown.failure(format!("read /dev/urandom: {error}")))?;
    Ok(seed)
}
