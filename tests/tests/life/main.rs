//! The life of pods as kubelet has it: hooks, probes, sidecars, deadlines, last messages, and whoever sees to them.

mod hooks;
mod probes;
mod sidecars;
mod tender;

use std::fs;
use std::path::PathBuf;

use coracle_tests::machine::{IMAGE, Machine};
use serde_json::Value;

/// A machine with a folder that its pods share with it at /h.
struct Scene {
    machine: Machine,
    folder: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new();
        let folder = machine.path("shared");
        fs::create_dir(&folder).expect("make the shared folder");
        Scene { machine, folder }
    }

    /// Writes a Pod: `head` is below `spec:`, then come the containers.
    fn pod(&self, name: &str, head: &str, containers: &str) -> String {
        let volumes = format!("  volumes: [{{name: h, hostPath: {{path: {}}}}}]\n", self.folder.display());
        self.machine.pod(name, &format!("{volumes}{head}  containers:\n{containers}"))
    }

    /// What the pods wrote into a file of the shared folder.
    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// The words of the log that the pods write: `SECONDS: WORD`.
    fn words(&self) -> Vec<(i64, String)> {
        let word = |line: &str| {
            let (at, word) = line.split_once(": ")?;
            Some((at.parse().ok()?, word.to_owned()))
        };
        self.file("log").lines().filter_map(word).collect()
    }

    /// How often a word is in that log.
    fn count(&self, word: &str) -> usize {
        self.words().iter().filter(|(_, other)| other == word).count()
    }

    /// The events of a pod as `REASON MESSAGE`.
    fn events(&self, name: &str) -> Vec<String> {
        let uid = self.machine.view(name)["uid"].as_str().expect("a uid").to_owned();
        let path = self.machine.state().join("events").join(format!("{uid}.jsonl"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let events = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).expect("an event"));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events.map(|event| format!("{} {}", word(&event["reason"]), word(&event["message"]))).collect()
    }

    fn has_event(&self, name: &str, start: &str) -> bool {
        self.events(name).iter().any(|event| event.starts_with(start))
    }

    /// One container of a pod as `coracle ps` tells it.
    fn container(&self, pod: &str, name: &str) -> Value {
        let view = self.machine.view(pod);
        let all = view["containers"].as_array().expect("containers").clone();
        all.into_iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no {name} in {view}"))
    }
}

/// A container of a list that runs a script, with these further fields.
fn container(name: &str, script: &str, more: &str) -> String {
    let script = script.replace('\'', "''");
    format!(
        "  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: Never\n    volumeMounts: [{{name: h, mountPath: /h}}]\n    \
         command: ['sh', '-c', '{script}']\n{more}"
    )
}

/// A shell command that writes a word with the time.
fn say(word: &str) -> String {
    format!("echo \"$(date +%s): {word}\" >> /h/log")
}

/// The same as the command of a hook or a probe.
fn exec(script: &str) -> String {
    format!("exec: {{command: [sh, -c, '{}']}}", script.replace('\'', "''"))
}
