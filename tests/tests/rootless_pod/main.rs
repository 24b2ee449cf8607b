//! `coracle` run by an ordinary user: pods in his own user namespace, from the first command to the last.

mod user;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use coracle_tests::machine::until;
use user::{COUNT, FIRST, UID, User};

/// In the machine's network, which needs no program.
const HOST: &str = "  hostNetwork: true\n";
const LONG: &str = "while :; do sleep 0.1; done";

#[test]
fn a_pod_lives_through_all_commands_of_its_user() {
    let user = User::new();
    assert!(user.ok(&["images"]).contains("busybox"));
    let script = format!("id -u; cat /proc/self/uid_map; touch /made; trap \"exit 3\" TERM; {LONG}");
    assert_eq!(user.ok(&["run", "-d", &user.pod("web", &script, "", HOST)]), "started web\n");
    until("the log", || user.ok(&["logs", "web"]).lines().count() == 3);
    let log = user.ok(&["logs", "web"]);
    let map = format!("0 0 {UID} 1 1 {FIRST} {COUNT}");
    assert_eq!(log.split_whitespace().collect::<Vec<_>>().join(" "), map);
    assert!(user.ok(&["ps"]).contains("Running"));
    assert_eq!(user.ok(&["exec", "web", "--", "cat", "/proc/1/comm"]), "sh\n");
    let said = user.coracle(&["exec", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(said.status.code(), Some(7), "{}", said.err);
    let state = fs::metadata(user.path("run/coracle")).unwrap();
    assert_eq!((state.uid(), state.permissions().mode() & 0o7777), (UID, 0o1700));
    assert_eq!(fs::metadata(user.path("home/.local/share/coracle")).unwrap().uid(), UID);
    user.ok(&["stop", "web"]);
    let list: serde_json::Value = serde_json::from_str(&user.ok(&["ps", "-a", "-o", "json"])).unwrap();
    assert_eq!(list[0]["containers"][0]["exitCode"], 3, "its trap was run: {list}");
    user.ok(&["rm", "web"]);
    user.ok(&["rmi", coracle_tests::machine::IMAGE]);
    user.assert_gone();
}

#[test]
fn other_users_inside_are_the_users_further_ids_outside() {
    let user = User::new();
    let spec = "  restartPolicy: Never\n  volumes: [{name: v, emptyDir: {}}]\n  hostNetwork: true\n";
    let container =
        "    securityContext: {runAsUser: 33, runAsGroup: 34}\n    volumeMounts: [{name: v, mountPath: /v}]\n";
    let file = user.pod("owner", "id -u; id -g; touch /v/made", container, spec);
    assert_eq!(user.ok(&["run", &file]), "33\n34\n");
    let made =
        user.sh(&format!("stat -c %u:%g {}/pods/*/volumes/v/made", user.path("home/.local/share/coracle").display()));
    assert_eq!(made.trim(), format!("{}:{}", FIRST + 32, FIRST + 33));
    user.ok(&["rm", "owner"]);
    user.assert_gone();
}

#[test]
fn a_host_port_leads_into_a_pod_with_a_network_of_its_own() {
    let user = User::new();
    let script = "mkdir /www; echo rowed > /www/index.html; httpd -h /www -p 80; ip -4 -o addr show eth0; cat \
                  /etc/resolv.conf; exec sleep 1000";
    let ports = "    ports: [{containerPort: 80, hostPort: 8080}]\n";
    let probes = "    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}\n    \
                  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, initialDelaySeconds: 2}\n    \
                  lifecycle: {postStart: {sleep: {seconds: 1}}}\n";
    user.ok(&["run", "-d", &user.pod("web", script, &format!("{ports}{probes}"), "")]);
    until("the server answers", || user.sh("curl -s http://127.0.0.1:8080/ || true") == "rowed\n");
    let log = user.ok(&["logs", "web"]);
    assert!(log.contains("inet 10.0.2.100/24") && log.contains("nameserver 10.0.2.3"), "{log}");
    let list = || -> serde_json::Value { serde_json::from_str(&user.ok(&["ps", "-a", "-o", "json"])).unwrap() };
    until("its probe has reached the pod's address", || list()[0]["ready"] == 1);
    let taken = user.pod("second", LONG, ports, "");
    user.fails(&["run", "-d", &taken], "hostPort 8080");
    user.ok(&["rm", "-f", "web"]);
    user.assert_gone();
}

#[test]
fn without_the_program_a_pod_network_is_refused_with_what_to_do() {
    let mut user = User::new();
    fs::create_dir(user.path("tools")).unwrap();
    for tool in ["newuidmap", "newgidmap"] {
        symlink(format!("/usr/bin/{tool}"), user.path("tools").join(tool)).unwrap();
    }
    user.search = user.path("tools").display().to_string();
    user.fails(&["run", "-d", &user.pod("web", LONG, "", "")], "slirp4netns");
    user.assert_gone();
}

#[test]
fn an_ended_container_starts_again_with_nobody_there() {
    let user = User::new();
    user.ok(&["run", "-d", &user.pod("again", "sleep 0.2", "", HOST)]);
    until("two restarts", || {
        let list: serde_json::Value = serde_json::from_str(&user.ok(&["ps", "-a", "-o", "json"])).unwrap();
        list[0]["restarts"].as_u64() >= Some(1)
    });
    user.ok(&["rm", "-f", "again"]);
    user.assert_gone();
}

#[test]
fn a_limit_that_nothing_could_enforce_is_refused_by_its_name() {
    let user = User::new();
    let limits = "    resources: {limits: {memory: 64Mi}}\n";
    user.fails(&["run", "-d", &user.pod("limited", LONG, limits, HOST)], "limits.memory");
    user.assert_gone();
}

#[test]
fn a_user_without_further_ids_runs_as_root_inside_and_as_nobody_else() {
    let user = User::bare("");
    user.load();
    let spec = "  restartPolicy: Never\n  hostNetwork: true\n";
    assert_eq!(user.ok(&["run", "--rm", &user.pod("alone", "id -u", "", spec)]), "0\n");
    let other = user.pod("other", "id -u", "    securityContext: {runAsUser: 33}\n", spec);
    user.fails(&["run", "--rm", &other], "33");
    user.assert_gone();
}

#[test]
fn ids_that_would_change_the_owners_of_stored_files_are_refused() {
    let user = User::new();
    ["subuid", "subgid"].iter().for_each(|name| user.etc(name, "rower:900000:65536\n"));
    user.fails(&["images"], "their owners would change");
    ["subuid", "subgid"].iter().for_each(|name| user.etc(name, &format!("rower:{FIRST}:{COUNT}\nrower:900000:10\n")));
    user.ok(&["images"]);
    user.assert_gone();
}

#[test]
fn without_a_runtime_directory_the_user_is_told_how_to_get_one() {
    let user = User::bare("");
    let line = format!(
        "unshare --mount sh -c 'mount --bind {0} {1}/bin; exec setpriv --reuid {UID} --regid {UID} --clear-groups env -u \
         XDG_RUNTIME_DIR HOME={1}/home {1}/bin/coracle ps' 2>&1 || true",
        coracle_tests::bin("coracle").parent().unwrap().display(),
        user.path("").display().to_string().trim_end_matches('/')
    );
    let said = user.sh(&line);
    assert!(said.contains("XDG_RUNTIME_DIR is not set"), "{said}");
}
