//! The log, in the formats of logrus, which the programs that call a runtime parse.
//!
//! A record goes to the file of `--log`, else to standard error; an error goes to standard error as well, as plain words.
//! On a terminal records are shortened for people. Writing is best effort: there is no third place.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::args::Globals;

static LOG: OnceLock<Log> = OnceLock::new();

#[derive(Default)]
struct Log {
    file: Option<File>,
    json: bool,
    debug: bool,
}

/// How much a record matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Debug => "debug",
        }
    }

    /// On a terminal: four letters and a colour.
    fn mark(self) -> (&'static str, u8) {
        match self {
            Level::Error => ("ERRO", 31),
            Level::Warning => ("WARN", 33),
            Level::Debug => ("DEBU", 37),
        }
    }
}

/// Opens the log by the global flags.
pub fn open(globals: &Globals) -> Result<()> {
    let json = match globals.log_format.as_deref() {
        None | Some("" | "text") => false,
        Some("json") => true,
        Some(other) => bail!("invalid log-format: {other} (it is text or json)"),
    };
    let file = globals.log.as_ref().filter(|path| **path != PathBuf::new()).map(|path| {
        // A fifo that nobody reads must not hang the runtime, and a terminal must not become ours.
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        options.open(path).with_context(|| format!("open log file {}", path.display()))
    });
    coracle_runtime::on_warning(warning);
    // Set once, by main.
    let _ = LOG.set(Log { file: file.transpose()?, json, debug: globals.debug });
    Ok(())
}

/// Says why the program ends.
pub fn error(message: &str) {
    if write(Level::Error, message) {
        let _ = writeln!(std::io::stderr(), "{message}");
    }
}

/// Says what was not done and does not matter enough to end.
pub fn warning(message: &str) {
    write(Level::Warning, message);
}

/// For `--debug`.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.debug) {
        write(Level::Debug, &message());
    }
}

/// Writes a record; whether that was to a file.
fn write(level: Level, message: &str) -> bool {
    let plain = Log::default();
    let log = LOG.get().unwrap_or(&plain);
    let time = coracle_runtime::now();
    // Whole seconds, as logrus has them.
    let time = time.split_once('.').map_or(time.clone(), |(seconds, _)| format!("{seconds}Z"));
    let mut line = match (log.json, &log.file) {
        (false, None) if std::io::stderr().is_terminal() => {
            let (mark, colour) = level.mark();
            format!("\x1b[{colour}m{mark}\x1b[0m[0000] {message}")
        }
        (json, _) => record(json, level, message, &time),
    };
    line.push('\n');
    match &log.file {
        Some(file) => drop((&*file).write_all(line.as_bytes())),
        None => drop(std::io::stderr().write_all(line.as_bytes())),
    }
    log.file.is_some()
}

/// One record, in logrus' shapes.
fn record(json: bool, level: Level, message: &str, time: &str) -> String {
    let level = level.name();
    if json {
        return serde_json::json!({ "level": level, "msg": message, "time": time }).to_string();
    }
    let plain = message.chars().all(|c| c.is_ascii_alphanumeric() || "-._/@^+".contains(c));
    let quoted = if plain { message.to_owned() } else { format!("{message:?}") };
    format!("time=\"{time}\" level={level} msg={quoted}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_shapes_that_callers_parse() {
        let json = record(true, Level::Error, "a \"b\"", "T");
        assert_eq!(json, r#"{"level":"error","msg":"a \"b\"","time":"T"}"#);
        assert_eq!(record(false, Level::Error, "a \"b\"\n", "T"), r#"time="T" level=error msg="a \"b\"\n""#);
        assert_eq!(record(false, Level::Debug, "word", "T"), r#"time="T" level=debug msg=word"#);
    }
}
