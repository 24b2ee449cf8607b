//! Sidecars, and restart policies of single containers.

use coracle_tests::machine::until;

use super::{Scene, container, exec, say};

fn words(scene: &Scene) -> Vec<String> {
    scene.words().into_iter().map(|(_, word)| word).collect()
}

#[test]
fn sidecars_start_in_order_never_keep_a_pod_from_ending_and_stop_last_in_reverse() {
    let scene = Scene::new();
    let sidecar = |name: &str, more: &str| {
        let script = format!(
            "trap '{}; exit 0' TERM; {}; while :; do sleep 0.1; done",
            say(&format!("{name}-STOPS")),
            say(name)
        );
        container(&name.to_lowercase(), &script, &format!("    restartPolicy: Always\n{more}"))
    };
    let startup =
        format!("    startupProbe: {{{}, periodSeconds: 1}}\n", exec(&format!("sleep 0.5; {}", say("PROBE"))));
    let head = format!(
        "  restartPolicy: Never\n  initContainers:\n{}{}{}",
        sidecar("ONE", &startup),
        container("init", &say("INIT"), ""),
        sidecar("TWO", "")
    );
    let file = scene.pod("job", &head, &container("main", &format!("sleep 0.5; {}", say("MAIN")), ""));
    scene.machine.ok(&["run", "-d", &file]);
    until("the pod to have succeeded", || scene.machine.view("job")["phase"] == "Succeeded");
    let expected = ["ONE", "PROBE", "INIT", "TWO", "MAIN", "TWO-STOPS", "ONE-STOPS"];
    assert_eq!(words(&scene), expected, "{:?}", scene.events("job"));
}

#[test]
fn a_stopped_pod_stops_its_sidecars_after_its_containers() {
    let scene = Scene::new();
    let script = |word: &str| {
        format!("trap 'sleep 0.5; {}; exit 0' TERM; touch /h/{word}; while :; do sleep 0.1; done", say(word))
    };
    let head = format!("  initContainers:\n{}", container("side", &script("SIDE"), "    restartPolicy: Always\n"));
    scene.machine.ok(&["run", "-d", &scene.pod("pair", &head, &container("main", &script("MAIN"), ""))]);
    until("both to run", || scene.folder.join("SIDE").exists() && scene.folder.join("MAIN").exists());
    scene.machine.ok(&["stop", "pair"]);
    assert_eq!(words(&scene), ["MAIN", "SIDE"]);
}

#[test]
fn a_sidecar_that_ends_starts_again_whatever_the_pods_policy() {
    let scene = Scene::new();
    let head = format!(
        "  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  initContainers:\n{}",
        container("side", "echo x >> /h/runs; sleep 0.3", "    restartPolicy: Always\n")
    );
    scene.machine.ok(&["run", "-d", &scene.pod("again", &head, &container("main", "sleep 600", ""))]);
    until("the second run", || scene.file("runs").lines().count() >= 2);
    scene.machine.ok(&["rm", "-f", "again"]);
}

#[test]
fn rules_of_a_container_start_it_again_after_their_exit_codes() {
    let scene = Scene::new();
    let rules = "    restartPolicy: Never\n    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]\n";
    let script = "echo x >> /h/runs; [ $(wc -l < /h/runs) -ge 2 ] && exit 7; exit 42";
    let file = scene.pod("rules", "  restartPolicy: Never\n", &container("main", script, rules));
    scene.machine.ok(&["run", "-d", &file]);
    until("the pod to have failed", || scene.machine.view("rules")["phase"] == "Failed");
    assert_eq!((scene.file("runs").lines().count(), &scene.container("rules", "main")["exitCode"]), (2, &7.into()));
}
