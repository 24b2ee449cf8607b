//! Images: got by the policy of each container, with kubelet's errors, events and delays.
//!
//! | policy | `run`, `apply`: before anything of the pod exists | at each later start of a container |
//! |---|---|---|
//! | Always | the registry is asked | the registry is asked, and must answer: ErrImagePull |
//! | IfNotPresent | what the store lacks is pulled | the same |
//! | Never | must be in the store: ErrImageNeverPull | the same |
//!
//! Who runs a pod is told at once what is wrong with an image, and nothing of the pod is left. Later, at a restart, the
//! container waits and its pull is tried again: 10 s after the first failure, then twice as long each time, up to 5
//! minutes; in between its reason is ImagePullBackOff.
//!
//! Credentials: those of the pod's imagePullSecrets first, of its ServiceAccount's where it names none (as the API
//! server fills them in), then the machine's own.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coracle_engine::Engine;
use coracle_rootfs::auth::{PullSecret, SearchPath};
use coracle_rootfs::{Image, Keyring, Reference, Store};
use serde::{Deserialize, Serialize};

use super::events::{On, Recorder};
use super::making::Blocked;
use crate::app::App;
use crate::exit::{self, Coded};
use crate::kube::config::{Secret, ServiceAccount};
use crate::kube::container::{Container, PullPolicy};
use crate::kube::pod::Pod;
use crate::kube::volume::{Source, Volume};
use crate::objects::Objects;
use crate::pull;
use crate::time::{self, SECOND};

/// The delay after the first failed pull.
const FIRST_DELAY: i64 = 10 * SECOND;
/// The longest delay.
const MAX_DELAY: i64 = 300 * SECOND;
/// Delays begin anew after this long without a failure.
const FORGET_AFTER: i64 = 2 * MAX_DELAY;
/// How long a failure is shown as itself, before the waiting for the next attempt is.
const SHOWN: i64 = 2 * SECOND;
/// The ServiceAccount of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// Failed pulls of one container, by image.
pub type Pulls = BTreeMap<String, Pull>;

/// What is remembered of a failed pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pull {
    /// Nanoseconds before the next attempt.
    delay: i64,
    /// When it failed last.
    failed_at: i64,
    /// What was wrong.
    error: String,
}

impl Pull {
    /// When the next attempt may be made, if that is not yet.
    fn waits_until(&self, now: i64) -> Option<i64> {
        Some(self.failed_at.saturating_add(self.delay)).filter(|due| self.delay > 0 && *due > now)
    }

    fn failed(&mut self, error: &str, now: i64) {
        self.delay = match self.delay == 0 || now - self.failed_at > FORGET_AFTER {
            true => FIRST_DELAY,
            false => (self.delay * 2).min(MAX_DELAY),
        };
        (self.failed_at, self.error) = (now, error.to_owned());
    }
}

/// An image that a container needs.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'w> {
    /// Its name as the file has it.
    pub image: &'w str,
    /// When to pull it.
    pub policy: PullPolicy,
    /// The container.
    pub container: &'w str,
}

/// Has every image of a pod in the store, or tells what is wrong with the first that cannot be had; the answer is the ids
/// by container. Those of volumes are only brought here: whoever starts a container finds them by name.
pub fn ensure(app: &App, store: &Store, pod: &Pod, recorder: &Recorder) -> Result<BTreeMap<String, String>> {
    let (keyring, missing) = keyring(&Objects::open(&app.paths), pod)?;
    if !missing.is_empty() {
        recorder.warning(On::Pod, "FailedToRetrieveImagePullSecret", unable(&missing));
    }
    let mut images = BTreeMap::new();
    // One image of several containers is pulled once.
    let mut known: HashMap<String, String> = HashMap::new();
    let mut get = |wanted: Wanted<'_>| -> Result<String> {
        if let Some(id) = known.get(wanted.image) {
            return Ok(id.clone());
        }
        let on = On::container(pod, wanted.container);
        let got = one(app, store, &keyring, wanted, recorder, on);
        let got = got.map_err(|error| hint_missing(error, &missing).context(format!("container {}", wanted.container)));
        let id = got?.id.to_string();
        known.insert(wanted.image.to_owned(), id.clone());
        Ok(id)
    };
    for container in pod.all_containers() {
        for wanted in of_volumes(pod, container) {
            get(wanted.1)?;
        }
        let wanted = Wanted { image: &container.image, policy: container.pull, container: &container.name };
        images.insert(container.name.clone(), get(wanted)?);
    }
    Ok(images)
}

/// The images that a container mounts, by volume.
pub fn of_volumes<'p>(pod: &'p Pod, container: &'p Container) -> Vec<(&'p str, Wanted<'p>)> {
    let mounted = |volume: &&Volume| container.mounts.iter().any(|mount| mount.volume == volume.name);
    let wanted = |volume: &'p Volume| match &volume.source {
        Source::Image { reference, pull } => {
            Some((volume.name.as_str(), Wanted { image: reference, policy: *pull, container: &container.name }))
        }
        _ => None,
    };
    pod.volumes.iter().filter(mounted).filter_map(wanted).collect()
}

/// One image, while a person waits for it.
fn one(
    app: &App,
    store: &Store,
    keyring: &Keyring,
    wanted: Wanted<'_>,
    recorder: &Recorder,
    on: On<'_>,
) -> Result<Image> {
    let name = wanted.image;
    let reference = Reference::parse(name).map_err(|error| anyhow::Error::from(error).context("InvalidImageName"))?;
    match (wanted.policy, store.image(name)?) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
            recorder.normal(on, "Pulled", present(name));
            Ok(image)
        }
        (PullPolicy::Never, None) => {
            let text = format!(
                "ErrImageNeverPull: image {name} is not in the store and imagePullPolicy is Never \
                 (`coracle pull {name}` or `coracle load` brings it)"
            );
            recorder.warning(on, "ErrImageNeverPull", absent(name));
            recorder.warning(on, "Failed", "Error: ErrImageNeverPull");
            Err(Coded::error(exit::IMAGE, text))
        }
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => {
            recorder.normal(on, "Pulling", format!("Pulling image {name:?}"));
            let start = Instant::now();
            let pulled = pull::with(app, store, &reference, keyring, true);
            match &pulled {
                Ok(image) => recorder.normal(on, "Pulled", success(name, image, start.elapsed())),
                Err(error) => {
                    recorder.warning(on, "Failed", format!("Failed to pull image {name:?}: {error:#}"));
                    recorder.warning(on, "Failed", "Error: ErrImagePull");
                }
            }
            pulled.map_err(|error| error.context("ErrImagePull"))
        }
    }
}

/// A secret that is not there is the likely cause of a refusal.
fn hint_missing(error: anyhow::Error, missing: &[String]) -> anyhow::Error {
    match missing.is_empty() {
        true => error,
        false => error.context(unable(missing)),
    }
}

fn unable(missing: &[String]) -> String {
    format!(
        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
        missing.join(", ")
    )
}

fn absent(image: &str) -> String {
    format!("Container image {image:?} is not present with pull policy of Never")
}

fn present(image: &str) -> String {
    format!("Container image {image:?} already present on machine")
}

fn success(image: &str, pulled: &Image, took: Duration) -> String {
    let took = go_duration(took);
    let size = pulled.size;
    format!("Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes.")
}

/// Milliseconds as Go writes a duration: `12ms`, `1.234s`, `2m3.5s`.
fn go_duration(took: Duration) -> String {
    let millis = took.as_millis();
    let seconds = |millis: u128| {
        let text = format!("{}.{:03}", millis / 1000, millis % 1000);
        format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => seconds(millis),
        _ => format!("{}m{}", millis / 60_000, seconds(millis % 60_000)),
    }
}

/// An image for a container that starts while nobody waits for it.
pub async fn at_start(
    app: &App,
    engine: &Engine,
    objects: &Objects,
    pod: &Pod,
    recorder: &Recorder,
    wanted: Wanted<'_>,
    pulls: &mut Pulls,
) -> Result<String> {
    let (name, on) = (wanted.image, On::container(pod, wanted.container));
    let blocked = |reason: &'static str, message: String| {
        recorder.warning(on, "Failed", format!("Error: {reason}"));
        Blocked::new(reason, message)
    };
    let reference = match Reference::parse(name) {
        Ok(reference) => reference,
        Err(error) => {
            let message =
                format!("Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {error}");
            recorder.warning(on, "InspectFailed", &message);
            return Err(Blocked::lasting("InvalidImageName", message).into());
        }
    };
    match (wanted.policy, engine.store().image(name)?) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
            recorder.normal(on, "Pulled", present(name));
            return Ok(image.id.to_string());
        }
        (PullPolicy::Never, None) => {
            let message = absent(name);
            recorder.warning(on, "ErrImageNeverPull", &message);
            return Err(blocked("ErrImageNeverPull", message).into());
        }
        _ => {}
    }
    let now = time::now();
    if let Some((due, error)) = pulls.get(name).and_then(|pull| Some((pull.waits_until(now)?, &pull.error))) {
        let text = format!("Back-off pulling image {name:?}");
        recorder.normal(on, "BackOff", &text);
        let message = format!("{text}: ErrImagePull: {error}");
        return Err(Blocked { retry_at: due, ..blocked("ImagePullBackOff", message) }.into());
    }
    recorder.normal(on, "Pulling", format!("Pulling image {name:?}"));
    let start = Instant::now();
    match pull_apart(app, engine, objects, pod, recorder, reference).await {
        Ok(image) => {
            recorder.normal(on, "Pulled", success(name, &image, start.elapsed()));
            Ok(image.id.to_string())
        }
        Err(error) => {
            let (error, now) = (format!("{error:#}"), time::now());
            recorder.warning(on, "Failed", format!("Failed to pull image {name:?}: {error}"));
            pulls.entry(name.to_owned()).or_default().failed(&error, now);
            let retry_at = now.saturating_add(SHOWN);
            Err(Blocked { retry_at, ..blocked("ErrImagePull", error) }.into())
        }
    }
}

/// Pulls in a thread of its own: the pod's probes and exits go on meanwhile.
async fn pull_apart(
    app: &App,
    engine: &Engine,
    objects: &Objects,
    pod: &Pod,
    recorder: &Recorder,
    reference: Reference,
) -> Result<Image> {
    let (keyring, missing) = keyring(objects, pod)?;
    if !missing.is_empty() {
        recorder.warning(On::Pod, "FailedToRetrieveImagePullSecret", unable(&missing));
    }
    let (app, store) = (app.clone(), engine.store().clone());
    let pulled = tokio::task::spawn_blocking(move || pull::with(&app, &store, &reference, &keyring, false));
    pulled.await.context("pull the image")?
}

/// The credentials for a pod's images, and the secrets that are not there.
pub fn keyring(objects: &Objects, pod: &Pod) -> Result<(Keyring, Vec<String>)> {
    let mut names = pod.pull_secrets.clone();
    if names.is_empty() {
        let account = pod.service_account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
        let account: Option<ServiceAccount> = objects.get(&pod.namespace, account)?;
        names = account.map(|account| account.pull_secrets).unwrap_or_default();
    }
    let (mut secrets, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match objects.get::<Secret>(&pod.namespace, &name)? {
            Some(secret) => secrets.push((format!("{}/{name}", pod.namespace), secret)),
            None => missing.push(name),
        }
    }
    let of_secret = |(name, secret): &'_ (String, Secret)| -> Option<(String, Vec<u8>, bool)> {
        let (key, older) = match secret.kind.as_str() {
            "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", false),
            "kubernetes.io/dockercfg" => (".dockercfg", true),
            // As kubelet: a secret of another type holds no credentials.
            _ => return None,
        };
        Some((name.clone(), secret.data.get(key)?.clone(), older))
    };
    let files: Vec<(String, Vec<u8>, bool)> = secrets.iter().filter_map(of_secret).collect();
    let files = files.iter().map(|(name, bytes, older)| {
        let secret = if *older { PullSecret::Dockercfg(bytes) } else { PullSecret::ConfigJson(bytes) };
        (name.as_str(), secret)
    });
    let own = Keyring::load(&SearchPath::kubelet(None))?;
    Ok((Keyring::from_secrets(files)?.then(own), missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_10_seconds_to_5_minutes() {
        let mut pull = Pull::default();
        assert_eq!(pull.waits_until(0), None);
        let mut now = 1000 * SECOND;
        for delay in [10, 20, 40, 80, 160, 300, 300] {
            pull.failed("no", now);
            assert_eq!(pull.waits_until(now), Some(now + delay * SECOND));
            now += delay * SECOND;
            assert_eq!(pull.waits_until(now), None);
        }
        pull.failed("no", now + FORGET_AFTER + 1);
        assert_eq!(pull.waits_until(now + FORGET_AFTER + 1), Some(now + FORGET_AFTER + 1 + FIRST_DELAY));
    }

    #[test]
    fn durations_are_gos() {
        for (millis, text) in
            [(0, "0ms"), (12, "12ms"), (1234, "1.234s"), (1500, "1.5s"), (2000, "2s"), (123_500, "2m3.5s")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
