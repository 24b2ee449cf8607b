//! What a verbose status tells: JSON under the key `info`, with the names that crictl's users know from other runtimes.

use std::collections::HashMap;
use std::fs;

use coracle_engine::{ContainerStatus, Engine, NamespaceMode, SandboxStatus};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::fault;

/// The one key of a verbose answer.
const INFO: &str = "info";
/// What one `config.json` is at most.
const MAX_SPEC: u64 = 8 << 20;

fn info(value: &Value) -> HashMap<String, String> {
    HashMap::from([(INFO.to_owned(), value.to_string())])
}

fn to_json(value: impl serde::Serialize) -> Result<Value, Status> {
    serde_json::to_value(value)
        .map_err(|e| fault::status(Code::Internal, format!("write the configuration as JSON: {e}")))
}

/// About a sandbox.
pub fn sandbox(engine: &Engine, status: &SandboxStatus) -> Result<HashMap<String, String>, Status> {
    let config = &status.config;
    let pid = status.supervisor.unwrap_or(0);
    let namespace = |kind: &str, file: &str, mode: NamespaceMode| {
        (pid > 0 && mode == NamespaceMode::Pod)
            .then(|| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }))
    };
    // A sandbox has no process of its own and so no OCI spec; this is the part of one that people read.
    let namespaces: Vec<Value> = [
        namespace("network", "net", config.network),
        namespace("uts", "uts", config.network),
        namespace("ipc", "ipc", config.ipc),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut shown = to_json(config)?;
    shown["metadata"] = json!({
        "name": config.name, "uid": config.uid, "namespace": config.namespace, "attempt": config.attempt,
    });
    Ok(info(&json!({
        "pid": pid,
        "processStatus": if status.supervisor.is_some() { "running" } else { "deleted" },
        "runtimeHandler": config.handler,
        "runtimeType": "io.containerd.coracle.v1",
        "networkNamespace": namespaces.first().filter(|n| n["type"] == "network").map(|n| n["path"].clone()),
        "ips": status.ips,
        "notes": status.notes,
        "stateFolder": engine.paths().pod(&status.id),
        "config": shown,
        "runtimeSpec": { "linux": { "namespaces": namespaces, "cgroupsPath": engine.sandbox_cgroup(&status.id).ok() } },
    })))
}

/// About a container.
pub fn container(engine: &Engine, status: &ContainerStatus) -> Result<HashMap<String, String>, Status> {
    let config = &status.config;
    let bundle = engine.paths().container(&status.sandbox_id, &status.id);
    let mut shown = to_json(config)?;
    shown["metadata"] = json!({ "name": config.name, "attempt": config.attempt });
    Ok(info(&json!({
        "sandboxID": status.sandbox_id,
        "pid": status.pid.unwrap_or(0),
        "state": status.state.as_str(),
        "runtimeType": "io.containerd.coracle.v1",
        "bundle": bundle,
        "writableLayer": engine.paths().container_data(&status.sandbox_id, &status.id).join("upper"),
        "imageID": status.image_id,
        "privileged": config.security.privileged,
        "config": shown,
        "runtimeSpec": spec(&bundle.join("config.json")),
    })))
}

/// The OCI spec as it was written for the runtime; null when it is gone, as with a container that is being removed.
fn spec(path: &std::path::Path) -> Value {
    let fits = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_SPEC);
    let text = fits.then(|| fs::read(path).ok()).flatten().unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or(Value::Null)
}

/// About an image.
pub fn image(image: &coracle_rootfs::Image) -> Result<HashMap<String, String>, Status> {
    Ok(info(&json!({
        "manifest": image.manifest().to_string(),
        "layers": image.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "imageSpec": to_json(&image.config)?,
    })))
}

/// About the node.
pub fn node(value: &Value) -> HashMap<String, String> {
    HashMap::from([("config".to_owned(), value.to_string())])
}
