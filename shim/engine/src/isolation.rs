//! What a container's isolation takes from elsewhere: image volumes from the store, its writable layer's owner from the
//! pod's user namespace, a PID namespace from another container, the least OOM score from the kernel.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_rootfs::{Image, MountSpec, Store};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id;
use crate::record::ContainerRecord;
use crate::spec::{self, userns};
use crate::status::ContainerState;
use crate::types::{ContainerConfig, PidNamespace, UserNamespace};

/// The bit of CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;
/// The OOM score of this process, which is that of its children.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// The lease of a container on the image of its volume with this number.
fn lease(container: &str, volume: usize) -> String {
    format!("{container}.{volume}")
}

/// An image as a disk for a virtual machine.
pub(crate) fn erofs(store: &Store, image: &Image) -> Result<MountSpec> {
    let source = store.erofs(image)?.to_string_lossy().into_owned();
    Ok(MountSpec { fstype: spec::guest::EROFS.to_owned(), source, options: vec!["ro".to_owned()] })
}

/// Takes a lease on each image that is a volume. Returns their layers, the topmost first, by the volumes' names of them;
/// for a virtual machine the one file that each is there.
pub(crate) fn image_volumes(
    store: &Store,
    record: &ContainerRecord,
    guest: bool,
) -> Result<BTreeMap<String, Vec<String>>> {
    let mut images = BTreeMap::new();
    let volumes = record.config.mounts.iter().enumerate();
    for (number, name) in volumes.filter_map(|(number, mount)| Some((number, mount.image.as_ref()?))) {
        let image = store.image(name)?.ok_or_else(|| Error::NotFound {
            kind: "image",
            name: format!("{name}, which is a volume of container {}", record.config.name),
            hint: Some("coracle pull it, or coracle load an archive"),
        })?;
        store.lease(&lease(&record.id, number), &image)?;
        let layers = match guest {
            true => vec![erofs(store, &image)?.source],
            false => store.lower_directories(&image)?,
        };
        images.insert(name.clone(), layers);
    }
    Ok(images)
}

/// Drops a container's leases on the images of its volumes.
pub(crate) fn drop_volume_leases(store: &Store, record: &ContainerRecord) -> Result<()> {
    let images = record.config.mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some());
    images.map(|(number, _)| lease(&record.id, number)).try_for_each(|lease| Ok(store.drop_lease(&lease)?))
}

/// Makes a root filesystem the pod's user namespace's: its layers are shown mapped, and what is written is its users'.
pub(crate) fn map_rootfs(namespace: &UserNamespace, data: &Path, mounts: &mut [MountSpec]) -> Result<()> {
    for folder in ["upper", "work"] {
        userns::own(&data.join(folder), namespace)?;
    }
    for mount in mounts.iter_mut().filter(|mount| mount.fstype == "overlay") {
        mount.options.extend(userns::mount_options(namespace));
    }
    Ok(())
}

/// The init of the container whose PID namespace this one is to join.
pub(crate) fn target(engine: &Engine, record: &ContainerRecord) -> Result<Option<i32>> {
    let PidNamespace::Target(wanted) = &record.config.pid else { return Ok(None) };
    let bad = |why: &str| Err(Error::invalid("pid target", format!("container {} {why}", id::short(wanted))));
    let status = match engine.container_status(wanted) {
        Err(e) if e.is_not_found() => return bad("does not exist"),
        status => status?,
    };
    // The record's: in a virtual machine a status has none.
    match engine.container_record(&status.sandbox_id, &status.id)?.pid {
        _ if status.sandbox_id != record.sandbox_id => bad("is in another pod"),
        Some(pid) if status.state == ContainerState::Running => Ok(Some(pid)),
        _ => bad(&format!("is {}: only a running one has a PID namespace to join", status.state.as_str())),
    }
}

/// The least OOM score that this process may give to another: none, or its own where it may lower none.
fn least_oom_score() -> Option<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap_or_default().trim(), 16).unwrap_or(0);
    if effective & 1 << SYS_RESOURCE != 0 {
        return None;
    }
    std::fs::read_to_string(OOM_SCORE).ok()?.trim().parse().ok()
}

/// Checks a container's OOM score and, where the settings say so, raises it to what is allowed; status tells the result.
pub(crate) fn restrict_oom_score(restrict: bool, config: &mut ContainerConfig) -> Result<()> {
    let least = config.resources.oom_score_adj.filter(|_| restrict).and_then(|_| least_oom_score());
    config.resources.oom_score_adj = spec::oom_score(config, least)?;
    Ok(())
}

/// Adds what a person can do about an OOM score that the kernel refused.
pub(crate) fn explain(error: Error) -> Error {
    match error {
        Error::Rpc { operation, code, message } if message.contains("process.oomScoreAdj") => {
            let hint = "restrict_oom_score_adj in the configuration raises such scores to what is allowed";
            Error::Rpc { operation, code, message: format!("{message} ({hint})") }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_oom_score_tells_the_setting_and_other_errors_stay() {
        let rpc = |message: &str| Error::Rpc { operation: "create".into(), code: 2, message: message.into() };
        let said = explain(rpc("set process.oomScoreAdj to -5: EACCES")).to_string();
        assert!(said.contains("restrict_oom_score_adj"), "{said}");
        assert_eq!(explain(rpc("mount: EPERM")).to_string(), rpc("mount: EPERM").to_string());
    }

    #[test]
    fn a_score_is_raised_only_by_the_setting() {
        let mut config = ContainerConfig::default();
        config.resources.oom_score_adj = Some(-1000);
        restrict_oom_score(false, &mut config).unwrap();
        assert_eq!(config.resources.oom_score_adj, Some(-1000));
        restrict_oom_score(true, &mut config).unwrap();
        assert_eq!(config.resources.oom_score_adj, Some(least_oom_score().unwrap_or(-1000)));
    }
}
