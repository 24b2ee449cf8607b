//! Deployments and their kin as pods; Jobs to their end.

use super::{code, container, file};
use coracle_tests::machine::{Machine, until};
use std::time::Duration;

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

/// Its pods have no second life: what was to follow them is decided when it is due.
#[test]
fn a_job_that_was_deleted_makes_no_more_pods_and_ends_no_other_of_its_name() {
    let machine = Machine::new();
    let failing = workload("Job", "bad", "backoffLimit: 4, ", "restartPolicy: Never, ", "exit 1");
    let short = workload("Job", "twice", "ttlSecondsAfterFinished: 4, ", "restartPolicy: Never, ", "true");
    let path = file(&machine, "jobs.yaml", &format!("{failing}{short}"));
    machine.ok(&["run", "-d", &path]);
    let phase = |pod: &str| machine.view(pod)["phase"].as_str().map(str::to_owned);
    until("both have ended", || {
        phase("bad-0").as_deref() == Some("Failed") && phase("twice-0").as_deref() == Some("Succeeded")
    });
    machine.ok(&["down", &path]);
    let long = workload("Job", "twice", "ttlSecondsAfterFinished: 4, ", "restartPolicy: Never, ", "sleep 600");
    let path = file(&machine, "again.yaml", &long);
    machine.ok(&["run", "-d", &path]);
    // Beyond the delay after a failure, and the time for which a finished Job is kept.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(machine.pods().len(), 1);
    assert_eq!(phase("twice-0").as_deref(), Some("Running"));
    machine.ok(&["down", &path]);
}

#[test]
fn a_pod_past_its_deadline_has_failed_however_its_containers_end() {
    let machine = Machine::new();
    let script = "trap \"exit 0\" TERM; sleep 100 & wait";
    let fields = "restartPolicy: Never, activeDeadlineSeconds: 1, ";
    let text = workload("Job", "late", "backoffLimit: 0, ", fields, script);
    let said = machine.coracle(&["run", &file(&machine, "job.yaml", &text)]);
    assert_eq!(code(&said), 1, "{said:?}");
    assert_eq!(machine.pods().len(), 1, "no second pod was made");
}
