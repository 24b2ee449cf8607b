//! What the init of a virtual machine owes its containers: that it outlives them, shows them nothing of itself, and is not
//! the same in two machines that are copies of one.

use std::collections::BTreeSet;

use coracle_tests::machine::{IMAGE, until};

use crate::common::Vms;

/// A handler `other` beside `vm`, with one option more.
fn other(option: &str) -> String {
    let folder = crate::common::kernel_dir();
    let options = format!("kernel_dir = {folder:?}\nallow_emulation = true\n{option}\n");
    format!("[handlers.other]\ntype = \"vm\"\n[handlers.other.options]\n{options}")
}

#[test]
fn a_guest_out_of_memory_loses_a_container_and_not_itself() {
    // In a small one it does not take long.
    let vms = Vms::with(&other("memory = 67108864"));
    let container = |name: &str, line: &str| {
        format!("  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: [sh, -c, '{line}']\n")
    };
    let spec = [
        "  runtimeClassName: other\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n"
            .to_owned(),
        container("greedy", "tail /dev/zero"),
        container("modest", "sleep 1000"),
    ];
    vms.ok(&["run", "-d", &vms.pod("memory", &spec.concat())]);
    let greedy = || {
        let containers = vms.view("memory")["containers"].as_array().unwrap().clone();
        containers.into_iter().find(|container| container["name"] == "greedy").unwrap()["exitCode"].as_i64()
    };
    until("the end of the greedy container", || greedy().is_some());
    assert_eq!(greedy(), Some(137));
    assert_eq!(vms.ok(&["exec", "memory", "-c", "modest", "--", "echo", "here"]), "here\n");
    vms.ok(&["rm", "-f", "memory"]);
}

#[test]
fn containers_see_nothing_of_the_init_and_copies_have_identities_of_their_own() {
    let vms = Vms::with(&other("template = true"));
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let text = std::fs::read_to_string(vms.script_pod(name, "sleep 1000", "")).unwrap();
        let path = vms.path(&format!("{name}.yaml"));
        std::fs::write(&path, text.replace("runtimeClassName: vm", "runtimeClassName: other")).unwrap();
        vms.ok(&["run", "-d", &path.display().to_string()]);
        assert_eq!(vms.inside(name, "hostname"), format!("{name}\n"));
        assert_eq!(vms.inside(name, "ls -d /init /modules /new /run/coracle 2>/dev/null; true"), "");
        let line =
            "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | base64; cat /sys/class/net/eth0/address";
        seen.extend(vms.inside(name, line).lines().map(str::to_owned));
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 6, "something is the same in both: {seen:?}");
    vms.ok(&["rm", "-f", "one", "two"]);
}
