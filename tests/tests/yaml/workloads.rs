//! Deployments and their kin as pods; Jobs to their end.

use super::{code, container, file};
use coracle_tests::machine::Machine;

fn workload(kind: &str, name: &str, fields: &str, pod_fields: &str, script: &str) -> String {
    let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let selector = if kind == "Job" { "" } else { "selector: {matchLabels: {app: x}}, " };
    let spec = format!("{{terminationGracePeriodSeconds: 1, {pod_fields}containers: [{}]}}", container(script));
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{selector}{fields}template: \
         {{metadata: {{labels: {{app: x}}}}, spec: {spec}}}}}\n---\n"
    )
}

#[test]
fn a_deployment_has_as_many_pods_as_it_says() {
    let machine = Machine::new();
    let text = workload("Deployment", "web", "replicas: 3, ", "", "hostname; sleep 600");
    let path = file(&machine, "web.yaml", &text);
    let out = machine.ok(&["apply", &path]);
    assert_eq!(out, "deployment/web created\npod/web-0 created\npod/web-1 created\npod/web-2 created\n");
    assert_eq!(machine.ok(&["logs", "web-2"]), "web-2\n");
    file(&machine, "web.yaml", &text.replace("replicas: 3", "replicas: 1"));
    let out = machine.ok(&["apply", &path]);
    assert!(out.contains("pod/web-2 deleted") && out.contains("pod/web-0 unchanged"), "{out}");
    assert_eq!(machine.pods().len(), 1);
    machine.ok(&["down", &path]);
    assert!(machine.pods().is_empty());
}

#[test]
fn a_stateful_set_starts_in_order_and_a_daemon_set_once() {
    let machine = Machine::new();
    let set = workload("StatefulSet", "db", "replicas: 2, ", "", "sleep 600");
    let all = format!("{set}{}", workload("DaemonSet", "agent", "", "", "sleep 600"));
    let path = file(&machine, "all.yaml", &all);
    assert_eq!(machine.ok(&["run", "-d", &path]), "started db-0\nstarted db-1\nstarted agent-0\n");
    machine.ok(&["down", &path]);
    assert!(machine.pods().is_empty());
}

#[test]
fn the_next_pod_of_a_stateful_set_waits_until_the_one_before_is_ready() {
    let machine = Machine::new();
    let set = workload("StatefulSet", "db", "replicas: 2, ", "", "sleep 4; touch /ready; exec sleep 600");
    let ready = "readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}";
    let set = set.replace("imagePullPolicy: Never", &format!("imagePullPolicy: Never, {ready}"));
    let said = machine.coracle(&["run", "-d", &file(&machine, "set.yaml", &set)]);
    assert_eq!((code(&said), said.out.as_str()), (0, "started db-0\nstarted db-1\n"), "{}", said.err);
    assert_eq!(said.err, "coracle: db-1 starts once db-0 is ready (within 600 s)\n");
    assert_eq!(machine.view("db-0")["ready"], 1);
}

#[test]
fn an_indexed_job_runs_each_index_to_success() {
    let machine = Machine::new();
    let fields = "completions: 3, parallelism: 1, completionMode: Indexed, ";
    let text = workload("Job", "work", fields, "restartPolicy: Never, ", "echo index $JOB_COMPLETION_INDEX");
    let path = file(&machine, "job.yaml", &text);
    let said = machine.coracle(&["run", "--rm", &path]);
    assert_eq!((code(&said), said.err.as_str()), (0, ""));
    for index in 0..3 {
        assert!(said.out.contains(&format!("index {index}\n")), "{}", said.out);
    }
    assert!(machine.pods().is_empty());
}

#[test]
fn a_job_that_fails_more_than_it_may_has_failed() {
    let machine = Machine::new();
    let text = workload("Job", "bad", "backoffLimit: 0, ", "restartPolicy: Never, ", "exit 3");
    let said = machine.coracle(&["run", &file(&machine, "job.yaml", &text)]);
    assert_eq!(code(&said), 3);
    assert_eq!(machine.pods().len(), 1, "no second pod was made");
}
