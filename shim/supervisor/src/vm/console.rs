//! What a machine says on its console: the guest's kernel and its init, the monitor's complaints, and what the
//! supervisor itself has to say of it, in `<bundle>/vm/console.log`.
//!
//! A log of the supervisor's like a container's, and never longer than a limit: the guest may write what it likes. When
//! the machine dies, its last words are why, so they are part of the error; they are the guest's words, and are made
//! harmless before they are shown.

use super::CONSOLE_LOG;
use crate::failure::{Fail, Failure};
use crate::stdio::{Names, OurEnds};
use crate::supervisor::Supervisor;
use coracle_proto::ttrpc::Code;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The log begins anew at this size, and the old one is kept: 1 MiB for both.
const MAX_LOG: u64 = 512 << 10;
/// How much of its end is looked at: all that a kernel says when it panics.
const TAIL: u64 = 16 << 10;
/// How a kernel begins to say that; what comes after are mostly registers.
const PANIC: &str = "Kernel panic";
/// How much of that is shown: lines, and characters of all.
const MAX_LINES: usize = 4;
const MAX_CHARACTERS: usize = 400;

impl Supervisor {
    /// The console of a machine that is about to be started: its key among the streams, and the end for the machine.
    pub(super) fn open_console(&mut self, folder: &Path) -> Result<(u32, OwnedFd), Failure> {
        let failed = |error: io::Error| Code::Unknown.failure(format!("make the machine's console: {error}"));
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
        crate::stdio::set_nonblocking(&ours, true).map_err(failed)?;
        let log = format!("cri:{}", folder.join(CONSOLE_LOG).display());
        let io = self.streams.create(&Names { stdout: log, ..Names::default() }, false, MAX_LOG)?;
        self.streams.connect(&self.reactor, io, OurEnds { stdout: Some(ours), ..OurEnds::default() })?;
        Ok((io, theirs))
    }
}

/// The last lines of the console, on one line; empty if it said nothing.
pub fn last_words(folder: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(folder.join(CONSOLE_LOG))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        Ok(text)
    };
    words_of(&String::from_utf8_lossy(&read().unwrap_or_default()))
}

/// `TIME stdout F TEXT`, each line; of the first one only the end may be there.
fn words_of(log: &str) -> String {
    last_of(log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)))
}

/// The last of some lines, on one line, without what a terminal obeys.
pub fn last_of<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let plain = |text: &str| -> String {
        let shown = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { ' ' });
        shown.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<String> = lines.map(plain).filter(|line| !line.is_empty()).collect();
    if let Some(panic) = lines.iter().find(|line| line.contains(PANIC)) {
        return panic.chars().take(MAX_CHARACTERS).collect();
    }
    let last = lines[lines.len().saturating_sub(MAX_LINES)..].join("; ");
    let skip = last.chars().count().saturating_sub(MAX_CHARACTERS);
    last.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_text_of_the_last_lines_without_what_a_terminal_obeys() {
        let time = "2026-01-02T03:04:05.000000006Z";
        let panic = format!("{time} stdout F [ 3.1] Kernel panic - not syncing: x\n{time} stdout F RAX: 0\n");
        assert_eq!(words_of(&panic), "[ 3.1] Kernel panic - not syncing: x");
        let log = format!(
            "half a line\n{time} stdout F one\n{time} stdout F two\n{time} stdout F \n{time} stdout F \x1b[31mKernel\r\n\
             {time} stdout F three\n{time} stdout P four"
        );
        assert_eq!(words_of(&log), "two; [31mKernel; three; four");
        assert_eq!(words_of(""), "");
        let long = format!("{time} stdout F {}end", "x".repeat(1000));
        assert!(words_of(&long).len() == MAX_CHARACTERS && words_of(&long).ends_with("xend"));
    }
}
