//! Running a command in a container, and attaching to one: both are a connection to the supervisor's attach socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_proto::attach::{self, Frame, FrameReader, Kind};
use coracle_proto::ttrpc::method;
use coracle_proto::{Empty, any, task};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::client::connect_socket;
use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::record::read_json;
use crate::status::ContainerState;
use crate::types::ExecConfig;
use crate::{id, spec};

/// Bytes asked of the socket at once.
const READ_SIZE: usize = 32 << 10;

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// From standard output, or from the terminal.
    Stdout(Vec<u8>),
    /// From standard error.
    Stderr(Vec<u8>),
}

/// The writing half: standard input. Dropping it says nothing: output still comes, until both halves are gone. Who has
/// no more to send says so by [`Stdin::close`].
#[derive(Debug)]
pub struct Stdin {
    /// Always there but in the moment of its drop.
    socket: Option<OwnedWriteHalf>,
}

impl Drop for Stdin {
    /// A write half shuts its direction down when it is dropped, which the supervisor takes for a client that leaves.
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.forget();
        }
    }
}

impl Stdin {
    /// Sends bytes. To be awaited to its end: what is dropped halfway leaves half a frame behind.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(bytes).await
    }

    /// Says that no more bytes come; output still does.
    pub async fn close(&mut self) -> Result<()> {
        self.send(&[]).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut frames = Vec::with_capacity(bytes.len() + attach::HEADER_LEN);
        attach::encode(Kind::Stdin, bytes, &mut frames);
        let socket = self.socket.as_mut().ok_or_else(|| Error::invalid("stdin", "it is closed"))?;
        socket.write_all(&frames).await.map_err(Error::io("write to", "attach.sock"))
    }
}

/// The reading half: standard output and standard error.
#[derive(Debug)]
pub struct OutputStream {
    socket: OwnedReadHalf,
    frames: FrameReader,
    buffer: Vec<u8>,
    /// The part of `buffer` that is not yet cut into frames.
    rest: std::ops::Range<usize>,
}

impl OutputStream {
    /// The next piece; `None` when all output was delivered, and an error when the supervisor ended the connection
    /// before. Safe to drop while it waits.
    pub async fn next(&mut self) -> Result<Option<Output>> {
        loop {
            let mut bytes = &self.buffer[self.rest.clone()];
            let frame = self.frames.take(&mut bytes).map_err(|e| Error::invalid("attach.sock", e.to_string()))?;
            self.rest.start = self.rest.end - bytes.len();
            match frame {
                Some(Frame { kind: Kind::Stdout, payload }) => return Ok(Some(Output::Stdout(payload))),
                Some(Frame { kind: Kind::Stderr, payload }) => return Ok(Some(Output::Stderr(payload))),
                Some(Frame { kind: Kind::End, .. }) => return Ok(None),
                Some(Frame { kind: Kind::Stdin, .. }) => {}
                None => {
                    let read =
                        self.socket.read(&mut self.buffer).await.map_err(Error::io("read from", "attach.sock"))?;
                    self.rest = 0..read;
                    if read == 0 {
                        return Err(cut_off());
                    }
                }
            }
        }
    }
}

/// A container never waits for who is attached to it, so a client that lags too far is dropped.
fn cut_off() -> Error {
    let why = "the supervisor ended the connection: the client was too slow for the container's output, or it died";
    Error::io("read from", "attach.sock")(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why))
}

/// The rest of a session: resizing, signalling and waiting. Cheap to clone.
#[derive(Clone)]
pub struct SessionControl {
    engine: Engine,
    sandbox: Arc<str>,
    container: Arc<str>,
    /// Empty for the container itself.
    exec: Arc<str>,
    /// The command's pid on the host; 0 for the container itself.
    pid: i32,
}

impl SessionControl {
    /// Tells the terminal its size.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let request = task::ResizePtyRequest {
            id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            width: columns.into(),
            height: rows.into(),
        };
        let deadline = Some(self.engine.config().deadlines.query);
        self.engine.task::<_, Empty>(&self.sandbox, method::RESIZE_PTY, "resize terminal", &request, deadline).await?;
        Ok(())
    }

    /// Sends a signal to the process.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.signal(signal, false).await
    }

    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        let request = task::KillRequest {
            id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            signal: u32::try_from(signal).unwrap_or(0),
            all,
        };
        let deadline = Some(self.engine.config().deadlines.kill);
        self.engine.task::<_, Empty>(&self.sandbox, method::KILL, "signal", &request, deadline).await?;
        Ok(())
    }

    /// Kills a command and what it has started: what descends from it or is of its session, as far as it is in the
    /// container. What made a session of its own and lost its parent is the container's.
    pub async fn kill_tree(&self) -> Result<()> {
        let (pid, container) = (self.pid, self.container.clone());
        if pid > 1 {
            blocking(move || Ok(crate::family::kill(pid, &container))).await?;
        }
        // Without a pid it is in a virtual machine, whose supervisor does the same there.
        match self.signal(libc::SIGKILL, pid == 0).await {
            Err(why) if !why.is_not_found() => Err(why),
            _ => Ok(()),
        }
    }

    /// Waits for the process and returns its exit code. An exec is forgotten by this: wait once.
    pub async fn wait(&self) -> Result<i32> {
        if self.exec.is_empty() {
            return self.engine.wait_container(&self.container).await.map(|exit| exit.code);
        }
        let (id, exec_id) = (self.container.to_string(), self.exec.to_string());
        let request = task::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        let ended: task::WaitResponse =
            self.engine.task(&self.sandbox, method::WAIT, "wait for the command", &request, None).await?;
        let request = task::DeleteRequest { id, exec_id };
        let deadline = Some(self.engine.config().deadlines.query);
        // It ended and its code is known; a supervisor that cannot forget it keeps a few bytes.
        let _ = self
            .engine
            .task::<_, task::DeleteResponse>(&self.sandbox, method::DELETE, "delete exec", &request, deadline)
            .await;
        Ok(i32::try_from(ended.exit_status).unwrap_or(i32::MAX))
    }
}

/// A running command, or a container's own streams. The parts are independent and may be moved to different tasks.
pub struct Session {
    /// Standard input.
    pub stdin: Stdin,
    /// The output.
    pub output: OutputStream,
    /// Everything else.
    pub control: SessionControl,
}

#[derive(Deserialize)]
struct Hello {
    #[serde(default)]
    error: Option<String>,
}

impl Engine {
    /// Runs a command in a running container. Its output waits for [`OutputStream::next`]; nothing is lost.
    pub async fn exec(&self, container: &str, config: ExecConfig) -> Result<Session> {
        let (sandbox, id) = self.running(container, "exec in")?;
        let path = self.paths.container(&sandbox, &id).join("config.json");
        let spec: Value = read_json(&path)?.ok_or_else(|| crate::engine::not_found("container", &id))?;
        let process = spec::exec_process(&spec, &config)?;
        let exec = id::new()?[..id::SHORT].to_owned();
        let deadlines = &self.config.deadlines;
        let request = task::ExecProcessRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            terminal: config.tty,
            stdin: if config.stdin { "attach:once".into() } else { String::new() },
            stdout: "attach:".into(),
            stderr: if config.tty { String::new() } else { "attach:".into() },
            spec: Some(any::pack_json(any::OCI_PROCESS, process.to_string().into_bytes())),
        };
        let what = format!("exec {}", config.cmd[0]);
        self.task::<_, Empty>(&sandbox, method::EXEC, &what, &request, Some(deadlines.query)).await?;
        match self.run_exec(&sandbox, &id, &exec, &config, &what).await {
            Ok(session) => Ok(session),
            Err(why) => {
                let request = task::DeleteRequest { id, exec_id: exec };
                let deadline = Some(deadlines.query);
                let _ = self
                    .task::<_, task::DeleteResponse>(&sandbox, method::DELETE, "delete exec", &request, deadline)
                    .await;
                Err(why)
            }
        }
    }

    async fn run_exec(&self, sandbox: &str, id: &str, exec: &str, config: &ExecConfig, what: &str) -> Result<Session> {
        let mut session = self.open_session(sandbox, id, exec, config.stdin).await?;
        let request = task::StartRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        let deadline = Some(self.config.deadlines.create);
        let started: task::StartResponse = self.task(sandbox, method::START, what, &request, deadline).await?;
        // A guest's pid would be somebody else's here.
        let pid = if self.in_machine(sandbox)? { 0 } else { started.pid };
        session.control.pid = i32::try_from(pid).unwrap_or(0);
        if let Some((columns, rows)) = config.size.filter(|_| config.tty) {
            session.control.resize(columns, rows).await?;
        }
        Ok(session)
    }

    /// Connects to a container's own streams: its output from now on, and its standard input if it has one.
    pub async fn attach(&self, container: &str, stdin: bool) -> Result<Session> {
        let (sandbox, id) = self.find_container(container)?;
        match self.container_status(&id)?.state {
            ContainerState::Created | ContainerState::Running => self.open_session(&sandbox, &id, "", stdin).await,
            state => Err(Error::State {
                operation: "attach to",
                object: format!("container {}", id::short(&id)),
                state: state.as_str().into(),
            }),
        }
    }

    fn running(&self, container: &str, operation: &'static str) -> Result<(String, String)> {
        let status = self.container_status(container)?;
        match status.state {
            ContainerState::Running => Ok((status.sandbox_id, status.id)),
            state => Err(Error::State {
                operation,
                object: format!("container {}", status.config.name),
                state: state.as_str().into(),
            }),
        }
    }

    async fn open_session(&self, sandbox: &str, container: &str, exec: &str, stdin: bool) -> Result<Session> {
        let path = self.paths.pod(sandbox).join("attach.sock");
        let hello = json!({ "container": container, "exec": exec, "stdin": stdin });
        let after = self.config.deadlines.query;
        let socket = timeout(after, greet(&path, &hello))
            .await
            .map_err(|_| Error::Deadline { operation: format!("attach to {}", id::short(container)), after })??;
        let (read, write) = socket.into_split();
        Ok(Session {
            stdin: Stdin { socket: Some(write) },
            output: OutputStream { socket: read, frames: FrameReader::new(), buffer: vec![0; READ_SIZE], rest: 0..0 },
            control: SessionControl {
                engine: self.clone(),
                sandbox: sandbox.into(),
                container: container.into(),
                exec: exec.into(),
                pid: 0,
            },
        })
    }

    /// Tells the supervisor that a container's log file was renamed.
    pub async fn reopen_log(&self, container: &str) -> Result<()> {
        use coracle_proto::{coracle, ttrpc::service};
        let (sandbox, id) = self.running(container, "reopen the log of")?;
        let what = format!("reopen the log of {}", id::short(&id));
        let request = coracle::ReopenLogRequest { id };
        let deadline: Option<Duration> = Some(self.config.deadlines.query);
        let client = self.connect(&sandbox).await?;
        let _: coracle::ReopenLogResponse =
            client.call(&what, service::CONTROL, method::REOPEN_LOG, &request, deadline).await?;
        Ok(())
    }
}

/// Connects and says which streams are wanted.
async fn greet(path: &Path, hello: &Value) -> Result<UnixStream> {
    let failed = || Error::io("connect to", path);
    let mut socket = connect_socket(path).await.map_err(failed())?;
    socket.write_all(format!("{hello}\n").as_bytes()).await.map_err(failed())?;
    // Byte by byte up to the line's end: what follows it are frames already.
    let mut line = Vec::new();
    loop {
        let byte = socket.read_u8().await.map_err(failed())?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > attach::MAX_HELLO {
            return Err(Error::invalid("attach.sock", "the supervisor's greeting is too long"));
        }
    }
    let answer: Hello = serde_json::from_slice(&line).map_err(|e| Error::invalid("attach.sock", e.to_string()))?;
    match answer.error {
        Some(reason) => Err(Error::invalid("attach", reason)),
        None => Ok(socket),
    }
}
