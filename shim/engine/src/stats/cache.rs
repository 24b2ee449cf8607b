//! What is remembered between two questions: CPU samples, and what writable layers took.
//!
//! A rate needs an earlier sample. The last one is kept for each cgroup, and the rate that it gave; asked again within
//! [`MIN_WINDOW`] that rate is told again, so that several clients do not spoil each other's windows.
//!
//! A writable layer must be walked to be known. It is walked on a thread that may block, at most every [`WALK_EVERY`] and
//! at most a [`WALK_SHARE`]th of the time, [`WALKERS`] at once for all pods. Who asks, for one or for all, waits for it, but
//! not longer than [`WALK_PATIENCE`]: then the older number is told with its own time, and the walk goes on for the next.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_rootfs::usage::{self, Census, Usage};
use tokio::sync::Semaphore;

use super::DiskUsage;
use crate::record::now;

/// A rate is taken over this at least.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// A sample older than this says nothing of the present.
const MAX_WINDOW: Duration = Duration::from_secs(600);
/// Samples and layers kept: far more than a node's pods. What was not asked for longest goes first.
const MAX_ENTRIES: usize = 4096;
/// A layer is walked again after this at the earliest.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// After a walk, the layer has rest for so many times as long as it took.
const WALK_SHARE: u32 = 20;
/// Layers walked at once.
const WALKERS: usize = 2;
/// How long a question waits for a walk.
const WALK_PATIENCE: Duration = Duration::from_secs(1);

struct Sample {
    at: Instant,
    usage: u64,
    rate: Option<u64>,
}

#[derive(Default)]
struct Layer {
    asked: Option<Instant>,
    known: Option<DiskUsage>,
    /// No walk before this.
    rest: Option<Instant>,
    walking: bool,
}

/// See the [module](self).
pub(crate) struct Cache {
    samples: Mutex<HashMap<String, Sample>>,
    layers: Mutex<HashMap<String, Layer>>,
    walkers: Semaphore,
    /// The image store's.
    pub(super) census: Mutex<(Census, Option<(Instant, DiskUsage)>)>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            samples: Mutex::default(),
            layers: Mutex::default(),
            walkers: Semaphore::new(WALKERS),
            census: Mutex::default(),
        }
    }
}

/// Every entry is whole at every moment: a panic elsewhere spoils nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes room for one more.
fn make_room<T>(map: &mut HashMap<String, T>, last: impl Fn(&T) -> Option<Instant>) {
    if map.len() < MAX_ENTRIES {
        return;
    }
    let mut ages: Vec<_> = map.values().map(&last).collect();
    ages.sort_unstable();
    // The older half at once, so that a full table is not sorted for every newcomer.
    let middle = ages[ages.len() / 2];
    map.retain(|_, entry| last(entry) > middle);
}

impl Cache {
    /// The rate in billionths of a CPU since the sample before, which this one replaces.
    pub(super) fn rate(&self, group: &str, usage: u64, at: Instant) -> Option<u64> {
        let mut samples = lock(&self.samples);
        let Some(last) = samples.get_mut(group) else {
            make_room(&mut samples, |sample| Some(sample.at));
            samples.insert(group.to_owned(), Sample { at, usage, rate: None });
            return None;
        };
        let window = at.saturating_duration_since(last.at);
        if window < MIN_WINDOW {
            return last.rate;
        }
        // Backwards: another cgroup of that name.
        let used = usage.checked_sub(last.usage).filter(|_| window <= MAX_WINDOW);
        let rate = used.map(|used| {
            let rate = u128::from(used) * 1_000_000_000 / window.as_nanos().max(1);
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
        *last = Sample { at, usage, rate };
        rate
    }

    /// What these layers were last found to take, at most so old as the head says; by id and place.
    pub(super) async fn layers(self: &Arc<Self>, wanted: Vec<(&str, PathBuf)>) -> Vec<Option<DiskUsage>> {
        let mut walks = Vec::new();
        let ids: Vec<&str> = wanted.iter().map(|(id, _)| *id).collect();
        for (id, upper) in wanted {
            if self.begin(id) {
                let (this, name) = (self.clone(), id.to_owned());
                walks.push(tokio::spawn(async move { this.walk(&name, upper).await }));
            }
        }
        let all = async {
            for walk in walks {
                // One that panicked has told so.
                let _ = walk.await;
            }
        };
        // Too late or not: the walks go on, and what is known is told.
        let _ = tokio::time::timeout(WALK_PATIENCE, all).await;
        let layers = lock(&self.layers);
        ids.iter().map(|id| layers.get(*id).and_then(|layer| layer.known)).collect()
    }

    /// Whether a layer is to be walked now; then nobody else walks it.
    fn begin(&self, id: &str) -> bool {
        let mut layers = lock(&self.layers);
        make_room(&mut layers, |layer| layer.asked);
        let layer = layers.entry(id.to_owned()).or_default();
        layer.asked = Some(Instant::now());
        let begin = !layer.walking && layer.rest.is_none_or(|rest| rest <= Instant::now());
        layer.walking |= begin;
        begin
    }

    async fn walk(&self, id: &str, upper: PathBuf) {
        let _turn = self.walkers.acquire().await;
        let begun = Instant::now();
        let found = tokio::task::spawn_blocking(move || usage::tree(&upper)).await;
        let found: Option<Usage> = found.ok().and_then(Result::ok);
        if let Some(layer) = lock(&self.layers).get_mut(id) {
            layer.walking = false;
            layer.rest = Some(Instant::now() + WALK_EVERY.max(begun.elapsed() * WALK_SHARE));
            // A walk that failed (the layer is gone, or too deep) leaves nothing to tell.
            layer.known = found.map(|usage| DiskUsage { timestamp: now(), usage });
        }
    }

    /// The layers that are known, of these containers.
    pub(super) fn forget_layers_but(&self, alive: impl Fn(&str) -> bool) {
        lock(&self.layers).retain(|id, layer| layer.walking || alive(id));
    }

    /// What the image store takes, counted again if that was longer ago than a layer's rest.
    pub(super) fn images(&self, store: &coracle_rootfs::Store) -> crate::Result<DiskUsage> {
        let mut census = lock(&self.census);
        if let Some((at, known)) = census.1
            && at.elapsed() < WALK_EVERY
        {
            return Ok(known);
        }
        let usage = store.usage(&mut census.0)?;
        let known = DiskUsage { timestamp: now(), usage };
        census.1 = Some((Instant::now(), known));
        Ok(known)
    }
}

/// The writable part of a container's data folder.
pub(super) fn upper(data: &Path) -> PathBuf {
    data.join("upper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_and_a_window() {
        let cache = Cache::default();
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(cache.rate("g", 1_000_000_000, start), None);
        assert_eq!(cache.rate("g", 1_100_000_000, after(200)), None, "too early");
        assert_eq!(cache.rate("g", 2_000_000_000, after(2000)), Some(500_000_000), "half a CPU since the first");
        assert_eq!(cache.rate("g", 2_900_000_000, after(2100)), Some(500_000_000), "told again");
        assert_eq!(cache.rate("g", 5, after(4000)), None, "another cgroup of that name");
        assert_eq!(cache.rate("g", 5, after(6000)), Some(0));
        assert_eq!(cache.rate("g", 1_000_000_005, after(2_000_000)), None, "too long ago");
    }

    #[test]
    fn the_table_of_samples_is_bounded() {
        let cache = Cache::default();
        let start = Instant::now();
        for n in 0..3 * MAX_ENTRIES {
            cache.rate(&n.to_string(), 0, start + Duration::from_millis(n as u64));
        }
        let samples = lock(&cache.samples);
        assert!(samples.len() <= MAX_ENTRIES && samples.contains_key(&(3 * MAX_ENTRIES - 1).to_string()));
    }

    #[tokio::test]
    async fn a_layer_is_walked_once_in_a_while_and_told_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::default());
        let ask = async |id: &str, path: PathBuf| cache.layers(vec![(id, path)]).await[0];
        let first = ask("c", dir.path().to_owned()).await.unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 10_000]).unwrap();
        assert_eq!(ask("c", dir.path().to_owned()).await, Some(first), "still at rest");
        lock(&cache.layers).get_mut("c").unwrap().rest = None;
        let second = ask("c", dir.path().to_owned()).await.unwrap();
        assert_eq!(second.usage.inodes, first.usage.inodes + 1);
        assert!(second.timestamp > first.timestamp);
        assert_eq!(ask("gone", dir.path().join("none")).await, None);
        cache.forget_layers_but(|id| id == "c");
        assert_eq!(lock(&cache.layers).len(), 1);
    }
}
