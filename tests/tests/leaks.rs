//! What pods leave behind when they have gone: nothing. Counted before and after, in the kernel and on the disk.

use std::fs;

use coracle_tests::machine::{Machine, until};
use nix::unistd::Pid;

const PODS: usize = 200;
/// Pods of one round: more than one at once, so that they also meet in the locks.
const ROUND: usize = 4;

/// Different kinds of pod by turns: plain, with ports, with volumes and two containers, ending by itself.
fn pod_of_kind(machine: &Machine, name: &str, number: usize) -> String {
    match number % ROUND {
        0 => machine.script_pod(name, "sleep 1000", ""),
        1 => {
            let ports = format!("    ports: [{{containerPort: 80, hostPort: {}}}]", 20_000 + number);
            machine.script_pod(name, "sleep 1000", &ports)
        }
        2 => {
            let image = coracle_tests::machine::IMAGE;
            machine.script_pod(
                name,
                "echo hello > /data/x; sleep 1000",
                &format!(
                    "    volumeMounts: [{{name: data, mountPath: /data}}]\n  - name: side\n    image: {image}\n    \
                     imagePullPolicy: Never\n    command: [sleep, '1000']\n  volumes: [{{name: data, emptyDir: {{}}}}]"
                ),
            )
        }
        _ => machine.script_pod(name, "echo done", "  restartPolicy: Never"),
    }
}

/// Starts a round of pods at once and removes them again.
fn round(machine: &Machine, first: usize) {
    let names: Vec<String> = (first..first + ROUND).map(|number| format!("pod-{number}")).collect();
    std::thread::scope(|scope| {
        for (name, number) in names.iter().zip(first..) {
            scope.spawn(move || machine.ok(&["run", "-d", &pod_of_kind(machine, name, number)]));
        }
    });
    let remove: Vec<&str> = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect();
    machine.ok(&remove);
    for name in &names {
        fs::remove_file(machine.path(&format!("{name}.yaml"))).expect("remove the Pod's file");
    }
}

fn open_files(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("list a supervisor's descriptors").count()
}

/// Proportional resident memory, in KiB.
fn memory(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("read a supervisor's memory");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("a line of Pss");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn two_hundred_pods_started_and_removed_leave_nothing() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &machine.script_pod("bystander", "sleep 100000", "")]);
    let id = machine.view("bystander")["id"].as_str().expect("an id").to_owned();
    let supervisor = machine.supervisor(&id).expect("a supervisor");
    // The first round makes what stays: the bridge, the table, the folders.
    round(&machine, 0);
    until("the supervisors and links of the first round to go", || {
        !machine.traces().iter().any(|t| t.contains("pod-")) && machine.pod_links() == 1
    });
    let before = machine.traces();
    let (files, kib) = (open_files(supervisor), memory(supervisor));

    (ROUND..PODS + ROUND).step_by(ROUND).for_each(|first| round(&machine, first));

    // The address given out last is remembered in a file that is there already; nothing else may differ.
    machine.assert_traces(&before, |_| false);
    assert_eq!(machine.supervisor(&id), Some(supervisor));
    assert_eq!(open_files(supervisor), files, "descriptors of a supervisor that had no part in it");
    let grown = memory(supervisor).saturating_sub(kib);
    assert!(grown < 64, "its memory grew by {grown} KiB");
    machine.ok(&["exec", "bystander", "--", "true"]);
    let doctor = machine.coracle(&["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&doctor.out).expect("JSON of doctor");
    assert_eq!(report["findings"], serde_json::json!([]), "{}", doctor.err);

    machine.ok(&["rm", "-f", "bystander"]);
    until("the last process to end", || machine.processes().is_empty());
}
