//! A command's or a container's streams on this terminal: what `coracle exec` and `coracle attach` have in common.

use std::io::{self, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use coracle_engine::{Output, OutputStream, SessionControl, Stdin};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Coded;
use crate::sys;

/// Read from standard input at once.
const CHUNK: usize = 32 << 10;
/// Ctrl-A; the others follow in the order of the alphabet.
const CTRL_A: u8 = 1;

/// Passes standard input on until it ends. That the other side has gone is told by its end, not here. Answers when the
/// keys that detach were typed; never, otherwise.
pub async fn feed(mut to: Stdin, keys: Option<DetachKeys>) {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK];
    let mut keys = keys;
    loop {
        let bytes = match input.read(&mut chunk).await {
            Ok(0) | Err(_) => {
                let _ = to.close().await;
                break;
            }
            Ok(length) => &chunk[..length],
        };
        let sent = match &mut keys {
            None => to.write(bytes).await,
            Some(keys) => {
                let (pass, detach) = keys.filter(bytes);
                let sent = to.write(&pass).await;
                if detach {
                    return;
                }
                sent
            }
        };
        if sent.is_err() {
            break;
        }
    }
    // The half is kept: dropping nothing, closing nothing, until whoever waits for the output ends.
    std::future::pending::<()>().await;
}

/// Tells the other side's terminal each new size of ours.
pub async fn follow_size(control: SessionControl) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if let Some((columns, rows)) = sys::terminal_size(io::stdout()) {
            let _ = control.resize(columns, rows).await;
        }
    }
}

/// Passes Ctrl-C and SIGTERM on to the command, whose end ends us.
pub async fn pass_signals(control: SessionControl) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => libc::SIGINT,
            _ = terminate.recv() => libc::SIGTERM,
        };
        let _ = control.kill(number).await;
    }
}

/// Writes what comes until the other side has ended.
pub async fn copy_output(mut output: OutputStream) -> Result<()> {
    while let Some(piece) = output.next().await? {
        let written = match &piece {
            Output::Stdout(bytes) => write(io::stdout().lock(), bytes),
            Output::Stderr(bytes) => write(io::stderr().lock(), bytes),
        };
        match written {
            // Nobody reads on: `coracle exec ... | head -1`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write the command's output")?,
        }
    }
    Ok(())
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// The terminal in raw mode: every key goes to the other side.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Sets it, until this is dropped.
    pub fn enter() -> Result<RawTerminal> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).context("set the terminal to raw mode")?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// A sequence of keys that leaves the other side running: docker's `ctrl-p,ctrl-q`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed just now; they are held back until it is clear that more do not follow.
    typed: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`: each a single character or `ctrl-` and one of `a-z @ [ \ ] ^ _`. Empty: there are none.
    pub fn parse(text: &str) -> Result<Option<DetachKeys>> {
        let key = |word: &str| -> Option<u8> {
            let of_ctrl = |c: u8| (b'@'..=b'_').contains(&c).then(|| c - b'@');
            match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
                (Some([c @ b'a'..=b'z']), _) => Some(c - b'a' + CTRL_A),
                (Some([c]), _) => of_ctrl(*c),
                (None, [c]) if c.is_ascii_graphic() => Some(*c),
                _ => None,
            }
        };
        if text.is_empty() {
            return Ok(None);
        }
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        let wrong = || Coded::usage(format!("--detach-keys {text:?}: expected keys such as ctrl-p,ctrl-q or ctrl-],x"));
        Ok(Some(DetachKeys { keys: keys.ok_or_else(wrong)?, typed: 0 }))
    }

    /// What of these bytes is to be passed on, and whether the sequence is complete.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if *byte != self.keys[self.typed] {
                pass.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if *byte == self.keys[self.typed] {
                self.typed += 1;
            } else {
                pass.push(*byte);
            }
            if self.typed == self.keys.len() {
                return (pass, true);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> DetachKeys {
        DetachKeys::parse(text).unwrap().unwrap()
    }

    #[test]
    fn keys_are_read_as_dockers() {
        assert_eq!(keys("ctrl-p,ctrl-q").keys, [16, 17]);
        assert_eq!(keys("ctrl-],x,ctrl-@").keys, [29, b'x', 0]);
        assert_eq!(DetachKeys::parse("").unwrap(), None);
        for wrong in ["ctrl-", "ctrl-pp", "pp", "ctrl-p,", "ä"] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_sequence_detaches_also_in_pieces_and_what_only_begins_like_it_is_passed_on() {
        let mut keys = keys("ctrl-p,ctrl-q");
        assert_eq!(keys.filter(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(keys.filter(&[16]), (vec![], false));
        assert_eq!(keys.filter(b"x"), (vec![16, b'x'], false));
        assert_eq!(keys.filter(&[16, 16]), (vec![16], false), "the second may be the beginning of it");
        assert_eq!(keys.filter(&[17, b'z']), (vec![], true));
    }
}
