//! Outputs that go to a program or to a file: `ctr run --log-uri`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use coracle_tests::containerd::{Containerd, Said};
use coracle_tests::machine::until;

struct Rig {
    containerd: Containerd,
    /// The script, whose `$2` is where it writes.
    program: PathBuf,
}

impl Rig {
    fn new(script: &str) -> Rig {
        let containerd = Containerd::new("");
        let program = containerd.path("logger");
        fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Rig { containerd, program }
    }

    fn uri(&self, scheme: &str) -> String {
        format!("{scheme}://{}?dir={}", self.program.display(), self.containerd.path("").display())
    }

    fn run(&self, uri: &str, flags: &[&str], name: &str, script: &str) -> Said {
        let flags = [flags, &["--log-uri", uri]].concat();
        let args = self.containerd.run_args(&flags, name, script);
        self.containerd.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn logged(&self, name: &str) -> String {
        fs::read_to_string(self.containerd.path(name)).unwrap_or_default()
    }
}

/// Writes both outputs and whose they are.
const LOGGER: &str = "echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1\" >$2/who; cat <&4 >$2/err & echo -n r >&5; exec 5>&-; cat <&3 >$2/out; wait; echo end >$2/end";

#[test]
fn a_program_gets_what_a_container_says_all_of_it() {
    let rig = Rig::new(LOGGER);
    let script = "echo out; echo err >&2; exec dd if=/dev/zero bs=1000 count=300";
    assert_eq!(rig.run(&rig.uri("binary"), &["--rm"], "web", script).code, 0);
    // Delete has waited for it.
    assert_eq!((rig.logged("who"), rig.logged("end")), ("default web dir\n".into(), "end\n".into()));
    assert_eq!((rig.logged("out").len(), &rig.logged("err")[..4]), (300_004, "err\n"));
    rig.containerd.assert_clean();
}

#[test]
fn execs_have_loggers_of_their_own() {
    let rig = Rig::new(LOGGER);
    rig.containerd.start(&[], "web", "exec sleep 1000");
    let uri = rig.uri("binary");
    let args = ["tasks", "exec", "--log-uri", &uri, "--exec-id", "e1", "web", "/bin/sh", "-c", "echo in"];
    rig.containerd.ctr(&args).ok();
    until("the logger to end", || rig.logged("end") == "end\n");
    assert_eq!((rig.logged("who"), rig.logged("out")), ("default e1 dir\n".into(), "in\n".into()));
}

#[test]
fn without_its_logger_a_container_is_not_made() {
    let rig = Rig::new("exit 1");
    let said = rig.run("binary:///no/such/logger", &["--rm"], "one", "true");
    assert!(said.err.contains("start logger /no/such/logger: No such file"), "{}", said.err);
    let said = rig.run(&rig.uri("binary-v2"), &["--rm"], "two", "true");
    assert!(said.err.contains("without the byte that says it is ready"), "{}", said.err);
    let said = rig.run("journal://x", &["--rm"], "three", "true");
    assert!(said.err.contains("\"journal://x\" is not known"), "{}", said.err);
    for name in ["one", "two", "three"] {
        rig.containerd.ctr(&["containers", "delete", name]);
    }
    rig.containerd.assert_clean();
}

#[test]
fn a_logger_that_does_not_end_by_itself_is_asked_to() {
    let rig = Rig::new("trap 'echo asked >$2/end; exit 0' TERM; exec 5>&-; while :; do sleep 0.1; done");
    assert_eq!(rig.run(&rig.uri("binary"), &["--rm"], "web", "echo out").code, 0);
    assert_eq!(rig.logged("end"), "asked\n");
    rig.containerd.assert_clean();
}

#[test]
fn a_file_takes_both_outputs_and_its_folder_is_made() {
    let rig = Rig::new("");
    let uri = format!("file://{}", rig.containerd.path("logs/a%20b").display());
    rig.run(&uri, &["--rm"], "one", "echo out; echo err >&2").ok();
    assert_eq!(rig.logged("logs/a b"), "out\nerr\n");
    rig.containerd.assert_clean();
}
