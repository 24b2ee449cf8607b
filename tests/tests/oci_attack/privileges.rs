//! Rights that are not the container's: capabilities, groups, ids, keys, the caller's terminal and files.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use crate::oci_support::{Answer, Bundle, ours, peer, runtime, wait_for};
use crate::tools::{capabilities, perl, start, user_namespace, with_perl};

#[test]
fn cve_2022_29162_no_capability_is_inheritable_unless_the_configuration_says_so() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    capabilities(&mut bundle, &["CAP_KILL"]);
    start(&bundle);
    let pid = bundle.state()["pid"].to_string();
    let zero = "CapInh:\t0000000000000000";
    assert!(fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains(zero));
    let out = bundle.exec(&["/bin/grep", "CapInh", "/proc/self/status"]).ok().out;
    assert!(out.contains(zero), "{out}");
    let with_cap = ["exec", "--cap", "CAP_SYS_ADMIN", &bundle.id, "/bin/grep", "Cap", "/proc/self/status"];
    let out = bundle.oci(&with_cap).ok().out;
    // Debian's runc is as old as the finding.
    assert!(out.contains(zero) || !ours(), "{out}");
    assert!(out.contains("CapEff:\t0000000000200020"), "the witness: the capability itself was given: {out}");
}

#[test]
fn cve_2024_40635_minus_one_is_not_root() {
    for user in [json!({ "uid": 4_294_967_295_u32, "gid": 5 }), json!({ "uid": 5, "gid": 4_294_967_295_u32 })] {
        let mut bundle = Bundle::sh("id -u; id -g");
        bundle.set("/process/user", user);
        let answer = bundle.run();
        if ours() {
            answer.fails("process.user");
        }
        bundle.assert_gone();
    }
    let bundle = Bundle::sleeping();
    let answer = bundle.oci(&["exec", "--user", "4294967295:4294967295", &bundle.id, "/bin/id", "-u"]);
    assert!(!answer.out.starts_with('0') || !ours(), "{answer:?}");
}

/// A user namespace that denies setgroups for good, as an ordinary user's does, held by a process that sleeps.
fn denying_namespace() -> std::process::Child {
    let child = Command::new("unshare").args(["--user", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let proc = |file: &str| format!("/proc/{}/{file}", child.id());
    wait_for("the namespace", || fs::read_link(proc("ns/user")).is_ok_and(|found| found != own));
    for (file, text) in [("setgroups", "deny"), ("gid_map", "0 100000 1000"), ("uid_map", "0 100000 1000")] {
        fs::write(proc(file), text).unwrap();
    }
    child
}

#[test]
fn cve_2018_7169_groups_of_the_caller_do_not_come_along_where_they_cannot_be_dropped() {
    if peer("crun") {
        return; // Debian's does not join user namespaces on this host.
    }
    const GROUP: u32 = 54_321;
    let mut namespace = denying_namespace();
    let volume = tempfile::tempdir().unwrap();
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = volume.path().join("of-the-group");
    fs::write(&file, "secret").unwrap();
    chown(&file, Some(0), Some(GROUP)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o040)).unwrap();
    let mut bundle = Bundle::sh("grep Groups /proc/self/status; cat /vol/of-the-group; sleep 1000");
    fs::create_dir(bundle.rootfs().join("vol")).unwrap();
    bundle.mount("/vol", "bind", volume.path().to_str().unwrap(), &["rbind"]);
    bundle.namespace("user", Some(Some(&format!("/proc/{}/ns/user", namespace.id()))));
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
    bundle.write_config();
    // The caller is in the group: docker, disk, adm.
    let as_member = |args: &[&str]| -> Answer {
        let mut command = Command::new("setpriv");
        command.arg(format!("--groups={GROUP}")).arg(runtime()).arg("--root").arg(bundle.state_root()).args(args);
        let file = |name: &str| fs::File::create(bundle.dir.path().join(name)).unwrap();
        let status = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).status().unwrap();
        Answer { code: status.code().unwrap_or(-1), out: bundle.file("out"), err: bundle.file("err") }
    };
    // The witness: a member does read it.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", &format!("--groups={GROUP}"), "cat"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "secret");

    let bundle_dir = bundle.dir.path().to_str().unwrap();
    let answer = as_member(&["create", "--bundle", bundle_dir, &bundle.id]);
    if ours() || answer.code == 0 {
        answer.ok();
        bundle.oci(&["start", &bundle.id]).ok();
        wait_for("the groups", || bundle.file("out").contains("Groups"));
        assert!(
            !bundle.file("out").contains("65534") && !bundle.file("out").contains("secret"),
            "{}",
            bundle.file("out")
        );
        let args = ["exec", &bundle.id, "/bin/sh", "-c", "grep Groups /proc/self/status; cat /vol/of-the-group"];
        let answer = as_member(&args);
        assert!(answer.out.contains("Groups"), "{answer:?}");
        assert!(!answer.out.contains("65534") && !answer.out.contains("secret"), "{answer:?}");
    }
    namespace.kill().unwrap();
    namespace.wait().unwrap();
}

#[test]
fn a_null_device_of_the_callers_stays_the_callers() {
    // Streams that the user cannot open are given to the user, but for /dev/null: known by what it is, not by what the
    // container has at that path.
    let dir = tempfile::tempdir().unwrap();
    let null = dir.path().join("null");
    mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    let bundle = Bundle::sh("rm /dev/null; echo > /dev/null; echo ready; sleep 1000");
    start(&bundle);
    wait_for("a false null", || bundle.file("out").contains("ready"));
    let stream = || Stdio::from(fs::OpenOptions::new().read(true).write(true).open(&null).unwrap());
    let mut command = bundle.command(&["exec", "--user", "1000:1000", &bundle.id, "/bin/true"]);
    let status = command.stdin(stream()).stdout(stream()).stderr(stream()).status().unwrap();
    assert!(status.success());
    // runc looks at the container's /dev/null.
    assert!(fs::metadata(&null).unwrap().uid() == 0 || !ours());
}

/// Runs a program with a key in its session keyring: "hush", under the name coracle-secret.
fn with_key(command: &mut Command) -> Command {
    // 250 is keyctl, 1 JOIN_SESSION_KEYRING; 248 add_key.
    let script = r#"
        my ($ring, $type, $name, $value) = ("coracle-test-ring", "user", "coracle-secret", "hush");
        syscall(250, 1, $ring) > 0 or die "ring: $!";
        syscall(248, $type, $name, $value, 4, -3) > 0 or die "key: $!";
        exec { $ARGV[0] } @ARGV or die;"#;
    let mut outer = Command::new("perl");
    outer.args(["-e", script]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    outer
}

/// Looks for that key in its own session keyring: 10 is SEARCH.
const SEEK: &str = r#"my ($type, $name) = ("user", "coracle-secret");
    print syscall(250, 10, -3, $type, $name, 0) > 0 ? "found" : "none";"#;

#[test]
fn the_callers_keys_are_not_the_containers() {
    let answer = |command: &mut Command| Answer::from(with_key(command).output().unwrap()).ok().out;
    // The witness.
    assert_eq!(answer(Command::new("perl").args(["-e", SEEK])), "found");

    let bundle = perl(SEEK);
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    assert_eq!(answer(&mut bundle.command(&["run", "--bundle", dir, &bundle.id])), "none");

    for in_user_namespace in [false, true] {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        with_perl(&mut bundle);
        if in_user_namespace {
            user_namespace(&mut bundle);
        }
        start(&bundle);
        assert_eq!(answer(&mut bundle.command(&["exec", &bundle.id, "/usr/bin/perl", "-e", SEEK])), "none");
    }
}

/// Puts a letter into the terminal that is standard input, as if it had been typed: 0x5412 is TIOCSTI.
const TYPE: &str = r#"my $c = "x"; print STDERR ioctl(STDIN, 0x5412, $c) ? "typed" : "refused";"#;

/// Runs a program in a session of its own with a terminal as standard input.
fn at_a_terminal(command: &Command) -> String {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut outer = Command::new("setsid");
    outer.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
    let slave: OwnedFd = pty.slave;
    let answer: Answer = outer.stdin(slave).output().unwrap().into();
    drop(pty.master);
    answer.ok().err
}

#[test]
fn cve_2016_2568_nothing_is_typed_into_the_callers_terminal() {
    // The witness; a kernel that has done away with it answers for all.
    let mut control = Command::new("perl");
    control.args(["-e", TYPE]);
    let legacy = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").map_or(true, |text| text.trim() == "1");
    assert_eq!(at_a_terminal(&control), if legacy { "typed" } else { "refused" });

    let bundle = perl(TYPE);
    bundle.write_config();
    let dir = bundle.dir.path().to_str().unwrap();
    assert_eq!(at_a_terminal(&bundle.command(&["run", "--bundle", dir, &bundle.id])), "refused");
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    with_perl(&mut bundle);
    start(&bundle);
    assert_eq!(at_a_terminal(&bundle.command(&["exec", &bundle.id, "/usr/bin/perl", "-e", TYPE])), "refused");
}

#[test]
fn cve_2021_43784_maps_beyond_measure_are_an_error() {
    // More than 64 KiB of them overflowed a length of runc's, and the namespaces after it were none.
    let maps: Vec<_> =
        (0..6000_u32).map(|n| json!({ "containerID": n, "hostID": 100_000 + 2 * n, "size": 1 })).collect();
    let mut bundle = Bundle::sh("echo ran");
    bundle.namespace("user", Some(None));
    bundle.set("/linux/uidMappings", json!(maps)).set("/linux/gidMappings", json!(maps));
    let answer = bundle.run();
    assert!(answer.code != 0 && !answer.out.contains("ran"), "{answer:?}");
    bundle.assert_gone();
}

/// A folder that the host holds read-only, with a folder in it that the host has covered.
struct HeldReadOnly(tempfile::TempDir);

impl HeldReadOnly {
    fn new() -> HeldReadOnly {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("covered")).unwrap();
        fs::write(dir.path().join("covered/secret"), "beneath").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mount = |source: &std::path::Path, target: &std::path::Path, kind: Option<&str>, flags: MsFlags| {
            nix::mount::mount(Some(source), target, kind, flags, None::<&str>).unwrap();
        };
        mount(dir.path(), dir.path(), None, MsFlags::MS_BIND);
        mount(dir.path(), dir.path(), None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        mount("cover".as_ref(), &dir.path().join("covered"), Some("tmpfs"), MsFlags::empty());
        HeldReadOnly(dir)
    }
}

impl Drop for HeldReadOnly {
    fn drop(&mut self) {
        for path in [self.0.path().join("covered"), self.0.path().to_owned()] {
            let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

#[test]
fn what_the_host_holds_read_only_or_covered_stays_so_for_the_root_of_a_user_namespace() {
    let held = HeldReadOnly::new();
    let script = "mount -o remount,bind,rw /vol && touch /vol/made && echo wrote
        umount /vol/covered && cat /vol/covered/secret
        mkdir /tmp/again && mount --bind /vol /tmp/again && touch /tmp/again/made && echo wrote; true";
    for (in_user_namespace, options) in [(false, &["rbind"][..]), (true, &["rbind"]), (true, &["rbind", "ridmap"])] {
        if options.len() > 1 && !ours() {
            continue;
        }
        let mut bundle = Bundle::sh(script);
        fs::create_dir(bundle.rootfs().join("vol")).unwrap();
        fs::set_permissions(bundle.rootfs().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        capabilities(&mut bundle, &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        bundle.mount("/vol", "bind", held.0.path().to_str().unwrap(), options);
        if in_user_namespace {
            user_namespace(&mut bundle);
        }
        let answer = bundle.run();
        if options.contains(&"ridmap") && answer.err.contains("support idmapped mounts") {
            continue; // A tmpfs does since Linux 6.3.
        }
        let answer = answer.ok();
        // The witness: with the right over the host's mounts all of it works.
        assert_eq!(answer.out.contains("wrote"), !in_user_namespace, "{options:?}: {answer:?}");
        assert_eq!(answer.out.contains("beneath"), !in_user_namespace, "{options:?}: {answer:?}");
    }
}
