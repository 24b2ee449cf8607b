//! An ordinary user with a bundle, on a machine that does not know him.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::oci_support::{Answer, busybox_rootfs, runtime};

/// An ordinary user's number, and the first of the ids that /etc/subuid gives.
pub const UID: u32 = 54_321;
pub const FIRST: u32 = 700_000;
pub const COUNT: u32 = 65_536;

/// Puts the files in place and becomes the user: directory, number, then the command.
const BECOME: &str = "dir=$1; uid=$2; shift 2
[ -z \"$CGROUP\" ] || echo $$ > $CGROUP/cgroup.procs || exit 125
for name in passwd group subuid subgid; do mount --bind $dir/etc/$name /etc/$name || exit 125; done
exec setpriv --reuid $uid --regid $uid --clear-groups --inh-caps=-all -- \"$@\"";

/// Becomes root of a new user namespace of the user's, and runs a script there.
const INSIDE: &str =
    "exec unshare --user --mount --map-root-user --map-users=auto --map-groups=auto -- /bin/sh -ec \"$1\"";

/// An ordinary user with a bundle and a runtime directory.
pub struct User {
    dir: tempfile::TempDir,
    pub config: Value,
    /// Where the user's commands run, when not where the test does.
    pub cgroup: PathBuf,
}

impl User {
    /// The configuration is the one that `spec --rootless` writes, running a shell script without a terminal.
    pub fn sh(script: &str) -> User {
        let dir = tempfile::Builder::new().prefix("coracle-rootless-").tempdir().expect("temporary directory");
        let user = User { dir, config: Value::Null, cgroup: PathBuf::new() };
        fs::set_permissions(user.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        ["etc", "home", "home/run", "home/bundle"]
            .iter()
            .for_each(|name| fs::create_dir(user.path(name)).expect("mkdir"));
        user.etc(
            "passwd",
            &format!("root:x:0:0::/root:/bin/sh\nrower:x:{UID}:{UID}::{}:/bin/sh\n", user.path("home").display()),
        );
        user.etc("group", &format!("root:x:0:\nrower:x:{UID}:\n"));
        ["subuid", "subgid"].iter().for_each(|name| user.etc(name, &format!("rower:{FIRST}:{COUNT}\n")));
        busybox_rootfs(&user.path("home/bundle/rootfs"));
        if runtime().is_absolute() {
            // By another process: a fork of a parallel test would hold the open file, which then cannot be executed.
            let copied = Command::new("cp").arg(runtime()).arg(user.path("runtime")).status();
            assert!(copied.expect("cp runs").success());
        }
        let owned = Command::new("chown").arg("-hR").arg(format!("{UID}:{UID}")).arg(user.path("home")).status();
        assert!(owned.expect("chown runs").success());
        user.oci(&["spec", "--rootless", "--bundle", user.bundle()]).ok();
        let text = fs::read_to_string(user.path("home/bundle/config.json")).expect("config.json");
        let mut user = user;
        user.config = serde_json::from_str(&text).expect("JSON");
        user.config["process"]["terminal"] = json!(false);
        user.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        user.config["process"]["env"] = json!(["PATH=/bin"]);
        user
    }

    pub fn sleeping() -> User {
        let user = User::sh("exec sleep 1000");
        user.run_with(&["--detach"]).ok();
        user
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bundle(&self) -> &'static str {
        // The user's home is this folder for every one of them.
        "home/bundle"
    }

    pub fn etc(&self, name: &str, text: &str) {
        fs::write(self.path("etc").join(name), text).expect("write");
    }

    /// All ids of the user: the own one is root.
    pub fn with_ranges(mut self) -> User {
        let maps = json!([
            { "containerID": 0, "hostID": UID, "size": 1 }, { "containerID": 1, "hostID": FIRST, "size": COUNT }
        ]);
        self.config["linux"]["uidMappings"] = maps.clone();
        self.config["linux"]["gidMappings"] = maps;
        self
    }

    pub fn namespace(mut self, kind: &str, path: Option<&str>) -> User {
        let list = self.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        list.retain(|n| n["type"] != kind);
        list.push(path.map_or(json!({ "type": kind }), |path| json!({ "type": kind, "path": path })));
        self
    }

    pub fn without_namespace(mut self, kind: &str) -> User {
        self.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != kind);
        self
    }

    pub fn mount(mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> User {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        let mounts = self.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| m["destination"] != destination);
        mounts.push(mount);
        self
    }

    pub fn set(mut self, pointer: &str, value: Value) -> User {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        self.config.pointer_mut(parent).expect("the parent is there")[name] = value;
        self
    }

    pub fn program(&self) -> PathBuf {
        if runtime().is_absolute() { self.path("runtime") } else { runtime() }
    }

    /// A command as this user, in the user's folder.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "--", "/bin/sh", "-c", BECOME, "become"]);
        command.arg(self.dir.path()).arg(UID.to_string()).args(words);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).env("XDG_RUNTIME_DIR", self.path("home/run"));
        command
            .env("HOME", self.path("home"))
            .env("USER", "rower")
            .env_remove("LISTEN_FDS")
            .env("CGROUP", &self.cgroup);
        command
    }

    /// The runtime as this user; its output is not a pipe, which a container would hold open.
    pub fn oci(&self, words: &[&str]) -> Answer {
        let program = self.program();
        let mut all = vec![program.to_str().expect("UTF-8")];
        all.extend(words);
        self.answer(self.command(&all))
    }

    pub fn answer(&self, mut command: Command) -> Answer {
        let file = || tempfile::tempfile_in(self.dir.path()).expect("file");
        let (mut out, mut err) = (file(), file());
        command.stdout(out.try_clone().expect("dup")).stderr(err.try_clone().expect("dup"));
        let code = command.status().expect("it runs").code().unwrap_or(-1);
        let read = |file: &mut fs::File| {
            std::io::Seek::rewind(file).expect("rewind");
            std::io::read_to_string(file).expect("UTF-8")
        };
        Answer { code, out: read(&mut out), err: read(&mut err) }
    }

    /// A line of the runtime's words run in a terminal, and what that shows but for the echo of the end of its input.
    pub fn in_terminal(&self, line: &str) -> String {
        let line = format!("{} {line}", self.program().display());
        let words = ["script", "--quiet", "--return", "--command", &line, "/dev/null"];
        self.answer(self.command(&words)).ok().out.replace("^@", "")
    }

    pub fn write_config(&self) {
        fs::write(self.path("home/bundle/config.json"), self.config.to_string()).expect("config.json");
    }

    pub fn run(&self) -> Answer {
        self.run_with(&[])
    }

    pub fn run_with(&self, flags: &[&str]) -> Answer {
        self.write_config();
        let mut words = vec!["run", "--bundle", self.bundle()];
        words.extend(flags);
        words.push("box");
        self.oci(&words)
    }

    /// A script of the runtime's commands by root of the user's own user namespace; `$oci` is the runtime.
    pub fn inside(&self, script: &str) -> Answer {
        self.write_config();
        let script = format!("oci={}; {script}", self.program().display());
        self.answer(self.command(&["/bin/sh", "-c", INSIDE, "inside", &script]))
    }

    pub fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.oci(&["state", "box"]).ok().out).expect("JSON");
        state["status"].as_str().expect("status").to_owned()
    }

    pub fn pid(&self) -> i64 {
        let state: Value = serde_json::from_str(&self.oci(&["state", "box"]).ok().out).expect("JSON");
        state["pid"].as_i64().expect("pid")
    }

    /// Nothing may be left: no state, and no process of the user's ids.
    #[track_caller]
    pub fn assert_gone(&self) {
        let states = self.path("home/run").join(self.program().file_name().expect("name"));
        let ours = self.path("home/run/coracle-oci");
        for root in [states, ours] {
            let left: Vec<_> = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "state is left");
        }
        let folder = self.dir.path().to_str().expect("UTF-8");
        // Who was killed may take a moment to end.
        let mut left = String::new();
        for _ in 0..200 {
            left = fs::read_dir("/proc")
                .expect("/proc")
                .flatten()
                .find_map(|entry| in_mounts(&entry.path(), folder))
                .unwrap_or_default();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{left} is left");
    }
}

/// The words of a process that has mounts with this in them.
fn in_mounts(process: &Path, folder: &str) -> Option<String> {
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    mounts.contains(folder).then(|| format!("{} {}", process.display(), String::from_utf8_lossy(&words)))
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", "box"]);
    }
}
