//! The task API of a supervisor whose pod is in a virtual machine: what can be done with a container is the same.

use crate::common::{kernel_dir, turn};
use crate::pod::{Pod, Wish, until};
use coracle_proto::coracle::{ConnectNetworkRequest, ConnectNetworkResponse, SandboxOptions, VmOptions};
use coracle_proto::task::*;
use coracle_proto::ttrpc::{Code, method, service};
use coracle_proto::{Empty, any, cgroups_v2 as v2};
use serde_json::{Value, json};
use std::fs;
use std::sync::MutexGuard;

const MEMORY: u64 = 256 << 20;

/// A pod in a machine, ready; and the turn of the test.
pub fn pod() -> (Pod, MutexGuard<'static, ()>) {
    let turn = turn();
    let folder = kernel_dir();
    let file = |name: &str| {
        let path = folder.join(name);
        if path.exists() { path.display().to_string() } else { String::new() }
    };
    let vm = VmOptions {
        vmm: "/usr/bin/qemu-system-x86_64".into(),
        kernel: file("vmlinux"),
        modules: file("modules.cpio"),
        manifest: file("manifest.sha256"),
        allow_emulation: true,
        memory_bytes: MEMORY,
        cpus: 1,
        ..Default::default()
    };
    let mut pod = Pod::with(SandboxOptions { vm: Some(vm), hostname: "inside".into(), ..Default::default() });
    let request = ConnectNetworkRequest::default();
    let connected = pod.client.call(service::CONTROL, method::CONNECT_NETWORK, &request);
    let _: ConnectNetworkResponse = connected.expect("the machine boots");
    (pod, turn)
}

/// What a shell line in a container says; it must succeed.
pub fn said(pod: &mut Pod, id: &str, exec: &str, command: &str) -> String {
    let heard = pod.exec(id, exec, &["sh", "-c", command], false).listen_to_the_end();
    assert!(heard.ended && heard.stderr.is_empty(), "{}", String::from_utf8_lossy(&heard.stderr));
    assert_eq!(pod.wait(id, exec), 0);
    pod.delete(id, exec).expect("delete the exec");
    String::from_utf8(heard.stdout).expect("UTF-8")
}

#[test]
fn output_input_terminals_and_ends_are_as_on_the_host() {
    let (mut pod, _turn) = pod();
    pod.run("log", &["sh", "-c", "hostname; seq 1 20000; echo err >&2; echo -n rest; exit 3"]);
    assert_eq!(pod.wait("log", ""), 3);
    let lines = pod.log_lines("log");
    let stdout: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("stdout F ")).collect();
    assert_eq!((stdout.len(), stdout[0], stdout[20000]), (20001, "inside", "20000"), "told after all of it has passed");
    assert!(lines.contains(&"stderr F err".to_owned()) && lines.contains(&"stdout P rest".to_owned()));
    let exit: Value = serde_json::from_slice(&fs::read(pod.bundle("log").join("exit.json")).unwrap()).unwrap();
    assert_eq!((&exit["exit_status"], &exit["oom_killed"]), (&json!(3), &json!(false)));
    pod.delete("log", "").expect("delete");

    let wish = Wish { stdin: "attach:once", ..Wish::default() };
    pod.create("cat", &["cat"], &wish).expect("create");
    let mut attach = pod.attach("cat", true);
    pod.start("cat", "").expect("start");
    let much = vec![b'x'; 300_000];
    let mut writer = attach.another_end();
    let feeding = std::thread::spawn(move || {
        for piece in much.chunks(50_000) {
            writer.input(piece);
        }
        writer.end_input();
    });
    let heard = attach.listen_to_the_end();
    feeding.join().unwrap();
    assert_eq!((heard.stdout.len(), heard.ended), (300_000, true));
    assert_eq!(pod.wait("cat", ""), 0);

    let wish = Wish { terminal: true, stdin: "attach:", ..Wish::default() };
    pod.create("tty", &["sh"], &wish).expect("create");
    let mut attach = pod.attach("tty", true);
    let size = ResizePtyRequest { id: "tty".into(), exec_id: String::new(), width: 91, height: 17 };
    let _: Empty = pod.task(method::RESIZE_PTY, &size).expect("resize");
    pod.start("tty", "").expect("start");
    attach.input(b"stty size; exit 7\n");
    let heard = attach.listen_to_the_end();
    assert!(String::from_utf8_lossy(&heard.stdout).contains("17 91\r\n"), "{}", String::from_utf8_lossy(&heard.stdout));
    assert_eq!(pod.wait("tty", ""), 7);
    pod.shutdown();
}

#[test]
fn execs_signals_limits_and_numbers_are_as_on_the_host() {
    let (mut pod, _turn) = pod();
    let limit = Wish {
        edit: Some(Box::new(|config| config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } }))),
        ..Wish::default()
    };
    let pid = pod.run_with("web", &["sh", "-c", "trap 'exit 9' TERM; while true; do sleep 0.1; done"], &limit);
    assert!(pid > 1, "the guest's count");
    assert_eq!(said(&mut pod, "web", "one", "echo out; cat /proc/self/cgroup"), "out\n0::/coracle/web\n");
    assert!(said(&mut pod, "web", "two", "kill -0 1 && echo there").contains("there"));

    let mut terminal = pod.exec("web", "tty", &["sh", "-c", "stty size; read line; echo got $line"], true);
    let size = ResizePtyRequest { id: "web".into(), exec_id: "tty".into(), width: 44, height: 11 };
    let _: Empty = pod.task(method::RESIZE_PTY, &size).expect("resize");
    terminal.input(b"typed\n");
    let heard = String::from_utf8(terminal.listen_to_the_end().stdout).unwrap();
    assert!(heard.contains("got typed\r\n"), "{heard}");
    assert_eq!(pod.wait("web", "tty"), 0);

    // One that is killed with all is so with what it has started.
    let line = "for i in 1 2 3; do sleep 4711 & done; setsid sleep 4711 & sleep 0.5; touch /ready; wait";
    let tree = pod.exec("web", "tree", &["sh", "-c", line], false);
    said(&mut pod, "web", "started", "while ! test -e /ready; do sleep 0.1; done");
    let count = "ps -o args | grep -c '^[s]leep 4711' || true";
    assert_eq!(said(&mut pod, "web", "before", count), "4\n");
    pod.kill("web", "tree", 9, true).expect("kill the exec and all of it");
    assert_eq!(pod.wait("web", "tree"), 137);
    drop(tree);
    assert_eq!(said(&mut pod, "web", "after", count), "0\n");

    // A reader that leaves is seen by the command.
    drop(pod.exec("web", "yes", &["sh", "-c", "while true; do echo y; done"], false));
    assert_ne!(pod.wait("web", "yes"), 0);

    let stats: StatsResponse = pod.task(method::STATS, &StatsRequest { id: "web".into() }).expect("stats");
    let metrics: v2::Metrics = any::unpack(&stats.stats.unwrap()).expect("of version 2").unwrap();
    let memory = metrics.memory.unwrap();
    assert!(memory.usage > 0 && memory.usage_limit == 64 << 20, "{memory:?}");
    let pids: PidsResponse = pod.task(method::PIDS, &PidsRequest { id: "web".into() }).expect("pids");
    assert!(pids.processes.iter().any(|process| process.pid == pid as u32));
    let resources = json!({ "memory": { "limit": 48 << 20 }, "cpu": { "cpus": "0-63" } }).to_string().into_bytes();
    let resources = Some(any::pack_json(any::OCI_RESOURCES, resources));
    let update = UpdateTaskRequest { id: "web".into(), resources, ..Default::default() };
    let _: Empty = pod.task(method::UPDATE, &update).expect("update");
    let stats: StatsResponse = pod.task(method::STATS, &StatsRequest { id: "web".into() }).expect("stats");
    let metrics: v2::Metrics = any::unpack(&stats.stats.unwrap()).unwrap().unwrap();
    assert_eq!(metrics.memory.unwrap().usage_limit, 48 << 20);

    let _: Empty = pod.task(method::PAUSE, &PauseRequest { id: "web".into() }).expect("pause");
    assert_eq!(pod.state("web", "").unwrap().status().as_str_name(), "PAUSED");
    let _: Empty = pod.task(method::RESUME, &ResumeRequest { id: "web".into() }).expect("resume");
    let checkpoint = CheckpointTaskRequest { id: "web".into(), path: "/tmp/x".into(), options: None };
    let refused = pod.task::<Empty>(method::CHECKPOINT, &checkpoint).unwrap_err();
    assert!(refused.message.contains("virtual machine"), "{}", refused.message);
    pod.kill("web", "", 15, false).expect("kill");
    assert_eq!(pod.wait("web", ""), 9);
    pod.delete("web", "").expect("delete");

    pod.create("never", &["sleep", "1000"], &Wish::default()).expect("create");
    pod.delete("never", "").expect("delete what was never started");
    pod.run("killed", &["sleep", "1000"]);
    pod.kill("killed", "", 9, true).expect("kill all");
    assert_eq!(pod.wait("killed", ""), 137);
    pod.run("hungry", &["sleep", "1000"]);
    pod.shutdown();
}

#[test]
fn memory_volumes_and_last_words_are_told_and_what_is_the_machines_is_refused() {
    let (mut pod, _turn) = pod();
    let limit = Wish {
        edit: Some(Box::new(|config| config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } }))),
        ..Wish::default()
    };
    pod.run_with("oom", &["busybox", "dd", "bs=64M", "count=1", "if=/dev/zero", "of=/dev/null"], &limit);
    assert_ne!(pod.wait("oom", ""), 0);
    let exit: Value = serde_json::from_slice(&fs::read(pod.bundle("oom").join("exit.json")).unwrap()).unwrap();
    assert_eq!(exit["oom_killed"], json!(true), "{exit}");

    // As the engine's: configuration in the pod's folder, scratch space and last words in its data.
    let (config, data) = (pod.path("volumes/config"), pod.path(&format!("data/pods/{}", pod.id)));
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("key"), "one").unwrap();
    fs::create_dir_all(data.join("volumes/scratch")).unwrap();
    fs::create_dir_all(data.join("messages")).unwrap();
    fs::write(data.join("messages/web.0"), "").unwrap();
    let (config_path, data_path) = (config.clone(), data.clone());
    let edit: crate::pod::Edit = Box::new(move |spec| {
        let bind = |target: &str, source: &std::path::Path, access: &str| json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", access] });
        spec["mounts"].as_array_mut().unwrap().extend([
            bind("/config", &config_path, "ro"),
            bind("/scratch", &data_path.join("volumes/scratch"), "rw"),
            bind("/dev/termination-log", &data_path.join("messages/web.0"), "rw"),
        ]);
    });
    let wish = Wish { edit: Some(edit), ..Wish::default() };
    let script = "cat /config/key; echo; while [ $(cat /config/key) = one ]; do sleep 0.1; done; cat /config/key; echo; \
                  echo shared > /scratch/file; echo last words > /dev/termination-log; \
                  (echo x > /config/key) 2>/dev/null || echo read-only";
    pod.run_with("web", &["sh", "-c", script], &wish);
    until("the container runs", || pod.log_lines("web") == ["stdout F one"]);
    fs::write(config.join("key"), "two").unwrap();
    assert_eq!(pod.wait("web", ""), 0);
    assert_eq!(pod.log_lines("web"), ["stdout F one", "stdout F two", "stdout F read-only"]);
    assert_eq!(fs::read_to_string(data.join("messages/web.0")).unwrap(), "last words\n");
    assert!(fs::read_dir(data.join("volumes/scratch")).unwrap().next().is_none(), "scratch space is the guest's");
    pod.run_with("other", &["cat", "/scratch/file"], &wish);
    assert_eq!(pod.wait("other", ""), 0);
    assert_eq!(pod.log_lines("other"), ["stdout F shared"]);

    for (field, value, part) in [
        (
            "mounts",
            json!([{ "destination": "/h", "type": "bind", "source": "/etc", "options": ["rbind"] }]),
            "hostPath",
        ),
        ("hooks", json!({ "poststop": [{ "path": "/bin/true" }] }), "hooks"),
    ] {
        let edit: crate::pod::Edit = Box::new(move |spec| spec[field] = value.clone());
        let refused = pod.create("no", &["true"], &Wish { edit: Some(edit), ..Wish::default() }).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument as i32);
        assert!(refused.message.contains(part), "{}", refused.message);
    }
    pod.shutdown();
}
