//! `coracle run`: the pods of a YAML file.
//!
//! In the foreground the command itself tends the pods: it applies their restart policies and writes their logs until
//! they have ended. With `-d` it leaves once they are started, and their supervisors call `coracle tend`.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{Engine, SandboxFilter};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use super::{rm, stop};
use crate::app::{App, Found};
use crate::exit::{self, Coded};
use crate::kube::pod::{self, Pod};
use crate::kube::{names, yaml};
use crate::out;
use crate::pod::events::Recorder;
use crate::pod::keep::{Folder, Kept};
use crate::pod::observe::Observed;
use crate::pod::print::{Printer, Style};
use crate::pod::tender::{Tender, Unwatched, Watch};
use crate::pod::{images, plan};

/// Run the pods of a YAML file
///
/// In the foreground the containers' logs are written as they come, ended containers start again as restartPolicy
/// says, and Ctrl-C stops the pods (twice: kills them). The exit code is that of the first container that failed.
/// A field of a Pod that coracle does not honour is an error that names it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle run web.yaml
  coracle run -d --replace web.yaml
  kubectl run web --image=busybox --dry-run=client -o yaml -- httpd -f | coracle run -")]
pub struct Run {
    /// Leave once the pods are started
    #[arg(short, long)]
    detach: bool,
    /// Call the pod this, instead of its metadata.name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Remove a pod of the same name first
    #[arg(long)]
    replace: bool,
    /// Remove the pods when they have ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Only check the file
    #[arg(long)]
    dry_run: bool,
    /// The file; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// A pod that was started, still held by us.
struct Started {
    found: Found,
    kept: Kept,
    tender: Tender,
}

impl Run {
    /// Runs them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let pods = self.read()?;
        if self.dry_run {
            pods.iter().try_for_each(|pod| out::line(format!("pod {} is valid", pod.name)))?;
            return Ok(ExitCode::SUCCESS);
        }
        let engine = app.engine()?;
        let mut kept = Vec::new();
        for pod in pods {
            let context = format!("run {}", pod.name);
            kept.push(self.prepare(app, &engine, pod).await.context(context)?);
        }
        let mut interrupts = Interrupts::new()?;
        let mut started = Vec::new();
        for kept in kept {
            let context = format!("run {}", kept.pod.name);
            let uid = kept.uid.clone();
            let result = tokio::select! {
                result = start(app, &engine, kept) => result.context(context),
                code = interrupts.next() => Err(Coded::error(code, format!("{context}: interrupted"))),
            };
            match result {
                Ok(pod) => started.push(pod),
                Err(error) => {
                    undo(&engine, &uid, started).await;
                    return Err(error);
                }
            }
        }
        match self.detach {
            true => leave(app, started).await,
            false => self.stay(&engine, started, interrupts).await,
        }
    }

    fn read(&self) -> Result<Vec<Pod>> {
        let (name, text) = read_file(&self.file)?;
        let mut pods = pod::read(&name, &text)?;
        if let Some(name) = &self.name {
            names::subdomain(name).map_err(|why| Coded::usage(format!("--name: {why}")))?;
            match pods.as_mut_slice() {
                [pod] => pod.rename(name),
                _ => return Err(Coded::usage("--name: the file holds several pods")),
            }
        }
        Ok(pods)
    }

    /// Does what can be done before anything of the pod exists: its name is free, its images are here.
    async fn prepare(&self, app: &App, engine: &Engine, pod: Pod) -> Result<Kept> {
        let filter = SandboxFilter { name: pod.name.clone(), namespace: pod.namespace.clone(), ..Default::default() };
        if let Some(existing) = engine.list_sandboxes(&filter)?.into_iter().next() {
            if !self.replace {
                let name = &pod.name;
                let text = format!("a pod {name} exists already (`coracle rm {name}` first, or --replace)");
                return Err(Coded::error(exit::CONFLICT, text));
            }
            let folder = Folder::of(engine.paths(), &existing.id);
            let kept = folder.read_pod()?;
            rm::remove(engine, &Found { sandbox: existing.id, folder, kept }).await.context("replace")?;
        }
        let uid = uid()?;
        let recorder = Recorder::new(engine.paths(), &pod.namespace, &pod.name, &uid);
        let images = images::ensure(app, engine.store(), &pod, &recorder)?;
        Ok(Kept { pod, uid, images })
    }

    /// Tends the pods in the foreground until they have ended.
    async fn stay(&self, engine: &Engine, started: Vec<Started>, mut interrupts: Interrupts) -> Result<ExitCode> {
        let mut printer = printer(engine, &started);
        let (mut tenders, mut stops) = (JoinSet::new(), JoinSet::new());
        let mut pods = Vec::new();
        for Started { found, kept, mut tender } in started {
            let mut watch = Teller { pod: kept.pod.name.clone() };
            pods.push((found, kept));
            tenders.spawn_local(async move { tender.tend(true, &mut watch).await });
        }
        let mut interrupted = None;
        let mut look = tokio::time::interval(super::logs::POLL);
        let mut first_error = None;
        loop {
            tokio::select! {
                ended = tenders.join_next() => match ended {
                    None => break,
                    Some(ended) => {
                        let error = ended.context("tend the pod").and_then(|end| end.map(drop)).err();
                        first_error = first_error.or(error);
                    }
                },
                _ = look.tick() => { printer.print_new()?; }
                code = interrupts.next() => {
                    let grace = interrupted.is_some().then_some(Duration::ZERO);
                    interrupted = Some(code);
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
        let outcome = outcome(engine, &pods).await;
        if self.rm {
            for (found, _) in &pods {
                rm::remove(engine, found).await?;
            }
        }
        match (first_error, interrupted) {
            (Some(error), _) => Err(error),
            (None, Some(code)) => Ok(ExitCode::from(code)),
            (None, None) => Ok(ExitCode::from(outcome)),
        }
    }
}

/// The text of a file, and its name for messages.
fn read_file(path: &Path) -> Result<(String, String)> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    let limit = yaml::MAX_BYTES as u64 + 1;
    if name == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).context("read standard input")?;
    } else {
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Coded::usage(format!("read {name}: there is no such file")));
            }
            file => file.with_context(|| format!("read {name}"))?,
        };
        file.take(limit).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
    }
    let name = if name == "-" { "standard input".to_owned() } else { name };
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text)),
        Err(_) => Err(Coded::usage(format!("read {name}: it is not UTF-8 text"))),
    }
}

/// A new uid: a random UUID (RFC 9562, version 4), as the API server gives.
fn uid() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("read /proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().to_owned())
}

/// Makes a pod's sandbox and starts what is due first. What is half done is for [`undo`].
async fn start(app: &App, engine: &Engine, kept: Kept) -> Result<Started> {
    let on_exit = app.tend_command(&kept.uid)?;
    let config = plan::sandbox(&kept.pod, &kept.uid, engine.paths(), on_exit)?;
    let sandbox = engine.run_sandbox(config).await?.id;
    let folder = Folder::of(engine.paths(), &sandbox);
    // Tended by us from before the first container: its end must not call for another.
    folder.write_pod(&kept)?;
    let tender = Tender::take(app, engine, &sandbox, kept.clone())?;
    let mut tender = tender.context("another process tends the new pod")?;
    tender.first_start(&mut Unwatched).await?;
    let found = Found { sandbox, folder, kept: Some(kept.clone()) };
    Ok(Started { found, kept, tender })
}

/// Removes what was started: a file's pods come up together or not at all. Why they did not is the error that
/// matters; what cannot be removed now is found by `coracle doctor`.
async fn undo(engine: &Engine, uid: &str, started: Vec<Started>) {
    for Started { found, tender, .. } in started {
        drop(tender); // or the removal would wait for us
        let _ = rm::remove(engine, &found).await;
    }
    let Ok(sandboxes) = engine.list_sandboxes(&SandboxFilter::default()) else { return };
    for sandbox in sandboxes.into_iter().filter(|sandbox| sandbox.config.uid == uid) {
        let folder = Folder::of(engine.paths(), &sandbox.id);
        let kept = folder.read_pod().ok().flatten();
        let _ = rm::remove(engine, &Found { sandbox: sandbox.id, folder, kept }).await;
    }
}

/// Lets go of the pods. One with something left to do already is tended by a process of its own, as after an exit:
/// its delay may be long.
async fn leave(app: &App, started: Vec<Started>) -> Result<ExitCode> {
    for Started { kept, mut tender, .. } in started {
        let context = || format!("run {}", kept.pod.name);
        if tender.let_go().await.with_context(context)? {
            spawn_tender(&app.tend_command(&kept.uid)?).with_context(context)?;
        }
        out::line(format!("started {}", kept.pod.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn spawn_tender(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("no command to tend the pod")?;
    let mut command = process::Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // In a process group of its own: a Ctrl-C in this terminal is not meant for it.
    command.process_group(0).spawn().with_context(|| format!("start {program}")).map(drop)
}

fn printer(engine: &Engine, started: &[Started]) -> Printer {
    let total: usize = started.iter().map(|pod| pod.kept.pod.all_containers().count()).sum();
    let mut printer = Printer::new(Style { names: total > 1, times: false });
    for Started { kept, .. } in started {
        let dir = plan::log_directory(engine.paths(), &kept.pod, &kept.uid);
        for container in kept.pod.all_containers() {
            let name = match started.len() {
                1 => container.name.clone(),
                _ => format!("{}/{}", kept.pod.name, container.name),
            };
            printer.add(&name, &dir.join(&container.name), 0);
        }
    }
    printer
}

/// The exit code of the first container that failed.
async fn outcome(engine: &Engine, pods: &[(Found, Kept)]) -> u8 {
    for (found, kept) in pods {
        let (Ok(observed), Ok(tended)) = (Observed::look(engine, &found.sandbox).await, found.folder.read_tended())
        else {
            continue;
        };
        let code = observed.outcome(kept, &tended);
        if code != 0 {
            return u8::try_from(code).unwrap_or(exit::ERROR);
        }
    }
    exit::OK
}

/// Tells on standard error what the logs do not.
struct Teller {
    pod: String,
}

impl Watch for Teller {
    fn started(&mut self, container: &str, attempt: u32) {
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
        eprintln!("coracle: {}: container {container}: {message}", self.pod);
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
