//! Errors: on stderr for people, in the `--log` file for the programs that called us.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::args::{Cli, LogFormat};

/// Where errors go.
pub struct Log {
    file: Option<PathBuf>,
    format: LogFormat,
}

impl Log {
    /// By the global flags.
    pub fn new(cli: &Cli) -> Log {
        Log { file: cli.log.clone(), format: cli.log_format }
    }

    /// Writes one error, its chain on one line. Both places are best effort: there is no third.
    pub fn error(&self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        let line = record(self.format, &message, &coracle_runtime::now());
        let stderr = match (&self.file, self.format) {
            (None, LogFormat::Json) => line.clone(),
            _ => format!("coracle-oci: {message}"),
        };
        let _ = writeln!(std::io::stderr(), "{stderr}");
        if let Some(path) = &self.file {
            let _ = OpenOptions::new().append(true).create(true).open(path).and_then(|mut f| writeln!(f, "{line}"));
        }
    }
}

/// One record, in logrus' shapes.
fn record(format: LogFormat, message: &str, time: &str) -> String {
    match format {
        LogFormat::Json => serde_json::json!({ "level": "error", "msg": message, "time": time }).to_string(),
        LogFormat::Text => format!("time=\"{time}\" level=error msg={message:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_shapes_that_callers_parse() {
        let json = record(LogFormat::Json, "a \"b\"", "T");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((value["level"].as_str(), value["msg"].as_str()), (Some("error"), Some("a \"b\"")));
        assert_eq!(record(LogFormat::Text, "a \"b\"", "T"), r#"time="T" level=error msg="a \"b\"""#);
    }
}
