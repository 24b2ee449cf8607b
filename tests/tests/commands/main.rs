//! The commands about pods that run: what they show, and what they do to them, with real pods.

mod attach;
mod copy;
mod describe;
mod events;
mod lists;
mod statics;
mod tools;

use std::time::{Duration, Instant};

use coracle_tests::machine::{IMAGE, Machine};

/// How long something that happens by itself may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a pod with one container, `main`, that runs a script, with these further lines of the container (indented by
/// four) and of the spec (by two).
pub fn start(machine: &Machine, name: &str, script: &str, container: &str, spec: &str) -> String {
    let script = script.replace('\'', "''");
    let text = format!(
        "  terminationGracePeriodSeconds: 1\n{spec}  containers:\n  - name: main\n    image: {IMAGE}\n    \
         imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n{container}"
    );
    let file = machine.pod(name, &text);
    machine.ok(&["run", "-d", &file]);
    file
}

/// A script that sleeps until it is told to end.
pub const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
