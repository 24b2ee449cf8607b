//! The examples of `tests/pods/examples`: pods of the kinds that the documentation of Kubernetes shows, each as a reader would try
//! it.

use std::time::{Duration, Instant};

use coracle_tests::machine::Machine;
use serde_json::Value;

/// How long something that happens by itself may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A machine, and the file of an example.
fn example(name: &str) -> (Machine, String) {
    (Machine::new(), format!("{}/pods/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR")))
}

/// Runs an example that ends, and gives its output.
fn output(name: &str) -> String {
    let (machine, file) = example(name);
    let out = machine.ok(&["run", &file]);
    machine.ok(&["down", &file]);
    assert!(machine.pods().is_empty(), "down removes what the file made");
    out
}

/// Starts an example that stays.
fn started(name: &str) -> (Machine, String) {
    let (machine, file) = example(name);
    machine.ok(&["run", "-d", &file]);
    (machine, file)
}

fn ready(machine: &Machine, pod: &str) {
    machine.ok(&["wait", "--for=condition=Ready", "--timeout=60s", pod]);
}

/// The reasons of a pod's events, in their order, each once.
fn reasons(machine: &Machine, pod: &str) -> Vec<String> {
    let events: Value = serde_json::from_str(&machine.ok(&["events", pod, "-o", "json"])).expect("JSON of events");
    let mut reasons: Vec<String> = Vec::new();
    for event in events.as_array().expect("a list of events") {
        let reason = event["reason"].as_str().expect("a reason").to_owned();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    reasons
}

#[test]
fn the_lifecycle_example_serves_what_post_start_wrote_and_quits_when_pre_stop_asks() {
    let (machine, file) = started("lifecycle");
    ready(&machine, "lifecycle-demo");
    let page = || machine.sh(&format!("curl -s http://{}/message || true", machine.ip("lifecycle-demo")));
    until("the page of the handler", || page() == "Hello from the postStart handler\n");
    machine.ok(&["stop", "lifecycle-demo"]);
    let view = machine.view("lifecycle-demo");
    assert_eq!(view["containers"][0]["exitCode"], 0, "it was asked, and not killed: {view}");
    assert_eq!(reasons(&machine, "lifecycle-demo"), ["Pulled", "Created", "Started", "Killing"]);
    machine.ok(&["down", &file]);
}

#[test]
fn a_failing_post_start_handler_is_told_of_in_the_events() {
    let (machine, file) = started("lifecycle-failing");
    until("the end of the pod", || machine.view("lifecycle-failing")["phase"] == "Failed");
    let told = reasons(&machine, "lifecycle-failing");
    assert!(
        ["Started", "FailedPostStartHook", "Killing"].iter().all(|reason| told.iter().any(|r| r == reason)),
        "{told:?}"
    );
    let described = machine.ok(&["describe", "lifecycle-failing"]);
    assert!(described.contains("FailedPostStartHook") && described.contains("no such luck"), "{described}");
    machine.ok(&["down", &file]);
}

#[test]
fn init_containers_wait_for_services_by_their_names() {
    let (machine, file) = started("init-containers");
    until("the app runs", || {
        machine.coracle(&["logs", "myapp-pod", "-c", "myapp-container"]).out == "The app is running!\n"
    });
    machine.ok(&["down", &file]);
}

#[test]
fn two_containers_share_a_volume() {
    let (machine, file) = started("shared-volume");
    let page = || {
        machine.coracle(&["exec", "two-containers", "-c", "web-container", "--", "wget", "-qO-", "http://127.0.0.1/"])
    };
    until("the page of the other container", || page().out == "Hello from the debian container\n");
    machine.ok(&["down", &file]);
}

#[test]
fn a_container_whose_liveness_command_fails_starts_again() {
    let (machine, file) = started("liveness-exec");
    until("a restart", || machine.view("liveness-exec")["restarts"].as_u64().is_some_and(|restarts| restarts > 0));
    let described = machine.ok(&["describe", "liveness-exec"]);
    let told = "Liveness probe failed: cat: can't open '/tmp/healthy': No such file or directory";
    assert!(described.contains(told), "{described}");
    assert!(described.contains("Container liveness failed liveness probe, will be restarted"), "{described}");
    machine.ok(&["down", &file]);
}

#[test]
fn probes_over_http_make_a_pod_ready() {
    let (machine, file) = started("probes-http");
    ready(&machine, "goproxy");
    let list = machine.ok(&["ps"]);
    assert!(list.contains("goproxy   1/1     Running"), "{list}");
    assert!(reasons(&machine, "goproxy").contains(&"Unhealthy".to_owned()), "the startup probe came before the server");
    machine.ok(&["down", &file]);
}

#[test]
fn a_config_map_comes_as_variables_and_files() {
    let wanted = "3 user-interface.properties\nenemy.types=aliens,monsters\nplayer.maximum-lives=5\n\
                  color.good=purple\nallow.textmode=true\n";
    assert_eq!(output("configmap"), wanted);
}

#[test]
fn a_secret_comes_as_variables_and_files_and_projected() {
    assert_eq!(output("secret"), "my-app\n39528$vdg7Jb\nzone=\"us-est-coast\"my-app");
}

#[test]
fn a_container_is_told_of_itself_and_its_pod() {
    let out = output("downward-api");
    let lines: Vec<&str> = out.lines().collect();
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(words[1..], ["dapi-envars", "default", "125", "67108864"], "{out}");
    assert!(lines[1].parse::<std::net::Ipv4Addr>().is_ok(), "{out}");
    assert_eq!(lines[2], "cluster=\"test-cluster1\"", "{out}");
    assert!(lines[3..].contains(&"build=\"two\""), "{out}");
}

#[test]
fn a_sidecar_ships_the_log_and_does_not_keep_the_job_from_ending() {
    let out = output("sidecar");
    assert!(out.lines().any(|line| line.contains("logshipper") && line.ends_with("| logging")), "{out}");
}

#[test]
fn processes_and_files_are_whose_the_security_context_says() {
    assert_eq!(output("security-context"), "1000\n3000\n3000 2000 4000\n1000 2000\n");
}

#[test]
fn a_job_works_off_its_items() {
    let out = output("job");
    for index in 0..4 {
        assert!(out.contains(&format!("Processing item {index}\n")), "{out}");
    }
}

#[test]
fn the_guestbook_answers_through_its_services() {
    let (machine, file) = started("guestbook");
    let front_ends = || -> Vec<String> {
        let list: Value = serde_json::from_str(&machine.ok(&["ps", "-a", "-o", "json"])).expect("JSON of ps");
        let names = list.as_array().expect("a list").iter().filter_map(|pod| pod["name"].as_str().map(str::to_owned));
        names.filter(|name| name.starts_with("frontend-")).collect()
    };
    assert_eq!(front_ends().len(), 2);
    front_ends().iter().for_each(|pod| ready(&machine, pod));
    let asker = front_ends().remove(0);
    let mut seen = std::collections::BTreeSet::new();
    until("an answer of both front ends", || {
        let said = machine.coracle(&["exec", &asker, "--", "wget", "-qO-", "http://frontend/cgi-bin/ask"]).out;
        // Without the store's word it is too early.
        if let Some(front_end) = said.strip_prefix("stored\n") {
            seen.insert(front_end.to_owned());
        }
        seen.len() == 2
    });
    machine.ok(&["down", &file]);
}

#[test]
fn the_pods_of_a_stateful_set_have_names_and_claims_of_their_own() {
    let (machine, file) = started("statefulset");
    for pod in ["web-0", "web-1"] {
        ready(&machine, pod);
    }
    let ask = |url: &str| machine.coracle(&["exec", "web-0", "--", "wget", "-qO-", url]).out;
    until("an answer by the name of the pod", || ask("http://web-1.nginx/") == "web-1\n");
    machine.ok(&["exec", "web-1", "--", "sh", "-c", "echo kept > /usr/share/html/kept"]);
    machine.ok(&["down", &file]);
    machine.ok(&["run", "-d", &file]);
    ready(&machine, "web-1");
    until("what the claim kept", || ask("http://web-1.nginx/kept") == "kept\n");
    machine.ok(&["down", &file]);
}
