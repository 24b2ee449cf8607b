//! `coracle cp`: both ways, as archives, and from containers that mean harm.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use coracle_tests::machine::Machine;

use crate::{SLEEP, start, until};

fn read(machine: &Machine, name: &str) -> String {
    fs::read_to_string(machine.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn exec(machine: &Machine, pod: &str, script: &str) -> String {
    machine.ok(&["exec", pod, "--", "sh", "-c", script])
}

fn path(machine: &Machine, name: &str) -> String {
    machine.path(name).display().to_string()
}

#[test]
fn files_and_folders_go_both_ways() {
    let machine = Machine::new();
    start(&machine, "web", SLEEP, "", "");
    fs::create_dir_all(machine.path("site/sub")).unwrap();
    fs::write(machine.path("site/sub/page"), "hello").unwrap();
    fs::set_permissions(machine.path("site/sub/page"), fs::Permissions::from_mode(0o750)).unwrap();
    machine.ok(&["cp", &path(&machine, "site"), "web:/tmp"]);
    machine.ok(&["cp", &path(&machine, "site"), "web:tmp/renamed"]);
    machine.ok(&["cp", &format!("{}/.", path(&machine, "site")), "web:/tmp"]);
    let script = "cat /tmp/site/sub/page /tmp/renamed/sub/page /tmp/sub/page; stat -c %a /tmp/site/sub/page";
    assert_eq!(exec(&machine, "web", script), "hellohellohello750\n");
    machine.ok(&["cp", "-c", "main", "default/web:/tmp/site", &path(&machine, "back")]);
    machine.ok(&["cp", "web:/tmp/site/sub/page", &path(&machine, "one")]);
    assert_eq!((read(&machine, "back/sub/page"), read(&machine, "one")), ("hello".into(), "hello".into()));
    machine.ok(&["cp", "web:/tmp/site", "web:/tmp/twice"]);
    assert_eq!(exec(&machine, "web", "cat /tmp/twice/sub/page"), "hello");
    for (wrong, why) in [
        (["web:/no/such", "."], "/no/such"),
        (["web:/tmp", "-x/y/z"], "-x"),
        ([".", ".."], "POD:PATH"),
        (["nobody:/etc", "."], "no pod nobody"),
    ] {
        let said = machine.coracle(&["cp", "--", wrong[0], wrong[1]]);
        assert!(!said.status.success() && said.err.contains(why), "{wrong:?}: {said:?}");
    }
}

#[test]
fn archives_go_by_standard_input_and_output() {
    let machine = Machine::new();
    start(&machine, "web", SLEEP, "", "");
    exec(&machine, "web", "mkdir -p /data/d && echo text > /data/d/file");
    let archive = machine.path("data.tar");
    let mut command = machine.command(&["cp", "web:/data", "-"]);
    let output = machine.run(|| command.stderr(Stdio::inherit()).output()).expect("run coracle");
    assert!(output.status.success());
    fs::write(&archive, &output.stdout).unwrap();
    let list = Command::new("tar").arg("tf").arg(&archive).output().expect("run tar");
    assert_eq!(String::from_utf8_lossy(&list.stdout), "data\ndata/d\ndata/d/file\n");
    let mut command = machine.command(&["cp", "-", "web:/tmp"]);
    let mut child = machine.run(|| command.stdin(Stdio::piped()).spawn()).expect("start coracle");
    child.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(exec(&machine, "web", "cat /tmp/data/d/file"), "text\n");
}

#[test]
fn what_is_copied_belongs_to_the_containers_user_who_may_do_no_more_than_in_the_container() {
    let machine = Machine::new();
    start(&machine, "user", SLEEP, "    securityContext: {runAsUser: 1234, runAsGroup: 567}\n", "");
    fs::write(machine.path("file"), "x").unwrap();
    machine.ok(&["cp", &path(&machine, "file"), "user:/tmp/mine"]);
    assert_eq!(exec(&machine, "user", "stat -c %u:%g /tmp/mine"), "1234:567\n");
    let error = machine.fails(&["cp", &path(&machine, "file"), "user:/etc/passwd"]);
    assert!(error.contains("Permission denied"), "{error}");
}

/// A secret of the machine is never read, and a file of the machine is never written, wherever a container's links
/// lead: they lead within the container.
#[test]
fn a_containers_links_lead_to_no_file_of_the_machine() {
    let machine = Machine::new();
    start(&machine, "evil", SLEEP, "", "");
    let secret = path(&machine, "secret");
    fs::write(&secret, "top secret").unwrap();
    exec(&machine, "evil", &format!("mkdir -p /data/sub && ln -s {secret} /data/file && ln -s / /data/sub/root"));
    assert!(!machine.coracle(&["cp", "evil:/data/file", &path(&machine, "got")]).status.success());
    assert!(!machine.path("got").exists());
    // A folder of links: none that leads out is made here.
    let said = machine.coracle(&["cp", "evil:/data", &path(&machine, "copy")]);
    assert!(said.status.success() && said.err.contains("not part of the copy"), "{said:?}");
    assert!(machine.path("copy/file").symlink_metadata().is_err());
    assert!(machine.path("copy/sub/root").symlink_metadata().is_err());
    // Into the container, through its links.
    let scratch = machine.path("file").parent().unwrap().display().to_string();
    exec(&machine, "evil", &format!("ln -s {scratch} /data/out && ln -s {secret} /data/target"));
    fs::write(machine.path("new"), "from outside").unwrap();
    assert!(!machine.coracle(&["cp", &path(&machine, "new"), "evil:/data/out/planted"]).status.success());
    assert!(!machine.path("planted").exists());
    machine.ok(&["cp", &path(&machine, "new"), "evil:/data/target"]);
    assert_eq!(read(&machine, "secret"), "top secret", "the link in the container was replaced");
    assert_eq!(exec(&machine, "evil", "cat /data/target"), "from outside");
    // A link planted by a first copy is not followed by a second.
    exec(
        &machine,
        "evil",
        &format!("rm -rf /data && mkdir /data && ln -s ../.. /data/up && ln -s {scratch} /data/abs"),
    );
    machine.coracle(&["cp", "evil:/data", &path(&machine, "twice")]);
    exec(
        &machine,
        "evil",
        "rm /data/* && mkdir /data/up /data/abs && echo evil > /data/up/planted && echo > /data/abs/planted",
    );
    machine.coracle(&["cp", "evil:/data/.", &path(&machine, "twice")]);
    assert!(!machine.path("planted").exists());
}

#[test]
fn devices_and_pipes_are_neither_read_nor_written_nor_waited_for() {
    let machine = Machine::new();
    start(&machine, "evil", SLEEP, "", "");
    // Memory (1, 11 is the kernel's log): readable by root outside, forbidden inside by the device cgroup.
    exec(&machine, "evil", "mkdir /data && mknod /data/kmsg c 1 11 && mkfifo /data/pipe && echo fine > /data/file");
    let denied = machine.coracle(&["exec", "evil", "--", "dd", "if=/data/kmsg", "of=/dev/null", "bs=1", "count=1"]);
    assert!(!denied.status.success(), "the container itself may not read it");
    let said = machine.coracle(&["cp", "evil:/data", &path(&machine, "copy")]);
    assert!(said.status.success(), "{said:?}");
    assert!(said.err.contains("it is a device") && said.err.contains("it is a pipe"), "{}", said.err);
    let names: Vec<_> = fs::read_dir(machine.path("copy")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    fs::write(machine.path("new"), "x").unwrap();
    for name in ["kmsg", "pipe"] {
        machine.ok(&["cp", &path(&machine, "new"), &format!("evil:/data/{name}")]);
        assert_eq!(exec(&machine, "evil", &format!("cat /data/{name}")), "x", "{name} was replaced, not written to");
    }
}

#[test]
fn names_that_would_command_the_terminal_are_quoted_and_rights_are_not_brought_along() {
    let machine = Machine::new();
    start(&machine, "evil", SLEEP, "", "");
    exec(
        &machine,
        "evil",
        "mkdir /data && cp /bin/busybox /data/su && chmod 6755 /data/su && mkfifo \"$(printf '/data/a\\033[2Jb')\"",
    );
    let said = machine.coracle(&["cp", "evil:/data", &path(&machine, "copy")]);
    assert!(said.status.success() && !said.err.contains('\x1b'), "{said:?}");
    let mode = fs::metadata(machine.path("copy/su")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_tree_that_changes_meanwhile_leads_nowhere_else() {
    let machine = Machine::new();
    let scratch = machine.path("file").parent().unwrap().display().to_string();
    let script = format!(
        "mkdir -p /data; i=0; while :; do rm -rf /data/x; mkdir -p /data/x/y; echo in > /data/x/y/secret; \
         rm -rf /data/x/y; ln -s {scratch} /data/x/y; i=$((i+1)); echo $i > /data/count; done"
    );
    start(&machine, "race", &script, "", "");
    fs::write(machine.path("secret"), "top secret").unwrap();
    until("it changes", || machine.coracle(&["exec", "race", "--", "test", "-s", "/data/count"]).status.success());
    for round in 0..10 {
        let copy = format!("copy{round}");
        machine.coracle(&["cp", "race:/data", &path(&machine, &copy)]);
        let leaked =
            Command::new("grep").args(["-r", "top secret"]).arg(machine.path(&copy)).output().expect("run grep");
        assert!(leaked.stdout.is_empty(), "{leaked:?}");
    }
    fs::write(machine.path("new"), "planted").unwrap();
    for _ in 0..10 {
        machine.coracle(&["cp", &path(&machine, "new"), "race:/data/x/y/planted"]);
        assert!(!machine.path("planted").exists());
    }
}
