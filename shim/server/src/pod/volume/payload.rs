//! The files of a volume that shows objects or facts of the pod: what is in them, with kubelet's words for what is
//! missing.

use std::collections::BTreeMap;

use anyhow::Result;

use super::atomic::{File, Payload};
use crate::kube::config::{ConfigMap, Secret};
use crate::kube::volume::{DownwardItem, DownwardValue, Keys, Projected, Source};
use crate::pod::facts::Facts;
use crate::pod::making::Blocked;

/// The waiting reason of a container whose volumes are not ready.
pub const WAITING: &str = "ContainerCreating";

/// The files of a volume; None for one that is not made of files.
pub fn payload(source: &Source, facts: &Facts<'_>) -> Result<Option<Payload>> {
    let mut files = Payload::new();
    match source {
        Source::ConfigMap(keys) => config_map(keys, facts, &mut files)?,
        Source::Secret(keys) => secret(keys, facts, &mut files)?,
        Source::DownwardApi { items, default_mode } => downward(items, *default_mode, facts, &mut files)?,
        Source::Projected { sources, default_mode } => {
            for source in sources {
                match source {
                    Projected::ConfigMap(keys) => config_map(keys, facts, &mut files)?,
                    Projected::Secret(keys) => secret(keys, facts, &mut files)?,
                    Projected::DownwardApi(items) => downward(items, *default_mode, facts, &mut files)?,
                }
            }
        }
        Source::EmptyDir { .. } | Source::HostPath { .. } | Source::Image { .. } | Source::Claim { .. } => {
            return Ok(None);
        }
    }
    Ok(Some(files))
}

/// The objects that a volume shows, by kind and name; they may change while it is mounted.
pub fn objects(source: &Source) -> Vec<(&'static str, &str)> {
    match source {
        Source::ConfigMap(keys) => vec![("ConfigMap", keys.name.as_str())],
        Source::Secret(keys) => vec![("Secret", keys.name.as_str())],
        Source::Projected { sources, .. } => sources.iter().filter_map(of_projected).collect(),
        _ => Vec::new(),
    }
}

fn of_projected(source: &Projected) -> Option<(&'static str, &str)> {
    match source {
        Projected::ConfigMap(keys) => Some(("ConfigMap", &keys.name)),
        Projected::Secret(keys) => Some(("Secret", &keys.name)),
        Projected::DownwardApi(_) => None,
    }
}

fn config_map(keys: &Keys, facts: &Facts<'_>, files: &mut Payload) -> Result<()> {
    let found: Option<ConfigMap> = facts.object(&keys.name, keys.optional, WAITING)?;
    let map = found.unwrap_or_default();
    let mut data: BTreeMap<String, Vec<u8>> = map.binary;
    data.extend(map.data.into_iter().map(|(key, text)| (key, text.into_bytes())));
    choose(keys, data, "configmap references non-existent config key", files)
}

fn secret(keys: &Keys, facts: &Facts<'_>, files: &mut Payload) -> Result<()> {
    let found: Option<Secret> = facts.object(&keys.name, keys.optional, WAITING)?;
    choose(keys, found.unwrap_or_default().data, "references non-existent secret key", files)
}

/// All keys, or those that are asked for at the paths that are.
fn choose(keys: &Keys, mut data: BTreeMap<String, Vec<u8>>, absent: &str, files: &mut Payload) -> Result<()> {
    if keys.items.is_empty() {
        files.extend(data.into_iter().map(|(key, bytes)| (key, File { bytes, mode: keys.default_mode })));
        return Ok(());
    }
    let mut taken = BTreeMap::new();
    for item in &keys.items {
        // One key may be asked for twice.
        let bytes = data.remove(&item.key).or_else(|| taken.get(&item.key).cloned());
        match bytes {
            Some(bytes) => {
                taken.insert(&item.key, bytes.clone());
                files.insert(item.path.clone(), File { bytes, mode: item.mode.unwrap_or(keys.default_mode) });
            }
            None if keys.optional => {}
            None => return Err(Blocked::new(WAITING, format!("{absent}: {}", item.key)).into()),
        }
    }
    Ok(())
}

fn downward(items: &[DownwardItem], default_mode: u32, facts: &Facts<'_>, files: &mut Payload) -> Result<()> {
    for item in items {
        let text = match &item.value {
            DownwardValue::Field(path) => facts.field(path)?,
            DownwardValue::Resource(field) => facts.resource(field, None)?,
        };
        let mode = item.mode.unwrap_or(default_mode);
        files.insert(item.path.clone(), File { bytes: text.into_bytes(), mode });
    }
    Ok(())
}
