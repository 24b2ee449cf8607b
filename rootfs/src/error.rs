//! The one error type of this crate.
//!
//! An error is a *kind*, for the program that must choose an exit code or decide whether another source is worth a
//! try, and one *line of text*, for the person: operation, object, cause in the words of whoever refused, and, where it
//! is known, a hint in brackets that tells what to do. Causes are folded into the line when the error is made, so
//! `source()` is always `None` and a chain printer never says a thing twice.

use std::fmt;
use std::io;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// What the caller gave makes no sense: a malformed reference, configuration or keyring file.
    Invalid,
    /// The image, tag, blob, file or name does not exist.
    NotFound,
    /// The registry wants (other) credentials: HTTP 401.
    Unauthorized,
    /// The registry knows who asks and refuses: HTTP 403.
    Denied,
    /// The registry could not be reached or did not answer properly, after all retries.
    Unavailable,
    /// The other end's certificate was refused, or it did not speak TLS.
    Tls,
    /// Content that is not what it claims to be: wrong digest, wrong size, malformed manifest, hostile layer.
    Corrupt,
    /// A limit of ours was exceeded: a manifest too big, too many layers, an inflation bomb.
    Limit,
    /// A media type, platform or feature that is not supported, or that the image does not have.
    Unsupported,
    /// Something in use, or locked by another process.
    Busy,
    /// No space (or quota) left on the device.
    NoSpace,
    /// The kernel refused for want of a permission.
    Permission,
    /// Any other failure of the operating system.
    Io,
}

/// See the [module](self).
#[derive(thiserror::Error)]
#[error("{message}{}", Hint(hint.as_deref()))]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Debug is what a failed `unwrap` in a test prints: the same line, with the kind.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl Error {
    /// An error of that kind, with that line.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), hint: None }
    }

    /// A system error: `what` is the operation and its object ("create /a/b"). The kind follows from the error. An
    /// [`Error`] that travelled inside an [`io::Error`] (a reader's) keeps its kind and its hint.
    pub fn io(what: impl fmt::Display, err: io::Error) -> Error {
        match Error::unwrap_io(err) {
            Ok(own) => own.context(what),
            Err(err) => Error::new(kind_of(&err), format!("{what}: {err}")),
        }
    }

    /// Takes an [`Error`] back out of an [`io::Error`] that carries one.
    pub fn unwrap_io(err: io::Error) -> Result<Error, io::Error> {
        if err.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            let inner = err.into_inner().expect("has an inner error, as just seen");
            return Ok(*inner.downcast::<Error>().expect("is ours, as just seen"));
        }
        Err(err)
    }

    /// Puts an operation and its object in front of the line.
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Adds what the user can do. The first hint stays: it was given nearest to the cause.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// Replaces the hint, by whoever has learnt more since.
    pub fn better_hint(self, hint: impl Into<String>) -> Error {
        Error { hint: Some(hint.into()), ..self }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// For readers, whose interface knows [`io::Error`] only; [`Error::io`] takes it out again.
impl From<Error> for io::Error {
    fn from(err: Error) -> io::Error {
        io::Error::other(err)
    }
}

fn kind_of(err: &io::Error) -> ErrorKind {
    match err.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Permission,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_trip_through_a_reader() {
        let err = Error::new(ErrorKind::Corrupt, "blob sha256:ab: too long").hint("pull again");
        let back = Error::io("unpack layer 1", io::Error::from(err));
        assert_eq!(back.kind(), ErrorKind::Corrupt);
        assert_eq!(back.to_string(), "unpack layer 1: blob sha256:ab: too long (pull again)");
    }

    #[test]
    fn system_errors_keep_the_kernels_words_and_get_a_kind() {
        let err = Error::io("write /x", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(err.kind(), ErrorKind::NoSpace);
        assert_eq!(err.to_string(), "write /x: No space left on device (os error 28)");
    }
}
