//! One HTTP request, one answer: connections, TLS, proxies, redirects, time limits. No retries, no authentication.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::header::LOCATION;
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::RegistryConfig;
use super::proxy::Proxies;
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::hosts::{Host, is_loopback};

/// More redirects than any registry needs: to its storage, and from there to a region's.
const REDIRECT_LIMIT: usize = 6;
/// Filled by one read of a socket. Large, because a layer is large and each read is a system call.
const INPUT_BUFFER: usize = 512 << 10;
/// Layers are fetched in parallel, and their connections are used again.
const IDLE_CONNECTIONS: usize = 8;
/// Idle connections are closed after this long; most servers wait longer.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// The most bytes of headers.
const HEADER_LIMIT: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// An absolute URL.
    pub url: &'a str,
    /// Headers that any server may see.
    pub headers: &'a [(&'a str, &'a str)],
    /// `Authorization`, for the URL's own server only.
    pub authorization: Option<&'a str>,
    /// The fields of a form to post, encoded; otherwise it is a GET.
    pub form: Option<&'a str>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Fault {
    /// The request could not be made or its answer not be read.
    Http(ureq::Error),
    /// It was not tried, for a reason of ours.
    Refused(Error),
}

impl From<Error> for Fault {
    fn from(err: Error) -> Fault {
        Fault::Refused(err)
    }
}

/// Connections to one host and to wherever it redirects.
#[derive(Debug)]
pub struct Transport {
    host: Host,
    config: Arc<RegistryConfig>,
    proxies: Proxies,
    agents: Mutex<HashMap<Route, Agent>>,
}

/// What tells agents apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Route {
    /// To the host itself, on whatever port.
    own: bool,
    https: bool,
    proxied: bool,
}

/// An answer of another server, to which the first one redirected: what that asks for is not the first one's question.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere;

impl Transport {
    /// No connection is made yet.
    pub fn new(host: Host, config: Arc<RegistryConfig>) -> Result<Transport> {
        let proxies = Proxies::new(&config.proxies)?;
        Ok(Transport { host, config, proxies, agents: Mutex::default() })
    }

    /// Where it connects to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// May secrets go to this URL? Over TLS; in the plain only where the configuration lets the registry be plain.
    pub fn may_hold_secrets(&self, url: &str) -> bool {
        let Ok(url) = url.parse::<Uri>() else { return false };
        let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
        // "127.0.0.1:1@evil.example" is evil.example.
        if authority.contains('@') {
            return false;
        }
        let listed = self.config.insecure.iter().any(|insecure| insecure == authority);
        url.scheme_str() == Some("https")
            || (url.scheme_str() == Some("http") && (is_loopback(authority) || listed || self.is_own_plain(&url)))
    }

    /// Is it the host itself, which the configuration lets be plain?
    fn is_own_plain(&self, url: &Uri) -> bool {
        self.host.scheme != crate::hosts::Scheme::Https && self.is_own(url)
    }

    fn is_own(&self, url: &Uri) -> bool {
        let own = self.host.authority.parse::<ureq::http::uri::Authority>();
        own.is_ok_and(|own| url.host() == Some(own.host()))
    }

    /// Makes a request and follows redirects.
    pub fn call(&self, call: Call<'_>) -> Result<Response<Body>, Fault> {
        let mut url: Uri = call.url.parse().map_err(|_| bad_url(call.url))?;
        let first = url.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let same_server = origin(&url) == origin(&first);
            let mut response = self.once(&call, &url, same_server)?;
            let Some(location) = redirect(&response, &call) else {
                if !same_server {
                    response.extensions_mut().insert(Elsewhere);
                }
                return Ok(response);
            };
            let next = resolve(&url, location)?;
            if url.scheme_str() == Some("https")
                && next.scheme_str() != Some("https")
                && !self.may_hold_secrets(&next.to_string())
            {
                let message = format!("{} redirects from https to plain http on {}", authority(&url), authority(&next));
                return Err(Error::new(ErrorKind::Tls, message).into());
            }
            url = next;
        }
        let message = format!("{}: redirects more than {REDIRECT_LIMIT} times", authority(&first));
        Err(Error::new(ErrorKind::Unavailable, message).into())
    }

    fn once(&self, call: &Call<'_>, url: &Uri, same_server: bool) -> Result<Response<Body>, Fault> {
        let method = if call.form.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        // Elsewhere (a storage service, by a signed URL) the secrets of this registry are nobody's business.
        if same_server {
            // The host's own headers may be secrets as well: a token's server gets none of them.
            let own = url.authority().is_some_and(|authority| authority.as_str() == self.host.authority);
            for (name, value) in self.host.headers.iter().filter(|_| own) {
                request = request.header(name, value);
            }
            if let Some(authorization) = call.authorization {
                request = request.header("authorization", authorization);
            }
        }
        let agent = self.agent(url)?;
        let invalid = |err| Fault::Http(ureq::Error::Http(err));
        match call.form {
            Some(form) => {
                let request = request.header("content-type", "application/x-www-form-urlencoded");
                agent.run(request.body(form.to_owned()).map_err(invalid)?)
            }
            None => agent.run(request.body(()).map_err(invalid)?),
        }
        .map_err(Fault::Http)
    }

    fn agent(&self, url: &Uri) -> Result<Agent> {
        let https = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default();
        let proxy = self.proxies.of(https, host, url.port_u16().unwrap_or(if https { 443 } else { 80 }));
        let route = Route { own: self.is_own(url), https, proxied: proxy.is_some() };
        // A thread that panicked while it held the lock left a map as good as before.
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&route) {
            return Ok(agent.clone());
        }
        let tls = match https {
            true => tls::config(&self.host, route.own, &self.config.extra_cas)?,
            false => TlsConfig::builder().build(),
        };
        let timeouts = &self.config.timeouts;
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(proxy.cloned())
            .tls_config(tls)
            .user_agent(&self.config.user_agent)
            .accept("")
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(self.host.dial_timeout.unwrap_or(timeouts.connect)))
            .timeout_per_read(Some(timeouts.stall))
            .timeout_per_write(Some(timeouts.stall))
            .input_buffer_size(INPUT_BUFFER)
            .max_response_header_size(HEADER_LIMIT)
            .max_idle_connections(2 * IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .max_idle_age(IDLE_TIME)
            .build()
            .into();
        agents.insert(route, agent.clone());
        Ok(agent)
    }
}

fn bad_url(url: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{url:?} is not a URL"))
}

/// `HOST[:PORT]` of a URL, for errors.
fn authority(url: &Uri) -> &str {
    url.authority().map(|authority| authority.as_str()).unwrap_or_default()
}

/// What must be equal for two URLs to be of one server.
fn origin(url: &Uri) -> (Option<&str>, Option<&str>, Option<u16>) {
    (url.scheme_str(), url.host(), url.port_u16())
}

/// Where a response leads, if anywhere. A form is never sent on: it holds a secret.
fn redirect<'a>(response: &'a Response<Body>, call: &Call<'_>) -> Option<&'a str> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    (call.form.is_none() && redirects.contains(&response.status())).then_some(location)
}

/// A `Location`, which may be relative, as a URL.
fn resolve(base: &Uri, location: &str) -> Result<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str().unwrap_or("https");
    let absolute = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", authority(base))
    } else {
        let folder = base.path().rsplit_once('/').map(|(folder, _)| folder).unwrap_or_default();
        format!("{scheme}://{}{folder}/{location}", authority(base))
    };
    let url: Uri = absolute.parse().map_err(|_| bad_url(&absolute))?;
    match url.scheme_str() {
        Some("http" | "https") if url.host().is_some() && !authority(&url).contains('@') => Ok(url),
        _ => Err(bad_url(&absolute).context(format_args!("{} redirects", authority(base)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_against_their_url() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/1?q".parse().unwrap();
        for (location, expected) in [
            ("https://b.example/c?d=e#f", "https://b.example/c?d=e"),
            ("//b.example/c", "https://b.example/c"),
            ("/c?d", "https://a.example:5000/c?d"),
            ("c", "https://a.example:5000/v2/x/blobs/c"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected);
        }
        for bad in ["file:///etc/passwd", "https://", "ht tp://x"] {
            assert!(resolve(&base, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_stay_on_tls_and_on_loopback() {
        let config = Arc::new(RegistryConfig { insecure: vec!["old.example:80".into()], ..RegistryConfig::default() });
        let host = config.hosts().hosts("quay.io").unwrap().remove(0);
        let transport = Transport::new(host, config).unwrap();
        for (url, may) in [
            ("https://anywhere.example/token", true),
            ("http://anywhere.example/token", false),
            ("http://127.0.0.1:5001/token", true),
            ("http://old.example:80/token", true),
            ("http://quay.io/token", false),
            ("ftp://quay.io/token", false),
            ("nonsense", false),
        ] {
            assert_eq!(transport.may_hold_secrets(url), may, "{url}");
        }
    }
}
