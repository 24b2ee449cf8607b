//! `coracle serve --pods DIR`: the pods of a folder's files are kept running, as kubelet keeps its static pods.
//!
//! ```text
//! folder (inotify, and a look every now and then) --\
//! jobs that ended, times to try again ---------------+-> compare with what is recorded -> jobs, one thread for each file:
//! SIGHUP ------------------------------------------/                                     coracle stop, rm, run -d
//! ```
//!
//! - A file NAME.yaml, NAME.yml or NAME.json holds one or several Pods, and nothing else. They come and go together.
//! - A file that has changed: its pods stop with their grace, are removed, and run anew. One that has gone: they stop and
//!   are removed. One that is broken is told (a line of the log, and an event under the file's name); the pods it had go
//!   on, and so do all others.
//! - A pod that was removed by hand comes back; one that was stopped by hand stays stopped until its file changes. One
//!   that has ended as its restartPolicy says stays ended.
//! - What could not be started is tried again: after 10 s, then twice as long each time, up to 5 minutes.
//! - Names are as in the files: there is one machine, so kubelet's suffix for it would tell nothing.
//!
//! The pods are ordinary ones: they live on when the server ends, and the next server finds them by [`record`]. A job is a
//! `coracle` command of its own: what it does is what a person would do by hand, and it cannot harm the server.

mod folder;
mod job;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_engine::lock::LifeLock;
use coracle_engine::{Engine, SandboxState};

use self::job::Job;
use self::record::{Made, Record};
use crate::app::App;
use crate::exit::{self, Coded};
use crate::kube::pod::{Pod, RestartPolicy};
use crate::kube::{self, Source};
use crate::pod::events::{On, Recorder};
use crate::pod::keep::Folder;

/// How often the folder is looked at even if nothing is told of it: kubelet's.
const LOOK: Duration = Duration::from_secs(20);
/// After a change, others follow: an editor writes, renames and sets attributes.
const SETTLE: Duration = Duration::from_millis(200);
const FIRST_DELAY: Duration = Duration::from_secs(10);
const MAX_DELAY: Duration = Duration::from_secs(300);

/// What the thread is told.
enum Message {
    /// Something has changed, or should be looked at.
    Look,
    /// A job has ended.
    Done(PathBuf, Result<Vec<Made>>),
    /// The server ends.
    Stop,
}

/// The folder being served.
pub struct Statics {
    messages: Sender<Message>,
    thread: JoinHandle<()>,
}

impl Statics {
    /// Begins to keep the pods of a folder running.
    pub fn start(app: &App, engine: &Engine, dir: &Path) -> Result<Statics> {
        let dir = dir.canonicalize().with_context(|| format!("--pods {}", dir.display()))?;
        let Some(lock) = LifeLock::try_take(&engine.paths().state.join("statics.lock"))? else {
            return Err(Coded::error(
                exit::CONFLICT,
                "--pods: another server keeps the pods of a folder running already",
            ));
        };
        let (messages, inbox) = mpsc::channel();
        folder::watch(&dir, messages.clone())?;
        let record = Record::read(engine.paths())?;
        let command = app.own_command(&[])?;
        let keeper = Keeper {
            engine: engine.clone(),
            dir,
            command,
            record,
            messages: messages.clone(),
            busy: HashMap::new(),
            failures: HashMap::new(),
            _lock: lock,
        };
        let thread = std::thread::Builder::new().name("statics".into()).spawn(move || keeper.run(&inbox));
        Ok(Statics { messages, thread: thread.context("start a thread for the pods of a folder")? })
    }

    /// Looks at all files now.
    pub fn look(&self) {
        let _ = self.messages.send(Message::Look);
    }

    /// Ends the keeping; the pods run on, and so do jobs that have begun.
    pub fn stop(self) {
        let _ = self.messages.send(Message::Stop);
        let _ = self.thread.join();
    }
}

/// A file that could not be done.
struct Failure {
    text: String,
    at: Instant,
    /// None: not before the file changes.
    delay: Option<Duration>,
}

struct Keeper {
    engine: Engine,
    dir: PathBuf,
    /// `coracle` with the places of this server.
    command: Vec<String>,
    record: Record,
    messages: Sender<Message>,
    /// The files with a job under way, and their text.
    busy: HashMap<PathBuf, String>,
    failures: HashMap<PathBuf, Failure>,
    _lock: LifeLock,
}

impl Keeper {
    fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            if let Err(error) = self.compare() {
                tracing::error!("the pods of {}: {error:#}", self.dir.display());
            }
            let mut message = inbox.recv_timeout(self.patience());
            if matches!(message, Ok(Message::Look)) {
                std::thread::sleep(SETTLE);
            }
            loop {
                match message {
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Message::Done(path, result)) => self.done(path, result),
                    Ok(Message::Look) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
                message = inbox.recv_timeout(Duration::ZERO);
            }
        }
    }

    /// Until the next look.
    fn patience(&self) -> Duration {
        let due = |failure: &Failure| Some((failure.at + failure.delay?).saturating_duration_since(Instant::now()));
        self.failures.values().filter_map(due).min().unwrap_or(LOOK).min(LOOK)
    }

    /// Compares the folder with what is recorded, and begins what is to be done.
    fn compare(&mut self) -> Result<()> {
        let files = folder::read(&self.dir)?;
        let gone = |path: &&PathBuf| path.parent() == Some(&*self.dir) && !files.contains_key(*path);
        let gone: Vec<PathBuf> = self.record.files.keys().filter(gone).cloned().collect();
        for path in gone {
            self.begin(&path, None);
        }
        self.failures.retain(|path, _| files.contains_key(path));
        let mut owners: HashMap<(String, String), PathBuf> = HashMap::new();
        for (path, text) in files {
            if self.busy.contains_key(&path) || self.is_waiting(&path, text.as_deref().unwrap_or_default()) {
                continue;
            }
            let read = text.and_then(|text| Ok((pods(path.display().to_string(), &text)?, text)));
            let unique = read.and_then(|(pods, text)| {
                for pod in &pods {
                    let owner = owners.entry((pod.namespace.clone(), pod.name.clone())).or_insert_with(|| path.clone());
                    if *owner != path {
                        bail!("{}: the pod {} is that of {}", path.display(), pod.name, owner.display());
                    }
                }
                Ok((pods, text))
            });
            match unique {
                Ok((pods, text)) if !self.is_done(&path, &text) => self.begin(&path, Some((pods, text))),
                Ok(_) => drop(self.failures.remove(&path)),
                Err(error) => self.broken(&path, &error),
            }
        }
        Ok(())
    }

    /// Whether a file that failed is not to be tried again yet. One that is broken is read again only when it changes.
    fn is_waiting(&self, path: &Path, text: &str) -> bool {
        let waits = |failure: &Failure| match failure.delay {
            Some(delay) => failure.at + delay > Instant::now(),
            None => true,
        };
        self.failures.get(path).is_some_and(|failure| failure.text == text && waits(failure))
    }

    /// Whether the file's pods run as it says.
    fn is_done(&self, path: &Path, text: &str) -> bool {
        self.record.files.get(path).is_some_and(|file| {
            file.text == text && !file.pods.is_empty() && file.pods.iter().all(|made| self.is_kept(made))
        })
    }

    /// Whether a pod is there and needs nobody: it runs, or it has ended as it should.
    fn is_kept(&self, made: &Made) -> bool {
        let Some(sandbox) = &made.sandbox else { return false };
        let Ok(status) = self.engine.sandbox_status(sandbox) else { return false };
        let folder = Folder::of(self.engine.paths(), sandbox);
        let restarts = folder.read_pod().ok().flatten().is_some_and(|kept| kept.pod.restart == RestartPolicy::Always);
        // One that always restarts never ends by itself: its supervisor is gone.
        status.state == SandboxState::Ready || folder.is_stopping() || !restarts
    }

    fn broken(&mut self, path: &Path, error: &anyhow::Error) {
        let text = folder::text(path).unwrap_or_default();
        tracing::error!("{error:#}; the pods it had go on");
        self.recorder(path).warning(On::Pod, "FailedValidation", format!("{error:#}"));
        self.failures.insert(path.to_owned(), Failure { text, at: Instant::now(), delay: None });
    }

    /// Events of a file are those of a pod called like it: of a broken one nothing else is known.
    fn recorder(&self, path: &Path) -> Recorder {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let uid = format!("file-{name}");
        Recorder::new(self.engine.paths(), "default", &name, &uid)
    }

    /// Has a file's former pods ended, and then those run that it tells of now.
    fn begin(&mut self, path: &Path, now: Option<(Vec<Pod>, String)>) {
        if self.busy.contains_key(path) {
            return;
        }
        let mut old: Vec<Made> = self.record.files.get(path).map(|file| file.pods.clone()).unwrap_or_default();
        // A server that was killed in between did not note what it had made.
        old.iter_mut().for_each(|made| made.look_up(&self.engine));
        let text = now.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
        let what = if now.is_some() { "its pods are started" } else { "it is gone, its pods are stopped and removed" };
        tracing::info!("{}: {what}", path.display());
        let wanted: Vec<Made> = now.iter().flat_map(|(pods, _)| pods).map(Made::of).collect();
        let new = wanted.iter().filter(|made| !old.iter().any(|old| old.same(made)));
        // A pod of this name that is not recorded is somebody else's, and stays so.
        if let Some(taken) = new.clone().find(|made| self.engine.find_sandbox(&made.full_name()).is_ok()) {
            let error = anyhow::anyhow!("a pod {} exists already, and is not of this file", taken.full_name());
            return self.failed(path.to_owned(), text, &error);
        }
        let pods = old.iter().chain(new).cloned().collect();
        // Without the text: it is not done yet, should this server end in the middle.
        self.record.files.insert(path.to_owned(), record::File { text: String::new(), pods });
        self.write();
        self.busy.insert(path.to_owned(), text);
        let (engine, command, messages) = (self.engine.clone(), self.command.clone(), self.messages.clone());
        let path = path.to_owned();
        let job = Job { engine, command, old, wanted, text: now.map(|(_, text)| text) };
        std::thread::spawn(move || {
            let result = job.run();
            let _ = messages.send(Message::Done(path, result));
        });
    }

    fn done(&mut self, path: PathBuf, result: Result<Vec<Made>>) {
        let text = self.busy.remove(&path).unwrap_or_default();
        match result {
            Ok(pods) if pods.is_empty() => {
                self.record.files.remove(&path);
                self.failures.remove(&path);
            }
            Ok(pods) => {
                self.record.files.insert(path.clone(), record::File { text, pods });
                self.failures.remove(&path);
            }
            Err(error) => {
                if let Some(file) = self.record.files.get_mut(&path) {
                    // What could not be started was undone: a pod of that name is not ours from now on.
                    file.pods.retain(|made| made.sandbox.is_some());
                }
                self.failed(path, text, &error);
            }
        }
        self.write();
    }

    fn failed(&mut self, path: PathBuf, text: String, error: &anyhow::Error) {
        let before = self.failures.get(&path).filter(|failure| failure.text == text);
        let before = before.and_then(|failure| failure.delay);
        let delay = before.map_or(FIRST_DELAY, |delay| (delay * 2).min(MAX_DELAY));
        tracing::error!("{}: {error:#}; again in {} s", path.display(), delay.as_secs());
        self.recorder(&path).warning(On::Pod, "FailedSync", format!("{error:#}"));
        self.failures.insert(path, Failure { text, at: Instant::now(), delay: Some(delay) });
    }

    fn write(&self) {
        if let Err(error) = self.record.write(self.engine.paths()) {
            tracing::error!("the next server will not know these pods: {error:#}");
        }
    }
}

/// The Pods of a file's text. Objects and workloads have no place here: nobody would take them away with the file.
fn pods(name: String, text: &str) -> Result<Vec<Pod>> {
    let documents = kube::read(&[Source { name: name.clone(), text: text.to_owned() }])?;
    match documents.objects.is_empty() && documents.workloads.is_empty() {
        true => Ok(documents.pods),
        false => bail!("{name}: a file of --pods holds Pods and nothing else (`coracle apply` takes the rest)"),
    }
}

type Files = BTreeMap<PathBuf, Result<String>>;
