//! The life of a pod, from the YAML file to its removal, by the `coracle` program as a person uses it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::machine::{IMAGE, Machine, Said, patience};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long something that happens by itself may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(PATIENCE);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn example(name: &str) -> String {
    format!("{}/pods/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

fn code(said: &Said) -> i32 {
    said.status.code().unwrap_or_else(|| panic!("ended by a signal: {said:?}"))
}

/// A pod with one container that runs a script, and these further fields of the container and of the spec.
fn pod(machine: &Machine, name: &str, script: &str, container: &str, spec: &str) -> String {
    let script = script.replace('\'', "''");
    let text = format!(
        "  terminationGracePeriodSeconds: 1\n{spec}  containers:\n  - name: main\n    image: {IMAGE}\n    \
         imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n{container}"
    );
    machine.pod(name, &text)
}

fn restarts(machine: &Machine, name: &str) -> u64 {
    machine.view(name)["restarts"].as_u64().expect("a number of restarts")
}

/// Runs `coracle exec -i` with this input.
fn exec_with_input(machine: &Machine, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = machine.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = machine.run(|| command.spawn()).expect("start coracle");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("wait for coracle");
    writer.join().expect("the writer").expect("write the input");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn the_web_example_answers_on_its_host_port_and_stops_at_once() {
    let machine = Machine::new();
    assert_eq!(machine.ok(&["run", "-d", &example("web")]), "started web\n");
    until("the web server answers", || {
        machine.sh("curl -s http://127.0.0.1:8080/ || true").contains("hello from coracle on web")
    });
    assert_eq!(machine.ok(&["logs", "web"]), "serving port 80\n");
    assert_eq!(machine.ok(&["exec", "web", "--", "hostname"]), "web\n");
    let list = machine.ok(&["ps"]);
    assert!(list.starts_with("NAME   READY   STATUS    RESTARTS   AGE\nweb    1/1     Running   0 "), "{list}");
    machine.ok(&["stop", "web"]);
    assert_eq!(machine.view("web")["containers"][0]["exitCode"], 0, "its trap for SIGTERM was run");
    machine.ok(&["rm", "web"]);
    assert_eq!(machine.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn init_containers_run_in_order_before_the_others() {
    let machine = Machine::new();
    let said = machine.coracle(&["run", "--rm", &example("init")]);
    assert_eq!((code(&said), said.err.as_str()), (0, ""));
    let lines: Vec<&str> = said.out.lines().collect();
    let expected =
        ["first  | the first one", "second | the second one", "main   | first", "main   | second", "main   | main"];
    assert_eq!(lines, expected);
    assert!(machine.pods().is_empty(), "--rm removes the pod");
}

#[test]
fn a_failed_init_container_fails_the_pod_and_the_others_never_start() {
    let machine = Machine::new();
    let init = format!(
        "  restartPolicy: Never\n  initContainers:\n  - {{name: bad, image: {IMAGE}, imagePullPolicy: Never, \
         command: [sh, -c, exit 9]}}\n"
    );
    let file = pod(&machine, "bad", "echo never", "", &init);
    let said = machine.coracle(&["run", &file]);
    assert_eq!((code(&said), said.out.as_str()), (9, ""));
    let view = machine.view("bad");
    assert_eq!((&view["phase"], &view["status"]), (&Value::from("Failed"), &Value::from("Init:Error")));
}

#[test]
fn a_job_is_started_again_until_it_succeeds() {
    let machine = Machine::new();
    let said = machine.coracle(&["run", &example("job")]);
    assert_eq!((code(&said), said.out.as_str()), (0, "attempt 1\nattempt 2\ndone\n"));
    assert!(said.err.contains("container work ended with exit code 7"), "{}", said.err);
    let view = machine.view("job");
    assert_eq!((&view["phase"], &view["restarts"]), (&Value::from("Succeeded"), &Value::from(1)));
    assert_eq!(machine.ok(&["logs", "-p", "job"]), "attempt 1\n");
}

#[test]
fn containers_of_a_pod_share_volumes_network_and_host_name() {
    let machine = Machine::new();
    assert_eq!(machine.ok(&["run", &example("shared")]), "reader | shared\n");
}

#[test]
fn a_container_gets_its_environment_and_what_the_pod_says_of_itself() {
    let machine = Machine::new();
    let env =
        "    env: [{name: A, value: '1'}, {name: B, value: x$(A)}, {name: C, value: $$(A)}]\n    workingDir: /tmp\n";
    let script = "echo $A $B \"$C\" $(hostname) $HOSTNAME $(pwd); grep -c $(hostname) /etc/hosts";
    let file = pod(&machine, "env", script, env, "  restartPolicy: Never\n");
    assert_eq!(machine.ok(&["run", &file]), "1 x1 $(A) env env /tmp\n1\n");
    let named = machine.ok(&["run", "--name", "other", &file]);
    assert!(named.contains(" other other "), "{named}");
}

#[test]
fn the_exit_code_of_run_is_that_of_the_first_container_that_failed() {
    let machine = Machine::new();
    let one = |name: &str, code: u8| {
        format!("  - {{name: {name}, image: {IMAGE}, imagePullPolicy: Never, command: [sh, -c, exit {code}]}}\n")
    };
    let spec = format!("  restartPolicy: Never\n  containers:\n{}{}{}", one("a", 0), one("b", 5), one("c", 6));
    let file = machine.pod("codes", &spec);
    assert_eq!(code(&machine.coracle(&["run", &file])), 5);
    assert_eq!(machine.view("codes")["phase"], "Failed");
}

#[test]
fn a_detached_pod_is_started_again_by_its_supervisors_call() {
    let machine = Machine::new();
    let file = pod(&machine, "again", "echo run; sleep 0.3; exit 1", "", "");
    machine.ok(&["run", "-d", &file]);
    until("the first restart", || restarts(&machine, "again") == 1);
    until("the delay", || machine.view("again")["status"] == "CrashLoopBackOff");
    machine.ok(&["stop", "again"]);
    let view = machine.view("again");
    assert_eq!((&view["status"], &view["restarts"]), (&Value::from("Stopped"), &Value::from(1)));
    machine.ok(&["rm", "again"]);
    let named = |(_, line): &(Pid, String)| line.contains(" tend ");
    until("the tender leaves", || !machine.processes().iter().any(named));
}

#[test]
fn a_policy_of_never_leaves_an_ended_container_alone() {
    let machine = Machine::new();
    let file = pod(&machine, "once", "exit 4", "", "  restartPolicy: Never\n");
    machine.ok(&["run", "-d", &file]);
    until("the pod has failed", || machine.view("once")["phase"] == "Failed");
    assert_eq!(restarts(&machine, "once"), 0);
    assert_eq!(machine.ok(&["ps", "-q"]), "", "ps lists what runs");
    assert_eq!(machine.ok(&["ps", "-a", "-q"]), "once\n");
}

#[test]
fn a_foreground_run_that_is_killed_leaves_its_pod_tended() {
    let machine = Machine::new();
    let file = pod(&machine, "orphan", "sleep 2", "", "");
    let mut run = machine.start(&["run", &file]);
    until("the pod runs", || {
        machine.ok(&["ps", "-q"]).contains("orphan") && machine.view("orphan")["status"] == "Running"
    });
    run.kill().expect("kill coracle run");
    run.wait().expect("wait for it");
    until("its supervisor has it started again", || restarts(&machine, "orphan") >= 1);
    machine.ok(&["rm", "-f", "orphan"]);
}

#[test]
fn a_foreground_run_tells_once_why_a_container_waits() {
    let machine = Machine::new();
    let file = pod(&machine, "waits", "true", "    envFrom: [{configMapRef: {name: none}}]\n", "");
    let said = machine.path("said");
    let mut command = machine.command(&["run", &file]);
    command.stdout(Stdio::null()).stderr(fs::File::create(&said).expect("make a file"));
    let mut run = machine.run(|| command.spawn()).expect("start coracle");
    let lines = || fs::read_to_string(&said).expect("read what it said");
    until("why it waits", || lines().contains("CreateContainerConfigError"));
    let tries = || {
        let events: Value = serde_json::from_str(&machine.ok(&["events", "-o", "json"])).expect("events");
        let events = events.as_array().expect("a list").clone();
        let failed = events.iter().find(|event| event["reason"] == "Failed").expect("its event");
        failed["count"].as_u64()
    };
    until("the second try", || tries() >= Some(2));
    machine.ok(&["stop", "waits"]);
    run.wait().expect("wait for coracle run");
    let told = "coracle: waits: container main: start container main: CreateContainerConfigError: configmap \"none\" not found\n";
    assert_eq!(lines(), told);
    machine.ok(&["rm", "waits"]);
}

#[test]
fn a_foreground_run_ends_when_the_supervisor_dies() {
    let machine = Machine::new();
    let file = pod(&machine, "lost", "sleep 600", "", "");
    let mut run = machine.start(&["run", &file]);
    until("the pod runs", || machine.coracle(&["ps", "-q"]).out.contains("lost") && machine.view("lost")["ready"] == 1);
    machine.learn_ids();
    let id = machine.pods().pop_first().expect("the pod's id");
    let supervisor = machine.supervisor(&id).expect("the supervisor's pid");
    kill(supervisor, Signal::SIGKILL).expect("kill the supervisor");
    assert_eq!(run.wait().expect("wait for coracle run").code(), Some(1));
    assert_eq!(machine.ok(&["logs", "-f", "lost"]), "");
    assert_eq!(machine.view("lost")["phase"], "Failed");
    machine.ok(&["rm", "-f", "lost"]);
}

#[test]
fn ctrl_c_stops_a_foreground_pod_and_a_second_one_kills_it() {
    let machine = Machine::new();
    let good = pod(&machine, "good", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done", "", "");
    let mut run = machine.start(&["run", &good]);
    until("the pod runs", || machine.coracle(&["ps", "-q"]).out.contains("good") && machine.view("good")["ready"] == 1);
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("interrupt coracle run");
    assert_eq!(run.wait().expect("wait for it").code(), Some(130));
    assert_eq!(machine.ok(&["logs", "good"]), "bye\n");

    let spec = "  terminationGracePeriodSeconds: 600\n";
    let text = format!(
        "{spec}  containers:\n  - {{name: main, image: {IMAGE}, imagePullPolicy: Never, \
         command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']}}\n"
    );
    let mut run = machine.start(&["run", &machine.pod("stubborn", &text)]);
    until("the pod runs", || {
        machine.coracle(&["ps", "-q"]).out.contains("stubborn") && machine.view("stubborn")["ready"] == 1
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("interrupt coracle run");
    until("the pod is stopping", || machine.view("stubborn")["status"] == "Terminating");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("interrupt coracle run again");
    assert_eq!(run.wait().expect("wait for it").code(), Some(130));
    assert_eq!(machine.view("stubborn")["containers"][0]["exitCode"], 137);
}

#[test]
fn what_ignores_the_stop_signal_is_killed_when_its_grace_is_over() {
    let machine = Machine::new();
    let file = pod(&machine, "deaf", "trap '' TERM; while :; do sleep 0.1; done", "", "");
    machine.ok(&["run", "-d", &file]);
    let begin = Instant::now();
    machine.ok(&["stop", "deaf"]);
    let took = begin.elapsed();
    assert!((Duration::from_millis(900)..PATIENCE).contains(&took), "a grace of 1 s took {took:?}");
    assert_eq!(machine.view("deaf")["containers"][0]["exitCode"], 137);
    machine.ok(&["stop", "deaf"]);
}

#[test]
fn logs_keep_streams_apart_and_show_what_is_asked_for() {
    let machine = Machine::new();
    let script = "echo one; echo two >&2; printf three; sleep 0.2; echo ' and more'; echo last";
    let file = pod(&machine, "words", script, "", "  restartPolicy: Never\n");
    machine.ok(&["run", "-d", &file]);
    let followed = machine.coracle(&["logs", "-f", "words"]);
    assert_eq!((followed.out.as_str(), followed.err.as_str()), ("one\nthree and more\nlast\n", "two\n"));
    assert_eq!(machine.ok(&["logs", "--tail", "1", "words"]), "last\n");
    assert_eq!(machine.ok(&["logs", "--tail", "2", "-c", "main", "words"]), "three and more\nlast\n");
    let timed = machine.ok(&["logs", "--timestamps", "--tail", "1", "words"]);
    let (time, text) = timed.split_once(' ').expect("a time and a text");
    assert!(time.ends_with('Z') && time.contains('T') && text == "last\n", "{timed}");
}

#[test]
fn logs_are_followed_across_a_restart() {
    let machine = Machine::new();
    let script = "n=$(cat /v/n 2>/dev/null || echo 0); echo run $n; echo $((n+1)) > /v/n; [ $n -ge 1 ]";
    let mounts = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let spec = "  restartPolicy: OnFailure\n  volumes: [{name: v, emptyDir: {}}]\n";
    let file = pod(&machine, "twice", script, mounts, spec);
    machine.ok(&["run", "-d", &file]);
    let last = machine.coracle(&["logs", "-f", "twice"]).out;
    assert!(last.ends_with("run 1\n"), "{last}");
    until("the pod has ended", || machine.view("twice")["phase"] == "Succeeded");
}

#[test]
fn exec_passes_input_output_and_exit_codes() {
    let machine = Machine::new();
    let file = pod(&machine, "host", "sleep 600", "", "");
    machine.ok(&["run", "-d", &file]);
    let said = machine.coracle(&["exec", "host", "--", "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((code(&said), said.out.as_str(), said.err.as_str()), (42, "out\n", "err\n"));
    let said = machine.coracle(&["exec", "host", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(code(&said), 137);
    let input: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    assert!(exec_with_input(&machine, &["exec", "-i", "host", "cat"], &input) == input, "4 MB come back as they went");
    assert_eq!(exec_with_input(&machine, &["exec", "-i", "host", "wc", "-c"], b"12345"), b"5\n");
    let tty = machine.ok(&["exec", "-t", "host", "--", "sh", "-c", "tty; test -t 1 && echo terminal"]);
    assert!(tty.starts_with("/dev/pts/") && tty.contains("terminal"), "{tty:?}");
    machine.ok(&["rm", "-f", "host"]);
}

#[test]
fn exec_in_a_terminal_follows_its_size() {
    let machine = Machine::new();
    let file = pod(&machine, "tty", "sleep 600", "", "");
    machine.ok(&["run", "-d", &file]);
    let line = machine.command(&["exec", "-it", "tty", "--", "stty", "size"]);
    let words: Vec<String> = std::iter::once(line.get_program())
        .chain(line.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let inner = format!("stty rows 33 cols 77; {}", words.join(" "));
    let output =
        machine.run(|| Command::new("script").args(["-qec", &inner, "/dev/null"]).stdin(Stdio::null()).output());
    let output = output.expect("run the script program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("33 77"), "{text:?}");
    machine.ok(&["rm", "-f", "tty"]);
}

#[test]
fn host_paths_are_made_shared_and_kept_read_only_where_asked() {
    let machine = Machine::new();
    let dir = machine.path("data/made");
    let volumes = format!(
        "  restartPolicy: Never\n  volumes: [{{name: h, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]\n",
        dir.display()
    );
    let mounts = "    volumeMounts: [{name: h, mountPath: /rw}, {name: h, mountPath: /ro, readOnly: true}]\n";
    let script = "echo kept > /rw/file; cat /ro/file; echo no 2>/dev/null > /ro/other || echo refused";
    let file = pod(&machine, "paths", script, mounts, &volumes);
    let said = machine.coracle(&["run", &file]);
    assert_eq!((code(&said), said.out.as_str()), (0, "kept\nrefused\n"), "{}", said.err);
    assert_eq!(fs::read_to_string(dir.join("file")).expect("the container's file"), "kept\n");
    machine.ok(&["rm", "paths"]);
    assert!(dir.join("file").exists(), "the machine's files stay");
}

#[test]
fn security_contexts_are_applied() {
    let machine = Machine::new();
    let script = "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; \
                  touch /file 2>/dev/null || echo read-only";
    let container = "    securityContext:\n      runAsUser: 1000\n      runAsGroup: 2000\n      readOnlyRootFilesystem: true\n      \
                     allowPrivilegeEscalation: false\n      capabilities: {drop: [ALL]}\n";
    let spec = "  restartPolicy: Never\n  securityContext: {supplementalGroups: [3000]}\n";
    let out = machine.ok(&["run", &pod(&machine, "plain", script, container, spec)]);
    assert_eq!(out, "1000\n2000\n2000 3000\nNoNewPrivs:\t1\nCapEff:\t0000000000000000\nread-only\n");

    let container = "    securityContext: {runAsNonRoot: true}\n";
    let line = machine.fails(&["run", &pod(&machine, "root", "true", container, "")]);
    assert!(
        line.contains("run root: ") && line.contains("container has runAsNonRoot and image will run as root"),
        "{line}"
    );
    assert!(!machine.ok(&["ps", "-a", "-q"]).contains("root"), "nothing is left of it");

    let container = "    securityContext: {privileged: true}\n";
    let out = machine.ok(&[
        "run",
        &pod(&machine, "strong", "mount -t tmpfs x /tmp && echo mounted", container, "  restartPolicy: Never\n"),
    ]);
    assert_eq!(out, "mounted\n");
}

#[test]
fn limits_reach_the_kernel() {
    let machine = Machine::new();
    let container = "    resources: {limits: {memory: 32Mi, cpu: 250m}}\n";
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                  /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let out = machine.ok(&["run", &pod(&machine, "small", script, container, "  restartPolicy: Never\n")]);
    assert!(out == "33554432\n25000\n256\n" || out == "33554432\n25000 100000\n", "{out}");
}

#[test]
fn a_pod_that_cannot_start_leaves_nothing_behind() {
    let machine = Machine::new();
    machine.ok(&["run", "--rm", &pod(&machine, "warm", "true", "", "  restartPolicy: Never\n")]);
    until("the first pod's link to go", || machine.pod_links() == 0);
    let before = machine.traces();
    let spec = format!(
        "  containers: [{{name: main, image: {IMAGE}, imagePullPolicy: Never, command: [/no/such/program]}}]\n"
    );
    let line = machine.fails(&["run", "-d", &machine.pod("broken", &spec)]);
    assert!(line.starts_with("coracle: run broken: ") && line.contains("/no/such/program"), "{line}");
    let spec = format!(
        "  volumes: [{{name: v, hostPath: {{path: /no/such/path, type: Directory}}}}]\n  containers:\n  - name: main\n    \
         image: {IMAGE}\n    imagePullPolicy: Never\n    volumeMounts: [{{name: v, mountPath: /v}}]\n"
    );
    let line = machine.fails(&["run", "-d", &machine.pod("broken", &spec)]);
    assert!(line.contains("hostPath /no/such/path: No such file or directory"), "{line}");
    machine.assert_traces(&before, |_| false);
}

#[test]
fn pods_of_one_file_start_together_and_a_name_is_taken_once() {
    let machine = Machine::new();
    let one = |name: &str| fs::read_to_string(pod(&machine, name, "sleep 600", "", "")).expect("read the Pod");
    let both = machine.path("both.yaml");
    fs::write(&both, format!("{}---\n{}", one("a"), one("b"))).expect("write the file");
    let both = both.display().to_string();
    assert_eq!(machine.ok(&["run", "-d", &both]), "started a\nstarted b\n");
    let said = machine.coracle(&["run", "-d", &both]);
    assert_eq!(code(&said), 8, "{}", said.err);
    assert_eq!(machine.ok(&["run", "-d", "--replace", &both]), "started a\nstarted b\n");
    machine.ok(&["rm", "-f", "a", "b", "never-was"]);
    assert!(machine.pods().is_empty());
}

#[test]
fn a_pod_in_the_machines_network_has_its_name_and_interfaces() {
    let machine = Machine::new();
    let spec = "  restartPolicy: Never\n  hostNetwork: true\n";
    let out = machine.ok(&["run", &pod(&machine, "host", "ls /sys/class/net | wc -l; ip -o link | wc -l", "", spec)]);
    let here = machine.sh("ip -o link | wc -l");
    assert_eq!(out.lines().nth(1), Some(here.trim()));
}
