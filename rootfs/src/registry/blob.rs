//! A blob as one stream, however often the connection breaks on the way.
//!
//! After a failure the rest is asked for by `Range`, at first from the same host, then from the next one. A server
//! that knows no ranges sends all of it again, and what is known already is skipped. Attempts are counted anew
//! whenever bytes arrive; the number of resumptions is bounded all the same. Exactly as many bytes come out as the
//! descriptor promises: fewer or more are an error. That they are the right ones is for the digest to say, which the
//! consumer computes.

use std::io::{self, Read};

use ureq::http::header::CONTENT_RANGE;
use ureq::http::{Response, StatusCode};
use ureq::{Body, BodyReader};

use super::RegistrySource;
use super::endpoint::{Endpoint, Get};
use super::retry::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::source::Descriptor;

/// How often one blob is resumed at most. At the longest waits that is a quarter of an hour of a very bad network.
const RESUME_LIMIT: u32 = 100;

/// See the [module](self).
pub struct BlobReader<'a> {
    endpoints: Vec<&'a Endpoint>,
    /// Index of the one in use.
    current: usize,
    what: String,
    path: String,
    size: u64,
    position: u64,
    body: Option<BodyReader<'static>>,
    /// Attempts since bytes last arrived.
    attempt: u32,
    resumes: u32,
    progress: &'a dyn Progress,
}

impl<'a> BlobReader<'a> {
    /// Asks for the blob; the answer's head has arrived when this returns.
    pub fn open(source: &'a RegistrySource, blob: &Descriptor, progress: &'a dyn Progress) -> Result<BlobReader<'a>> {
        let mut reader = BlobReader {
            endpoints: source.eligible(|host| host.pull)?,
            current: 0,
            what: format!("blob {}", blob.digest),
            path: format!("blobs/{}", blob.digest),
            size: blob.size,
            position: 0,
            body: None,
            attempt: 1,
            resumes: 0,
            progress,
        };
        reader.connect()?;
        Ok(reader)
    }

    fn endpoint(&self) -> &'a Endpoint {
        self.endpoints[self.current]
    }

    fn corrupt(&self, why: String) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{}: {}: {why}", self.endpoint().name(), self.what))
    }

    /// Opens the stream at the present position, trying what may be tried.
    fn connect(&mut self) -> Result<()> {
        let mut before = Vec::new();
        loop {
            let failure = match self.connect_once() {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if let Err(err) = self.wait(failure) {
                self.endpoint().note(&err);
                if self.current + 1 == self.endpoints.len() {
                    return Err(super::summary(err, &before));
                }
                before.push(err);
                self.current += 1;
                self.attempt = 1;
            }
        }
    }

    fn wait(&mut self, failure: Failure) -> Result<()> {
        self.attempt += 1;
        self.endpoint().retry().wait(failure, self.attempt, &self.what, self.progress)
    }

    fn connect_once(&mut self) -> Result<(), Failure> {
        let get = Get { path: &self.path, what: &self.what, accept: None, from: self.position };
        let response = self.endpoint().get(get)?;
        let skip = self.check(&response)?;
        let mut body = response.into_body().into_reader();
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
        match skipped.map_err(|err| self.endpoint().body_failure(&self.what, err))? {
            skipped if skipped == skip => self.body = Some(body),
            _ => return Err(self.cut()),
        }
        Ok(())
    }

    /// Is the answer the blob, from the position on? How many bytes of it are known already?
    fn check(&self, response: &Response<Body>) -> Result<u64, Failure> {
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let why = format!("ends before byte {}, where {} were promised", self.position, self.size);
                Err(self.corrupt(why).into())
            }
            StatusCode::PARTIAL_CONTENT if self.position > 0 => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                match range.and_then(parse_content_range) {
                    Some((start, total)) if start == self.position && total.is_none_or(|total| total == self.size) => {
                        Ok(0)
                    }
                    _ => Err(self.corrupt(format!("asked for bytes from {}, got {range:?}", self.position)).into()),
                }
            }
            _ => match response.body().content_length() {
                Some(length) if length != self.size => {
                    Err(self.corrupt(format!("has {length} bytes where {} were promised", self.size)).into())
                }
                _ => Ok(self.position),
            },
        }
    }

    fn cut(&self) -> Failure {
        let why = format!("the connection ended at byte {} of {}", self.position, self.size);
        let error = Error::new(ErrorKind::Unavailable, format!("{}: {}: {why}", self.endpoint().name(), self.what));
        Failure::passing(error)
    }

    /// After a failure within the stream: waits, and opens it anew.
    fn resume(&mut self, failure: Failure) -> Result<()> {
        self.body = None;
        self.resumes += 1;
        if self.resumes > RESUME_LIMIT {
            return Err(failure.error.context(format_args!("gave up after {RESUME_LIMIT} resumptions")));
        }
        self.wait(failure)?;
        self.connect()
    }

    /// All has arrived: is there more? Asking also gives the connection back to the pool.
    fn finish(&mut self) -> Result<()> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        match body.read(&mut [0]) {
            Ok(1..) => Err(self.corrupt(format!("goes on after the {} bytes that were promised", self.size))),
            // An error after the last byte harms nobody.
            Ok(0) | Err(_) => Ok(()),
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        if left == 0 {
            self.finish()?;
        }
        if wanted == 0 {
            return Ok(0);
        }
        loop {
            let Some(body) = &mut self.body else {
                // An earlier read failed for good, and it is asked again all the same.
                return Err(self.cut().error.into());
            };
            let failure = match body.read(&mut buffer[..wanted]) {
                Ok(0) => self.cut(),
                Ok(count) => {
                    self.position += count as u64;
                    self.attempt = 1;
                    return Ok(count);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => self.cut(),
                Err(err) => self.endpoint().body_failure(&self.what, err),
            };
            self.resume(failure)?;
        }
    }
}

/// `bytes START-END/TOTAL`: the start, and the total if it is told.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "bytes", "bytes */10", "lines 5-9/10", "bytes 5-9", "bytes 5-9/x"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
