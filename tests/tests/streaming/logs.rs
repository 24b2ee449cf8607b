//! Log files: CRI's format, rotated as kubelet does it (rename, then ReopenContainerLog) while the container writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_tests::cri::{LONG, Node, Options, node, node_with, script};
use k8s_cri::v1;
use tonic::Code;

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    stdout: bool,
    full: bool,
    text: String,
}

/// The lines of a file, each of which must be whole and of the right form.
fn lines(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(text.is_empty() || text.ends_with('\n'), "{} is torn", path.display());
    let parse = |line: &str| {
        let mut fields = line.splitn(4, ' ');
        let mut field = || fields.next().unwrap_or_else(|| panic!("a line without its fields: {line:?}"));
        let (time, stream, tag, text) = (field(), field(), field(), field());
        assert!(time.contains('T') && time.len() >= 30, "{line:?}");
        assert!(matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P"), "{line:?}");
        Line { stdout: stream == "stdout", full: tag == "F", text: text.to_owned() }
    };
    text.lines().map(parse).collect()
}

/// What a stream said, put together again.
fn said(files: &[PathBuf], stdout: bool) -> Vec<String> {
    let mut said = Vec::new();
    let mut begun = String::new();
    for line in files.iter().flat_map(|file| lines(file)).filter(|line| line.stdout == stdout) {
        begun.push_str(&line.text);
        if line.full {
            said.push(std::mem::take(&mut begun));
        }
    }
    assert_eq!(begun, "", "an unfinished line");
    said
}

async fn reopen(node: &Node, container: &str) -> Result<(), tonic::Status> {
    let request = v1::ReopenContainerLogRequest { container_id: container.into() };
    node.runtime().reopen_container_log(request).await.map(|_| ())
}

#[test]
fn a_rotated_log_loses_no_line_of_a_fast_writer() {
    node(async |node| {
        let text = "seq 1 400000 & seq 1 100000 >&2 & wait";
        let pod = node.pod("web");
        let sandbox = node.run_pod(&pod).await.unwrap();
        let id = node.launch(&sandbox, &pod, script("main", text)).await;
        let path = PathBuf::from(node.container_status(&id).await.unwrap().log_path);
        let mut files = Vec::new();
        loop {
            let aside = path.with_extension(format!("log.{}", files.len()));
            fs::rename(&path, &aside).unwrap();
            files.push(aside);
            match reopen(node, &id).await {
                Ok(()) => assert!(path.exists()),
                // It ended meanwhile: the log that was moved is the last one.
                Err(status) => {
                    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.exited(&id).await;
        files.extend(path.exists().then_some(path));
        assert!(files.len() > 3, "rotated {} times only", files.len());
        for (stdout, last) in [(true, 400_000), (false, 100_000)] {
            let said = said(&files, stdout);
            assert_eq!(said.len(), last);
            let wrong = said.iter().zip(1..).find(|(text, number)| **text != number.to_string());
            assert_eq!(wrong, None, "in order, each once");
        }
    });
}

#[test]
fn long_lines_are_cut_into_parts_and_unfinished_ones_are_parts() {
    node(async |node| {
        let text = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short; printf unfinished";
        let pod = node.pod("web");
        let sandbox = node.run_pod(&pod).await.unwrap();
        let id = node.launch(&sandbox, &pod, script("main", text)).await;
        let path = node.exited(&id).await.log_path;
        let found = lines(Path::new(&path));
        let shape: Vec<(bool, usize)> = found.iter().map(|line| (line.full, line.text.len())).collect();
        assert_eq!(shape, [(false, 16384), (false, 16384), (true, 40000 - 2 * 16384), (true, 5), (false, 10)]);
    });
}

#[test]
fn a_log_with_a_cap_stays_below_it_and_keeps_the_latest_lines() {
    let options = Options { config: "[serve]\nlog_max_bytes = '200Ki'\n".into(), ..Default::default() };
    node_with(options, async |node| {
        let pod = node.pod("web");
        let sandbox = node.run_pod(&pod).await.unwrap();
        let id = node.launch(&sandbox, &pod, script("main", "seq 1 100000")).await;
        let path = PathBuf::from(node.exited(&id).await.log_path);
        let before = path.with_extension("log.1");
        for file in [&path, &before] {
            let length = fs::metadata(file).unwrap().len();
            assert!(length <= 200 << 10, "{} has {length} bytes", file.display());
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
        let said = said(&[before, path], true);
        let first: usize = said[0].parse().unwrap();
        let all: Vec<String> = (first..=100_000).map(|number| number.to_string()).collect();
        assert_eq!(said, all);
    });
}

#[test]
fn a_log_is_reopened_only_of_a_container_that_runs() {
    node(async |node| {
        let (_, id) = node.launch_pod("web", LONG).await;
        let path = PathBuf::from(node.container_status(&id).await.unwrap().log_path);
        // Nobody has moved it: it is the same file, and written on.
        reopen(node, &id).await.unwrap();
        fs::remove_file(&path).unwrap();
        reopen(node, &id).await.unwrap();
        assert_eq!(lines(&path), []);
        node.stop_container(&id, 5).await.unwrap();
        assert_eq!(reopen(node, &id).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(reopen(node, &"f".repeat(64)).await.unwrap_err().code(), Code::NotFound);
    });
}
