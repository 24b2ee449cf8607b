//! A container's configuration and its status.

use coracle_engine::{ContainerConfig, ContainerStatus, Exit, PidNamespace, SandboxConfig};
use coracle_proto::cri as v1;
use tonic::Status;

use super::{invalid, mounts, name, path, relative, resources, security, signal, text};
use crate::serve::cri::filter::{labels, shown_container};

/// What a container of this sandbox is to be. Its images are still as the client named them.
pub fn config(config: Option<v1::ContainerConfig>, sandbox: &SandboxConfig) -> Result<ContainerConfig, Status> {
    let config = config.ok_or_else(|| invalid("config", "is missing"))?;
    let metadata = config.metadata.ok_or_else(|| invalid("config.metadata", "is missing"))?;
    if config.windows.is_some() {
        return Err(invalid("config.windows", "this node runs Linux"));
    }
    let image = config.image.ok_or_else(|| invalid("config.image", "is missing"))?;
    if image.image.is_empty() {
        return Err(invalid("config.image.image", "must not be empty"));
    }
    let linux = config.linux.unwrap_or_default();
    let (security, pid) = security::security(linux.security_context, sandbox)?;
    Ok(ContainerConfig {
        name: name("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
        image_ref: image.image.clone(),
        image: image.image,
        user_specified_image: image.user_specified_image,
        command: words("config.command", config.command)?,
        args: words("config.args", config.args)?,
        working_dir: match config.working_dir.as_str() {
            "" => None,
            dir => Some(path("config.working_dir", dir)?.to_string_lossy().into_owned()),
        },
        env: env(config.envs)?,
        mounts: mounts::mounts(config.mounts)?,
        devices: mounts::devices(config.devices)?,
        cdi_devices: mounts::cdi_devices(config.cdi_devices)?,
        pid,
        resources: match linux.resources {
            Some(given) => resources::limits("config.linux.resources", given)?,
            None => Default::default(),
        },
        security,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        log_path: match config.log_path.as_str() {
            // Without a folder for the pod's logs there are none.
            "" => None,
            _ if sandbox.log_directory.is_none() => None,
            file => Some(relative("config.log_path", file)?),
        },
        labels: labels(config.labels),
        annotations: labels(config.annotations),
        stop_signal: signal::number("config.stop_signal", config.stop_signal)?.map(|number| number.to_string()),
    })
}

/// A command or its arguments; none at all leaves the image's.
fn words(field: &str, list: Vec<String>) -> Result<Option<Vec<String>>, Status> {
    for (i, word) in list.iter().enumerate() {
        text(format!("{field}[{i}]"), word)?;
    }
    Ok((!list.is_empty()).then_some(list))
}

fn env(list: Vec<v1::KeyValue>) -> Result<Vec<(String, String)>, Status> {
    let one = |(i, pair): (usize, v1::KeyValue)| {
        let at = |name: &str| format!("config.envs[{i}].{name}");
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            return Err(invalid(at("key"), format!("{:?} is no name of a variable", pair.key)));
        }
        let value =
            String::from_utf8(pair.value).map_err(|_| invalid(at("value"), format!("of {} is not UTF-8", pair.key)))?;
        Ok((pair.key, text(at("value"), &value)?))
    };
    list.into_iter().enumerate().map(one).collect()
}

fn metadata(config: &ContainerConfig) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }
}

/// The image as it was asked for: as the user wrote it, where the client said so.
fn image(config: &ContainerConfig) -> v1::ImageSpec {
    let given = [&config.user_specified_image, &config.image_ref, &config.image];
    v1::ImageSpec {
        image: given.into_iter().find(|name| !name.is_empty()).cloned().unwrap_or_default(),
        user_specified_image: config.user_specified_image.clone(),
        ..Default::default()
    }
}

/// A name by digest, or the image's id.
fn image_ref(status: &ContainerStatus) -> String {
    match status.image_digest.as_str() {
        "" => status.image_id.clone(),
        digest => digest.to_owned(),
    }
}

/// A container in a list.
pub fn listed(status: ContainerStatus) -> v1::Container {
    v1::Container {
        pod_sandbox_id: status.sandbox_id.clone(),
        metadata: Some(metadata(&status.config)),
        image: Some(image(&status.config)),
        image_ref: image_ref(&status),
        state: shown_container(&status).unwrap_or(v1::ContainerState::ContainerUnknown) as i32,
        created_at: status.created_at,
        image_id: status.image_id,
        labels: status.config.labels.into_iter().collect(),
        annotations: status.config.annotations.into_iter().collect(),
        id: status.id,
    }
}

/// A container by itself.
pub fn status(status: &ContainerStatus) -> v1::ContainerStatus {
    let config = &status.config;
    let exit = status.exit.clone().unwrap_or_else(no_exit);
    let user = status.user.as_ref().map(|user| v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: i64::from(user.uid),
            gid: i64::from(user.gid),
            supplemental_groups: user.supplemental_groups.iter().copied().map(i64::from).collect(),
        }),
    });
    v1::ContainerStatus {
        id: status.id.clone(),
        metadata: Some(metadata(config)),
        state: shown_container(status).unwrap_or(v1::ContainerState::ContainerUnknown) as i32,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: exit.finished_at,
        exit_code: exit.code,
        image: Some(image(config)),
        image_ref: image_ref(status),
        reason: exit.reason,
        message: exit.message,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        mounts: config.mounts.iter().map(mounts::shown).collect(),
        log_path: status.log_path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: Some(v1::ContainerResources { linux: Some(resources::shown(&config.resources)), windows: None }),
        image_id: status.image_id.clone(),
        user,
        stop_signal: signal::of(status.stop_signal) as i32,
    }
}

fn no_exit() -> Exit {
    Exit { code: 0, finished_at: 0, oom_killed: false, reason: String::new(), message: String::new() }
}

/// The container whose processes this one is to see, if any.
pub fn target(config: &ContainerConfig) -> Option<&str> {
    match &config.pid {
        PidNamespace::Target(id) => Some(id),
        _ => None,
    }
}
