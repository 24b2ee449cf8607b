//! Variables: references, their order, what is told when something is missing.

use serde_json::json;

use coracle_tests::machine::Machine;

use crate::{config_map, lines, pod, secret, until};

#[test]
fn variables_come_from_objects_and_fields_and_expand_in_order() {
    let machine = Machine::new();
    config_map(&machine, "settings", json!({ "COLOR": "blue", "SIZE": "7" }));
    secret(&machine, "keys", "Opaque", "TOKEN", "s3cret");
    let env = "    resources: {limits: {memory: 64Mi, cpu: 500m}}\n    \
        envFrom:\n    - {prefix: CM_, configMapRef: {name: settings}}\n    - {secretRef: {name: none, optional: true}}\n    \
        env:\n    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: TOKEN}}}\n    \
        - {name: ALL, value: '$(CM_COLOR)-$(TOKEN)-$(LATER)-$$(TOKEN)'}\n    - {name: LATER, value: x}\n    \
        - {name: CM_SIZE, value: '8'}\n    \
        - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n    \
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}\n    \
        - {name: MIB, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}\n    \
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}\n    args: [zero, '$(MIB)']\n";
    let script = "echo \"$ALL\" $CM_COLOR $CM_SIZE $WHO $MIB $CPU $1 $HOSTNAME; hostname -i | grep -cx \"$IP\"";
    let seen = lines(&machine, &pod(&machine, "env", script, env, ""));
    assert_eq!(seen, ["blue-s3cret-$(LATER)-$(TOKEN) blue 8 env 64 500 64 env", "1"]);
}

#[test]
fn a_container_waits_for_what_it_refers_to_and_says_so_in_kubelets_words() {
    let machine = Machine::new();
    config_map(&machine, "settings", json!({ "A": "1" }));
    for (name, field, words) in [
        ("map", "envFrom: [{configMapRef: {name: none}}]", "configmap \"none\" not found"),
        (
            "key",
            "env: [{name: X, valueFrom: {configMapKeyRef: {name: settings, key: B}}}]",
            "couldn't find key B in ConfigMap default/settings",
        ),
        ("secret", "env: [{name: X, valueFrom: {secretKeyRef: {name: none, key: B}}}]", "secret \"none\" not found"),
    ] {
        machine.ok(&["run", "-d", &pod(&machine, name, "echo $X", &format!("    {field}\n"), "")]);
        assert_eq!(machine.view(name)["status"], "CreateContainerConfigError");
        let events = machine.ok(&["events"]);
        assert!(events.contains(&format!("Error: {words}")), "{events}");
    }
    config_map(&machine, "settings", json!({ "A": "1", "B": "here now" }));
    until("the container that waited", || machine.view("key")["phase"] == "Succeeded");
    assert_eq!(machine.ok(&["logs", "key"]), "here now\n");
    machine.ok(&["rm", "-f", "map", "key", "secret"]);
}
