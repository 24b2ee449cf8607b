//! Running one plugin: its configuration on standard input, what is asked for in the environment, its answer on standard
//! output.
//!
//! A plugin is another's program, so nothing of it is waited for without an end: past the deadline it is killed together
//! with whatever it started. Its process group is its own, and each of its processes carries a mark in the environment,
//! by which those are found, too, that left the group or lost their parent. What a plugin leaves behind when it ended in
//! time is left alone (some start daemons), and that it still holds our pipes does not matter: an answer is complete
//! when the plugin has ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::net::{ADMIN_PATH, Error};
use crate::sys;

/// An answer is some hundred bytes; a plugin that writes more than this is killed.
const MAX_ANSWER: usize = 1 << 20;
/// How much of a plugin's standard error is kept: its end.
const MAX_WORDS: usize = 16 << 10;
/// How much of a plugin's words goes into one line of ours.
const MAX_LINE: usize = 1000;
/// How often the end of a plugin is looked for that closed its pipes, or left them to another.
const EXIT_POLL: Duration = Duration::from_millis(2);
/// A program that was just written may still be open for writing in a child of another thread.
const BUSY_ATTEMPTS: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(20);
/// Killed processes may have started others meanwhile.
const KILL_ROUNDS: usize = 5;
/// What is killed is gone soon, or hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(1);
/// Names one run in the environment of all its processes.
const MARK: &str = "CORACLE_CNI_CALL";

/// What can be asked of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }
}

/// Which attachment a plugin is asked about; empty for GC and STATUS.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject<'a> {
    pub(super) container: &'a str,
    pub(super) netns: &'a str,
    pub(super) ifname: &'a str,
    pub(super) args: &'a str,
}

/// Where plugins are and how long they may take.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) timeout: Duration,
}

impl Plugins {
    /// A plugin's program: the first of its name in the folders.
    pub(super) fn find(&self, kind: &str) -> Result<PathBuf, String> {
        let file = self.dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        file.ok_or_else(|| {
            let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            format!("no program of this name is in {} (install the CNI plugins, or name their folder)", dirs.join(", "))
        })
    }

    /// Asks a plugin of a network; the answer is its standard output.
    pub(super) fn ask(
        &self,
        network: &str,
        kind: &str,
        verb: Verb,
        subject: &Subject,
        config: &Value,
    ) -> Result<Vec<u8>, Error> {
        let failed = |words: String| Error::Plugin {
            network: network.to_owned(),
            plugin: kind.to_owned(),
            command: verb.as_str(),
            words,
        };
        let program = self.find(kind).map_err(failed)?;
        let path = self.dirs.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(":");
        let mut env: HashMap<&str, &str> = HashMap::from([("CNI_COMMAND", verb.as_str()), ("CNI_PATH", path.as_str())]);
        let optional = [
            ("CNI_CONTAINERID", subject.container),
            ("CNI_NETNS", subject.netns),
            ("CNI_IFNAME", subject.ifname),
            ("CNI_ARGS", subject.args),
        ];
        if !subject.container.is_empty() {
            // An empty CNI_NETNS says that the namespace is gone.
            env.extend(optional);
        }
        let outcome = run(&program, config.to_string().as_bytes(), &env, self.timeout).map_err(failed)?;
        match outcome.status.success() {
            true => Ok(outcome.answer),
            false => Err(failed(outcome.why())),
        }
    }

    /// The versions a plugin says that it speaks.
    pub(super) fn versions(&self, program: &Path) -> Result<Vec<String>, String> {
        // Plugins built with an old library refuse without these.
        let env = HashMap::from([
            ("CNI_COMMAND", Verb::Version.as_str()),
            ("CNI_NETNS", "dummy"),
            ("CNI_IFNAME", "dummy"),
            ("CNI_PATH", "dummy"),
        ]);
        let outcome = run(program, br#"{"cniVersion": "1.1.0"}"#, &env, self.timeout)?;
        if !outcome.status.success() {
            return Err(outcome.why());
        }
        let answer: Value =
            serde_json::from_slice(&outcome.answer).map_err(|e| format!("its answer is no JSON: {e}"))?;
        let list = answer.get("supportedVersions").and_then(Value::as_array);
        let list = list.ok_or("its answer has no `supportedVersions`")?;
        Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

/// How a plugin ended.
#[derive(Debug)]
struct Outcome {
    status: ExitStatus,
    answer: Vec<u8>,
    words: Vec<u8>,
}

impl Outcome {
    /// Why it failed, in its own words: the error it answered, else what it wrote to standard error or output.
    fn why(&self) -> String {
        let error: Value = serde_json::from_slice(&self.answer).unwrap_or_default();
        let text = |key: &str| error.get(key).and_then(Value::as_str).filter(|t| !t.trim().is_empty());
        if let Some(msg) = text("msg") {
            let code = error.get("code").map(|code| format!(" (code {code})")).unwrap_or_default();
            let details = text("details").map(|details| format!(": {details}")).unwrap_or_default();
            return one_line(&format!("{msg}{code}{details}"));
        }
        let said = [&self.words, &self.answer].into_iter().map(|said| one_line(&String::from_utf8_lossy(said)));
        let said = said.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        match said.is_empty() {
            true => format!("it failed ({}) and did not say why", self.status),
            false => format!("{said} ({})", self.status),
        }
    }
}

/// Text of any kind as a part of one line, cut where it is long.
pub(super) fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut line = lines.collect::<Vec<_>>().join("; ").replace(|c: char| c.is_control(), " ");
    if line.len() > MAX_LINE {
        let cut = (0..=MAX_LINE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or_default();
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

/// Runs a program to its end.
fn run(program: &Path, input: &[u8], env: &HashMap<&str, &str>, timeout: Duration) -> Result<Outcome, String> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mark = format!("{}.{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CNI_")) {
        command.env_remove(key);
    }
    let own_path = std::env::var("PATH").unwrap_or_default();
    let path = [own_path.as_str(), ADMIN_PATH].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(":");
    command.env("PATH", path).env(MARK, &mark).envs(env).process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let deadline = Instant::now() + timeout;
    let mut child = spawn(&mut command, input).map_err(|e| format!("run {}: {e}", program.display()))?;
    let result = follow(&mut child, deadline);
    match result {
        Ok((status, answer, words)) => Ok(Outcome { status, answer, words }),
        Err(why) => {
            kill_tree(child, &mark);
            Err(match why {
                Stop::Late => format!("no answer within {} s; it was killed", timeout.as_secs_f32()),
                Stop::TooMuch => format!("it wrote more than {MAX_ANSWER} bytes; it was killed"),
                Stop::Broken(e) => format!("read its answer: {e}"),
            })
        }
    }
}

fn spawn(command: &mut Command, input: &[u8]) -> io::Result<Child> {
    for attempt in 1.. {
        // A file and not a pipe: a plugin that does not read its input cannot keep us waiting.
        let mut stdin = File::from(memfd_create(c"cni-config", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(input)?;
        io::Seek::rewind(&mut stdin)?;
        match command.stdin(stdin).spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS => sleep(BUSY_WAIT),
            other => return other,
        }
    }
    unreachable!("the last attempt returned")
}

/// Why a plugin is not waited for any longer.
enum Stop {
    Late,
    TooMuch,
    Broken(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Stop {
        Stop::Broken(e)
    }
}

impl From<nix::Error> for Stop {
    fn from(e: nix::Error) -> Stop {
        Stop::Broken(e.into())
    }
}

/// Reads both pipes until the program has ended; then what is in them by now.
fn follow(child: &mut Child, deadline: Instant) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Stop> {
    let mut out = Drain::new(child.stdout.take().expect("stdout is a pipe"))?;
    let mut err = Drain::new(child.stderr.take().expect("stderr is a pipe"))?;
    loop {
        let ended = child.try_wait()?;
        out.read()?;
        err.read()?;
        if out.bytes.len() > MAX_ANSWER {
            return Err(Stop::TooMuch);
        }
        let surplus = err.bytes.len().saturating_sub(MAX_WORDS);
        err.bytes.drain(..surplus);
        if let Some(status) = ended {
            return Ok((status, out.bytes, err.bytes));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stop::Late);
        }
        wait_for(&[&out, &err], left)?;
    }
}

/// Waits until one of the pipes has something, but not for long: a program may end without a word.
fn wait_for(pipes: &[&Drain; 2], left: Duration) -> Result<(), Stop> {
    let mut fds: Vec<PollFd> =
        pipes.iter().filter(|p| !p.ended).map(|p| PollFd::new(p.fd(), PollFlags::POLLIN)).collect();
    if fds.is_empty() {
        sleep(EXIT_POLL.min(left));
        return Ok(());
    }
    const LONGEST_MS: u8 = 20;
    let ms = u8::try_from(left.as_millis()).unwrap_or(LONGEST_MS).clamp(1, LONGEST_MS);
    match poll(&mut fds, ms) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The reading end of a pipe that never blocks.
struct Drain {
    pipe: Box<dyn Pipe>,
    bytes: Vec<u8>,
    ended: bool,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Drain {
    fn new(pipe: impl Pipe + 'static) -> io::Result<Drain> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Drain { pipe: Box::new(pipe), bytes: Vec::new(), ended: false })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what is there, within reason.
    fn read(&mut self) -> io::Result<()> {
        const PIECE: usize = 64 << 10;
        let mut buffer = vec![0; PIECE];
        let end = self.bytes.len() + MAX_ANSWER + PIECE;
        while !self.ended && self.bytes.len() < end {
            match self.pipe.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(have) => self.bytes.extend_from_slice(&buffer[..have]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Kills a program that has not been waited for, its group, and whatever carries its mark.
fn kill_tree(mut child: Child, mark: &str) {
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid is an i32"));
    let mark = format!("{MARK}={mark}");
    for _ in 0..KILL_ROUNDS {
        // The group's number is not used again while its leader has not been waited for.
        let _ = killpg(group, Signal::SIGKILL);
        if kill_marked(&mark, group) == 0 {
            break;
        }
    }
    let deadline = Instant::now() + KILL_WAIT;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            // It hangs in the kernel; somebody has to wait for it.
            std::thread::spawn(move || child.wait());
            return;
        }
        sleep(EXIT_POLL);
    }
}

/// Kills every process with the mark but the leader, which stays to be waited for; tells how many there were.
fn kill_marked(mark: &str, leader: Pid) -> usize {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == leader.as_raw() {
            continue;
        }
        // First the handle, then the question whose it is: so nobody else is killed who got the pid meanwhile.
        let Ok(handle) = sys::pidfd_open(pid) else { continue };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
            && sys::pidfd_send_signal(&handle, Signal::SIGKILL as i32).is_ok()
        {
            killed += 1;
        }
    }
    killed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    const SHORT: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(30);

    struct Place(tempfile::TempDir);

    impl Place {
        fn with(script: &str) -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            let path = place.0.path().join("plug");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            place
        }

        fn plugins(&self, timeout: Duration) -> Plugins {
            Plugins { dirs: vec!["/nonexistent".into(), self.0.path().into()], timeout }
        }

        fn ask(&self, timeout: Duration) -> Result<String, String> {
            let subject = Subject { container: "c1", netns: "", ifname: "eth0", args: "A=b" };
            let answer = self.plugins(timeout).ask("net", "plug", Verb::Add, &subject, &json!({"name": "net"}));
            answer.map(|a| String::from_utf8(a).unwrap()).map_err(|e| e.to_string())
        }
    }

    fn alive(pid_file: &Path) -> bool {
        let pid = fs::read_to_string(pid_file).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    fn a_plugin_gets_its_configuration_and_environment_and_answers() {
        let place = Place::with("cat; env | grep ^CNI_ | sort; echo noise >&2");
        let answer = place.ask(LONG).unwrap();
        let dir = place.0.path().display();
        assert_eq!(
            answer,
            format!(
                "{{\"name\":\"net\"}}CNI_ARGS=A=b\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=\n\
                 CNI_PATH=/nonexistent:{dir}\n"
            )
        );
    }

    #[test]
    fn an_error_is_one_line_with_plugin_network_and_the_plugins_own_words() {
        let json = r#"{"cniVersion": "1.0.0", "code": 11, "msg": "try again\nlater", "details": "no\n\nluck"}"#;
        let error = Place::with(&format!("printf %s '{json}'; exit 1")).ask(LONG).unwrap_err();
        assert_eq!(error, "CNI network net: plugin plug: ADD: try again; later (code 11): no; luck");
        let error = Place::with("echo out; echo 'first' >&2; echo second >&2; exit 3").ask(LONG).unwrap_err();
        assert!(error.ends_with("first; second; out (exit status: 3)"), "{error}");
        let error = Place::with("kill -9 $$").ask(LONG).unwrap_err();
        assert!(error.contains("signal: 9") && error.contains("did not say why"), "{error}");
        let missing = Plugins { dirs: vec!["/nonexistent".into()], timeout: LONG };
        let error = missing.ask("net", "plug", Verb::Del, &Subject::default(), &json!({})).unwrap_err().to_string();
        assert!(error.contains("plugin plug: DEL: no program of this name is in /nonexistent"), "{error}");
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_all_that_it_started() {
        let place = Place::with(
            "cd $(dirname $0); sh -c 'echo $$ > child; exec sleep 1000' & \
             setsid sh -c 'echo $$ > daemon; exec sleep 1000' & \
             sh -c '(setsid sh -c \"echo \\$\\$ > orphan; exec sleep 1000\" &)'; \
             while ! [ -s child -a -s daemon -a -s orphan ]; do sleep 0.01; done; sleep 1000",
        );
        let error = place.ask(Duration::from_secs(5)).unwrap_err();
        assert!(error.contains("no answer within 5 s; it was killed"), "{error}");
        let deadline = Instant::now() + LONG;
        for who in ["child", "daemon", "orphan"] {
            while alive(&place.0.path().join(who)) {
                assert!(Instant::now() < deadline, "{who} lives");
                sleep(EXIT_POLL);
            }
        }
    }

    #[test]
    fn a_grandchild_that_holds_the_pipes_keeps_nobody_waiting_and_is_left_alone() {
        let place = Place::with(
            "cd $(dirname $0); setsid sh -c 'echo $$ > daemon; exec sleep 1000' & \
             while ! [ -s daemon ]; do sleep 0.01; done; echo '{}'",
        );
        assert_eq!(place.ask(LONG).unwrap(), "{}\n");
        let daemon = place.0.path().join("daemon");
        assert!(alive(&daemon));
        let pid = fs::read_to_string(daemon).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_plugin_that_writes_without_end_or_reads_nothing_is_bounded() {
        let error = Place::with("exec cat /dev/zero").ask(LONG).unwrap_err();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        let error = Place::with("cat /dev/zero | head -c 300000 | tr '\\0' 'x' >&2; echo end >&2; exit 1").ask(LONG);
        assert!(error.unwrap_err().len() < 2 * MAX_LINE);
        let place = Place::with("exec sleep 1000");
        let big = json!({"x": "y".repeat(1 << 20)});
        let asked = place.plugins(SHORT).ask("net", "plug", Verb::Status, &Subject::default(), &big);
        assert!(asked.unwrap_err().to_string().contains("0.5 s"));
    }

    #[test]
    fn versions_are_asked_for() {
        let place =
            Place::with("test \"$CNI_COMMAND\" = VERSION && echo '{\"supportedVersions\": [\"0.4.0\", \"1.0.0\"]}'");
        let plugins = place.plugins(LONG);
        assert_eq!(plugins.versions(&plugins.find("plug").unwrap()).unwrap(), ["0.4.0", "1.0.0"]);
        let silent = Place::with("exit 0");
        assert!(silent.plugins(LONG).versions(&silent.0.path().join("plug")).unwrap_err().contains("no JSON"));
    }
}
