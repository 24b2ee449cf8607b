//! Pods with a user namespace of their own (KEP-127).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use coracle_engine::{
    ExecConfig, IdMapping, Mount, NamespaceMode, PidNamespace, SandboxConfig, Security, UserNamespace,
};
use coracle_tests::rig::{Rig, drain, rig, script};

use crate::{LONG, lines, ready, refusal};

const FIRST: u32 = 200_000;

fn maps() -> Vec<IdMapping> {
    vec![IdMapping { container_id: 0, host_id: FIRST, length: 65_536 }]
}

fn pod(rig: &Rig, name: &str) -> SandboxConfig {
    SandboxConfig { user_namespace: Some(UserNamespace { uids: maps(), gids: maps() }), ..rig.pod(name) }
}

#[test]
fn root_inside_is_somebody_else_outside() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let look = "id -u; stat -c %u:%g / /bin/busybox /etc/hosts /etc/resolv.conf /dev/shm /dev/pts; hostname; \
                    echo more >> /etc/hosts && touch /made /dev/shm/made && stat -c %u /made && mkdir /tmp/d && \
                    chown 33:33 /tmp/d && stat -c %u /tmp/d; echo through > /dev/stdout; ls /sys/class/net | sort | xargs; \
                    ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'; cat /sys/fs/cgroup/memory/memory.limit_in_bytes \
                    > /dev/null && echo cgroup; echo ready; while :; do sleep 0.05; done";
        let status = ready(rig, &sandbox.id, script("main", look)).await;
        let log = rig.log(&status.id);
        let seen: Vec<&str> = log.lines().collect();
        let inet = format!("inet {}", sandbox.ips[0]);
        assert_eq!(seen[0], "0", "{log}");
        assert_eq!(seen[1..7], ["0:0", "0:0", "0:0", "0:0", "0:0", "0:0"], "{log}");
        assert_eq!(seen[7..], ["web", "0", "33", "through", "eth0 lo", &inet, "cgroup", "ready"], "{log}");
        let map = fs::read_to_string(format!("/proc/{}/uid_map", status.pid.unwrap())).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
        let process = fs::metadata(format!("/proc/{}", status.pid.unwrap())).unwrap();
        assert_eq!(process.uid(), FIRST);
        let upper = rig.dir.join("root/pods").join(&sandbox.id).join(&status.id).join("upper");
        assert_eq!(fs::metadata(upper.join("made")).unwrap().uid(), FIRST);
        assert_eq!(fs::metadata(upper.join("tmp/d")).unwrap().uid(), FIRST + 33);
        // The image's own files stay whose they were.
        assert!(!upper.join("bin/busybox").exists());
    });
}

#[test]
fn an_exec_and_a_user_of_the_image_live_in_the_namespace() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let mut config = script("main", LONG);
        config.security = Security { run_as_user: Some(33), run_as_group: Some(34), ..Default::default() };
        let status = ready(rig, &sandbox.id, config).await;
        assert_eq!(fs::metadata(format!("/proc/{}", status.pid.unwrap())).unwrap().uid(), FIRST + 33);
        let cmd =
            ["sh", "-c", "id -u; id -g; cat /proc/self/uid_map; echo out > /dev/stdout"].map(String::from).to_vec();
        for tty in [false, true] {
            let exec = ExecConfig { cmd: cmd.clone(), tty, ..Default::default() };
            let mut session = rig.engine.exec(&status.id, exec).await.unwrap();
            let (out, err) = drain(&mut session.output).await;
            assert_eq!(session.control.wait().await.unwrap(), 0, "{out}{err}");
            assert!(out.starts_with("33") && out.contains("200000") && out.contains("out"), "{out}{err}");
        }
    });
}

#[test]
fn a_terminal_is_the_containers_own() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let mut config = script("main", "tty; stat -c %u $(tty); echo console > /dev/console");
        config.tty = true;
        let seen = lines(rig, &sandbox.id, config).await;
        assert_eq!(seen.iter().map(|l| l.trim()).collect::<Vec<_>>(), ["/dev/pts/0", "0", "console"]);
    });
}

#[test]
fn volumes_are_mapped_as_their_mounts_say() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let volume = |name: &str| {
            let path = rig.dir.join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "").unwrap();
            path
        };
        let (mapped, plain) = (volume("mapped"), volume("plain"));
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o777)).unwrap();
        let mut config = script("look", "stat -c %u /mapped/file /plain/file; touch /mapped/new /plain/new; echo done");
        config.mounts = vec![
            Mount {
                host_path: mapped.clone(),
                container_path: "/mapped".into(),
                uid_mappings: maps(),
                gid_mappings: maps(),
                ..Default::default()
            },
            Mount { host_path: plain.clone(), container_path: "/plain".into(), ..Default::default() },
        ];
        assert_eq!(lines(rig, &sandbox.id, config).await, ["0", "65534", "done"]);
        assert_eq!(fs::metadata(mapped.join("new")).unwrap().uid(), 0, "root inside writes as root outside");
        assert_eq!(fs::metadata(plain.join("new")).unwrap().uid(), FIRST);
    });
}

#[test]
fn a_volume_that_cannot_be_mapped_is_an_error_that_says_so() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let volume = Mount {
            host_path: "/proc".into(),
            container_path: "/vol".into(),
            uid_mappings: maps(),
            gid_mappings: maps(),
            ..Default::default()
        };
        let mut config = script("main", LONG);
        config.mounts = vec![volume];
        let error = refusal(rig, &sandbox.id, config).await;
        assert!(error.contains("/vol") && error.contains("support idmapped mounts"), "{error}");
    });
}

#[test]
fn the_shared_pid_namespace_belongs_to_it_and_privileges_end_in_it() {
    rig(async |rig| {
        let config = SandboxConfig { pid: NamespaceMode::Pod, ..pod(rig, "web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        ready(rig, &sandbox.id, script("other", LONG)).await;
        let mut look = script(
            "look",
            "ps | grep -c 'sleep 0.0[5]\\|echo read[y]' | sed 's/[1-9].*/others/'; mount -t tmpfs t /mnt && echo mounted; \
             dmesg > /dev/null 2>&1 || true; mknod /n b 7 0 2>/dev/null || echo no nodes; \
             cat /proc/1/comm; readlink /proc/1/ns/user > /dev/null || echo not mine; echo $$ | grep -vx 1 > /dev/null && echo shared",
        );
        look.command.as_mut().unwrap()[2].insert_str(0, "mkdir -p /mnt; ");
        look.security.privileged = true;
        let seen = lines(rig, &sandbox.id, look).await;
        assert!(seen.contains(&"mounted".into()) && seen.contains(&"no nodes".into()), "{seen:?}");
        assert!(seen.contains(&"shared".into()), "{seen:?}");
    });
}

#[test]
fn what_makes_a_container_strict_works_in_it_too() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(pod(rig, "web")).await.unwrap();
        let look = "touch /x 2>/dev/null || echo readonly; touch /etc/hosts 2>/dev/null || echo hosts; \
                    wc -c < /proc/keys; (echo 1 > /proc/sys/kernel/shmmax) 2>/dev/null || echo proc; \
                    grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; touch /dev/shm/x && echo shm";
        let mut config = script("look", look);
        config.security = Security {
            run_as_user: Some(65_534),
            readonly_rootfs: true,
            no_new_privs: true,
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        };
        config.resources.oom_score_adj = Some(500);
        let seen = lines(rig, &sandbox.id, config).await;
        assert_eq!(seen[..4], ["readonly", "hosts", "0", "proc"]);
        assert_eq!(seen[4..], ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "shm"]);
    });
}

#[test]
fn the_nodes_network_is_seen_and_not_changed() {
    rig(async |rig| {
        let config = SandboxConfig { network: NamespaceMode::Node, ..pod(rig, "web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        let mut look =
            script("look", "ls /sys/class/net | grep lo; ip link add d type dummy 2>/dev/null || echo denied; id -u");
        look.security.add_capabilities = vec!["NET_ADMIN".into()];
        assert_eq!(lines(rig, &sandbox.id, look).await, ["lo", "denied", "0"]);
    });
}

#[test]
fn a_target_and_a_sysctl_work_in_it() {
    rig(async |rig| {
        let sysctls = [("net.core.somaxconn".to_owned(), "77".to_owned())].into();
        let sandbox = rig.engine.run_sandbox(SandboxConfig { sysctls, ..pod(rig, "web") }).await.unwrap();
        let first = ready(rig, &sandbox.id, script("first", LONG)).await;
        let mut second =
            script("second", "cat /proc/sys/net/core/somaxconn; tr '\\0' ' ' < /proc/1/cmdline | grep -c ready");
        second.pid = PidNamespace::Target(first.id);
        assert_eq!(lines(rig, &sandbox.id, second).await, ["77", "1"]);
    });
}

#[test]
fn maps_that_cannot_be_are_refused_and_leave_nothing() {
    rig(async |rig| {
        let with = |map: IdMapping| SandboxConfig {
            user_namespace: Some(UserNamespace { uids: vec![map], gids: maps() }),
            ..rig.pod("web")
        };
        let no_root = IdMapping { container_id: 1, host_id: FIRST, length: 5 };
        let empty = IdMapping { container_id: 0, host_id: FIRST, length: 0 };
        for (config, words) in [
            (with(no_root), "id 0 must be mapped"),
            (with(empty), "is empty"),
            (SandboxConfig { ipc: NamespaceMode::Node, ..pod(rig, "web") }, "ipc"),
            (SandboxConfig { pid: NamespaceMode::Node, ..pod(rig, "web") }, "pid"),
        ] {
            let error = rig.engine.run_sandbox(config).await.unwrap_err().to_string();
            assert!(error.contains("user_namespace") && error.contains(words), "{error}");
            assert_eq!(rig.left(), Vec::<String>::new());
        }
    });
}
