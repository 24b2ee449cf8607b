//! Token services: `GET` with user and password or without, `POST` of OAuth2 with an identity token.

use std::io::Read;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::answer::Subject;
use super::retry::Failure;
use super::transport::{Call, Transport};
use crate::auth::Credentials;
use crate::error::{Error, ErrorKind};

/// The most of a service's answer that is read. Tokens travel in headers, so they are smaller still.
const ANSWER_LIMIT: u64 = 256 << 10;
/// How long a token is good if the service does not say; the specification's value.
const DEFAULT_LIFETIME: u64 = 60;
/// A token is not used in its last moments.
const MARGIN: Duration = Duration::from_secs(5);
/// How we call ourselves at OAuth2 services.
const CLIENT: &str = "coracle";

/// A token, and until when it is used.
#[derive(Clone)]
pub struct Token {
    value: String,
    until: Instant,
}

impl Token {
    /// The `Authorization` header.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.value)
    }

    /// May it be used for a request that starts now? A token that was just fetched is used once in any case.
    pub fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The secret does not show.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What a challenge asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The service's URL.
    pub realm: &'a str,
    /// The registry's name at the service.
    pub service: Option<&'a str>,
    /// `repository:NAME:pull`
    pub scope: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

/// Gets a token.
pub fn fetch(
    transport: &Transport,
    ask: Ask<'_>,
    credentials: &Credentials,
    subject: Subject<'_>,
) -> Result<Token, Failure> {
    let what = format!("token for {} from {}", ask.scope, ask.realm);
    let subject = Subject { what: &what, ..subject };
    let invalid = |why: &str| Error::new(ErrorKind::Unavailable, format!("{}: {what}: {why}", subject.server));
    if *credentials != Credentials::Anonymous && !transport.may_hold_secrets(ask.realm) {
        let hint = "only https, loopback and insecure registries of the configuration may see credentials";
        return Err(invalid("credentials would travel in plain text").hint(hint).into());
    }
    let asked = Instant::now();
    let response = send(transport, ask, credentials).map_err(|fault| subject.fault(fault, false))?;
    if !response.status().is_success() {
        return Err(subject.status(response));
    }
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(ANSWER_LIMIT);
    reader.read_to_end(&mut bytes).map_err(|err| Failure::passing(invalid(&err.to_string())))?;
    // The answer may hold the token: no error shows it.
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| invalid("the answer is not the JSON of a token"))?;
    let value = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid("there is no token in the answer").into());
    }
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFETIME).min(24 * 3600));
    Ok(Token { value, until: asked + lifetime.saturating_sub(MARGIN.min(lifetime / 2)) })
}

fn send(
    transport: &Transport,
    ask: Ask<'_>,
    credentials: &Credentials,
) -> Result<ureq::http::Response<ureq::Body>, super::transport::Fault> {
    let mut fields = vec![("scope", ask.scope)];
    fields.extend(ask.service.map(|service| ("service", service)));
    if let Credentials::IdentityToken(token) = credentials {
        fields.extend([("grant_type", "refresh_token"), ("client_id", CLIENT), ("refresh_token", token)]);
        let form = encode_fields(&fields);
        return transport.call(Call { url: ask.realm, headers: &[], authorization: None, form: Some(&form) });
    }
    let authorization = basic(credentials);
    if let Credentials::Basic { username, .. } = credentials {
        fields.push(("account", username));
    }
    let separator = if ask.realm.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}{}", ask.realm, encode_fields(&fields));
    transport.call(Call { url: &url, headers: &[], authorization: authorization.as_deref(), form: None })
}

/// The `Authorization` header of user and password, if that is what there is.
pub fn basic(credentials: &Credentials) -> Option<String> {
    use base64::Engine as _;
    let Credentials::Basic { username, password } = credentials else { return None };
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    Some(format!("Basic {encoded}"))
}

fn encode_fields(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    fields.join("&")
}

/// Percent-encoding of all but the unreserved characters.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_and_credentials_become_a_header() {
        assert_eq!(
            encode_fields(&[("scope", "repository:a/b:pull"), ("s", "ü&")]),
            "scope=repository%3Aa%2Fb%3Apull&s=%C3%BC%26"
        );
        assert_eq!(basic(&Credentials::basic("Aladdin", "open sesame")).unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic(&Credentials::Anonymous), None);
    }

    #[test]
    fn a_token_is_not_used_when_it_is_old() {
        let token = |until| Token { value: "t".into(), until };
        assert_eq!(token(Instant::now()).header(), "Bearer t");
        assert!(token(Instant::now() + MARGIN).is_fresh() && !token(Instant::now()).is_fresh());
        assert_eq!(format!("{:?}", token(Instant::now())), "Token");
    }
}
