//! One call of CRIU's program, and what it has to say when it fails.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::CriuOptions;
use crate::error::{Context, Error, Result};

/// How many of CRIU's errors are told: the first is mostly the cause, the later ones its consequences.
const TOLD: usize = 4;
/// What is read of a log; one of a large container has more, but not errors alone.
const MAX_LOG: u64 = 64 << 20;

/// A call that is being put together.
pub(super) struct Criu {
    pub command: Command,
    verb: &'static str,
    log: PathBuf,
}

impl Criu {
    pub fn new(verb: &'static str, log: &str, options: &CriuOptions) -> Result<Criu> {
        let images = directory(&options.images)?;
        let work = options.work.as_deref().map_or_else(|| Ok(images.clone()), directory)?;
        let log = work.join(log);
        let program = if options.program.as_os_str().is_empty() { Path::new("criu") } else { &options.program };
        let mut command = Command::new(program);
        command.arg(verb).arg("--images-dir").arg(&images).arg("--work-dir").arg(&work);
        command.arg("--log-file").arg(&log).arg("-v4");
        let mut criu = Criu { command, verb, log };
        criu.switch("--tcp-established", options.tcp_established);
        criu.switch("--ext-unix-sk", options.ext_unix_sk);
        criu.switch("--shell-job", options.shell_job);
        criu.switch("--file-locks", options.file_locks);
        criu.switch("--auto-dedup", options.auto_dedup);
        match options.manage_cgroups.as_str() {
            "" => criu.word("--manage-cgroups=soft"),
            mode @ ("soft" | "full" | "strict" | "ignore") => criu.word(format!("--manage-cgroups={mode}")),
            mode => {
                return Err(Error::invalid(format!("cgroups mode {mode:?}: not soft, full, strict or ignore")));
            }
        }
        for name in &options.empty_ns {
            match name.as_str() {
                "network" => criu.pair("--empty-ns", "net"),
                _ => {
                    return Err(Error::invalid(format!("empty namespace {name:?}: criu can leave empty only network")));
                }
            }
        }
        Ok(criu)
    }

    pub fn word(&mut self, word: impl AsRef<OsStr>) {
        self.command.arg(word);
    }

    pub fn pair(&mut self, flag: &str, value: impl AsRef<OsStr>) {
        self.command.arg(flag).arg(value);
    }

    pub fn switch(&mut self, flag: &str, on: bool) {
        if on {
            self.word(flag);
        }
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<()> {
        // What an earlier call left would be told as the errors of this one.
        let _ = fs::remove_file(&self.log);
        let program = self.command.get_program().to_string_lossy().into_owned();
        self.command.stdin(Stdio::null());
        let status = self.command.status().op(|| {
            format!("run {program} (is CRIU installed? Debian's package is criu; --criu names another program)")
        })?;
        if status.success() {
            return Ok(());
        }
        let errors = errors(&self.log).unwrap_or_default();
        let log = self.log.display();
        let words = match errors.is_empty() {
            true => format!("{status}, and no error is in {log}"),
            false => format!("{} (all of it: {log})", errors.join("; ")),
        };
        Err(Error::Init(format!("criu {} failed: {words}", self.verb)))
    }
}

/// The errors of a log, without their times.
fn errors(log: &Path) -> Option<Vec<String>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(log).ok()?.take(MAX_LOG).read_to_end(&mut bytes).ok()?;
    Some(errors_in(&String::from_utf8_lossy(&bytes)))
}

fn errors_in(text: &str) -> Vec<String> {
    let found = text.lines().filter_map(|line| line.find("Error (").map(|at| line[at..].trim().to_owned()));
    found.take(TOLD).collect()
}

/// An absolute path of a directory that is there.
pub(super) fn directory(path: &Path) -> Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).path("make", path)?;
    fs::canonicalize(path).path("open", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_and_lose_their_times() {
        let log = "(00.1) fine\n(00.2) Error (criu/tty.c:1): tty: bad\n(00.3)  7: Error (criu/cr-dump.c:2): failed\n";
        assert_eq!(errors_in(log), ["Error (criu/tty.c:1): tty: bad", "Error (criu/cr-dump.c:2): failed"]);
    }
}
