//! From a compressed blob to the bytes of the archive, both hashed on the way.
//!
//! ```text
//! source -> Blob (counts, hashes) -> gzip | zstd | as it is -> Plain (counts, limits, hashes) -> tar parser
//! ```
//!
//! There is one big buffer at each `->`, filled by one call and read in place; each hash runs over a buffer that was
//! filled just before, while it is still in the cache. The format is told by its magic numbers, as containerd does,
//! because media types lie. gzip may have several members; what follows the last one is an error.

use std::io::{self, BufRead, BufReader, Read};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::source::Descriptor;
use crate::unpack::Limits;

/// The compressed side's buffer.
const BLOB_BUFFER: usize = 256 << 10;
/// The plain side's buffer: large enough that most files are one write, small enough for the second-level cache.
const PLAIN_BUFFER: usize = 512 << 10;
/// zstd frames may ask for a window of up to this many bits (128 MiB, the zstd tool's own default limit).
const ZSTD_WINDOW_LOG: u32 = 27;
/// Below this much output the ratio of output to input is not looked at: small blobs of zeros are harmless.
const RATIO_FREE: u64 = 256 << 20;

/// The compressed blob as it arrives.
pub struct Blob<'a> {
    input: Box<dyn Read + 'a>,
    expected: Descriptor,
    hasher: Hasher,
    read: u64,
    on_bytes: &'a dyn Fn(u64),
}

impl<'a> Blob<'a> {
    /// A blob that must turn out to be what the descriptor names.
    pub fn new(input: Box<dyn Read + 'a>, expected: &Descriptor, on_bytes: &'a dyn Fn(u64)) -> Blob<'a> {
        Blob { input, hasher: expected.digest.hasher(), expected: expected.clone(), read: 0, on_bytes }
    }

    fn finish(self) -> Result<()> {
        let Descriptor { digest, size, .. } = &self.expected;
        if self.read != *size {
            let message = format!("blob {digest}: ended after {} of {size} bytes", self.read);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let actual = self.hasher.finish();
        if actual != *digest {
            return Err(Error::new(ErrorKind::Corrupt, format!("blob {digest}: the content is {actual}")));
        }
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.read += count as u64;
        if self.read > self.expected.size {
            let message =
                format!("blob {}: is longer than the {} bytes promised", self.expected.digest, self.expected.size);
            return Err(Error::new(ErrorKind::Corrupt, message).into());
        }
        if count > 0 {
            (self.on_bytes)(count as u64);
        }
        Ok(count)
    }
}

type Input<'a> = BufReader<Blob<'a>>;

enum Decoder<'a> {
    Plain(Box<Input<'a>>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Input<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<'a>>>),
}

/// The archive's bytes.
pub struct Plain<'a> {
    decoder: Decoder<'a>,
    buffer: Box<[u8]>,
    position: usize,
    filled: usize,
    hasher: Hasher,
    total: u64,
    limit: u64,
    ended: bool,
}

impl<'a> Plain<'a> {
    /// Finds the format out and sets up the decoder. The diff id says which hash the plain side needs.
    pub fn new(blob: Blob<'a>, diff_id: &Digest, limits: &Limits) -> Result<Plain<'a>> {
        let by_ratio = blob.expected.size.saturating_mul(limits.ratio).max(RATIO_FREE);
        let mut input = BufReader::with_capacity(BLOB_BUFFER, blob);
        let head = input.fill_buf().map_err(|err| Error::io("read", err))?;
        let decoder = match head {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(input).map_err(|err| Error::io("zstd", err))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|err| Error::io("zstd", err))?;
                Decoder::Zstd(Box::new(decoder))
            }
            [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(unsupported("xz")),
            _ => Decoder::Plain(Box::new(input)),
        };
        Ok(Plain {
            decoder,
            buffer: vec![0; PLAIN_BUFFER].into_boxed_slice(),
            position: 0,
            filled: 0,
            hasher: diff_id.hasher(),
            total: 0,
            limit: limits.layer_bytes.min(by_ratio),
            ended: false,
        })
    }

    /// Checks both digests; the archive must have been read to its end. Returns its size.
    pub fn finish(mut self, diff_id: &Digest) -> Result<u64> {
        if !self.fill_buf().map_err(|err| Error::io("read", err))?.is_empty() {
            return Err(Error::new(ErrorKind::Corrupt, "the archive was not read to its end"));
        }
        let input = match self.decoder {
            Decoder::Plain(input) => *input,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
        };
        input.into_inner().finish()?;
        let actual = self.hasher.finish();
        if actual != *diff_id {
            let message = format!("the configuration promises diff id {diff_id}, the content is {actual}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(self.total)
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut filled = 0;
        while filled < self.buffer.len() {
            let free = &mut self.buffer[filled..];
            let count = match &mut self.decoder {
                Decoder::Plain(input) => input.read(free)?,
                Decoder::Gzip(decoder) => decoder.read(free).map_err(|err| bad_data("gzip", err))?,
                Decoder::Zstd(decoder) => decoder.read(free).map_err(|err| bad_data("zstd", err))?,
            };
            if count == 0 {
                self.ended = true;
                break;
            }
            filled += count;
        }
        self.position = 0;
        self.filled = filled;
        self.total += filled as u64;
        self.hasher.update(&self.buffer[..filled]);
        if self.total > self.limit {
            let message = format!("unpacks to more than {} bytes", self.limit);
            return Err(Error::new(ErrorKind::Limit, message)
                .hint("an inflation bomb? the limits can be raised")
                .into());
        }
        Ok(())
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Plain<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.filled && !self.ended {
            self.fill()?;
        }
        Ok(&self.buffer[self.position..self.filled])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

/// A decoder's complaint is about the data, unless the error came up from the source.
fn bad_data(format: &str, err: io::Error) -> io::Error {
    match Error::unwrap_io(err) {
        Ok(own) => own.into(),
        Err(err) if err.raw_os_error().is_some() => err,
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Corrupt, format!("the {format} stream is truncated, or something follows it")).into()
        }
        Err(err) => Error::new(ErrorKind::Corrupt, format!("malformed {format} stream: {err}")).into(),
    }
}

fn unsupported(format: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("layer compressed with {format}"))
        .hint("gzip, zstd and plain are supported")
}
