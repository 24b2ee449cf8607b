//! What pods are given: their environment, their volumes and their images, by the `coracle` program with real pods, and
//! a real registry that asks for passwords.

mod environment;
mod files;
mod images;
mod places;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_tests::machine::{IMAGE, Machine};
use serde_json::{Value, json};

/// How long something that happens by itself may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A pod with one container that runs a script, and these further fields of the container and of the spec.
fn pod(machine: &Machine, name: &str, script: &str, container: &str, spec: &str) -> String {
    let script = script.replace('\'', "''");
    let text = format!(
        "  terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n{spec}  containers:\n  - name: main\n    \
         image: {IMAGE}\n    imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n{container}"
    );
    machine.pod(name, &text)
}

/// Runs a pod to its end; the lines that it wrote.
fn lines(machine: &Machine, file: &str) -> Vec<String> {
    let said = machine.coracle(&["run", "--rm", file]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    said.out.lines().map(str::to_owned).collect()
}

/// Puts an object of the namespace `default` into the machine's store, as the commands keep it.
fn put(machine: &Machine, kind: &str, name: &str, fields: Value) {
    let namespace = machine.state().join("objects/default");
    let mut object = json!({ "meta": { "name": name, "namespace": "default" } });
    for (key, value) in fields.as_object().expect("fields") {
        object[key] = value.clone();
    }
    write(&namespace.join(kind).join(format!("{name}.json")), &object.to_string());
    let version = namespace.join("version");
    let number: u64 = fs::read_to_string(&version).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    write(&version, &(number + 1).to_string());
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    let draft = path.with_extension("new");
    fs::write(&draft, text).expect("write a file");
    fs::rename(&draft, path).expect("put it in its place");
}

fn config_map(machine: &Machine, name: &str, data: Value) {
    put(machine, "ConfigMap", name, json!({ "data": data, "binary": {}, "immutable": false }));
}

/// A Secret of this type with one key.
fn secret(machine: &Machine, name: &str, kind: &str, key: &str, text: &str) {
    let data = coracle_tests::machine::sh(&format!("printf %s '{text}' | base64 -w0"));
    put(machine, "Secret", name, json!({ "kind": kind, "data": { key: data.trim() }, "immutable": false }));
}
