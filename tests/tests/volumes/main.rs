//! What pods are given: their environment, their volumes and their images, by the `coracle` program with real pods, and
//! a real registry that asks for passwords.

mod environment;
mod files;
mod images;
mod places;

use std::fs;
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

/// Applies an object; its document without `metadata` is JSON.
fn apply(machine: &Machine, name: &str, mut object: Value) {
    object["metadata"] = json!({ "name": name });
    object["apiVersion"] = "v1".into();
    let file = machine.path(&format!("{name}.object.yaml"));
    fs::write(&file, object.to_string()).expect("write the object");
    machine.ok(&["apply", &file.display().to_string()]);
}

fn config_map(machine: &Machine, name: &str, data: Value) {
    apply(machine, name, json!({ "kind": "ConfigMap", "data": data }));
}

/// A Secret of this type with one key.
fn secret(machine: &Machine, name: &str, kind: &str, key: &str, text: &str) {
    apply(machine, name, json!({ "kind": "Secret", "type": kind, "stringData": { key: text } }));
}
