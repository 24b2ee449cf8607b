//! `buildah run` and `buildah bud`, with the runtime.

use std::fs;
use std::process::Command;

use crate::oci_support::{Answer, ours};
use crate::{IMAGE, PATIENCE, Place, in_terminal, runtime, say_with};

struct Buildah {
    place: Place,
    container: String,
}

impl Buildah {
    fn new() -> Buildah {
        let mut buildah = Buildah { place: Place::new(), container: String::new() };
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
        fs::write(buildah.place.path("containers.conf"), settings).unwrap();
        let archive = format!("docker-archive:{}", buildah.place.path("image.tar"));
        buildah.say(&["pull", "-q", &archive]).ok();
        buildah.container = buildah.say(&["from", IMAGE]).ok().out.trim().to_owned();
        buildah
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args([PATIENCE, "buildah"]).env("CONTAINERS_CONF", self.place.path("containers.conf"));
        command.args(["--root", &self.place.path("root"), "--runroot", &self.place.path("run")]);
        command.arg("--storage-driver=vfs").args(args);
        command
    }

    fn say(&self, args: &[&str]) -> Answer {
        say_with(self.command(args), "")
    }

    fn run_command(&self, flags: &[&str], program: &[&str]) -> Command {
        let runtime = runtime();
        let first = ["run", "--runtime", &runtime, "--network=none", "--isolation=oci"];
        self.command(&[&first[..], flags, &[self.container.as_str(), "--"], program].concat())
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        say_with(self.run_command(flags, program), "")
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        let _ = self.say(&["rm", "-a"]);
        self.place.close();
    }
}

#[test]
fn run_passes_on_input_output_and_exit_codes() {
    let buildah = Buildah::new();
    // Its containers ask for ambient capabilities that are not inheritable, which the kernel does not have.
    assert_eq!(buildah.run(&[], &["echo", "hello"]).ok().out, "hello\n");
    assert_eq!(buildah.run(&[], &["sh", "-c", "exit 9"]).code, 9);
    assert_eq!(say_with(buildah.run_command(&[], &["cat"]), "words").ok().out, "words");
    let missing = buildah.run(&[], &["no-such-program"]);
    missing.fails(if ours() { "executable file not found in $PATH" } else { "not found" });
}

#[test]
fn run_takes_its_flags() {
    let buildah = Buildah::new();
    let out =
        buildah.run(&["--user=33", "--workingdir=/tmp", "--env=A=b"], &["sh", "-c", "id -u; pwd; echo $A"]).ok().out;
    assert_eq!(out, "33\n/tmp\nb\n");
    assert_eq!(buildah.run(&["--hostname=there", "--cap-add=CAP_SYS_ADMIN"], &["hostname"]).ok().out, "there\n");
    let volume = format!("{}:/v:ro", buildah.place.volume());
    buildah.run(&["-v", &volume], &["touch", "/v/x"]).fails("Read-only");
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    let link = buildah.run(&["--pid=host"], &["readlink", "/proc/self/ns/pid"]).ok().out;
    assert_eq!(link.trim(), own.to_str().unwrap());
    assert_eq!(buildah.run(&["--no-pivot"], &["echo", "moved"]).ok().out, "moved\n");
}

#[test]
fn run_has_a_terminal() {
    let buildah = Buildah::new();
    let script = "sleep 0.3; tty; read x; echo got $x";
    let out = in_terminal(&buildah.run_command(&["-t"], &["sh", "-c", script]), "word\n");
    assert!(out.contains("/dev/pts/0") && out.contains("got word"), "{out}");
}

#[test]
fn an_image_is_built() {
    let buildah = Buildah::new();
    let file = buildah.place.path("Containerfile");
    let text =
        format!("FROM {IMAGE}\nRUN echo one > /one && id -u\nRUN cat /one\nUSER 33\nRUN id -u && touch /tmp/x\n");
    fs::write(&file, text).unwrap();
    let runtime = runtime();
    let flags = ["--runtime", &runtime, "--network=none", "--isolation=oci", "--memory=64m", "--ulimit=nofile=100:100"];
    let context = buildah.place.volume();
    let out =
        buildah.say(&[&["build"], &flags[..], &["-f", &file, "-t", "localhost/built", &context]].concat()).ok().out;
    assert!(out.contains("\none\n") && out.contains("\n33\n"), "{out}");
}
