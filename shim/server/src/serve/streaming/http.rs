//! Requests: `/exec/TOKEN`, `/attach/TOKEN` and `/portforward/TOKEN`, each an upgrade to SPDY/3.1 or to WebSocket.
//!
//! The answer comes from here, with the protocol that was agreed upon; what follows it is served by [`Session::run`] in
//! the connection's own task.

use std::time::Instant;

use coracle_engine::Engine;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::remote::Remote;
use super::token::Tokens;
use super::websocket::{Flavour, flavour};
use super::{forward, remote, spdy, websocket};

/// The protocol of port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The WebSocket subprotocol that carries a whole SPDY connection.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// By which client and server agree on a protocol over SPDY.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SUBPROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
/// The protocols of exec and attach over SPDY, with their versions.
const REMOTE_COMMAND: [(&str, u8); 4] =
    [("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];

/// What an RPC has allowed.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// Exec or attach.
    Remote(Remote),
    /// Port-forward into a sandbox; the ports matter to plain WebSocket alone.
    Forward { sandbox: String, ports: Vec<u16> },
}

impl Wanted {
    /// The first part of the path.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Wanted::Remote(Remote { command: Some(_), .. }) => "exec",
            Wanted::Remote(_) => "attach",
            Wanted::Forward { .. } => "portforward",
        }
    }
}

/// How the client will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Spdy { version: u8 },
    Channels(Flavour),
    Tunnel,
}

/// A session that begins when its connection is upgraded.
pub(super) struct Session {
    wanted: Wanted,
    speech: Speech,
    upgrade: OnUpgrade,
}

type Answer = Response<Full<Bytes>>;

fn refuse(status: StatusCode, why: impl Into<String>) -> Box<Answer> {
    let mut answer = Response::new(Full::from(why.into() + "\n"));
    *answer.status_mut() = status;
    Box::new(answer)
}

/// Answers a request. With a session the answer is the upgrade to it.
pub(super) fn answer(mut request: Request<Incoming>, tokens: &Tokens<Wanted>) -> (Answer, Option<Session>) {
    let allowed = |request: &Request<Incoming>| {
        let mut parts = request.uri().path().split('/').skip(1);
        let (path, token) = (parts.next()?, parts.next().filter(|_| parts.next().is_none())?);
        tokens.take(token, Instant::now(), |wanted| wanted.path() == path)
    };
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return (*refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are served here"), None);
    }
    let Some(wanted) = allowed(&request) else {
        let why = "no such stream: a URL is good once, and for a minute";
        return (*refuse(StatusCode::NOT_FOUND, why), None);
    };
    match agree(request.headers(), &wanted) {
        Err(refused) => (*refused, None),
        Ok((answer, speech)) => {
            let upgrade = hyper::upgrade::on(&mut request);
            (answer, Some(Session { wanted, speech, upgrade }))
        }
    }
}

/// The values of a header that is a list, however it is spread.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn agree(headers: &HeaderMap, wanted: &Wanted) -> Result<(Answer, Speech), Box<Answer>> {
    let has = |name, word: &str| list(headers, &name).iter().any(|value| value.eq_ignore_ascii_case(word));
    if !has(CONNECTION, "upgrade") {
        return Err(refuse(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or to websocket is needed"));
    }
    if has(UPGRADE, "spdy/3.1") {
        return over_spdy(headers, wanted);
    }
    if has(UPGRADE, "websocket") {
        return over_websocket(headers, wanted);
    }
    Err(refuse(StatusCode::BAD_REQUEST, "an upgrade to something else than SPDY/3.1 and websocket"))
}

fn switching(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

fn over_spdy(headers: &HeaderMap, wanted: &Wanted) -> Result<(Answer, Speech), Box<Answer>> {
    let spoken: &[(&str, u8)] = match wanted {
        Wanted::Remote(_) => &REMOTE_COMMAND,
        Wanted::Forward { .. } => &[(PORT_FORWARD, 1)],
    };
    let offered = list(headers, &STREAM_PROTOCOL);
    let known = |offer: &String| spoken.iter().find(|(name, _)| name == offer);
    let Some((name, version)) = offered.iter().find_map(known) else {
        if offered.is_empty() {
            // Clients from before there was a choice.
            return Ok((switching("SPDY/3.1"), Speech::Spdy { version: 1 }));
        }
        let mut answer =
            refuse(StatusCode::FORBIDDEN, format!("none of the protocols is known: {}", offered.join(", ")));
        for (name, _) in spoken {
            answer.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    let mut answer = switching("SPDY/3.1");
    answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((answer, Speech::Spdy { version: *version }))
}

fn over_websocket(headers: &HeaderMap, wanted: &Wanted) -> Result<(Answer, Speech), Box<Answer>> {
    let Some(key) = headers.get(WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "sec-websocket-key is missing"));
    };
    if headers.get(WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut answer = refuse(StatusCode::UPGRADE_REQUIRED, "version 13 of WebSocket is spoken here");
        answer.headers_mut().insert(WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let forward = matches!(wanted, Wanted::Forward { .. });
    let speech = |offer: &str| match offer {
        TUNNEL if forward => Some(Speech::Tunnel),
        // Port-forward has neither an end of a channel nor the older versions.
        "v5.channel.k8s.io" | "v3.channel.k8s.io" | "v2.channel.k8s.io" if forward => None,
        _ => flavour(offer).map(Speech::Channels),
    };
    let offered = list(headers, &SUBPROTOCOL);
    let mut answer = switching("websocket");
    let chosen = match offered.iter().find_map(|offer| Some((offer, speech(offer)?))) {
        Some((name, chosen)) => {
            let name = HeaderValue::from_str(name);
            answer.headers_mut().insert(SUBPROTOCOL, name.map_err(|_| refuse(StatusCode::BAD_REQUEST, "subprotocol"))?);
            chosen
        }
        None if offered.is_empty() => Speech::Channels(Flavour::default()),
        None => {
            let why = format!("none of the subprotocols is known: {}", offered.join(", "));
            return Err(refuse(StatusCode::FORBIDDEN, why));
        }
    };
    if let (Speech::Channels(_), Wanted::Forward { ports, .. }) = (chosen, wanted)
        && (ports.is_empty() || ports.len() > forward::MAX_PORTS)
    {
        let why = "plain WebSocket forwards the ports that the PortForward call has named, 1 to 127 of them";
        return Err(refuse(StatusCode::BAD_REQUEST, why));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    answer.headers_mut().insert(WEBSOCKET_ACCEPT, accept.map_err(|_| refuse(StatusCode::BAD_REQUEST, "key"))?);
    Ok((answer, chosen))
}

impl Session {
    /// Serves the connection to its end.
    pub(super) async fn run(self, engine: &Engine) {
        let Ok(upgraded) = self.upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        match (&self.wanted, self.speech) {
            (Wanted::Remote(remote), Speech::Spdy { version }) => {
                spdy::run(io, |streams| remote::over_spdy(engine, remote, version, streams)).await;
            }
            (Wanted::Remote(remote), Speech::Channels(flavour)) => {
                let readable = remote::readable(remote);
                websocket::run(io, flavour, &readable, |channels| remote::over_websocket(engine, remote, channels))
                    .await;
            }
            (Wanted::Forward { sandbox, .. }, Speech::Spdy { .. }) => {
                spdy::run(io, |streams| forward::over_spdy(engine, sandbox, streams)).await;
            }
            (Wanted::Forward { sandbox, ports }, Speech::Channels(flavour)) => {
                let readable = forward::readable(ports);
                let protocol = |channels| forward::over_websocket(engine, sandbox, ports, channels);
                websocket::run(io, flavour, &readable, protocol).await;
            }
            (Wanted::Forward { sandbox, .. }, Speech::Tunnel) => {
                let (near, far) = tokio::io::duplex(super::pipe::CHUNK);
                let inner = spdy::run(near, |streams| forward::over_spdy(engine, sandbox, streams));
                tokio::join!(inner, websocket::tunnel(io, far));
            }
            // Not agreed upon.
            (Wanted::Remote(_), Speech::Tunnel) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn exec() -> Wanted {
        let command = Some(vec!["true".to_owned()]);
        Wanted::Remote(Remote { container: "c".into(), command, tty: false, stdin: false, stdout: true, stderr: false })
    }

    fn forward() -> Wanted {
        Wanted::Forward { sandbox: "s".into(), ports: vec![80] }
    }

    const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];

    #[test]
    fn the_clients_first_protocol_that_is_known_is_spoken() {
        let mut offer = SPDY.to_vec();
        offer.extend([
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        let (answer, speech) = agree(&headers(&offer), &exec()).unwrap();
        assert_eq!((answer.status().as_u16(), speech), (101, Speech::Spdy { version: 3 }));
        assert_eq!(answer.headers()["x-stream-protocol-version"], "v3.channel.k8s.io");
        let refused = agree(&headers(&offer), &forward()).unwrap_err();
        assert_eq!(refused.status().as_u16(), 403);
        assert_eq!(refused.headers()["x-accepted-stream-protocol-versions"], "portforward.k8s.io");
        assert_eq!(agree(&headers(&SPDY), &exec()).unwrap().1, Speech::Spdy { version: 1 });
    }

    #[test]
    fn a_websocket_is_accepted_by_its_key_and_subprotocol() {
        let mut offer = WEBSOCKET.to_vec();
        offer.push(("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"));
        let (answer, speech) = agree(&headers(&offer), &exec()).unwrap();
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(speech, Speech::Channels(flavour("v5.channel.k8s.io").unwrap()));
        let (answer, _) = agree(&headers(&offer), &forward()).unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
        offer.push(("sec-websocket-protocol", TUNNEL));
        offer.remove(4);
        assert_eq!(agree(&headers(&offer), &forward()).unwrap().1, Speech::Tunnel);
        assert_eq!(agree(&headers(&offer), &exec()).unwrap_err().status().as_u16(), 403);
        assert_eq!(agree(&headers(&WEBSOCKET), &exec()).unwrap().1, Speech::Channels(Flavour::default()));
    }

    #[test]
    fn what_is_no_upgrade_is_told_so() {
        for (pairs, status) in [(&WEBSOCKET[..0], 400), (&WEBSOCKET[..2], 400), (&WEBSOCKET[..3], 426)] {
            assert_eq!(agree(&headers(pairs), &exec()).unwrap_err().status().as_u16(), status);
        }
    }
}
