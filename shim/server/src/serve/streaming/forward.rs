//! Port-forward: connections into a pod, each of its bytes passed on.
//!
//! Over SPDY (in a WebSocket tunnel as well) the client opens two streams for each connection: `streamType` `error` and
//! `data`, with the same `port` and `requestID`. What goes wrong is text on the error stream. Over plain WebSocket the
//! ports are known beforehand and each has two channels, data and error, which both begin with the port's number in two
//! bytes, little endian.
//!
//! Both directions end by themselves, so a client may end its request and still get the whole answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coracle_engine::{Dialled, Engine, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::pipe::{CHUNK, Sink, Source};
use super::remote::STREAM_CREATION;
use super::spdy;
use super::websocket::Channels;
use crate::serve::cri::fault;

/// How long a client may still send to a server that has said its last word.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often streams are looked for whose partner does not come.
const SWEEP: Duration = Duration::from_secs(5);
/// A WebSocket numbers its channels in a byte, and 255 has a meaning of its own.
pub(super) const MAX_PORTS: usize = 127;

/// One connection, in the client's terms.
struct Connection {
    data: (Source, Sink),
    error: Sink,
}

/// Passes one connection on.
async fn forward(engine: Engine, sandbox: String, port: u16, mut connection: Connection) {
    match engine.dial(&sandbox, port).await {
        Ok(stream) => {
            copy(stream, connection.data.0, &mut connection.data.1).await;
            connection.data.1.end().await;
        }
        Err(why) => {
            let text =
                format!("error forwarding port {port} to sandbox {}: {}", id::short(&sandbox), fault::chain(&why));
            let _ = connection.error.send(text.as_bytes()).await;
            connection.data.1.reset().await;
        }
    }
    connection.error.end().await;
}

async fn copy(stream: Dialled, mut source: Source, sink: &mut Sink) {
    let (mut from, mut to) = tokio::io::split(stream);
    let inwards = async {
        let mut chunk = vec![0; CHUNK];
        while let read @ 1.. = source.read(&mut chunk).await {
            if to.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let outwards = async {
        let mut chunk = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            if sink.send(&chunk[..read]).await.is_err() {
                return;
            }
        }
        sink.end().await;
    };
    tokio::pin!(inwards, outwards);
    tokio::select! {
        () = &mut inwards => outwards.await,
        () = &mut outwards => {
            let _ = timeout(LAST_WORDS, inwards).await;
        }
    }
}

/// A connection of which one stream has come.
struct Half {
    since: Instant,
    data: Option<(Source, Sink)>,
    error: Option<Sink>,
}

/// What the headers of a stream say.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    port: u16,
    request: String,
    data: bool,
}

fn asked(id: u32, headers: &spdy::headers::Headers) -> Result<Asked, String> {
    let header = |name| spdy::headers::value(headers, name).ok_or_else(|| format!("{name:?} header is required"));
    let port = header("port")?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("port {port:?} is no port"))?;
    let data = match header("streamType")? {
        "data" => true,
        "error" => false,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    let request = match spdy::headers::value(headers, "requestID") {
        Some(request) => request.to_owned(),
        // Clients from before request ids open the error stream first, the data stream right after it.
        None if data => id.saturating_sub(2).to_string(),
        None => id.to_string(),
    };
    Ok(Asked { port, request, data })
}

/// Serves the connections that a client opens, until it leaves.
pub(super) async fn over_spdy(engine: &Engine, sandbox: &str, mut new: mpsc::Receiver<spdy::Stream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    let mut sweep = interval(SWEEP);
    loop {
        tokio::select! {
            stream = new.recv() => match stream {
                None => return,
                Some(stream) => {
                    if let Some((port, connection)) = pair(stream, &mut halves).await {
                        running.spawn(forward(engine.clone(), sandbox.to_owned(), port, connection));
                    }
                }
            },
            Some(_) = running.join_next(), if !running.is_empty() => {}
            _ = sweep.tick() => {
                // A dropped half ends its stream.
                for (request, half) in halves.extract_if(|_, half| half.since.elapsed() > STREAM_CREATION) {
                    give_up(half, &format!("request {request}: timed out waiting for its other stream")).await;
                }
            }
        }
    }
}

/// Puts a stream to its partner; a whole pair is a connection.
async fn pair(stream: spdy::Stream, halves: &mut HashMap<String, Half>) -> Option<(u16, Connection)> {
    let spdy::Stream { id, headers, reader, mut writer } = stream;
    let Asked { port, request, data } = match asked(id, &headers) {
        Ok(asked) => asked,
        Err(why) => {
            tracing::debug!("a port-forward stream is refused: {why}");
            writer.reset().await;
            return None;
        }
    };
    let new = || Half { since: Instant::now(), data: None, error: None };
    let half = halves.entry(request.clone()).or_insert_with(new);
    if (data && half.data.is_some()) || (!data && half.error.is_some()) {
        writer.reset().await;
        return None;
    }
    match data {
        true => half.data = Some((Source::Spdy(reader), Sink::Spdy(writer))),
        false => half.error = Some(Sink::Spdy(writer)),
    }
    if half.data.is_none() || half.error.is_none() {
        return None;
    }
    let half = halves.remove(&request)?;
    Some((port, Connection { data: half.data?, error: half.error? }))
}

async fn give_up(half: Half, why: &str) {
    if let Some((_, mut sink)) = half.data {
        sink.reset().await;
    }
    if let Some(mut error) = half.error {
        let _ = error.send(why.as_bytes()).await;
        error.end().await;
    }
}

/// Serves the ports of a plain WebSocket connection, each once.
pub(super) async fn over_websocket(engine: &Engine, sandbox: &str, ports: &[u16], mut channels: Channels) {
    let mut running = JoinSet::new();
    for (channel, port) in (0u8..).step_by(2).zip(ports) {
        let Some(source) = channels.source(channel) else { continue };
        let (mut data, mut error) = (channels.sink(channel), channels.sink(channel + 1));
        let number = port.to_le_bytes();
        if data.send(&number).await.is_err() || error.send(&number).await.is_err() {
            return;
        }
        running.spawn(forward(engine.clone(), sandbox.to_owned(), *port, Connection { data: (source, data), error }));
    }
    while running.join_next().await.is_some() {}
}

/// The channels that a client writes to.
pub(super) fn readable(ports: &[u16]) -> Vec<u8> {
    (0u8..).step_by(2).take(ports.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> spdy::headers::Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn headers_say_which_connection_a_stream_is_of() {
        let new = headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "4")]);
        assert_eq!(asked(9, &new), Ok(Asked { port: 80, request: "4".into(), data: true }));
        // Without request ids, the data stream is the one after its error stream.
        let old = |kind| headers(&[("streamtype", kind), ("port", "80")]);
        let ids = [asked(5, &old("error")).unwrap().request, asked(7, &old("data")).unwrap().request];
        assert_eq!(ids[0], ids[1]);
    }

    #[test]
    fn headers_that_say_nothing_sensible_are_refused_by_name() {
        for (pairs, word) in [
            (vec![("streamtype", "data")], "port"),
            (vec![("streamtype", "data"), ("port", "0")], "0"),
            (vec![("streamtype", "data"), ("port", "70000")], "70000"),
            (vec![("port", "80")], "streamType"),
            (vec![("streamtype", "stdin"), ("port", "80")], "stdin"),
        ] {
            assert!(asked(1, &headers(&pairs)).unwrap_err().contains(word));
        }
    }
}
