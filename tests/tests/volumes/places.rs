//! Volumes that containers write to: in memory, on disk, of claims; and paths in them, with a hostile neighbour.

use coracle_tests::machine::{IMAGE, Machine};
use serde_json::json;

use crate::{apply, lines, pod, until};

#[test]
fn an_empty_dir_in_memory_is_a_tmpfs_of_its_size() {
    let machine = Machine::new();
    let volumes = "  volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]\n";
    let mounts = "    volumeMounts: [{name: m, mountPath: /m}]\n";
    let script = "grep ' /m ' /proc/mounts | cut -d' ' -f3; df -k /m | tail -1 | awk '{print $2}'; \
                  dd if=/dev/zero of=/m/x bs=64k count=32 2>/dev/null || echo full; stat -c %a /m";
    assert_eq!(lines(&machine, &pod(&machine, "mem", script, mounts, volumes)), ["tmpfs", "1024", "full", "777"]);
}

#[test]
fn an_empty_dir_over_its_limit_has_its_pod_evicted() {
    let machine = Machine::new();
    let volumes = "  volumes: [{name: e, emptyDir: {sizeLimit: 1Mi}}]\n";
    let mounts = "    volumeMounts: [{name: e, mountPath: /e}]\n";
    let script = "dd if=/dev/zero of=/e/x bs=64k count=64 2>/dev/null; sync; sleep 600";
    machine.ok(&["run", "-d", &pod(&machine, "fat", script, mounts, volumes)]);
    until("the eviction", || machine.view("fat")["phase"] == "Failed");
    let events = machine.ok(&["events"]);
    assert!(
        events.contains("Evicted") && events.contains("Usage of EmptyDir volume \"e\" exceeds the limit"),
        "{events}"
    );
    machine.ok(&["rm", "-f", "fat"]);
}

#[test]
fn a_claims_directory_outlives_its_pods() {
    let machine = Machine::new();
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    apply(&machine, "data", json!({ "kind": "PersistentVolumeClaim", "spec": spec }));
    let volumes = "  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]\n";
    let mounts = "    volumeMounts: [{name: d, mountPath: /d}, {name: d, mountPath: /r, readOnly: true}]\n";
    lines(&machine, &pod(&machine, "one", "echo kept > /d/file", mounts, volumes));
    let script = "cat /r/file; touch /r/x 2>/dev/null || echo readonly";
    assert_eq!(lines(&machine, &pod(&machine, "two", script, mounts, volumes)), ["kept", "readonly"]);
    assert!(machine.path("root/claims/default/data/file").exists());
}

#[test]
fn a_claim_takes_the_smallest_volume_that_fits_and_nobody_else_gets_it() {
    let machine = Machine::new();
    for (name, size) in [("large", "10Gi"), ("fits", "2Gi"), ("small", "1Mi")] {
        let path = machine.path(name);
        std::fs::create_dir(&path).expect("make a folder");
        let spec =
            json!({ "accessModes": ["ReadWriteOnce"], "capacity": { "storage": size }, "hostPath": { "path": path } });
        apply(&machine, name, json!({ "kind": "PersistentVolume", "spec": spec }));
    }
    for name in ["one", "two"] {
        let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
        apply(&machine, name, json!({ "kind": "PersistentVolumeClaim", "spec": spec }));
        let volumes = format!("  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {name}}}}}]\n");
        let mounts = "    volumeMounts: [{name: d, mountPath: /d}]\n";
        for pod_name in ["first", "again"] {
            lines(&machine, &pod(&machine, pod_name, &format!("touch /d/{name}"), mounts, &volumes));
        }
    }
    assert!(machine.path("fits/one").exists() && machine.path("large/two").exists());
}

#[test]
fn a_path_in_a_volume_is_made_where_it_is_missing() {
    let machine = Machine::new();
    let volumes = "  volumes: [{name: v, emptyDir: {}}]\n";
    let mounts = "    env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n    \
        volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /a, subPath: a/b}, {name: v, mountPath: /w, subPathExpr: 'by/$(WHO)'}]\n";
    let script = "touch /a/one /w/two; ls /v/a/b /v/by/sub; stat -c %a /v/a/b";
    let seen = lines(&machine, &pod(&machine, "sub", script, mounts, volumes));
    assert_eq!(seen, ["/v/a/b:", "one", "", "/v/by/sub:", "two", "777"]);
}

#[test]
fn a_neighbour_that_swaps_a_link_into_the_path_never_gets_the_host_mounted() {
    let machine = Machine::new();
    let secret = machine.path("secret");
    std::fs::create_dir_all(secret.join("x")).expect("make a folder");
    std::fs::write(secret.join("x/file"), "of the host\n").expect("write a file");
    // One container makes the folder a link to the host's and back again, while the other is started again and again
    // on a path through it. What it may see is a folder of the volume, or nothing because it could not be made.
    let swap = format!(
        "mkdir -p /v/d/x; echo inside > /v/d/x/file; ln -s {} /v/l; while :; do mv /v/d /v/t; mv /v/l /v/d; mv /v/d /v/l; mv /v/t /v/d; done",
        secret.display()
    );
    let spec = format!(
        "  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n  - name: swap\n    image: {IMAGE}\n    \
         imagePullPolicy: Never\n    command: [sh, -c, '{swap}']\n    volumeMounts: [{{name: v, mountPath: /v}}]\n  \
         - name: look\n    image: {IMAGE}\n    imagePullPolicy: Never\n    \
         command: [sh, -c, 'echo ran; cat /x/file 2>/dev/null; grep -c -F \"{host}\" /proc/self/mountinfo; exit 1']\n    \
         volumeMounts: [{{name: v, mountPath: /x, subPath: d/x}}]\n",
        host = secret.display()
    );
    let file = machine.pod("race", &spec);
    let mut seen = 0;
    for _ in 0..8 {
        // Whether the pod comes up or is refused is the neighbour's luck.
        let said = machine.coracle(&["run", "-d", "--replace", &file]);
        if said.status.success() {
            // It began, or waits for a path that leads nowhere else.
            let log = || machine.coracle(&["logs", "-c", "look", "race"]).out;
            let waits = ["CreateContainerConfigError", "StartError", "CrashLoopBackOff"];
            until("a first look", || {
                !log().is_empty() || waits.iter().any(|status| machine.view("race")["status"] == *status)
            });
            let log = log();
            assert!(!log.contains("of the host"), "{log}");
            seen += usize::from(!log.is_empty());
        }
    }
    eprintln!("{seen} of 8 began");
    assert!(!secret.join("x/x").exists() && std::fs::read_dir(secret.join("x")).expect("list").count() == 1);
    machine.ok(&["rm", "-f", "race"]);
}
