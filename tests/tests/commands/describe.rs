//! `coracle describe` and `coracle inspect`: what is told of a pod.

use coracle_tests::machine::{IMAGE, Machine};
use serde_json::Value;

use crate::{SLEEP, start, until};

/// The text with runs of spaces as one, so that alignment is of no matter.
fn squeezed(text: &str) -> String {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_pod_is_described_as_kubectl_does() {
    let machine = Machine::new();
    let container = "    args: [one]\n    ports: [{containerPort: 80, hostPort: 18080, name: web}]\n    \
        resources: {limits: {memory: 64Mi}, requests: {cpu: 10m}}\n    env: [{name: A, value: b}]\n    \
        volumeMounts: [{name: data, mountPath: /data, readOnly: true}]\n";
    let spec = format!(
        "  initContainers:\n  - {{name: prepare, image: {IMAGE}, imagePullPolicy: Never, command: [\"true\"]}}\n  \
         volumes:\n  - {{name: data, emptyDir: {{}}}}\n"
    );
    start(&machine, "web", SLEEP, container, &spec);
    until("it runs", || machine.view("web")["status"] == "Running");
    let text = squeezed(&machine.ok(&["describe", "web"]));
    for part in [
        "Name: web\nNamespace: default\n",
        "\nLabels: <none>\nAnnotations: <none>\nStatus: Running\n",
        "\nInit Containers:\nprepare:\nContainer ID: coracle://",
        "\nCommand:\ntrue\nState: Terminated\nReason: Completed\nExit Code: 0\n",
        "\nContainers:\nmain:\n",
        "\nPort: 80/TCP (web)\nHost Port: 18080/TCP\n",
        "\nArgs:\none\nState: Running\nStarted: ",
        "\nReady: True\nRestart Count: 0\nLimits:\nmemory: 64Mi\nRequests:\ncpu: 10m\nmemory: 64Mi\n",
        "\nEnvironment:\nA: b\nMounts:\n/data from data (ro)\n",
        "\nConditions:\nType: Status\n",
        "\nInitialized: True\n",
        "\nContainersReady: True\n",
        "\nPodScheduled: True\n",
        "\nVolumes:\ndata:\nType: EmptyDir (a temporary directory that shares a pod's lifetime)\nMedium:\nSizeLimit: <unset>\n",
        "\nQoS Class: ",
        "\nEvents:\nType Reason Age From Message\n---- ------ ---- ---- -------\nNormal Pulled ",
        "coracle Started container main",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn a_container_that_failed_shows_how_it_ended_and_how_it_waits() {
    let machine = Machine::new();
    start(&machine, "bad", "exit 3", "", "");
    until("it backs off", || machine.view("bad")["status"] == "CrashLoopBackOff");
    let text = squeezed(&machine.ok(&["describe", "bad"]));
    for part in [
        "\nState: Waiting\nReason: CrashLoopBackOff\n",
        "\nLast State: Terminated\nReason: Error\nExit Code: 3\n",
        "\nReady: False\nRestart Count: 1\n",
        "\nContainersReady: False\n",
        "Warning BackOff ",
        "(x2 over ",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let list = machine.ok(&["ps"]);
    assert!(list.contains("0/1     CrashLoopBackOff   1 ("), "{list}");
}

#[test]
fn inspect_tells_the_records_of_pods_containers_and_images() {
    let machine = Machine::new();
    start(&machine, "web", SLEEP, "", "");
    let inspect = |name: &str| -> Value {
        let list: Value = serde_json::from_str(&machine.ok(&["inspect", name])).expect("JSON of inspect");
        list[0].clone()
    };
    let pod = inspect("web");
    assert_eq!((&pod["kind"], &pod["pod"]["pod"]["name"]), (&Value::from("Pod"), &Value::from("web")));
    let id = pod["containers"][0]["record"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(inspect(&id)["kind"], "Container");
    assert_eq!(inspect(IMAGE)["kind"], "Image");
    assert!(machine.fails(&["inspect", "nothing"]).contains("no pod, no container and no image"));
}
