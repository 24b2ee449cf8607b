//! Errors of the engine and of the image store as gRPC statuses: the code that kubelet and crictl act upon, and one line.
//!
//! | error | code |
//! |---|---|
//! | unknown id or image | NOT_FOUND (stop and remove never come here: what is gone is stopped and removed) |
//! | a field that cannot be right | INVALID_ARGUMENT, the field's name first |
//! | the object's state forbids it | FAILED_PRECONDITION |
//! | a name of something else | ALREADY_EXISTS |
//! | no answer in time | DEADLINE_EXCEEDED |
//! | the disk or a quota is full | RESOURCE_EXHAUSTED |
//! | a supervisor or a registry that cannot be reached | UNAVAILABLE |
//! | a registry's refusal | UNAUTHENTICATED, PERMISSION_DENIED |
//! | anything else | INTERNAL |

use std::error::Error as StdError;

use coracle_engine::Error;
use coracle_rootfs::{Error as ImageError, ErrorKind};
use tonic::{Code, Status};

use crate::text::cut;

/// A message travels in an HTTP header, which clients bound at 8 KiB or more.
const MAX_MESSAGE: usize = 4 << 10;

/// A field of a request that cannot be right.
pub fn invalid(field: impl std::fmt::Display, why: impl std::fmt::Display) -> Status {
    status(Code::InvalidArgument, format!("{field}: {why}"))
}

/// What the engine says, for a client of the CRI.
pub fn engine(error: Error) -> Status {
    status(code(&error), chain(&error))
}

/// What the image store says, for a client of the CRI.
pub fn image(error: ImageError) -> Status {
    let text = error.to_string();
    match image_code(&error) {
        // The word by which kubelet tells this failure from others.
        Code::Unavailable => status(Code::Unavailable, format!("RegistryUnavailable: {text}")),
        code => status(code, text),
    }
}

/// A status whose message is one line that fits a header.
pub fn status(code: Code, text: impl Into<String>) -> Status {
    let mut text: String = text.into().replace(['\n', '\r'], " ");
    if text.len() > MAX_MESSAGE {
        text = format!("{}...", cut(&text, MAX_MESSAGE));
    }
    Status::new(code, text)
}

/// An error with its causes, in one line; a cause that its error has quoted already is not said again.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::Ambiguous { .. } | Error::Invalid { .. } => Code::InvalidArgument,
        Error::Exists { .. } => Code::AlreadyExists,
        Error::State { .. } => Code::FailedPrecondition,
        Error::Supervisor { .. } | Error::Handler { .. } => Code::Unavailable,
        Error::Deadline { .. } => Code::DeadlineExceeded,
        Error::Rpc { code, .. } => rpc(*code),
        Error::Image(error) => image_code(error),
        other => other.os_error().map_or(Code::Internal, os),
    }
}

/// The supervisor speaks gRPC's codes itself; what it calls unknown is a failure of ours.
fn rpc(code: i32) -> Code {
    match Code::from_i32(code) {
        Code::Ok | Code::Unknown => Code::Internal,
        code => code,
    }
}

fn os(errno: i32) -> Code {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn image_code(error: &ImageError) -> Code {
    match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthorized => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Unavailable | ErrorKind::Tls => Code::Unavailable,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::NoSpace | ErrorKind::Limit => Code::ResourceExhausted,
        ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::Corrupt => Code::DataLoss,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_error_has_the_code_that_clients_act_upon() {
        let missing = Error::NotFound { kind: "container", name: "x".into(), hint: None };
        let field = Error::Invalid { field: "hostname".into(), reason: "is too long".into() };
        let late = Error::Deadline { operation: "kill".into(), after: Duration::from_secs(1) };
        let full =
            Error::Io { operation: "write", path: "/x".into(), source: io::Error::from_raw_os_error(libc::ENOSPC) };
        let table = [(missing, Code::NotFound), (field, Code::InvalidArgument), (late, Code::DeadlineExceeded)];
        for (error, code) in table.into_iter().chain([(full, Code::ResourceExhausted)]) {
            assert_eq!(engine(error).code(), code);
        }
        assert_eq!(image(ImageError::new(ErrorKind::Unauthorized, "no")).code(), Code::Unauthenticated);
        assert!(image(ImageError::new(ErrorKind::Unavailable, "r")).message().starts_with("RegistryUnavailable"));
    }

    #[test]
    fn a_message_is_one_bounded_line_with_its_causes() {
        let error = Error::Io { operation: "open", path: "/x".into(), source: io::Error::from_raw_os_error(2) };
        assert_eq!(engine(error).message(), "open /x: No such file or directory (os error 2)");
        let long = status(Code::Internal, format!("a\nb{}", "é".repeat(MAX_MESSAGE)));
        assert!(long.message().starts_with("a b") && long.message().len() <= MAX_MESSAGE + 3);
    }
}
