//! Exec and attach: the streams of a process in a container joined with those of a client.
//!
//! A session ends with the process' output, or when the client leaves. A client that leaves takes nothing of an attached
//! container with it. A command sees what it would see in a terminal that is closed, or at the end of a pipe whose
//! reader has gone: end of input, and a signal when it has a terminal or writes on; the supervisor does that when the
//! engine's session is dropped. It is not killed, as containerd does not.

use std::time::Duration;

use coracle_engine::{Engine, ExecConfig, Output, OutputStream, Session, SessionControl, Stdin};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::pipe::{CHUNK, Sink, Source};
use super::spdy;
use super::status::End;
use super::websocket::Channels;
use crate::serve::cri::fault;

/// How long a client may take to open its streams, as in kubelet's own server.
pub(super) const STREAM_CREATION: Duration = Duration::from_secs(30);
/// How long a command with a terminal waits for the terminal's size.
const FIRST_SIZE: Duration = Duration::from_millis(100);
/// The channels of WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// The longest text of one change of the terminal's size.
const MAX_RESIZE: usize = 1 << 10;

/// Which process, and which of its streams.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The container's id.
    pub container: String,
    /// The command; none to attach to the container itself.
    pub command: Option<Vec<String>>,
    /// A terminal.
    pub tty: bool,
    /// Standard input is wanted.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
}

/// The client's side.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<Source>,
    pub(super) stdout: Option<Sink>,
    pub(super) stderr: Option<Sink>,
    pub(super) error: Option<Sink>,
    pub(super) resize: Option<Source>,
    /// The end is told as JSON.
    pub(super) structured: bool,
    /// An empty message on the lowest channel tells that the session has begun.
    greet: bool,
}

/// Joins both until the end.
pub(super) async fn run(engine: &Engine, remote: &Remote, mut streams: Streams) {
    let mut sizes = streams.resize.take().map(|source| Sizes { source, text: Vec::new() });
    let begun = begin(engine, remote, sizes.as_mut()).await;
    if streams.greet && greet(&mut streams).await.is_err() {
        // The client has left already.
        return;
    }
    let end = match begun {
        Err(why) => Some(End::Failed(format!("error executing command in container: {}", fault::chain(&why)))),
        Ok((session, heard)) => copy(session, heard, &mut streams, sizes.as_mut()).await,
    };
    let Some(end) = end else { return };
    tracing::debug!(container = %remote.container, ?end, "a stream ended");
    for sink in [&mut streams.stdout, &mut streams.stderr].into_iter().flatten() {
        sink.end().await;
    }
    if let Some(error) = &mut streams.error {
        let text = end.encode(streams.structured);
        // A client that has left has no use for it.
        if text.is_empty() || error.send(&text).await.is_ok() {
            error.end().await;
        }
    }
}

async fn greet(streams: &mut Streams) -> std::io::Result<()> {
    let lowest = [&mut streams.stdout, &mut streams.stderr, &mut streams.error].into_iter().flatten().next();
    match lowest {
        Some(sink) => sink.send(&[]).await,
        None => Ok(()),
    }
}

/// Begins a session. A client that leaves meanwhile does not stop a command halfway into being: it is made, hung up on
/// and heard.
async fn begin(
    engine: &Engine,
    remote: &Remote,
    sizes: Option<&mut Sizes>,
) -> coracle_engine::Result<(Session, Heard)> {
    let Some(cmd) = &remote.command else {
        return Ok((engine.attach(&remote.container, remote.stdin).await?, Heard(None)));
    };
    // A client that has a terminal tells its size at once: a program that asks at its start should find it.
    let size = match sizes {
        Some(sizes) => timeout(FIRST_SIZE, sizes.next()).await.ok().flatten(),
        None => None,
    };
    let config = ExecConfig {
        cmd: cmd.clone(),
        tty: remote.tty,
        stdin: remote.stdin,
        size: size.map(|size| (size.width, size.height)),
        ..ExecConfig::default()
    };
    let (engine, container) = (engine.clone(), remote.container.clone());
    let begun = tokio::spawn(async move {
        let session = engine.exec(&container, config).await?;
        let heard = Heard(Some(session.control.clone()));
        Ok((session, heard))
    });
    match begun.await {
        Ok(begun) => begun,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The whole server ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A command's exit is heard by somebody, so that the supervisor need not remember it: by the session, or after it.
struct Heard(Option<SessionControl>);

impl Drop for Heard {
    fn drop(&mut self) {
        if let Some(control) = self.0.take() {
            tokio::spawn(async move { control.wait().await });
        }
    }
}

/// `None`: the client has left.
async fn copy(session: Session, mut heard: Heard, streams: &mut Streams, sizes: Option<&mut Sizes>) -> Option<End> {
    let Session { stdin, output, control } = session;
    let copied = tokio::select! {
        copied = copy_output(output, &mut streams.stdout, &mut streams.stderr) => copied?,
        () = feed(streams.stdin.take(), stdin) => return None,
        () = follow_size(sizes, &control) => return None,
    };
    Some(match (copied, &heard.0) {
        (Err(why), _) => End::Failed(fault::chain(&why)),
        (Ok(()), None) => End::Detached,
        (Ok(()), Some(_)) => match control.wait().await {
            Ok(code) => {
                heard.0 = None;
                End::Exit(code)
            }
            Err(why) => End::Failed(fault::chain(&why)),
        },
    })
}

/// `None`: the client has left.
async fn copy_output(
    mut output: OutputStream,
    stdout: &mut Option<Sink>,
    stderr: &mut Option<Sink>,
) -> Option<coracle_engine::Result<()>> {
    loop {
        let (sink, bytes) = match output.next().await {
            Ok(Some(Output::Stdout(bytes))) => (&mut *stdout, bytes),
            Ok(Some(Output::Stderr(bytes))) => (&mut *stderr, bytes),
            Ok(None) => return Some(Ok(())),
            Err(why) => return Some(Err(why)),
        };
        if let Some(sink) = sink {
            sink.send(&bytes).await.ok()?;
        }
    }
}

/// Passes input on, and its end. Never returns: the output decides when the session is over.
async fn feed(source: Option<Source>, mut stdin: Stdin) {
    if let Some(mut source) = source {
        let mut chunk = vec![0; CHUNK];
        loop {
            let sent = match source.read(&mut chunk).await {
                0 => break,
                read => stdin.write(&chunk[..read]).await,
            };
            if sent.is_err() {
                break;
            }
        }
        // A process that has ended takes no end of input.
        let _ = stdin.close().await;
    }
    std::future::pending().await
}

/// A size as clients write it.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// The sizes that a client's terminal has, one after the other.
struct Sizes {
    source: Source,
    text: Vec<u8>,
}

impl Sizes {
    /// The latest size; `None` when no more come. Safe to drop while it waits.
    async fn next(&mut self) -> Option<Size> {
        let mut chunk = vec![0; MAX_RESIZE];
        loop {
            let read = self.source.read(&mut chunk).await;
            self.text.extend_from_slice(&chunk[..read]);
            let found = sizes(&mut self.text).filter(|_| read > 0)?;
            if let Some(latest) = found.into_iter().next_back() {
                return Some(latest);
            }
        }
    }
}

/// Passes sizes on. Never returns.
async fn follow_size(sizes: Option<&mut Sizes>, control: &SessionControl) {
    if let Some(sizes) = sizes {
        while let Some(Size { width, height }) = sizes.next().await {
            // A process that has ended has no size.
            let _ = control.resize(width, height).await;
        }
    }
    std::future::pending().await
}

/// Takes the whole sizes off the front of `text`; `None` if it is none and never will be.
fn sizes(text: &mut Vec<u8>) -> Option<Vec<Size>> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter();
    let (mut found, mut used) = (Vec::new(), 0);
    loop {
        match values.next() {
            Some(Ok(size)) => {
                found.push(size);
                used = values.byte_offset();
            }
            Some(Err(error)) if !error.is_eof() => return None,
            _ => break,
        }
    }
    text.drain(..used);
    (text.len() <= MAX_RESIZE).then_some(found)
}

/// Waits for the streams of SPDY that belong to a session, and runs it.
pub(super) async fn over_spdy(engine: &Engine, remote: &Remote, version: u8, mut new: mpsc::Receiver<spdy::Stream>) {
    let resize = remote.tty && version >= 3;
    let wanted = [true, remote.stdin, remote.stdout, remote.stderr, resize].into_iter().filter(|one| *one).count();
    let mut streams = Streams { structured: version >= 4, ..Streams::default() };
    let deadline = Instant::now() + STREAM_CREATION;
    let mut got = 0;
    while got < wanted {
        let Ok(Some(stream)) = timeout_at(deadline, new.recv()).await else {
            let end = End::Failed("timed out waiting for the client to create its streams".into());
            if let Some(error) = &mut streams.error
                && error.send(&end.encode(streams.structured)).await.is_ok()
            {
                error.end().await;
            }
            return;
        };
        got += usize::from(take(remote, stream, &mut streams).await);
    }
    let extra = async {
        while let Some(mut stream) = new.recv().await {
            stream.writer.reset().await;
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = run(engine, remote, streams) => {}
        () = extra => {}
    }
}

/// Puts a stream where it belongs; one that does not belong is refused.
async fn take(remote: &Remote, stream: spdy::Stream, streams: &mut Streams) -> bool {
    let kind = spdy::headers::value(&stream.headers, "streamtype").unwrap_or_default().to_owned();
    let spdy::Stream { reader, mut writer, .. } = stream;
    let sink = match kind.as_str() {
        "error" => Some(&mut streams.error),
        "stdout" if remote.stdout => Some(&mut streams.stdout),
        "stderr" if remote.stderr => Some(&mut streams.stderr),
        _ => None,
    };
    if let Some(slot) = sink.filter(|slot| slot.is_none()) {
        *slot = Some(Sink::Spdy(writer));
        return true;
    }
    let source = match kind.as_str() {
        "stdin" if remote.stdin => Some(&mut streams.stdin),
        "resize" if remote.tty => Some(&mut streams.resize),
        _ => None,
    };
    if let Some(slot) = source.filter(|slot| slot.is_none()) {
        // The way back is not ended here: kubectl takes that for a process that reads no more.
        *slot = Some(Source::Spdy(reader));
        return true;
    }
    writer.reset().await;
    false
}

/// The streams of a session over WebSocket: channels 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize.
pub(super) async fn over_websocket(engine: &Engine, remote: &Remote, mut channels: Channels) {
    let streams = Streams {
        stdin: channels.source(STDIN).filter(|_| remote.stdin),
        stdout: remote.stdout.then(|| channels.sink(STDOUT)),
        stderr: remote.stderr.then(|| channels.sink(STDERR)),
        error: Some(channels.sink(ERROR)),
        resize: channels.source(RESIZE).filter(|_| remote.tty),
        structured: channels.flavour().structured,
        greet: true,
    };
    run(engine, remote, streams).await;
}

/// The channels that a client writes to.
pub(super) fn readable(remote: &Remote) -> Vec<u8> {
    [(STDIN, remote.stdin), (RESIZE, remote.tty)]
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(channel, _)| channel)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_any_pieces_and_nonsense_ends_them() {
        let size = |width, height| Size { width, height };
        let mut text = br#"{"Width":80,"Height":24}{"width":1,"#.to_vec();
        assert_eq!(sizes(&mut text), Some(vec![size(80, 24)]));
        text.extend_from_slice(b"\"height\":2}\n");
        assert_eq!(sizes(&mut text), Some(vec![size(1, 2)]));
        text.extend_from_slice(b"x");
        assert_eq!(sizes(&mut text), None);
        assert_eq!(sizes(&mut vec![b' '; MAX_RESIZE + 1]), None);
        assert_eq!(sizes(&mut br#"{"Width":70000,"Height":1}"#.to_vec()), None);
    }
}
