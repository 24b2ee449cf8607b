//! Hooks: what each sees, and what follows when one fails.

mod oci_support;

use std::fs;
use std::path::PathBuf;

use oci_support::{Bundle, ours, peer};
use serde_json::{Value, json};

/// A hook that runs a script of the host's shell.
fn hook(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
}

fn file(bundle: &Bundle, name: &str) -> PathBuf {
    bundle.dir.path().join(name)
}

fn content(bundle: &Bundle, name: &str) -> String {
    fs::read_to_string(file(bundle, name)).unwrap_or_default()
}

/// A container whose poststop hook leaves a mark.
fn marked(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let script = format!("cat > {}", file(&bundle, "poststop").display());
    bundle.set("/hooks/poststop", hook(&script));
    bundle
}

#[test]
fn a_hook_that_fails_at_create_is_followed_by_the_poststop_hooks() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = marked(&["/bin/true"]);
        bundle.set(&format!("/hooks/{kind}"), hook("exit 3"));
        assert_ne!(bundle.create().code, 0);
        if peer("crun") {
            continue; // It runs them at delete alone.
        }
        let state: Value = serde_json::from_str(&content(&bundle, "poststop")).expect(kind);
        assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("stopped")), "{kind}");
        bundle.assert_gone();
    }
}

#[test]
fn an_error_before_there_was_a_process_runs_no_hooks() {
    if !ours() {
        return; // runc 1.1 runs the poststop hooks of a container that it refused to make.
    }
    let mut bundle = marked(&["/bin/true"]);
    bundle.mount("/x", "bind", "/no/source", &["bind"]);
    bundle.create().fails("/no/source");
    assert!(!file(&bundle, "poststop").exists());
}

#[test]
fn a_failing_poststop_hook_ends_nothing() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let mark = file(&bundle, "second");
    let hooks = json!([
        { "path": "/bin/sh", "args": ["sh", "-c", "echo out of luck; exit 3"] },
        { "path": "/bin/sh", "args": ["sh", "-c", format!("echo > {}", mark.display())] },
    ]);
    bundle.set("/hooks/poststop", hooks);
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.wait_status("stopped");
    let answer = bundle.oci(&["delete", &bundle.id]);
    if ours() {
        bundle.assert_gone();
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(answer.err.contains("level=warning") && answer.err.contains("poststop hook #0"), "{answer:?}");
        assert!(mark.exists(), "the next hook runs");
    }
}

#[test]
fn a_failing_poststart_hook_ends_the_container() {
    let mut bundle = marked(&["/bin/sleep", "1000"]);
    bundle.set("/hooks/poststart", hook("exit 3"));
    if peer("runc") {
        return; // runc 1.1 runs poststart at create.
    }
    bundle.create().ok();
    let pid = bundle.state()["pid"].to_string();
    let answer = bundle.oci(&["start", &bundle.id]);
    if !ours() {
        return; // crun only warns.
    }
    answer.fails("poststart hook #0").fails("exit status 3");
    assert_eq!(bundle.status(), "stopped");
    let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!cmdline.contains("sleep"), "{cmdline}");
    bundle.oci(&["delete", &bundle.id]).ok();
    assert!(content(&bundle, "poststop").contains("stopped"));
    bundle.assert_gone();
}

#[test]
fn a_failing_start_hook_keeps_the_program_from_running() {
    let mut bundle = Bundle::sh("echo ran > /ran");
    bundle.set("/hooks/startContainer", json!([{ "path": "/bin/false" }]));
    bundle.create().ok();
    let answer = bundle.oci(&["start", &bundle.id]);
    bundle.wait_status("stopped");
    assert!(!bundle.rootfs().join("ran").exists());
    if ours() {
        answer.fails("startContainer hook #0").fails("exit status 1");
    }
}

#[test]
fn hooks_know_the_process_as_their_namespace_shows_it() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/annotations", json!({ "org.example.key": "a value" }));
    let write = |name: &str| format!("cat > {}", file(&bundle, name).display());
    let scripts = ["createRuntime", "poststart"].map(|kind| (kind, write(kind)));
    let namespaces =
        format!("readlink /proc/self/ns/net /proc/self/ns/uts > {}", file(&bundle, "namespaces").display());
    for (kind, script) in scripts {
        bundle.set(&format!("/hooks/{kind}"), hook(&script));
    }
    bundle.set("/hooks/createContainer", hook(&namespaces));
    let inside = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /state; echo $VARIABLE > /variable"] }]);
    bundle.set("/hooks/startContainer", inside);
    bundle.set("/process/env", json!(["PATH=/bin", "VARIABLE=of the program"]));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let pid = bundle.state()["pid"].clone();
    let state = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")) };
    for kind in ["createRuntime", "poststart"] {
        let state = state(&content(&bundle, kind));
        assert_eq!(state["pid"], pid, "{kind}");
        assert_eq!(state["annotations"]["org.example.key"], "a value", "{kind}");
        assert_eq!(state["bundle"], json!(bundle.dir.path().canonicalize().unwrap()), "{kind}");
    }
    let started = state(&fs::read_to_string(bundle.rootfs().join("state")).unwrap());
    assert!(started["pid"] == 1 || peer("crun"), "{started}");
    assert!(started["status"] == "created" || peer("crun"), "{started}");
    if peer("crun") {
        return; // Its createContainer hooks find another /proc.
    }
    let expected = ["net", "uts"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap());
    let lines: Vec<PathBuf> = content(&bundle, "namespaces").lines().map(PathBuf::from).collect();
    assert_eq!(lines, expected, "createContainer runs in the container's namespaces");
    if ours() {
        assert_eq!(fs::read_to_string(bundle.rootfs().join("variable")).unwrap(), "of the program\n");
    }
}

#[test]
fn hooks_that_cannot_be_are_refused_before_anything_exists() {
    if !ours() {
        return; // The peers find out when they run them.
    }
    for (kind, value, words) in [
        ("poststop", json!([{ "path": "sh" }]), "hooks.poststop[0].path"),
        (
            "prestart",
            json!([{ "path": "/bin/true" }, { "path": "/bin/true", "timeout": 0 }]),
            "hooks.prestart[1].timeout",
        ),
        ("poststart", json!([{ "path": "/bin/true", "timeout": -1 }]), "hooks.poststart[0].timeout"),
    ] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set(&format!("/hooks/{kind}"), value);
        bundle.create().fails(words);
        bundle.assert_gone();
    }
}
