//! CRI log files: one line of the container is `TIME STREAM TAG TEXT\n`, where TAG is `F` for a full line and `P` for
//! a part of one (longer than 16 KiB, or cut by the end of the stream).
//!
//! The file is written by appending, several lines at once. A container never waits for its log: when the disk is
//! full the lines are counted instead of written, a torn last line is cut off again, and as soon as a write succeeds
//! a note says how many are missing.

use coracle_runtime::time;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

/// The longest text of one log line, as containerd and CRI-O have it.
pub const MAX_TEXT: usize = 16 << 10;
/// Lines are gathered up to this many bytes before they are written.
const BATCH: usize = 32 << 10;
const FILE_MODE: u32 = 0o640;

/// Which of a process' outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and a terminal's.
    Stdout,
    /// Error output.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        }
    }
}

/// Cuts a stream into log lines; keeps an unfinished line, up to [`MAX_TEXT`] bytes of it.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Calls `line(full, pieces)` for each line or part; the text is the concatenation of both pieces.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(bool, &[u8], &[u8])) {
        while !bytes.is_empty() {
            let room = MAX_TEXT - self.partial.len();
            // One byte more than fits: a newline right after a line of exactly MAX_TEXT makes it a full one.
            let window = &bytes[..bytes.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    line(true, &self.partial, &bytes[..end]);
                    bytes = &bytes[end + 1..];
                    self.partial = Vec::new();
                }
                None if bytes.len() > room => {
                    line(false, &self.partial, &bytes[..room]);
                    bytes = &bytes[room..];
                    self.partial = Vec::new();
                }
                None => {
                    self.partial.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream ended: what is unfinished is a part.
    pub fn finish(&mut self, mut line: impl FnMut(bool, &[u8], &[u8])) {
        if !self.partial.is_empty() {
            line(false, &self.partial, &[]);
            self.partial = Vec::new();
        }
    }
}

/// An open log file.
#[derive(Debug)]
pub struct CriLog {
    path: String,
    file: File,
    size: u64,
    max_size: u64,
    /// Lines that were not written since the last note.
    dropped: u64,
    stdout: Splitter,
    stderr: Splitter,
}

impl CriLog {
    /// Opens or makes the file. A `max_size` other than 0 makes the log turn over by itself.
    pub fn open(path: &str, max_size: u64) -> io::Result<Self> {
        let (file, size) = open_append(path)?;
        let (stdout, stderr) = Default::default();
        Ok(CriLog { path: path.to_owned(), file, size, max_size, dropped: 0, stdout, stderr })
    }

    /// Opens the name again: somebody moved the file away. On failure the old file stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = open_append(&self.path)?;
        Ok(())
    }

    /// The path, for errors.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes what the process said. Returns how many lines had to be dropped.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> u64 {
        self.write_with(stream, |splitter, line| splitter.feed(bytes, line))
    }

    /// The stream ended.
    pub fn finish(&mut self, stream: Stream) -> u64 {
        self.write_with(stream, |splitter, line| splitter.finish(line))
    }

    fn write_with(
        &mut self,
        stream: Stream,
        cut: impl FnOnce(&mut Splitter, &mut dyn FnMut(bool, &[u8], &[u8])),
    ) -> u64 {
        let stamp = time::rfc3339(SystemTime::now());
        let mut splitter = std::mem::take(self.splitter(stream));
        let mut batch = Vec::new();
        let mut dropped = 0;
        cut(&mut splitter, &mut |full, first, second| {
            push_line(&mut batch, &stamp, stream, full, &[first, second]);
            if batch.len() >= BATCH {
                dropped += self.append(&batch, &stamp);
                batch.clear();
            }
        });
        if !batch.is_empty() {
            dropped += self.append(&batch, &stamp);
        }
        *self.splitter(stream) = splitter;
        dropped
    }

    fn splitter(&mut self, stream: Stream) -> &mut Splitter {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Appends whole lines, after a note about missing ones. Returns how many of them were dropped.
    fn append(&mut self, lines: &[u8], stamp: &[u8; time::LEN]) -> u64 {
        if self.dropped > 0 {
            let text = format!("coracle: {} log lines were lost here: they could not be written", self.dropped);
            let mut note = Vec::new();
            push_line(&mut note, stamp, Stream::Stderr, true, &[text.as_bytes()]);
            if self.write_whole(&note) < note.len() {
                return self.drop_lines(lines);
            }
            self.dropped = 0;
        }
        self.turn_over(lines.len() as u64);
        let written = self.write_whole(lines);
        self.drop_lines(&lines[written..])
    }

    fn drop_lines(&mut self, lines: &[u8]) -> u64 {
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.dropped += count;
        count
    }

    /// Writes as many whole lines as there is room for and returns their length: a torn line is cut off again.
    fn write_whole(&mut self, lines: &[u8]) -> usize {
        let mut written = 0;
        while written < lines.len() {
            match self.file.write(&lines[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
        }
        self.size += written as u64;
        if written == lines.len() {
            return written;
        }
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // The file's own length decides, not our count of it: somebody may have truncated it under us.
        let torn = (written - whole) as u64;
        if torn > 0 {
            let cut = self.file.metadata().and_then(|meta| self.file.set_len(meta.len().saturating_sub(torn)));
            // Not even cut off: then at least the next line begins on its own.
            if cut.is_err() {
                let _ = self.file.write(b"\n");
            }
            self.size = self.size.saturating_sub(torn);
        }
        whole
    }

    /// Renames a full log to NAME.1 and begins a new one. If that fails the old one grows on, under its own name: better
    /// too long than lost.
    fn turn_over(&mut self, more: u64) {
        if self.max_size == 0 || self.size == 0 || self.size + more <= self.max_size {
            return;
        }
        let aside = format!("{}.1", self.path);
        if fs::rename(&self.path, &aside).is_err() {
            return;
        }
        match open_append(&self.path) {
            Ok((file, size)) => (self.file, self.size) = (file, size),
            Err(_) => {
                let _ = fs::rename(&aside, &self.path);
            }
        }
    }
}

fn open_append(path: &str) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn push_line(batch: &mut Vec<u8>, stamp: &[u8], stream: Stream, full: bool, text: &[&[u8]]) {
    batch.extend_from_slice(stamp);
    batch.push(b' ');
    batch.extend_from_slice(stream.name());
    batch.extend_from_slice(if full { b" F " } else { b" P " });
    for piece in text {
        batch.extend_from_slice(piece);
    }
    batch.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        let mut line = |full, a: &[u8], b: &[u8]| lines.push((full, [a, b].concat()));
        for piece in pieces {
            splitter.feed(piece, &mut line);
        }
        splitter.finish(&mut line);
        lines
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_full_and_one_byte_more_is_cut() {
        let text = vec![b'x'; MAX_TEXT];
        assert_eq!(cut(&[&text, b"\n"]), [(true, text.clone())]);
        assert_eq!(cut(&[&text, b"y\n"]), [(false, text.clone()), (true, b"y".to_vec())]);
    }

    #[test]
    fn what_the_stream_leaves_unfinished_is_a_part() {
        assert_eq!(cut(&[b"a\n\nb"]), [(true, b"a".to_vec()), (true, vec![]), (false, b"b".to_vec())]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lines_put_together_again_are_the_stream(
            stream in prop::collection::vec(prop_oneof![20 => Just(b'x'), 1 => Just(b'\n')], 0..60_000),
            size in 1usize..40_000,
        ) {
            let pieces: Vec<&[u8]> = stream.chunks(size).collect();
            let mut again = Vec::new();
            for (full, text) in cut(&pieces) {
                prop_assert!(text.len() <= MAX_TEXT && !text.contains(&b'\n'));
                again.extend(text);
                if full {
                    again.push(b'\n');
                }
            }
            prop_assert_eq!(again, stream);
        }
    }

    fn texts(path: &std::path::Path) -> Vec<String> {
        let log = fs::read_to_string(path).unwrap();
        assert!(log.is_empty() || log.ends_with('\n'), "torn: {log:?}");
        log.lines().map(|line| line[time::LEN + 1..].to_owned()).collect()
    }

    #[test]
    fn both_streams_share_a_file_and_their_unfinished_lines_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = CriLog::open(path.to_str().unwrap(), 0).unwrap();
        log.write(Stream::Stdout, b"one ");
        log.write(Stream::Stderr, b"bad\n");
        log.write(Stream::Stdout, b"line\n");
        log.finish(Stream::Stdout);
        assert_eq!(texts(&path), ["stderr F bad", "stdout F one line"]);
    }

    #[test]
    fn a_renamed_log_is_left_behind_only_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        let mut log = CriLog::open(path.to_str().unwrap(), 0).unwrap();
        log.write(Stream::Stdout, b"a\n");
        fs::rename(&path, &moved).unwrap();
        log.write(Stream::Stdout, b"b\n");
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"c\n");
        assert_eq!(texts(&moved), ["stdout F a", "stdout F b"]);
        assert_eq!(texts(&path), ["stdout F c"]);
    }

    #[test]
    fn a_log_with_a_limit_turns_over_between_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = CriLog::open(path.to_str().unwrap(), 100).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            log.write(Stream::Stdout, line.as_bytes());
        }
        assert_eq!(texts(&dir.path().join("log.1")), ["stdout F first", "stdout F second"]);
        assert_eq!(texts(&path), ["stdout F third"]);
    }

    /// A file that is full: `/dev/full` takes no byte.
    #[test]
    fn a_full_disk_drops_lines_counts_them_and_says_so_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = CriLog::open(path.to_str().unwrap(), 0).unwrap();
        log.write(Stream::Stdout, b"before\n");
        let real = std::mem::replace(&mut log.file, OpenOptions::new().append(true).open("/dev/full").unwrap());
        assert_eq!(log.write(Stream::Stdout, b"lost\nlost too\n"), 2);
        assert_eq!(log.write(Stream::Stderr, b"and this\n"), 1);
        log.file = real;
        assert_eq!(log.write(Stream::Stdout, b"after\n"), 0);
        let note = "stderr F coracle: 3 log lines were lost here: they could not be written";
        assert_eq!(texts(&path), ["stdout F before", note, "stdout F after"]);
    }
}
