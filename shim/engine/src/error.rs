//! What can go wrong, in one line each: operation, object and source.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such sandbox, container or image.
    #[error("no {kind} {name}{}", .hint.map(|h| format!(" ({h})")).unwrap_or_default())]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What to do.
        hint: Option<&'static str>,
    },
    /// A prefix that several ids have.
    #[error("{kind} {prefix} is ambiguous: {count} ids begin with it (give more digits)")]
    Ambiguous {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What was asked for.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// The name is taken.
    #[error("{kind} {name} already exists with id {}", crate::id::short(.id))]
    Exists {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Who has it: the whole id.
        id: String,
    },
    /// A field that cannot be right, or cannot be applied here.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: String,
        /// Why.
        reason: String,
    },
    /// The operation does not fit the object's state.
    #[error("{operation} {object}: it is {state}")]
    State {
        /// What was to be done.
        operation: &'static str,
        /// With which object.
        object: String,
        /// What it is.
        state: String,
    },
    /// A system call or file failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// A record that does not parse.
    #[error("read record {}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A handler cannot run anything.
    #[error("handler {name}: {reason}")]
    Handler {
        /// Its name in the configuration.
        name: String,
        /// Why.
        reason: String,
    },
    /// The supervisor could not be started, or spoke nonsense.
    #[error("supervisor of sandbox {sandbox}: {reason}")]
    Supervisor {
        /// Whose.
        sandbox: String,
        /// What it said or did.
        reason: String,
    },
    /// The supervisor answered with an error.
    #[error("{operation}: {message}")]
    Rpc {
        /// The call and its object.
        operation: String,
        /// A gRPC status code.
        code: i32,
        /// The supervisor's words.
        message: String,
    },
    /// No answer in time.
    #[error("{operation}: no answer within {}", human(*.after))]
    Deadline {
        /// What was waited for.
        operation: String,
        /// How long.
        after: Duration,
    },
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] coracle_rootfs::Error),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] crate::net::Error),
}

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { operation, path, source }
    }

    /// As [`Error::io`] for a bare errno.
    pub(crate) fn os(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(nix::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |errno| Error::Io { operation, path, source: errno.into() }
    }

    /// A field that cannot be right.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), reason: reason.into() }
    }

    /// Whether the object of the operation does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::NotFound { .. } => true,
            Error::Rpc { code, .. } => *code == crate::client::NOT_FOUND,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// The kernel's error number at the root of this, if there is one.
    pub fn os_error(&self) -> Option<i32> {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(e) = error {
            if let Some(io) = e.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            error = e.source();
        }
        None
    }
}

/// A duration for people: `1.5s`, `200ms`.
fn human(d: Duration) -> String {
    match d {
        d if d.subsec_millis() == 0 => format!("{}s", d.as_secs()),
        d if d.as_secs() == 0 => format!("{}ms", d.as_millis()),
        d => format!("{:.1}s", d.as_secs_f64()),
    }
}
