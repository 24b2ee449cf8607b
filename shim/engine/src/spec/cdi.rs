//! CDI: devices by their qualified names, `vendor.com/class=name`, as vendors describe them on the host.
//!
//! A vendor puts JSON files into `/etc/cdi` (what stays) and `/var/run/cdi` (what is made at boot); each describes the
//! devices of one kind, and what a container needs for each: nodes, mounts, variables, hooks, groups. Of two files with
//! the same device the one in the later folder counts; within a folder that is a conflict and the device an error.
//! Files are read when a container asks for a device: plain containers never pay for it. A file that does not parse
//! is an error only for whoever asks for a device that no other file has. The YAML form of these files is not read.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::devices;
use crate::error::{Error, Result};

/// A description is at most this long.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    cdi_version: String,
    kind: String,
    devices: Vec<Described>,
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Described {
    name: String,
    container_edits: Edits,
}

/// What a container needs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    net_devices: Vec<Value>,
    mounts: Vec<MountEdit>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids", alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
    intel_rdt: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MountEdit {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

const FIELD: &str = "cdi_devices";
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// What the folders describe: for each kind its files.
#[derive(Debug, Default)]
struct Registry {
    /// By kind and name: the folder's rank, and the edits; `None` for a conflict.
    devices: BTreeMap<String, (usize, Option<Edits>)>,
    /// Files that could not be used, and why.
    broken: Vec<String>,
}

/// Changes a container's spec as its devices want it.
pub(super) fn apply(spec: &mut Value, names: &[String], folders: &[PathBuf]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let registry = Registry::read(folders);
    for name in names {
        let edits = registry.find(name, folders)?;
        edit(spec, name, edits)?;
    }
    Ok(())
}

/// Whether this is `vendor/class=name`.
fn is_qualified(name: &str) -> bool {
    let word = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let Some((kind, device)) = name.split_once('=') else { return false };
    kind.split_once('/').is_some_and(|(vendor, class)| word(vendor, "_-.") && word(class, "_-")) && word(device, "_-.:")
}

impl Registry {
    fn read(folders: &[PathBuf]) -> Registry {
        let mut registry = Registry::default();
        for (rank, folder) in folders.iter().enumerate() {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            files.sort();
            for file in files {
                match file.extension().and_then(|e| e.to_str()) {
                    Some("json") => match read(&file) {
                        Ok(spec) => registry.add(rank, spec),
                        Err(why) => registry.broken.push(format!("{}: {why}", file.display())),
                    },
                    Some("yaml" | "yml") => {
                        registry.broken.push(format!("{}: YAML is not read, only JSON", file.display()))
                    }
                    _ => {}
                }
            }
        }
        registry
    }

    fn add(&mut self, rank: usize, spec: Spec) {
        for device in spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            let edits = joined(&spec.container_edits, device.container_edits);
            let conflict = self.devices.get(&name).is_some_and(|(known, _)| *known == rank);
            self.devices.insert(name, (rank, if conflict { None } else { Some(edits) }));
        }
    }

    fn find(&self, name: &str, folders: &[PathBuf]) -> Result<&Edits> {
        let bad = |why: String| Err(Error::invalid(FIELD, format!("{name:?} {why}")));
        if !is_qualified(name) {
            return bad("is no qualified device name (vendor.com/class=name)".into());
        }
        let places = || folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" and ");
        match self.devices.get(name) {
            Some((_, Some(edits))) => Ok(edits),
            Some((_, None)) => bad(format!("is described twice in {}", places())),
            None if self.broken.is_empty() => bad(format!("is not described in {}", places())),
            None => bad(format!("is not described in {} (not read: {})", places(), self.broken.join("; "))),
        }
    }
}

/// The edits of a file for all its devices, and those of one of them.
fn joined(common: &Edits, mut own: Edits) -> Edits {
    let mut edits = common.clone();
    edits.env.append(&mut own.env);
    edits.device_nodes.append(&mut own.device_nodes);
    edits.net_devices.append(&mut own.net_devices);
    edits.mounts.append(&mut own.mounts);
    edits.hooks.append(&mut own.hooks);
    edits.additional_gids.append(&mut own.additional_gids);
    edits.intel_rdt = own.intel_rdt.or(edits.intel_rdt);
    edits
}

fn read(file: &Path) -> std::result::Result<Spec, String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(file).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes));
    read.map_err(|e| e.to_string())?;
    let spec: Spec = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let known = spec.cdi_version.split('.').next().is_some_and(|major| major == "0" || major == "1");
    match known {
        true => Ok(spec),
        false => Err(format!("cdiVersion {:?} is not 0.x or 1.x", spec.cdi_version)),
    }
}

fn list<'a>(spec: &'a mut Value, pointer: &[&str]) -> &'a mut Vec<Value> {
    let mut at = spec;
    for part in pointer {
        at = &mut at[*part];
    }
    if !at.is_array() {
        *at = json!([]);
    }
    at.as_array_mut().expect("it was made one")
}

fn edit(spec: &mut Value, name: &str, edits: &Edits) -> Result<()> {
    let bad = |why: String| Error::invalid(FIELD, format!("{name}: {why}"));
    if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
        return Err(bad("intelRdt and netDevices are not supported".into()));
    }
    for variable in &edits.env {
        let (key, _) = variable.split_once('=').ok_or_else(|| bad(format!("{variable:?} is no variable")))?;
        let env = list(spec, &["process", "env"]);
        env.retain(|line| line.as_str().is_none_or(|line| line.split('=').next() != Some(key)));
        env.push(json!(variable));
    }
    for node in &edits.device_nodes {
        let (device, rule) = device(node).map_err(&bad)?;
        let nodes = list(spec, &["linux", "devices"]);
        nodes.retain(|other| other["path"] != device["path"]);
        nodes.push(device);
        list(spec, &["linux", "resources", "devices"]).extend(rule);
    }
    for mount in &edits.mounts {
        let source = Path::new(&mount.host_path);
        if !source.is_absolute() || !mount.container_path.starts_with('/') {
            return Err(bad(format!("mount {} on {}: both must be absolute", mount.host_path, mount.container_path)));
        }
        let mut options = mount.options.clone();
        if mount.kind.is_empty() && !options.iter().any(|o| o == "bind" || o == "rbind") {
            options.push("rbind".into());
        }
        let kind = if mount.kind.is_empty() { "bind" } else { &mount.kind };
        let target = &mount.container_path;
        let mounts = list(spec, &["mounts"]);
        mounts.retain(|other| other["destination"] != json!(target));
        mounts.push(json!({ "destination": target, "type": kind, "source": source, "options": options }));
    }
    for hook in &edits.hooks {
        if !HOOKS.contains(&hook.hook_name.as_str()) {
            return Err(bad(format!("{:?} is no hook", hook.hook_name)));
        }
        let mut value = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
        if let Some(timeout) = hook.timeout {
            value["timeout"] = json!(timeout);
        }
        list(spec, &["hooks", &hook.hook_name]).push(value);
    }
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        let gids = list(spec, &["process", "user", "additionalGids"]);
        if !gids.contains(&json!(gid)) {
            gids.push(json!(gid));
        }
    }
    Ok(())
}

/// A node, and its rule. What the description leaves out is as on the host.
fn device(node: &Node) -> std::result::Result<(Value, Option<Value>), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    if !node.path.starts_with('/') {
        return Err(format!("device {:?} is no absolute path", node.path));
    }
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let (mut kind, mut major, mut minor) = (node.kind.clone(), node.major, node.minor);
    let complete = kind == "p" || (!kind.is_empty() && major.is_some() && minor.is_some());
    if !complete {
        let meta = fs::metadata(host).map_err(|e| format!("look at device {host}: {e}"))?;
        let found = match meta.file_type() {
            t if t.is_block_device() => "b",
            t if t.is_char_device() => "c",
            _ => return Err(format!("{host} is no device")),
        };
        if !kind.is_empty() && kind != found && !(kind == "u" && found == "c") {
            return Err(format!("device {host} is of type {found}, not {kind}"));
        }
        kind = found.into();
        major = Some(nix::sys::stat::major(meta.rdev()) as i64);
        minor = Some(nix::sys::stat::minor(meta.rdev()) as i64);
    }
    let access = devices::permissions(&node.permissions)?;
    let mut device = json!({ "path": node.path, "type": kind });
    let mut rule = json!({ "allow": true, "type": kind, "access": access });
    for (key, value) in [("major", major), ("minor", minor)] {
        if let Some(value) = value.filter(|_| kind != "p") {
            device[key] = json!(value);
            rule[key] = json!(value);
        }
    }
    for (key, value) in [("fileMode", node.file_mode), ("uid", node.uid), ("gid", node.gid)] {
        if let Some(value) = value {
            device[key] = json!(value);
        }
    }
    // A fifo is no device to the cgroup.
    Ok((device, (kind != "p").then_some(rule)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/gpu","containerEdits":{"env":["ALL=1"]},"devices":[
        {"name":"0","containerEdits":{"env":["A=new","B=2"],"additionalGids":[7,0],
         "deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/zero","permissions":"rw","fileMode":384}],
         "mounts":[{"hostPath":"/usr/lib","containerPath":"/gpu","options":["ro","nosuid"]}],
         "hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true"]}]}}]}"#;

    fn folders(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["etc", "run"].map(|name| dir.path().join(name)).to_vec();
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        (dir, folders)
    }

    fn applied(names: &[&str], folders: &[PathBuf]) -> Result<Value> {
        let mut spec =
            json!({ "process": { "env": ["A=old"], "user": {} }, "mounts": [], "linux": { "resources": {} } });
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        apply(&mut spec, &names, folders).map(|()| spec)
    }

    #[test]
    fn a_device_brings_all_that_its_file_says() {
        let (_dir, folders) = folders(&[("etc/gpu.json", GPU)]);
        let spec = applied(&["vendor.com/gpu=0"], &folders).unwrap();
        assert_eq!(spec["process"]["env"], json!(["ALL=1", "A=new", "B=2"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([7]));
        let device = &spec["linux"]["devices"][0];
        assert_eq!(
            (&device["path"], &device["minor"], &device["fileMode"]),
            (&json!("/dev/gpu0"), &json!(5), &json!(384))
        );
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rw");
        assert_eq!(spec["mounts"][0]["options"], json!(["ro", "nosuid", "rbind"]));
        assert_eq!(spec["hooks"]["createContainer"][0]["path"], "/bin/true");
    }

    #[test]
    fn a_later_folder_wins_and_a_conflict_is_an_error() {
        let other = GPU.replace("B=2", "B=3");
        let (_dir, both) = folders(&[("etc/gpu.json", GPU), ("run/gpu.json", &other)]);
        let spec = applied(&["vendor.com/gpu=0"], &both).unwrap();
        assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("B=3")));
        let (_dir, twice) = folders(&[("etc/a.json", GPU), ("etc/b.json", &other)]);
        assert!(applied(&["vendor.com/gpu=0"], &twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn what_cannot_be_resolved_is_named_with_the_files_that_were_not_read() {
        let (_dir, folders) = folders(&[
            ("etc/gpu.json", GPU),
            ("etc/bad.json", "{"),
            ("run/x.yaml", ""),
            ("run/v.json", r#"{"cdiVersion":"9"}"#),
        ]);
        let error = applied(&["vendor.com/gpu=1"], &folders).unwrap_err().to_string();
        assert!(error.contains("vendor.com/gpu=1") && error.contains("bad.json"), "{error}");
        assert!(error.contains("x.yaml: YAML") && error.contains("v.json: cdiVersion"), "{error}");
        for name in ["gpu0", "vendor.com=0", "vendor.com/gpu=", "/gpu=0", "vendor.com/gpu=a b"] {
            assert!(applied(&[name], &folders).unwrap_err().to_string().contains("qualified"), "{name}");
        }
        assert!(applied(&[], &folders).is_ok(), "nobody asks");
    }

    #[test]
    fn edits_that_cannot_be_done_are_errors() {
        for (from, to) in [
            ("\"/dev/zero\"", "\"/dev/no-such\""),
            ("createContainer", "noSuchHook"),
            ("\"rw\"", "\"rwx\""),
            ("\"A=new\"", "\"novar\""),
            ("\"additionalGids\":[7,0]", "\"intelRdt\":{}"),
        ] {
            let (_dir, folders) = folders(&[("etc/gpu.json", &GPU.replace(from, to))]);
            assert!(applied(&["vendor.com/gpu=0"], &folders).is_err(), "{to}");
        }
    }
}
