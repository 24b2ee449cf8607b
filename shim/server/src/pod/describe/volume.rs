//! Volumes, in kubectl's words.

use super::sheet::Sheet;
use super::{field_path, quantity};
use crate::kube::container::PullPolicy;
use crate::kube::volume::{DownwardItem, DownwardValue, HostPathKind, Projected, Source, Volume};

/// Tells of a volume.
pub fn put(s: &mut Sheet, volume: &Volume) {
    s.part(1, &volume.name);
    match &volume.source {
        Source::EmptyDir { memory, size_limit } => {
            s.put(2, "Type", "EmptyDir (a temporary directory that shares a pod's lifetime)");
            s.put(2, "Medium", if *memory { "Memory" } else { "" });
            s.put(2, "SizeLimit", size_limit.map_or_else(|| "<unset>".into(), quantity));
        }
        Source::HostPath { path, kind } => {
            s.put(2, "Type", "HostPath (bare host directory volume)");
            s.put(2, "Path", path);
            s.put(2, "HostPathType", if *kind == HostPathKind::Any { String::new() } else { format!("{kind:?}") });
        }
        Source::ConfigMap(keys) => {
            s.put(2, "Type", "ConfigMap (a volume populated by a ConfigMap)");
            s.put(2, "Name", &keys.name);
            s.put(2, "Optional", keys.optional.to_string());
        }
        Source::Secret(keys) => {
            s.put(2, "Type", "Secret (a volume populated by a Secret)");
            s.put(2, "SecretName", &keys.name);
            s.put(2, "Optional", keys.optional.to_string());
        }
        Source::DownwardApi { items, .. } => {
            s.put(2, "Type", "DownwardAPI (a volume populated by information about the pod)");
            s.part(2, "Items");
            items.iter().for_each(|item| s.line(3, downward(item)));
        }
        Source::Projected { sources, .. } => {
            s.put(2, "Type", "Projected (a volume that contains injected data from multiple sources)");
            for source in sources {
                match source {
                    Projected::ConfigMap(keys) => s.put(2, "ConfigMapName", &keys.name),
                    Projected::Secret(keys) => s.put(2, "SecretName", &keys.name),
                    Projected::DownwardApi(items) => {
                        s.put(2, "DownwardAPI", "true");
                        items.iter().for_each(|item| s.line(3, downward(item)));
                    }
                }
            }
        }
        Source::Image { reference, pull } => {
            s.put(2, "Type", "Image (a container image or OCI artifact)");
            s.put(2, "Reference", reference);
            s.put(2, "PullPolicy", pull_policy(*pull));
        }
        Source::Claim { name, read_only } => {
            s.put(2, "Type", "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)");
            s.put(2, "ClaimName", name);
            s.put(2, "ReadOnly", read_only.to_string());
        }
    }
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn downward(item: &DownwardItem) -> String {
    let from = match &item.value {
        DownwardValue::Field(path) => field_path(path),
        DownwardValue::Resource(field) => field.resource.clone(),
    };
    format!("{from} -> {}", item.path)
}
