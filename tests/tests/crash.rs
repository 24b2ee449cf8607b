//! SIGKILL at many points of `coracle` and of the supervisor: `doctor` names what is left, `gc` clears it, and what is alive
//! stays alive.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use coracle_tests::machine::{Machine, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many points in time, evenly spread over what is interrupted.
const POINTS: u32 = 30;

/// A machine with a pod that must not be harmed.
struct Scene {
    machine: Machine,
    bystander: String,
    supervisor: Pid,
    before: BTreeSet<String>,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new();
        machine.ok(&["run", "-d", &machine.script_pod("bystander", "sleep 100000", "")]);
        // One pod with all that the tests use, so that what is made once is there.
        machine.ok(&["run", "-d", &victim(&machine)]);
        machine.ok(&["rm", "-f", "victim"]);
        let bystander = machine.view("bystander")["id"].as_str().expect("an id").to_owned();
        let supervisor = machine.supervisor(&bystander).expect("a supervisor");
        until("the first victim's supervisor and link to go", || {
            machine.processes().iter().all(|(pid, _)| is_of(*pid, &bystander)) && machine.pod_links() == 1
        });
        let before = machine.traces();
        Scene { machine, bystander, supervisor, before }
    }

    /// What doctor finds.
    fn findings(&self) -> Vec<serde_json::Value> {
        let said = self.machine.coracle(&["doctor", "-o", "json"]);
        let report: serde_json::Value =
            serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}{}", said.out, said.err));
        report["findings"].as_array().expect("a list of findings").clone()
    }

    /// The pods that `ps` lists, but for the bystander.
    fn listed(&self) -> BTreeSet<String> {
        let list: serde_json::Value =
            serde_json::from_str(&self.machine.ok(&["ps", "-a", "-o", "json"])).expect("JSON");
        let id = |pod: &serde_json::Value| pod["id"].as_str().expect("an id").to_owned();
        list.as_array().expect("a list").iter().map(id).filter(|id| *id != self.bystander).collect()
    }

    /// Doctor names what is left, gc clears it, doctor finds nothing more; what is still listed is a pod, and can be
    /// removed as one. Then nothing is left, and the bystander lives.
    fn recovers(&self, when: &str) {
        let left: Vec<String> = self.machine.traces().difference(&self.before).cloned().collect();
        let found = self.findings();
        let listed = self.listed();
        assert!(
            left.is_empty() || !found.is_empty() || !listed.is_empty() || self.settles(),
            "{when}: doctor names nothing of {left:#?}"
        );
        self.machine.ok(&["gc"]);
        assert_eq!(self.findings(), Vec::<serde_json::Value>::new(), "{when}: after gc");
        for pod in self.listed() {
            self.machine.ok(&["rm", "-f", &pod]);
        }
        self.machine.assert_traces(&self.before, |_| false);
        assert_eq!(self.machine.supervisor(&self.bystander), Some(self.supervisor), "{when}");
        self.machine.ok(&["exec", "bystander", "--", "true"]);
    }

    /// What ends by itself (a link of a namespace that ended) needs nobody to name it.
    fn settles(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if self.machine.traces() == self.before {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

fn victim(machine: &Machine) -> String {
    let more = "    ports: [{containerPort: 80, hostPort: 8080}]\n    volumeMounts: [{name: data, mountPath: /data}]\n  \
                volumes: [{name: data, emptyDir: {}}]";
    machine.script_pod("victim", "sleep 1000", more)
}

fn is_of(pid: Pid, pod: &str) -> bool {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let text = [read("cmdline"), read("cgroup")].concat();
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    String::from_utf8_lossy(&text).contains(pod) || cwd.display().to_string().contains(pod)
}

/// How long `coracle run -d` takes here and now.
fn duration_of_run(scene: &Scene) -> Duration {
    let start = Instant::now();
    scene.machine.ok(&["run", "-d", &victim(&scene.machine)]);
    let took = start.elapsed();
    scene.machine.ok(&["rm", "-f", "victim"]);
    took
}

#[test]
fn what_a_killed_run_leaves_is_named_and_cleared() {
    let scene = Scene::new();
    let pod = victim(&scene.machine);
    let took = duration_of_run(&scene);
    for point in 0..POINTS {
        let after = took * point / POINTS;
        let mut run = scene.machine.start(&["run", "-d", &pod]);
        std::thread::sleep(after);
        run.kill().expect("kill coracle run");
        run.wait().expect("wait for coracle run");
        scene.machine.learn_ids();
        scene.recovers(&format!("coracle run killed after {after:?}"));
    }
}

#[test]
fn what_a_killed_foreground_run_leaves_goes_on_and_is_a_pod() {
    let scene = Scene::new();
    let mut run = scene.machine.start(&["run", &victim(&scene.machine)]);
    until("the pod to run", || {
        let list: serde_json::Value = serde_json::from_str(&scene.machine.ok(&["ps", "-o", "json"])).expect("JSON");
        list.as_array().expect("a list").iter().any(|pod| pod["name"] == "victim" && pod["status"] == "Running")
    });
    run.kill().expect("kill coracle run");
    run.wait().expect("wait for coracle run");
    scene.machine.ok(&["exec", "victim", "--", "true"]);
    scene.machine.ok(&["gc"]);
    scene.machine.ok(&["exec", "victim", "--", "true"]);
    scene.recovers("coracle run killed in the foreground");
}

#[test]
fn what_a_killed_stop_or_rm_leaves_is_finished_by_the_next() {
    let scene = Scene::new();
    let pod = victim(&scene.machine);
    for verb in [["stop", "-t0"], ["rm", "-f"]] {
        for point in 0..POINTS / 3 {
            scene.machine.ok(&["run", "-d", &pod]);
            let after = Duration::from_millis(4) * point;
            let mut child = scene.machine.start(&[verb[0], verb[1], "victim"]);
            std::thread::sleep(after);
            child.kill().expect("kill coracle");
            child.wait().expect("wait for coracle");
            scene.recovers(&format!("coracle {} killed after {after:?}", verb[0]));
        }
    }
}

#[test]
fn a_pod_whose_supervisor_was_killed_is_named_and_cleared() {
    let scene = Scene::new();
    let pod = victim(&scene.machine);
    for _ in 0..POINTS / 6 {
        scene.machine.ok(&["run", "-d", &pod]);
        let id = scene.machine.view("victim")["id"].as_str().expect("an id").to_owned();
        kill(scene.machine.supervisor(&id).expect("a supervisor"), Signal::SIGKILL).expect("kill the supervisor");
        until("doctor to name the pod", || {
            scene.findings().iter().any(|finding| finding.to_string().contains(&id[..12]))
        });
        scene.recovers("the supervisor killed");
    }
}

#[test]
fn a_supervisor_killed_while_its_pod_starts_leaves_nothing_that_gc_does_not_clear() {
    let scene = Scene::new();
    let pod = victim(&scene.machine);
    let took = duration_of_run(&scene);
    for point in 0..POINTS / 2 {
        let after = took * point / (POINTS / 2);
        let mut run = scene.machine.start(&["run", "-d", &pod]);
        let deadline = Instant::now() + took * 3;
        let supervisor = loop {
            let pods = scene.machine.pods();
            let new = pods.iter().filter(|id| **id != scene.bystander).find_map(|id| scene.machine.supervisor(id));
            if new.is_some() || Instant::now() > deadline {
                break new;
            }
        };
        std::thread::sleep(after);
        if let Some(pid) = supervisor {
            let _ = kill(pid, Signal::SIGKILL);
        }
        run.wait().expect("wait for coracle run");
        scene.machine.learn_ids();
        scene.recovers(&format!("the supervisor killed {after:?} after it was there"));
    }
}

#[test]
fn gc_beside_starting_pods_takes_nothing_from_them() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let names: Vec<String> = (0..8).map(|number| format!("pod-{number}")).collect();
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| {
            for name in &names {
                machine.ok(&["run", "-d", &machine.script_pod(name, "sleep 1000", "")]);
            }
        });
        while !starts.is_finished() {
            machine.ok(&["gc"]);
        }
    });
    for name in &names {
        let shown = machine.ok(&["exec", name, "--", "ip", "-4", "addr", "show", "eth0"]);
        assert!(shown.contains(&format!("inet {}", machine.ip(name))), "{shown}");
    }
}
