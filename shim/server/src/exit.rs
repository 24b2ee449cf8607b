//! Exit codes. They are part of the interface: scripts rely on them, so a code never changes its meaning.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | any other error |
//! | 2 | the command line, the configuration or the YAML is wrong |
//! | 4 | no such pod, container or image |
//! | 5 | an image cannot be had: unknown, unauthorized, unreachable, damaged |
//! | 6 | a permission is missing |
//! | 7 | no space is left |
//! | 8 | something of this name exists already, or is in use |
//!
//! `run` in the foreground answers the code of the first container that failed, and `exec` that of the command.

use std::io;
use std::process::ExitCode;

use coracle_engine::Error as EngineError;
use coracle_rootfs::{Error as ImageError, ErrorKind};

/// Done.
pub const OK: u8 = 0;
/// Any other error.
pub const ERROR: u8 = 1;
/// The command line, the configuration or the YAML is wrong.
pub const USAGE: u8 = 2;
/// No such pod, container or image.
pub const NOT_FOUND: u8 = 4;
/// An image cannot be had.
pub const IMAGE: u8 = 5;
/// A permission is missing.
pub const PERMISSION: u8 = 6;
/// No space is left.
pub const NO_SPACE: u8 = 7;
/// Something exists already, or is in use.
pub const CONFLICT: u8 = 8;

/// The table above, for `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  any other error
  2  the command line, the configuration or the YAML is wrong
  4  no such pod, container or image
  5  an image cannot be had: unknown, unauthorized, unreachable, damaged
  6  a permission is missing
  7  no space is left
  8  something of this name exists already, or is in use
`run` in the foreground answers the code of the first container that failed, `exec` that of the command.";

/// An error that knows its exit code; it says what it wraps says.
#[derive(Debug)]
pub struct Coded {
    code: u8,
    text: String,
}

impl Coded {
    /// An error with this code and line.
    pub fn error(code: u8, text: impl Into<String>) -> anyhow::Error {
        Coded { code, text: text.into() }.into()
    }

    /// The command line or a file is wrong.
    pub fn usage(text: impl Into<String>) -> anyhow::Error {
        Coded::error(USAGE, text)
    }
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Coded {}

/// Ends as a command or a container did; one whose code no process can have has failed.
pub fn of(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(ERROR))
}

/// The exit code of an error: what the innermost cause that knows says, so that a full disk is one wherever it is met.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().filter_map(code_of).last().unwrap_or(ERROR)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<Coded>() {
        return Some(error.code);
    }
    if cause.is::<crate::kube::Fault>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<ImageError>() {
        return Some(image_code(error));
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return io_code(error);
    }
    match cause.downcast_ref::<EngineError>()? {
        EngineError::NotFound { .. } => Some(NOT_FOUND),
        EngineError::Ambiguous { .. } => Some(USAGE),
        EngineError::Exists { .. } => Some(CONFLICT),
        // `#[error(transparent)]` hides the wrapped error from the chain.
        EngineError::Image(error) => Some(image_code(error)),
        _ => None,
    }
}

fn image_code(error: &ImageError) -> u8 {
    match error.kind() {
        ErrorKind::NoSpace => NO_SPACE,
        ErrorKind::Permission => PERMISSION,
        ErrorKind::Busy => CONFLICT,
        ErrorKind::Invalid => USAGE,
        _ => IMAGE,
    }
}

fn io_code(error: &io::Error) -> Option<u8> {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(PERMISSION),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(NO_SPACE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_innermost_cause_that_knows_gives_the_code() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = anyhow::Error::from(full).context(Coded { code: NOT_FOUND, text: "outer".into() });
        assert_eq!(code(&error), NO_SPACE);
        assert_eq!(code(&anyhow::anyhow!("else")), ERROR);
        let found: Result<(), _> = Err(Coded::error(NOT_FOUND, "no pod web"));
        assert_eq!(code(&found.context("stop").unwrap_err()), NOT_FOUND);
    }

    #[test]
    fn the_help_lists_each_code() {
        for code in [OK, ERROR, USAGE, NOT_FOUND, IMAGE, PERMISSION, NO_SPACE, CONFLICT] {
            assert!(HELP.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
