//! Header blocks of SPDY/3: names and values behind zlib, one compression context for the life of a connection and
//! direction, primed with the dictionary of the specification (section 2.6.10.1). A block that does not inflate spoils
//! the context, so any error here ends the connection.
//!
//! ```text
//! | count | length | name | length | value | ...        all numbers 32 bits, big endian
//! ```

use std::sync::OnceLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

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

/// The direction from us.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Deflater, Fault> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(dictionary()).map_err(|why| Fault::new(why.to_string()))?;
        Ok(Deflater(compress))
    }

    /// Writes one block.
    pub(super) fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, Fault> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            push_text(&mut plain, name);
            push_text(&mut plain, value);
        }
        let mut block = Vec::new();
        let mut rest = plain.as_slice();
        loop {
            block.reserve(STEP);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(|why| Fault::new(format!("compress headers: {why}")))?;
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (mut out, mut back) = (Deflater::new().unwrap(), Inflater::new());
        let one: Headers = vec![("streamtype".into(), "error".into()), ("port".into(), "8080".into())];
        for headers in [&one, &Vec::new(), &one] {
            assert_eq!(&back.headers(&out.block(headers).unwrap()).unwrap(), headers);
        }
        assert_eq!(value(&one, "streamType"), Some("error"));
    }

    #[test]
    fn a_bomb_and_a_lie_are_refused() {
        let bomb: Headers = vec![("x".into(), "y".repeat(1 << 20))];
        let block = Deflater::new().unwrap().block(&bomb).unwrap();
        assert!(block.len() < MAX_BLOCK);
        assert!(Inflater::new().headers(&block).unwrap_err().to_string().contains("longer than"));
        assert!(Inflater::new().headers(b"no zlib").is_err());
        assert!(parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'x']).is_err());
    }
}
