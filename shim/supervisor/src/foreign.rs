//! Containers of another OCI runtime: any program with runc's command line (runc, crun, youki, `coracle-oci`).
//!
//! A worker runs the program for each act and reports what came of it. The program's children outlive it: the
//! supervisor is the reaper of orphans, so the container's init, and an exec's process, become its own children, and
//! their exits reach it as those of our own runtime's do.
//!
//! ```text
//! <bundle>/foreign/<id>.json    which program made the container, and its cgroup: for clearing up after a crash
//! <bundle>/foreign/state/       the program's --root, if no other was asked for
//! <bundle>/foreign/act-<pid>/   what one run of the program writes and reads; gone when the worker ends
//! ```
//! The bundle is the sandbox's; under containerd, which clears up after each container by itself, the container's.
//!
//! The root filesystem is mounted in a mount namespace of the worker's, in which the program then makes the container:
//! the host never sees it. Statistics and processes are read from the container's cgroup, which needs no program.

use crate::failure::{Fail, Failure};
use crate::oci::{Act, not_needed};
use crate::ops::{self, Created};
use crate::stdio::ProcessEnds;
use coracle_proto::ttrpc::Code;
use coracle_proto::{runc, task};
use coracle_runtime::cgroup::{Cgroup, CgroupState};
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder's name in the sandbox's bundle.
pub const FOLDER: &str = "foreign";
/// Of a log only this much is read for the error at its end.
const MAX_LOG: u64 = 256 << 10;
/// How long the terminal may take to come once the program is done: it was sent before that.
const TERMINAL_WAIT_MS: u16 = 5000;
/// The terminal's socket within a run's folder.
const CONSOLE: &str = "console.sock";
/// Of a service manager or a socket activation they speak to us, and would be passed on into containers.
const OURS_ALONE: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// A container of another runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    binary: PathBuf,
    root: PathBuf,
    folder: PathBuf,
    #[serde(default)]
    systemd_cgroup: bool,
    #[serde(default)]
    no_pivot: bool,
    #[serde(default)]
    no_new_keyring: bool,
}

/// `<id>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    runtime: Foreign,
    /// Not known before the container is created.
    #[serde(default)]
    cgroup: Option<CgroupState>,
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Failure {
    Code::Unknown.failure(format!("{what}: {error}"))
}

impl Foreign {
    /// The runtime that the options name, with its state in `root` or in the folder.
    pub fn new(id: &str, options: &runc::Options, folder: &Path, root: Option<PathBuf>) -> Result<Self, String> {
        if id == "state" {
            return Err("it cannot have this id".to_owned());
        }
        let root = root.unwrap_or_else(|| folder.join("state"));
        Ok(Foreign {
            binary: PathBuf::from(&options.binary_name),
            root,
            folder: folder.to_owned(),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        })
    }

    /// Does what a worker is for.
    pub fn perform(&self, id: &str, act: Act) -> Result<Vec<u8>, Failure> {
        let done = |()| Vec::new();
        match act {
            Act::Create { request, ends, .. } => self.create(id, *request, ends),
            Act::Undo { bundle, systemd } => {
                self.delete(id).and_then(|()| ops::clear_cgroup(id, &bundle, systemd)).map(done)
            }
            Act::Start => self.run(&Run::new(self, "start", id)?, &[id]).map(done),
            Act::Exec { spec, names, ends, .. } => self.exec(id, &spec, names.terminal, ends),
            Act::Kill { signal, .. } => self.run(&Run::new(self, "kill", id)?, &[id, &signal.to_string()]).map(done),
            Act::KillTree { pid, .. } => ops::kill_tree(id, pid),
            Act::KillAll(signal) => self.kill_all(id, signal).map(done),
            Act::Delete { .. } => self.delete(id).map(done),
            Act::Freeze(true) => self.run(&Run::new(self, "pause", id)?, &[id]).map(done),
            Act::Freeze(false) => self.run(&Run::new(self, "resume", id)?, &[id]).map(done),
            Act::Update(resources) => {
                let run = Run::new(self, "update", id)?;
                let file = run.write("resources.json", &resources)?;
                self.run(&run, &["--resources", &file, id]).map(done)
            }
            Act::Checkpoint(_) => Err(not_needed(id)),
            Act::Pids(execs) => {
                let pids = self.cgroup(id)?.pids().map_err(|error| failed(format!("list {id}"), error))?;
                Ok(ops::process_list(pids, &execs))
            }
            Act::Stats(oom_file) => {
                let cgroup = self.cgroup(id)?;
                let stats = cgroup.stats().map_err(|error| failed(format!("statistics of {id}"), error))?;
                Ok(ops::stats_answer(&stats, cgroup.state().version, &oom_file))
            }
            Act::Resize { .. } | Act::CloseInput { .. } | Act::Wait { .. } => Err(not_needed(id)),
        }
    }

    fn create(&self, id: &str, request: task::CreateTaskRequest, ends: ProcessEnds) -> Result<Vec<u8>, Failure> {
        let bundle = PathBuf::from(&request.bundle);
        self.record(id, None)?;
        let created = self.create_recorded(id, &bundle, request, ends);
        if created.is_err() {
            let _ = fs::remove_file(self.record_path(id));
        }
        created
    }

    fn create_recorded(
        &self,
        id: &str,
        bundle: &Path,
        request: task::CreateTaskRequest,
        ends: ProcessEnds,
    ) -> Result<Vec<u8>, Failure> {
        let run = Run::new(self, "create", id)?;
        if !request.rootfs.is_empty() {
            coracle_runtime::leave_mount_namespace(bundle)?;
            let mounts: Vec<_> = request.rootfs.into_iter().map(ops::rootfs_mount).collect();
            coracle_runtime::mount_rootfs(bundle, &mounts)?;
        }
        let own_pid_namespace = has_own_pid_namespace(bundle)?;
        let mut words = vec!["--bundle", request.bundle.as_str()];
        words.extend(self.no_pivot.then_some("--no-pivot"));
        words.extend(self.no_new_keyring.then_some("--no-new-keyring"));
        let pid = self.run_process(&run, &words, id, ends)?;
        let known = Cgroup::of_process(pid).map_err(|error| failed(format!("create {id}"), error));
        let known = known.map(|cgroup| cgroup.map(|cgroup| cgroup.state()));
        let recorded = known.and_then(|cgroup| self.record(id, cgroup.clone()).map(|()| cgroup));
        // Without its record nobody could clear up after it.
        let cgroup = recorded.inspect_err(|_| drop(self.delete(id)))?;
        let oom_file = cgroup.as_ref().and_then(ops::oom_file).unwrap_or_default();
        Ok(Created { pid, own_pid_namespace, oom_file, ..Created::default() }.encode())
    }

    fn exec(&self, id: &str, spec: &[u8], terminal: bool, ends: ProcessEnds) -> Result<Vec<u8>, Failure> {
        let invalid = |error| Code::InvalidArgument.failure(format!("process to exec in {id}: {error}"));
        let mut process: Value = serde_json::from_slice(spec).map_err(invalid)?;
        process["terminal"] = Value::Bool(terminal);
        let run = Run::new(self, "exec", id)?;
        let file = run.write("process.json", process.to_string().as_bytes())?;
        let pid = self.run_process(&run, &["--detach", "--process", &file], id, ends)?;
        Ok(Created { pid, ..Created::default() }.encode())
    }

    /// Runs the program so that it leaves a process behind, and returns the pid of that.
    fn run_process(&self, run: &Run, words: &[&str], id: &str, ends: ProcessEnds) -> Result<i32, Failure> {
        let mut words = words.to_vec();
        let file = run.path("pid");
        words.extend(["--pid-file", &file]);
        let console = ends.console.as_ref().map(|_| run.listen()).transpose()?;
        if let Some((_, _, path)) = &console {
            words.extend(["--console-socket", path]);
        }
        words.push(id);
        self.run_with(run, &words, [ends.stdin, ends.stdout, ends.stderr])?;
        let unread = |error: &dyn std::fmt::Display| failed(format!("{}: read its pid", run.what), error);
        let text = fs::read_to_string(&file).map_err(|error| unread(&error))?;
        let pid = text.trim().parse().map_err(|error| unread(&error))?;
        if let (Some((_folder, listener, _)), Some(socket)) = (console, ends.console) {
            pass_terminal(&listener, &socket).map_err(|error| {
                // Without its terminal it is of no use.
                let _ = crate::sys::kill(pid, SIGKILL);
                failed(format!("{}: take over the terminal", run.what), error)
            })?;
        }
        Ok(pid)
    }

    fn kill_all(&self, id: &str, signal: i32) -> Result<(), Failure> {
        let asked = Run::new(self, "kill", id).and_then(|run| self.run(&run, &["--all", id, &signal.to_string()]));
        // A runtime may refuse when the init is dead already, and just then it matters.
        asked.or_else(|failure| match self.cgroup(id) {
            Ok(cgroup) => cgroup.kill_all(signal).map_err(|error| failed(failure.message, error)),
            Err(_) => Err(failure),
        })
    }

    /// Removes the container and what is left in its cgroup; what is gone already is no error.
    pub fn delete(&self, id: &str) -> Result<(), Failure> {
        let deleted = self.run(&Run::new(self, "delete", id)?, &["--force", id]);
        match deleted {
            Err(failure) if !["does not exist", "not found", "No such"].iter().any(|w| failure.message.contains(w)) => {
                return Err(failure);
            }
            _ => {}
        }
        if let Ok(cgroup) = self.cgroup(id) {
            let cleared = cgroup.kill_all(SIGKILL).and_then(|()| cgroup.remove());
            cleared.map_err(|error| failed(format!("delete {id}"), error))?;
        }
        for path in [self.record_path(id), self.folder.join("state"), self.folder.clone()] {
            // The folders go with the last container.
            let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        }
        Ok(())
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn record(&self, id: &str, cgroup: Option<CgroupState>) -> Result<(), Failure> {
        let path = self.record_path(id);
        let what = || format!("write {}", path.display());
        let text = serde_json::to_vec(&Record { runtime: self.clone(), cgroup }).map_err(|e| failed(what(), e))?;
        fs::create_dir_all(&self.root).map_err(|error| failed(format!("make {}", self.root.display()), error))?;
        fs::create_dir_all(&self.folder).and_then(|()| fs::write(&path, text)).map_err(|error| failed(what(), error))
    }

    /// The container's cgroup, as it was found when it was created.
    fn cgroup(&self, id: &str) -> Result<Cgroup, Failure> {
        let path = self.record_path(id);
        let record = read_record(&path).map_err(|error| failed(format!("read {}", path.display()), error))?;
        let unknown = || Code::Unimplemented.failure(format!("{id}: {} made no cgroup for it", self.binary.display()));
        record.cgroup.map(|state| Cgroup::open(&state)).ok_or_else(unknown)
    }

    fn run(&self, run: &Run, words: &[&str]) -> Result<(), Failure> {
        self.run_with(run, words, [None, None, None])
    }

    fn run_with(&self, run: &Run, words: &[&str], streams: [Option<OwnedFd>; 3]) -> Result<(), Failure> {
        let log = run.folder.join("log");
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).arg("--log").arg(&log).args(["--log-format", "json"]);
        command.args(self.systemd_cgroup.then_some("--systemd-cgroup"));
        command.arg(run.verb).args(words);
        forget_own_environment(&mut command);
        let [stdin, stdout, stderr] = streams.map(|end| end.map_or_else(Stdio::null, Stdio::from));
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let status = command.status().map_err(|error| failed(format!("run {}", self.binary.display()), error))?;
        match status.success() {
            true => Ok(()),
            false => {
                let words = last_error(&log).unwrap_or_else(|| format!("{status}, without a word in its log"));
                Err(failed(&run.what, words))
            }
        }
    }
}

/// Takes out of a program's environment what is ours alone.
pub fn forget_own_environment(command: &mut Command) {
    for name in OURS_ALONE {
        command.env_remove(name);
    }
}

/// All containers of other runtimes that a folder tells of, for clearing up after a supervisor that died.
pub fn recorded(folder: &Path) -> io::Result<Vec<(String, Foreign)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(id) = path.file_stem().and_then(|stem| stem.to_str())
        {
            found.push((id.to_owned(), read_record(&path)?.runtime));
        }
    }
    Ok(found)
}

fn read_record(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// One run of the program, with a folder of its own that goes with it.
struct Run {
    verb: &'static str,
    /// `runc create web`, for errors.
    what: String,
    folder: PathBuf,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Run {
    fn new(foreign: &Foreign, verb: &'static str, id: &str) -> Result<Self, Failure> {
        let program = foreign.binary.file_name().unwrap_or_default().to_string_lossy();
        // A worker performs one act, and its runs are one after the other.
        let folder = foreign.folder.join(format!("act-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| failed(format!("make {}", folder.display()), error))?;
        Ok(Run { verb, what: format!("{program} {verb} {id}"), folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<String, Failure> {
        let path = self.path(name);
        fs::write(&path, text).map_err(|error| failed(format!("write {path}"), error))?;
        Ok(path)
    }

    /// Listens for the terminal. The path goes through a descriptor of the folder, as a socket's must be short; the
    /// folder stays open with the first of what is returned.
    fn listen(&self) -> Result<(File, UnixListener, String), Failure> {
        let opened = File::open(&self.folder).and_then(|folder| {
            let path = format!("/proc/{}/fd/{}/{CONSOLE}", std::process::id(), folder.as_raw_fd());
            let listener = UnixListener::bind(&path)?;
            Ok((folder, listener, path))
        });
        opened.map_err(|error| failed(format!("{}: listen for the terminal", self.what), error))
    }
}

/// Takes the terminal from the program and hands it to the supervisor.
fn pass_terminal(listener: &UnixListener, socket: &UnixStream) -> io::Result<()> {
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, PollTimeout::from(TERMINAL_WAIT_MS))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it was not sent"));
    }
    let (connection, _) = listener.accept()?;
    let terminal = coracle_runtime::terminal::receive_master(&connection)?;
    let fds = [terminal.as_raw_fd()];
    let message = [IoSlice::new(b"terminal")];
    sendmsg::<()>(socket.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
    Ok(())
}

/// Whether the container's init is the first of a PID namespace of its own.
fn has_own_pid_namespace(bundle: &Path) -> Result<bool, Failure> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|error| failed(format!("read {}", path.display()), error))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|error| failed(format!("read {}", path.display()), error))?;
    let namespaces = config["linux"]["namespaces"].as_array();
    let own = |namespace: &Value| namespace["type"] == "pid" && namespace["path"].as_str().unwrap_or("").is_empty();
    Ok(namespaces.is_some_and(|all| all.iter().any(own)))
}

/// The last message of a log of JSON lines, on one line.
fn last_error(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    File::open(log).ok()?.take(MAX_LOG).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let (mut errors, mut others) = (None, None);
    for line in lines {
        let Some(words) = line["msg"].as_str() else { continue };
        let words = words.trim().replace('\n', "; ");
        match line["level"].as_str() {
            Some("error" | "fatal" | "panic" | "ERROR") => {
                errors = Some(words);
                break;
            }
            _ => others = others.or(Some(words)),
        }
    }
    errors.or(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_last_one_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let said = |text: &str| {
            fs::write(&path, text).unwrap();
            last_error(&path)
        };
        assert_eq!(said(""), None);
        let runc = concat!(
            r#"{"level":"warning","msg":"first"}"#,
            "\n",
            r#"{"level":"error","msg":"runc create failed:\nno such file"}"#,
            "\n",
            r#"{"level":"debug","msg":"done"}"#,
            "\n",
        );
        assert_eq!(said(runc).unwrap(), "runc create failed:; no such file");
        assert_eq!(said("{\"msg\":\"words\"}\nnot json").unwrap(), "words");
    }

    #[test]
    fn its_state_is_in_the_folder_or_where_it_is_wanted() {
        let options = runc::Options { binary_name: "runc".into(), ..Default::default() };
        let new = |id, root| Foreign::new(id, &options, Path::new("/b"), root);
        assert_eq!(new("web", None).unwrap().root, Path::new("/b/state"));
        assert_eq!(new("web", Some("/r".into())).unwrap().root, Path::new("/r"));
        assert!(new("state", None).is_err());
    }

    #[test]
    fn what_a_supervisor_left_is_found_by_its_records() {
        let dir = tempfile::tempdir().unwrap();
        let options = runc::Options { binary_name: "runc".into(), ..Default::default() };
        let foreign = Foreign::new("web", &options, &dir.path().join("foreign"), None).unwrap();
        assert_eq!(recorded(&foreign.folder).unwrap(), []);
        foreign.record("web", None).unwrap();
        assert_eq!(recorded(&foreign.folder).unwrap(), [("web".to_owned(), foreign.clone())]);
        assert!(foreign.cgroup("web").unwrap_err().message.contains("made no cgroup"));
    }

    #[test]
    fn a_pid_namespace_with_a_path_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = |text: &str| {
            fs::write(dir.path().join("config.json"), text).unwrap();
            has_own_pid_namespace(dir.path()).unwrap()
        };
        assert!(own(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#));
        assert!(!own(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#));
        assert!(!own("{}"));
    }
}
