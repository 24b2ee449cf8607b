//! `coracle attach`, with and without a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use coracle_tests::machine::Machine;
use nix::pty::{Winsize, openpty};

use crate::{SLEEP, start, until};

/// `coracle` on a terminal of 100 columns and 30 rows.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(machine: &Machine, args: &[&str]) -> Terminal {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("make a terminal");
        let mut command = machine.command(args);
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a second descriptor"));
        command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = machine.run(|| command.spawn()).expect("start coracle");
        drop((command, pty.slave));
        let keys = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, written) = (keys.try_clone().expect("a second descriptor"), screen.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut chunk) {
                written.lock().unwrap().extend_from_slice(&chunk[..length]);
            }
        });
        Terminal { child, keys, screen }
    }

    fn shows(&self, text: &str) {
        until(&format!("the screen shows {text:?}"), || self.text().contains(text));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("press keys");
    }

    fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        until("coracle has ended", || {
            let status = self.child.try_wait().expect("wait for coracle");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_reach_the_container_its_terminal_has_our_size_and_the_detach_keys_leave_it_running() {
    let machine = Machine::new();
    start(&machine, "shell", "exec sh", "    stdin: true\n    tty: true\n", "");
    let mut terminal = Terminal::start(&machine, &["attach", "-it", "shell"]);
    // What the shell drew before is not repeated: something new is.
    until("the shell answers", || {
        terminal.press(b"echo re''ady\r");
        terminal.text().contains("ready")
    });
    terminal.press(b"stty size\r");
    terminal.shows("30 100");
    terminal.press(&[16, 17]);
    assert_eq!(terminal.ends(), Some(0));
    assert_eq!(machine.view("shell")["status"], "Running");
    let mut again = Terminal::start(&machine, &["attach", "-it", "--detach-keys", "ctrl-],q", "shell"]);
    until("the shell answers again", || {
        again.press(b"echo ag''ain\r");
        again.text().contains("again")
    });
    again.press(&[29, b'q']);
    assert_eq!(again.ends(), Some(0));
}

#[test]
fn an_attachment_ends_with_the_container_and_its_exit_code() {
    let machine = Machine::new();
    start(&machine, "ends", "exec sh", "    stdin: true\n    tty: true\n", "  restartPolicy: Never\n");
    let mut terminal = Terminal::start(&machine, &["attach", "-it", "ends"]);
    until("the shell answers", || {
        terminal.press(b"echo re''ady\r");
        terminal.text().contains("ready")
    });
    terminal.press(b"exit 7\r");
    assert_eq!(terminal.ends(), Some(7));
}

#[test]
fn without_a_terminal_output_is_passed_on_and_what_the_container_lacks_is_refused() {
    let machine = Machine::new();
    start(&machine, "plain", "while :; do echo tick; sleep 0.2; done", "", "");
    let mut command = machine.command(&["attach", "plain"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = machine.run(|| command.spawn()).expect("start coracle");
    let mut bytes = [0; 5];
    child.stdout.take().expect("a pipe").read_exact(&mut bytes).expect("read what it writes");
    assert_eq!(&bytes, b"tick\n");
    child.kill().expect("end it");
    child.wait().expect("wait for it");
    assert!(machine.fails(&["attach", "-i", "plain"]).contains("has no standard input"));
    assert!(machine.fails(&["attach", "-t", "plain"]).contains("has no terminal"));
    assert!(machine.fails(&["attach", "--detach-keys", "nonsense", "plain"]).contains("--detach-keys"));
    start(&machine, "other", SLEEP, "", "");
    machine.ok(&["stop", "other"]);
    assert!(machine.fails(&["attach", "other"]).contains("not running"));
}
