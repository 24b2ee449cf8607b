//! The runtime run by an ordinary user, and by root inside that user's own user namespace: runc's rootless containers.
//!
//! The user is nobody's: each command runs in a mount namespace of its own, in which /etc/passwd, /etc/subuid and
//! /etc/subgid are this test's. The machine's stay as they are.

#[path = "../oci_support/mod.rs"]
mod oci_support;
mod user;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use oci_support::{ours, peer, receive_listener, wait_for};
use serde_json::json;
use user::{COUNT, FIRST, UID, User};

#[test]
fn the_configuration_of_spec_rootless_runs_as_it_is() {
    let user = User::sh("id -u; cat /proc/self/uid_map; echo hi >/dev/null; cat /proc/self/setgroups");
    let answer = user.run().ok();
    let words: Vec<&str> = answer.out.split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", &UID.to_string(), "1"]);
    // crun's configuration has all of the user's ids, and so may set groups.
    assert_eq!(words.last(), Some(&if peer("crun") { "allow" } else { "deny" }));
    user.assert_gone();
}

#[test]
fn a_container_lives_through_all_commands_of_its_user() {
    let user = User::sh("exec sleep 1000");
    user.write_config();
    let pid_file = user.path("home/pid");
    user.oci(&["create", "--bundle", user.bundle(), "--pid-file", pid_file.to_str().unwrap(), "box"]).ok();
    assert_eq!(user.status(), "created");
    user.oci(&["start", "box"]).ok();
    assert_eq!(user.status(), "running");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), user.pid().to_string());
    assert!(user.oci(&["list"]).ok().out.contains("running"));
    assert_eq!(user.oci(&["exec", "box", "cat", "/proc/1/comm"]).ok().out, "sleep\n");
    assert_eq!(user.oci(&["exec", "box", "sh", "-c", "exit 7"]).code, 7);
    user.oci(&["kill", "box", "KILL"]).ok();
    wait_for("the end", || user.status() == "stopped");
    user.oci(&["delete", "box"]).ok();
    user.oci(&["state", "box"]).fails(if peer("runc") { "exist" } else { "box" });
    user.assert_gone();
}

#[test]
fn state_is_kept_in_the_users_runtime_directory_out_of_the_reach_of_cleaners() {
    if !ours() {
        return;
    }
    let user = User::sleeping();
    let root = fs::metadata(user.path("home/run/coracle-oci")).unwrap();
    assert_eq!((root.uid(), root.mode() & 0o7777), (UID, 0o1700));
    assert_eq!(fs::metadata(user.path("home/run/coracle-oci/box")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn ranges_of_ids_are_mapped_by_newuidmap() {
    let user = User::sh("id -u; id -g; id -G; touch /home/f; stat -c %u /root").with_ranges();
    ["home", "root"].iter().for_each(|name| fs::create_dir(user.path("home/bundle/rootfs").join(name)).unwrap());
    chown(user.path("home/bundle/rootfs/home"), Some(FIRST + 6), None).unwrap();
    chown(user.path("home/bundle/rootfs/root"), Some(UID), None).unwrap();
    let user = user
        .set("/root/readonly", json!(false))
        .set("/process/user", json!({ "uid": 7, "gid": 8, "additionalGids": [9] }));
    if ours() {
        assert_eq!(user.run().ok().out, "7\n8\n8 9\n0\n");
        assert_eq!(fs::metadata(user.path("home/bundle/rootfs/home/f")).unwrap().uid(), FIRST + 6);
    }
    user.assert_gone();
}

#[test]
fn the_containers_root_need_not_be_the_user_nor_see_the_users_folders() {
    if !ours() {
        return;
    }
    let maps = json!([{ "containerID": 0, "hostID": FIRST, "size": COUNT }]);
    let user = User::sh("id -u; cat /secret/f; cat /proc/self/uid_map")
        .set("/linux/uidMappings", maps.clone())
        .set("/linux/gidMappings", maps);
    fs::create_dir(user.path("home/private")).unwrap();
    fs::create_dir(user.path("home/private/open")).unwrap();
    fs::write(user.path("home/private/open/f"), "seen\n").unwrap();
    ["home", "home/private"].iter().for_each(|name| {
        chown(user.path(name), Some(UID), Some(UID)).unwrap();
        fs::set_permissions(user.path(name), fs::Permissions::from_mode(0o700)).unwrap();
    });
    fs::create_dir(user.path("home/bundle/rootfs/secret")).unwrap();
    let source = user.path("home/private/open");
    let user = user.mount("/secret", "bind", source.to_str().unwrap(), &["rbind", "ro"]);
    let out = user.run().ok().out;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "seen", "0", &FIRST.to_string(), &COUNT.to_string()]);
}

/// By then the process is among the container's mounts, whose /proc may say anything.
#[test]
fn an_agent_is_told_the_hosts_pid_of_an_exec() {
    if !ours() {
        return;
    }
    let user = User::sh("exec sleep 1000");
    let path = user.path("home/agent");
    let agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let notify = json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }]);
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "syscalls": notify });
    let user = user.set("/linux/seccomp", profile);
    user.run_with(&["--detach"]).ok();
    drop(receive_listener(&agent));
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| user.oci(&["exec", "box", "/bin/mkdir", "/tmp/told"]));
        let (fd, message) = receive_listener(&agent);
        let command = fs::read_to_string(format!("/proc/{}/cmdline", message["pid"])).unwrap_or_default();
        drop(fd);
        exec.join().unwrap().fails("not implemented");
        assert!(command.contains("mkdir"), "{message}: {command:?}");
    });
}

#[test]
fn exec_joins_all_namespaces_and_can_be_any_mapped_user() {
    let user = User::sh("exec sleep 1000").with_ranges().namespace("network", None);
    user.run_with(&["--detach"]).ok();
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let pid = user.pid();
    for kind in kinds {
        let link = format!("/proc/self/ns/{kind}");
        let inside = user.oci(&["exec", "box", "readlink", &link]).ok().out;
        let init = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(Path::new(inside.trim()), init, "{kind}");
    }
    assert_eq!(user.oci(&["exec", "--user", "7:8", "box", "sh", "-c", "id -u; id -g"]).ok().out, "7\n8\n");
    if ours() {
        let status = user.oci(&["exec", "box", "sh", "-c", "grep -i CapEff /proc/self/status"]).ok().out;
        assert!(status.contains("0000000020000420"), "only those of the configuration: {status}");
    }
}

#[test]
fn a_terminal_is_given_to_the_user_of_an_exec() {
    let user = User::sh("exec sleep 1000").with_ranges();
    user.run_with(&["--detach"]).ok();
    let out = user.in_terminal("exec --tty --user 7 box sh -c 'tty; stat -c %u /dev/pts/0'");
    // crun leaves the terminal to the container's root.
    let owner = if peer("crun") { 0 } else { 7 };
    assert!(out.contains(&format!("/dev/pts/0\r\n{owner}\r\n")), "{out}");
}

#[test]
fn processes_are_listed_and_signalled_without_a_cgroup() {
    if !ours() {
        return;
    }
    let user = User::sh("sleep 1000 & sleep 1000 & trap 'exit 3' TERM; while :; do wait; done");
    user.run_with(&["--detach"]).ok();
    let pids =
        || -> Vec<i64> { serde_json::from_str(&user.oci(&["ps", "--format", "json", "box"]).ok().out).expect("JSON") };
    wait_for("three processes", || pids().len() == 3);
    assert!(pids().contains(&user.pid()));
    user.oci(&["kill", "--all", "box", "TERM"]).ok();
    wait_for("the end", || user.status() == "stopped");
    user.oci(&["pause", "box"]).fails("stopped");
    user.oci(&["delete", "box"]).ok();
    user.assert_gone();
}

#[test]
fn devices_are_the_hosts_and_work() {
    let user = User::sh(
        "stat -c %t:%T /dev/null /dev/zero /dev/tty; echo x > /dev/null; head -c 2 /dev/zero | wc -c; readlink /dev/ptmx",
    );
    let out = user.run().ok().out;
    assert_eq!(out, "1:3\n1:5\n5:0\n2\npts/ptmx\n");
}

#[test]
fn what_an_ordinary_user_cannot_have_is_refused_with_the_likely_cause_and_leaves_nothing() {
    if !ours() {
        return;
    }
    let plain = || User::sh("true");
    let bind = |options: &[&str]| plain().mount("/host", "bind", "/proc", options);
    let maps = json!([{ "containerID": 0, "hostID": 5, "size": 10 }]);
    let cases: [(User, &str); 12] = [
        (
            plain().without_namespace("user").set("/linux/uidMappings", json!([])).set("/linux/gidMappings", json!([])),
            "user namespace",
        ),
        (plain().set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps), "/etc/subgid"),
        (plain().mount("/sys", "sysfs", "sysfs", &["ro"]), "bind /sys"),
        (plain().without_namespace("ipc"), "ipc namespace"),
        (plain().without_namespace("pid"), "pid namespace"),
        (plain().mount("/host", "bind", "/", &["bind"]), "rbind"),
        (bind(&["rbind", "idmap"]), "idmapped"),
        (plain().mount("/host", "ext4", "/dev/vda", &[]), "user namespace"),
        (plain().set("/process/oomScoreAdj", json!(-999)), "oomScoreAdj"),
        (plain().set("/process/user", json!({ "uid": 0, "gid": 0, "additionalGids": [5] })), "groups"),
        (plain().set("/linux/cgroupsPath", json!("/coracle-test-rootless")), "cgroup"),
        (plain().set("/linux/resources", json!({ "memory": { "limit": 100_000_000 } })), "memory"),
    ];
    for (user, words) in cases {
        user.run().fails(words);
        user.assert_gone();
    }
}

#[test]
fn a_missing_newuidmap_and_an_unmapped_root_are_told() {
    if !ours() {
        return;
    }
    let user = User::sh("true").with_ranges();
    user.write_config();
    let program = user.program();
    let words = ["env", "PATH=/nonexistent", program.to_str().unwrap(), "run", "--bundle", user.bundle(), "box"];
    user.answer(user.command(&words)).fails("uidmap");
    let unmapped = json!([{ "containerID": 1, "hostID": FIRST, "size": 10 }]);
    let user = user.set("/linux/uidMappings", unmapped.clone()).set("/linux/gidMappings", unmapped);
    user.run().fails("is it mapped");
    user.assert_gone();
}

#[test]
fn an_oom_score_may_be_raised_and_stays_the_containers_own() {
    if !ours() {
        return;
    }
    let user = User::sh("exec sleep 1000").set("/process/oomScoreAdj", json!(700));
    user.write_config();
    let script = "cat /proc/self/oom_score_adj; $0 run --detach --bundle home/bundle box; cat /proc/self/oom_score_adj; \
                  $0 exec box cat /proc/1/oom_score_adj /proc/self/oom_score_adj";
    let program = user.program();
    let answer = user.answer(user.command(&["/bin/sh", "-c", script, program.to_str().unwrap()])).ok();
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let own = own.trim();
    assert_eq!(answer.out.split_whitespace().collect::<Vec<_>>(), [own, own, "700", "700"]);
}

#[test]
fn a_second_container_joins_the_first_ones_namespaces_by_path() {
    if !ours() {
        return;
    }
    let first = User::sh("exec sleep 1000").with_ranges().namespace("network", None);
    first.run_with(&["--detach"]).ok();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", first.pid());
    let mut second = User::sh("for kind in user net ipc; do readlink /proc/self/ns/$kind; done; id -u");
    for (kind, name) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        second = second.namespace(kind, Some(&path(name)));
    }
    let second = second.set("/linux/uidMappings", json!([])).set("/linux/gidMappings", json!([]));
    let expected: String =
        ["user", "net", "ipc"].map(|kind| format!("{}\n", fs::read_link(path(kind)).unwrap().display())).concat();
    assert_eq!(second.run().ok().out, format!("{expected}0\n"));
    second.assert_gone();
}

#[test]
fn the_users_hooks_run_as_the_user() {
    if !ours() {
        return;
    }
    let user = User::sh("true");
    let hook = |kind: &str| {
        let line = format!("id -u > {}", user.path("home").join(kind).display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let hooks =
        json!({ "createRuntime": hook("runtime"), "createContainer": hook("container"), "poststop": hook("stop") });
    let user = user.set("/hooks", hooks);
    user.run().ok();
    let seen = ["runtime", "container", "stop"].map(|kind| fs::read_to_string(user.path("home").join(kind)).unwrap());
    assert_eq!(seen, [format!("{UID}\n"), "0\n".to_owned(), format!("{UID}\n")]);
}

/// A configuration as podman's for its rootless containers: no user namespace, as the caller is in one.
fn for_root_of_a_namespace(script: &str) -> User {
    User::sh(script)
        .without_namespace("user")
        .namespace("network", None)
        .set("/linux/uidMappings", json!([]))
        .set("/linux/gidMappings", json!([]))
}

#[test]
fn root_of_a_user_namespace_runs_containers() {
    let user = for_root_of_a_namespace("stat -c %t:%T /dev/null; echo x > /dev/null; exec sleep 1000").mount(
        "/sys",
        "sysfs",
        "sysfs",
        &["ro", "nosuid", "noexec", "nodev"],
    );
    let script =
        "$oci run --detach --bundle home/bundle box; while ! $oci exec box grep -q sleep /proc/1/comm; do sleep 0.05; done
        $oci exec --user 7:8 box id -u; $oci exec box cat /proc/1/comm
        $oci exec box readlink /proc/self/ns/user; readlink /proc/self/ns/user
        $oci kill box KILL; while ! $oci state box | grep -q stopped; do sleep 0.05; done; $oci delete box";
    let out = user.inside(script).ok().out;
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[..3], ["1:3", "7", "sleep"]);
    assert_eq!(words[3], words[4]);
    user.assert_gone();
}

#[test]
fn a_user_namespace_in_a_user_namespace_is_mapped_directly() {
    let maps = json!([{ "containerID": 0, "hostID": 10, "size": 100 }]);
    let user = for_root_of_a_namespace("cat /proc/self/uid_map; id -u; echo x > /dev/null")
        .namespace("user", None)
        .set("/linux/uidMappings", maps.clone())
        .set("/linux/gidMappings", maps);
    let rootfs = user.path("home/bundle/rootfs");
    let owned = Command::new("chown").arg("-hR").arg(format!("{0}:{0}", FIRST + 9)).arg(rootfs).status();
    assert!(owned.unwrap().success());
    let out = user.inside("$oci run --bundle home/bundle box").ok().out;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "10", "100", "0"]);
    user.assert_gone();
}

#[test]
fn root_of_a_user_namespace_shares_a_pid_namespace_between_containers() {
    if !ours() {
        return;
    }
    let user = for_root_of_a_namespace("exec sleep 1000");
    let script = "$oci run --detach --bundle home/bundle box; pid=$($oci state box | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')
        mkdir home/second; sed \"s,{\\\"type\\\":\\\"pid\\\"},{\\\"type\\\":\\\"pid\\\"\\,\\\"path\\\":\\\"/proc/$pid/ns/pid\\\"},
        s,exec sleep 1000,cat /proc/1/comm,; s,\\\"rootfs\\\",\\\"../bundle/rootfs\\\",\" home/bundle/config.json > home/second/config.json
        $oci run --bundle home/second other; $oci delete --force box";
    assert_eq!(user.inside(script).ok().out, "sleep\n");
    user.assert_gone();
}

#[test]
fn sysctls_and_filters_are_the_users_to_set_in_namespaces_of_his_own() {
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO" }]
    });
    let user = User::sh("cat /proc/sys/net/ipv4/ip_forward; chmod 700 /dev/shm || echo denied")
        .namespace("network", None)
        .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))
        .set("/linux/seccomp", filter);
    assert_eq!(user.run().ok().out, "1\ndenied\n");
}

#[test]
fn clocks_are_set_ahead_in_a_user_namespace_that_is_made_for_them() {
    if !ours() {
        return;
    }
    let user = User::sh("cat /proc/self/timens_offsets; id -u; cat /proc/self/uid_map")
        .with_ranges()
        .namespace("time", None)
        .set("/linux/timeOffsets", json!({ "monotonic": { "secs": 86_400 } }));
    let out = user.run().ok().out;
    let expected = format!("monotonic 86400 0 boottime 0 0 0 0 {UID} 1 1 {FIRST} {COUNT}");
    assert_eq!(out.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    let unmapped = json!([{ "containerID": 0, "hostID": 5, "size": 10 }]);
    user.set("/linux/uidMappings", unmapped.clone()).set("/linux/gidMappings", unmapped).run().fails("/etc/subgid");
}

#[test]
fn overlays_and_copied_up_filesystems_are_made_as_the_containers_root() {
    let user = User::sh("cat /over/f; echo up > /over/f; stat -c %u /copied/f; cat /copied/f");
    let home = user.path("home");
    ["lower", "upper", "work", "bundle/rootfs/over", "bundle/rootfs/copied"].iter().for_each(|name| {
        fs::create_dir(home.join(name)).unwrap();
        chown(home.join(name), Some(UID), Some(UID)).unwrap();
    });
    fs::write(home.join("lower/f"), "low\n").unwrap();
    chown(home.join("lower/f"), Some(UID), Some(UID)).unwrap();
    // Of a user who has no number in the container.
    fs::write(home.join("bundle/rootfs/copied/f"), "kept\n").unwrap();
    let data = |key: &str, name: &str| format!("{key}={}", home.join(name).display());
    let overlay =
        [data("lowerdir", "lower"), data("upperdir", "upper"), data("workdir", "work"), "userxattr".to_owned()];
    let words: Vec<&str> = overlay.iter().map(String::as_str).collect();
    let user = user.mount("/over", "overlay", "overlay", &words).mount("/copied", "tmpfs", "tmpfs", &["tmpcopyup"]);
    if ours() {
        assert_eq!(user.run().ok().out, "low\n0\nkept\n");
        assert_eq!(fs::read_to_string(home.join("upper/f")).unwrap(), "up\n");
        assert_eq!(fs::metadata(home.join("upper/f")).unwrap().uid(), UID);
    }
}

#[test]
fn a_foreground_container_gets_a_terminal_of_its_own() {
    let user = User::sh("tty; stat -c %u /dev/console").set("/process/terminal", json!(true));
    user.write_config();
    let out = user.in_terminal(&format!("run --bundle {} box", user.bundle()));
    assert!(out.contains("/dev/pts/0\r\n0\r\n"), "{out}");
    user.assert_gone();
}

#[test]
fn an_exec_before_the_start_says_what_is_wrong() {
    if !ours() {
        return;
    }
    let user = User::sh("true");
    user.write_config();
    user.oci(&["create", "--bundle", user.bundle(), "box"]).ok();
    user.oci(&["exec", "box", "true"]).fails("not started yet");
    user.oci(&["delete", "--force", "box"]).ok();
    user.assert_gone();
}

#[test]
fn a_container_is_limited_in_a_cgroup_delegated_to_its_user() {
    let top = Path::new("/sys/fs/cgroup");
    if !top.join("cgroup.controllers").exists() {
        return; // v1 knows no delegation.
    }
    fs::write(top.join("cgroup.subtree_control"), "+memory +pids").unwrap();
    let delegated = top.join(format!("coracle-test-rower-{}", std::process::id()));
    let session = delegated.join("session");
    fs::create_dir_all(&session).unwrap();
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "session", "session/cgroup.procs"] {
        chown(delegated.join(file), Some(UID), None).unwrap();
    }
    let mut user = User::sh("exec sleep 1000").set(
        "/linux/resources",
        json!({ "memory": { "limit": 64 << 20 }, "devices": [{ "allow": false, "access": "rwm" }] }),
    );
    user.cgroup = session.clone();
    user.run_with(&["--detach"]).ok();
    let inside = user.oci(&["exec", "box", "cat", "/sys/fs/cgroup/memory.max"]).ok().out;
    assert_eq!(inside.trim(), (64 << 20).to_string());
    let limit = || fs::read_to_string(delegated.join("box/memory.max")).unwrap();
    assert_eq!(user.oci(&["ps", "--format", "json", "box"]).ok().out.trim(), format!("[{}]", user.pid()));
    user.oci(&["pause", "box"]).ok();
    assert_eq!(user.status(), "paused");
    user.oci(&["resume", "box"]).ok();
    user.oci(&["update", "--memory", &(32 << 20).to_string(), "box"]).ok();
    assert_eq!(limit().trim(), (32 << 20).to_string());
    user.oci(&["delete", "--force", "box"]).ok();
    assert!(!delegated.join("box").exists(), "the cgroup is left");
    user.assert_gone();
    fs::remove_dir(session).and_then(|()| fs::remove_dir(delegated)).unwrap();
}

#[test]
fn podman_runs_an_ordinary_users_containers_by_it() {
    let user = User::sh("");
    let script = format!(
        "mkdir -p $HOME/.config/containers; cd $HOME
        printf '[storage]\ndriver=\"vfs\"\ngraphroot=\"%s/storage\"\nrunroot=\"%s/runroot\"\n' $HOME $HOME > .config/containers/storage.conf
        podman() {{ /usr/bin/podman --cgroup-manager cgroupfs --events-backend none --runtime {} \"$@\"; }}
        trap 'podman rm --all --force --time 0 > /dev/null; podman system migrate' EXIT
        root=$HOME/bundle/rootfs
        podman run --rm --net none --rootfs $root sh -c 'id -u; echo x > /dev/null; exit 3' || echo $?
        podman run --rm --net none --userns keep-id --rootfs $root id -u
        podman run --rm --net host --user 7:8 -v $HOME:/v:ro --rootfs $root sh -c 'id -u; ls /v/bundle/rootfs > /dev/null && touch /v/x || echo read-only'
        podman run --detach --name one --net none --rootfs $root sleep 1000 > /dev/null
        podman exec one sh -c 'id -u; cat /proc/1/comm'
        podman run --rm --pid container:one --net container:one --rootfs $root cat /proc/1/comm
        podman stop --time 0 one > /dev/null
        podman inspect one --format '{{{{.State.Status}}}} {{{{.State.ExitCode}}}}'",
        user.program().display()
    );
    let answer = user.answer(user.command(&["/bin/sh", "-ec", &script])).ok();
    let words: Vec<&str> = answer.out.split_whitespace().collect();
    let expected = ["0", "3", "54321", "7", "read-only", "0", "sleep", "sleep", "exited", "137"];
    assert_eq!(words, expected, "{}", answer.err);
    user.assert_gone();
}
