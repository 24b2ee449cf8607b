//! `coracle kube unit`, `coracle man` and completions: what needs no pod.

use std::fs;
use std::process::Command;

use coracle_tests::machine::Machine;

#[test]
fn a_unit_names_its_file_and_stops_the_pod_with_its_grace() {
    let machine = Machine::new();
    let file = machine.script_pod("web", "sleep 1000", "");
    let unit = machine.ok(&["kube", "unit", &file]);
    for part in [
        "Description=Pod web\n",
        "After=network-online.target\n",
        &format!(" run --replace --rm {file}\n"),
        &format!(" --state {} ", machine.state().display()),
        "Restart=on-failure\n",
        "KillMode=mixed\n",
        "TimeoutStopSec=16\n",
        "WantedBy=multi-user.target\n",
    ] {
        assert!(unit.contains(part), "{part:?} is missing in\n{unit}");
    }
    let user = machine.ok(&["kube", "unit", "--user", &file]);
    assert!(user.contains("WantedBy=default.target\n") && !user.contains("network-online"), "{user}");
    let path = machine.path("web.service");
    fs::write(&path, unit).expect("write the unit");
    // It judges the file alone, and starts nothing.
    let verified =
        Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output().expect("systemd-analyze");
    let told = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!told.lines().any(|line| line.contains("web.service")), "{told}");
    assert!(machine.fails(&["kube", "unit", "/no/such.yaml"]).contains("/no/such.yaml"));
}

#[test]
fn there_is_a_manual_page_and_a_completion_for_each_command() {
    let machine = Machine::new();
    let dir = machine.path("man");
    machine.ok(&["man", &dir.display().to_string()]);
    for page in ["coracle.1", "coracle-run.1", "coracle-cp.1", "coracle-kube-unit.1"] {
        let text = fs::read_to_string(dir.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH"), "{page}");
    }
    let script = machine.ok(&["completion", "bash"]);
    assert!(script.contains("describe") && script.contains("--all-containers"));
}
