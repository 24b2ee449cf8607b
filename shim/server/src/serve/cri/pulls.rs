//! Pulling for a client of the CRI: whose credentials are shown, who shares whose work, what the log tells meanwhile.
//!
//! A pull goes on when its client goes away: kubelet asks again, and then finds the layers, or the pull itself still at
//! work. No secret reaches the log or an error: a set of credentials is told by whom it names.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_proto::cri as v1;
use coracle_rootfs::auth::SearchPath;
use coracle_rootfs::{Credentials, Digest, Keyring, Progress, ProgressEvent, Reference, Source, Store};
use tonic::Status;

use super::fault;
use crate::app::App;
use crate::serve::metrics;

/// The credentials of a request; `None` leaves it to the node's own.
pub fn credentials(auth: Option<v1::AuthConfig>, image: &Reference) -> Result<Option<Credentials>, Status> {
    let Some(auth) = auth else { return Ok(None) };
    // What is meant for another server is not shown to this one.
    if !auth.server_address.is_empty() && host(&auth.server_address) != server(image.registry()) {
        return Ok(None);
    }
    if !auth.username.is_empty() || !auth.password.is_empty() {
        return Ok(Some(Credentials::basic(auth.username, auth.password)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identity_token)));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registry_token)));
    }
    if !auth.auth.is_empty() {
        return Credentials::from_auth(&auth.auth).map(Some).map_err(|why| fault::invalid("auth.auth", why));
    }
    Ok(None)
}

/// The host of a server's address, which may be a URL; the names of Docker Hub are one.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    server(rest.split('/').next().unwrap_or_default())
}

fn server(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// What a pull is known by while it runs: the image and who asks, the latter as a digest.
pub fn key(image: &Reference, credentials: Option<&Credentials>) -> String {
    let secret = match credentials {
        None => String::new(),
        Some(Credentials::Anonymous) => "anonymous".to_owned(),
        Some(Credentials::Basic { username, password }) => format!("basic\0{username}\0{password}"),
        Some(Credentials::IdentityToken(token)) => format!("identity\0{token}"),
        Some(Credentials::RegistryToken(token)) => format!("registry\0{token}"),
    };
    format!("{image} {}", Digest::of(secret.as_bytes()))
}

/// Pulls an image and answers its id. Blocks for as long as that takes.
pub fn pull(app: &App, store: &Store, image: &Reference, credentials: Option<Credentials>) -> Result<String, Status> {
    let registry = app.registry();
    let who = credentials.as_ref().map_or("the node's credentials".to_owned(), Credentials::describe);
    let sources: Vec<Box<dyn Source>> = match credentials {
        Some(own) => vec![Box::new(registry.source(image, own).map_err(fault::image)?)],
        None => {
            let keyring = Keyring::load(&SearchPath::kubelet(None)).map_err(fault::image)?;
            registry.sources(image, &keyring).map_err(fault::image)?
        }
    };
    let log = Log::new(image, app.config.serve.pull_progress_interval);
    tracing::info!(image = %image, credentials = who, "pulling");
    let pulled = store.pull(image, &sources, &app.pull_options(), &log);
    metrics::pulled(pulled.is_ok(), log.bytes());
    match pulled {
        Ok(pulled) => {
            let seconds = log.begun.elapsed().as_secs_f64();
            tracing::info!(image = %image, id = %pulled.id, seconds, fetched = log.bytes(), "pulled");
            Ok(pulled.id.to_string())
        }
        Err(e) => Err(fault::image(e)),
    }
}

/// Tells the log how far a pull has come, now and then.
struct Log {
    image: String,
    interval: Duration,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    told: Instant,
    bytes: u64,
    done: usize,
    /// The sizes of the layers under way.
    fetching: HashMap<String, u64>,
}

impl Log {
    fn new(image: &Reference, interval: Duration) -> Log {
        let now = Instant::now();
        let state = State { told: now, bytes: 0, done: 0, fetching: HashMap::new() };
        Log { image: image.to_string(), interval, begun: now, state: Mutex::new(state) }
    }

    fn bytes(&self) -> u64 {
        self.state().bytes
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Log {
    fn event(&self, event: ProgressEvent<'_>) {
        let mut state = self.state();
        match event {
            ProgressEvent::LayerStart { digest, size } => drop(state.fetching.insert(digest.to_string(), size)),
            ProgressEvent::LayerBytes { bytes, .. } => state.bytes += bytes,
            ProgressEvent::LayerDone { digest } | ProgressEvent::LayerExists { digest } => {
                state.fetching.remove(&digest.to_string());
                state.done += 1;
            }
            ProgressEvent::LayerWait { digest } => {
                tracing::info!(image = self.image, layer = digest.short(), "another pull unpacks this layer, waiting");
            }
            ProgressEvent::Retry { what, why, attempt, delay } => {
                let seconds = delay.as_secs_f64().ceil();
                tracing::warn!(image = self.image, what, why, attempt, seconds, "a request failed and is made again");
            }
            _ => {}
        }
        if state.told.elapsed() < self.interval {
            return;
        }
        state.told = Instant::now();
        let (fetched, done, under_way) = (state.bytes, state.done, state.fetching.len());
        let of: u64 = state.fetching.values().sum();
        tracing::info!(image = self.image, fetched, layers_done = done, layers_under_way = under_way, of, "pulling");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Reference {
        Reference::parse("registry.example:5000/team/app:1").unwrap()
    }

    #[test]
    fn credentials_come_from_whichever_field_has_them() {
        let auth = |auth: v1::AuthConfig| credentials(Some(auth), &image()).unwrap().map(|c| c.describe());
        let empty = v1::AuthConfig::default;
        let table = [
            (empty(), None),
            (v1::AuthConfig { username: "u".into(), password: "p".into(), ..empty() }, Some("user \"u\"")),
            (v1::AuthConfig { auth: "dTpw".into(), ..empty() }, Some("user \"u\"")),
            (v1::AuthConfig { identity_token: "t".into(), ..empty() }, Some("an identity token")),
            (v1::AuthConfig { registry_token: "t".into(), ..empty() }, Some("a registry token")),
        ];
        for (given, wanted) in table {
            assert_eq!(auth(given.clone()).as_deref(), wanted);
            for (address, fits) in [
                ("registry.example:5000", true),
                ("https://registry.example:5000/v2/", true),
                ("https://registry.example", false),
                ("other.example:5000", false),
            ] {
                let given = v1::AuthConfig { server_address: address.into(), ..given.clone() };
                assert_eq!(auth(given).as_deref(), wanted.filter(|_| fits), "{address}");
            }
        }
        let hub = v1::AuthConfig {
            username: "u".into(),
            server_address: "https://index.docker.io/v1/".into(),
            ..Default::default()
        };
        assert!(credentials(Some(hub), &Reference::parse("busybox").unwrap()).unwrap().is_some());
    }

    #[test]
    fn a_damaged_auth_is_refused_without_telling_it() {
        let auth = v1::AuthConfig { auth: "c2VjcmV0".into(), ..Default::default() };
        let error = credentials(Some(auth), &image()).unwrap_err();
        assert!(error.message().starts_with("auth.auth: "), "{}", error.message());
        assert!(!error.message().contains("secret") && !error.message().contains("c2VjcmV0"));
    }

    #[test]
    fn only_who_shows_the_same_shares_the_work_and_the_key_tells_no_secret() {
        let basic = |password: &str| Credentials::basic("u", password);
        let keys = [
            key(&image(), None),
            key(&image(), Some(&Credentials::Anonymous)),
            key(&image(), Some(&basic("hunter2"))),
            key(&image(), Some(&basic("other"))),
            key(&image(), Some(&Credentials::IdentityToken("hunter2".into()))),
        ];
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(keys[2], key(&image(), Some(&basic("hunter2"))));
        assert!(keys.iter().all(|key| !key.contains("hunter2")));
    }
}
