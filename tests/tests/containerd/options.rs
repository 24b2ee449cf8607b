//! Runtime options of the handler, given as containerd's CRI gives them: a file of TOML.

use std::fs;
use std::path::PathBuf;

use coracle_tests::containerd::{Containerd, Said};
use coracle_tests::machine::{memory_tree, until};
use nix::sys::signal::{Signal, kill};

/// A daemon, and a file of options.
struct Rig {
    containerd: Containerd,
    file: PathBuf,
}

impl Rig {
    fn new(options: &str) -> Rig {
        let containerd = Containerd::new("");
        let file = containerd.path("options.toml");
        fs::write(&file, options.replace("ROOT", &containerd.path("r").display().to_string())).unwrap();
        Rig { containerd, file }
    }

    fn run(&self, flags: &[&str], name: &str, script: &str) -> Said {
        let file = self.file.display().to_string();
        let flags = [&["--runtime-config-path", &file], flags].concat();
        let args = self.containerd.run_args(&flags, name, script);
        self.containerd.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn background(&self, name: &str) {
        self.run(&["--detach", "--null-io"], name, "exec sleep 1000").ok();
    }

    fn state(&self, name: &str) -> PathBuf {
        self.containerd.path("r/default").join(name)
    }
}

#[test]
fn a_binary_runs_the_containers_of_its_handler() {
    let rig = Rig::new("BinaryName = \"runc\"\nRoot = \"ROOT\"\n");
    let said = rig.run(&["--rm"], "once", "echo by runc; exit 3");
    assert_eq!((said.code, said.out.as_str()), (3, "by runc\n"));
    rig.background("web");
    let state = fs::read_to_string(rig.state("web").join("state.json")).unwrap();
    assert!(state.contains("\"init_process_pid\""), "runc's own state: {state}");
    assert_eq!(rig.containerd.exec("web", "echo in; exit 4", "").code, 4);
    // Whoever clears up after a dead supervisor knows the binary from the bundle.
    let pid = rig.containerd.task("web").unwrap().1;
    for supervisor in rig.containerd.supervisors() {
        kill(supervisor, Signal::SIGKILL).unwrap();
    }
    until("the container to be ended", || !fs::exists(format!("/proc/{pid}")).unwrap());
    until("runc's state to be gone", || !rig.state("web").exists());
    rig.containerd.ctr(&["tasks", "delete", "--force", "web"]);
    rig.containerd.assert_clean();
}

#[test]
fn the_state_of_containers_is_where_the_root_says() {
    let rig = Rig::new("Root = 'ROOT'\n");
    rig.background("web");
    assert!(rig.state("web").exists());
    let pid = rig.containerd.task("web").unwrap().1;
    rig.background("other");
    rig.containerd.ctr(&["tasks", "delete", "--force", "other"]);
    assert!(!rig.state("other").exists());
    for supervisor in rig.containerd.supervisors() {
        kill(supervisor, Signal::SIGKILL).unwrap();
    }
    until("the container to be ended", || !fs::exists(format!("/proc/{pid}")).unwrap());
    until("its state to be gone", || !rig.state("web").exists());
    rig.containerd.ctr(&["tasks", "delete", "--force", "web"]);
    rig.containerd.assert_clean();
}

#[test]
fn an_unknown_option_is_an_error_with_its_place() {
    let rig = Rig::new("# ours\nBinaryNam = 'runc'\n");
    let said = rig.run(&["--rm"], "web", "true");
    assert_ne!(said.code, 0);
    assert!(said.err.contains("options.toml:2: BinaryNam: is not known"), "{}", said.err);
    rig.containerd.ctr(&["containers", "delete", "web"]);
    rig.containerd.assert_clean();
}

#[test]
fn supervisors_are_in_the_cgroup_that_is_theirs() {
    let name = format!("coracle-shims-{}", std::process::id());
    let trees: &[&str] = if memory_tree().1 == "memory.max" { &[""] } else { &["memory", "cpu"] };
    let groups: Vec<PathBuf> =
        trees.iter().map(|tree| PathBuf::from("/sys/fs/cgroup").join(tree).join(&name)).collect();
    groups.iter().for_each(|group| fs::create_dir(group).unwrap());
    let rig = Rig::new(&format!("ShimCgroup = '/{name}'\n"));
    rig.background("web");
    let supervisor = rig.containerd.supervisors()[0];
    let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = |text: &str| text.lines().filter(|line| line.ends_with(&format!(":/{name}"))).count();
    assert_eq!(inside(&of(supervisor.as_raw())), groups.len());
    assert_eq!(inside(&of(rig.containerd.task("web").unwrap().1)), 0, "a container has a cgroup of its own");
    rig.containerd.ctr(&["tasks", "delete", "--force", "web"]);
    rig.containerd.assert_clean();
    until("the cgroups to be empty", || groups.iter().all(|group| fs::remove_dir(group).is_ok()));
    // Without the cgroup there is no supervisor.
    let said = rig.run(&["--rm"], "other", "true");
    assert!(said.err.contains("there is no such cgroup"), "{}", said.err);
    rig.containerd.assert_clean();
}

#[test]
fn streams_belong_to_whom_the_options_say() {
    let rig = Rig::new("IoUid = 1234\nio_gid = 4321\n");
    let said = rig.run(&["--rm"], "web", "ls -lnL /proc/self/fd/1").ok();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[2..4], ["1234", "4321"], "{said}");
    rig.containerd.assert_clean();
}
