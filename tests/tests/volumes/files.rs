//! Volumes that show objects and facts: what is in them, in kubelet's layout, and how they change.

use coracle_tests::machine::Machine;
use serde_json::json;

use crate::{config_map, lines, pod, secret, until};

#[test]
fn objects_and_facts_are_files_in_kubelets_layout() {
    let machine = Machine::new();
    config_map(&machine, "settings", json!({ "color": "blue", "size": "7" }));
    secret(&machine, "keys", "Opaque", "token", "s3cret");
    let volumes = "  volumes:\n  - {name: c, configMap: {name: settings, items: [{key: color, path: deep/er/color, mode: 0400}]}}\n  \
        - {name: s, secret: {secretName: keys, defaultMode: 0440}}\n  \
        - {name: d, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}, \
        {path: mem, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}]}}\n  \
        - {name: p, projected: {sources: [{configMap: {name: settings}}, {secret: {name: keys, items: [{key: token, path: k/t}]}}, \
        {secret: {name: none, optional: true}}]}}\n";
    let mounts = "    resources: {limits: {memory: 64Mi}}\n    volumeMounts: [{name: c, mountPath: /c}, {name: s, mountPath: /s}, \
        {name: d, mountPath: /d}, {name: p, mountPath: /p}]\n";
    let script = "cat /c/deep/er/color; echo; stat -L -c %a /c/deep/er/color /s/token; readlink /s/token; readlink /c/deep; ls /c; cat /d/name /d/mem; \
        echo; cat /p/color /p/size /p/k/t; echo; touch /s/x 2>/dev/null || echo readonly; readlink /p/..data | cut -c1-4";
    let seen = lines(&machine, &pod(&machine, "files", script, mounts, volumes));
    let expected =
        ["blue", "400", "440", "..data/token", "..data/deep", "deep", "files64", "blue7s3cret", "readonly", "..20"];
    assert_eq!(seen, expected);
}

#[test]
fn files_follow_their_objects_but_for_those_of_sub_paths() {
    let machine = Machine::new();
    config_map(&machine, "live", json!({ "word": "old", "gone": "x" }));
    let volumes = "  volumes: [{name: c, configMap: {name: live}}]\n";
    let mounts = "    volumeMounts: [{name: c, mountPath: /c}, {name: c, mountPath: /one, subPath: word}]\n";
    let file = pod(&machine, "live", "sleep 600", mounts, volumes);
    machine.ok(&["run", "-d", &file]);
    let cat = || machine.ok(&["exec", "live", "--", "sh", "-c", "cat /c/word /one; ls /c"]);
    assert_eq!(cat(), "oldoldgone\nword\n");
    config_map(&machine, "live", json!({ "word": "new", "more": "y" }));
    until("the new words", || cat() == "newoldmore\nword\n");
    machine.ok(&["rm", "-f", "live"]);
}

#[test]
fn a_pod_waits_for_the_objects_of_its_volumes_and_says_so_in_kubelets_words() {
    let machine = Machine::new();
    config_map(&machine, "settings", json!({ "color": "blue" }));
    for (name, source, words) in [
        ("map", "configMap: {name: none}", "configmap \"none\" not found"),
        ("secret", "secret: {secretName: none}", "secret \"none\" not found"),
        (
            "key",
            "configMap: {name: settings, items: [{key: size, path: size}]}",
            "configmap references non-existent config key: size",
        ),
        ("claim", "persistentVolumeClaim: {claimName: none}", "persistentvolumeclaim \"none\" not found"),
    ] {
        let volumes = format!("  volumes: [{{name: v, {source}}}]\n");
        let mounts = "    volumeMounts: [{name: v, mountPath: /v}]\n";
        machine.ok(&["run", "-d", &pod(&machine, name, "cat /v/size; echo", mounts, &volumes)]);
        assert_eq!(machine.view(name)["status"], "ContainerCreating");
        let events = machine.ok(&["events"]);
        assert!(events.contains(&format!("MountVolume.SetUp failed for volume \"v\" : {words}")), "{events}");
    }
    config_map(&machine, "settings", json!({ "color": "blue", "size": "seven" }));
    until("the pod that waited", || machine.view("key")["phase"] == "Succeeded");
    assert_eq!(machine.ok(&["logs", "key"]), "seven\n");
    machine.ok(&["rm", "-f", "map", "secret", "key", "claim"]);
}
