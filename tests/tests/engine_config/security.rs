//! Who a container's process is, what it may do, and whose processes it sees.

use coracle_engine::{AppArmor, ContainerUser, NamespaceMode, PidNamespace, SandboxConfig, Security, SelinuxOptions};
use coracle_tests::rig::{rig, script};

use crate::{LONG, lines, ready, refusal};

#[test]
fn the_status_tells_the_user_that_was_resolved() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", "id -u; id -g; id -G");
        config.security = Security {
            run_as_user: Some(33),
            run_as_group: Some(34),
            supplemental_groups: vec![35, 36],
            strict_groups: true,
            ..Default::default()
        };
        let id = rig.engine.create_container(&sandbox.id, config).await.unwrap();
        let user = ContainerUser { uid: 33, gid: 34, supplemental_groups: vec![34, 35, 36] };
        assert_eq!(rig.another().container_status(&id).unwrap().user, Some(user));
        rig.engine.start_container(&id).await.unwrap();
        rig.engine.wait_container(&id).await.unwrap();
        assert_eq!(rig.log(&id), "33\n34\n34 35 36\n");
    });
}

#[test]
fn ambient_capabilities_stay_with_a_user_who_is_not_root() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", "grep -E 'CapEff|CapAmb' /proc/self/status");
        config.security = Security {
            run_as_user: Some(33),
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["CHOWN".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        };
        let seen = lines(rig, &sandbox.id, config).await;
        assert_eq!(seen, ["CapEff:\t0000000000000400", "CapAmb:\t0000000000000400"]);
    });
}

#[test]
fn hidden_and_read_only_paths_are_the_containers_own() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script(
            "main",
            "wc -c < /etc/passwd; touch /etc/x 2>/dev/null || echo readonly; wc -c < /proc/keys | sed 's/[1-9].*/keys/'",
        );
        config.security.masked_paths = Some(vec!["/etc/passwd".into()]);
        config.security.readonly_paths = Some(vec!["/etc".into()]);
        let seen = lines(rig, &sandbox.id, config).await;
        assert_eq!(seen[..2], ["0", "readonly"]);
    });
}

#[test]
fn a_privileged_container_has_the_hosts_devices_unless_it_shall_not() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script(
            "with",
            "test -c /dev/kmsg && echo node; touch /proc/sys/kernel/x 2>&1 | grep -c Read-only; mount -t tmpfs t /tmp && echo mounted",
        );
        config.security.privileged = true;
        assert_eq!(lines(rig, &sandbox.id, config.clone()).await, ["node", "0", "mounted"]);
        (config.name, config.log_path) = ("without".into(), Some("without.log".into()));
        config.command.as_mut().unwrap()[2] =
            "test -c /dev/kmsg || echo no node; mknod /k c 1 11; (: < /k) 2>/dev/null || echo denied".into();
        config.security.without_host_devices = true;
        assert_eq!(lines(rig, &sandbox.id, config).await, ["no node", "denied"]);
    });
}

#[test]
fn a_target_shows_the_processes_of_the_other_container() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let other = rig.engine.run_sandbox(rig.pod("other")).await.unwrap();
        let first = ready(rig, &sandbox.id, script("first", LONG)).await;
        let stranger = ready(rig, &other.id, script("stranger", LONG)).await;
        let mut config =
            script("second", "tr '\\0' ' ' < /proc/1/cmdline | grep -c 'echo ready'; echo $$ | grep -vcx 1");
        config.pid = PidNamespace::Target(first.id.clone());
        assert_eq!(lines(rig, &sandbox.id, config.clone()).await, ["1", "1"]);
        config.attempt = 1;
        for (target, words) in [("ab".repeat(32), "does not exist"), (stranger.id, "another pod")] {
            config.pid = PidNamespace::Target(target);
            let error = refusal(rig, &sandbox.id, config.clone()).await;
            assert!(error.contains("target") && error.contains(words), "{error}");
        }
        rig.engine.stop_container(&first.id, std::time::Duration::ZERO).await.unwrap();
        config.pid = PidNamespace::Target(first.id);
        let error = refusal(rig, &sandbox.id, config).await;
        assert!(error.contains("exited"), "{error}");
    });
}

#[test]
fn a_container_may_keep_its_processes_to_itself_or_see_the_nodes() {
    rig(async |rig| {
        let config = SandboxConfig { pid: NamespaceMode::Pod, ..rig.pod("web") };
        let sandbox = rig.engine.run_sandbox(config).await.unwrap();
        let mut own = script("own", "echo $$");
        assert_ne!(lines(rig, &sandbox.id, own.clone()).await, ["1"]);
        (own.attempt, own.log_path, own.pid) = (1, Some("own-1.log".into()), PidNamespace::Container);
        assert_eq!(lines(rig, &sandbox.id, own).await, ["1"]);
        let mut node = script("node", "test -d /proc/$PID && echo seen");
        node.env = vec![("PID".into(), std::process::id().to_string())];
        node.pid = PidNamespace::Node;
        assert_eq!(lines(rig, &sandbox.id, node).await, ["seen"]);
    });
}

/// This machine has neither; where one has them these would be other tests.
#[test]
fn labels_that_the_host_cannot_give_are_errors() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", LONG);
        config.security.apparmor = AppArmor::Localhost("coracle-test-no-such".into());
        let error = refusal(rig, &sandbox.id, config.clone()).await;
        assert!(error.contains("apparmor") && error.contains("coracle-test-no-such"), "{error}");
        if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            let mut config = script("selinux", LONG);
            config.security.selinux = Some(SelinuxOptions { kind: "my_t".into(), ..Default::default() });
            let error = refusal(rig, &sandbox.id, config).await;
            assert!(error.contains("selinux") && error.contains("my_t"), "{error}");
        }
        config.security.apparmor = AppArmor::Unconfined;
        ready(rig, &sandbox.id, config).await;
    });
}
