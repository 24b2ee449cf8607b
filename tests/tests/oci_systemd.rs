//! The systemd cgroup driver (`--systemd-cgroup`), against a real systemd.
//!
//! Where systemd is this machine's init the tests use it. Elsewhere each generation of cgroups gets a systemd of its own:
//! PID 1 of new pid, mount and cgroup namespaces, beneath cgroups that go when the test program ends. To look inside of
//! one while a test runs: `nsenter -t PID -m -p -C bash`, PID being that of `/lib/systemd/systemd --unit=coracle-test.target`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::json;

mod oci_support;
use oci_support::{Answer, Bundle, ours, peer, wait_for};

/// Joins cgroups of its own, becomes systemd in new namespaces, and clears up when its standard input ends.
/// $1 is `v1` (and, as a hybrid host has it, the v2 tree beside it) or `v2`, $2 a name for the cgroups.
const SYSTEMD: &str = r#"
kind=$1 name=$2 fs=/sys/fs/cgroup
export kind
trees=$(findmnt -rno TARGET -t cgroup,cgroup2)
join() {
  for tree in $trees; do
    mkdir -p $tree/$name
    if [ -e $tree/$name/cpuset.cpus ]; then
      cat $tree/cpuset.cpus > $tree/$name/cpuset.cpus; cat $tree/cpuset.mems > $tree/$name/cpuset.mems
    fi
    echo 0 > $tree/$name/cgroup.procs
  done
}
( join; exec unshare --mount --pid --cgroup --fork --kill-child sh -ec '
  mount --make-rprivate /
  mount -t proc proc /proc
  controllers=$(ls -d /sys/fs/cgroup/*/tasks 2>/dev/null | sed "s|/tasks||; s|.*/||")
  umount -R -l /sys/fs/cgroup
  if [ $kind = v2 ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for c in $controllers; do
      mkdir /sys/fs/cgroup/$c
      case $c in systemd) words=none,name=systemd ;; *) words=$c ;; esac
      mount -t cgroup -o $words cgroup /sys/fs/cgroup/$c
    done
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
  fi
  mount -t tmpfs tmpfs /run
  mkdir -p /run/systemd/system
  printf "[Unit]\nDefaultDependencies=no\n" > /run/systemd/system/coracle-test.target
  # No unit of the machine: those of its start would clear up /tmp, set sysctls, mount file systems.
  export SYSTEMD_UNIT_PATH=/run/systemd/system
  # It sees no unit of this machine: they would set it up anew, and clear /tmp.
  export container=coracle-test SYSTEMD_GENERATOR_PATH=/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/none
  export SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/run/systemd/system
  exec /lib/systemd/systemd --system --unit=coracle-test.target --log-target=null --show-status=no
' </dev/null >/dev/null ) &
echo $!
read -r _
kill -9 $! 2>/dev/null
wait
for tree in $trees; do
  for try in 1 2 3 4 5 6 7 8 9; do find $tree/$name -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 0.1; done
done
"#;

/// A systemd to ask for units.
struct Manager {
    /// The namespaces' PID 1; none for this machine's own.
    init: Option<u32>,
    /// Ends, and takes all with it, when this program does: its standard input is a pipe that nobody writes to.
    _keeper: Option<Child>,
}

impl Manager {
    /// Those that the tests run on.
    fn all() -> &'static [Manager] {
        static ALL: OnceLock<Vec<Manager>> = OnceLock::new();
        ALL.get_or_init(|| {
            if Path::new("/run/systemd/system").is_dir() {
                return vec![Manager { init: None, _keeper: None }];
            }
            if peer("crun") {
                eprintln!("crun reaches systemd by the system's message bus, which there is none of: not tested");
                return Vec::new();
            }
            vec![Manager::start("v2"), Manager::start("v1")]
        })
    }

    fn start(kind: &str) -> Manager {
        let name = format!("coracle-test-systemd-{}-{kind}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", SYSTEMD, "sh", kind, &name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn().expect("sh");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("stdout")).read_line(&mut line).expect("the keeper's first word");
        let pid = line.trim().to_owned();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let child = || fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok();
        let mut init = None;
        wait_for("unshare's child", || {
            // Before it is unshare it is a shell, whose children are others.
            let ready = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "unshare");
            init = if ready { child() } else { None };
            init.is_some()
        });
        let manager = Manager { init, _keeper: Some(keeper) };
        let ready = || manager.systemctl(&["is-active", "coracle-test.target"]).out.trim() == "active";
        wait_for("systemd (apt-get install systemd)", ready);
        manager
    }

    /// The same command where this systemd is PID 1.
    fn inside(&self, command: &Command) -> Command {
        let mut all = match self.init {
            None => Command::new(command.get_program()),
            Some(pid) => {
                let mut all = Command::new("nsenter");
                all.args(["-t", &pid.to_string(), "-m", "-p", "-C", "--"]).arg(command.get_program());
                all
            }
        };
        all.args(command.get_args()).stdin(Stdio::null());
        all
    }

    fn run(&self, program: &str, args: &[&str]) -> Answer {
        self.inside(Command::new(program).args(args)).output().expect(program).into()
    }

    fn systemctl(&self, args: &[&str]) -> Answer {
        self.run("systemctl", args)
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "-p", name, unit]).ok().out.trim().to_owned()
    }

    /// The files of this name in the cgroups of a scope, one for each hierarchy that has it.
    fn files(&self, unit: &str, name: &str) -> Vec<String> {
        let answer = self.run("find", &["/sys/fs/cgroup", "-path", &format!("*/{unit}/{name}")]);
        answer.out.lines().map(|path| self.run("cat", &[path]).out.trim().to_owned()).collect()
    }

    /// Whether the kernel lends this controller to its units.
    fn has(&self, controller: &str) -> bool {
        let v2 = self.run("cat", &["/sys/fs/cgroup/cgroup.controllers"]).out;
        let v1 = self.run("test", &["-d", &format!("/sys/fs/cgroup/{controller}")]).code == 0;
        v1 || v2.split_whitespace().any(|c| c == controller)
    }
}

/// A bundle with a container of a manager's.
struct Container {
    bundle: Bundle,
    manager: &'static Manager,
    unit: String,
}

impl Container {
    fn new(manager: &'static Manager, mut bundle: Bundle) -> Container {
        bundle.set("/linux/cgroupsPath", json!(format!("coracle-test.slice:pre:{}", bundle.id)));
        let unit = format!("pre-{}.scope", bundle.id);
        Container { bundle, manager, unit }
    }

    fn sleeping(manager: &'static Manager) -> Container {
        let container = Container::new(manager, Bundle::new(&["/bin/sleep", "1000"]));
        container.started();
        container
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut all = vec!["--systemd-cgroup"];
        all.extend(args);
        self.manager.inside(&self.bundle.command(&all))
    }

    fn oci(&self, args: &[&str]) -> Answer {
        self.command(args).output().expect("the runtime runs").into()
    }

    fn create(&self) -> Answer {
        self.bundle.write_config();
        let dir = self.bundle.dir.path();
        let err = || fs::File::create(dir.join("err")).expect("file");
        let mut command = self.command(&["create", "--bundle", dir.to_str().expect("UTF-8"), &self.bundle.id]);
        let status = command.stdout(Stdio::null()).stderr(err()).status().expect("the runtime runs");
        Answer { code: status.code().unwrap_or(-1), out: String::new(), err: self.bundle.file("err") }
    }

    fn started(&self) {
        self.create().ok();
        self.oci(&["start", &self.bundle.id]).ok();
    }

    fn status(&self) -> String {
        let state = self.oci(&["state", &self.bundle.id]).ok().out;
        serde_json::from_str::<serde_json::Value>(&state).expect("JSON")["status"].as_str().expect("status").to_owned()
    }

    /// Neither a unit nor a cgroup nor a state directory is left.
    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(self.manager.property(&self.unit, "LoadState"), "not-found");
        assert_eq!(self.manager.files(&self.unit, "cgroup.procs"), Vec::<String>::new(), "cgroups are left");
        assert!(!self.bundle.state_root().join(&self.bundle.id).exists(), "the state directory is left");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.bundle.id]);
        let _ = self.manager.systemctl(&["kill", "-s", "KILL", &self.unit]);
        // The bundle looks for what is left where this says.
        self.bundle.set("/linux/cgroupsPath", json!(format!("/coracle-test-oci-{}", self.bundle.id)));
    }
}

#[test]
fn a_container_is_a_delegated_scope_in_its_slice_and_goes_with_it() {
    for manager in Manager::all() {
        let mut container = Container::new(manager, Bundle::new(&["/bin/sleep", "1000"]));
        container.bundle.set("/annotations", json!({ "org.systemd.property.TimeoutStopSec": "uint64 7" }));
        container.started();
        let show = |name| manager.property(&container.unit, name);
        assert_eq!(show("ActiveState"), "active");
        assert_eq!(show("Slice"), "coracle-test.slice");
        assert_eq!(show("Delegate"), "yes");
        assert_eq!(show("TimeoutStopUSec"), "7s");
        assert!(show("ControlGroup").ends_with(&format!("/coracle.slice/coracle-test.slice/{}", container.unit)));
        // One process, the same in every hierarchy that has the scope; exec'ed ones join it.
        let mut procs = manager.files(&container.unit, "cgroup.procs");
        if peer("runc") {
            procs.retain(|all| !all.is_empty()); // On a hybrid host it leaves one of the trees out.
        }
        assert!(!procs.is_empty() && procs.iter().all(|all| *all == procs[0] && !all.contains('\n')), "{procs:?}");
        let joined = container.oci(&["exec", &container.bundle.id, "/bin/cat", "/proc/self/cgroup"]).ok().out;
        let lines = joined.lines().filter(|line| line.ends_with(&container.unit)).count();
        assert!(lines >= procs.len(), "{joined}");
        container.oci(&["delete", "--force", &container.bundle.id]).ok();
        container.assert_gone();
    }
}

#[test]
fn a_container_that_ends_by_itself_leaves_no_unit() {
    for manager in Manager::all() {
        let container = Container::new(manager, Bundle::new(&["/bin/true"]));
        // Twice: nothing of the first is in the way of the second.
        for _ in 0..2 {
            container.started();
            wait_for("the end", || container.status() == "stopped");
            container.oci(&["delete", &container.bundle.id]).ok();
            container.assert_gone();
        }
    }
}

#[test]
fn running_out_of_memory_leaves_no_failed_unit() {
    for manager in Manager::all().iter().filter(|manager| manager.has("memory")) {
        let words = ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
        let mut container = Container::new(manager, Bundle::new(&words));
        container.bundle.set("/linux/resources/memory", json!({ "limit": 16_777_216, "swap": 16_777_216 }));
        container.bundle.write_config();
        let dir = container.bundle.dir.path().to_str().expect("UTF-8");
        // Twice: systemd keeps a unit that failed, and its name, until it is told to forget it.
        for _ in 0..2 {
            let answer = container.oci(&["run", "--bundle", dir, &container.bundle.id]);
            assert_eq!(answer.code, 128 + 9, "{answer:?}");
            container.assert_gone();
        }
    }
}

#[test]
fn without_a_path_it_is_a_scope_of_the_systems_slice() {
    for manager in Manager::all() {
        let mut container = Container::new(manager, Bundle::new(&["/bin/sleep", "1000"]));
        container.bundle.config["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
        let prefix = if ours() {
            "coracle"
        } else if peer("crun") {
            "crun"
        } else {
            "runc"
        };
        container.unit = format!("{prefix}-{}.scope", container.bundle.id);
        container.started();
        assert_eq!(manager.property(&container.unit, "Slice"), "system.slice");
    }
}

/// What is wrong is told, and nothing is left of it.
#[test]
fn what_systemd_or_the_kernel_refuses_is_undone() {
    if !ours() {
        return; // runc 1.1 and crun pass over limits whose files are missing, and crun takes any cgroupsPath.
    }
    let wrong = [
        ("/linux/cgroupsPath", json!("/not/of/this/form"), "slice:prefix:name"),
        ("/linux/cgroupsPath", json!("no-slice:pre:x"), "slice"),
        ("/annotations", json!({ "org.systemd.property.NoSuchThing": "true" }), "NoSuchThing"),
        ("/annotations", json!({ "org.systemd.property.TimeoutStopUSec": "many" }), "TimeoutStopUSec"),
        ("/linux/resources/hugepageLimits", json!([{ "pageSize": "3MB", "limit": 1 }]), "huge"),
    ];
    for manager in Manager::all() {
        for (field, value, words) in &wrong {
            let mut container = Container::new(manager, Bundle::new(&["/bin/true"]));
            container.bundle.set(field, value.clone());
            container.create().fails(words);
            container.assert_gone();
        }
    }
}

#[test]
fn two_containers_do_not_share_a_unit() {
    if !ours() {
        return; // runc before 1.2 takes an existing unit for its own.
    }
    for manager in Manager::all() {
        let first = Container::sleeping(manager);
        let mut second = Container::new(manager, Bundle::new(&["/bin/true"]));
        second.bundle.set("/linux/cgroupsPath", first.bundle.config["linux"]["cgroupsPath"].clone());
        let answer = second.create();
        assert_ne!(answer.code, 0);
        assert!(answer.err.contains("exist") || answer.err.contains("already loaded"), "{answer:?}");
        assert_eq!(first.status(), "running");
        assert_eq!(manager.property(&first.unit, "ActiveState"), "active");
    }
}

#[test]
fn limits_are_in_force_and_systemd_keeps_them() {
    for manager in Manager::all() {
        let mut container = Container::new(manager, Bundle::new(&["/bin/sleep", "1000"]));
        container.bundle.set("/linux/resources/memory", json!({ "limit": 67_108_864 }));
        container.bundle.set("/linux/resources/pids", json!({ "limit": 33 }));
        container.bundle.set("/linux/resources/cpu", json!({ "shares": 512, "quota": 20_000, "period": 50_000 }));
        if !manager.has("memory") {
            // The v2 tree of a machine whose controllers are v1's.
            container.create().fails(if ours() { "linux.resources" } else { "no such file" });
            if ours() {
                container.assert_gone();
            }
            continue;
        }
        container.started();
        let memory = ["memory.limit_in_bytes", "memory.max"].concat_files(manager, &container.unit);
        assert_eq!(memory, ["67108864"]);
        let expect = |memory: &str, pids: &str, quota: &str, cpu: &str| {
            // A reload makes systemd write all that it knows of.
            manager.systemctl(&["daemon-reload"]).ok();
            let files = |names: [&str; 2]| names.concat_files(manager, &container.unit);
            assert_eq!(files(["memory.limit_in_bytes", "memory.max"]), [memory]);
            assert_eq!(files(["pids.max", "-"]), [pids]);
            let bandwidth = files(["cpu.cfs_quota_us", "cpu.max"]).concat();
            assert!([quota.to_owned(), format!("{quota} 50000")].contains(&bandwidth), "{bandwidth}");
            assert_eq!(manager.property(&container.unit, "TasksMax"), pids);
            assert_eq!(manager.property(&container.unit, "CPUQuotaPerSecUSec"), cpu);
        };
        expect("67108864", "33", "20000", "400ms");
        let id = container.bundle.id.as_str();
        // The quota alone: the period stays what it was.
        container.oci(&["update", "--memory", "134217728", "--pids-limit", "44", "--cpu-quota", "25000", id]).ok();
        expect("134217728", "44", "25000", "500ms");
        if ours() {
            // Refused by the kernel: systemd is not told of it either, and what was written before is taken back.
            container.oci(&["update", "--pids-limit", "55", "--cpuset-cpus", "4000", id]).fails("cpuset");
            expect("134217728", "44", "25000", "500ms");
        }
    }
}

trait Files {
    /// The contents of those of these files that a scope has.
    fn concat_files(&self, manager: &Manager, unit: &str) -> Vec<String>;
}

impl Files for [&str; 2] {
    fn concat_files(&self, manager: &Manager, unit: &str) -> Vec<String> {
        self.iter().flat_map(|name| manager.files(unit, name)).collect()
    }
}

#[test]
fn device_rules_are_in_force_and_survive_a_reload() {
    for manager in Manager::all() {
        let script = "mknod /tmp/allowed c 1 5; mknod /tmp/denied c 1 11; while sleep 0.02; do
            head -c 1 /tmp/allowed >/dev/null 2>&1; a=$?; head -c 1 /tmp/denied >/dev/null 2>&1; echo $a $? > /tmp/new
            cat /tmp/new >> /tmp/seen; done";
        let mut container = Container::new(manager, Bundle::sh(script));
        for set in ["bounding", "effective", "permitted"] {
            container.bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_MKNOD"]));
        }
        container.started();
        let seen = || fs::read_to_string(container.bundle.rootfs().join("tmp/seen")).unwrap_or_default();
        wait_for("a first attempt", || !seen().is_empty());
        manager.systemctl(&["daemon-reload"]).ok();
        if manager.has("pids") {
            container.oci(&["update", "--pids-limit", "100", &container.bundle.id]).ok();
        }
        let before = seen().lines().count();
        wait_for("more attempts", || seen().lines().count() > before + 5);
        let wrong: Vec<String> = seen().lines().filter(|line| *line != "0 1").map(str::to_owned).collect();
        assert_eq!(wrong, Vec::<String>::new());
    }
}

#[test]
fn pause_kill_and_processes_work_on_a_scope() {
    for manager in Manager::all() {
        let container = Container::sleeping(manager);
        let id = container.bundle.id.as_str();
        container.oci(&["pause", id]).ok();
        assert_eq!(container.status(), "paused");
        container.oci(&["resume", id]).ok();
        assert_eq!(container.status(), "running");
        let listed = container.oci(&["ps", id]).ok().out;
        assert!(listed.contains("sleep") || peer("runc"), "{listed}"); // Seen to list nothing here.
        container.oci(&["kill", id, "KILL"]).ok();
        wait_for("the end", || container.status() == "stopped");
        container.oci(&["delete", id]).ok();
        container.assert_gone();
    }
}

/// nobody's, which every Debian has.
const NOBODY: u32 = 65_534;

/// A manager of the user nobody, as a service of the system's; commands run as scopes of its own.
struct UserManager {
    manager: &'static Manager,
    unit: String,
    runtime_dir: PathBuf,
}

impl UserManager {
    fn start(manager: &'static Manager, dir: &Path) -> UserManager {
        let unit = format!("coracle-test-user-{}.service", std::process::id());
        let runtime_dir = dir.join("run");
        let units = runtime_dir.join("systemd/user");
        fs::create_dir_all(&units).expect("mkdir");
        fs::write(units.join("coracle-test.target"), "[Unit]\nDefaultDependencies=no\n").expect("target");
        for path in [&runtime_dir, &runtime_dir.join("systemd"), &units] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
        }
        let environment = format!("Environment=XDG_RUNTIME_DIR={} HOME=/", runtime_dir.display());
        // Its default dependencies are units of a machine that starts.
        let properties = ["Type=notify", "Delegate=yes", "User=nobody", "DefaultDependencies=no", environment.as_str()];
        let mut words = vec!["--quiet", "--unit", &unit];
        properties.iter().for_each(|property| words.extend(["-p", property]));
        words.extend(["/lib/systemd/systemd", "--user", "--unit=coracle-test.target"]);
        manager.run("systemd-run", &words).ok();
        UserManager { manager, unit, runtime_dir }
    }

    /// Runs a command as nobody: in a scope of this manager's, or from wherever the test is.
    fn run(&self, within: bool, words: &[&str]) -> Answer {
        let directory = format!("XDG_RUNTIME_DIR={}", self.runtime_dir.display());
        let nobody = NOBODY.to_string();
        let mut all =
            vec!["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "--inh-caps=-all", "env", &directory];
        if within {
            // Not as a service whose end is awaited: for that it would go by the message bus, and there is none.
            all.extend(["systemd-run", "--user", "--quiet", "--scope", "--"]);
        }
        all.extend(words);
        self.manager.run("setpriv", &all)
    }
}

impl Drop for UserManager {
    fn drop(&mut self) {
        let _ = self.manager.systemctl(&["stop", &self.unit]);
    }
}

#[test]
fn an_ordinary_users_container_is_a_scope_of_the_users_manager() {
    if !ours() {
        return; // runc and crun reach it by the session's message bus, which there is none of.
    }
    // Only a whole system lets a user's manager live: see scripts/check-cgroup2.
    let Some(manager) = Manager::all().iter().find(|manager| manager.init.is_none()) else {
        return eprintln!("systemd is not this machine's init: a user's manager is not tested here");
    };
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let dir = bundle.dir.path().to_owned();
    let user = UserManager::start(manager, &dir);
    let program = dir.join("runtime");
    coracle_tests::copy_program(oci_support::runtime(), &program);
    let map = json!([{ "containerID": 0, "hostID": NOBODY, "size": 1 }]);
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    bundle.namespace("user", Some(None)).namespace("network", None);
    bundle.set("/mounts", json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]));
    bundle.set("/linux/resources/pids", json!({ "limit": 33 }));
    let cgroup = bundle.config["linux"]["cgroupsPath"].clone();
    bundle.set("/linux/cgroupsPath", json!(format!("user.slice:pre:{}", bundle.id)));
    bundle.write_config();
    bundle.set("/linux/cgroupsPath", cgroup);
    let path = dir.to_str().expect("UTF-8");
    ["out", "err"].iter().for_each(|name| fs::write(dir.join(name), "").expect("file"));
    assert!(Command::new("chown").args(["-hR", "nobody:", path]).status().expect("chown").success());
    let (program, root) = (program.to_str().expect("UTF-8"), dir.join("user-state"));
    let oci = |within: bool, words: &[&str]| {
        // A container must not hold the pipes of the answer.
        let mut all = vec!["sh", "-c", "\"$@\" >$0/out 2>$0/err </dev/null", path, program];
        all.extend(["--root", root.to_str().expect("UTF-8"), "--systemd-cgroup"]);
        all.extend(words);
        let Answer { code, out, err } = user.run(within, &all);
        Answer { code, out: out + &bundle.file("out"), err: err + &bundle.file("err") }
    };
    // Within, all cgroups are the user's. From elsewhere only the system's manager may move the processes.
    for within in [true, false] {
        oci(within, &["create", "--bundle", path, &bundle.id]).ok();
        oci(within, &["start", &bundle.id]).ok();
        let unit = format!("pre-{}.scope", bundle.id);
        let procs = manager.files(&unit, "cgroup.procs").concat();
        assert!(procs.parse::<i32>().is_ok(), "one process: {procs:?}");
        let joined = oci(within, &["exec", &bundle.id, "/bin/busybox", "cat", "/proc/self/cgroup"]).ok().out;
        assert!(joined.contains(&unit), "{joined}");
        assert_eq!(manager.files(&unit, "pids.max"), ["33"]);
        oci(within, &["update", "--pids-limit", "44", &bundle.id]).ok();
        assert_eq!(manager.files(&unit, "pids.max"), ["44"]);
        oci(within, &["delete", "--force", &bundle.id]).ok();
        assert_eq!(manager.files(&unit, "cgroup.procs"), Vec::<String>::new());
    }
}

#[test]
fn a_rootless_scope_needs_v2_and_a_users_manager() {
    if !ours() {
        return; // Theirs end at the session's message bus first.
    }
    for manager in Manager::all() {
        let container = Container::new(manager, Bundle::new(&["/bin/true"]));
        container.bundle.write_config();
        let bundle = container.bundle.dir.path().to_str().expect("UTF-8");
        let v2 = manager.run("test", &["-e", "/sys/fs/cgroup/cgroup.controllers"]).code == 0;
        let words = if v2 { "reach systemd" } else { "cgroup v2" };
        container.oci(&["--rootless=true", "create", "--bundle", bundle, &container.bundle.id]).fails(words);
        container.assert_gone();
    }
}

#[test]
fn a_killed_create_leaves_nothing_that_delete_does_not_clear() {
    if !ours() {
        return; // Where theirs stops on the way is another place.
    }
    for manager in Manager::all() {
        let mut container = Container::new(manager, Bundle::new(&["/bin/true"]));
        // A hook that lasts: the runtime is killed while the scope is there and the record is not.
        let path = container.bundle.dir.path().join("hook");
        fs::write(&path, "#!/bin/sh\ntouch \"$0.ran\"\nexec sleep 5\n").expect("hook");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        container.bundle.set("/hooks/createRuntime", json!([{ "path": path }]));
        container.bundle.write_config();
        let dir = container.bundle.dir.path().to_str().expect("UTF-8").to_owned();
        let mut command = container.command(&["create", "--bundle", &dir, &container.bundle.id]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the runtime runs");
        wait_for("the hook", || path.with_extension("ran").exists());
        // nsenter's child is the runtime, and dies with its scope's processes left.
        let pid = child.id().to_string();
        let runtime = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let runtime =
            if manager.init.is_some() { runtime.split_whitespace().next().unwrap_or("0").to_owned() } else { pid };
        assert!(Command::new("kill").args(["-9", &runtime]).status().expect("kill").success());
        let _ = child.wait();
        wait_for("the init's end", || manager.files(&container.unit, "cgroup.procs").iter().all(String::is_empty));
        container.oci(&["delete", "--force", &container.bundle.id]).ok();
        container.assert_gone();
    }
}
