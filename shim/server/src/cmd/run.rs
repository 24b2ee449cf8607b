//! `coracle run`: the pods of Kubernetes YAML, and what they refer to.
//!
//! In the foreground the command itself tends the pods: it applies their restart policies and writes their logs until
//! they have ended. With `-d` it leaves once they are started, and their supervisors call `coracle tend`.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::Engine;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{rm, stop};
use crate::app::{App, Found};
use crate::exit::{self, Coded};
use crate::kube::pod::Pod;
use crate::kube::workload::{Kind, Workload};
use crate::kube::{Documents, names};
use crate::objects::{AnyObject, Change, Objects, Puts};
use crate::out;
use crate::pod::keep::Kept;
use crate::pod::observe::Observed;
use crate::pod::plan;
use crate::pod::print::{Printer, Style};
use crate::pod::tender::{End, Tender, Watch};
use crate::service;
use crate::workload::input::Input;
use crate::workload::job::{Due, Following};
use crate::workload::launch::{self, Started};
use crate::workload::{job, preview, store};

/// Run the pods of Kubernetes YAML
///
/// In the foreground the containers' logs are written as they come, ended containers start again as restartPolicy
/// says, and Ctrl-C stops the pods (twice: kills them). The exit code is that of the first container that failed.
/// What pods refer to (ConfigMap, Secret, Service ...) is kept for them; Deployments and their kin are run as pods.
/// A field that coracle does not honour is an error that names it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle run web.yaml
  coracle run -d --replace web.yaml
  coracle run -d -f config.yaml -f pods/
  coracle run --dry-run web.yaml
  kubectl run web --image=busybox --dry-run=client -o yaml -- httpd -f | coracle run -")]
pub struct Run {
    /// Leave once the pods are started
    #[arg(short, long)]
    detach: bool,
    /// Call the pod this, instead of its metadata.name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Remove pods of the same names first
    #[arg(long)]
    replace: bool,
    /// Remove the pods when they have ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Only check the documents, and show what would be done
    #[arg(long)]
    dry_run: bool,
    /// How --dry-run shows it
    #[arg(short, long, value_enum, default_value_t, requires = "dry_run")]
    output: out::Format,
    #[command(flatten)]
    input: Input,
}

impl Run {
    /// Runs them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let documents = self.read()?;
        if self.dry_run {
            preview::print(&documents, self.output)?;
            return Ok(ExitCode::SUCCESS);
        }
        let engine = app.engine()?;
        let puts = store::put(&engine, &documents).await?;
        let result = self.start(app, &engine, &documents).await;
        let (started, refused, interrupts) = match result {
            Ok(started) => started,
            Err(error) => {
                store::take_back(&engine, puts).await?;
                return Err(error);
            }
        };
        let code = match self.detach {
            true => leave(app, started).await,
            false => {
                let code = self.stay(app, &engine, started, interrupts).await;
                if self.rm {
                    clean_up(&Objects::open(engine.paths()), puts)?;
                    service::refresh(&engine).await?;
                }
                code
            }
        }?;
        // A pod that failed before it began is not undone, and not passed over either.
        Ok(if refused && code == ExitCode::SUCCESS { ExitCode::from(exit::ERROR) } else { code })
    }

    fn read(&self) -> Result<Documents> {
        let mut documents = self.input.read()?;
        if let Some(name) = &self.name {
            names::subdomain(name).map_err(|why| Coded::usage(format!("--name: {why}")))?;
            match (documents.pods.as_mut_slice(), documents.workloads.as_slice()) {
                ([pod], []) => pod.rename(name),
                _ => return Err(Coded::usage("--name: the documents hold several pods, or none")),
            }
        }
        Ok(documents)
    }

    /// Starts the pods, or none.
    async fn start(
        &self,
        app: &App,
        engine: &Engine,
        documents: &Documents,
    ) -> Result<(Vec<Started>, bool, Interrupts)> {
        let pods = pods(engine, documents)?;
        let of_jobs = pods.clone();
        let started = async {
            let mut kept = Vec::new();
            for pod in pods {
                let context = format!("run {}", pod.name);
                kept.push(launch::prepare(app, engine, pod, self.replace).await.context(context)?);
            }
            let mut interrupts = Interrupts::new()?;
            let ended = async || Coded::error(interrupts.next().await, "interrupted");
            let wanted = kept.len();
            let started = launch::start_all(app, engine, kept, "run", ended).await?;
            let refused = started.len() < wanted;
            Ok((started, refused, interrupts))
        };
        let started = started.await;
        if started.is_err() {
            job::not_made(engine, &of_jobs)?;
        }
        started
    }

    /// Tends the pods in the foreground until they have ended.
    async fn stay(
        &self,
        app: &App,
        engine: &Engine,
        started: Vec<Started>,
        mut interrupts: Interrupts,
    ) -> Result<ExitCode> {
        let mut printer = printer(engine, &started);
        let (mut tenders, mut stops) = (JoinSet::new(), JoinSet::new());
        let mut pods = Vec::new();
        let (interrupt, _) = watch::channel(false);
        for Started { found, kept, tender } in started {
            pods.push((found, kept.clone()));
            tenders.spawn_local(tend(app.clone(), engine.clone(), kept, tender, interrupt.subscribe()));
        }
        let mut interrupted = None;
        let mut look = tokio::time::interval(super::logs::POLL);
        let mut first_error = None;
        loop {
            tokio::select! {
                ended = tenders.join_next() => match ended {
                    None => break,
                    Some(ended) => match ended.context("tend the pod").and_then(|ended| ended) {
                        Err(error) => first_error = first_error.or(Some(error)),
                        // A Job's next pods.
                        Ok(next) if interrupted.is_none() => for Started { found, kept, tender } in next {
                            add_logs(&mut printer, engine, &kept, true);
                            pods.push((found, kept.clone()));
                            tenders.spawn_local(tend(app.clone(), engine.clone(), kept, tender, interrupt.subscribe()));
                        },
                        Ok(next) => launch::undo(engine, None, next).await,
                    },
                },
                _ = look.tick() => { printer.print_new()?; }
                code = interrupts.next() => {
                    let grace = interrupted.is_some().then_some(Duration::ZERO);
                    interrupted = Some(code);
                    interrupt.send_replace(true);
                    for (found, kept) in &pods {
                        match grace {
                            None => eprintln!("coracle: stopping {} (Ctrl-C again kills it)", kept.pod.name),
                            Some(_) => eprintln!("coracle: killing {}", kept.pod.name),
                        }
                        let (engine, found) = (engine.clone(), found.again());
                        stops.spawn_local(async move { stop::stop(&engine, &found, grace).await });
                    }
                }
            }
        }
        while let Some(stopped) = stops.join_next().await {
            let error = stopped.context("stop the pod").and_then(|stopped| stopped).err();
            first_error = first_error.or(error);
        }
        printer.print_new()?;
        printer.finish()?;
        let outcome = outcome(engine, &pods).await;
        if self.rm {
            for (found, _) in &pods {
                rm::remove(engine, found).await?;
            }
        }
        match (first_error, interrupted) {
            (Some(error), _) => Err(error),
            (None, Some(code)) => Ok(ExitCode::from(code)),
            (None, None) => Ok(outcome),
        }
    }
}

/// The pods to start: those of documents, those of workloads, and the first of Jobs.
fn pods(engine: &Engine, documents: &Documents) -> Result<Vec<Pod>> {
    let mut out = documents.pods.clone();
    for workload in &documents.workloads {
        out.extend(workload_pods(engine, workload)?);
    }
    Ok(out)
}

/// The pods that a workload is to have now.
pub(super) fn workload_pods(engine: &Engine, workload: &Workload) -> Result<Vec<Pod>> {
    match &workload.kind {
        Kind::Job(_) => job::first(engine, workload),
        _ => Ok(workload.pods()),
    }
}

/// Tends a pod until it has ended; the answer is what follows it, if it is a Job's.
async fn tend(
    app: App,
    engine: Engine,
    kept: Kept,
    mut tender: Tender,
    mut interrupted: watch::Receiver<bool>,
) -> Result<Vec<Started>> {
    let mut watch = Teller::new(&kept.pod.name);
    let end = tender.tend(true, &mut watch).await?;
    drop(tender);
    if end != End::Finished {
        return Ok(Vec::new());
    }
    let Some(Following { job, over }) = job::count(&engine, &kept).await? else { return Ok(Vec::new()) };
    let due = tokio::select! {
        due = job::due(&engine, &job), if !over => due?,
        _ = interrupted.wait_for(|interrupted| *interrupted), if !over => return Ok(Vec::new()),
        else => Due::Over,
    };
    let pods = match due {
        Due::Gone => return Ok(Vec::new()),
        Due::Over => {
            job::end_others(&engine, &kept).await?;
            return Ok(Vec::new());
        }
        Due::Pods(pods) => pods,
    };
    let started = async {
        let mut ready = Vec::new();
        for pod in pods.clone() {
            ready.push(launch::prepare(&app, &engine, pod, false).await?);
        }
        let never = async || std::future::pending::<anyhow::Error>().await;
        launch::start_all(&app, &engine, ready, "run", never).await
    };
    let started = started.await;
    if started.is_err() {
        job::not_made(&engine, &pods)?;
    }
    started
}

/// Deletes what this call made in the store.
fn clean_up(objects: &Objects, puts: Puts) -> Result<()> {
    for (object, change) in puts.changes() {
        match object {
            _ if change != Change::Created => {}
            AnyObject::Workload(workload) => job::forget(objects, workload)?,
            AnyObject::PersistentVolumeClaim(_) | AnyObject::PersistentVolume(_) => {}
            other => drop(other.delete(objects)?),
        }
    }
    Ok(())
}

/// Lets go of the pods.
async fn leave(app: &App, started: Vec<Started>) -> Result<ExitCode> {
    for started in started {
        let name = started.kept.pod.name.clone();
        launch::leave(app, started).await.with_context(|| format!("run {name}"))?;
        out::line(format!("started {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn printer(engine: &Engine, started: &[Started]) -> Printer {
    let total: usize = started.iter().map(|pod| pod.kept.pod.all_containers().count()).sum();
    let mut printer = Printer::new(Style { names: total > 1, times: false });
    for Started { kept, .. } in started {
        add_logs(&mut printer, engine, kept, started.len() > 1);
    }
    printer
}

fn add_logs(printer: &mut Printer, engine: &Engine, kept: &Kept, several: bool) {
    let dir = plan::log_directory(engine.paths(), &kept.pod, &kept.uid);
    for container in kept.pod.all_containers() {
        let name = match several {
            false => container.name.clone(),
            true => format!("{}/{}", kept.pod.name, container.name),
        };
        printer.add(&name, &dir.join(&container.name), 0);
    }
}

/// The exit code of the first container that failed.
async fn outcome(engine: &Engine, pods: &[(Found, Kept)]) -> ExitCode {
    for (found, kept) in pods {
        let (Ok(observed), Ok(tended)) = (Observed::look(engine, &found.sandbox).await, found.folder.read_tended())
        else {
            continue;
        };
        let code = observed.outcome(kept, &tended);
        if code != 0 {
            return exit::of(code);
        }
    }
    ExitCode::SUCCESS
}

/// More different failures are not remembered as told.
const MAX_FAILURES: usize = 64;

/// Tells on standard error what the logs do not.
pub(super) struct Teller {
    pod: String,
    /// Why containers could not be started, as told since their last start: each try would tell the same.
    failures: HashSet<(String, String)>,
}

impl Teller {
    fn new(pod: &str) -> Teller {
        Teller { pod: pod.to_owned(), failures: HashSet::new() }
    }
}

impl Watch for Teller {
    fn started(&mut self, container: &str, attempt: u32) {
        self.failures.retain(|(name, _)| name != container);
        if attempt > 0 {
            eprintln!("coracle: {}: container {container} was started again ({attempt})", self.pod);
        }
    }

    fn ended(&mut self, container: &str, code: i32) {
        if code != 0 {
            eprintln!("coracle: {}: container {container} ended with exit code {code}", self.pod);
        }
    }

    fn failed(&mut self, container: &str, message: &str) {
        if self.failures.len() >= MAX_FAILURES {
            self.failures.clear();
        }
        if self.failures.insert((container.to_owned(), message.to_owned())) {
            eprintln!("coracle: {}: container {container}: {message}", self.pod);
        }
    }
}

/// The signals that ask a foreground run to end.
struct Interrupts {
    signals: [(Signal, u8); 3],
}

impl Interrupts {
    fn new() -> Result<Interrupts> {
        let listen = |kind: SignalKind| -> Result<(Signal, u8)> {
            let code = u8::try_from(128 + kind.as_raw_value()).unwrap_or(exit::ERROR);
            Ok((signal(kind).context("listen to signals")?, code))
        };
        let signals =
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        Ok(Interrupts { signals })
    }

    /// Waits for the next one; the answer is the exit code that a shell gives to its death.
    async fn next(&mut self) -> u8 {
        let [(int, int_code), (term, term_code), (hup, hup_code)] = &mut self.signals;
        tokio::select! {
            _ = int.recv() => *int_code,
            _ = term.recv() => *term_code,
            _ = hup.recv() => *hup_code,
        }
    }
}
