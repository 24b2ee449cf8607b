//! What a terminal shows goes to a program or to a file. (`ctr` cannot ask for that; without a terminal it can: see its tests.)

use crate::pod::*;
use coracle_proto::ttrpc::Code;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const LOGGER: &str =
    "#!/bin/sh\necho -n r >&5; exec 5>&-; cat <&3 >$2/out; cat <&4 >$2/err; echo $CONTAINER_ID >$2/end";

fn logger(folder: &Path, scheme: &str) -> String {
    let program = folder.join("logger");
    fs::write(&program, LOGGER).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{scheme}://{}?dir={}", program.display(), folder.display())
}

#[test]
fn a_terminal_has_a_logger_that_gets_what_it_shows() {
    let mut pod = Pod::new();
    let stdout = logger(pod.dir.path(), "binary-v2");
    let wish = Wish { terminal: true, stdout, ..Wish::default() };
    let script = "echo shown; seq 20000; exit 3";
    pod.run_with("web", &["sh", "-c", script], &wish);
    assert_eq!(pod.wait("web", ""), 3);
    pod.delete("web", "").unwrap();
    // It has ended before the answer to the deletion.
    assert_eq!(fs::read_to_string(pod.path("end")).unwrap(), "web\n");
    let shown = fs::read_to_string(pod.path("out")).unwrap();
    assert!(shown.starts_with("shown\r\n1\r\n") && shown.ends_with("20000\r\n"), "{} bytes", shown.len());
    assert_eq!(fs::read_to_string(pod.path("err")).unwrap(), "");
    pod.shutdown();
}

#[test]
fn a_terminal_is_written_to_a_file() {
    let mut pod = Pod::new();
    let stdout = format!("file://{}", pod.path("logs/shown").display());
    pod.run_with("web", &["echo", "shown"], &Wish { terminal: true, stdout, ..Wish::default() });
    assert_eq!(pod.wait("web", ""), 0);
    until("it is written", || fs::read_to_string(pod.path("logs/shown")).is_ok_and(|text| text == "shown\r\n"));
}

#[test]
fn two_loggers_for_one_process_are_refused() {
    let mut pod = Pod::new();
    let mut request = pod.request("web", &["true"], &Wish { stdout: "binary:///a".into(), ..Wish::default() });
    request.stderr = "binary:///b".into();
    let refused = pod.task::<coracle_proto::Empty>(coracle_proto::ttrpc::method::CREATE, &request);
    assert_eq!(code(refused), Code::InvalidArgument);
}
