//! Tar headers to entries: ustar, GNU and PAX, one pass, no seek, nothing trusted.
//!
//! [`Parser`] reads from a [`BufRead`] and never copies payload: [`Parser::chunk`] lends what the buffer holds. All bytes
//! that are *not* lent as payload (headers, extended headers, sparse maps, padding, what follows the end) pile up in
//! [`Parser::raw`], so that a consumer can keep them and the archive can be written again byte for byte.
//!
//! Where tar readers differ, this one does as Go's `archive/tar` does, because that is what the ecosystem's images were
//! made and read with: links, devices and directories have no payload whatever their size field says; PAX records
//! win over GNU long names, those over the header; global PAX headers are ignored. An archive may end at a block boundary
//! without the two zero blocks; a lone zero block followed by a header is refused.

use std::io::BufRead;

use crate::error::{Error, ErrorKind, Result};

/// A tar block.
pub const BLOCK: usize = 512;
/// The largest extended header (PAX records, a long name, a sparse map) that is read, which is held in memory. The
/// kernel's own limits (4 KiB for a path, 64 KiB for an extended attribute) leave ample room.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// All of them before one entry, with their headers.
const MAX_EXTENSIONS: u64 = 4 * MAX_EXTENSION;
/// Extended attributes of one entry.
const MAX_XATTRS: usize = 1024;
/// The most pieces of a sparse file.
pub const MAX_PIECES: usize = 1 << 16;
/// The most bytes that may follow the end of the archive. Tools pad to 10 KiB; what else comes is kept as it is.
pub const MAX_TRAILER: u64 = 16 << 20;
/// The most payload that is skipped (and so kept with the headers) for an entry that has no use for it.
pub const MAX_SKIPPED: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A hard link to an earlier entry of the same archive.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry, all extended headers folded in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its path, as written.
    pub path: Vec<u8>,
    /// What a link points to, as written.
    pub link: Vec<u8>,
    /// Permission bits, set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// The size of the file, holes included.
    pub size: u64,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Extended attributes in the order of the records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The pieces of a sparse file that have data: offset and length. `None`: the payload is the file.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// What extended headers said about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

/// GNU's three ways to tell a sparse file by PAX records.
#[derive(Default)]
struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    numbers: Vec<u64>,
    seen: bool,
}

/// See the [module](self).
pub struct Parser<R> {
    input: R,
    /// Bytes read that were not lent as payload, since the consumer last took them.
    pub raw: Vec<u8>,
    remaining: u64,
    padding: usize,
}

impl<R: BufRead> Parser<R> {
    /// A parser at the start of an archive.
    pub fn new(input: R) -> Parser<R> {
        let raw = Vec::with_capacity(4 * BLOCK);
        Parser { input, raw, remaining: 0, padding: 0 }
    }

    /// The input, to finish with it.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, or `None` at the end of the archive; the input was then read to its end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.finish_payload()?;
        let mut extended = Extended::default();
        let mut extensions = 0;
        loop {
            let Some(block) = self.read_header()? else {
                return Ok(None);
            };
            let header = ::tar::Header::from_byte_slice(&block);
            check_sum(header)?;
            let flag = header.as_old().linkflag[0];
            let size = number(&header.as_old().size).ok_or_else(|| malformed(header, "size"))?;
            if [b'x', b'g', b'L', b'K'].contains(&flag) {
                extensions += BLOCK as u64 + size;
                if extensions > MAX_EXTENSIONS {
                    let message = format!("extended headers of more than {MAX_EXTENSIONS} bytes before one entry");
                    return Err(Error::new(ErrorKind::Limit, message));
                }
            }
            match flag {
                b'x' => parse_pax(&self.read_extension(size)?, &mut extended)?,
                b'g' => drop(self.read_extension(size)?),
                b'L' => extended.gnu_path = Some(until_nul(self.read_extension(size)?)),
                b'K' => extended.gnu_link = Some(until_nul(self.read_extension(size)?)),
                _ => return self.entry(header, extended, size).map(Some),
            }
        }
    }

    /// How much payload of the present entry was not lent yet.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Lends the next bytes of payload; empty at its end. [`Parser::consume`] says how many were used.
    pub fn chunk(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let remaining = self.remaining;
        let buffer = self.input.fill_buf().map_err(|err| Error::io("read", err))?;
        if buffer.is_empty() {
            return Err(truncated());
        }
        Ok(&buffer[..usize::try_from(remaining).unwrap_or(usize::MAX).min(buffer.len())])
    }

    /// Uses up bytes lent by [`Parser::chunk`].
    pub fn consume(&mut self, bytes: usize) {
        self.remaining -= bytes as u64;
        self.input.consume(bytes);
    }

    /// Moves what is left of the present entry to `raw`.
    fn finish_payload(&mut self) -> Result<()> {
        if self.remaining > MAX_SKIPPED {
            let message = format!("an entry without use for it has {} bytes of content", self.remaining);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        while self.remaining > 0 {
            let chunk = self.chunk()?.to_vec();
            self.raw.extend_from_slice(&chunk);
            self.consume(chunk.len());
        }
        let padding = std::mem::take(&mut self.padding);
        self.read_raw(padding)
    }

    /// Reads exactly so many bytes into `raw`.
    fn read_raw(&mut self, mut bytes: usize) -> Result<()> {
        while bytes > 0 {
            let buffer = self.input.fill_buf().map_err(|err| Error::io("read", err))?;
            if buffer.is_empty() {
                return Err(truncated());
            }
            let used = bytes.min(buffer.len());
            self.raw.extend_from_slice(&buffer[..used]);
            self.input.consume(used);
            bytes -= used;
        }
        Ok(())
    }

    /// The next header block; `None` at the end, with all that follows moved to `raw`.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.input.fill_buf().map_err(|err| Error::io("read", err))?.is_empty() {
            return Ok(None);
        }
        let block = self.read_block()?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        if self.input.fill_buf().map_err(|err| Error::io("read", err))?.is_empty() {
            return Ok(None);
        }
        if self.read_block()?.iter().any(|byte| *byte != 0) {
            return Err(corrupt("a lone zero block stands where a header belongs"));
        }
        self.read_trailer()?;
        Ok(None)
    }

    fn read_block(&mut self) -> Result<[u8; BLOCK]> {
        let start = self.raw.len();
        self.read_raw(BLOCK)?;
        Ok(self.raw[start..].try_into().expect("just read one block"))
    }

    fn read_trailer(&mut self) -> Result<()> {
        let mut total = 0;
        loop {
            let buffer = self.input.fill_buf().map_err(|err| Error::io("read", err))?;
            if buffer.is_empty() {
                return Ok(());
            }
            let used = buffer.len();
            total += used as u64;
            if total > MAX_TRAILER {
                let message = format!("more than {MAX_TRAILER} bytes follow the end of the archive");
                return Err(Error::new(ErrorKind::Limit, message));
            }
            self.raw.extend_from_slice(buffer);
            self.input.consume(used);
        }
    }

    /// The content of an extended header.
    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            let message = format!("an extended header of {size} bytes (the limit is {MAX_EXTENSION})");
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let start = self.raw.len();
        let size = size as usize;
        self.read_raw(size)?;
        let content = self.raw[start..].to_vec();
        self.read_raw(padding_of(size as u64))?;
        Ok(content)
    }

    /// Folds header and extensions into the entry, and sets the payload up.
    fn entry(&mut self, header: &::tar::Header, mut extended: Extended, size: u64) -> Result<Entry> {
        let old = header.as_old();
        let pax_path = extended.sparse.name.take().or(extended.path.take());
        let path = pax_path.or(extended.gnu_path.take()).unwrap_or_else(|| header_path(header));
        let link = extended.link.take().or(extended.gnu_link.take());
        let link = link.unwrap_or_else(|| until_nul(old.linkname.to_vec()));
        let flag = old.linkflag[0];
        let kind = kind_of(flag, &path)?;
        let field = |bytes: &[u8], what| number(bytes).ok_or_else(|| malformed(header, what));
        let id = |bytes: &[u8], what| {
            let value = field(bytes, what)?;
            u32::try_from(value).map_err(|_| malformed(header, what))
        };
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            None => (signed_number(&old.mtime).ok_or_else(|| malformed(header, "mtime"))?, 0),
        };
        let device = match kind {
            Kind::Char | Kind::Block => device_of(header)?,
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            path,
            link,
            mode: (field(&old.mode, "mode")? & 0o7777) as u32,
            uid: extended.uid.map_or_else(|| id(&old.uid, "uid"), Ok)?,
            gid: extended.gid.map_or_else(|| id(&old.gid, "gid"), Ok)?,
            mtime,
            size: 0,
            device,
            xattrs: std::mem::take(&mut extended.xattrs),
            pieces: None,
        };
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(corrupt("a name contains a zero byte"));
        }
        if kind == Kind::File {
            let payload = extended.size.unwrap_or(size);
            self.remaining = payload;
            self.padding = padding_of(payload);
            entry.size = payload;
            self.sparse(flag, header, &extended.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    /// Finds the map of a sparse file, in whichever of the four formats.
    fn sparse(&mut self, flag: u8, header: &::tar::Header, pax: &PaxSparse, entry: &mut Entry) -> Result<()> {
        let (pieces, real) = if flag == b'S' {
            self.gnu_sparse_map(header)?
        } else if pax.major == Some(1) && pax.minor == Some(0) {
            let real = pax.real_size.ok_or_else(|| corrupt("a sparse file without its real size"))?;
            (self.pax1_sparse_map()?, real)
        } else if pax.seen {
            let real = pax.real_size.ok_or_else(|| corrupt("a sparse file without its real size"))?;
            (pairs(&pax.numbers)?, real)
        } else {
            return Ok(());
        };
        check_pieces(&pieces, real, self.remaining)?;
        entry.size = real;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// The old GNU format: four pieces in the header, 21 in each block that follows.
    fn gnu_sparse_map(&mut self, header: &::tar::Header) -> Result<(Vec<(u64, u64)>, u64)> {
        let bad = || corrupt("malformed GNU sparse map");
        let gnu = header.as_gnu().ok_or_else(bad)?;
        let real = number(&gnu.realsize).ok_or_else(bad)?;
        let mut pieces = Vec::new();
        let mut add = |block: &[u8]| {
            for pair in block.chunks_exact(24) {
                if pair[0] == 0 || pair[12] == 0 {
                    return Some(());
                }
                pieces.push((number(&pair[..12])?, number(&pair[12..])?));
            }
            Some(())
        };
        let block = header.as_bytes();
        add(&block[386..482]).ok_or_else(bad)?;
        let mut more = block[482] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks * 21 > MAX_PIECES {
                return Err(Error::new(ErrorKind::Limit, "a sparse file of too many pieces"));
            }
            let block = self.read_block()?;
            add(&block[..504]).ok_or_else(bad)?;
            more = block[504] != 0;
        }
        Ok((pieces, real))
    }

    /// The PAX 1.0 format: the map is decimal lines at the head of the payload, padded to a block.
    fn pax1_sparse_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        while wanted != Some(numbers.len()) {
            if self.remaining < BLOCK as u64 || text.len() as u64 > MAX_EXTENSION {
                return Err(corrupt("malformed PAX sparse map"));
            }
            text.extend_from_slice(&self.read_block()?);
            self.remaining -= BLOCK as u64;
            let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
            let count = match lines.next() {
                Some(line) => decimal(&line[..line.len() - 1]).ok_or_else(|| corrupt("malformed PAX sparse map"))?,
                None => continue,
            };
            if count > MAX_PIECES as u64 {
                return Err(Error::new(ErrorKind::Limit, "a sparse file of too many pieces"));
            }
            let expected = 2 * count as usize;
            wanted = Some(expected);
            numbers = lines
                .take(expected)
                .map(|line| decimal(&line[..line.len() - 1]).ok_or_else(|| corrupt("malformed PAX sparse map")))
                .collect::<Result<_>>()?;
        }
        pairs(&numbers)
    }
}

fn corrupt(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn truncated() -> Error {
    corrupt("the archive ends in the middle of an entry")
}

fn malformed(header: &::tar::Header, field: &str) -> Error {
    let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    Error::new(ErrorKind::Corrupt, format!("header of {name:?}: malformed {field}"))
}

fn padding_of(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn header_path(header: &::tar::Header) -> Vec<u8> {
    // GNU's headers use the bytes of ustar's prefix for other things; `path_bytes` tells them apart by the magic.
    header.path_bytes().into_owned()
}

fn kind_of(flag: u8, path: &[u8]) -> Result<Kind> {
    Ok(match flag {
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            let path = String::from_utf8_lossy(path).into_owned();
            let message = format!("entry {path:?}: unknown type {:?}", char::from(other));
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    })
}

fn device_of(header: &::tar::Header) -> Result<(u32, u32)> {
    let major = header.device_major().map_err(|_| malformed(header, "device major"))?;
    let minor = header.device_minor().map_err(|_| malformed(header, "device minor"))?;
    Ok((major.unwrap_or(0), minor.unwrap_or(0)))
}

/// The checksum is a sum of unsigned bytes; some ancient writers summed signed ones, and every reader takes both.
fn check_sum(header: &::tar::Header) -> Result<()> {
    let bytes = header.as_bytes();
    let stored = number(&header.as_old().cksum).ok_or_else(|| corrupt("not a tar header (malformed checksum)"))?;
    let spaces = 8 * u64::from(b' ');
    let counted = || bytes[..148].iter().chain(&bytes[156..]);
    let unsigned: u64 = counted().map(|byte| u64::from(*byte)).sum::<u64>() + spaces;
    if unsigned == stored {
        return Ok(());
    }
    let signed: i64 = counted().map(|byte| i64::from(*byte as i8)).sum::<i64>() + spaces as i64;
    if signed == stored as i64 {
        return Ok(());
    }
    Err(corrupt("not a tar header (wrong checksum)"))
}

/// A number of a header field: octal digits, or GNU's base-256. `None` if malformed or negative.
fn number(field: &[u8]) -> Option<u64> {
    signed_number(field).and_then(|value| u64::try_from(value).ok())
}

fn signed_number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, big endian; the top bit marks the format and the next one is the sign.
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = match (index, negative) {
                (0, true) => *byte,
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            if value.unsigned_abs() > u128::from(u64::MAX) {
                return None;
            }
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    let mut value: i64 = 0;
    for digit in text {
        if !matches!(digit, b'0'..=b'7') {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-12.5` to seconds (rounded down) and nanoseconds.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (digits, negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = decimal(seconds.as_bytes())?.try_into().ok()?;
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>> {
    if !numbers.len().is_multiple_of(2) {
        return Err(corrupt("malformed PAX sparse map"));
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Pieces must be in order, apart, inside the file, and their sum must be the payload.
fn check_pieces(pieces: &[(u64, u64)], real: u64, payload: u64) -> Result<()> {
    let bad = || corrupt("a sparse map that does not fit its file");
    let mut end = 0u64;
    let mut sum = 0u64;
    for (offset, length) in pieces {
        if *offset < end {
            return Err(bad());
        }
        end = offset.checked_add(*length).ok_or_else(bad)?;
        sum = sum.checked_add(*length).ok_or_else(bad)?;
    }
    if end > real || sum != payload {
        return Err(bad());
    }
    Ok(())
}

/// PAX records: `LENGTH KEY=VALUE\n`, where LENGTH counts all of it and a value may hold any byte.
fn parse_pax(mut records: &[u8], extended: &mut Extended) -> Result<()> {
    let bad = || corrupt("malformed PAX record");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length = decimal(&records[..space]).ok_or_else(bad)? as usize;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &records[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        pax_record(&record[..equals], &record[equals + 1..], extended)?;
        records = &records[length..];
    }
    Ok(())
}

fn pax_record(key: &[u8], value: &[u8], extended: &mut Extended) -> Result<()> {
    let bad = || {
        let key = String::from_utf8_lossy(key).into_owned();
        Error::new(ErrorKind::Corrupt, format!("malformed PAX record {key:?}"))
    };
    // An empty value means: back to what the header says.
    let given = !value.is_empty();
    let id = || decimal(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
    match key {
        b"path" => extended.path = given.then(|| value.to_vec()),
        b"linkpath" => extended.link = given.then(|| value.to_vec()),
        b"size" if given => extended.size = Some(decimal(value).ok_or_else(bad)?),
        b"uid" if given => extended.uid = Some(id()?),
        b"gid" if given => extended.gid = Some(id()?),
        b"mtime" if given => extended.mtime = Some(pax_time(value).ok_or_else(bad)?),
        b"GNU.sparse.major" => extended.sparse.major = Some(decimal(value).ok_or_else(bad)?),
        b"GNU.sparse.minor" => extended.sparse.minor = Some(decimal(value).ok_or_else(bad)?),
        b"GNU.sparse.name" => extended.sparse.name = Some(value.to_vec()),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
            extended.sparse.real_size = Some(decimal(value).ok_or_else(bad)?);
        }
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            extended.sparse.seen = true;
            extended.sparse.numbers.push(decimal(value).ok_or_else(bad)?);
        }
        b"GNU.sparse.map" => {
            extended.sparse.seen = true;
            let numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
            extended.sparse.numbers = numbers.map(|n| decimal(n).ok_or_else(bad)).collect::<Result<_>>()?;
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if extended.xattrs.len() >= MAX_XATTRS {
                    let message = format!("an entry of more than {MAX_XATTRS} extended attributes");
                    return Err(Error::new(ErrorKind::Limit, message));
                }
                extended.xattrs.retain(|(known, _)| known != name);
                extended.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    if extended.sparse.numbers.len() > 2 * MAX_PIECES {
        return Err(Error::new(ErrorKind::Limit, "a sparse file of too many pieces"));
    }
    Ok(())
}
