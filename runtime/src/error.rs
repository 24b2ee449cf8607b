//! The one error type: each says the operation, the object and the kernel's words, on one line, cause included.

use std::io;
use std::path::Path;

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a file operation failed.
    #[error("{what}: {cause}")]
    Os {
        /// The operation and its object.
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// No container of this id.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// The id is taken.
    #[error("container {0:?} exists already")]
    Exists(String),
    /// The container is not in a state that allows this.
    #[error("{0}")]
    State(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The configuration asks for something this runtime does not do; it is refused, never ignored.
    #[error("config.json: {field} is not supported: {reason}")]
    Refused {
        /// The path of the field in config.json.
        field: String,
        /// Why.
        reason: String,
    },
    /// The container's own process failed while it set itself up; its words.
    #[error("{0}")]
    Init(String),
}

/// What the library returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the operation and its object to a lower error.
pub(crate) trait Context<T> {
    fn op<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;

    /// The same for the common shape "verb path".
    fn path(self, verb: &str, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        self.op(|| format!("{verb} {}", path.display()))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn op<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::Os { what: what().into(), cause })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn op<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::Os { what: what().into(), cause: e.into() })
    }
}

impl Error {
    /// The error number of the failed system call, if it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Os { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::Invalid(message.into())
    }
}
