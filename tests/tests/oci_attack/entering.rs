//! Who enters a container is not to be had by those who are in it: not traced, not looked into, not mistaken for another.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::oci_support::{Bundle, ours, wait_for};
use crate::tools::{ALL, capabilities, perl, start, user_namespace};

/// Execs, or creates, while someone inside watches.
const ROUNDS: usize = 60;

/// Tries each new process for as long as it is not yet the container's program: reads what it runs and where its root
/// leads, which takes the right to look, and takes its descriptors, which takes the right to trace.
const WATCHER: &str = r#"
    use Errno; $| = 1; my $refused = 0;
    while (1) {
        opendir(my $d, "/proc");
        for my $p (grep { /^\d+$/ && $_ != $$ && $_ != 1 } readdir $d) {
            my $exe = readlink("/proc/$p/exe");
            if (defined $exe && $exe !~ m{^/(bin|usr)/}) {
                my $root = readlink("/proc/$p/root") // "?";
                print "looked into $exe root $root\n";
            }
            next if defined $exe || !($!{EACCES} || $!{EPERM});
            print "refused\n" if $refused++ == 0;
            my $pidfd = syscall(434, $p + 0, 0);  # pidfd_open, pidfd_getfd
            next if $pidfd < 0;
            for my $n (3 .. 12) {
                my $fd = syscall(438, $pidfd, $n, 0);
                next if $fd < 0;
                print "took descriptor $n " . (readlink("/proc/self/fd/$fd") // "?") . "\n";
                syscall(3, $fd);
            }
            syscall(3, $pidfd);
        }
    }"#;

/// Waits until the watcher has met the runtime, and asserts that it got nothing of it.
fn assert_refused(watcher: &Bundle) {
    let out = watcher.file("out");
    assert!(!out.contains("took") && !out.contains("looked into"), "{out}");
    if ours() {
        assert!(out.contains("refused"), "nobody was caught in the act of entering: the test proves nothing: {out}");
    }
    assert_eq!(watcher.file("err"), "");
}

#[test]
fn cve_2016_9962_an_exec_is_not_traced_by_the_container() {
    let mut watcher = perl(WATCHER);
    // All that docker gives, and more; but not what would let it trace anyone on the host.
    capabilities(&mut watcher, &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]);
    start(&watcher);
    for _ in 0..ROUNDS {
        watcher.exec(&["/bin/true"]).ok();
    }
    assert_refused(&watcher);
}

#[test]
fn cve_2016_9962_an_exec_is_not_traced_by_roots_of_user_namespaces() {
    let mut watcher = perl(WATCHER);
    user_namespace(&mut watcher);
    capabilities(&mut watcher, &ALL);
    start(&watcher);
    for _ in 0..ROUNDS {
        watcher.exec(&["/bin/true"]).ok();
    }
    assert_refused(&watcher);
}

#[test]
fn an_init_is_not_traced_by_the_root_of_a_user_namespace_it_joins() {
    if !ours() {
        return; // Debian's runc is slower than a test wants to be here.
    }
    let mut watcher = perl(WATCHER);
    user_namespace(&mut watcher);
    capabilities(&mut watcher, &ALL);
    start(&watcher);
    let pid = watcher.state()["pid"].to_string();
    for _ in 0..ROUNDS {
        let mut bundle = Bundle::new(&["/bin/true"]);
        for (kind, file) in [("user", "user"), ("pid", "pid"), ("network", "net"), ("ipc", "ipc")] {
            bundle.namespace(kind, Some(Some(&format!("/proc/{pid}/ns/{file}"))));
        }
        bundle.run().ok();
    }
    assert_refused(&watcher);
}

#[test]
fn a_pid_that_is_used_again_is_not_entered_nor_killed() {
    if !ours() {
        return; // It is our own state file that is changed.
    }
    let bundle = Bundle::sleeping();
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    // Somebody else has the container's pid now. A process is known by its pid and its start time, which the kernel tells
    // in hundredths of a second (proc(5), starttime): on a fast machine the container's whole life is shorter.
    sleep(Duration::from_millis(30));
    let mut other = Command::new("/bin/sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let file = bundle.state_root().join(&bundle.id).join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    state["pid"] = json!(other.id());
    fs::write(&file, state.to_string()).unwrap();
    assert_eq!(bundle.status(), "stopped");
    bundle.exec(&["/bin/true"]).fails("stopped");
    bundle.oci(&["kill", &bundle.id, "KILL"]).fails("not running");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    assert!(other.try_wait().unwrap().is_none(), "a process that is none of the container's was killed");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_hostile_init_is_entered_as_who_was_asked_for() {
    // The init goes into namespaces of its own making: an exec follows it there, with no more rights than configured.
    let mut bundle = perl("syscall(272, 0x10020000) == 0 or die; $| = 1; print 'gone'; sleep 1000");
    capabilities(&mut bundle, &["CAP_SETUID"]);
    start(&bundle);
    wait_for("the init to go", || bundle.file("out") == "gone" || !bundle.file("err").is_empty());
    let answer = bundle.exec(&["/bin/grep", "-E", "^(Uid|CapEff|CapBnd|NoNewPrivs)", "/proc/self/status"]);
    if answer.code == 0 {
        let only = "0000000000000080";
        assert!(answer.out.contains("Uid:\t0\t0") && answer.out.contains("NoNewPrivs:\t1"), "{answer:?}");
        assert!(answer.out.contains(&format!("CapEff:\t{only}\nCapBnd:\t{only}")), "{answer:?}");
    }
}
