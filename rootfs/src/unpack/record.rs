//! The record of a layer: what its archive was beside the files' contents, so that the very same bytes come out again.
//!
//! A layer is kept unpacked only, yet `save` must give back an archive of the same diff id, and `verify` must prove that
//! the files are what was pulled. `record.zst` beside the tree holds what is needed: a zstd stream of
//!
//! ```text
//! "coracle layer record 1\n"
//! 1 LENGTH BYTES                   bytes of the archive: headers, padding, trailer
//! 2 PATH SIZE                      then the whole content of fs/PATH, SIZE bytes of it
//! 3 PATH COUNT (OFFSET LENGTH)*    then these pieces of fs/PATH (a sparse file)
//! 4 PATH NUMBER                    a later entry took the name: what was fs/PATH is now shadowed/NUMBER
//! 0 SIZE                           the end; the archive had SIZE bytes
//! ```
//!
//! Numbers are LEB128, a PATH is its length and its bytes. Contents are never stored twice, so a record is about a
//! hundredth of its layer. [`Replay`] gives the archive back as a [`Read`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, ErrorKind, Result};
use crate::unpack::tar::{MAX_EXTENSION, MAX_PIECES, MAX_TRAILER};

/// The record's name in the layer's directory.
pub const FILE: &str = "record.zst";
/// The directory of files whose names were taken by later entries.
pub const SHADOWED: &str = "shadowed";

const MAGIC: &[u8] = b"coracle layer record 1\n";
/// Fast, and headers compress well at any level.
const ZSTD_LEVEL: i32 = 1;
/// The longest run of raw bytes: what the parser may pile up between two payloads, roughly.
const MAX_RAW: u64 = 8 * MAX_EXTENSION + MAX_TRAILER;
const MAX_PATH: u64 = 1 << 16;

const END: u8 = 0;
const RAW: u8 = 1;
const WHOLE: u8 = 2;
const PIECES: u8 = 3;
const DISPLACED: u8 = 4;

/// Writes a record.
pub struct Writer {
    output: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    size: u64,
    scratch: Vec<u8>,
}

impl Writer {
    /// Starts a record in that file.
    pub fn new(file: File) -> Result<Writer> {
        let new = || {
            let mut output = zstd::stream::write::Encoder::new(BufWriter::with_capacity(64 << 10, file), ZSTD_LEVEL)?;
            output.write_all(MAGIC)?;
            io::Result::Ok(output)
        };
        Ok(Writer { output: new().map_err(failed)?, size: 0, scratch: Vec::new() })
    }

    /// Takes the raw bytes out of the parser's pile.
    pub fn raw(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // What could not be read again is not written.
        if bytes.len() as u64 > MAX_RAW {
            let message = format!("more than {MAX_RAW} bytes of headers between two files");
            return Err(Error::new(ErrorKind::Limit, message));
        }
        self.size += bytes.len() as u64;
        self.begin(RAW).number(bytes.len() as u64);
        self.flush()?;
        self.output.write_all(bytes).map_err(failed)?;
        bytes.clear();
        Ok(())
    }

    /// The content of a file follows.
    pub fn file(&mut self, path: &[u8], size: u64, pieces: Option<&[(u64, u64)]>) -> Result<()> {
        match pieces {
            None => {
                self.size += size;
                self.begin(WHOLE).path(path).number(size);
            }
            Some(pieces) => {
                self.begin(PIECES).path(path).number(pieces.len() as u64);
                for (offset, length) in pieces {
                    self.size += length;
                    self.number(*offset).number(*length);
                }
            }
        }
        self.flush()
    }

    /// What is at the path is moved aside.
    pub fn displaced(&mut self, path: &[u8], number: u64) -> Result<()> {
        self.begin(DISPLACED).path(path).number(number);
        self.flush()
    }

    /// Ends the record.
    pub fn finish(mut self) -> Result<()> {
        let size = self.size;
        self.begin(END).number(size);
        self.flush()?;
        let finish = || self.output.finish()?.flush();
        finish().map_err(failed)
    }

    fn begin(&mut self, tag: u8) -> &mut Writer {
        self.scratch.clear();
        self.scratch.push(tag);
        self
    }

    fn number(&mut self, mut value: u64) -> &mut Writer {
        while value >= 0x80 {
            self.scratch.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.scratch.push(value as u8);
        self
    }

    fn path(&mut self, path: &[u8]) -> &mut Writer {
        self.number(path.len() as u64);
        self.scratch.extend_from_slice(path);
        self
    }

    fn flush(&mut self) -> Result<()> {
        self.output.write_all(&self.scratch).map_err(failed)
    }
}

fn failed(err: io::Error) -> Error {
    Error::io("write the layer's record", err)
}

fn damaged(why: &str) -> io::Error {
    Error::new(ErrorKind::Corrupt, format!("the layer's record: {why}")).into()
}

/// One step of a record.
enum Step {
    Raw(u64),
    File { path: Vec<u8>, pieces: Vec<(u64, u64)> },
    Displaced { path: Vec<u8>, number: u64 },
    End(u64),
}

/// Reads steps; the raw bytes after [`Step::Raw`] are the caller's to read.
struct Steps {
    input: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
}

impl Steps {
    fn open(layer: impl AsFd) -> io::Result<Steps> {
        let file =
            File::from(openat(layer, FILE, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?);
        let mut input = BufReader::with_capacity(64 << 10, zstd::stream::read::Decoder::new(file)?);
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("is of another version"));
        }
        Ok(Steps { input })
    }

    fn next(&mut self) -> io::Result<Step> {
        let mut tag = [0];
        self.input.read_exact(&mut tag)?;
        Ok(match tag[0] {
            RAW => Step::Raw(self.number(MAX_RAW)?),
            WHOLE => {
                let path = self.path()?;
                let size = self.number(u64::MAX)?;
                Step::File { path, pieces: vec![(0, size)] }
            }
            PIECES => {
                let path = self.path()?;
                let count = self.number(MAX_PIECES as u64)?;
                let piece = |_| Ok((self.number(u64::MAX)?, self.number(u64::MAX)?));
                Step::File { path, pieces: (0..count).map(piece).collect::<io::Result<_>>()? }
            }
            DISPLACED => Step::Displaced { path: self.path()?, number: self.number(u64::MAX)? },
            END => Step::End(self.number(u64::MAX)?),
            _ => return Err(damaged("has an unknown step")),
        })
    }

    fn number(&mut self, limit: u64) -> io::Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return if value <= limit { Ok(value) } else { Err(damaged("has a number out of range")) };
            }
        }
        Err(damaged("has a number that does not end"))
    }

    fn path(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number(MAX_PATH)?;
        let mut path = vec![0; length as usize];
        self.input.read_exact(&mut path)?;
        Ok(path)
    }
}

/// The archive of a layer, read from its record and its files.
pub struct Replay {
    layer: OwnedFd,
    steps: Steps,
    /// All displacements by path, in order: the index of the step, and the number. A file's content is found where the
    /// first later one moved it.
    displaced: HashMap<Vec<u8>, Vec<(u64, u64)>>,
    step: u64,
    given: u64,
    state: State,
}

enum State {
    Next,
    Raw(u64),
    File { file: File, path: Vec<u8>, pieces: Vec<(u64, u64)>, index: usize, done: u64 },
    Ended,
}

impl Replay {
    /// Opens the record in that layer's directory.
    pub fn open(layer: &Path) -> Result<Replay> {
        let what = || format!("open layer {}", layer.display());
        let directory = File::open(layer).map_err(|err| Error::io(what(), err))?;
        let read = || {
            let mut displaced: HashMap<Vec<u8>, Vec<(u64, u64)>> = HashMap::new();
            let mut steps = Steps::open(&directory)?;
            for index in 0.. {
                match steps.next()? {
                    Step::Raw(length) => {
                        let copied = io::copy(&mut (&mut steps.input).take(length), &mut io::sink())?;
                        if copied != length {
                            return Err(damaged("is truncated"));
                        }
                    }
                    Step::Displaced { path, number } => displaced.entry(path).or_default().push((index, number)),
                    Step::File { .. } => {}
                    Step::End(_) => break,
                }
            }
            Ok((Steps::open(&directory)?, displaced))
        };
        let (steps, displaced) = read().map_err(|err| Error::io(what(), err))?;
        Ok(Replay { layer: directory.into(), steps, displaced, step: 0, given: 0, state: State::Next })
    }

    fn advance(&mut self) -> io::Result<()> {
        let step = self.steps.next()?;
        let index = self.step;
        self.step += 1;
        match step {
            Step::Raw(length) => self.state = State::Raw(length),
            Step::File { path, pieces } => {
                let file = self.open_file(index, &path)?;
                self.state = State::File { file, path, pieces, index: 0, done: 0 };
            }
            Step::Displaced { .. } => {}
            Step::End(size) if size == self.given => self.state = State::Ended,
            Step::End(_) => return Err(damaged("has another size than it says")),
        }
        Ok(())
    }

    fn open_file(&self, index: u64, path: &[u8]) -> io::Result<File> {
        let ends = (0..=path.len()).filter(|end| *end == path.len() || path[*end] == b'/');
        let later = ends.filter(|_| !self.displaced.is_empty()).filter_map(|end| {
            let moves = self.displaced.get(&path[..end])?;
            let (step, number) = moves.get(moves.partition_point(|(step, _)| *step <= index))?;
            Some((*step, *number, end))
        });
        let place = match later.min() {
            Some((_, number, end)) => [format!("{SHADOWED}/{number}").as_bytes(), &path[end..]].concat(),
            None => [b"fs/", path].concat(),
        };
        let file = crate::sys::open_beneath(&self.layer, &place, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            .map_err(|err| Error::io(format!("open {}", String::from_utf8_lossy(&place)), err))?;
        Ok(File::from(file))
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let count = match &mut self.state {
                State::Ended => return Ok(0),
                State::Next => {
                    self.advance()?;
                    continue;
                }
                State::Raw(0) => {
                    self.state = State::Next;
                    continue;
                }
                State::Raw(left) => {
                    let wanted = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let count = self.steps.input.read(&mut buffer[..wanted])?;
                    if count == 0 {
                        return Err(damaged("is truncated"));
                    }
                    *left -= count as u64;
                    count
                }
                State::File { file, path, pieces, index, done } => {
                    let Some((offset, length)) = pieces.get(*index) else {
                        self.state = State::Next;
                        continue;
                    };
                    if *done == *length {
                        *index += 1;
                        *done = 0;
                        continue;
                    }
                    let wanted = buffer.len().min(usize::try_from(length - *done).unwrap_or(usize::MAX));
                    let count = file.read_at(&mut buffer[..wanted], offset + *done)?;
                    if count == 0 {
                        let path = String::from_utf8_lossy(path);
                        return Err(Error::new(ErrorKind::Corrupt, format!("file {path:?} is too short")).into());
                    }
                    *done += count as u64;
                    count
                }
            };
            self.given += count as u64;
            return Ok(count);
        }
    }
}
