//! The CRI's words into the engine's and back. Here requests are validated: whatever cannot be meant is refused by the name
//! of its field, so that the engine only meets what makes sense. What the words do is the engine's business.
//!
//! | file | what |
//! |---|---|
//! | `sandbox` | a pod sandbox's configuration, its status |
//! | `container` | a container's configuration, its status |
//! | `security` | who a process is and what it may do |
//! | `mounts` | volumes and devices |
//! | `resources` | limits |
//! | `signal` | stop signals |

pub mod container;
mod mounts;
pub mod resources;
pub mod sandbox;
mod security;
pub mod signal;
#[cfg(test)]
mod tests;

use coracle_engine::{IdMapping, NamespaceMode, SelinuxOptions};
use coracle_proto::cri as v1;
use tonic::Status;

use super::fault::invalid;

/// The longest name, namespace or uid: no object of Kubernetes has a longer one.
const MAX_NAME: usize = 253;
/// The longest path the kernel takes.
const MAX_PATH: usize = 4096;

/// A text that names something: not empty, of a sensible length, fit for a file name.
fn name(field: &str, text: &str) -> Result<String, Status> {
    if text.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    optional_name(field, text)
}

/// As [`name`], but it may be empty.
fn optional_name(field: &str, text: &str) -> Result<String, Status> {
    if text.len() > MAX_NAME {
        return Err(invalid(field, format!("has {} bytes, more than {MAX_NAME}", text.len())));
    }
    if text.chars().any(|c| c == '/' || c.is_control()) {
        return Err(invalid(field, format!("{text:?} must have no '/' and no control characters")));
    }
    Ok(text.to_owned())
}

/// A text without the zero that would end it for the kernel.
fn text(field: impl std::fmt::Display, text: &str) -> Result<String, Status> {
    match text.contains('\0') {
        true => Err(invalid(field, "must not have a zero byte")),
        false => Ok(text.to_owned()),
    }
}

/// An absolute path that leads nowhere unexpected.
fn path(field: impl std::fmt::Display, path: &str) -> Result<std::path::PathBuf, Status> {
    if path.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    if !path.starts_with('/') {
        return Err(invalid(field, format!("{path:?} must be absolute")));
    }
    if path.len() > MAX_PATH {
        return Err(invalid(field, format!("has {} bytes, more than {MAX_PATH}", path.len())));
    }
    Ok(text(field, path)?.into())
}

/// A path below another one.
fn relative(field: &str, path: &str) -> Result<std::path::PathBuf, Status> {
    use std::path::Component;
    let inside = |path: &str| {
        std::path::Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    };
    if path.len() > MAX_PATH || !inside(path) {
        return Err(invalid(field, format!("{path:?} must be relative, without \"..\"")));
    }
    Ok(text(field, path)?.into())
}

/// A namespace mode.
fn mode(field: &str, value: i32) -> Result<v1::NamespaceMode, Status> {
    v1::NamespaceMode::try_from(value).map_err(|_| invalid(field, format!("{value} is no namespace mode")))
}

/// A mode of the engine in the CRI's words.
fn mode_of(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod as i32,
        NamespaceMode::Container => v1::NamespaceMode::Container as i32,
        NamespaceMode::Node => v1::NamespaceMode::Node as i32,
    }
}

/// Ranges of ids.
fn mappings(field: &str, list: Vec<v1::IdMapping>) -> Result<Vec<IdMapping>, Status> {
    let mut ranges = Vec::new();
    for (i, range) in list.into_iter().enumerate() {
        let fits = |first: u32| first.checked_add(range.length).is_some();
        if range.length == 0 || !fits(range.host_id) || !fits(range.container_id) {
            let why = format!("a range of {} ids from {} makes no sense", range.length, range.host_id);
            return Err(invalid(format!("{field}[{i}]"), why));
        }
        let v1::IdMapping { host_id, container_id, length } = range;
        ranges.push(IdMapping { container_id, host_id, length });
    }
    Ok(ranges)
}

fn mappings_of(list: &[IdMapping]) -> Vec<v1::IdMapping> {
    let range = |r: &IdMapping| v1::IdMapping { host_id: r.host_id, container_id: r.container_id, length: r.length };
    list.iter().map(range).collect()
}

/// An SELinux label; one of empty parts asks for nothing.
fn selinux(options: Option<v1::SeLinuxOption>) -> Option<SelinuxOptions> {
    let v1::SeLinuxOption { user, role, r#type, level } = options?;
    let label = SelinuxOptions { user, role, kind: r#type, level };
    (label != SelinuxOptions::default()).then_some(label)
}
