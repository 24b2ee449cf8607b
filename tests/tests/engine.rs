//! The engine with the real supervisor, runtime, store and network: what a pod is, and how it ends.

use std::time::{Duration, Instant};

use coracle_engine::{
    ContainerState, ExecConfig, HostAlias, Mount, NamespaceMode, SandboxConfig, SandboxState, Security,
};
use coracle_tests::rig::{containers, drain, rig, script};

const LONG: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_container_runs_logs_and_tells_its_exit_code() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        assert_eq!(pod.state, SandboxState::Ready);
        assert_eq!(pod.ips.len(), 1);
        let (exit, log) = rig.run(&pod.id, script("main", "echo out; echo err >&2; exit 3")).await;
        assert_eq!((exit.code, exit.reason.as_str()), (3, "Error"));
        assert!(exit.finished_at > pod.created_at);
        assert_eq!(log.lines().collect::<std::collections::BTreeSet<_>>(), ["err", "out"].into());
        // The same is seen by a process that comes later, and when the pod is stopped.
        rig.engine.stop_sandbox("web").await.unwrap();
        let seen = &containers(&rig.another(), &pod.id)[0];
        assert_eq!((seen.state, seen.exit.as_ref().unwrap().code), (ContainerState::Exited, 3));
        assert_eq!(rig.another().sandbox_status("web").unwrap().state, SandboxState::NotReady);
        rig.engine.remove_sandbox("web").await.unwrap();
        assert_eq!(rig.left(), Vec::<String>::new());
        rig.engine.remove_sandbox("web").await.unwrap();
    });
}

#[test]
fn a_pod_has_its_name_addresses_and_files() {
    rig(async |rig| {
        let alias = HostAlias { ip: "10.1.2.3".parse().unwrap(), hostnames: vec!["other".into()] };
        let config = SandboxConfig { host_aliases: vec![alias], ..rig.pod("web") };
        let pod = rig.engine.run_sandbox(config).await.unwrap();
        let look = "hostname; echo $HOSTNAME; cat /etc/hostname; grep -c other /etc/hosts; \
                    ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'; df -k /dev/shm | tail -1 | awk '{print $2}'; id";
        let (exit, log) = rig.run(&pod.id, script("look", look)).await;
        assert_eq!(exit.code, 0, "{log}");
        let inet = format!("inet {}", pod.ips[0]);
        assert_eq!(log.lines().collect::<Vec<_>>()[..6], ["web", "web", "web", "1", inet.as_str(), "65536"]);
        assert!(log.contains("uid=0(root) gid=0(root)"), "{log}");
    });
}

#[test]
fn users_mounts_and_privileges_are_as_asked() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let volume = rig.engine.make_volume(&pod.id, "data").unwrap();
        std::fs::write(volume.join("x"), "content\n").unwrap();
        let mut config = script(
            "look",
            "id -u; id -g; cat /data/x; grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; \
                                         touch /y || echo readonly; touch /data/y && echo written; pwd; echo $A",
        );
        config.mounts = vec![Mount { host_path: volume.clone(), container_path: "/data".into(), ..Default::default() }];
        config.working_dir = Some("/tmp".into());
        config.env = vec![("A".into(), "b c".into())];
        config.security = Security {
            run_as_user: Some(33),
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            no_new_privs: true,
            readonly_rootfs: true,
            ..Default::default()
        };
        let (exit, log) = rig.run(&pod.id, config).await;
        assert_eq!(exit.code, 0, "{log}");
        let lines: Vec<_> = log.lines().filter(|l| !l.contains("touch:")).collect();
        assert_eq!(lines[..3], ["33", "33", "content"]);
        assert_eq!(lines[3], "CapBnd:\t0000000000000400");
        assert_eq!(lines[4..6], ["NoNewPrivs:\t1", "Seccomp:\t2"]);
        assert_eq!(lines[6..], ["readonly", "written", "/tmp", "b c"]);
        assert!(volume.join("y").exists());
    });
}

#[test]
fn a_stop_asks_first_and_kills_after_the_grace() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let polite = rig.start(&pod.id, script("polite", LONG)).await.unwrap();
        let deaf =
            rig.start(&pod.id, script("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done")).await.unwrap();
        for id in [&polite, &deaf] {
            while !rig.log(id).contains("ready") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        rig.engine.stop_container(&polite, Duration::from_secs(20)).await.unwrap();
        assert_eq!(rig.engine.container_status(&polite).unwrap().exit.unwrap().code, 0);
        let begun = Instant::now();
        rig.engine.stop_container(&deaf, Duration::from_millis(300)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert_eq!(rig.engine.container_status(&deaf).unwrap().exit.unwrap().code, 137);
        rig.engine.stop_container(&deaf, Duration::ZERO).await.unwrap();
        rig.engine.remove_container(&deaf).await.unwrap();
        rig.engine.remove_container(&deaf).await.unwrap();
        assert_eq!(containers(&rig.engine, &pod.id).len(), 1);
    });
}

#[test]
fn an_exec_has_its_own_streams_and_exit_code() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let id = rig.start(&pod.id, script("main", LONG)).await.unwrap();
        let cmd = |line: &str| ["sh", "-c", line].map(String::from).to_vec();
        let config = ExecConfig { cmd: cmd("cat; echo err >&2; exit 5"), stdin: true, ..Default::default() };
        let mut session = rig.engine.exec(&id, config).await.unwrap();
        let big = "x".repeat(200_000);
        let (_, (out, err)) = tokio::join!(
            async {
                session.stdin.write(big.as_bytes()).await.unwrap();
                session.stdin.close().await.unwrap();
            },
            drain(&mut session.output)
        );
        assert_eq!((out.len(), err.as_str()), (big.len(), "err\n"));
        assert_eq!(session.control.wait().await.unwrap(), 5);

        let tty = ExecConfig {
            cmd: cmd("stty size; tty; echo $TERM"),
            tty: true,
            size: Some((99, 33)),
            ..Default::default()
        };
        let mut session = rig.engine.exec(&id, tty).await.unwrap();
        let (out, _) = drain(&mut session.output).await;
        assert!(out.contains("/dev/pts/") && out.contains("xterm"), "{out:?}");
        assert_eq!(session.control.wait().await.unwrap(), 0);

        let missing = ExecConfig { cmd: vec!["no-such-program".into()], ..Default::default() };
        let error = rig.engine.exec(&id, missing).await.err().expect("no such program").to_string();
        assert!(error.contains("no-such-program"), "{error}");
    });
}

#[test]
fn a_container_is_attached_to_and_fed() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", "read line; echo got $line");
        (config.stdin, config.stdin_once) = (true, true);
        let id = rig.engine.create_container(&pod.id, config).await.unwrap();
        let mut session = rig.engine.attach(&id, true).await.unwrap();
        rig.engine.start_container(&id).await.unwrap();
        session.stdin.write(b"hello\n").await.unwrap();
        let (out, _) = drain(&mut session.output).await;
        assert_eq!(out, "got hello\n");
        assert_eq!(session.control.wait().await.unwrap(), 0);
        assert_eq!(rig.log(&id), "got hello\n");
    });
}

#[test]
fn a_shared_pid_namespace_is_shared_and_the_hosts_namespaces_are_the_hosts() {
    rig(async |rig| {
        let config = SandboxConfig { pid: NamespaceMode::Pod, ..rig.pod("shared") };
        let pod = rig.engine.run_sandbox(config).await.unwrap();
        rig.start(&pod.id, script("one", LONG)).await.unwrap();
        let (_, log) = rig.run(&pod.id, script("two", "ps -o args | grep -c '[t]rap'; echo $$")).await;
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines[0], "1", "{log}");
        assert_ne!(lines[1], "1", "pid 1 is the pod's init");

        let config = SandboxConfig { network: NamespaceMode::Node, ..rig.pod("node") };
        let pod = rig.engine.run_sandbox(config).await.unwrap();
        assert!(pod.ips.is_empty());
        let (_, log) = rig.run(&pod.id, script("main", "readlink /proc/self/ns/net; hostname")).await;
        let host = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(log.lines().next().unwrap(), host.to_str().unwrap());
    });
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", "");
        config.command = Some(vec!["/no/such/program".into()]);
        let error = rig.start(&pod.id, config).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");

        let mut config = script("other", "");
        config.image = "localhost/nothing:1".into();
        let error = rig.engine.create_container(&pod.id, config).await.unwrap_err().to_string();
        assert!(error.contains("localhost/nothing:1"), "{error}");

        let mut config = script("volume", "");
        config.mounts =
            vec![Mount { host_path: "/no/such/folder".into(), container_path: "/x".into(), ..Default::default() }];
        let error = rig.engine.create_container(&pod.id, config).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/folder"), "{error}");
        let made: Vec<_> = containers(&rig.engine, &pod.id).into_iter().map(|c| c.config.name).collect();
        assert!(!made.contains(&"other".into()) && !made.contains(&"volume".into()), "{made:?}");
    });
}

#[test]
fn a_start_whose_author_died_before_recording_it_is_found_by_the_next() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let id = rig.engine.create_container(&pod.id, script("main", LONG)).await.unwrap();
        let folder = rig.engine.paths().container(&pod.id, &id);
        let before = std::fs::read(folder.join("record.json")).unwrap();
        rig.engine.start_container(&id).await.unwrap();
        let pid = rig.engine.container_status(&id).unwrap().pid;
        std::fs::write(folder.join("record.json"), before).unwrap();
        assert_eq!(rig.engine.container_status(&id).unwrap().state, ContainerState::Created);
        rig.another().start_container(&id).await.unwrap();
        let status = rig.engine.container_status(&id).unwrap();
        assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
    });
}

#[test]
fn a_name_is_one_pods_until_it_is_removed() {
    rig(async |rig| {
        let pod = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let error = rig.another().run_sandbox(rig.pod("web")).await.unwrap_err().to_string();
        assert!(error.contains("already exists") && error.contains(&pod.id[..12]), "{error}");
        let first = rig.engine.create_container(&pod.id, script("main", LONG)).await.unwrap();
        let error = rig.engine.create_container(&pod.id, script("main", LONG)).await.unwrap_err().to_string();
        assert!(error.contains("already exists"), "{error}");
        let mut again = script("main", LONG);
        again.attempt = 1;
        rig.engine.create_container(&pod.id, again).await.unwrap();
        rig.engine.remove_container(&first[..10]).await.unwrap();
        rig.engine.create_container(&pod.id, script("main", LONG)).await.unwrap();
        rig.engine.remove_sandbox(&pod.id[..10]).await.unwrap();
        rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
    });
}

#[test]
fn twenty_pods_at_once_get_in_nobodys_way() {
    rig(async |rig| {
        let begun = Instant::now();
        let pods = (0..20).map(|n| {
            let (engine, config) = (rig.engine.clone(), rig.pod(&format!("pod{n}")));
            async move {
                let pod = engine.run_sandbox(config).await.unwrap();
                let id = engine.create_container(&pod.id, script("main", "exit 7")).await.unwrap();
                engine.start_container(&id).await.unwrap();
                let exit = engine.wait_container(&id).await.unwrap();
                engine.remove_sandbox(&pod.id).await.unwrap();
                exit.code
            }
        });
        let mut set = tokio::task::JoinSet::new();
        pods.for_each(|pod| drop(set.spawn(pod)));
        assert_eq!(set.join_all().await, [7; 20]);
        eprintln!("20 pods in {:?}", begun.elapsed());
    });
}
