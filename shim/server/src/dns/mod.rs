//! Names of services and pods: a small DNS server for pods, and what a pod's resolv.conf says of it.
//!
//! | file | job |
//! |---|---|
//! | `wire` | messages, read with care and written |
//! | `zone` | what the names of the cluster's domain stand for |
//! | `forward` | asking the machine's own servers for all other names |
//! | `server` | the process |
//! | `resolver` | a pod's resolver settings, by kubelet's rules |
//!
//! A pod with `dnsPolicy: ClusterFirst` asks the server if there is a Service at its start, or if it has a subdomain.
//! Without either there would be nothing that the server knows and the machine's own do not, so the pod has the machine's
//! resolv.conf, and no process is started.

pub mod forward;
pub mod resolver;
pub mod server;
pub mod wire;
pub mod zone;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_engine::{Engine, lock};

use server::Places;

/// How long a server may take to come up, on a machine that is busy.
const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// The offset of the server's address in the service subnet: 10.96.0.10, as installers of Kubernetes have it.
const OFFSET: u32 = 10;

/// The service address of the server.
pub fn address(engine: &Engine) -> Ipv4Addr {
    engine.config().network.service_subnet.nth(OFFSET)
}

/// Where the server listens; it is started if none lives.
pub fn ensure(engine: &Engine) -> Result<SocketAddrV4> {
    let places = Places::of(&engine.paths().state);
    let ip = engine.network().gateway()?;
    let deadline = Instant::now() + START;
    let mut started = false;
    loop {
        if lock::holder(&places.lock())?.lives() {
            let told = fs::read_to_string(places.address()).ok();
            if let Some(address) = told.and_then(|text| text.trim().parse().ok()) {
                return Ok(address);
            }
        } else if !started {
            start(engine, ip).context("start the DNS server")?;
            started = true;
        }
        if Instant::now() > deadline {
            bail!("the DNS server did not come up within {} s", START.as_secs());
        }
        sleep(POLL);
    }
}

/// Whether a server lives.
pub fn lives(engine: &Engine) -> Result<bool> {
    Ok(lock::holder(&Places::of(&engine.paths().state).lock())?.lives())
}

fn start(engine: &Engine, ip: Ipv4Addr) -> Result<()> {
    let program = std::env::current_exe().context("find the running program")?;
    let mut command = Command::new(program);
    let paths = engine.paths();
    command.arg("--root").arg(&paths.root).arg("--state").arg(&paths.state).arg("--log-dir").arg(&paths.logs);
    command.args(["dns", "--listen", &ip.to_string()]);
    let network = &engine.config().network;
    if !network.cni_for_local_pods {
        command.args(["--clients", &network.subnet.to_string()]);
    }
    // A process group of its own until it has a session of its own: a Ctrl-C here is not meant for it.
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().context("run coracle dns")?;
    // It ends at once, its work done by a child; a foreground run must not keep it as a zombie.
    let status = child.wait().context("wait for coracle dns")?;
    match status.success() {
        true => Ok(()),
        false => bail!("coracle dns: {status}"),
    }
}
