//! Statistics: of two containers that are alike, our supervisor tells what runc's shim tells, field by field.

use std::collections::BTreeMap;

use coracle_tests::containerd::{Containerd, HANDLER, RUNC};
use coracle_tests::machine::until;
use serde_json::Value;

/// What is told: words by their place in the message, and numbers, of which those that are 0 are left out. Of a list's
/// entries one stands for all.
fn told(value: &Value, place: &str, all: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| told(value, &format!("{place}/{name}"), all)),
        Value::Array(entries) => entries.iter().for_each(|value| told(value, &format!("{place}[]"), all)),
        Value::String(word) => drop(all.insert(format!("{place}={word}"), String::new())),
        other => drop(all.insert(place.to_owned(), other.to_string())),
    }
}

fn metrics(containerd: &Containerd, name: &str) -> BTreeMap<String, String> {
    let text = containerd.ctr(&["tasks", "metrics", "--format", "json", name]).ok();
    let mut all = BTreeMap::new();
    told(&serde_json::from_str(&text).unwrap(), "", &mut all);
    all
}

/// What no difference of pace makes 0, by the last part of its place. (Version 2's `max` of huge pages is not told yet.)
const SURE: [&str; 7] =
    ["current", "limit", "usage", "usage_limit", "hierarchical_memory_limit", "pg_fault", "pgfault"];

#[test]
fn a_task_is_measured_as_by_runcs_shim() {
    let containerd = Containerd::new("");
    let script = "dd if=/dev/zero of=/tmp/$0 bs=64k count=16 conv=fsync; touch /tmp/$0.done; exec sleep 1000";
    let script = |name: &str| script.replace("$0", name);
    for (name, handler) in [("ours", HANDLER), ("theirs", RUNC)] {
        containerd.start_by(handler, &["--memory-limit", "67108864"], name, &script(name));
        until("its work to be done", || containerd.path("rootfs/tmp").join(format!("{name}.done")).exists());
    }
    let (ours, theirs) = (metrics(&containerd, "ours"), metrics(&containerd, "theirs"));
    let words = |all: &BTreeMap<String, String>| -> Vec<String> {
        all.keys().filter(|place| place.contains('=')).cloned().collect()
    };
    assert_eq!(words(&ours), words(&theirs), "ours: {ours:#?}\ntheirs: {theirs:#?}");
    for place in theirs.keys().filter(|place| SURE.iter().any(|name| place.ends_with(&format!("/{name}")))) {
        assert!(ours.contains_key(place), "{place} is not told: {ours:#?}\ntheirs: {theirs:#?}");
    }
    for name in ["ours", "theirs"] {
        containerd.ctr(&["tasks", "delete", "--force", name]);
    }
}
