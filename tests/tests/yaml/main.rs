//! Kubernetes YAML as `coracle` takes it: every kind and field, several inputs, workloads, apply and down.

mod apply;
mod fields;
mod workloads;

use std::fs;

use coracle_tests::machine::{IMAGE, Machine, Said};

/// A container that runs a script.
fn container(script: &str) -> String {
    format!("{{name: c, image: '{IMAGE}', imagePullPolicy: Never, command: [sh, -c, '{script}']}}")
}

/// A Pod document.
fn pod(name: &str, script: &str) -> String {
    let spec = format!("{{terminationGracePeriodSeconds: 1, containers: [{}]}}", container(script));
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

/// A ConfigMap document with one key.
fn config(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: '{value}'}}\n---\n")
}

/// Writes a file into the machine's place; answers its path.
fn file(machine: &Machine, name: &str, text: &str) -> String {
    let path = machine.path(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    fs::write(&path, text).expect("write a file");
    path.display().to_string()
}

fn code(said: &Said) -> i32 {
    said.status.code().unwrap_or_else(|| panic!("ended by a signal: {said:?}"))
}
