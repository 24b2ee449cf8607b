//! Probes and hooks as they are meant.

use serde::{Deserialize, Serialize};

pub use super::container::PortRef;
use super::pod::{choice, required, value};
use super::raw::{self, At, IntOrString, List, Place};
use super::{Fault, names};

/// What a hook does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Runs a command in the container.
    Exec(Vec<String>),
    /// Asks a web server.
    HttpGet(HttpGet),
    /// Opens a connection.
    TcpSocket {
        /// The pod's address where none is given.
        host: Option<String>,
        /// Its port.
        port: PortRef,
    },
    /// Waits this many seconds.
    Sleep(u64),
}

/// A request to a web server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpGet {
    /// The pod's address where none is given.
    pub host: Option<String>,
    /// Its path; begins with `/`, and may have a query.
    pub path: String,
    /// Its port.
    pub port: PortRef,
    /// Whether it is HTTPS.
    pub https: bool,
    /// Headers, in order.
    pub headers: Vec<(String, String)>,
}

/// How a probe looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// Runs a command in the container.
    Exec(Vec<String>),
    /// Asks a web server.
    HttpGet(HttpGet),
    /// Opens a connection.
    TcpSocket {
        /// The pod's address where none is given.
        host: Option<String>,
        /// Its port.
        port: PortRef,
    },
    /// Asks gRPC's health service.
    Grpc {
        /// Its port.
        port: u16,
        /// The service asked about; may be empty.
        service: String,
    },
}

/// The hooks of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// After its start.
    pub post_start: Option<Action>,
    /// Before it is asked to stop.
    pub pre_stop: Option<Action>,
    /// The signal that asks it to stop, such as `SIGQUIT`.
    pub stop_signal: Option<String>,
}

/// A probe: times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How it looks.
    pub action: ProbeAction,
    /// From the container's start to the first look.
    pub initial_delay: u32,
    /// After which a look has failed.
    pub timeout: u32,
    /// Between looks.
    pub period: u32,
    /// Successes in a row that count.
    pub success: u32,
    /// Failures in a row that count.
    pub failure: u32,
    /// Instead of the pod's grace period, when the probe ends the container.
    pub grace: Option<u64>,
}

/// `terminationMessagePolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessagePolicy {
    /// What the container wrote into its message file.
    #[default]
    File,
    /// The end of its log, if it failed and wrote none.
    FallbackToLogsOnError,
}

/// Which probe it is: their rules differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

/// Most seconds and counts of a probe, as in Kubernetes.
const MAX: i64 = i32::MAX as i64;

impl Probe {
    /// Gives a probe its meaning.
    pub fn convert(at: Option<At<raw::Probe>>, which: Which) -> Result<Option<Probe>, Fault> {
        let Some(At { value: raw, place }) = at else { return Ok(None) };
        let success = number(raw.success.as_ref(), 1, 1)?;
        if let (Which::Startup | Which::Liveness, Some(at)) = (which, raw.success.filter(|_| success != 1)) {
            return Err(at.fault("must be 1: one success ends a streak of failures"));
        }
        let grace = match raw.grace {
            Some(at) if which == Which::Readiness => {
                return Err(at.fault("goes with probes that end the container: a readiness probe does not"));
            }
            Some(at) => Some(u64::from(number(Some(&at), 1, 1)?)),
            None => None,
        };
        let actions = [
            raw.exec.map(|at| command(at).map(ProbeAction::Exec)),
            raw.http_get.map(|at| http(at).map(ProbeAction::HttpGet)),
            raw.tcp_socket.map(|at| tcp(at).map(|(host, port)| ProbeAction::TcpSocket { host, port })),
            raw.grpc.map(|at| {
                let port = required(at.value.port, &at.place, "port")?;
                let port = super::container::port_number(&port)?;
                Ok(ProbeAction::Grpc { port, service: value(at.value.service).unwrap_or_default() })
            }),
        ];
        Ok(Some(Probe {
            action: one(actions, &place, "exec, httpGet, tcpSocket, grpc")?,
            initial_delay: number(raw.initial_delay.as_ref(), 0, 0)?,
            timeout: number(raw.timeout.as_ref(), 1, 1)?,
            period: number(raw.period.as_ref(), 10, 1)?,
            success,
            failure: number(raw.failure.as_ref(), 3, 1)?,
            grace,
        }))
    }
}

/// A number of at least `least`; 0 stands for the default, as in Kubernetes.
fn number(at: Option<&At<i64>>, default: u32, least: i64) -> Result<u32, Fault> {
    match at {
        None => Ok(default),
        Some(at) if at.value == 0 => Ok(default),
        Some(at) if (least..=MAX).contains(&at.value) => Ok(u32::try_from(at.value).unwrap_or(default)),
        Some(at) => Err(at.fault(format!("{} is not from {least} to {MAX}", at.value))),
    }
}

/// The one that is given.
fn one<T, const N: usize>(choices: [Option<Result<T, Fault>>; N], place: &Place, names: &str) -> Result<T, Fault> {
    let mut given = choices.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => Err(place.fault(format!("more than one of {names}: choose one"))),
        (None, _) => Err(place.fault(format!("one of {names} is missing"))),
    }
}

fn command(at: At<raw::ExecAction>) -> Result<Vec<String>, Fault> {
    let words: List<String> = value(at.value.command).unwrap_or_default();
    match words.is_empty() {
        true => Err(at.place.fault("command is missing")),
        false => Ok(words.into_iter().map(|at| at.value).collect()),
    }
}

fn http(at: At<raw::HttpGetAction>) -> Result<HttpGet, Fault> {
    let At { value: raw, place } = at;
    let port = port(raw.port, &place)?;
    let scheme = raw.scheme.filter(|at| !at.value.is_empty());
    let https = scheme.as_ref().map(|at| choice(at, &[("HTTP", false), ("HTTPS", true)])).transpose()?;
    let mut headers = Vec::new();
    for item in value(raw.headers).unwrap_or_default() {
        let name = required(item.value.name, &item.place, "name")?;
        if name.value.is_empty()
            || !name.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&b))
        {
            return Err(name.fault(format!("{:?} is not the name of a header", name.value)));
        }
        let text = required(item.value.value, &item.place, "value")?;
        if text.value.contains(['\r', '\n']) {
            return Err(text.fault("the value of a header is one line"));
        }
        headers.push((name.value, text.value));
    }
    let path = value(raw.path).filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Ok(HttpGet { host: host(raw.host), path, port, https: https.unwrap_or(false), headers })
}

fn tcp(at: At<raw::TcpSocketAction>) -> Result<(Option<String>, PortRef), Fault> {
    Ok((host(at.value.host), port(at.value.port, &at.place)?))
}

fn host(at: Option<At<String>>) -> Option<String> {
    value(at).filter(|host| !host.is_empty())
}

fn port(at: Option<At<IntOrString>>, place: &Place) -> Result<PortRef, Fault> {
    PortRef::convert(&required(at, place, "port")?)
}

/// Gives hooks their meaning; `grace` is how long the pod may take to stop.
pub fn hooks(at: Option<At<raw::Lifecycle>>, grace: u64) -> Result<Lifecycle, Fault> {
    let Some(raw) = value(at) else { return Ok(Lifecycle::default()) };
    let signal = raw.stop_signal.filter(|at| !at.value.is_empty());
    if let Some(at) = &signal {
        names::signal(&at.value).map_err(|why| at.fault(why))?;
    }
    Ok(Lifecycle {
        post_start: hook(raw.post_start, grace)?,
        pre_stop: hook(raw.pre_stop, grace)?,
        stop_signal: value(signal),
    })
}

fn hook(at: Option<At<raw::LifecycleHandler>>, grace: u64) -> Result<Option<Action>, Fault> {
    let Some(At { value: raw, place }) = at else { return Ok(None) };
    let actions = [
        raw.exec.map(|at| command(at).map(Action::Exec)),
        raw.http_get.map(|at| http(at).map(Action::HttpGet)),
        raw.tcp_socket.map(|at| tcp(at).map(|(host, port)| Action::TcpSocket { host, port })),
        raw.sleep.map(|at| {
            let seconds = required(at.value.seconds, &at.place, "seconds")?;
            match u64::try_from(seconds.value) {
                Ok(count) if count <= grace => Ok(Action::Sleep(count)),
                _ => Err(seconds.fault(format!("{} is not from 0 to {grace}, the grace period", seconds.value))),
            }
        }),
    ];
    one(actions, &place, "exec, httpGet, tcpSocket, sleep").map(Some)
}
