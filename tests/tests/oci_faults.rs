//! Every system call that can fail, failing: either the command does without, or it fails in one line and leaves nothing.
//!
//! Each sweep runs a command of the runtime once to learn its calls, and then again and again, each time with one call
//! answered by an error, or its process killed before it. Processes of the runtime's other halves (the intermediate one,
//! the init, a hook's child until it executes the hook) are swept as well. Errors that a caller may meet with are tried:
//! EPERM, ENOMEM, ENOSPC where something is made, EINTR where a signal can come between (then the command must succeed).
//!
//! A plain run tries each kind of call with each error, and of kinds that occur often a part of the places;
//! `CORACLE_FAULTS=all` tries every place with every error (some minutes).

mod oci_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_tests::fault::{Call, Fault, Order};
use nix::errno::Errno;
use oci_support::{Bundle, runtime};
use serde_json::json;

/// Calls that a signal may interrupt: they are made again.
const INTERRUPTED: &[&str] = &[
    "accept4", "connect", "open", "openat", "openat2", "poll", "ppoll", "pread64", "pwrite64", "read", "recvfrom",
    "recvmsg", "sendmsg", "sendto", "wait4", "waitid", "write", "writev",
];
/// Calls that make something, for which there may be no room.
const MAKING: &[&str] = &[
    "bind",
    "fsmount",
    "link",
    "mkdir",
    "mkdirat",
    "mknodat",
    "mount",
    "move_mount",
    "open_tree",
    "openat",
    "pwrite64",
    "rename",
    "renameat",
    "symlink",
    "symlinkat",
    "write",
];
/// Others that change something.
const OTHERS: &[&str] = &[
    "bpf",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "chroot",
    "clone",
    "clone3",
    "close_range",
    "dup",
    "dup3",
    "eventfd2",
    "execve",
    "execveat",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fcntl",
    "fork",
    "fsconfig",
    "fsopen",
    "ftruncate",
    "ioctl",
    "keyctl",
    "kill",
    "listen",
    "memfd_create",
    "mount_setattr",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe2",
    "pivot_root",
    "prctl",
    "prlimit64",
    "rmdir",
    "seccomp",
    "setdomainname",
    "setgroups",
    "sethostname",
    "setns",
    "setresgid",
    "setresuid",
    "setsid",
    "socket",
    "socketpair",
    "umount2",
    "unlink",
    "unlinkat",
    "unshare",
    "vfork",
];
/// How many places of a kind are tried in any case, and each how manieth after that, when not all are.
const FIRST: usize = 4;
const STEP: usize = 9;
/// As many runs at a time.
const WORKERS: usize = 2;

/// Calls whose failure a command may do without, by call, text and error: each is a choice, none is an oversight.
const DONE_WITHOUT: &[(&str, &str, &str)] = &[];

fn all() -> bool {
    std::env::var_os("CORACLE_FAULTS").is_some_and(|value| value == "all")
}

fn calls() -> Vec<&'static str> {
    let mut calls: Vec<_> = [INTERRUPTED, MAKING, OTHERS].concat();
    calls.sort_unstable();
    calls.dedup();
    calls
}

/// What is tried at a call.
fn faults(call: &Call) -> Vec<Fault> {
    let mut errors = vec![Errno::EPERM, Errno::ENOMEM];
    errors.extend(INTERRUPTED.contains(&call.name).then_some(Errno::EINTR));
    errors.extend(MAKING.contains(&call.name).then_some(Errno::ENOSPC));
    errors.into_iter().map(Fault::Error).chain([Fault::Kill]).collect()
}

/// What is tried where.
fn plan(calls: Vec<Call>) -> Vec<(Call, Fault)> {
    let mut kinds: BTreeMap<(usize, &str), Vec<Call>> = BTreeMap::new();
    for call in calls {
        kinds.entry((call.site.process, call.name)).or_default().push(call);
    }
    let mut plan = Vec::new();
    for calls in kinds.into_values() {
        let few = calls.len() < faults(&calls[0]).len();
        for (index, call) in calls.into_iter().enumerate() {
            let faults = faults(&call);
            if all() || few {
                plan.extend(faults.into_iter().map(|fault| (call.clone(), fault)));
            } else if index < FIRST || index % STEP == 0 {
                let fault = faults[index % faults.len()];
                plan.push((call, fault));
            }
        }
    }
    plan
}

/// A command to sweep.
struct Sweep {
    bundle: fn() -> Bundle,
    /// Brings the container to where the command starts from.
    before: fn(&Bundle),
    /// The command.
    args: fn(&Bundle) -> Vec<String>,
    /// What must hold after it failed (or after it succeeded); takes back what it did.
    failed: fn(&Bundle),
    succeeded: fn(&Bundle),
}

/// One run's outcome.
struct Outcome {
    code: i32,
    said: String,
    calls: Vec<Call>,
}

impl Sweep {
    fn run(&self, bundle: &Bundle, fault: Option<(&Call, Fault)>) -> Outcome {
        (self.before)(bundle);
        let (calls, program, output) = (calls(), runtime(), bundle.dir.path().join("output"));
        let mut args = vec!["--root".to_owned(), bundle.state_root().to_str().expect("UTF-8").to_owned()];
        args.extend((self.args)(bundle));
        let faulty = PathBuf::from(env!("CARGO_BIN_EXE_faulty"));
        let fault = fault.map(|(call, fault)| (call.site, fault));
        let run =
            Order { faulty: &faulty, calls: &calls, program: &program, args: &args, output: &output, fault }.start();
        let code = run.code();
        let said = fs::read_to_string(&output).expect("output");
        match code {
            0 => (self.succeeded)(bundle),
            _ => (self.failed)(bundle),
        }
        Outcome { code, said, calls: run.finish() }
    }

    /// Tries one fault; what is wrong with what came of it.
    fn try_one(&self, bundle: &Bundle, call: &Call, fault: Fault) -> Result<(), String> {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run(bundle, Some((call, fault)))));
        let Outcome { code, said, .. } = outcome.map_err(|panic| match panic.downcast_ref::<String>() {
            Some(words) => words.clone(),
            None => "a check failed".to_owned(),
        })?;
        let done_without = || {
            let fits = |(name, text, error): &&(&str, &str, &str)| {
                *name == call.name && call.text.contains(text) && format!("{fault:?}").contains(error)
            };
            DONE_WITHOUT.iter().any(|known| fits(&known))
        };
        match (fault, code) {
            (Fault::Error(Errno::EINTR), 0) | (Fault::Kill, 1..) => Ok(()),
            (Fault::Error(Errno::EINTR), _) => Err(format!("an interrupted call is not made again: {said}")),
            (_, 0) if done_without() => Ok(()),
            (_, 0) => Err("it goes on as if nothing had happened".to_owned()),
            _ if said.trim().lines().count() != 1 => Err(format!("not one line of words: {said:?}")),
            _ => Ok(()),
        }
    }

    fn sweep(&self) {
        let bundle = (self.bundle)();
        bundle.write_config();
        // Twice: what the first run makes for good (the state root, targets of mounts) the others find.
        let first = self.run(&bundle, None);
        assert_eq!(first.code, 0, "without a fault: {}", first.said);
        let plan = plan(self.run(&bundle, None).calls);
        let next = AtomicUsize::new(0);
        let work = |bundle: Bundle| {
            bundle.write_config();
            self.run(&bundle, None);
            let mut wrong = Vec::new();
            while let Some((call, fault)) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(words) = self.try_one(&bundle, call, *fault) {
                    wrong.push(format!("{fault:?} at {call}: {words}"));
                }
            }
            wrong
        };
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work((self.bundle)()))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
        });
        assert!(wrong.is_empty(), "{} of {} runs:\n{}", wrong.len(), plan.len(), wrong.join("\n"));
    }
}

fn delete(bundle: &Bundle) {
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
}

fn gone(bundle: &Bundle) {
    // What was killed could take nothing back: this is what --force is for. After an error there is nothing to do.
    delete(bundle);
    nothing_left(bundle);
}

fn nothing_left(bundle: &Bundle) {
    bundle.assert_gone();
    let _ = fs::remove_file(bundle.dir.path().join("pid"));
}

/// A container with a bit of everything.
fn wide() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let hook = json!([{ "path": "/bin/true", "timeout": 60 }]);
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    bundle.set("/hooks", kinds.iter().map(|kind| ((*kind).to_owned(), hook.clone())).collect());
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000, "additionalGids": [5, 6] }));
    bundle.set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]));
    bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "0" }));
    bundle.set("/linux/resources/pids", json!({ "limit": 100 }));
    bundle.set("/linux/resources/memory", json!({ "limit": 100 << 20 }));
    let refused = json!([{ "names": ["acct"], "action": "SCMP_ACT_ERRNO" }]);
    bundle.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused }));
    let source = bundle.dir.path().join("source");
    fs::create_dir(&source).expect("a directory to bind");
    bundle.mount("/bound", "bind", source.to_str().expect("UTF-8"), &["rbind", "ro"]);
    bundle.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]);
    bundle
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn whatever_fails_in_a_create_nothing_is_left_of_it() {
    let args = |bundle: &Bundle| {
        let (dir, pid) = (bundle.dir.path(), bundle.dir.path().join("pid"));
        words(&["create", "--bundle", text(dir), "--pid-file", text(&pid), &bundle.id])
    };
    Sweep { bundle: wide, before: |_| {}, args, failed: gone, succeeded: gone }.sweep();
}
