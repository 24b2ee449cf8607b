//! Starting pods and letting go of them. A call's pods come up together or not at all: what was started is undone when
//! one fails.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_engine::{Engine, SandboxFilter, SandboxState};

use crate::app::{App, Found};
use crate::cmd::rm;
use crate::exit::{self, Coded};
use crate::kube::config::ServiceAccount;
use crate::kube::pod::Pod;
use crate::kube::workload::{Kind, OWNER, Workload};
use crate::objects::Objects;
use crate::pod::events::{On, Recorder};
use crate::pod::keep::{Folder, Kept};
use crate::pod::observe::Observed;
use crate::pod::tender::{Tender, Unwatched};
use crate::pod::{class, condition, images, plan};
use crate::service;

/// A pod that was started, still held by us.
pub struct Started {
    /// The pod.
    pub found: Found,
    /// What runs.
    pub kept: Kept,
    /// Who tends it: us.
    pub tender: Tender,
}

/// Finds the pod of this namespace and name.
pub fn existing(engine: &Engine, namespace: &str, name: &str) -> Result<Option<Found>> {
    let filter = SandboxFilter { name: name.to_owned(), namespace: namespace.to_owned(), ..Default::default() };
    let Some(sandbox) = engine.list_sandboxes(&filter)?.into_iter().next() else { return Ok(None) };
    let folder = Folder::of(engine.paths(), &sandbox.id);
    let kept = folder.read_pod()?;
    Ok(Some(Found { sandbox: sandbox.id, folder, kept }))
}

/// The pods of a workload that exist.
pub fn owned(engine: &Engine, workload: &Workload) -> Result<Vec<Found>> {
    let owner = workload.owner();
    let filter = SandboxFilter { namespace: workload.namespace().to_owned(), ..Default::default() };
    let mut out = Vec::new();
    for sandbox in engine.list_sandboxes(&filter)? {
        let folder = Folder::of(engine.paths(), &sandbox.id);
        let Some(kept) = folder.read_pod()? else { continue };
        if kept.pod.annotations.get(OWNER) == Some(&owner) {
            out.push(Found { sandbox: sandbox.id, folder, kept: Some(kept) });
        }
    }
    Ok(out)
}

/// What admission adds to a pod: the imagePullSecrets of its ServiceAccount, if it has none itself.
pub fn admit(objects: &Objects, pod: &mut Pod) -> Result<()> {
    let account = pod.service_account.as_deref().unwrap_or("default");
    if pod.pull_secrets.is_empty()
        && let Some(account) = objects.get::<ServiceAccount>(&pod.namespace, account)?
    {
        pod.pull_secrets = account.pull_secrets;
    }
    Ok(())
}

/// Does what can be done before anything of the pod exists: its name is free, its images are here.
pub async fn prepare(app: &App, engine: &Engine, pod: Pod, replace: bool) -> Result<Kept> {
    if let Some(found) = existing(engine, &pod.namespace, &pod.name)? {
        if !replace {
            let name = &pod.name;
            let text = format!("a pod {name} exists already (`coracle rm {name}` first, or --replace)");
            return Err(Coded::error(exit::CONFLICT, text));
        }
        rm::remove(engine, &found).await.context("replace")?;
    }
    make_ready(app, engine, pod).await
}

/// Admits a pod and gets its images.
pub async fn make_ready(app: &App, engine: &Engine, mut pod: Pod) -> Result<Kept> {
    admit(&Objects::open(engine.paths()), &mut pod)?;
    let uid = uid()?;
    let recorder = Recorder::new(engine.paths(), &pod.namespace, &pod.name, &uid);
    let images = images::ensure(app, engine.store(), &pod, &recorder)?;
    Ok(Kept { pod, uid, images })
}

/// A new uid: a random UUID (RFC 9562, version 4), as the API server gives.
fn uid() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("read /proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().to_owned())
}

/// Makes a pod's sandbox and starts what is due first. What is half done is for [`undo`].
///
/// A pod whose RuntimeClass there is not has failed by that, which is no error of the others: it stays to be looked at.
pub async fn start(app: &App, engine: &Engine, kept: Kept) -> Result<Option<Started>> {
    let on_exit = app.tend_command(&kept.uid)?;
    let mut config = plan::sandbox(&kept.pod, &kept.uid, engine.paths(), on_exit)?;
    let objects = Objects::open(engine.paths());
    if let Some(why) = class::choose(&kept.pod, &objects, &engine.handlers(), &mut config)? {
        let sandbox = engine.refuse_sandbox(config).await?;
        Folder::of(engine.paths(), &sandbox).write_pod(&kept)?;
        Recorder::of(engine.paths(), &kept).warning(On::Pod, class::REASON, &why);
        eprintln!("coracle: {}: {why}", kept.pod.name);
        return Ok(None);
    }
    for note in service::dress(engine, &kept.pod, &mut config)? {
        Recorder::of(engine.paths(), &kept).warning(On::Pod, "DNSConfigForming", note);
    }
    let sandbox = engine.run_sandbox(config).await?.id;
    let folder = Folder::of(engine.paths(), &sandbox);
    // Tended by us from before it can be found, and before the first container: its supervisor must not call for another.
    let tender = Tender::take(app, engine, &sandbox, kept.clone())?;
    let mut tender = tender.context("another process tends the new pod")?;
    folder.write_pod(&kept)?;
    // Its name server answers before its first container asks.
    service::refresh(engine).await?;
    tender.first_start(&mut Unwatched).await?;
    let found = Found { sandbox, folder, kept: Some(kept.clone()) };
    Ok(Some(Started { found, kept, tender }))
}

/// Starts pods in their order; when one cannot be, those before it are removed again. `ended` ends it early.
pub async fn start_all(
    app: &App,
    engine: &Engine,
    kept: Vec<Kept>,
    verb: &str,
    mut ended: impl AsyncFnMut() -> anyhow::Error,
) -> Result<Vec<Started>> {
    let mut started = Vec::new();
    for kept in kept {
        let context = format!("{verb} {}", kept.pod.name);
        let uid = kept.uid.clone();
        let result = tokio::select! {
            result = one_more(app, engine, kept, &mut started) => result.context(context),
            error = ended() => Err(error.context(context)),
        };
        match result {
            Ok(pod) => started.extend(pod),
            Err(error) => {
                undo(engine, Some(&uid), started).await;
                return Err(error);
            }
        }
    }
    Ok(started)
}

/// Starts a pod, once the one before it is ready if it has to be.
async fn one_more(app: &App, engine: &Engine, kept: Kept, started: &mut [Started]) -> Result<Option<Started>> {
    wait_for_the_one_before(engine, &kept.pod, started).await?;
    start(app, engine, kept).await
}

/// How long a pod of a StatefulSet may take until it is ready and the next one starts.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// After this long, who waits for it is told so.
const TELL: Duration = Duration::from_secs(2);

/// Waits until the pod is ready after which this one starts, if there is one: where its StatefulSet starts its pods in
/// order. One that we have started is tended meanwhile.
pub async fn wait_for_the_one_before(engine: &Engine, pod: &Pod, started: &mut [Started]) -> Result<()> {
    let Some(before) = the_one_before(engine, pod)? else { return Ok(()) };
    let ours =
        started.iter_mut().find(|other| other.kept.pod.namespace == pod.namespace && other.kept.pod.name == before);
    let context = || format!("wait for {before}");
    if let Some(Started { found, kept, tender }) = ours {
        let mut unwatched = Unwatched;
        return tokio::select! {
            ready = wait_ready(engine, &found.sandbox, &found.folder, kept, &pod.name) => ready,
            end = tender.tend(true, &mut unwatched) => end.and_then(|end| bail!("it ended before it was ready ({end:?})")),
        }
        .with_context(context);
    }
    let Some(Found { sandbox, folder, kept: Some(kept) }) = existing(engine, &pod.namespace, &before)? else {
        return Ok(());
    };
    // One that the user has stopped is not waited for: nobody starts it again.
    match engine.sandbox_status(&sandbox)?.state == SandboxState::Ready && !folder.is_stopping() {
        true => wait_ready(engine, &sandbox, &folder, &kept, &pod.name).await.with_context(context),
        false => Ok(()),
    }
}

/// The name of the pod that has to be ready before this one of a StatefulSet starts.
fn the_one_before(engine: &Engine, pod: &Pod) -> Result<Option<String>> {
    let key = pod.annotations.get(OWNER).and_then(|owner| Workload::key_of(owner));
    let Some(key) = key else { return Ok(None) };
    let workload: Option<Workload> = Objects::open(engine.paths()).get(&pod.namespace, &key)?;
    let Some(Workload { kind: Kind::StatefulSet { ordered: true, first, .. }, name, .. }) = workload else {
        return Ok(None);
    };
    let number = pod.name.strip_prefix(&format!("{name}-")).and_then(|number| number.parse::<u32>().ok());
    Ok(number.filter(|number| *number > first).map(|number| format!("{name}-{}", number - 1)))
}

/// Waits until whoever tends a pod has found it ready.
async fn wait_ready(engine: &Engine, sandbox: &str, folder: &Folder, kept: &Kept, next: &str) -> Result<()> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let tended = folder.read_tended()?;
        if tended.ready {
            return Ok(());
        }
        if began.elapsed() >= MAX_WAIT {
            let observed = Observed::look(engine, sandbox).await?;
            let unready = condition::unready(kept, &tended, &observed).join(", ");
            bail!("it is not ready after {} s: containers that are not: {unready}", MAX_WAIT.as_secs());
        }
        if began.elapsed() >= TELL && !told {
            eprintln!("coracle: {next} starts once {} is ready (within {} s)", kept.pod.name, MAX_WAIT.as_secs());
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes what was started: a call's pods come up together or not at all. Why they did not is the error that
/// matters; what cannot be removed now is found by `coracle doctor`.
pub async fn undo(engine: &Engine, half_made: Option<&str>, started: Vec<Started>) {
    for Started { found, tender, .. } in started {
        drop(tender); // or the removal would wait for us
        let _ = rm::remove(engine, &found).await;
    }
    let Ok(sandboxes) = engine.list_sandboxes(&SandboxFilter::default()) else { return };
    for sandbox in sandboxes.into_iter().filter(|sandbox| Some(sandbox.config.uid.as_str()) == half_made) {
        let folder = Folder::of(engine.paths(), &sandbox.id);
        let kept = folder.read_pod().ok().flatten();
        let _ = rm::remove(engine, &Found { sandbox: sandbox.id, folder, kept }).await;
    }
}

/// Lets go of a pod. One with something left to do already is tended by a process of its own, as after an exit:
/// its delay may be long.
pub async fn leave(app: &App, started: Started) -> Result<()> {
    let Started { kept, mut tender, .. } = started;
    match tender.let_go().await? {
        true => spawn_tender(&app.tend_command(&kept.uid)?),
        false => Ok(()),
    }
}

fn spawn_tender(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("no command to tend the pod")?;
    let mut command = process::Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // In a process group of its own: a Ctrl-C in this terminal is not meant for it.
    command.process_group(0).spawn().with_context(|| format!("start {program}")).map(drop)
}
