//! Asks a `docker-credential-*` program: `NAME get`, the server on its standard input, JSON on its standard output.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::Credentials;
use crate::error::{Error, ErrorKind, Result};

/// How long a helper may take. Some ask a person or a cloud.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// More than this of its output is not read.
const OUTPUT_LIMIT: u64 = 1 << 20;
/// What helpers print, and then exit with 1, when they know nothing of the server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// The credentials that the helper has for the server, if any. `origin` is the file that names the helper.
pub fn get(name: &str, server: &str, path: Option<&OsStr>, origin: &Path) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{name}");
    let failed = |kind, why: String| {
        let message = format!("credentials of {server} by {program} get: {why}");
        Error::new(kind, message).hint(format!("it is named in {}", origin.display()))
    };
    let output = run(&program, server, path).map_err(|why| failed(ErrorKind::Unauthorized, why))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if stdout.trim() == NOT_FOUND {
            return Ok(None);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = [stderr.trim(), stdout.trim()].into_iter().find(|words| !words.is_empty());
        let first_line = words.and_then(|words| words.lines().next()).unwrap_or("said nothing");
        return Err(failed(ErrorKind::Unauthorized, format!("{}: {first_line}", output.status)));
    }
    // What it printed may be the secret, so no error shows it.
    let answer: Answer = serde_json::from_str(&stdout)
        .map_err(|_| failed(ErrorKind::Invalid, "its output is not the JSON of credentials".into()))?;
    match answer {
        Answer { secret, .. } if secret.is_empty() => Err(failed(ErrorKind::Invalid, "Secret is missing".into())),
        Answer { username, secret } if username == TOKEN_USER => Ok(Some(Credentials::IdentityToken(secret))),
        Answer { username, secret } => Ok(Some(Credentials::basic(username, secret))),
    }
}

/// Runs the program under the time limit, in a process group of its own so that nothing of it stays.
fn run(program: &str, input: &str, path: Option<&OsStr>) -> Result<Output, String> {
    let mut command = Command::new(program);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => "the program is not found in PATH".to_owned(),
        _ => err.to_string(),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input, and leaves early, will say why by its status.
        let _ = stdin.write_all(input.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
    }
    let group = Pid::from_raw(child.id() as i32);
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        // The receiver is gone only after the time limit.
        let _ = done.send(collect(child));
    });
    result.recv_timeout(TIME_LIMIT).unwrap_or_else(|_| {
        // Gone already is fine; the thread above reaps it.
        let _ = killpg(group, Signal::SIGKILL);
        Err(format!("took longer than {} s and was killed", TIME_LIMIT.as_secs()))
    })
}

fn collect(mut child: Child) -> Result<Output, String> {
    let mut stderr_pipe = child.stderr.take();
    let reader = std::thread::spawn(move || read_all(stderr_pipe.as_mut()));
    let stdout = read_all(child.stdout.take().as_mut());
    let status = child.wait().map_err(|err| err.to_string())?;
    let stderr = reader.join().unwrap_or_default();
    Ok(Output { status, stdout, stderr })
}

fn read_all(pipe: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read before an error is what there is to show.
        let _ = pipe.take(OUTPUT_LIMIT).read_to_end(&mut bytes);
    }
    bytes
}
