//! A failed request: the status code containerd's shims use for it, and one line of text.

use coracle_proto::Status;
use coracle_proto::ttrpc::Code;

/// Why a request failed. Kept apart from the wire's status so that `?` works across all handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// Operation, object and source, on one line.
    pub message: String,
}

/// Makes failures of codes.
pub trait Fail {
    /// A failure of this code.
    fn failure(self, message: String) -> Failure;
}

impl Fail for Code {
    fn failure(self, message: String) -> Failure {
        Failure { code: self, message }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        failure.code.status(failure.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure { code: status.meaning(), message: status.message }
    }
}

impl From<coracle_runtime::Error> for Failure {
    fn from(error: coracle_runtime::Error) -> Failure {
        use coracle_runtime::Error;
        let code = match &error {
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::State(_) => Code::FailedPrecondition,
            Error::Invalid(_) | Error::Refused { .. } => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        Failure { code, message: error.to_string() }
    }
}
