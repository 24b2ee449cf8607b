//! Header blocks of SPDY/3: names and values behind zlib, one compression context for the life of a connection and
//! direction, primed with the dictionary of the specification (section 2.6.10.1). A block that does not inflate spoils
//! the context, so any error here ends the connection.
//!
//! ```text
//! | count | length | name | length | value | ...        all numbers 32 bits, big endian
//! ```

use std::sync::OnceLock;

use flate2::{Decompress, FlushDecompress};

use super::frame::Fault;

/// The longest block once inflated: Kubernetes sends some hundred bytes.
pub(in crate::serve::streaming) const MAX_BLOCK: usize = 16 << 10;
/// Inflated at once.
const STEP: usize = 2 << 10;

/// Names and values in the order of the wire. Names are lower case.
pub(in crate::serve::streaming) type Headers = Vec<(String, String)>;

/// The value of a header.
pub(in crate::serve::streaming) fn value<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The dictionary's first part: words, each with its length before it as in a block.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// The second part, as it stands.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=\
    iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = Vec::new();
        for word in WORDS.split(' ').map(|word| word.replace('_', " ")) {
            push_text(&mut bytes, &word);
        }
        bytes.extend_from_slice(TAIL.as_bytes());
        bytes
    })
}

fn push_text(block: &mut Vec<u8>, text: &str) {
    block.extend_from_slice(&(text.len() as u32).to_be_bytes());
    block.extend_from_slice(text.as_bytes());
}

/// The direction towards us.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// Reads one block.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, Fault> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Fault> {
        let bad = |why: &str| Fault::new(format!("a header block does not inflate: {why}"));
        let mut plain = Vec::new();
        let mut rest = block;
        loop {
            if plain.len() > MAX_BLOCK {
                return Err(Fault::new(format!("a header block is longer than {MAX_BLOCK} bytes")));
            }
            plain.reserve(STEP);
            let before = (self.0.total_in(), plain.len());
            let done = self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            rest = &rest[(self.0.total_in() - before.0) as usize..];
            match done {
                Ok(_) if rest.is_empty() && plain.len() < plain.capacity() => return Ok(plain),
                Ok(_) if self.0.total_in() == before.0 && plain.len() == before.1 => return Err(bad("it stops short")),
                Ok(_) => {}
                Err(why) if why.needs_dictionary().is_some() => {
                    self.0.set_dictionary(dictionary()).map_err(|_| bad("another dictionary is asked for"))?;
                }
                Err(why) => return Err(bad(&why.to_string())),
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, Fault> {
    let short = || Fault::new("a header block ends in the middle");
    let number = |plain: &mut &[u8]| -> Result<usize, Fault> {
        let (number, rest) = plain.split_first_chunk::<4>().ok_or_else(short)?;
        *plain = rest;
        Ok(u32::from_be_bytes(*number) as usize)
    };
    let text = |plain: &mut &[u8]| -> Result<String, Fault> {
        let length = number(plain)?;
        let (text, rest) = plain.split_at_checked(length).ok_or_else(short)?;
        *plain = rest;
        String::from_utf8(text.to_vec()).map_err(|_| Fault::new("a header is not UTF-8"))
    };
    // Each entry takes at least eight bytes, so a lying count fails at the end of the block at the latest.
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut plain)?, text(&mut plain)?));
    }
    Ok(headers)
}

/// The direction from us. What we send is four zeroes for most, so nothing is compressed: the blocks are stored ones of
/// zlib, each followed by an empty one, which is how a compressor says "all of it was sent". That saves the quarter of a
/// megabyte that a compressor takes for each connection.
pub(super) struct Deflater {
    begun: bool,
}

/// How zlib begins: deflate, a window of 32 KiB, the dictionary of this checksum.
const ZLIB_HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

impl Deflater {
    pub(super) fn new() -> Deflater {
        Deflater { begun: false }
    }

    /// Writes one block.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            push_text(&mut plain, name);
            push_text(&mut plain, value);
        }
        let mut block = Vec::with_capacity(ZLIB_HEAD.len() + plain.len() + 10);
        if !std::mem::replace(&mut self.begun, true) {
            block.extend_from_slice(&ZLIB_HEAD);
        }
        for piece in plain.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = piece.len() as u16;
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(piece);
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    /// Adler-32, by which zlib names a dictionary.
    fn adler(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (a + b) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_specifications() {
        assert_eq!((dictionary().len(), adler(dictionary())), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_share_a_context_and_come_back() {
        let (mut out, mut back) = (Deflater::new(), Inflater::new());
        let one: Headers = vec![("streamtype".into(), "error".into()), ("port".into(), "8080".into())];
        for headers in [&one, &Vec::new(), &one] {
            assert_eq!(&back.headers(&out.block(headers)).unwrap(), headers);
        }
        assert_eq!(value(&one, "streamType"), Some("error"));
    }

    /// What zlib itself makes of two blocks with the dictionary, as Kubernetes' clients do.
    #[test]
    fn blocks_of_a_compressor_with_the_dictionary_are_read() {
        let first = b"\x78\xf9\xe3\xc6\xa7\xc2\x02\x25\x3a\x70\x3a\x2b\x29\x4a\x4d\xcc\x85\x16\x25\xac\xa9\xa0\x80\x86\
            \x14\xcb\x45\xe0\x1c\x60\x61\x60\x61\x00\xa4\x39\x8b\x20\xd1\x98\x09\x4a\xde\x8c\x06\x00\x00\x00\x00\xff\xff";
        let second = b"\xc2\xaa\x19\x54\x0e\x25\x12\xd6\x0b\x00\x00\x00\xff\xff";
        let mut inflater = Inflater::new();
        for (block, kind) in [(&first[..], "error"), (&second[..], "data")] {
            let headers = inflater.headers(block).unwrap();
            let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(pairs, [("streamtype", kind), ("port", "8080"), ("requestid", "0")]);
        }
    }

    #[test]
    fn a_bomb_and_a_lie_are_refused() {
        let mut block = Vec::with_capacity(MAX_BLOCK);
        let plain = [&[0, 0, 0, 1, 0, 0, 0, 1, b'x', 0, 0x10, 0, 0][..], &vec![b'y'; 1 << 20]].concat();
        Compress::new(Compression::best(), true).compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        assert!(block.len() < MAX_BLOCK);
        assert!(Inflater::new().headers(&block).unwrap_err().to_string().contains("longer than"));
        assert!(Inflater::new().headers(b"no zlib").is_err());
        assert!(parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'x']).is_err());
    }
}
