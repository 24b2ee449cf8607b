//! An ordinary user of a machine that does not know him: who he is and which ids he has is told by files that are put
//! over the machine's in a mount namespace of each command.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use coracle_tests::machine::{IMAGE, Netns, Said, sh, until};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// His number, and the first of the ids that /etc/subuid gives him.
pub const UID: u32 = 54_322;
pub const FIRST: u32 = 800_000;
pub const COUNT: u32 = 65_536;

/// Puts the files in place and becomes the user: folder, number, programs, then the command. Who is not root may open
/// /dev/net/tun on usual machines.
const BECOME: &str = "dir=$1; uid=$2; programs=$3; shift 3
for name in passwd group subuid subgid; do mount --bind $dir/etc/$name /etc/$name || exit 125; done
mount --bind $programs $dir/bin && mount --bind $dir/tun /dev/net/tun || exit 125
exec setpriv --reuid $uid --regid $uid --clear-groups --inh-caps=-all -- env PATH=$SEARCH \"$@\"";

/// An ordinary user with a home and a runtime directory, in a network of his own.
pub struct User {
    dir: tempfile::TempDir,
    netns: Netns,
    /// Where his programs are found.
    pub search: String,
}

impl User {
    /// With 65536 ids, and the test's image loaded.
    pub fn new() -> User {
        let user = User::bare(&format!("rower:{FIRST}:{COUNT}\n"));
        user.load();
        user
    }

    /// With these lines in /etc/subuid and /etc/subgid.
    pub fn bare(lines: &str) -> User {
        let dir = tempfile::Builder::new().prefix("coracle-rootless-pod-").tempdir().expect("temporary directory");
        let user = User { dir, netns: Netns::new(), search: std::env::var("PATH").expect("PATH") };
        fs::set_permissions(user.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        ["etc", "home", "run", "bin"].iter().for_each(|name| fs::create_dir(user.path(name)).expect("mkdir"));
        let home = user.path("home");
        user.etc("passwd", &format!("root:x:0:0::/root:/bin/sh\nrower:x:{UID}:{UID}::{}:/bin/sh\n", home.display()));
        user.etc("group", &format!("root:x:0:\nrower:x:{UID}:\n"));
        ["subuid", "subgid"].iter().for_each(|name| user.etc(name, lines));
        let open = Mode::from_bits_truncate(0o666);
        mknod(&user.path("tun"), SFlag::S_IFCHR, open, makedev(10, 200)).expect("these tests need root: mknod");
        fs::set_permissions(user.path("tun"), fs::Permissions::from_mode(0o666)).expect("chmod");
        ["home", "run"].iter().for_each(|name| chown(user.path(name), Some(UID), Some(UID)).expect("chown"));
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        sh(&format!("{} {} {IMAGE}", script.display(), user.path("busybox.tar").display()));
        user
    }

    pub fn load(&self) {
        self.ok(&["load", self.path("busybox.tar").to_str().expect("UTF-8")]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn etc(&self, name: &str, text: &str) {
        fs::write(self.path("etc").join(name), text).expect("write");
    }

    /// Runs a shell line as the machine's root, in the user's network.
    pub fn sh(&self, line: &str) -> String {
        self.netns.run(|| sh(line))
    }

    /// Runs `coracle` as the user, in his home. Its output is files: what stays in the background would hold a pipe open.
    pub fn coracle(&self, args: &[&str]) -> Said {
        let programs = coracle_tests::bin("coracle");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "--", "/bin/sh", "-c", BECOME, "become"]);
        command.arg(self.dir.path()).arg(UID.to_string()).arg(programs.parent().expect("a folder"));
        command.arg(self.path("bin/coracle")).args(args).current_dir(self.path("home")).stdin(Stdio::null());
        command.env("HOME", self.path("home")).env("USER", "rower").env("SEARCH", &self.search);
        command.env("XDG_RUNTIME_DIR", self.path("run")).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
        let (out, err) = (tempfile::NamedTempFile::new().expect("file"), tempfile::NamedTempFile::new().expect("file"));
        let again = |file: &tempfile::NamedTempFile| File::options().append(true).open(file.path()).expect("open");
        command.stdout(again(&out)).stderr(again(&err));
        let status = self.netns.run(|| command.status()).expect("start coracle");
        let read = |file: &tempfile::NamedTempFile| fs::read_to_string(file.path()).expect("UTF-8");
        Said { status, out: read(&out), err: read(&err) }
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.coracle(args);
        assert!(said.status.success(), "coracle {}: {}\n{}{}", args.join(" "), said.status, said.out, said.err);
        said.out
    }

    /// Runs `coracle`, which must fail with one line that has these words.
    #[track_caller]
    pub fn fails(&self, args: &[&str], words: &str) {
        let said = self.coracle(args);
        assert!(!said.status.success(), "coracle {} succeeded: {}", args.join(" "), said.out);
        let error = said.err.trim_end();
        assert!(error.lines().count() == 1 && error.contains(words), "no {words:?} in {error:?}");
    }

    /// Writes a Pod with one container that runs a shell script; `container` and `spec` are further lines of each.
    pub fn pod(&self, name: &str, script: &str, container: &str, spec: &str) -> String {
        let script = script.replace('\'', "''");
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}  \
             containers:\n  - name: main\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: ['sh', '-c', \
             '{script}']\n{container}"
        );
        let path = self.path(&format!("{name}.yaml"));
        fs::write(&path, text).expect("write the Pod");
        path.display().to_string()
    }

    /// The processes that have the user's mounts: his pods' and their helpers.
    fn processes(&self) -> Vec<String> {
        let place = self.dir.path().to_str().expect("UTF-8");
        let words = |pid: PathBuf| {
            let mounts = fs::read_to_string(pid.join("mountinfo")).unwrap_or_default();
            let words = fs::read(pid.join("cmdline")).unwrap_or_default();
            mounts.contains(place).then(|| format!("{} {}", pid.display(), String::from_utf8_lossy(&words)))
        };
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| words(entry.path())).collect()
    }

    /// Nothing may be left of pods: no process and no state.
    #[track_caller]
    pub fn assert_gone(&self) {
        until("the end of all processes", || self.processes().is_empty());
        for folder in ["run/coracle/pods", "run/coracle/net/user", "home/.local/share/coracle/pods"] {
            let left: Vec<_> =
                fs::read_dir(self.path(folder)).into_iter().flatten().flatten().map(|e| e.path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for User {
    /// What a failed test leaves is ended, too: all that has the user's mounts is his.
    fn drop(&mut self) {
        let pids = self.processes();
        let pids = pids.iter().filter_map(|words| words.strip_prefix("/proc/")?.split(' ').next()?.parse().ok());
        for pid in pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
