//! A bearer-token service, as docker-registry's `auth.token` and the distribution specification describe it.
//!
//! It signs JSON web tokens with an RSA key by the openssl program. `GET /token` hands one to anybody for pulling
//! public repositories (`public/...`), and for everything to the one user with the right password; `POST /token` is
//! OAuth2 with a refresh token, which is what an identity token of a `config.json` is.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::http::{Request, Response, Server};
use crate::registry::openssl;

/// The one user, their password, and their identity token.
pub const USER: (&str, &str, &str) = ("token-user", "token-password", "the-identity-token");

/// A running token service.
#[derive(Debug)]
pub struct TokenService {
    server: Server,
    dir: tempfile::TempDir,
}

impl TokenService {
    /// Starts one whose tokens are good for so many seconds.
    pub fn start(lifetime: u64) -> TokenService {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let (key, cert) = (path("token.key"), path("token.crt"));
        #[rustfmt::skip]
        openssl(&["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test-issuer",
            "-keyout", &key, "-out", &cert]);
        let chain = der_base64(&fs::read_to_string(&cert).expect("read the token certificate"));
        let server = Server::start(move |request| answer(request, &key, &chain, lifetime));
        TokenService { server, dir }
    }

    /// The URL that the registry sends its clients to.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.host())
    }

    /// The certificate that the tokens are signed with.
    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("token.crt")
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }
}

/// The base64 of the DER of a PEM file with one certificate: the PEM itself without its frame.
fn der_base64(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

fn answer(request: &Request, key: &str, chain: &str, lifetime: u64) -> Response {
    let query = request.target.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let post = request.method == "POST";
    let form = Form::parse(if post { &request.body } else { query });
    let basic = base64(format!("{}:{}", USER.0, USER.1).as_bytes());
    let known = match post {
        true => form.get("grant_type") == "refresh_token" && form.get("refresh_token") == USER.2,
        false => request.header("authorization") == format!("Basic {basic}"),
    };
    if !known && (post || !request.header("authorization").is_empty()) {
        return Response::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong user or password"}]}"#);
    }
    let scopes = form.all("scope").iter().flat_map(|scope| scope.split(' ')).collect::<Vec<_>>().join(" ");
    let access: Vec<Value> = scopes.split(' ').filter_map(|scope| grant(scope, known)).collect();
    let token = sign(access, &form.get("service"), key, chain, lifetime);
    let body = match post {
        true => json!({ "access_token": token, "expires_in": lifetime, "scope": scopes }),
        false => json!({ "token": token, "expires_in": lifetime }),
    };
    Response::new(200, body.to_string()).header("content-type", "application/json")
}

/// What a scope (`repository:NAME:ACTION,ACTION`) is granted.
fn grant(scope: &str, known: bool) -> Option<Value> {
    let mut parts = scope.splitn(3, ':');
    let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
    let public = name.starts_with("public/");
    let granted: Vec<&str> = actions.split(',').filter(|action| known || (public && *action == "pull")).collect();
    Some(json!({ "type": kind, "name": name, "actions": granted }))
}

fn sign(access: Vec<Value>, audience: &str, key: &str, chain: &str, lifetime: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [chain] });
    let claims = json!({
        "iss": "test-issuer", "sub": "", "aud": audience, "jti": format!("{now}"),
        // The registry takes seconds to notice that a token has expired: it grants 60 s of leeway.
        "exp": now + lifetime, "nbf": now - 10, "iat": now, "access": access,
    });
    let signed = format!("{}.{}", base64_url(header.to_string().as_bytes()), base64_url(claims.to_string().as_bytes()));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-binary", "-sign", key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run openssl");
    openssl.stdin.take().expect("its stdin").write_all(signed.as_bytes()).expect("write to openssl");
    let output = openssl.wait_with_output().expect("wait for openssl");
    assert!(output.status.success(), "openssl dgst -sign failed");
    format!("{signed}.{}", base64_url(&output.stdout))
}

/// The fields of a query or of a form.
struct Form(Vec<(String, String)>);

impl Form {
    fn parse(text: &str) -> Form {
        let fields = text.split('&').filter_map(|field| field.split_once('='));
        Form(fields.map(|(name, value)| (unescape(name), unescape(value))).collect())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    fn get(&self, name: &str) -> String {
        self.all(name).first().copied().unwrap_or_default().to_owned()
    }
}

fn unescape(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.extend(part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()));
        bytes.extend(part.bytes().skip(2));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let sextet = (group >> (18 - 6 * index)) & 63;
            text.push(if index <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

fn base64_url(bytes: &[u8]) -> String {
    base64(bytes).replace('+', "-").replace('/', "_").replace('=', "")
}
