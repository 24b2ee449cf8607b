//! Containers' logs, read straight from the files that their supervisor writes.
//!
//! A pod's logs lie in one folder, `<container>/<attempt>.log`, as kubelet lays them out. A line of a file is CRI's:
//! `2026-01-02T03:04:05.123456789Z stdout F text`, with `P` for the beginning of a line that is continued. A file
//! that has grown too long is renamed and begun anew under its own name.
//!
//! A [`Follower`] reads one container's files in order: at the end of one it looks whether the name now means another
//! file (the log was rotated) or a later attempt has begun (the container was started again), and goes on there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Read at once.
const CHUNK: usize = 64 << 10;
/// A line without an end is given out once it is this long: the supervisor's are at most 16 KiB, and a few words.
const MAX_LINE: usize = 64 << 10;

/// Which of the container's outputs a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was written: RFC 3339 in UTC, which sorts as text.
    pub time: String,
    /// Where to.
    pub stream: Stream,
    /// Whether the text ends a line.
    pub full: bool,
    /// The text, without the end of the line.
    pub text: Vec<u8>,
}

impl Line {
    /// Reads a line of a CRI log file; one of another form is passed on as it is.
    pub fn parse(line: &[u8]) -> Line {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (time, stream, tag, text) = (parts.next(), parts.next(), parts.next(), parts.next());
        let stream = match stream {
            Some(b"stdout") => Some(Stream::Stdout),
            Some(b"stderr") => Some(Stream::Stderr),
            _ => None,
        };
        match (time.and_then(|time| std::str::from_utf8(time).ok()), stream, tag) {
            (Some(time), Some(stream), Some(tag)) if !tag.is_empty() => {
                let full = !tag.split(|b| *b == b':').any(|word| word == b"P");
                Line { time: time.to_owned(), stream, full, text: text.unwrap_or_default().to_vec() }
            }
            _ => Line { time: String::new(), stream: Stream::Stdout, full: true, text: line.to_vec() },
        }
    }
}

/// The attempts of a container that have a log, in order.
pub fn attempts(dir: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attempts = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|n| n.parse().ok()) {
            attempts.push(number);
        }
    }
    attempts.sort_unstable();
    Ok(attempts)
}

/// Reads a container's log files in order, as they grow.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    attempt: u32,
    file: Option<File>,
    partial: Vec<u8>,
    only: bool,
}

impl Follower {
    /// Follows the logs in a container's folder, from this attempt on.
    pub fn new(dir: &Path, attempt: u32) -> Follower {
        Follower { dir: dir.to_owned(), attempt, file: None, partial: Vec::new(), only: false }
    }

    /// Reads this attempt's log and no later one's.
    pub fn only_this(&mut self) {
        self.only = true;
    }

    /// Gives out all complete lines that were not yet.
    pub fn read(&mut self, each: &mut dyn FnMut(Line)) -> io::Result<()> {
        loop {
            if self.file.is_none() && !self.open()? {
                let Some(later) = self.later()? else { return Ok(()) };
                self.attempt = later;
                continue;
            }
            self.read_file(each)?;
            if self.replaced()? {
                // Written between the read and the renaming.
                self.read_file(each)?;
                self.file = None;
                continue;
            }
            let Some(later) = self.later()? else { return Ok(()) };
            // The attempt is over, but its last words may have been written since its end was read.
            self.read_file(each)?;
            self.rest(each);
            self.attempt = later;
            self.file = None;
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.attempt))
    }

    fn open(&mut self) -> io::Result<bool> {
        match File::open(self.path()) {
            Ok(file) => {
                self.file = Some(file);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn later(&self) -> io::Result<Option<u32>> {
        if self.only {
            return Ok(None);
        }
        Ok(attempts(&self.dir)?.into_iter().find(|attempt| *attempt > self.attempt))
    }

    /// Whether the name now means another file than the open one.
    fn replaced(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        match fs::metadata(self.path()) {
            Ok(named) => Ok(named.ino() != file.metadata()?.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_file(&mut self, each: &mut dyn FnMut(Line)) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = file.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            self.partial.extend_from_slice(&chunk[..length]);
            let mut start = 0;
            while let Some(end) = self.partial[start..].iter().position(|b| *b == b'\n') {
                each(Line::parse(&self.partial[start..start + end]));
                start += end + 1;
            }
            self.partial.drain(..start);
            if self.partial.len() > MAX_LINE {
                each(Line::parse(&std::mem::take(&mut self.partial)));
            }
        }
    }

    fn rest(&mut self, each: &mut dyn FnMut(Line)) {
        if !self.partial.is_empty() {
            each(Line::parse(&std::mem::take(&mut self.partial)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(text: &str) -> String {
        format!("2026-01-02T03:04:05.000000001Z stdout F {text}\n")
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn read(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower.read(&mut |line| lines.push(String::from_utf8(line.text).unwrap())).unwrap();
        lines
    }

    #[test]
    fn a_line_is_taken_apart() {
        let read = Line::parse(b"2026-01-02T03:04:05.1Z stderr P half  a line");
        assert_eq!((read.stream, read.full, read.text.as_slice()), (Stream::Stderr, false, &b"half  a line"[..]));
        assert_eq!(Line::parse(b"2026-01-02T03:04:05.1Z stdout F ").text, b"");
        let other = Line::parse(b"not a log line at all");
        assert_eq!((other.full, other.text.as_slice()), (true, &b"not a log line at all"[..]));
    }

    #[test]
    fn a_log_is_followed_as_it_grows_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut follower = Follower::new(dir.path(), 0);
        assert!(read(&mut follower).is_empty(), "there is no file yet");
        append(&path, &line("a"));
        assert_eq!(read(&mut follower), ["a"]);
        append(&path, line("b").trim_end());
        assert!(read(&mut follower).is_empty(), "the line has no end yet");
        append(&path, "\n");
        assert_eq!(read(&mut follower), ["b"]);
    }

    #[test]
    fn a_log_is_followed_across_rotation_without_losing_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, &line("a"));
        let mut follower = Follower::new(dir.path(), 0);
        assert_eq!(read(&mut follower), ["a"]);
        append(&path, &line("b"));
        fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        append(&path, &line("c"));
        assert_eq!(read(&mut follower), ["b", "c"]);
    }

    #[test]
    fn a_log_is_followed_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("0.log"), &line("first"));
        let mut follower = Follower::new(dir.path(), 0);
        assert_eq!(read(&mut follower), ["first"]);
        append(&dir.path().join("0.log"), &line("last words"));
        append(&dir.path().join("1.log"), &line("second"));
        assert_eq!(read(&mut follower), ["last words", "second"]);
        append(&dir.path().join("3.log"), &line("fourth"));
        assert_eq!(read(&mut follower), ["fourth"], "an attempt without a log is passed over");
        let mut late = Follower::new(dir.path(), 2);
        assert_eq!(read(&mut late), ["fourth"], "the attempt to begin with is gone");
    }
}
