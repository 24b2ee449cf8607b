//! Probes, deadlines and last messages.

use std::fs;

use coracle_tests::machine::until;

use super::{Scene, container, exec};

#[test]
fn a_container_that_fails_its_liveness_probe_is_killed_with_its_hook_and_starts_again() {
    let scene = Scene::new();
    let more = format!(
        "    lifecycle: {{preStop: {{{}}}}}\n    livenessProbe: {{{}, periodSeconds: 1, failureThreshold: 2, \
         terminationGracePeriodSeconds: 1}}\n",
        exec("echo x >> /h/hook"),
        exec("echo not well; test -e /h/well")
    );
    fs::write(scene.folder.join("well"), "").expect("write a file");
    let file = scene.pod("ill", "", &container("main", "echo run >> /h/runs; sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the container to run", || scene.container("ill", "main")["ready"] == true);
    fs::remove_file(scene.folder.join("well")).expect("remove it");
    until("the second run", || scene.file("runs").lines().count() == 2);
    fs::write(scene.folder.join("well"), "").expect("write the file again");
    assert!(scene.has_event("ill", "Unhealthy Liveness probe failed: not well"), "{:?}", scene.events("ill"));
    let killing = "Killing Container main failed liveness probe, will be restarted";
    assert!(scene.has_event("ill", killing), "{:?}", scene.events("ill"));
    assert!(scene.file("hook").starts_with("x\n"), "its preStop is called");
    scene.machine.ok(&["rm", "-f", "ill"]);
}

#[test]
fn readiness_by_http_and_tcp_comes_and_goes_and_never_kills() {
    let scene = Scene::new();
    let server = "mkdir /www; httpd -p 80 -h /www; trap 'exit 0' TERM; \
                  while :; do cp /h/page /www/ok 2>/dev/null || rm -f /www/ok; sleep 0.2; done";
    let web = "    readinessProbe: {httpGet: {path: /ok, port: 80}, periodSeconds: 1, failureThreshold: 1}\n";
    let tcp = "    readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}\n";
    let both = [container("web", server, web), container("tcp", "sleep 600", tcp)];
    let file = scene.pod("ready", "  terminationGracePeriodSeconds: 1\n", &both.concat());
    scene.machine.ok(&["run", "-d", &file]);
    until("the open port to count", || scene.container("ready", "tcp")["ready"] == true);
    until("the failure's event", || {
        scene.has_event("ready", "Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404")
    });
    assert_eq!(scene.container("ready", "web")["ready"], false);
    fs::write(scene.folder.join("page"), "ok").expect("write the page");
    scene.machine.ok(&["wait", "--for=condition=Ready", "ready"]);
    fs::remove_file(scene.folder.join("page")).expect("remove the page");
    until("it to be unready again", || scene.machine.view("ready")["ready"] == 1);
    assert_eq!(scene.machine.view("ready")["restarts"], 0);
    scene.machine.ok(&["rm", "-f", "ready"]);
}

#[test]
fn a_startup_probe_holds_back_the_others_and_kills_what_never_starts() {
    let scene = Scene::new();
    let more = format!(
        "    startupProbe: {{{}, periodSeconds: 1, failureThreshold: 30}}\n    livenessProbe: {{{}, periodSeconds: 1, \
         failureThreshold: 1}}\n",
        exec("test -e /h/up"),
        exec("test -e /h/up && echo x >> /h/live")
    );
    let file = scene.pod("slow", "", &container("main", "sleep 2; touch /h/up; sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the liveness probe", || !scene.file("live").is_empty());
    assert_eq!(scene.machine.view("slow")["restarts"], 0, "it did not look before");
    scene.machine.ok(&["rm", "-f", "slow"]);

    let more = format!(
        "    startupProbe: {{{}, periodSeconds: 1, failureThreshold: 2, terminationGracePeriodSeconds: 1}}\n",
        exec("exit 1")
    );
    let head = "  restartPolicy: Never\n";
    scene.machine.ok(&["run", "-d", &scene.pod("never", head, &container("main", "sleep 600", &more))]);
    until("the pod to have failed", || scene.machine.view("never")["phase"] == "Failed");
    assert!(scene.has_event("never", "Killing Container main failed startup probe"), "{:?}", scene.events("never"));
}

#[test]
fn a_pod_past_its_deadline_is_ended_and_has_failed() {
    let scene = Scene::new();
    let script = "trap 'echo bye >> /h/end; exit 0' TERM; while :; do sleep 0.1; done";
    let file = scene.pod("late", "  activeDeadlineSeconds: 2\n", &container("main", script, ""));
    scene.machine.ok(&["run", "-d", &file]);
    until("the pod to have failed", || scene.machine.view("late")["phase"] == "Failed");
    assert_eq!(scene.machine.view("late")["status"], "DeadlineExceeded");
    assert_eq!(scene.file("end"), "bye\n");
    let told = "DeadlineExceeded Pod was active on the node longer than the specified deadline";
    assert!(scene.has_event("late", told), "{:?}", scene.events("late"));
}

#[test]
fn a_container_leaves_a_last_message_or_the_end_of_its_log() {
    let scene = Scene::new();
    let fallback = "    terminationMessagePolicy: FallbackToLogsOnError\n";
    let all = [
        container("file", "printf gone > /dev/termination-log", ""),
        container("place", "printf here > /tmp/last", "    terminationMessagePath: /tmp/last\n"),
        container("log", "echo from the log; exit 1", fallback),
        container("well", "echo all is well", fallback),
    ];
    let file = scene.pod("words", "  restartPolicy: Never\n", &all.concat());
    scene.machine.coracle(&["run", &file]);
    let message = |name: &str| scene.container("words", name)["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!((message("file").as_str(), message("place").as_str()), ("gone", "here"));
    assert_eq!((message("log").as_str(), message("well").as_str()), ("from the log\n", ""));
}
