//! The server's own metrics for Prometheus, at `http://METRICS_ADDRESS/metrics`.
//!
//! | metric | what |
//! |---|---|
//! | `coracle_cri_calls_total{rpc,code}`, `coracle_cri_call_duration_seconds{rpc,code}` | calls that were answered |
//! | `coracle_cri_calls_running{rpc}` | calls that were not |
//! | `coracle_image_pulls_total{result}`, `coracle_image_pull_bytes_total` | pulls for CRI clients |
//! | `coracle_sandboxes{state,origin}`, `coracle_containers{state,origin}` | of `cri` clients and of `coracle run` (`local`) |
//! | `coracle_image_store_bytes`, `_inodes`, `coracle_writable_layers_bytes`, `_inodes` | the disk |
//! | `coracle_state_errors{part}` | 1 for what of this could not be read |
//! | `coracle_build_info{version}`, `process_*` | this program |
//!
//! What pods use is none of this: kubelet asks for that by the CRI. Counters are the process's, so they live in a static
//! and cost a lock and an addition for each call. The text is the plain format 0.0.4, which needs no library. There is no
//! authentication: the address should be a loopback one, and nothing here names a pod or an image.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::{ContainerFilter, Engine, SandboxFilter};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tonic::Code;

use crate::cmd::version::VERSION;

/// Upper bounds of the histogram's buckets, in seconds: from a status to a slow pull.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Names of calls that are kept apart: the CRI has some forty, and a client may ask for what does not exist.
const MAX_RPCS: usize = 64;
/// Where the others are counted.
const OTHER: &str = "other";
/// Clients at once.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to say what it wants, and to keep quiet between two wishes.
const PATIENCE: Duration = Duration::from_secs(30);
/// A pause when no connection can be accepted, because descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);

static COUNTERS: Mutex<Counters> = Mutex::new(Counters::new());

#[derive(Clone)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

struct Counters {
    rpcs: BTreeMap<String, Rpc>,
    pulls: [u64; 2],
    pulled: u64,
}

#[derive(Clone, Default)]
struct Rpc {
    running: u64,
    /// By the code's number.
    done: BTreeMap<i32, Durations>,
}

impl Counters {
    const fn new() -> Counters {
        Counters { rpcs: BTreeMap::new(), pulls: [0; 2], pulled: 0 }
    }

    fn rpc(&mut self, name: &str) -> &mut Rpc {
        let known = self.rpcs.contains_key(name) || self.rpcs.len() < MAX_RPCS;
        self.rpcs.entry(if known { name } else { OTHER }.to_owned()).or_default()
    }

    fn ended(&mut self, rpc: &str, code: Code, took: Duration) {
        let none = || Durations { buckets: [0; BUCKETS.len()], count: 0, sum: Duration::ZERO };
        let durations = self.rpc(rpc).done.entry(code as i32).or_insert_with(none);
        durations.count += 1;
        durations.sum += took;
        if let Some(bucket) = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound) {
            durations.buckets[bucket] += 1;
        }
    }
}

/// A counter is whole at every moment.
fn counters() -> MutexGuard<'static, Counters> {
    COUNTERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that runs, until this is dropped.
pub struct Call {
    rpc: String,
}

impl Call {
    /// A call begins.
    pub fn begin(rpc: &str) -> Call {
        counters().rpc(rpc).running += 1;
        Call { rpc: rpc.to_owned() }
    }

    /// It was answered.
    pub fn ended(&self, code: Code, took: Duration) {
        counters().ended(&self.rpc, code, took);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counters = counters();
        let rpc = counters.rpc(&self.rpc);
        rpc.running = rpc.running.saturating_sub(1);
    }
}

/// A pull for a client of the CRI has ended.
pub fn pulled(succeeded: bool, bytes: u64) {
    let mut counters = counters();
    counters.pulls[usize::from(succeeded)] += 1;
    counters.pulled += bytes;
}

/// Serves them until the server stops.
pub async fn serve(address: SocketAddr, engine: Engine, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("serve.metrics_address: listen on {address}"))?;
    tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        tokio::select! {
            () = accept(listener, engine) => {}
            () = stop => {}
        }
    });
    Ok(())
}

async fn accept(listener: TcpListener, engine: Engine) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    // It is never closed.
    while let Ok(place) = clients.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request| answer(engine.clone(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // A client that breaks off has nobody to tell of it.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(engine: Engine, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "there is only /metrics\n".into()));
    }
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return Ok(refused);
    }
    let mut text = Text::default();
    text.calls(&counters());
    state(&engine, &mut text).await;
    text.process();
    let mut response = plain(StatusCode::OK, text.out);
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// What there is, by state and by who made it.
type Census = HashMap<(&'static str, &'static str), u64>;

/// Sandboxes and containers.
fn census(engine: &Engine) -> coracle_engine::Result<(Census, Census)> {
    let (mut sandboxes, mut containers) = (Census::new(), Census::new());
    for (local, origin) in [(false, "cri"), (true, "local")] {
        for sandbox in engine.list_sandboxes(&SandboxFilter { local: Some(local), ..Default::default() })? {
            *sandboxes.entry((sandbox.state.as_str(), origin)).or_default() += 1;
        }
        for container in engine.list_containers(&ContainerFilter { local: Some(local), ..Default::default() })? {
            *containers.entry((container.state.as_str(), origin)).or_default() += 1;
        }
    }
    Ok((sandboxes, containers))
}

/// What the state folder and the disk say.
async fn state(engine: &Engine, text: &mut Text) {
    let of = engine.clone();
    let census = tokio::task::spawn_blocking(move || census(&of)).await.ok().and_then(Result::ok);
    let disk = engine.fs_stats().await.ok();
    if let Some((sandboxes, containers)) = &census {
        text.census("coracle_sandboxes", "Pod sandboxes by state", sandboxes);
        text.census("coracle_containers", "Containers by state", containers);
    }
    if let Some(disk) = &disk {
        let (images, layers) = (disk.images.usage, disk.containers.usage);
        text.one("coracle_image_store_bytes", "gauge", "Disk that the image store takes", images.bytes);
        text.one("coracle_image_store_inodes", "gauge", "Inodes that the image store takes", images.inodes);
        text.one("coracle_writable_layers_bytes", "gauge", "Disk that writable layers take", layers.bytes);
        text.one("coracle_writable_layers_inodes", "gauge", "Inodes that writable layers take", layers.inodes);
    }
    text.head("coracle_state_errors", "gauge", "What could not be read for this answer");
    text.line("coracle_state_errors", &[("part", "pods")], u64::from(census.is_none()));
    text.line("coracle_state_errors", &[("part", "disk")], u64::from(disk.is_none()));
}

/// The text as it grows.
#[derive(Default)]
struct Text {
    out: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.out.push_str(name);
        for (at, (key, label)) in labels.iter().enumerate() {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{key}=\"{label}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }

    fn census(&mut self, name: &str, help: &str, census: &Census) {
        self.head(name, "gauge", help);
        let mut all: Vec<_> = census.iter().collect();
        all.sort_unstable();
        for ((state, origin), count) in all {
            self.line(name, &[("state", state), ("origin", origin)], count);
        }
    }

    fn calls(&mut self, counters: &Counters) {
        let name = "coracle_cri_calls_total";
        self.head(name, "counter", "Calls that were answered, by their gRPC code");
        for (rpc, code, durations) in done(counters) {
            self.line(name, &[("rpc", rpc), ("code", &code)], durations.count);
        }
        let name = "coracle_cri_call_duration_seconds";
        self.head(name, "histogram", "Time until a call was answered, or until its stream began");
        for (rpc, code, durations) in done(counters) {
            let bucket = format!("{name}_bucket");
            let mut below = 0;
            for (count, bound) in durations.buckets.iter().zip(BUCKETS) {
                below += count;
                self.line(&bucket, &[("rpc", rpc), ("code", &code), ("le", &bound.to_string())], below);
            }
            self.line(&bucket, &[("rpc", rpc), ("code", &code), ("le", "+Inf")], durations.count);
            let labels = [("rpc", rpc), ("code", code.as_str())];
            self.line(&format!("{name}_sum"), &labels, durations.sum.as_secs_f64());
            self.line(&format!("{name}_count"), &labels, durations.count);
        }
        let name = "coracle_cri_calls_running";
        self.head(name, "gauge", "Calls that are not answered yet");
        for (rpc, of_it) in &counters.rpcs {
            self.line(name, &[("rpc", rpc)], of_it.running);
        }
        let name = "coracle_image_pulls_total";
        self.head(name, "counter", "Pulls for CRI clients");
        for (result, count) in ["failure", "success"].into_iter().zip(counters.pulls) {
            self.line(name, &[("result", result)], count);
        }
        self.one("coracle_image_pull_bytes_total", "counter", "Bytes fetched by those pulls", counters.pulled);
    }

    /// The conventional metrics of a process.
    fn process(&mut self) {
        self.head("coracle_build_info", "gauge", "The program");
        self.line("coracle_build_info", &[("version", VERSION)], 1);
        let Some(process) = Process::read() else { return };
        let one = "process_resident_memory_bytes";
        self.one(one, "gauge", "Resident memory size in bytes", process.resident);
        self.one("process_cpu_seconds_total", "counter", "CPU time in seconds", process.cpu);
        self.one("process_threads", "gauge", "Threads", process.threads);
        self.one("process_open_fds", "gauge", "Open descriptors", process.descriptors);
        self.one("process_start_time_seconds", "gauge", "Start, in seconds since the epoch", process.started);
    }
}

/// Answered calls in the order of their names and codes.
fn done(counters: &Counters) -> impl Iterator<Item = (&str, String, &Durations)> {
    counters.rpcs.iter().flat_map(|(rpc, of_it)| {
        of_it.done.iter().map(move |(code, durations)| {
            // As the other programs of a cluster write it.
            let code = match Code::from_i32(*code) {
                Code::Ok => "OK".to_owned(),
                code => format!("{code:?}"),
            };
            (rpc.as_str(), code, durations)
        })
    })
}

/// This process, by `/proc/self`.
struct Process {
    resident: u64,
    cpu: f64,
    threads: u64,
    descriptors: usize,
    started: f64,
}

impl Process {
    fn read() -> Option<Process> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // What follows the name, which may have blanks: field 3 on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??.max(1) as f64;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(Process {
            resident: number(24)? * u64::try_from(page).ok()?,
            cpu: (number(14)? + number(15)?) as f64 / ticks,
            threads: number(20)?,
            descriptors: std::fs::read_dir("/proc/self/fd").ok()?.count(),
            started: boot + number(22)? as f64 / ticks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counters: &Counters) -> String {
        let mut text = Text::default();
        text.calls(counters);
        text.out
    }

    #[test]
    fn calls_are_counted_by_name_and_code_with_their_durations() {
        let mut counters = Counters::new();
        counters.ended("Version", Code::Ok, Duration::from_micros(900));
        counters.ended("Version", Code::Ok, Duration::from_millis(30));
        counters.ended("Version", Code::NotFound, Duration::from_secs(3600));
        counters.rpc("Exec").running += 1;
        let text = text(&counters);
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        has("coracle_cri_calls_total{rpc=\"Version\",code=\"OK\"} 2");
        has("coracle_cri_calls_total{rpc=\"Version\",code=\"NotFound\"} 1");
        has("coracle_cri_call_duration_seconds_bucket{rpc=\"Version\",code=\"OK\",le=\"0.001\"} 1");
        has("coracle_cri_call_duration_seconds_bucket{rpc=\"Version\",code=\"OK\",le=\"0.05\"} 2");
        has("coracle_cri_call_duration_seconds_bucket{rpc=\"Version\",code=\"OK\",le=\"+Inf\"} 2");
        has("coracle_cri_call_duration_seconds_bucket{rpc=\"Version\",code=\"NotFound\",le=\"600\"} 0");
        has("coracle_cri_call_duration_seconds_bucket{rpc=\"Version\",code=\"NotFound\",le=\"+Inf\"} 1");
        has("coracle_cri_call_duration_seconds_sum{rpc=\"Version\",code=\"OK\"} 0.0309");
        has("coracle_cri_calls_running{rpc=\"Exec\"} 1");
    }

    #[test]
    fn names_that_a_client_makes_up_do_not_grow_the_table() {
        let mut counters = Counters::new();
        for n in 0..10 * MAX_RPCS {
            counters.ended(&n.to_string(), Code::Unimplemented, Duration::ZERO);
        }
        assert!(counters.rpcs.len() <= MAX_RPCS + 1);
        assert!(counters.rpcs.contains_key(OTHER));
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample_and_labels_are_quoted() {
        let mut text = Text::default();
        text.line("x", &[("a", "1\"\\\n")], 1);
        assert_eq!(text.out, "x{a=\"1\\\"\\\\\\n\"} 1\n");
        text.process();
        for line in text.out.lines() {
            let sample = line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
            assert!(line.starts_with("# ") || sample, "{line}");
        }
        assert!(text.out.contains("process_start_time_seconds 1"), "{}", text.out);
    }
}
