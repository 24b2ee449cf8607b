//! Volumes and devices.

use std::path::{Component, Path};

use coracle_engine::{Device, Mount, Propagation};
use coracle_proto::cri as v1;
use tonic::Status;

use super::{invalid, mappings, mappings_of, path, relative};

/// More mounts than the kernel lets a mount namespace have by default make no sense.
const MAX_MOUNTS: usize = 10_000;

/// The volumes of a container.
pub fn mounts(list: Vec<v1::Mount>) -> Result<Vec<Mount>, Status> {
    if list.len() > MAX_MOUNTS {
        return Err(invalid("config.mounts", format!("has {} entries, more than {MAX_MOUNTS}", list.len())));
    }
    list.into_iter().enumerate().map(|(i, mount)| one(&format!("config.mounts[{i}]"), mount)).collect()
}

fn one(field: &str, mount: v1::Mount) -> Result<Mount, Status> {
    let at = |name: &str| format!("{field}.{name}");
    let container_path = path(at("container_path"), &mount.container_path)?;
    if container_path == Path::new("/") || container_path.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(at("container_path"), format!("{:?} is no place for a volume", mount.container_path)));
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(invalid(at("propagation"), format!("{} is none", mount.propagation))),
    };
    if mount.recursive_read_only && !mount.readonly {
        return Err(invalid(at("recursive_read_only"), "needs readonly"));
    }
    if mount.recursive_read_only && propagation != Propagation::Private {
        return Err(invalid(at("recursive_read_only"), "needs PROPAGATION_PRIVATE"));
    }
    let mut volume = Mount {
        container_path,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        uid_mappings: mappings(&at("uidMappings"), mount.uid_mappings)?,
        gid_mappings: mappings(&at("gidMappings"), mount.gid_mappings)?,
        ..Default::default()
    };
    if volume.uid_mappings.is_empty() != volume.gid_mappings.is_empty() {
        return Err(invalid(at("uidMappings"), "an idmapped mount needs uidMappings and gidMappings"));
    }
    // An empty message is how some clients say that it is no image.
    match mount.image.filter(|image| *image != v1::ImageSpec::default()) {
        None => {
            if !mount.image_sub_path.is_empty() {
                return Err(invalid(at("image_sub_path"), "is for mounts of an image"));
            }
            volume.host_path = path(at("host_path"), &mount.host_path)?;
            // What a pod's volume plugin did not make is made, as all CRI runtimes do.
            volume.create_source = true;
        }
        Some(image) => {
            if !mount.host_path.is_empty() {
                return Err(invalid(at("host_path"), "must be empty for a mount of an image"));
            }
            if image.image.is_empty() {
                return Err(invalid(at("image.image"), "must not be empty"));
            }
            volume.readonly = true;
            volume.image_ref = image.image.clone();
            volume.image = Some(image.image);
            let inside = relative(&at("image_sub_path"), mount.image_sub_path.trim_start_matches('/'))?;
            volume.image_sub_path = inside.to_string_lossy().into_owned();
        }
    }
    Ok(volume)
}

/// A volume as the CRI shows it.
pub fn shown(mount: &Mount) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    let image = mount.image.as_ref().map(|id| v1::ImageSpec {
        image: if mount.image_ref.is_empty() { id.clone() } else { mount.image_ref.clone() },
        image_ref: id.clone(),
        ..Default::default()
    });
    v1::Mount {
        container_path: mount.container_path.to_string_lossy().into_owned(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation as i32,
        uid_mappings: mappings_of(&mount.uid_mappings),
        gid_mappings: mappings_of(&mount.gid_mappings),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path: mount.image_sub_path.clone(),
    }
}

/// The devices of a container.
pub fn devices(list: Vec<v1::Device>) -> Result<Vec<Device>, Status> {
    let one = |(i, device): (usize, v1::Device)| {
        let at = |name: &str| format!("config.devices[{i}].{name}");
        let host_path = path(at("host_path"), &device.host_path)?;
        let container_path = match device.container_path.as_str() {
            "" => host_path.clone(),
            inside => path(at("container_path"), inside)?,
        };
        let permissions = if device.permissions.is_empty() { "rwm".to_owned() } else { device.permissions };
        if !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(invalid(at("permissions"), format!("{permissions:?} must be some of r, w and m")));
        }
        Ok(Device { host_path, container_path, permissions })
    };
    list.into_iter().enumerate().map(one).collect()
}

/// The qualified names of CDI devices.
pub fn cdi_devices(list: Vec<v1::CdiDevice>) -> Result<Vec<String>, Status> {
    let one = |(i, device): (usize, v1::CdiDevice)| {
        let parts = device.name.split_once('=').map(|(kind, name)| (kind.split_once('/'), name));
        match parts {
            Some((Some((vendor, class)), name)) if ![vendor, class, name].contains(&"") => Ok(device.name),
            _ => {
                let why = format!("{:?} is no name such as vendor.com/class=name", device.name);
                Err(invalid(format!("config.CDI_devices[{i}].name"), why))
            }
        }
    };
    list.into_iter().enumerate().map(one).collect()
}
