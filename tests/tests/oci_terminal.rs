//! Containers in the foreground of a real terminal: modes, sizes, job control, large pastes, the last output.
//!
//! Each test has a pty of its own; a session leader whose controlling terminal it is (`setsid --ctty`) runs the runtime,
//! directly or from an interactive bash, which brings job control.

mod oci_support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use oci_support::{Bundle, ours, peer, wait_for};
use serde_json::json;

/// How long a test waits for words before it fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// What bash says when it waits for a command.
const PROMPT: &str = "PROMPT> ";

/// A terminal, what runs on it, and what it has shown so far.
struct Screen {
    master: File,
    /// Its modes before anything ran on it.
    at_first: Termios,
    child: Child,
    shown: String,
    /// How much of it was looked at.
    read: usize,
}

impl Screen {
    /// Runs a program as the leader of a session on a new terminal of 30 rows and 90 columns.
    fn of(program: &str, args: &[&str]) -> Screen {
        // Closed at every exec, or a program of another test would keep it.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).and_then(|master| {
            grantpt(&master)?;
            unlockpt(&master)?;
            Ok(master)
        });
        let master = master.expect("a terminal");
        let path = ptsname_r(&master).expect("its name");
        let slave = nix::fcntl::open(path.as_str(), flags, Mode::empty()).expect("its other end");
        let master = File::from(OwnedFd::from(master));
        coracle_tests::sys::resize(&master, 30, 90).expect("resize");
        let at_first = tcgetattr(&master).expect("its modes");
        let stream = || Stdio::from(slave.try_clone().expect("dup"));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", program])
            .args(args)
            .env("PS1", PROMPT)
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("setsid of util-linux");
        Screen { master, at_first, child, shown: String::new(), read: 0 }
    }

    /// The runtime itself.
    fn runtime(bundle: &Bundle, args: &[&str]) -> Screen {
        bundle.write_config();
        let (runtime, root) = (oci_support::runtime(), bundle.state_root());
        let mut all = vec!["--root", root.to_str().unwrap()];
        all.extend(args);
        Screen::of(runtime.to_str().unwrap(), &all)
    }

    fn run(bundle: &Bundle) -> Screen {
        Screen::runtime(bundle, &["run", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id])
    }

    /// An interactive shell.
    fn shell() -> Screen {
        let mut screen = Screen::of("bash", &["--norc", "--noprofile", "-i"]);
        screen.expect(PROMPT);
        screen
    }

    fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write to the terminal");
    }

    /// Reads what there is, for a moment; false at the end.
    fn look(&mut self) -> bool {
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(50u8)).expect("poll") == 0 {
            return true;
        }
        let mut buffer = [0u8; 16 << 10];
        match self.master.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.shown.push_str(&String::from_utf8_lossy(&buffer[..n]));
                true
            }
            _ => false,
        }
    }

    /// Waits for words after those that were waited for before; what stood before them.
    #[track_caller]
    fn expect(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown[self.read..].find(words) {
                let before = self.shown[self.read..self.read + at].to_owned();
                self.read += at + words.len();
                return before;
            }
            let more = self.look();
            let found = self.shown[self.read..].contains(words);
            assert!(found || (more && Instant::now() < deadline), "{words:?} did not come after: {}", self.shown);
        }
    }

    /// Waits for the end; the exit code and all that was shown.
    #[track_caller]
    fn end(&mut self) -> (i32, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.child.try_wait().expect("wait");
            while self.look() && self.child.try_wait().expect("wait").is_none() && Instant::now() < deadline {}
            if let Some(status) = status {
                return (status.code().unwrap_or(-1), self.shown.clone());
            }
            assert!(Instant::now() < deadline, "still running: {}", self.shown);
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.master).expect("tcgetattr")
    }

    fn is_raw(&self) -> bool {
        !self.modes().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    fn resize(&self, rows: u16, columns: u16) {
        coracle_tests::sys::resize(&self.master, rows, columns).expect("resize");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.set("/process/terminal", json!(true));
    bundle
}

fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
    line.trim().parse().expect("a number")
}

/// The words that run a bundle from a shell.
fn words(bundle: &Bundle) -> String {
    bundle.write_config();
    format!(
        "{} --root {} run --bundle {} {}",
        oci_support::runtime().display(),
        bundle.state_root().display(),
        bundle.dir.path().display(),
        bundle.id
    )
}

#[test]
fn the_programs_first_look_at_its_size_is_right() {
    if peer("crun") {
        return; // It copies no size here.
    }
    // runc sets the size when the program runs already.
    let wait = if ours() { "" } else { "sleep 0.5; " };
    let bundle = with_terminal(&format!("{wait}tty; stty size; exit 3"));
    let (code, shown) = Screen::run(&bundle).end();
    assert!(shown.contains("30 90"), "{shown}");
    assert_eq!(code, 3);
    bundle.assert_gone();
}

#[test]
fn the_mode_is_raw_meanwhile_and_as_before_afterwards() {
    let bundle = with_terminal("echo up; read line; echo got $line");
    let mut screen = Screen::run(&bundle);
    let before = screen.at_first.clone();
    screen.expect("up");
    wait_for("raw mode", || screen.is_raw());
    screen.write("word\r");
    screen.expect("got word");
    assert_eq!(screen.end().0, 0);
    assert_eq!(screen.modes().local_flags, before.local_flags);
    assert_eq!(screen.modes().input_flags, before.input_flags);
    assert_eq!(screen.modes().output_flags, before.output_flags);
}

#[test]
fn the_mode_comes_back_when_the_program_cannot_be_run() {
    let mut bundle = Bundle::new(&["/bin/no-such-program"]);
    bundle.set("/process/terminal", json!(true));
    let mut screen = Screen::run(&bundle);
    let before = screen.at_first.clone();
    assert_ne!(screen.end().0, 0);
    assert_eq!(screen.modes().local_flags, before.local_flags);
    bundle.assert_gone();
}

#[test]
fn keys_go_to_the_container_not_to_the_runtime() {
    let bundle = with_terminal("trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.05; done");
    let mut screen = Screen::run(&bundle);
    screen.expect("up");
    wait_for("raw mode", || screen.is_raw());
    screen.write("\x03");
    screen.expect("interrupted");
    assert_eq!(screen.end().0, 9);
}

#[test]
fn the_size_follows_the_window() {
    if peer("crun") {
        return; // It copies no size here.
    }
    let bundle = with_terminal("while :; do stty size; sleep 0.05; done");
    let mut screen = Screen::run(&bundle);
    screen.expect("30 90");
    screen.resize(41, 123);
    screen.expect("41 123");
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    assert_eq!(screen.end().0, 137);
}

#[test]
fn exec_has_the_terminal_too() {
    let bundle = Bundle::sleeping();
    let wait = if ours() { "" } else { "sleep 0.5; " };
    let script = format!("{wait}tty; stty size; read line; echo got $line; exit 4");
    let mut screen = Screen::runtime(&bundle, &["exec", "--tty", &bundle.id, "/bin/sh", "-c", &script]);
    screen.expect("/dev/pts/");
    screen.expect("30 90");
    screen.resize(20, 60);
    screen.write("word\r");
    screen.expect("got word");
    assert_eq!(screen.end().0, 4);
}

#[test]
fn a_large_paste_and_its_echo_pass_each_other() {
    if peer("crun") {
        return; // It waits for the one while the other waits for it, and hangs.
    }
    // Every line comes back twice: once as the echo, of which the kernel may drop some, and once from the program.
    let bundle = with_terminal("tr x y; echo end");
    let mut screen = Screen::run(&bundle);
    wait_for("raw mode", || screen.is_raw());
    let line = format!("{}\n", "x".repeat(99));
    let count = 3000;
    let mut writer = screen.master.try_clone().unwrap();
    let paste = line.repeat(count);
    let typing = std::thread::spawn(move || {
        writer.write_all(paste.as_bytes()).unwrap();
        writer.write_all(b"\x04").unwrap();
    });
    screen.expect("end");
    typing.join().unwrap();
    let (code, shown) = screen.end();
    assert_eq!(code, 0);
    assert_eq!(shown.matches('y').count(), 99 * count);
}

#[test]
fn the_last_output_is_not_lost() {
    let count = 64;
    let bundle = with_terminal(&format!("dd if=/dev/zero bs=4096 count={count} 2>/dev/null | tr '\\0' x"));
    let mut screen = Screen::run(&bundle);
    let (code, shown) = screen.end();
    assert_eq!((code, shown.matches('x').count()), (0, 4096 * count));
}

#[test]
fn the_end_of_piped_input_is_the_end_of_the_terminals() {
    if !ours() {
        return; // runc and crun pass on no end: the program waits for ever.
    }
    for (input, output) in [("one\\n", "<one>"), ("one\\ntwo", "<two>")] {
        let bundle = with_terminal("cat > /tmp/in; echo \"<$(sed -n '$p' /tmp/in)>\"");
        let script = format!("printf '{input}' | {}", words(&bundle));
        let mut screen = Screen::of("bash", &["-c", &script]);
        let (code, shown) = screen.end();
        assert_eq!(code, 0, "{shown}");
        assert!(shown.contains(output), "{shown}");
    }
}

#[test]
fn a_program_may_close_its_terminal_and_open_it_again() {
    let bundle = with_terminal(
        "echo first; exec 0<&- 1>&- 2>&-; sleep 0.5; exec 0<>/dev/console 1>&0 2>&0; echo second; read x; echo $x",
    );
    let mut screen = Screen::run(&bundle);
    screen.expect("first");
    screen.expect("second");
    screen.write("third\r");
    screen.expect("third");
    assert_eq!(screen.end().0, 0);
}

#[test]
fn a_background_job_with_a_terminal_stops_before_it_makes_anything() {
    if !ours() {
        return; // runc changes the mode of the shell's terminal; crun too.
    }
    let bundle = with_terminal("echo up; read line; echo got $line");
    let mut screen = Screen::shell();
    screen.write(&format!("{} &\n", words(&bundle)));
    wait_for("the stop", || {
        screen.write("jobs\n");
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline && screen.look() {}
        screen.shown.contains("Stopped")
    });
    assert!(!bundle.state_root().join(&bundle.id).exists(), "nothing is made");
    // Once more: bg does not bring it to the foreground.
    screen.write("bg\n");
    wait_for("the next stop", || {
        screen.write("jobs; echo all jobs\n");
        screen.expect("echo all jobs");
        screen.expect("all jobs").contains("Stopped")
    });
    screen.write("fg\n");
    screen.expect("up");
    wait_for("raw mode", || screen.is_raw());
    screen.write("word\r");
    screen.expect("got word");
    screen.expect(PROMPT);
    screen.write("echo code $?\n");
    screen.expect("code 0");
    bundle.assert_gone();
}

#[test]
fn a_stop_gives_the_mode_back_and_fg_makes_it_raw_again() {
    if !ours() {
        return; // runc and crun pass the signal on and stay.
    }
    let bundle = with_terminal("echo up; read line; echo got $line");
    let mut screen = Screen::shell();
    let pid_file = bundle.dir.path().join("pid");
    screen
        .write(&format!("{}\n", words(&bundle).replace(" run ", &format!(" run --pid-file {} ", pid_file.display()))));
    screen.expect("up");
    wait_for("raw mode", || screen.is_raw());
    let init: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let runtime = parent_of(init);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(runtime), nix::sys::signal::SIGTSTP).unwrap();
    screen.expect("Stopped");
    screen.expect(PROMPT);
    assert_eq!(bundle.status(), "running");
    screen.resize(22, 66);
    screen.write("fg\n");
    wait_for("raw mode again", || screen.is_raw());
    screen.write("word\r");
    screen.expect("got word");
    screen.expect(PROMPT);
    bundle.assert_gone();
}

#[test]
fn a_container_without_a_terminal_never_gets_the_hosts() {
    if peer("crun") {
        return; // crun hands its own streams over.
    }
    let bundle =
        Bundle::sh("for n in 0 1 2; do test -t $n && echo \"$n is a terminal\"; done; cat; echo err >&2; exit 5");
    let mut screen = Screen::run(&bundle);
    screen.write("typed\n\x04");
    let (code, shown) = screen.end();
    assert_eq!(code, 5, "{shown}");
    assert!(!shown.contains("is a terminal"), "{shown}");
    // The echo, and cat's.
    assert_eq!(shown.matches("typed").count(), 2, "{shown}");
    assert!(shown.contains("err"), "{shown}");
    bundle.assert_gone();
}

#[test]
fn a_background_job_without_a_terminal_runs_and_reads_when_it_is_in_front() {
    if !ours() {
        return; // runc reads in a busy loop, crun's container reads what is meant for the shell.
    }
    let bundle = Bundle::sh("echo up; read line; echo got $line");
    let mut screen = Screen::shell();
    screen.write(&format!("{} &\n", words(&bundle)));
    screen.expect("up");
    screen.write("echo for the shell\n");
    screen.expect("echo for the shell");
    screen.expect("for the shell");
    assert_eq!(bundle.status(), "running");
    screen.write("fg\n");
    screen.expect("run --bundle");
    screen.write("word\n");
    screen.expect("got word");
    screen.expect(PROMPT);
    bundle.assert_gone();
}

#[test]
fn a_slow_reader_delays_no_signal() {
    if !ours() {
        return; // It is our own loop that is looked at.
    }
    // Nobody reads: the output fills all buffers.
    let bundle = with_terminal("trap 'exit 9' TERM; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done");
    bundle.write_config();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let dir = bundle.dir.path().to_str().unwrap();
    let mut child = bundle.command(&["run", "--bundle", dir, &bundle.id]).stdout(writer).spawn().unwrap();
    wait_for("the start", || bundle.oci(&["state", &bundle.id]).out.contains("running"));
    std::thread::sleep(Duration::from_millis(300));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    // The first is passed on; the second ends the wait for the reader of the last output.
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    wait_for("the end", || {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        child.try_wait().unwrap().is_some()
    });
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    bundle.assert_gone();
}

#[test]
fn a_shell_in_the_container_has_job_control_of_its_own() {
    let mut bundle = Bundle::new(&["/bin/sh", "-i"]);
    bundle.set("/process/terminal", json!(true));
    bundle.set("/process/env", json!(["PATH=/bin", "PS1=INSIDE> "]));
    let mut screen = Screen::run(&bundle);
    screen.expect("INSIDE> ");
    wait_for("raw mode", || screen.is_raw());
    // The shell's line editor would take more than its own line.
    screen.write("echo $((40 + 2)); cat\n");
    screen.expect("42");
    screen.write("word\n");
    // The echo, and cat's.
    screen.expect("word");
    screen.expect("word");
    screen.write("\x1a");
    screen.expect("Stopped");
    screen.write("echo $((40 + 3)); fg\n");
    screen.expect("43");
    screen.write("more\n");
    screen.expect("more");
    screen.expect("more");
    screen.write("\x03");
    screen.expect("INSIDE> ");
    screen.write("exit 7\n");
    let (code, shown) = screen.end();
    assert_eq!(code, 7);
    assert!(!shown.contains("job control turned off"), "{shown}");
}

#[test]
fn a_terminal_that_goes_away_is_the_end_of_the_input() {
    if !ours() {
        return; // With runc and crun the program waits for ever, and so do they.
    }
    let bundle = with_terminal("cat; echo end > /tmp/end; exit 8");
    let mut screen = Screen::run(&bundle);
    wait_for("raw mode", || screen.is_raw());
    let nothing = File::open("/dev/null").unwrap();
    drop(std::mem::replace(&mut screen.master, nothing));
    wait_for("the end", || bundle.rootfs().join("tmp/end").exists());
    assert_eq!(screen.child.wait().unwrap().code(), Some(8));
    bundle.assert_gone();
}
