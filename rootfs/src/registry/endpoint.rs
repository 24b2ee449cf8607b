//! One host that one repository is fetched from: its scheme, its authentication, its retries.
//!
//! A request goes out with whatever authorization worked before, at first none. A 401 brings a challenge; the request
//! is made once more with its answer, and what was learnt stays for the requests after it, from all threads.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use ureq::Body;
use ureq::http::header::WWW_AUTHENTICATE;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::answer::{Subject, tls_error};
use super::challenge::{self, Challenge};
use super::retry::{Failure, Retry};
use super::token::{self, Token};
use super::transport::{Call, Elsewhere, Fault, Transport};
use crate::auth::Credentials;
use crate::error::{Error, ErrorKind, Result};
use crate::hosts::{Host, Scheme, is_loopback};
use crate::progress::Progress;

/// A mirror is an offer: it gets one second chance, and then the next host is asked.
const MIRROR_ATTEMPTS: u32 = 2;
/// The most of a list of tags that is read.
const TAGS_LIMIT: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Endpoint {
    name: String,
    repository: String,
    /// Tells a mirror whose content is meant: `?ns=docker.io`.
    query: String,
    transport: Transport,
    credentials: Credentials,
    retry: Retry,
    /// The root of the API, once the scheme is known.
    base: Mutex<Option<String>>,
    auth: Mutex<Auth>,
    /// It has answered.
    known: AtomicBool,
    /// It is a mirror that did not answer, and is not asked again.
    down: AtomicBool,
}

#[derive(Debug, Default)]
struct Auth {
    challenge: Option<Challenge>,
    /// By scope.
    tokens: HashMap<String, Token>,
}

/// A request beneath the repository.
#[derive(Debug, Clone, Copy)]
pub struct Get<'a> {
    /// `manifests/TAG`, `blobs/DIGEST`
    pub path: &'a str,
    /// For errors: `manifest app:v1`.
    pub what: &'a str,
    /// Media types.
    pub accept: Option<&'a str>,
    /// Only what comes from this byte on.
    pub from: u64,
}

impl Endpoint {
    /// Nothing is sent yet.
    pub fn new(
        registry: &str,
        repository: &str,
        transport: Transport,
        credentials: Credentials,
        retry: Retry,
    ) -> Endpoint {
        let host = transport.host();
        let (name, query, attempts) = match host.mirror {
            true => {
                let name = format!("mirror {} of {registry}", host.authority);
                (name, format!("?ns={registry}"), retry.attempts.min(MIRROR_ATTEMPTS))
            }
            false => (format!("registry {registry}"), String::new(), retry.attempts),
        };
        Endpoint {
            name,
            repository: repository.to_owned(),
            query,
            transport,
            credentials,
            retry: Retry { attempts, ..retry },
            base: Mutex::default(),
            auth: Mutex::default(),
            known: AtomicBool::new(false),
            down: AtomicBool::new(false),
        }
    }

    /// `registry quay.io`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is configured of it.
    pub fn host(&self) -> &Host {
        self.transport.host()
    }

    /// How often things are tried here.
    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    /// Was it given up?
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Gives a mirror up if its last error says that it is not there.
    pub fn note(&self, err: &Error) {
        let gone = matches!(err.kind(), ErrorKind::Unavailable | ErrorKind::Tls);
        self.down.fetch_or(gone && self.host().mirror, Ordering::Relaxed);
    }

    /// Tries until it works, or the attempts are used up.
    pub fn retrying<T>(
        &self,
        what: &str,
        progress: &dyn Progress,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        for next in 2.. {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => self.retry.wait(failure, next, what, progress)?,
            }
        }
        unreachable!("attempts are bounded by Retry::wait")
    }

    /// Makes a request once. An answer is a success, or a 416 to a range.
    pub fn get(&self, get: Get<'_>) -> Result<Response<Body>, Failure> {
        let url = format!("{}/{}/{}{}", self.base(get.what)?, self.repository, get.path, self.query);
        let shown = self.known_authorization(get.what)?;
        let response = self.send(&url, &get, shown.as_deref())?;
        // A server that was redirected to may refuse, but not ask for this one's credentials.
        if response.status() != StatusCode::UNAUTHORIZED || response.extensions().get::<Elsewhere>().is_some() {
            return self.checked(response, &get);
        }
        match self.authorize(response.headers(), shown.as_deref(), get.what)? {
            Some(authorization) => {
                // Read to its end, the refused answer leaves its connection to the next request.
                drop(self.subject(get.what).status(response));
                let response = self.send(&url, &get, Some(&authorization))?;
                self.checked(response, &get)
            }
            None => Err(self.subject(get.what).status(response)),
        }
    }

    /// The tags of the repository; `None` if there is no such repository. Only asked to explain an error, so once.
    pub fn tags(&self) -> Result<Option<Vec<String>>, Failure> {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let what = format!("tags of {}", self.repository);
        match self.get(Get { path: "tags/list", what: &what, accept: None, from: 0 }) {
            Ok(response) => {
                let body = response.into_body().into_reader().take(TAGS_LIMIT);
                let tags: Option<Tags> = serde_json::from_reader(BufReader::new(body)).ok();
                Ok(Some(tags.and_then(|list| list.tags).unwrap_or_default()))
            }
            Err(failure) if failure.code == "NAME_UNKNOWN" => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The failure of reading an answer's body.
    pub fn body_failure(&self, what: &str, err: std::io::Error) -> Failure {
        self.subject(what).fault(Fault::Http(ureq::Error::from(err)), true)
    }

    fn subject<'a>(&'a self, what: &'a str) -> Subject<'a> {
        Subject { server: &self.name, what, who: self.who() }
    }

    /// Who asks, for hints; told apart by what matters to them.
    fn who(&self) -> &str {
        match &self.credentials {
            Credentials::Anonymous => "no credentials",
            Credentials::Basic { username, .. } => username,
            Credentials::IdentityToken(_) => "the identity token",
            Credentials::RegistryToken(_) => "the registry token",
        }
    }

    fn send(&self, url: &str, get: &Get<'_>, authorization: Option<&str>) -> Result<Response<Body>, Failure> {
        let range = (get.from > 0).then(|| format!("bytes={}-", get.from));
        // Content is named by the digest of what is stored; a compression on the way would only hide it.
        let mut headers = vec![("accept-encoding", "identity")];
        headers.extend(get.accept.map(|accept| ("accept", accept)));
        headers.extend(range.as_deref().map(|range| ("range", range)));
        let call = Call { url, headers: &headers, authorization, form: None };
        let known = self.known.load(Ordering::Relaxed);
        let response = self.transport.call(call).map_err(|fault| self.subject(get.what).fault(fault, known))?;
        self.known.store(true, Ordering::Relaxed);
        Ok(response)
    }

    fn checked(&self, response: Response<Body>, get: &Get<'_>) -> Result<Response<Body>, Failure> {
        let status = response.status();
        match status.is_success() || (status == StatusCode::RANGE_NOT_SATISFIABLE && get.from > 0) {
            true => Ok(response),
            false => Err(self.subject(get.what).status(response)),
        }
    }

    /// The root of the API. Which scheme is spoken is found out once, where the configuration leaves it open.
    fn base(&self, what: &str) -> Result<String, Failure> {
        let mut base = lock(&self.base);
        if let Some(base) = &*base {
            return Ok(base.clone());
        }
        let host = self.host();
        let url = |scheme: &str| format!("{scheme}://{}{}", host.authority, host.path);
        let found = match host.scheme {
            Scheme::Https => url("https"),
            Scheme::Http => url("http"),
            Scheme::Probe => {
                // A plain server may leave a TLS greeting unanswered; on loopback, where nobody listens in, ask the
                // question that both understand first.
                let order = if is_loopback(&host.authority) { ["http", "https"] } else { ["https", "http"] };
                match self.ping(&url(order[0])) {
                    Ok(true) => url(order[0]),
                    Ok(false) => match self.ping(&url(order[1])) {
                        Ok(_) => url(order[1]),
                        Err(fault) => return Err(self.subject(what).fault(fault, false)),
                    },
                    Err(fault) => return Err(self.subject(what).fault(fault, false)),
                }
            }
        };
        *base = Some(found.clone());
        Ok(found)
    }

    /// Asks for the API's root: `false` if that scheme is not spoken there.
    fn ping(&self, base: &str) -> Result<bool, Fault> {
        let url = format!("{base}/");
        match self.transport.call(Call { url: &url, headers: &[], authorization: None, form: None }) {
            // To plain http, a TLS server says that this was a bad request; a registry never does.
            Ok(response) if response.status() == StatusCode::BAD_REQUEST => Ok(false),
            Ok(response) => {
                if response.extensions().get::<Elsewhere>().is_none() {
                    lock(&self.auth).challenge = challenges(response.headers()).into_iter().next();
                }
                Ok(true)
            }
            Err(Fault::Http(err)) if is_other_protocol(&err) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// The authorization for what is known to be asked.
    fn known_authorization(&self, what: &str) -> Result<Option<String>, Failure> {
        if let Credentials::RegistryToken(token) = &self.credentials {
            return Ok(Some(format!("Bearer {token}")));
        }
        let mut auth = lock(&self.auth);
        match auth.challenge.clone() {
            Some(challenge) => self.answer(&mut auth, &challenge, None, what),
            None => Ok(None),
        }
    }

    /// The answer to a refusal of what was `shown`; `None` if there is nothing else to show.
    fn authorize(&self, headers: &HeaderMap, shown: Option<&str>, what: &str) -> Result<Option<String>, Failure> {
        let mut auth = lock(&self.auth);
        for challenge in challenges(headers) {
            if let Some(answer) = self.answer(&mut auth, &challenge, shown, what)?
                && Some(answer.as_str()) != shown
            {
                auth.challenge = Some(challenge);
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Holds the lock while it fetches a token, so that parallel layers share it.
    fn answer(
        &self,
        auth: &mut MutexGuard<'_, Auth>,
        challenge: &Challenge,
        refused: Option<&str>,
        what: &str,
    ) -> Result<Option<String>, Failure> {
        let Challenge::Bearer { realm, service, scope } = challenge else {
            return Ok(token::basic(&self.credentials));
        };
        if matches!(self.credentials, Credentials::RegistryToken(_)) {
            return Ok(None);
        }
        let own = format!("repository:{}:pull", self.repository);
        let scope = scope.as_deref().filter(|scope| !scope.is_empty()).unwrap_or(&own);
        let cached = auth.tokens.get(scope).filter(|token| token.is_fresh()).map(Token::header);
        if cached.is_some() && cached.as_deref() != refused {
            return Ok(cached);
        }
        let ask = token::Ask { realm, service: service.as_deref(), scope };
        let token = token::fetch(&self.transport, ask, &self.credentials, self.subject(what))?;
        let header = token.header();
        auth.tokens.insert(scope.to_owned(), token);
        Ok(Some(header))
    }
}

/// A thread that panicked while it held one of these locks left what was there before, or what is complete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    challenge::parse(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

/// Is this what TLS says to plain http, or plain http to TLS?
fn is_other_protocol(err: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match (tls_error(err), err) {
        (Some(tls), _) => matches!(tls, rustls::Error::InvalidMessage(_)),
        (None, ureq::Error::Protocol(_)) => true,
        (None, ureq::Error::Io(io)) => {
            matches!(io.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
        }
        _ => false,
    }
}
