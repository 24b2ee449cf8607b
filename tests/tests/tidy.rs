//! The rules of the tree, each run as a test: a rule that nothing runs is not a rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What may stand at the top level, besides dotfiles.
const TOP_LEVEL: [&str; 9] =
    ["Cargo.lock", "Cargo.toml", "README.md", "proto", "rootfs", "runtime", "scripts", "shim", "tests"];

/// Who may import whom among our crates; the arrows go one way.
const ARROWS: [(&str, &str, &[&str]); 7] = [
    ("proto", "coracle-proto", &[]),
    ("rootfs", "coracle-rootfs", &[]),
    ("runtime", "coracle-runtime", &[]),
    ("shim/copy", "coracle-copy", &[]),
    ("shim/supervisor", "coracle-supervisor", &["coracle-copy", "coracle-runtime", "coracle-proto"]),
    ("shim/engine", "coracle-engine", &["coracle-rootfs", "coracle-proto"]),
    ("shim/server", "coracle", &["coracle-copy", "coracle-engine", "coracle-rootfs", "coracle-proto"]),
];

/// A file longer than this holds more than one subject.
const MAX_FILE_LINES: usize = 800;

/// A shell script longer than this should have been a program.
const MAX_SCRIPT_LINES: usize = 50;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository's root")
}

/// The files git knows or would take, so that build output does not count.
fn tracked_files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .expect("git ls-files");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).expect("UTF-8");
    listing.lines().filter(|file| repository().join(file).is_file()).map(String::from).collect()
}

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn manifest(file: &str) -> toml::Table {
    read(file).parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The names in one section of a manifest, each with whether it says `workspace = true`.
fn dependencies(manifest: &toml::Table, section: &str) -> Vec<(String, bool)> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    let inherits = |value: &toml::Value| value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
    table.into_iter().flatten().map(|(name, value)| (name.clone(), inherits(value))).collect()
}

fn rust_files() -> Vec<String> {
    tracked_files().into_iter().filter(|file| file.ends_with(".rs")).collect()
}

fn report(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn the_top_level_is_fixed() {
    let found: BTreeSet<String> = tracked_files()
        .iter()
        .map(|file| file.split('/').next().unwrap_or(file).to_string())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let expected: BTreeSet<String> = TOP_LEVEL.iter().map(|name| name.to_string()).collect();
    assert_eq!(found, expected);
}

#[test]
fn crates_import_each_other_in_one_direction_only() {
    let ours: BTreeSet<&str> = ARROWS.iter().map(|(_, name, _)| *name).collect();
    let mut breaches = Vec::new();
    for (dir, name, allowed) in ARROWS {
        let manifest = manifest(&format!("{dir}/Cargo.toml"));
        assert_eq!(manifest["package"]["name"].as_str(), Some(name));
        for section in ["dependencies", "build-dependencies"] {
            for (dependency, _) in dependencies(&manifest, section) {
                if ours.contains(dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                    breaches.push(format!("{name} imports {dependency}"));
                }
            }
        }
    }
    report("an arrow points the wrong way", breaches);
}

#[test]
fn every_dependency_is_named_once_and_used() {
    let root = manifest("Cargo.toml");
    let named: BTreeSet<String> =
        root["workspace"]["dependencies"].as_table().expect("a table").keys().cloned().collect();
    let mut used = BTreeSet::new();
    let mut breaches = Vec::new();
    for file in tracked_files().iter().filter(|file| file.ends_with("/Cargo.toml")) {
        let manifest = manifest(file);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, inherits) in dependencies(&manifest, section) {
                if !inherits {
                    breaches.push(format!("{file}: write `{name}.workspace = true`"));
                }
                used.insert(name);
            }
        }
    }
    breaches.extend(named.difference(&used).map(|name| format!("Cargo.toml: no crate uses {name}")));
    report("dependencies", breaches);
}

#[test]
fn every_rust_file_opens_with_its_design() {
    let breaches = rust_files().into_iter().filter(|file| !read(file).starts_with("//!")).collect();
    report("a file must open with a //! head that says what it is for", breaches);
}

#[test]
fn unsafe_code_lives_in_sys_modules() {
    let breaches = rust_files()
        .into_iter()
        .filter(|file| !file.ends_with("/sys.rs") && !file.contains("/sys/") && file != "tests/tests/tidy.rs")
        .filter(|file| read(file).contains("allow(unsafe_code)"))
        .collect();
    report("unsafe_code may be allowed in sys.rs alone", breaches);
}

#[test]
fn files_and_scripts_stay_readable() {
    let mut breaches = Vec::new();
    for file in tracked_files() {
        let limit = if file.ends_with(".rs") {
            MAX_FILE_LINES
        } else if (file.starts_with("scripts/") || file.starts_with(".ci/")) && !file.ends_with(".config") {
            // A kernel's configuration is a list, and no script.
            MAX_SCRIPT_LINES
        } else {
            continue;
        };
        let lines = read(&file).lines().count();
        if lines > limit {
            breaches.push(format!("{file}: {lines} lines, at most {limit}"));
        }
    }
    report("split by meaning", breaches);
}

#[test]
fn the_readme_names_only_what_exists() {
    let readme = read("README.md");
    let mut breaches = Vec::new();
    for word in readme.split('`').skip(1).step_by(2) {
        let path = word.split_whitespace().next().unwrap_or("").trim_end_matches('/');
        let top = path.split('/').next().unwrap_or("");
        if path.contains('/') && TOP_LEVEL.contains(&top) && !path.contains('*') && !repository().join(path).exists() {
            breaches.push(format!("README.md names `{path}`, which does not exist"));
        }
    }
    report("dead paths", breaches);
}

#[test]
fn the_readme_shows_only_commands_that_exist() {
    let readme = read("README.md");
    let mut verbs = BTreeSet::new();
    for line in readme.split("```").skip(1).step_by(2).flat_map(str::lines) {
        let words: Vec<&str> = line.split_whitespace().skip_while(|word| ["$", "#", "sudo"].contains(word)).collect();
        if let [program @ ("coracle" | "coracle-oci"), verb, ..] = words[..]
            && !verb.starts_with('-')
        {
            verbs.insert((program, verb));
        }
    }
    assert!(!verbs.is_empty(), "README.md shows no command at all");
    let mut breaches = Vec::new();
    for (program, verb) in verbs {
        let output = Command::new(coracle_tests::bin(program)).args([verb, "--help"]).output().expect("run --help");
        if !output.status.success() {
            breaches.push(format!("`{program} {verb}` is shown, and `{program} {verb} --help` fails"));
        }
    }
    report("dead commands", breaches);
}
