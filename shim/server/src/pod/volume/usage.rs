//! emptyDirs on disk that hold more than their sizeLimit: the pod is evicted, as kubelet's eviction manager does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::kube::pod::Pod;
use crate::kube::volume::Source;

/// Folders in folders; the kernel's own limit of a path is lower.
const MAX_DEPTH: usize = 2048;

/// The message of the eviction that a pod's emptyDirs ask for; they lie in `dir`.
pub fn over_limit(pod: &Pod, dir: &Path) -> Option<String> {
    pod.volumes.iter().find_map(|volume| {
        let Source::EmptyDir { memory: false, size_limit: Some(limit) } = &volume.source else { return None };
        let path = dir.join(&volume.name);
        let used = fs::symlink_metadata(&path).map_or(0, |meta| used(&path, meta.dev(), 0));
        let over = used > limit.value().unsigned_abs();
        over.then(|| format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.exact()))
    })
}

/// Whether a pod has emptyDirs to watch.
pub fn is_limited(pod: &Pod) -> bool {
    let limited = |source: &Source| matches!(source, Source::EmptyDir { memory: false, size_limit: Some(_) });
    pod.volumes.iter().any(|volume| limited(&volume.source))
}

/// The bytes on disk beneath a folder, what is mounted in it apart. What vanishes meanwhile is nothing. A file of several
/// names counts for each: kubelet asks `du`, which counts it once; only a limit that is nearly reached shows the
/// difference, and to be counted twice the pod has to do it itself.
fn used(path: &Path, device: u64, depth: usize) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if meta.dev() != device {
        return 0;
    }
    let own = meta.blocks().saturating_mul(512);
    if !meta.is_dir() || depth > MAX_DEPTH {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| used(&entry.path(), device, depth + 1)).fold(own, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_over_its_limit_is_named() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: b}], volumes: \
                    [{name: free, emptyDir: {}}, {name: small, emptyDir: {sizeLimit: 64Ki}}]}\n";
        let pod = crate::kube::pod::read("web.yaml", text).unwrap().remove(0);
        assert!(is_limited(&pod));
        let dir = tempfile::tempdir().unwrap();
        for name in ["free", "small/deep"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("free/x"), vec![1; 1 << 20]).unwrap();
        assert_eq!(over_limit(&pod, dir.path()), None);
        fs::write(dir.path().join("small/deep/x"), vec![1; 128 << 10]).unwrap();
        let told = over_limit(&pod, dir.path()).unwrap();
        assert_eq!(told, "Usage of EmptyDir volume \"small\" exceeds the limit \"65536\". ");
    }
}
