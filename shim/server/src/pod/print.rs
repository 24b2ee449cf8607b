//! Containers' lines on the terminal: each in whole, with its container's name in front where there are several.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::logs::{Follower, Line, Stream};
use crate::{out, time};

/// The containers' colours in turn, from the terminal's own palette; red is left for what is wrong.
const COLOURS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m"];
/// The longest line that is put together from its parts; a longer one is written in pieces.
const MAX_LINE: usize = 1 << 20;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// With the name of the container in front.
    pub names: bool,
    /// With the time in front.
    pub times: bool,
}

/// One container's log.
#[derive(Debug)]
struct Source {
    name: String,
    colour: &'static str,
    follower: Follower,
}

/// Writes the logs of several containers.
pub struct Printer {
    style: Style,
    width: usize,
    sources: Vec<Source>,
    colours: (bool, bool),
    /// The beginnings of lines, and when they were written, by container and stream.
    parts: BTreeMap<(usize, bool), (String, Vec<u8>)>,
    /// Lines before this are passed over: a time as the logs have it.
    since: Option<String>,
    /// Bytes that may still be written; None for any number.
    left: Option<u64>,
}

impl Printer {
    /// A printer of nothing yet.
    pub fn new(style: Style) -> Printer {
        let colours = (out::colours(&io::stdout()), out::colours(&io::stderr()));
        Printer { style, width: 0, sources: Vec::new(), colours, parts: BTreeMap::new(), since: None, left: None }
    }

    /// Writes only what was written since then, and at most so many bytes of it.
    pub fn only(&mut self, since: Option<i64>, bytes: Option<u64>) {
        self.since = since.map(time::rfc3339_nanos);
        self.left = bytes;
    }

    /// Adds a container, whose logs lie in this folder.
    pub fn add(&mut self, name: &str, dir: &Path, first_attempt: u32) -> &mut Follower {
        self.width = self.width.max(name.chars().count());
        let colour = COLOURS[self.sources.len() % COLOURS.len()];
        let follower = Follower::new(dir, first_attempt);
        self.sources.push(Source { name: name.to_owned(), colour, follower });
        let last = self.sources.len() - 1;
        &mut self.sources[last].follower
    }

    /// How many containers it writes of.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Writes what is new; false once nobody reads it any more.
    pub fn print_new(&mut self) -> Result<bool> {
        for index in 0..self.sources.len() {
            let mut lines = Vec::new();
            let read = self.sources[index].follower.read(&mut |line| lines.push(line));
            read.with_context(|| format!("read the logs of {}", self.sources[index].name))?;
            for line in lines {
                if !self.print(index, line)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Writes all that is there in the order of its times, at most the last `tail` lines of each container.
    pub fn print_sorted(&mut self, tail: Option<usize>) -> Result<bool> {
        let mut all: Vec<(usize, Line)> = Vec::new();
        for (index, source) in self.sources.iter_mut().enumerate() {
            let mut lines = Vec::new();
            let read = source.follower.read(&mut |line| lines.push((index, line)));
            read.with_context(|| format!("read the logs of {}", source.name))?;
            let skip = tail.map_or(0, |tail| skip(&lines, tail));
            all.extend(lines.drain(skip..));
        }
        // Stable: lines of one container stay in order even if a clock went back.
        all.sort_by(|(_, a), (_, b)| a.time.cmp(&b.time));
        for (index, line) in all {
            if !self.print(index, line)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn print(&mut self, index: usize, line: Line) -> Result<bool> {
        if self.since.as_ref().is_some_and(|since| line.time < *since) {
            return Ok(true);
        }
        let is_stderr = line.stream == Stream::Stderr;
        let (time, part) = self.parts.entry((index, is_stderr)).or_default();
        part.extend_from_slice(&line.text);
        if !line.full && part.len() < MAX_LINE {
            *time = line.time;
            return Ok(true);
        }
        let mut text = std::mem::take(part);
        text.push(b'\n');
        self.write(index, is_stderr, &line.time, text)
    }

    /// Writes the last words of those who ended without ending their line. Where lines have names or times in front, the
    /// line is ended for them; else their output is passed on as it was.
    pub fn finish(&mut self) -> Result<bool> {
        let parts = std::mem::take(&mut self.parts);
        for ((index, is_stderr), (time, mut text)) in parts.into_iter().filter(|(_, (_, text))| !text.is_empty()) {
            if self.style.names || self.style.times {
                text.push(b'\n');
            }
            if !self.write(index, is_stderr, &time, text)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&mut self, index: usize, is_stderr: bool, time: &str, mut text: Vec<u8>) -> Result<bool> {
        let colours = if is_stderr { self.colours.1 } else { self.colours.0 };
        let mut bytes = self.head(index, time, colours).into_bytes();
        bytes.append(&mut text);
        if let Some(left) = &mut self.left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        let written = match is_stderr {
            true => io::stderr().write_all(&bytes),
            false => io::stdout().lock().write_all(&bytes).and_then(|()| io::stdout().flush()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.context("write the logs").map(|()| self.left != Some(0)),
        }
    }

    fn head(&self, index: usize, time: &str, colours: bool) -> String {
        let mut head = String::new();
        if self.style.names {
            let source = &self.sources[index];
            let (on, off) = if colours { (source.colour, "\x1b[0m") } else { ("", "") };
            head = format!("{on}{:width$} |{off} ", source.name, width = self.width);
        }
        if self.style.times {
            head = format!("{head}{time} ");
        }
        head
    }
}

/// How many records to pass over so that `tail` whole lines are left.
fn skip(lines: &[(usize, Line)], tail: usize) -> usize {
    let mut left = tail;
    for (position, (_, line)) in lines.iter().enumerate().rev() {
        if line.full {
            if left == 0 {
                return position + 1;
            }
            left -= 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_in_whole_lines() {
        let line = |full| (0, Line { time: String::new(), stream: Stream::Stdout, full, text: Vec::new() });
        let lines = [line(true), line(false), line(true), line(true)];
        assert_eq!(skip(&lines, 1), 3);
        assert_eq!(skip(&lines, 2), 1, "both parts of the line");
        assert_eq!(skip(&lines, 0), 4);
        assert_eq!(skip(&lines, 9), 0);
    }
}
