//! Hooks, the grace period, and the order of a life.

use std::time::Instant;

use coracle_tests::machine::until;

use super::{Scene, container, exec, say};

#[test]
fn a_life_goes_from_init_by_start_hook_and_probes_to_the_hook_before_its_end() {
    let scene = Scene::new();
    let script = format!(
        "trap '{}; exit 0' TERM; {}; sleep 4 & wait; {}; while :; do sleep 1; done",
        say("TERM"),
        say("START"),
        say("END")
    );
    let more = format!(
        "    lifecycle:\n      postStart: {{{}}}\n      preStop: {{{}}}\n    livenessProbe: {{{}, periodSeconds: 1}}\n    \
         readinessProbe: {{{}, periodSeconds: 1, initialDelaySeconds: 2}}\n",
        exec(&format!("sleep 1; {}", say("POST-START"))),
        exec(&format!("{}; sleep 1", say("PRE-HOOK"))),
        exec(&say("LIVENESS")),
        exec(&say("READINESS")),
    );
    let init = format!("  initContainers:\n{}", container("init", &say("INIT"), ""));
    let file = scene.pod("life", &init, &container("main", &script, &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the container to have started", || scene.count("START") == 1);
    if scene.count("POST-START") == 0 {
        assert_eq!(scene.container("life", "main")["ready"], false, "the hook holds it back");
    }
    until("both probes", || scene.count("LIVENESS") > 0 && scene.count("READINESS") > 0);
    until("the pod to be ready", || scene.machine.view("life")["ready"] == 1);
    until("the end of the sleep", || scene.count("END") == 1);
    scene.machine.ok(&["stop", "life"]);
    let words = scene.words();
    let at =
        |word: &str| words.iter().position(|(_, other)| other == word).unwrap_or_else(|| panic!("{word}: {words:?}"));
    let order = ["INIT", "START", "POST-START", "READINESS", "END", "PRE-HOOK", "TERM"];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{words:?}");
    assert!(at("POST-START") < at("LIVENESS"), "{words:?}");
    let time = |word: &str| words[at(word)].0;
    assert!(time("POST-START") - time("START") >= 1 && time("READINESS") - time("START") >= 1, "{words:?}");
    assert!(time("END") - time("START") >= 3 && time("TERM") - time("PRE-HOOK") >= 1, "{words:?}");
    let last = words.len() - 2;
    assert_eq!(at("PRE-HOOK"), last, "nothing but TERM comes after it: {words:?}");
    assert_eq!(scene.container("life", "main")["exitCode"], 0);
    assert!(scene.has_event("life", "Killing Stopping container main"));
}

#[test]
fn the_grace_period_covers_the_hook_before_the_stop() {
    let scene = Scene::new();
    let script = "trap 'sleep 4; echo late >> /h/end; exit 0' TERM; while :; do sleep 0.2; done";
    let more = format!("    lifecycle: {{preStop: {{{}}}}}\n", exec("sleep 5; echo done >> /h/hook"));
    let file = scene.pod("six", "  terminationGracePeriodSeconds: 6\n", &container("main", script, &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the container to run", || scene.container("six", "main")["state"] == "running");
    let begin = Instant::now();
    scene.machine.ok(&["stop", "six"]);
    let took = begin.elapsed().as_secs_f64();
    assert!((5.8..8.5).contains(&took), "killed at about 6 s, not {took}");
    assert_eq!((scene.file("hook").as_str(), scene.file("end").as_str()), ("done\n", ""));
    assert_eq!(scene.container("six", "main")["exitCode"], 137);
}

#[test]
fn a_failed_hook_after_the_start_kills_the_container_which_starts_again() {
    let scene = Scene::new();
    let more = format!(
        "    lifecycle: {{postStart: {{{}}}, preStop: {{{}}}}}\n",
        exec("echo x >> /h/tries; echo wrong >&2; exit 3"),
        exec("echo x >> /h/before")
    );
    let head = "  terminationGracePeriodSeconds: 1\n";
    let file = scene.pod("bad", head, &container("main", "sleep 600", &more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the second try", || scene.file("tries").lines().count() >= 2);
    let told =
        scene.events("bad").into_iter().find(|event| event.starts_with("FailedPostStartHook ")).expect("the event");
    assert!(
        told.contains("Exec lifecycle hook ([sh -c ") && told.contains("exited with 3: wrong, message: \"wrong\""),
        "{told}"
    );
    let described = scene.machine.ok(&["describe", "bad"]);
    assert!(described.contains("for Container \"main\" in Pod \"bad_default("), "{described}");
    assert!(scene.has_event("bad", "Killing FailedPostStartHook"), "{:?}", scene.events("bad"));
    assert!(!scene.file("before").is_empty(), "its preStop is called");
    until("the delay", || scene.machine.view("bad")["status"] == "CrashLoopBackOff");
    until("its event", || {
        scene.has_event("bad", "BackOff Back-off restarting failed container main in pod bad_default")
    });
}

#[test]
fn a_failed_hook_before_the_end_is_an_event_and_the_end_comes() {
    let scene = Scene::new();
    let more = "    lifecycle: {preStop: {httpGet: {port: 1}}}\n";
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let file = scene.pod("rude", "  terminationGracePeriodSeconds: 20\n", &container("main", script, more));
    scene.machine.ok(&["run", "-d", &file]);
    until("the container to run", || scene.container("rude", "main")["state"] == "running");
    scene.machine.ok(&["stop", "rude"]);
    let told = "FailedPreStopHook Http lifecycle hook (/) for Container \"main\" in Pod \"rude_default(";
    assert!(scene.has_event("rude", told), "{:?}", scene.events("rude"));
    assert!(
        scene.events("rude").iter().any(|event| event.ends_with("connection refused")),
        "{:?}",
        scene.events("rude")
    );
    assert_eq!(scene.container("rude", "main")["exitCode"], 0);
}

#[test]
fn a_container_that_ended_by_itself_gets_no_hook_before_its_end() {
    let scene = Scene::new();
    let more = format!("    lifecycle: {{preStop: {{{}}}}}\n", exec("echo x >> /h/hook"));
    let head = "  restartPolicy: Never\n  terminationGracePeriodSeconds: 5\n";
    let both = [container("done", "exit 0", &more), container("rest", "trap 'exit 0' TERM; sleep 600 & wait", &more)];
    scene.machine.ok(&["run", "-d", &scene.pod("ended", head, &both.concat())]);
    until("the first container to end", || scene.container("ended", "done")["state"] == "terminated");
    until("the second one to run", || scene.container("ended", "rest")["state"] == "running");
    scene.machine.ok(&["stop", "ended"]);
    assert_eq!(scene.file("hook"), "x\n", "the other's alone");
}

#[test]
fn the_next_container_starts_once_the_hook_of_the_one_before_is_done() {
    let scene = Scene::new();
    let more = format!("    lifecycle: {{postStart: {{{}}}}}\n", exec(&format!("sleep 1; {}", say("HOOK"))));
    let both = [container("a", "sleep 600", &more), container("b", &format!("{}; sleep 600", say("NEXT")), "")];
    scene.machine.ok(&["run", "-d", &scene.pod("queue", "  terminationGracePeriodSeconds: 0\n", &both.concat())]);
    until("the second container", || scene.count("NEXT") == 1);
    let words: Vec<String> = scene.words().into_iter().map(|(_, word)| word).collect();
    assert_eq!(words, ["HOOK", "NEXT"]);
}

#[test]
fn hooks_ask_servers_open_connections_and_sleep() {
    let scene = Scene::new();
    let server = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho asked >> /h/asked; echo; echo ok\\n' > /www/cgi-bin/quit; \
                  chmod +x /www/cgi-bin/quit; httpd -p 80 -h /www; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let hooks = "    lifecycle:\n      postStart: {sleep: {seconds: 1}}\n      preStop: {httpGet: {path: /cgi-bin/quit, port: web}}\n";
    let ports = "    ports: [{name: web, containerPort: 80}]\n";
    let file = scene.pod("ask", "", &container("main", server, &format!("{ports}{hooks}")));
    scene.machine.ok(&["run", "-d", &file]);
    until("the pod to be ready", || scene.machine.view("ask")["ready"] == 1);
    scene.machine.ok(&["stop", "ask"]);
    assert_eq!(scene.file("asked"), "asked\n", "{:?}", scene.events("ask"));
}
