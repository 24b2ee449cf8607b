//! The volumes of a pod: made before its containers, mounted by name, kept up to date.
//!
//! | volume | what it is here | who may write |
//! |---|---|---|
//! | emptyDir | a folder on disk; with `medium: Memory` a tmpfs, its size the limit or the pod's memory limit ([`memory_size`]) | containers |
//! | hostPath | what is there, checked or made by its type ([`host`]) | containers |
//! | configMap, secret, downwardAPI, projected | files in the state folder, which is a tmpfs ([`payload`], [`atomic`]) | nobody |
//! | image | an overlay of the image's layers | nobody |
//! | persistentVolumeClaim | a directory that outlives pods ([`claim`]) | containers |
//!
//! Files of ConfigMaps and Secrets follow their objects while the pod runs ([`Keeper`]): all of a volume at once. What is
//! mounted by `subPath` stays as it was, as in Kubernetes: it is the file of that moment. A `subPath` is opened beneath
//! its volume by the runtime, whatever the pod's other containers do there meanwhile ([`beneath`]).
//!
//! `fsGroup` owns what containers share and what they read of objects ([`owner`]); a hostPath is never given away.
//! An emptyDir on disk that outgrows its sizeLimit has its pod evicted ([`usage`]).

mod atomic;
mod beneath;
pub mod claim;
mod host;
mod keeper;
mod owner;
mod payload;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use coracle_engine::{Engine, Mount, Propagation, UserNamespace};

use self::owner::{Owner, When};
use super::env::CONFIG_ERROR;
use super::facts::{self, Facts};
use super::making::Blocked;
use crate::kube::container::Container;
use crate::kube::expand::expand;
use crate::kube::mount::{self, RecursiveReadOnly};
use crate::kube::pod::Pod;
use crate::kube::quantity::Quantity;
use crate::kube::volume::{Source, Volume};

pub use self::keeper::{Keeper, needs_tender};
use self::usage::{is_limited, over_limit};

/// A pod's volumes, for a container that is about to be made.
pub struct Volumes<'v> {
    /// Where the pod runs.
    pub engine: &'v Engine,
    /// Its sandbox.
    pub sandbox: &'v str,
    /// What is known of it.
    pub facts: &'v Facts<'v>,
    /// Its user namespace: its volumes show their owners as the pod counts them.
    pub namespace: Option<&'v UserNamespace>,
}

impl Volumes<'_> {
    /// Makes what is not there yet. What is missing is [`Blocked`], in kubelet's words.
    pub fn prepare(&self) -> Result<()> {
        for volume in &self.facts.pod.volumes {
            self.one(volume).map_err(|error| match error.downcast::<Blocked>() {
                Ok(blocked) => {
                    let message =
                        format!("MountVolume.SetUp failed for volume {:?} : {}", volume.name, blocked.message);
                    anyhow!(Blocked { message, ..blocked })
                }
                Err(error) => error.context(format!("volume {}", volume.name)),
            })?;
        }
        Ok(())
    }

    fn one(&self, volume: &Volume) -> Result<()> {
        let Facts { pod, .. } = *self.facts;
        match &volume.source {
            Source::EmptyDir { memory: false, .. } => {
                let path = self.engine.make_volume(self.sandbox, &volume.name)?;
                self.give(volume, &path)
            }
            Source::EmptyDir { memory: true, size_limit } => {
                let bytes = memory_size(pod, *size_limit, facts::memory()?);
                let path = self.engine.make_memory_volume(self.sandbox, &volume.name, bytes)?;
                self.give(volume, &path)
            }
            Source::HostPath { path, kind } => host::prepare(Path::new(path), *kind),
            Source::Claim { name, .. } => {
                let found = self.claim(name)?;
                if found.owned && !found.read_only { self.give(volume, &found.path) } else { Ok(()) }
            }
            Source::Image { .. } => Ok(()),
            Source::ConfigMap(_) | Source::Secret(_) | Source::DownwardApi { .. } | Source::Projected { .. } => {
                self.write(volume).map(drop)
            }
        }
    }

    fn claim(&self, name: &str) -> Result<claim::Directory> {
        claim::directory(self.engine.paths(), self.facts.objects, &self.facts.pod.namespace, name)
    }

    /// Gives a volume that containers write to the pod's fsGroup: once, at the pod's start.
    fn give(&self, volume: &Volume, path: &Path) -> Result<()> {
        let security = &self.facts.pod.security;
        let Some(group) = security.fs_group else { return Ok(()) };
        let done = self.engine.paths().pod(self.sandbox).join(format!("given.{}", volume.name));
        if done.exists() {
            return Ok(());
        }
        let when = if security.fs_group_on_root_mismatch { When::OnRootMismatch } else { When::Always };
        owner::give(path, group, when)
            .and_then(|()| fs::write(&done, b""))
            .with_context(|| format!("give {} to the fsGroup {group}", path.display()))
    }

    /// Writes the files of a volume that has some; whether they changed.
    fn write(&self, volume: &Volume) -> Result<bool> {
        let Some(payload) = payload::payload(&volume.source, self.facts)? else { return Ok(false) };
        let dir = self.engine.make_state_volume(self.sandbox, &volume.name)?;
        atomic::write(&dir, &payload, &Owner { group: self.facts.pod.security.fs_group })
    }

    /// Where a volume is on the host, and whether containers may only read it; None for an image.
    fn place(&self, volume: &Volume) -> Result<Option<(PathBuf, bool)>> {
        let paths = self.engine.paths();
        Ok(Some(match &volume.source {
            Source::EmptyDir { memory: false, .. } => (paths.volumes(self.sandbox).join(&volume.name), false),
            Source::EmptyDir { memory: true, .. } => (paths.memory_volumes(self.sandbox).join(&volume.name), false),
            Source::HostPath { path, .. } => (path.into(), false),
            Source::Claim { name, read_only } => {
                let found = self.claim(name)?;
                (found.path, *read_only || found.read_only)
            }
            Source::Image { .. } => return Ok(None),
            Source::ConfigMap(_) | Source::Secret(_) | Source::DownwardApi { .. } | Source::Projected { .. } => {
                (paths.state_volumes(self.sandbox).join(&volume.name), true)
            }
        }))
    }

    /// The mounts of a container: `env` is for its subPathExprs, `images` are those of its image volumes, and `deep` is
    /// whether its runtime has recursive read-only mounts.
    pub fn mounts(
        &self,
        container: &Container,
        env: &[(String, String)],
        images: &BTreeMap<String, String>,
        deep: bool,
    ) -> Result<Vec<Mount>> {
        container.mounts.iter().map(|mount| self.mount(container, mount, env, images, deep)).collect()
    }

    fn mount(
        &self,
        container: &Container,
        mount: &mount::Mount,
        env: &[(String, String)],
        images: &BTreeMap<String, String>,
        deep: bool,
    ) -> Result<Mount> {
        let volumes = &self.facts.pod.volumes;
        let volume = volumes.iter().find(|volume| volume.name == mount.volume);
        let volume = volume.with_context(|| format!("the pod has no volume {:?}", mount.volume))?;
        let sub = sub_path(mount, env)?;
        let mut out = Mount {
            container_path: mount.path.clone().into(),
            readonly: mount.read_only,
            recursive_read_only: match mount.recursive_read_only {
                RecursiveReadOnly::Disabled => false,
                RecursiveReadOnly::IfPossible => deep,
                RecursiveReadOnly::Enabled => true,
            },
            propagation: match mount.propagation {
                mount::Propagation::None => Propagation::Private,
                mount::Propagation::HostToContainer => Propagation::HostToContainer,
                mount::Propagation::Bidirectional => Propagation::Bidirectional,
            },
            ..Mount::default()
        };
        let Some((path, read_only)) = self.place(volume)? else {
            let image = images.get(&volume.name).with_context(|| format!("volume {}: its image", volume.name))?;
            let Source::Image { reference, .. } = &volume.source else { return Err(anyhow!("not an image")) };
            (out.image, out.image_ref, out.image_sub_path) = (Some(image.clone()), reference.clone(), sub);
            (out.readonly, out.recursive_read_only) = (true, false);
            return Ok(out);
        };
        if !sub.is_empty() && path.is_dir() {
            beneath::make(&path, Path::new(&sub)).map_err(|error| {
                let what = format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}",
                    mount.volume, container.name
                );
                let message = format!("{what}: {sub}: {error}{}", beneath::explain(&error));
                Blocked::new(CONFIG_ERROR, message)
            })?;
        }
        if let Some(namespace) = self.namespace {
            (out.uid_mappings, out.gid_mappings) = (namespace.uids.clone(), namespace.gids.clone());
        }
        (out.host_path, out.sub_path) = (path, sub.into());
        out.readonly |= read_only;
        Ok(out)
    }
}

/// The path of a mount in its volume; empty for the whole volume.
fn sub_path(mount: &mount::Mount, env: &[(String, String)]) -> Result<String> {
    let blocked = |message: String| Blocked::new(CONFIG_ERROR, message);
    let Some(text) = &mount.sub_path_expr else { return Ok(mount.sub_path.clone().unwrap_or_default()) };
    let get = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let missing = std::cell::RefCell::new(Vec::new());
    let path = expand(text, |name| match get(name).filter(|value| !value.is_empty()) {
        Some(value) => Some(value),
        None => {
            missing.borrow_mut().push(name.to_owned());
            Some("")
        }
    });
    let mut missing = missing.into_inner();
    if !missing.is_empty() {
        missing.sort();
        missing.dedup();
        return Err(blocked(format!("missing value for {}", missing.join(", "))).into());
    }
    if path.starts_with('/') {
        return Err(blocked(format!("error SubPath `{path}` must not be an absolute path")).into());
    }
    if path.split('/').any(|part| part == "..") {
        return Err(blocked(format!("unable to provision SubPath `{path}`: must not contain '..'")).into());
    }
    Ok(path)
}

/// The bytes of a volume in memory: its limit, but no more than its pod may have of memory, nor than there is.
fn memory_size(pod: &Pod, limit: Option<Quantity>, all: u64) -> u64 {
    let bytes = |quantity: &Quantity| quantity.value().unsigned_abs();
    let of = |container: &Container| container.resources.limits.get("memory").map(bytes);
    // A pod with one container without a limit may have all.
    let of_containers: Option<u64> = pod.containers.iter().map(of).sum();
    let of_pod = pod.resources.as_ref().and_then(|resources| resources.limits.get("memory").map(bytes));
    [limit.as_ref().map(bytes), of_pod.or(of_containers)]
        .into_iter()
        .flatten()
        .filter(|bytes| *bytes > 0)
        .fold(all, u64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(expr: &str) -> mount::Mount {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: b, env: [{{name: A, \
             value: x}}], volumeMounts: [{{name: v, mountPath: /v, subPathExpr: {expr:?}}}]}}], volumes: [{{name: v, emptyDir: {{}}}}]}}\n"
        );
        crate::kube::pod::read("web.yaml", &text).unwrap().remove(0).containers.remove(0).mounts.remove(0)
    }

    #[test]
    fn a_sub_path_expr_needs_its_variables_and_stays_beneath() {
        let env = [("A", "a"), ("UP", "../b"), ("ROOT", "/etc"), ("EMPTY", "")];
        let env: Vec<(String, String)> = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        assert_eq!(sub_path(&mount("logs/$(A)"), &env).unwrap(), "logs/a");
        for (expr, message) in [
            ("$(NONE)/$(EMPTY)", "missing value for EMPTY, NONE"),
            ("$(UP)", "unable to provision SubPath `../b`: must not contain '..'"),
            ("$(ROOT)", "error SubPath `/etc` must not be an absolute path"),
        ] {
            let error = sub_path(&mount(expr), &env).unwrap_err();
            assert_eq!(error.downcast_ref::<Blocked>().unwrap().message, message);
        }
    }

    #[test]
    fn a_volume_in_memory_is_no_larger_than_its_pod_may_be() {
        let pod = |resources: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: b{resources}}}]}}\n"
            );
            crate::kube::pod::read("web.yaml", &text).unwrap().remove(0)
        };
        let limit = Quantity::parse("64Mi").ok();
        let limited = ", resources: {limits: {memory: 32Mi}}";
        assert_eq!(memory_size(&pod(""), None, 1 << 30), 1 << 30);
        assert_eq!(memory_size(&pod(""), limit, 1 << 30), 64 << 20);
        assert_eq!(memory_size(&pod(limited), limit, 1 << 30), 32 << 20);
    }
}
