//! Containers in the virtual machine: what a worker does for each request.
//!
//! ```text
//! Create   config.json is adapted (spec); the root filesystem and images are plugged in as disks and mounted in the guest;
//!          volumes are sent (volume) or shared (share); Task.Create there; the attach socket is greeted (pump)
//! Start, Kill, Pause, ...  the same call there (remote)
//! Wait     Task.Wait there; what it counted of its memory and its last words are brought here
//! Delete   Task.Delete there; its bundle is emptied, its disks are let go of
//! ```
//! The root filesystem is what the engine gives, a file with an EROFS, or whatever containerd mounts: of that one is made,
//! from a mount in the worker's own mount namespace. What is written to it goes to the guest's memory.
//!
//! `<bundle>/vm.json` says what there is to bring back and to let go of, before it is there. A process' pid is the guest's.

use super::pump;
use super::spec::{self, Kind};
use super::vmm::SHARE_TAG;
use super::{Machine, disk, share, volume};
use crate::exits;
use crate::failure::{Fail, Failure};
use crate::oci::{Act, not_needed};
use crate::ops::{self, Created};
use crate::remote::{Begun, Exec, LONG, Remote, SHORT, wait_for_end};
use crate::shim::client::Client;
use crate::stdio::{Names, ProcessEnds};
use crate::{sys, worker};
use coracle_proto::coracle::{GuestMountRequest, GuestMountResponse, GuestUnmountRequest, GuestUnmountResponse};
use coracle_proto::ttrpc::{Code, method, service};
use coracle_proto::types::Mount;
use coracle_proto::{Message, any, runc, task};
use nix::fcntl::{Flock, FlockArg};
use nix::libc::SIGKILL;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// In a container's bundle: what it has in the guest.
const RECORD: &str = "vm.json";
/// In a container's bundle: the filesystem that was made of its root.
const IMAGE: &str = "rootfs.erofs";
/// Makes it.
const MKFS: &str = "mkfs.erofs";
/// How the kernel calls that filesystem.
const EROFS: &str = "erofs";
/// And that of the folder that is shared.
const VIRTIOFS: &str = "virtiofs";
/// What it says of itself is shown up to here.
const MAX_WORDS: usize = 500;
/// A configuration is at most this long: one message.
const MAX_CONFIG: u64 = 3 << 20;
/// The guest's exit.json is a line.
const MAX_EXIT: u64 = 4 << 10;
/// One worker at a time lets go of disks.
const LOCK: &str = "unplug.lock";
/// A link that breaks is there again after a moment; what waits for an end asks again, this often without a rest.
const ATTEMPTS: u32 = 100;
/// Before the next.
const PAUSE: Duration = Duration::from_millis(100);
/// One that waited for so long was connected.
const CONNECTED: Duration = Duration::from_secs(2);

/// A container of the pod's machine.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The machine's folder.
    folder: PathBuf,
    /// The container's.
    bundle: PathBuf,
    /// The pod's folder, and its id.
    pod: (PathBuf, String),
    /// Pids of the guest that its configuration may name.
    pub(super) pids: Vec<i32>,
    /// The first process of the pod's PID namespace there.
    pub(super) init: Option<i32>,
    /// The pid here that stands for all there.
    pub(super) supervisor: i32,
}

/// What matters of the guest's exit.json.
#[derive(Deserialize)]
struct End {
    #[serde(default)]
    oom_killed: bool,
}

/// `vm.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Files for its last words.
    messages: Vec<PathBuf>,
    /// Serial numbers.
    disks: Vec<String>,
}

impl Record {
    fn read(bundle: &Path) -> Record {
        // A container that was never made has none.
        fs::read(bundle.join(RECORD)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn write(&self, bundle: &Path) -> Result<(), Failure> {
        let path = bundle.join(RECORD);
        let written = fs::write(&path, json!(self).to_string());
        written.map_err(|error| Code::Unknown.failure(format!("write {}: {error}", path.display())))
    }
}

impl Remote for Guest {
    fn client(&self) -> Result<Client, Failure> {
        super::client(&self.folder)
    }
}

impl Guest {
    /// One of the machine in this folder.
    pub fn new(folder: &Path, bundle: &str, pod: (&Path, &str)) -> Guest {
        let pod = (pod.0.to_owned(), pod.1.to_owned());
        Guest {
            folder: folder.to_owned(),
            bundle: PathBuf::from(bundle),
            pod,
            pids: Vec::new(),
            init: None,
            supervisor: 0,
        }
    }

    /// The machine's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Does what a worker is for.
    pub fn perform(&self, id: &str, act: Act) -> Result<Vec<u8>, Failure> {
        match act {
            Act::Create { request, options, ends } => self.create(*request, &options, &ends),
            Act::Undo { .. } => {
                // Whether it knows of the container or not, nothing of it may run on.
                let _ = self.delete(id, "");
                let _ = fs::remove_file(self.image());
                self.let_go(id).map(|()| Vec::new())
            }
            Act::Exec { exec, spec, names, ends, goes_on } => {
                let (created, begun) = self.exec(id, &exec, &spec, &names, &ends)?;
                if !goes_on {
                    return Ok(created);
                }
                drop(ends);
                worker::report(created)?;
                self.wait(id, &exec, "", Some(begun))
            }
            Act::Delete { .. } => self.delete_container(id).map(|()| Vec::new()),
            Act::Update(resources) => {
                let resources = adapted(id, &resources, spec::adapt_resources)?;
                self.plainly(id, Act::Update(resources))
            }
            Act::KillTree { exec, .. } => self.kill(id.to_owned(), exec, SIGKILL, true),
            Act::Checkpoint(_) => Err(not_needed(id)),
            Act::Wait { exec, oom_file, .. } => self.wait(id, &exec, &oom_file, None),
            act => self.plainly(id, act),
        }
    }

    fn create(
        &self,
        request: task::CreateTaskRequest,
        options: &runc::Options,
        ends: &ProcessEnds,
    ) -> Result<Vec<u8>, Failure> {
        let id = request.id.clone();
        let names = Names {
            terminal: request.terminal,
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let made = self.make(request, options, &names, ends);
        made.inspect_err(|_| {
            let _ = self.delete(&id, "");
            // Told is why it was not made; what cannot be let go of goes with the machine.
            let _ = self.let_go(&id);
        })
    }

    fn make(
        &self,
        request: task::CreateTaskRequest,
        options: &runc::Options,
        names: &Names,
        ends: &ProcessEnds,
    ) -> Result<Vec<u8>, Failure> {
        let id = &request.id;
        let (mut config, volumes) = self.configuration(id)?;
        let mut client = self.client()?;
        let mut record = Record::default();
        let root = self.root(&mut client, request.rootfs, &mut record)?;
        let mut sent = Vec::new();
        for volume in volumes {
            let source = volume.source.as_path();
            let path = match volume.kind {
                Kind::Disk => self.plug(&mut client, source, &mut record)?,
                Kind::Local => volume::make_local(&mut client, source)?,
                Kind::Sent => {
                    let (path, one) = volume::send(&mut client, source)?;
                    sent.push(one);
                    path
                }
                Kind::Message => {
                    record.messages.push(source.to_owned());
                    volume::send(&mut client, source)?.0
                }
                Kind::Shared { read_only } => self.share(&mut client, source, read_only)?,
            };
            config["mounts"][volume.at]["source"] = json!(path);
        }
        record.write(&self.bundle)?;
        let bundle = volume::send_bundle(&mut client, id, config.to_string().into_bytes())?;
        let [stdin, stdout, stderr] = pump::names_there(names);
        let create = task::CreateTaskRequest {
            id: id.clone(),
            rootfs: vec![overlay(&root, &bundle)],
            bundle,
            terminal: request.terminal,
            stdin,
            stdout,
            stderr,
            options: Some(any::pack(&runc::Options {
                no_pivot_root: options.no_pivot_root,
                no_new_keyring: options.no_new_keyring,
                ..Default::default()
            })),
            ..Default::default()
        };
        let created: task::CreateTaskResponse = client.call(method::CREATE, &create, Some(LONG))?;
        pump::greet(attach(ends, id)?, id, "", false)?;
        let oom_file = self.oom_note().to_string_lossy().into_owned();
        // What it leaves running is the guest's to kill.
        let (pid, own_pid_namespace) = (created.pid as i32, true);
        Ok(Created { pid, own_pid_namespace, oom_file, volumes: sent, ..Created::default() }.encode())
    }

    /// Where a file or folder of the machine is in the guest.
    fn share(&self, client: &mut Client, source: &Path, read_only: bool) -> Result<String, Failure> {
        let share = Machine::living(&self.folder)?.share;
        let none = || Code::FailedPrecondition.failure("the virtual machine shares no folder".into());
        let name = share::lend(&share.ok_or_else(none)?, source, read_only)?;
        let request = GuestMountRequest { serial: SHARE_TAG.into(), filesystem: VIRTIOFS.into() };
        let mounted: GuestMountResponse = client.call_of(service::GUEST, method::MOUNT, &request, Some(SHORT))?;
        Ok(format!("{}/{name}", mounted.path))
    }

    /// The guest's config.json, with sources still to be written in.
    fn configuration(&self, id: &str) -> Result<(Value, Vec<spec::Volume>), Failure> {
        let path = self.bundle.join("config.json");
        let failed = |error: io::Error| Code::InvalidArgument.failure(format!("read {}: {error}", path.display()));
        let size = fs::metadata(&path).map_err(failed)?.len();
        if size > MAX_CONFIG {
            return Err(failed(io::Error::other(format!("it has more than {MAX_CONFIG} bytes"))));
        }
        let config = serde_json::from_slice(&fs::read(&path).map_err(failed)?).map_err(|error| failed(error.into()))?;
        let folders = Machine::living(&self.folder)?.share.map(|share| share.folders).unwrap_or_default();
        let pod = spec::Pod {
            folders: &folders,
            id: &self.pod.1,
            bundle: &self.pod.0,
            pids: &self.pids,
            init: self.init,
            supervisor: self.supervisor,
        };
        spec::adapt(config, id, &pod).map_err(|why| refused(id, why))
    }

    /// Where the container's root is mounted in the guest, for reading.
    fn root(&self, client: &mut Client, rootfs: Vec<Mount>, record: &mut Record) -> Result<String, Failure> {
        match rootfs.as_slice() {
            [mount] if mount.r#type == EROFS => self.plug(client, Path::new(&mount.source), record),
            _ => {
                let image = self.make_image(rootfs)?;
                self.plug(client, &image, record)
            }
        }
    }

    /// Where such a filesystem is: on a disk where containerd has given the bundle one (the bundle is in memory, which
    /// everybody shares), else in the bundle.
    fn image(&self) -> PathBuf {
        let work = self.bundle.join("work");
        if work.is_dir() { work.join(IMAGE) } else { self.bundle.join(IMAGE) }
    }

    /// Makes a filesystem of whatever the root is here.
    fn make_image(&self, rootfs: Vec<Mount>) -> Result<PathBuf, Failure> {
        let image = self.image();
        let failed = |why: String| Code::Unknown.failure(format!("make {}: {why}", image.display()));
        coracle_runtime::leave_mount_namespace(&self.bundle)?;
        let mounts: Vec<_> = rootfs.into_iter().map(ops::rootfs_mount).collect();
        coracle_runtime::mount_rootfs(&self.bundle, &mounts)?;
        let root = root_of(&self.bundle)?;
        let mut command = Command::new(MKFS);
        command.arg("--quiet").arg(&image).arg(root).stdin(Stdio::null());
        crate::foreign::forget_own_environment(&mut command);
        let output = command.output().map_err(|error| failed(format!("run {MKFS}: {error} (is it installed?)")))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let words: String = words.trim().replace('\n', "; ").chars().take(MAX_WORDS).collect();
            let _ = fs::remove_file(&image);
            return Err(failed(format!("{MKFS}: {}: {words}", output.status)));
        }
        Ok(image)
    }

    /// Plugs a file in and has it mounted; where.
    fn plug(&self, client: &mut Client, file: &Path, record: &mut Record) -> Result<String, Failure> {
        let serial = disk::plug(&self.folder, file, true)?;
        record.disks.push(serial.clone());
        record.write(&self.bundle)?;
        let request = GuestMountRequest { serial, filesystem: EROFS.into() };
        let mounted: GuestMountResponse = client.call_of(service::GUEST, method::MOUNT, &request, Some(SHORT))?;
        Ok(mounted.path)
    }

    fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &[u8],
        names: &Names,
        ends: &ProcessEnds,
    ) -> Result<(Vec<u8>, Begun), Failure> {
        let spec = adapted(id, process, spec::adapt_process)?;
        let streams = pump::names_there(names);
        // Before all the rest, so that all is one turn of the machine.
        let stream = attach(ends, id)?;
        pump::say_hello(stream, id, exec, false)?;
        let mut begun = Begun::new(self.client()?, Exec { id, exec, spec, terminal: names.terminal, streams })?;
        match begun.known() {
            Ok(()) => {}
            // Who can say what became of it.
            Err(failure) if matches!(failure.code, Code::Unavailable | Code::DeadlineExceeded) => {
                self.forget_exec(id, exec, begun);
                return Err(failure);
            }
            // It is not there, or another's.
            Err(failure) => return Err(failure),
        }
        match pump::hear_answer(stream, id, exec).and_then(|_| begun.pid()) {
            Ok(pid) => Ok((Created { pid: pid as i32, ..Created::default() }.encode(), begun)),
            Err(failure) => {
                self.forget_exec(id, exec, begun);
                Err(failure)
            }
        }
    }

    /// An exec that is told to have failed may have started all the same, or may yet: then it is of no use to anybody, and
    /// whoever asks once more must not have it twice.
    fn forget_exec(&self, id: &str, exec: &str, mut begun: Begun) {
        // While it is being started nothing can be done to it.
        let _ = begun.pid();
        drop(begun);
        let until = Instant::now() + SHORT;
        loop {
            let _ = self.kill(id.to_owned(), exec.to_owned(), SIGKILL, true);
            match self.delete(id, exec) {
                Ok(()) => return,
                Err(failure) if Instant::now() >= until => {
                    return eprintln!("exec {exec} of {id} was given up and may run on: {}", failure.message);
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Waits for a process to end and brings here what tells of its end. The guest forgets an exec by that.
    /// `begun` is an exec whose end is waited for already.
    fn wait(&self, id: &str, exec: &str, oom_file: &str, mut begun: Option<Begun>) -> Result<Vec<u8>, Failure> {
        // This may take as long as the pod lives.
        sys::forget_own_text();
        let wait = |mut client| wait_for_end(&mut client, id, exec).map(|ended| (ended, client));
        let mut attempt = 0;
        let (ended, mut client) = loop {
            let began = Instant::now();
            match begun.take().map_or_else(|| self.client().and_then(wait), Begun::end) {
                Err(failure) if failure.code == Code::Unavailable && attempt < ATTEMPTS => {
                    attempt = if began.elapsed() > CONNECTED { 0 } else { attempt + 1 };
                    // A machine that is lost is so for every process, and told of by its own death.
                    self.client()?;
                    std::thread::sleep(PAUSE);
                }
                ended => break ended?,
            }
        };
        if exec.is_empty() {
            if let Err(failure) = self.note_oom(id, oom_file) {
                eprintln!("what {id} counted of its memory: {}", failure.message);
            }
            for message in Record::read(&self.bundle).messages {
                if let Err(failure) = self.client().and_then(|mut client| volume::fetch_back(&mut client, &message)) {
                    eprintln!("the last words of {id}: {}", failure.message);
                }
            }
        } else {
            // Its end is not told later for that. One that cannot be forgotten now is with its container.
            let request = task::DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned() };
            let _ = client.tell(method::DELETE, &request);
        }
        Ok(ended.encode_to_vec())
    }

    /// Keeps what the guest's supervisor has written of the end, in a form that all who count kills know.
    fn note_oom(&self, id: &str, oom_file: &str) -> Result<(), Failure> {
        let bundle = volume::bundle_name(id);
        let record = volume::fetch(&mut self.client()?, &bundle, exits::FILE, MAX_EXIT)?;
        let record: End = serde_json::from_slice(&record).map_err(|error| refused(id, error.to_string()))?;
        if record.oom_killed {
            let written = fs::write(oom_file, "oom_kill 1\n");
            written.map_err(|error| Code::Unknown.failure(format!("write {oom_file}: {error}")))?;
        }
        Ok(())
    }

    /// Forgets a container that has ended. What was in a machine that is no more needs nothing.
    fn delete_container(&self, id: &str) -> Result<(), Failure> {
        let done = self.delete(id, "").and_then(|()| self.let_go(id));
        let gone = self.client().is_err_and(|failure| failure.code == Code::Unavailable);
        let done = if gone { Ok(()) } else { done };
        if done.is_ok() {
            let _ = fs::remove_file(self.image());
            let _ = fs::remove_file(self.bundle.join(RECORD));
        }
        done
    }

    /// Lets go of what a container had in the guest.
    fn let_go(&self, id: &str) -> Result<(), Failure> {
        let mut client = self.client()?;
        volume::forget(&mut client, &volume::bundle_name(id))?;
        let mut record = Record::read(&self.bundle);
        if record.disks.is_empty() {
            return Ok(());
        }
        let path = self.folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.and_then(|file| Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into()));
        let _lock = lock.map_err(|error| Code::Unknown.failure(format!("lock {}: {error}", path.display())))?;
        while let Some(serial) = record.disks.last().cloned() {
            if disk::users(&self.folder, &serial)? == 1 {
                let request = GuestUnmountRequest { serial: serial.clone() };
                let _: GuestUnmountResponse = client.call_of(service::GUEST, method::UNMOUNT, &request, Some(SHORT))?;
            }
            disk::unplug(&self.folder, &serial)?;
            record.disks.pop();
            record.write(&self.bundle)?;
        }
        Ok(())
    }

    /// Where the count of a container's OOM kills is kept when it has ended.
    fn oom_note(&self) -> PathBuf {
        self.bundle.join("oom-kills")
    }
}

fn refused(id: &str, why: String) -> Failure {
    Code::InvalidArgument.failure(format!("container {id}: {why}"))
}

/// A JSON document of a request, after that.
fn adapted(id: &str, text: &[u8], by: fn(&mut Value) -> Result<(), String>) -> Result<Vec<u8>, Failure> {
    let mut value: Value = serde_json::from_slice(text).map_err(|error| refused(id, error.to_string()))?;
    by(&mut value).map_err(|why| refused(id, why))?;
    Ok(value.to_string().into_bytes())
}

/// The connection to the process' streams.
fn attach<'a>(ends: &'a ProcessEnds, id: &str) -> Result<&'a UnixStream, Failure> {
    ends.attach.as_ref().ok_or_else(|| not_needed(id))
}

/// A root that can be written to over one that cannot.
fn overlay(lower: &str, bundle: &str) -> Mount {
    let options = vec![
        format!("lowerdir={lower}"),
        format!("upperdir={bundle}/upper"),
        format!("workdir={bundle}/work"),
        "index=off".to_owned(),
    ];
    Mount { r#type: "overlay".into(), source: "overlay".into(), options, ..Default::default() }
}

/// The folder that config.json names.
fn root_of(bundle: &Path) -> Result<PathBuf, Failure> {
    let path = bundle.join("config.json");
    let failed = |error: io::Error| Code::InvalidArgument.failure(format!("read {}: {error}", path.display()));
    let config: Value = serde_json::from_slice(&fs::read(&path).map_err(failed)?).map_err(|e| failed(e.into()))?;
    Ok(bundle.join(config["root"]["path"].as_str().unwrap_or("rootfs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_has_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Record::read(dir.path()).disks.is_empty());
        Record { messages: vec!["/m".into()], disks: vec!["disk-1".into()] }.write(dir.path()).unwrap();
        let record = Record::read(dir.path());
        assert_eq!((record.messages, record.disks), (vec![PathBuf::from("/m")], vec!["disk-1".to_owned()]));
    }

    #[test]
    fn refusals_name_the_container() {
        let failure = adapted("web", br#"{"rdma":{"x":{"hcaHandles":1}}}"#, spec::adapt_resources).unwrap_err();
        assert_eq!(failure.message, "container web: RDMA (not in a virtual machine)");
        assert!(adapted("web", b"{", spec::adapt_process).is_err());
    }
}
