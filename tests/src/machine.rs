//! A machine for one test: a network namespace of its own and scratch places, in which the `coracle` program is run as a
//! person would run it. Whatever a test leaves there is found by [`Machine::traces`], and removed when the machine ends.
//!
//! Processes, mounts and cgroups are shared with the real machine; of these only what names the scratch place, or the id
//! of a pod that lived in it, counts as the machine's own. So machines run side by side.
//!
//! To look inside: `nsenter --net=/proc/PID/fd/N` as the first line of a failed test's output tells.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The image every machine has.
pub const IMAGE: &str = "localhost/busybox:latest";
/// No command of these tests takes longer, loaded as the test machine may be.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// How long what ends by itself (links of a namespace that ended, a supervisor on its way out) may take.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Makes one, its loopback up.
    ///
    /// # Panics
    /// Without root.
    pub fn new() -> Netns {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: unshare(CLONE_NEWNET)");
            sh("ip link set lo up");
            Netns(File::open("/proc/thread-self/ns/net").expect("open the new network namespace"))
        });
        made.join().expect("the thread that makes a network namespace")
    }

    /// The one a process is in.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn of(pid: Pid) -> Netns {
        Netns(File::open(format!("/proc/{pid}/ns/net")).expect("open a process's network namespace"))
    }

    /// The same namespace once more.
    ///
    /// # Panics
    /// When the process has no descriptor left.
    pub fn share(&self) -> Netns {
        Netns(self.0.try_clone().expect("a second descriptor of a namespace"))
    }

    /// Runs `work` in a thread of this namespace; programs it starts are in it, too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the machine's network namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path of the namespace for other programs: `ip link add ... netns PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Default for Netns {
    fn default() -> Netns {
        Netns::new()
    }
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// The machine of one test.
#[derive(Debug)]
pub struct Machine {
    dir: tempfile::TempDir,
    netns: Netns,
    /// Every pod id ever seen here: what the ids name outside is the machine's own.
    ids: Mutex<BTreeSet<String>>,
    /// The cgroups above those of its pods; empty ones go with the machine.
    parents: Mutex<BTreeSet<PathBuf>>,
}

impl Machine {
    /// A machine with the image [`IMAGE`] and no network but its loopback.
    ///
    /// # Panics
    /// When the programs were not built, or without root.
    pub fn new() -> Machine {
        let dir = tempfile::Builder::new().prefix("coracle-test.").tempdir().expect("make a scratch place");
        let machine = Machine { dir, netns: Netns::new(), ids: Mutex::default(), parents: Mutex::default() };
        eprintln!("machine in {}; nsenter --net={}", machine.dir.path().display(), machine.netns.path());
        let archive = machine.path("busybox.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        sh(&format!("{} {} {IMAGE}", script.display(), archive.display()));
        machine.ok(&["load", &archive.display().to_string()]);
        fs::remove_file(archive).expect("remove the loaded archive");
        machine
    }

    /// A path in the scratch place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The name of the scratch place, which no other machine has.
    pub fn name(&self) -> String {
        self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The machine's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `work` where the machine's own programs run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    /// Runs a shell line in the machine's network namespace.
    pub fn sh(&self, line: &str) -> String {
        self.run(|| sh(line))
    }

    /// Connects the machine to an outside one: 192.0.2.1 here is `up0`, 192.0.2.2 there is `eth0`. The outside knows no
    /// route to the pods.
    pub fn outside(&self) -> Netns {
        let outside = Netns::new();
        self.sh(&format!("ip link add up0 type veth peer name eth0 netns {}", outside.path()));
        self.sh("ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up");
        outside.run(|| sh("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up"));
        self.sh("ip route add default via 192.0.2.2");
        outside
    }

    /// The command line of `coracle` with the machine's places.
    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(crate::bin("coracle"));
        for (flag, name) in [("--root", "root"), ("--state", "state"), ("--log-dir", "logs")] {
            command.arg(flag).arg(self.path(name));
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Starts `coracle` and leaves it to the caller, its output to nobody.
    pub fn start(&self, args: &[impl AsRef<OsStr>]) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.run(|| command.spawn()).expect("start coracle")
    }

    /// Runs `coracle` to its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn coracle(&self, args: &[impl AsRef<OsStr>]) -> Said {
        let (out, err) = (self.scratch(), self.scratch());
        let mut command = self.command(args);
        // Files and not pipes: what stays in the background must not keep the test waiting for an end of file.
        command.stdout(File::create(&out).expect("make a file")).stderr(File::create(&err).expect("make a file"));
        let mut child = self.run(|| command.spawn()).expect("start coracle");
        let status = wait(&mut child).unwrap_or_else(|| {
            let _ = child.kill();
            panic!("{command:?} did not end: {}", fs::read_to_string(&err).unwrap_or_default())
        });
        self.learn_ids();
        let take = |path: &Path| {
            let text = fs::read(path).expect("read what coracle said");
            fs::remove_file(path).expect("remove it");
            String::from_utf8_lossy(&text).into_owned()
        };
        Said { status, out: take(&out), err: take(&err) }
    }

    /// Runs `coracle`, which must succeed, and gives its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.coracle(args);
        assert!(said.status.success(), "coracle {}: {}\n{}{}", args.join(" "), said.status, said.out, said.err);
        said.out
    }

    /// Runs `coracle`, which must fail with one line, and gives that line.
    ///
    /// # Panics
    /// When it succeeds, or says more or less.
    pub fn fails(&self, args: &[&str]) -> String {
        let said = self.coracle(args);
        assert!(!said.status.success(), "coracle {} succeeded: {}", args.join(" "), said.out);
        let error = said.err.trim_end();
        assert!(error.starts_with("coracle: ") && error.lines().count() == 1, "not one line: {error:?}");
        error.to_owned()
    }

    /// Writes a Pod: `spec` is the YAML below `spec:`, indented by two.
    pub fn pod(&self, name: &str, spec: &str) -> String {
        let path = self.path(&format!("{name}.yaml"));
        let yaml = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n{spec}\n");
        fs::write(&path, yaml).expect("write the Pod");
        path.display().to_string()
    }

    /// Writes a Pod with one container that runs a shell script, and `more` below `spec:`.
    pub fn script_pod(&self, name: &str, script: &str, more: &str) -> String {
        let script = script.replace('\'', "''");
        let spec = format!(
            "  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
             imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n{more}"
        );
        self.pod(name, &spec)
    }

    /// The full ids of the pods that have a folder in the state.
    pub fn pods(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.state().join("pods")) else { return BTreeSet::new() };
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// One pod as `coracle ps -a -o json` tells it.
    ///
    /// # Panics
    /// When it is not listed.
    pub fn view(&self, name: &str) -> serde_json::Value {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["ps", "-a", "-o", "json"])).expect("JSON of ps");
        let pods = list.as_array().expect("a list of pods");
        pods.iter().find(|pod| pod["name"] == name).unwrap_or_else(|| panic!("no pod {name} in {list}")).clone()
    }

    /// The first address of a pod.
    pub fn ip(&self, name: &str) -> std::net::Ipv4Addr {
        let view = self.view(name);
        view["ips"][0].as_str().and_then(|ip| ip.parse().ok()).unwrap_or_else(|| panic!("no address in {view}"))
    }

    /// The pid of the supervisor of the pod with that id.
    pub fn supervisor(&self, id: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.state().join("pods").join(id).join("pid")).ok()?;
        text.trim().parse().ok().map(Pid::from_raw)
    }

    /// Takes note of the pods that exist now.
    pub fn learn_ids(&self) {
        let pods = self.pods();
        self.ids().extend(pods);
        let branch = |pod: PathBuf| pod.parent().map(Path::to_owned);
        let above = |branch: PathBuf| match branch.file_name() {
            Some(name) if name == "burstable" || name == "besteffort" => branch.parent().map(Path::to_owned),
            _ => None,
        };
        let branches: Vec<PathBuf> = self.cgroups().into_iter().filter_map(branch).collect();
        let parents: Vec<PathBuf> = branches.iter().cloned().filter_map(above).chain(branches.clone()).collect();
        self.parents.lock().unwrap_or_else(PoisonError::into_inner).extend(parents);
    }

    /// Takes note of an id that somebody else's cgroups have: what is in `pod<id>` is the machine's own.
    pub fn learn_id(&self, id: &str) {
        self.ids().insert(id.to_owned());
    }

    /// Removes the cgroups that have no process.
    pub fn remove_cgroups(&self) {
        self.cgroups().iter().for_each(|pod| remove_cgroup(pod));
    }

    /// Everything of the machine's that is there, a line each: mounts, cgroups, processes, interfaces, nftables rules
    /// and elements, files. Files of the image store, of the scratch place itself and of events, which outlive their pods, are
    /// left out.
    pub fn traces(&self) -> BTreeSet<String> {
        self.learn_ids();
        let mut traces = BTreeSet::new();
        let place = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        traces.extend(mounts.lines().filter(|line| line.contains(&place)).map(|line| format!("mount {line}")));
        traces.extend(self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        traces.extend(self.processes().into_iter().map(|(pid, line)| format!("process {pid} {line}")));
        let named = |line: &str| line.split(": ").nth(1).map(|name| format!("interface {name}"));
        traces.extend(self.sh("ip -o link").lines().filter_map(named));
        traces.extend(self.sh("nft list ruleset").lines().map(|line| format!("nft {line}")));
        for folder in ["state", "root/pods", "root/leases", "logs"] {
            let events = self.state().join("events");
            walk(&self.path(folder), &mut |path| {
                if !path.starts_with(&events) {
                    traces.insert(format!("file {}", path.display()));
                }
            });
        }
        traces
    }

    /// The machine's interfaces that lead into pods. The kernel takes one away some time after its namespace has ended.
    pub fn pod_links(&self) -> usize {
        self.traces().iter().filter(|trace| trace.starts_with("interface cor") && trace.contains('@')).count()
    }

    /// Waits until the traces are those of `before`, as far as `ignore` does not leave them out.
    ///
    /// # Panics
    /// When they differ for too long: with the differences.
    pub fn assert_traces(&self, before: &BTreeSet<String>, ignore: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + patience(SETTLE_DEADLINE);
        loop {
            let now = self.traces();
            let more: Vec<_> = now.difference(before).filter(|trace| !ignore(trace)).collect();
            let less: Vec<_> = before.difference(&now).filter(|trace| !ignore(trace)).collect();
            if more.is_empty() && less.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {more:#?}\nmissing: {less:#?}");
            std::thread::sleep(POLL);
        }
    }

    /// The cgroups of pods that lived here.
    fn cgroups(&self) -> Vec<PathBuf> {
        let ids = self.ids();
        let mut found = Vec::new();
        let subfolders =
            |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
        let top = Path::new("/sys/fs/cgroup");
        let mut tops = subfolders(top);
        tops.extend(tops.clone().iter().flat_map(|hierarchy| subfolders(hierarchy)));
        tops.retain(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("coracle")));
        // Pods are in the branch of their QoS class.
        let branches = |top: &PathBuf| ["burstable", "besteffort"].map(|branch| top.join(branch));
        tops.extend(tops.clone().iter().flat_map(branches));
        for top in tops {
            let Ok(pods) = fs::read_dir(&top) else { continue };
            let ours = |path: &PathBuf| ids.iter().any(|id| path.ends_with(format!("pod{id}")));
            found.extend(pods.flatten().map(|e| e.path()).filter(ours));
        }
        found
    }

    /// The processes that name the scratch place, or are in a cgroup of a pod that lived here.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let place = self.dir.path().display().to_string();
        let ids = self.ids();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").expect("read /proc").flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let text = |name: &str| {
                String::from_utf8_lossy(&fs::read(process.path().join(name)).unwrap_or_default()).into_owned()
            };
            let cwd = fs::read_link(process.path().join("cwd")).unwrap_or_default().display().to_string();
            let (line, cgroup) = (text("cmdline").replace('\0', " "), text("cgroup"));
            if line.contains(&place)
                || cwd.contains(&place)
                || ids.iter().any(|id| cgroup.contains(&format!("pod{id}")))
            {
                found.push((Pid::from_raw(pid), format!("{} {line}", text("comm").trim())));
            }
        }
        found
    }

    /// The machine's processes that run our programs. Told by the command line: a supervisor runs from a mount of its own,
    /// so its exe link is no path.
    pub fn programs(&self) -> Vec<Pid> {
        let is_ours = |pid: &Pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            ["coracle", "coracle-oci", "containerd-shim-coracle-v1"].iter().any(|ours| ours.as_bytes() == name)
        };
        self.processes().into_iter().map(|(pid, _)| pid).filter(is_ours).collect()
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scratch(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.path(&format!("said.{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

impl Drop for Machine {
    /// Removes pods by the front door, and then whatever is still there, so that a failed test leaves nothing either.
    fn drop(&mut self) {
        self.learn_ids();
        for pod in self.pods() {
            let mut command = self.command(&["rm", "-f", &pod]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(mut child) = self.run(|| command.spawn())
                && wait(&mut child).is_none()
            {
                let _ = child.kill();
            }
        }
        for (pid, _) in self.processes() {
            if pid.as_raw() != std::process::id() as i32 {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        let place = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in
            mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.contains(&place))
        {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        for _ in 0..50 {
            self.remove_cgroups();
            if self.cgroups().is_empty() {
                break;
            }
            std::thread::sleep(POLL);
        }
        // The branches come after what they are in.
        for parent in self.parents.lock().unwrap_or_else(PoisonError::into_inner).iter().rev() {
            // One that is not empty is somebody else's as well.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Runs a shell line, which must succeed, and gives what it says.
///
/// # Panics
/// When it fails.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().expect("run sh");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {err}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How long to wait on this machine for what takes so long at most on an ordinary one: `CORACLE_TEST_PATIENCE` times that.
/// An emulated one is slow.
pub fn patience(usual: Duration) -> Duration {
    let times = std::env::var("CORACLE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    usual * times.unwrap_or(1)
}

/// The tree of cgroups that counts memory, and its file of a group's limit.
///
/// # Panics
/// Without any.
pub fn memory_tree() -> (&'static Path, &'static str) {
    let trees = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    let found = trees.into_iter().find(|(tree, _)| fs::metadata(tree).is_ok());
    found.map(|(tree, file)| (Path::new(tree), file)).expect("a cgroup tree")
}

/// Waits for a condition.
///
/// # Panics
/// When it does not come true: with what was waited for.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(SETTLE_DEADLINE);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(POLL);
    }
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + COMMAND_DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("wait for coracle") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        visit(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
