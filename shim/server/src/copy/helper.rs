//! The container's end of a copy, as this process sees it: a child, or a process of a container in a virtual machine.

use std::ffi::OsString;
use std::fs::File as StdFile;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use coracle_copy::inside::{NAME, Task};
use coracle_copy::is_broken_pipe;
use coracle_engine::{Engine, ExecConfig, Output, Session, Stdin};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Read at once.
const CHUNK: usize = 64 << 10;

/// Where its input comes from.
pub enum Input {
    /// It has none.
    Nothing,
    /// The other end of the copy.
    Pipe(PipeReader),
    /// This process's standard input.
    Stdin,
}

/// Where its output goes.
pub enum To {
    /// It has none.
    Nothing,
    /// The other end of the copy.
    Pipe(PipeWriter),
    /// This process's standard output.
    Stdout,
}

/// One that runs.
pub enum Helper {
    /// A child of this process.
    Child(Child),
    /// A process of the container, whose streams a task passes on; its exit code.
    Guest(JoinHandle<Result<i32>>),
}

impl Helper {
    /// Starts one on the machine.
    pub fn spawn(mut command: Command, input: Input, output: To) -> Result<Helper> {
        command.stdin(match input {
            Input::Nothing => Stdio::null(),
            Input::Pipe(pipe) => pipe.into(),
            Input::Stdin => Stdio::inherit(),
        });
        command.stdout(match output {
            To::Nothing => Stdio::null(),
            To::Pipe(pipe) => pipe.into(),
            To::Stdout => Stdio::inherit(),
        });
        Ok(Helper::Child(command.spawn().context("start the helper that copies")?))
    }

    /// Starts one in a container of a virtual machine: a command of this name is the guest's supervisor.
    pub async fn in_guest(
        engine: &Engine,
        container: &str,
        task: Task,
        path: &Path,
        input: Input,
        output: To,
    ) -> Result<Helper> {
        let text = |word: &OsString| word.to_str().map(str::to_owned);
        let words: Option<Vec<_>> = task.words(path).iter().map(text).collect();
        let words = words.with_context(|| format!("{path:?}: a name in a virtual machine is UTF-8"))?;
        let cmd = std::iter::once(NAME.to_owned()).chain(words).collect();
        let stdin = !matches!(input, Input::Nothing);
        let session = engine.exec(container, ExecConfig { cmd, stdin, ..ExecConfig::default() }).await?;
        Ok(Helper::Guest(tokio::spawn(pass_on(session, input, output))))
    }

    /// Waits for it; its exit code. It tells its own error, so that a pipe of this end broke is none beside that.
    pub async fn finish(self, own: Result<()>) -> Result<i32> {
        let code = match self {
            Helper::Child(mut child) => {
                let ended = tokio::task::spawn_blocking(move || child.wait()).await;
                ended.context("wait for the helper that copies")??.code().unwrap_or(-1)
            }
            Helper::Guest(task) => task.await.context("wait for the helper that copies")??,
        };
        match own {
            Err(error) if code == 0 || !is_broken_pipe(&error) => Err(error),
            _ => Ok(code),
        }
    }
}

fn file(pipe: impl Into<OwnedFd>) -> File {
    File::from_std(StdFile::from(pipe.into()))
}

async fn pass_on(session: Session, input: Input, output: To) -> Result<i32> {
    let Session { stdin, output: mut from, control } = session;
    let (tell_error, mut unread) = oneshot::channel();
    let feeding = tokio::spawn(async move {
        match input {
            Input::Nothing => {}
            Input::Pipe(pipe) => feed(file(pipe), stdin, tell_error).await,
            Input::Stdin => feed(tokio::io::stdin(), stdin, tell_error).await,
        }
    });
    let mut to: Box<dyn AsyncWrite + Send + Unpin> = match output {
        To::Nothing => Box::new(tokio::io::sink()),
        To::Pipe(pipe) => Box::new(file(pipe)),
        To::Stdout => Box::new(tokio::io::stdout()),
    };
    while let Some(piece) = from.next().await? {
        match piece {
            Output::Stdout(bytes) => {
                if let Err(error) = write(&mut to, &bytes).await {
                    // Nobody takes what it writes: it would wait for ever, and its end for what it has written.
                    feeding.abort();
                    drop(from);
                    control.kill_tree().await?;
                    control.wait().await?;
                    return if error.kind() == io::ErrorKind::BrokenPipe { Ok(-1) } else { Err(error.into()) };
                }
            }
            Output::Stderr(bytes) => tell(&bytes),
        }
    }
    feeding.abort();
    let code = control.wait().await?;
    match unread.try_recv() {
        Ok(error) => Err(error).context("read what is to be copied"),
        Err(_) => Ok(code),
    }
}

/// A file of tokio's writes behind one's back: only a flush tells how that went.
async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Whoever unpacks hears the end in any case, and is not left to wait for more.
async fn feed(mut from: impl AsyncRead + Unpin, mut to: Stdin, tell_error: oneshot::Sender<io::Error>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) => break,
            // It has ended, and has said why.
            Ok(length) if to.write(&chunk[..length]).await.is_err() => return,
            Ok(_) => {}
            Err(error) => {
                let _ = tell_error.send(error);
                break;
            }
        }
    }
    let _ = to.close().await;
}

/// What a process of the container says is shown without what a terminal obeys.
fn tell(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    eprint!("{}", text.replace(|letter: char| letter.is_control() && letter != '\n', " "));
}
