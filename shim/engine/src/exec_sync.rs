//! A command to its end, in one call: its output, bounded, and its exit code.
//!
//! The command has a caller, and does not outlive it: when the time is over, when the output is too long, and when the
//! caller drops the call, the command is killed together with what it started. The killing is a task of its own, so it
//! happens whoever waits for it. The call ends with the command: a process it left behind, which may hold the pipes
//! open, is not waited for.

use std::time::Duration;

use coracle_proto::ttrpc::Code;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::exec::{Output, Session, SessionControl};
use crate::types::ExecConfig;

/// How long after its deadline a call may still be answered by the command's own end: a supervisor that hangs does not
/// hold the caller any longer.
const GRACE: Duration = Duration::from_secs(2);

/// What a command said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub code: i32,
}

/// What becomes of output beyond the limit.
#[derive(Clone, Copy)]
enum Excess {
    /// The command is killed, and the call fails.
    Fails,
    /// Nobody wants it.
    Dropped,
}

/// Why a command is not waited for.
enum Cut {
    Late,
    Alone,
}

impl Engine {
    /// Runs a command in a running container to its end. Neither stream may be longer than `limit` bytes.
    pub async fn exec_sync(
        &self,
        container: &str,
        cmd: Vec<String>,
        timeout: Option<Duration>,
        limit: usize,
    ) -> Result<ExecOutcome> {
        self.exec_to_end(container, cmd, timeout, (limit, Excess::Fails)).await
    }

    /// The same, with only the first bytes of each stream kept.
    pub async fn exec_first(
        &self,
        container: &str,
        cmd: Vec<String>,
        timeout: Option<Duration>,
        kept: usize,
    ) -> Result<ExecOutcome> {
        self.exec_to_end(container, cmd, timeout, (kept, Excess::Dropped)).await
    }

    async fn exec_to_end(
        &self,
        container: &str,
        cmd: Vec<String>,
        timeout: Option<Duration>,
        limit: (usize, Excess),
    ) -> Result<ExecOutcome> {
        if cmd.is_empty() {
            return Err(Error::invalid("cmd", "no command is given"));
        }
        let what = format!("exec {}", cmd[0]);
        let deadline = timeout.map(|after| (Instant::now() + after, after));
        // Dropped with this call, by whom and when ever: that is how the task knows.
        let (_here, alone) = oneshot::channel::<()>();
        let (engine, container) = (self.clone(), container.to_owned());
        let told = what.clone();
        let task = tokio::spawn(async move {
            let config = ExecConfig { cmd, ..ExecConfig::default() };
            let session = engine.exec(&container, config).await?;
            let control = session.control.clone();
            let cut = async {
                tokio::select! {
                    _ = async { sleep_until(deadline.map_or_else(Instant::now, |(at, _)| at)).await },
                        if deadline.is_some() => Cut::Late,
                    _ = alone => Cut::Alone,
                }
            };
            let ended = tokio::select! {
                ended = collect(session, limit, &told) => ended,
                cut = cut => Err(match (cut, deadline) {
                    (Cut::Late, Some((_, after))) => Error::Deadline { operation: told.clone(), after },
                    _ => cancelled(&told),
                }),
            };
            if ended.is_err() {
                end(&engine, &control).await;
            }
            ended
        });
        let joined = async {
            match task.await {
                Ok(result) => result,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(cancelled(&what)),
            }
        };
        match deadline {
            None => joined.await,
            Some((at, after)) => match timeout_at(at + GRACE, joined).await {
                Ok(result) => result,
                Err(_) => Err(Error::Deadline { operation: what.clone(), after }),
            },
        }
    }
}

fn cancelled(what: &str) -> Error {
    Error::Rpc { operation: what.to_owned(), code: Code::Cancelled as i32, message: "the caller has left".into() }
}

/// Kills a command and forgets it.
async fn end(engine: &Engine, control: &SessionControl) {
    // What cannot be killed now (the supervisor hangs) is the container's: it ends with it.
    let _ = control.kill_tree().await;
    let _ = timeout(engine.config().deadlines.kill, control.wait()).await;
}

async fn collect(mut session: Session, (limit, excess): (usize, Excess), what: &str) -> Result<ExecOutcome> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = session.output.next().await? {
        let (whole, bytes, name) = match piece {
            Output::Stdout(bytes) => (&mut stdout, bytes, "output"),
            Output::Stderr(bytes) => (&mut stderr, bytes, "error"),
        };
        let room = limit - whole.len();
        if bytes.len() > room && matches!(excess, Excess::Fails) {
            return Err(Error::Rpc {
                operation: what.to_owned(),
                code: Code::ResourceExhausted as i32,
                message: format!("its standard {name} is longer than {limit} bytes; the command was killed"),
            });
        }
        whole.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    let code = session.control.wait().await?;
    Ok(ExecOutcome { stdout, stderr, code })
}
