//! What a pod may use and who it is: QoS classes and their cgroups, OOM scores, user namespaces, groups of volumes,
//! RuntimeClasses, and what is refused by its name.

use std::fs;
use std::path::PathBuf;

use coracle_tests::machine::{Machine, memory_tree, until};

/// A pod with one container that runs a script, and these further fields of the container and of the spec.
fn pod(machine: &Machine, name: &str, script: &str, container: &str, spec: &str) -> String {
    machine.script_pod(name, script, &format!("{container}{spec}"))
}

const LONG: &str = "cat /proc/self/oom_score_adj; exec sleep 1000";

/// The cgroup of the machine's only pod in the tree that counts memory.
fn cgroup(machine: &Machine) -> PathBuf {
    let id = machine.pods().into_iter().next().expect("a pod");
    let tree = memory_tree().0.display();
    let found = machine.sh(&format!("find {tree} -maxdepth 4 -name pod{id}"));
    PathBuf::from(found.trim())
}

fn score(machine: &Machine, name: &str) -> i32 {
    until("the score", || machine.ok(&["logs", name]).ends_with('\n'));
    machine.ok(&["logs", name]).trim().parse().expect("a score")
}

#[test]
fn a_pod_that_asks_for_nothing_is_best_effort() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &pod(&machine, "best", LONG, "", "")]);
    assert_eq!(score(&machine, "best"), 1000);
    assert!(cgroup(&machine).to_str().unwrap().contains("/besteffort/pod"), "{:?}", cgroup(&machine));
}

#[test]
fn a_pod_that_asks_for_something_is_burstable() {
    let machine = Machine::new();
    let resources = "    resources: {requests: {memory: 64Mi, cpu: 100m}}\n";
    machine.ok(&["run", "-d", &pod(&machine, "burst", LONG, resources, "")]);
    assert!((3..1000).contains(&score(&machine, "burst")));
    assert!(cgroup(&machine).to_str().unwrap().contains("/burstable/pod"), "{:?}", cgroup(&machine));
}

#[test]
fn a_guaranteed_pods_cgroup_has_the_sum_of_its_limits() {
    let machine = Machine::new();
    let resources = "    resources: {limits: {memory: 64Mi, cpu: 500m}}\n";
    machine.ok(&["run", "-d", &pod(&machine, "sure", LONG, resources, "")]);
    let group = cgroup(&machine);
    assert!(!group.to_str().unwrap().contains("burstable"), "{group:?}");
    let limit = ["memory.limit_in_bytes", "memory.max"].iter().find_map(|f| fs::read_to_string(group.join(f)).ok());
    assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());
    // -997 where the kernel allows it, else the least that it does.
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    assert!([-997, own].contains(&score(&machine, "sure")));
}

#[test]
fn two_pods_without_the_machines_users_have_no_id_in_common() {
    let machine = Machine::new();
    let spec = "  hostUsers: false\n  volumes: [{name: v, emptyDir: {}}]\n";
    let mounts = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let script = "cat /proc/self/uid_map; touch /v/made; stat -c %u /v/made; exec sleep 1000";
    let mut firsts = Vec::new();
    for name in ["one", "two"] {
        machine.ok(&["run", "-d", &pod(&machine, name, script, mounts, spec)]);
        until("the log", || machine.ok(&["logs", name]).lines().count() == 2);
        let log = machine.ok(&["logs", name]);
        let words: Vec<u64> = log.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [0, first, 65_536, 0] = words[..] else { panic!("{log}") };
        firsts.push(first);
    }
    assert!(firsts[0].abs_diff(firsts[1]) >= 65_536, "{firsts:?}");
    let made = machine.sh(&format!("stat -c %u {}/root/pods/*/volumes/*/made", machine.path("").display()));
    assert_eq!(made.split_whitespace().collect::<Vec<_>>(), ["0", "0"], "root inside writes as root outside");
}

#[test]
fn a_volume_and_its_files_are_of_the_pods_group() {
    let machine = Machine::new();
    let spec = "  restartPolicy: Never\n  securityContext: {fsGroup: 1234, runAsUser: 33, runAsGroup: 34}\n  volumes: [{name: \
                v, emptyDir: {}}]\n";
    let mounts = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let file = pod(&machine, "group", "id -G; stat -c %g:%a /v; touch /v/f; stat -c %g /v/f", mounts, spec);
    assert_eq!(machine.ok(&["run", &file]), "34 1234\n1234:2777\n1234\n");
}

#[test]
fn a_runtime_class_that_does_not_exist_leaves_the_pod_failed_with_an_event() {
    let machine = Machine::new();
    let file = pod(&machine, "alien", LONG, "", "  runtimeClassName: none\n");
    let said = machine.coracle(&["run", "-d", &file]);
    assert!(!said.status.success() && said.err.contains("\"none\" not found"), "{said:?}");
    assert_eq!(machine.view("alien")["phase"], "Failed");
    let events = machine.sh(&format!("cat {}/state/events/*", machine.path("").display()));
    assert!(events.contains("FailedCreatePodSandBox"), "{events}");
    machine.ok(&["rm", "alien"]);
    assert!(machine.pods().is_empty());
}

#[test]
fn a_handler_of_the_configuration_is_a_class() {
    let machine = Machine::new();
    let file = pod(&machine, "own", "echo ran", "", "  restartPolicy: Never\n  runtimeClassName: coracle\n");
    assert_eq!(machine.ok(&["run", &file]), "ran\n");
}

#[test]
fn what_cannot_be_is_refused_by_its_name() {
    let machine = Machine::new();
    let refused = |container: &str, spec: &str, words: &str| {
        let file = pod(&machine, "bad", LONG, container, spec);
        let error = machine.fails(&["run", "-d", &file]);
        assert!(error.contains(words), "no {words:?} in {error}");
    };
    refused("    securityContext: {procMount: Unmasked}\n", "", "hostUsers must be false to use Unmasked");
    refused("    resources: {limits: {ephemeral-storage: 1Gi}}\n", "", "ephemeral-storage");
    refused("", "  hostUsers: false\n  hostIPC: true\n", "hostUsers: cannot be false together with");
    refused(
        "    resources: {requests: {memory: 1Gi}}\n",
        "  resources: {requests: {memory: 1Mi}}\n",
        "ask for more than",
    );
    assert!(machine.pods().is_empty());
}
