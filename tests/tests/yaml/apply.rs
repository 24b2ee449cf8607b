//! Several inputs, apply and down.

use super::{code, config, container, file, pod};
use coracle_tests::machine::Machine;

#[test]
fn files_folders_and_lists_are_read_together() {
    let machine = Machine::new();
    let first = file(&machine, "one.yaml", &config("one", "1"));
    file(&machine, "more/b.yml", &config("two", "2"));
    file(&machine, "more/a.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "three"}}"#);
    file(&machine, "more/notes.txt", "not YAML: [");
    let folder = machine.path("more").display().to_string();
    let out = machine.ok(&["apply", "-f", &first, "-f", &folder]);
    assert_eq!(out, "configmap/one created\nconfigmap/three created\nconfigmap/two created\n");
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}",
        config("four", "4").replace("---\n", "").replace('\n', "\n  ")
    );
    let list = file(&machine, "list.yaml", &list);
    assert_eq!(machine.ok(&["apply", &list]), "configmap/four created\n");
}

#[test]
fn apply_changes_what_has_changed_and_leaves_the_rest_alone() {
    let machine = Machine::new();
    let text = format!("{}{}{}", config("c", "1"), pod("a", "sleep 600"), pod("b", "sleep 600"));
    let path = file(&machine, "all.yaml", &text);
    assert_eq!(machine.ok(&["apply", &path]), "configmap/c created\npod/a created\npod/b created\n");
    let before = (machine.view("a")["uid"].clone(), machine.view("b")["uid"].clone());
    assert_eq!(machine.ok(&["apply", &path]), "configmap/c unchanged\npod/a unchanged\npod/b unchanged\n");
    file(&machine, "all.yaml", &text.replacen("sleep 600", "sleep 700", 1));
    assert_eq!(machine.ok(&["apply", &path]), "configmap/c unchanged\npod/a configured\npod/b unchanged\n");
    assert_ne!(machine.view("a")["uid"], before.0, "a changed pod is another pod");
    assert_eq!(machine.view("b")["uid"], before.1);
    assert_eq!(machine.ok(&["down", &path]), "pod/b deleted\npod/a deleted\nconfigmap/c deleted\n");
    assert!(machine.pods().is_empty());
    assert_eq!(machine.ok(&["down", &path]), "", "what is not there is no error");
}

#[test]
fn an_apply_that_fails_leaves_everything_as_it_was() {
    let machine = Machine::new();
    let good = file(&machine, "good.yaml", &format!("{}{}", config("c", "1"), pod("a", "sleep 600")));
    machine.ok(&["apply", &good]);
    let broken = container("true").replace("[sh, -c, 'true']", "[/no/such/program]");
    let broken = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: z}}\nspec: {{containers: [{broken}]}}\n");
    let text = format!("{}{}{}{broken}", config("c", "2"), config("new", "1"), pod("a", "sleep 700"));
    let line = machine.fails(&["apply", &file(&machine, "bad.yaml", &text)]);
    assert!(line.starts_with("coracle: apply z: ") && line.contains("/no/such/program"), "{line}");
    assert_eq!(machine.ok(&["apply", &good]), "configmap/c unchanged\npod/a unchanged\n");
    let names: Vec<String> = machine.ok(&["ps", "-a"]).lines().skip(1).map(|line| line[..1].to_owned()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn a_file_that_is_wrong_is_told_by_its_place_and_nothing_is_done() {
    let machine = Machine::new();
    let good = file(&machine, "a.yaml", &config("c", "1"));
    let wrong = file(&machine, "b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\ndata: {k: 1}\n");
    let said = machine.coracle(&["apply", &good, &wrong]);
    assert_eq!(code(&said), 2);
    assert!(said.err.contains("b.yaml:4:11: data.k: expected a string, found the number 1"), "{}", said.err);
    assert_eq!(machine.ok(&["apply", &good]), "configmap/c created\n", "it was not before");
    let cron = file(&machine, "cron.yaml", "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: d}\n");
    let said = machine.coracle(&["run", "--dry-run", &cron]);
    assert!(code(&said) == 2 && said.err.contains("kind CronJob is not done here"), "{}", said.err);
}

#[test]
fn a_dry_run_shows_defaults_and_what_has_no_effect() {
    let machine = Machine::new();
    let text = pod("a", "true").replace("spec: {", "spec: {nodeSelector: {disk: ssd}, ");
    let path = file(&machine, "a.yaml", &text);
    let out = machine.ok(&["run", "--dry-run", &path]);
    assert!(out.starts_with("pod a is valid\n  namespace default, host name a, restart Always, grace 1 s"), "{out}");
    assert!(
        out.ends_with("Pod a: spec.nodeSelector chooses a node: there is one: no effect on one machine\n"),
        "{out}"
    );
    let json = machine.ok(&["run", "--dry-run", "-o", "json", &path]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["pods"][0]["restart"], "Always");
    assert_eq!(json["without_effect"][0]["field"], "spec.nodeSelector");
    assert!(machine.pods().is_empty());
}
