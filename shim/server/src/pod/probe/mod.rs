//! The probes of a running container: when they look is [`machine`]'s, how is [`look`](self)'s.
//!
//! A startup probe comes first and alone; once it has succeeded, liveness and readiness run side by side until the
//! container ends or the pod is stopped. Each failure is an event, and each change of a verdict is told.

pub mod dial;
pub mod grpc;
pub mod http;
pub mod machine;
pub mod url;

use std::time::Duration;

use coracle_engine::Error;

use self::http::MAX_BODY;
use self::machine::{Machine, Timing, Which};
use super::reach::Reach;
use crate::kube::container::Container;
use crate::kube::lifecycle::{Probe, ProbeAction};
use crate::time;

/// Who asks; servers may look for the first word.
const AGENT: &str = concat!("kube-probe/coracle-", env!("CARGO_PKG_VERSION"));
/// A probe that could not even be made is tried this often at once, as with kubelet.
const TRIES: usize = 3;

/// One incarnation of a container to be probed.
pub struct Probed {
    /// The container.
    pub container: Container,
    /// Its id in the engine.
    pub id: String,
    /// When it started.
    pub started_at: i64,
    /// Its startup probe has succeeded already.
    pub started: bool,
}

/// What a look came to.
enum Look {
    Success,
    /// It succeeded, and something is odd.
    Odd(String),
    Failure(String),
    /// Nothing can be said of the container.
    Error(String),
}

/// Whether a container has anything to be probed by.
pub fn any(container: &Container) -> bool {
    container.startup.is_some() || container.liveness.is_some() || container.readiness.is_some()
}

/// Probes until there is nothing more to ask; `tell` hears each change of a verdict. Dropped, it ends.
pub async fn watch(reach: &Reach, probed: &Probed, tell: impl Fn(Which, bool)) {
    if let Some(probe) = probed.container.startup.as_ref().filter(|_| !probed.started)
        && run(reach, probed, Which::Startup, probe, &tell).await != Some(true)
    {
        return;
    }
    let one = async |which, probe: &Option<Probe>| {
        if let Some(probe) = probe {
            run(reach, probed, which, probe, &tell).await;
        }
    };
    tokio::join!(one(Which::Liveness, &probed.container.liveness), one(Which::Readiness, &probed.container.readiness));
}

/// Runs one probe to its last verdict.
async fn run(reach: &Reach, probed: &Probed, which: Which, probe: &Probe, tell: &impl Fn(Which, bool)) -> Option<bool> {
    let timing = Timing {
        initial_delay: probe.initial_delay,
        period: probe.period,
        success: probe.success,
        failure: probe.failure,
    };
    let mut machine = Machine::new(which, timing);
    tokio::time::sleep(machine.first(probed.started_at, time::now())).await;
    loop {
        let began = time::now();
        if let Some(success) = look_and_record(reach, probed, which, probe).await
            && let Some(verdict) = machine.take(success)
        {
            tell(which, verdict);
            if machine.is_over() {
                return Some(verdict);
            }
        }
        tokio::time::sleep(machine.next(began, time::now())).await;
    }
}

/// One look, with its event; None if nothing can be said.
async fn look_and_record(reach: &Reach, probed: &Probed, which: Which, probe: &Probe) -> Option<bool> {
    let mut look = look(reach, probed, probe).await;
    for _ in 1..TRIES {
        if matches!(look, Look::Error(_)) {
            look = self::look(reach, probed, probe).await;
        }
    }
    let (on, title) = (reach.on(&probed.container.name), which.title());
    match look {
        Look::Success => Some(true),
        Look::Odd(told) => {
            reach.recorder.warning(on, "ProbeWarning", format!("{title} probe warning: {told}"));
            Some(true)
        }
        Look::Failure(told) => {
            reach.recorder.warning(on, "Unhealthy", format!("{title} probe failed: {told}"));
            Some(false)
        }
        Look::Error(told) => {
            reach.recorder.warning(on, "Unhealthy", format!("{title} probe errored: {told}"));
            None
        }
    }
}

async fn look(reach: &Reach, probed: &Probed, probe: &Probe) -> Look {
    let timeout = Duration::from_secs(probe.timeout.into());
    let container = &probed.container;
    match &probe.action {
        ProbeAction::Exec(command) => exec(reach, &probed.id, command, timeout).await,
        ProbeAction::HttpGet(get) => {
            let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            match tokio::time::timeout(timeout, reach.get(container, get, AGENT)).await {
                Err(_) => Look::Failure(format!("Get {:?}: {late}", get.path)),
                Ok(Err(why)) => Look::Failure(why),
                Ok(Ok(answer)) if answer.led_away => {
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    Look::Odd(format!("Probe terminated redirects, Response body: {body}"))
                }
                Ok(Ok(answer)) if (200..400).contains(&answer.status) => Look::Success,
                Ok(Ok(answer)) => Look::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
            }
        }
        ProbeAction::TcpSocket { host, port } => {
            match tokio::time::timeout(timeout, reach.connect(container, host.as_deref(), port)).await {
                Err(_) => Look::Failure(format!("dial tcp port {port}: i/o timeout")),
                Ok(Err(why)) => Look::Failure(why),
                Ok(Ok(())) => Look::Success,
            }
        }
        ProbeAction::Grpc { port, service } => {
            let host = match reach.host(None) {
                Ok(host) => host,
                Err(why) => return Look::Error(why),
            };
            let dialer = match reach.dialer(None) {
                Ok(dialer) => dialer,
                Err(why) => return Look::Error(why),
            };
            match grpc::check(grpc::Target { dialer, host, port: *port }, service, AGENT, timeout).await {
                Ok(()) => Look::Success,
                Err(why) => Look::Failure(why),
            }
        }
    }
}

async fn exec(reach: &Reach, id: &str, command: &[String], timeout: Duration) -> Look {
    match reach.exec(id, command, Some(timeout)).await {
        Ok(outcome) if outcome.code == 0 => Look::Success,
        Ok(outcome) => {
            let mut said = outcome.stdout;
            said.extend_from_slice(&outcome.stderr);
            said.truncate(MAX_BODY);
            Look::Failure(String::from_utf8_lossy(&said).into_owned())
        }
        Err(Error::Deadline { .. }) => {
            Look::Failure(format!("command timed out: {:?} timed out after {timeout:?}", command.join(" ")))
        }
        Err(error) => Look::Error(error.to_string()),
    }
}
