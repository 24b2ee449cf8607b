//! Debian's podman with storage and state of its own, and without a network.

use std::fs;
use std::path::Path;
use std::process::Command;

use coracle_tests::machine::IMAGE;

/// The image of podman's infra container: busybox, asleep.
const PAUSE: &str = "localhost/pause:1";
/// No command takes longer; podman passes SIGTERM on to what it runs.
const DEADLINE: &str = "--signal=KILL 120";

/// What a command of podman answered.
pub struct Answer {
    pub ok: bool,
    pub err: String,
}

/// One podman.
pub struct Podman(tempfile::TempDir);

impl Podman {
    pub fn new() -> Podman {
        let dir = tempfile::Builder::new().prefix("coracle-play.").tempdir().expect("a scratch place");
        let podman = Podman(dir);
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
             [engine]\nlock_type = \"file\"\ninfra_image = \"{PAUSE}\"\n"
        );
        fs::write(podman.dir().join("containers.conf"), settings).expect("write podman's settings");
        let archive = podman.dir().join("image.tar").display().to_string();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        assert!(Command::new(script).args([&archive, IMAGE]).status().expect("scripts/busybox-image").success());
        for args in [
            &["load", "-q", "-i", &archive][..],
            &["create", "--name", "pause", "--network=none", IMAGE],
            &["commit", "-q", "--change", "CMD [\"/bin/sleep\", \"1000000\"]", "pause", PAUSE],
            &["rm", "pause"],
        ] {
            let answer = podman.say(args);
            assert!(answer.ok, "podman {args:?}: {}", answer.err);
        }
        podman
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Runs a command of podman.
    pub fn say(&self, args: &[&str]) -> Answer {
        let mut command = Command::new("timeout");
        command.args(DEADLINE.split(' ')).arg("podman").current_dir(self.dir());
        command.env("CONTAINERS_CONF", self.dir().join("containers.conf"));
        for (flag, name) in [("root", "root"), ("runroot", "run"), ("tmpdir", "tmp"), ("network-config-dir", "net")] {
            command.arg(format!("--{flag}={}", self.dir().join(name).display()));
        }
        // crun refuses a machine with both versions of cgroups.
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs", "--runtime=runc"]);
        let output = command.args(args).output().expect("run podman");
        Answer { ok: output.status.success(), err: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// Asks all pods to stop.
    pub fn stop(&self) {
        let _ = self.say(&["pod", "stop", "-a", "-t", "5"]);
    }

    /// Kills and removes all pods, and the volumes.
    pub fn clear(&self) {
        let _ = self.say(&["pod", "rm", "-f", "-a", "-t", "0"]);
        let _ = self.say(&["volume", "rm", "-f", "-a"]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.clear();
        let _ = self.say(&["rm", "-f", "-a", "-t", "0"]);
    }
}
