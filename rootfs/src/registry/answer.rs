//! What a registry's refusals mean, in words that tell what to do.

use std::io::{self, Read};
use std::time::SystemTime;

use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;
use ureq::http::header::RETRY_AFTER;

use super::retry::{Failure, parse_retry_after};
use super::tls;
use super::transport::Fault;
use crate::error::{Error, ErrorKind};

/// The most of an error's body that is read.
const BODY_LIMIT: u64 = 64 << 10;
/// The most of a server's words that is shown.
const WORDS_LIMIT: usize = 300;

/// What was asked for, for errors.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `registry quay.io`, `mirror m.example of quay.io`.
    pub server: &'a str,
    /// `manifest team/app:v1`, `blob sha256:...`, or nothing when it is about the server itself.
    pub what: &'a str,
    /// Who asked: `no credentials`, `user "x"`.
    pub who: &'a str,
}

impl Subject<'_> {
    fn error(&self, kind: ErrorKind, why: impl AsRef<str>) -> Error {
        let object = if self.what.is_empty() { String::new() } else { format!("{}: ", self.what) };
        Error::new(kind, format!("{}: {object}{}", self.server, why.as_ref()))
    }

    /// The failure that an HTTP status means. Reads the body.
    pub fn status(&self, response: Response<Body>) -> Failure {
        let status = response.status().as_u16();
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = asked.and_then(|value| parse_retry_after(value, SystemTime::now()));
        let reason = response.status().canonical_reason().unwrap_or("unknown status").to_ascii_lowercase();
        let body = read_some(response.into_body());
        let said = ServerError::parse(&body);
        let words = said.as_ref().map(|said| format!(": {}", said.words())).unwrap_or_default();
        let wait = retry_after.map(|wait| format!("; try again in {} s", wait.as_secs())).unwrap_or_default();
        let line = format!("{status} {reason}{words}{wait}");
        let code = said.map(|said| said.code).unwrap_or_default();
        let (kind, hint) = self.meaning(status, &code, &body);
        let error = self.error(kind, line);
        Failure {
            error: match hint {
                Some(hint) => error.hint(hint),
                None => error,
            },
            transient: matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            retry_after,
            code,
        }
    }

    fn meaning(&self, status: u16, code: &str, body: &str) -> (ErrorKind, Option<String>) {
        let anonymous = self.who == "no credentials";
        let hint = match (status, code) {
            (401, _) if anonymous => {
                "it asks for credentials and none were found: log in, or check the spelling: many registries say this of \
                 repositories that do not exist"
                    .into()
            }
            (401, _) => format!("{} was refused: check the password, or log in again", self.who),
            (403, _) => format!("{} may not pull this repository: ask its owner for access", self.who),
            (404, "NAME_UNKNOWN") => "there is no such repository: check its name".into(),
            (404, "MANIFEST_UNKNOWN") => "there is no such tag or digest in this repository: check it".into(),
            (404, "BLOB_UNKNOWN") => "the registry has lost a part of this image: push it again".into(),
            (404, "") => "is there a registry at this address? check the host and the port".into(),
            (400, _) if body.contains("HTTPS server") || body.contains("HTTPS port") => {
                "https is spoken here: do not configure it as plain http".into()
            }
            (429, _) => "too many requests: log in for a higher limit, wait, or configure a mirror".into(),
            _ => return (kind_of(status), None),
        };
        (kind_of(status), Some(hint))
    }

    /// The failure that a broken request or connection means. `known` tells that the server has answered before, so
    /// that being refused now may be a restart rather than a wrong port.
    pub fn fault(&self, fault: Fault, known: bool) -> Failure {
        let err = match fault {
            Fault::Refused(err) => return self.prefix(err).into(),
            Fault::Http(err) => err,
        };
        if let Some(tls) = tls_error(&err) {
            return self.tls(tls);
        }
        let final_unless_known = |error: Error| Failure { transient: known, ..error.into() };
        let passing = Failure::passing;
        let unavailable = |why: &str| self.error(ErrorKind::Unavailable, why);
        match &err {
            ureq::Error::HostNotFound => final_unless_known(self.unknown_host("the host is not known")),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                let hint = "is it up, and does a firewall or a proxy stand in between?";
                passing(unavailable(&format!("no connection: {err}")).hint(hint))
            }
            ureq::Error::Timeout(_) => passing(unavailable(&format!("stalled: {err}"))),
            ureq::Error::Io(io) if is_unknown_host(io) => final_unless_known(self.unknown_host(&io.to_string())),
            ureq::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
                let hint = "is the registry running, and is the port right?";
                final_unless_known(unavailable("connection refused").hint(hint))
            }
            ureq::Error::Io(io) => passing(unavailable(&io.to_string())),
            ureq::Error::ConnectProxyFailed(why) => {
                let hint = "check HTTPS_PROXY, or list the registry in NO_PROXY";
                final_unless_known(unavailable(&format!("the proxy refused: {}", shorten(why))).hint(hint))
            }
            ureq::Error::ConnectionFailed => final_unless_known(unavailable("connection failed")),
            // Garbage where HTTP belongs: a flaky middle box now and then, a wrong port always.
            ureq::Error::Protocol(_) => final_unless_known(
                unavailable(&format!("does not speak HTTP: {err}")).hint("check the port; https may be spoken there"),
            ),
            _ => unavailable(&err.to_string()).into(),
        }
    }

    fn prefix(&self, err: Error) -> Error {
        err.context(self.server)
    }

    fn unknown_host(&self, why: &str) -> Error {
        self.error(ErrorKind::Unavailable, why).hint("check the registry's name, and the DNS of this machine")
    }

    fn tls(&self, err: &rustls::Error) -> Failure {
        use rustls::{CertificateError, Error as Tls};
        let hint = match err {
            Tls::InvalidCertificate(CertificateError::UnknownIssuer) if !tls::has_system_roots() => {
                "this machine has no certificate authorities: install the package ca-certificates"
            }
            Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                "put its authority's certificate into certs.d/HOST/ca.crt or the configuration's extra_cas"
            }
            Tls::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => "the certificate is another host's: use the name that it is for",
            Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                "renew the certificate, or check this machine's clock"
            }
            Tls::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                "check this machine's clock"
            }
            Tls::InvalidMessage(_) => {
                "plain http may be spoken there: use an http:// URL in hosts.toml or list it as an insecure registry"
            }
            Tls::AlertReceived(_) => "the server may want a client certificate: see hosts.toml",
            _ => "see the registry's TLS configuration",
        };
        Failure::from(self.error(ErrorKind::Tls, format!("TLS: {err}")).hint(hint))
    }
}

/// The error of the TLS library within, if it is one.
pub fn tls_error(err: &ureq::Error) -> Option<&rustls::Error> {
    match err {
        ureq::Error::Rustls(err) => Some(err),
        ureq::Error::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    }
}

/// The resolver's failures have no kind of their own.
fn is_unknown_host(err: &io::Error) -> bool {
    err.to_string().contains("failed to lookup address information")
}

fn kind_of(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Unauthorized,
        403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    }
}

/// The first error of the distribution specification's `{"errors": [{"code", "message"}]}`.
struct ServerError {
    code: String,
    message: String,
}

impl ServerError {
    fn parse(body: &str) -> Option<ServerError> {
        #[derive(Deserialize)]
        struct Raw {
            errors: Vec<RawError>,
        }
        #[derive(Deserialize)]
        struct RawError {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let first = serde_json::from_str::<Raw>(body).ok()?.errors.into_iter().next()?;
        Some(ServerError { code: first.code, message: first.message })
    }

    fn words(&self) -> String {
        shorten(if self.message.is_empty() { &self.code } else { &self.message })
    }
}

/// A server's words on one line, printable, and not too many.
fn shorten(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(WORDS_LIMIT).collect::<String>().trim().to_owned()
}

/// The beginning of a body, as text. What cannot be read is not worth an error within an error.
fn read_some(body: Body) -> String {
    let mut bytes = Vec::new();
    let _ = body.into_reader().take(BODY_LIMIT).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
