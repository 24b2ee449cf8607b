//! The second independent client: the Python package container-runtime-interface-api, which `scripts/deps test` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::cri::{IMAGE, node};

/// The interpreter with the package.
fn python() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    assert!(path.exists(), "{} is missing: run scripts/deps test", path.display());
    path
}

#[test]
fn every_call_works_through_the_python_client() {
    node(async |node| {
        let mut command = Command::new(python());
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cri_client.py"));
        command.arg(node.socket()).arg(node.log_dir("py")).arg(IMAGE);
        // The test's own event loop has nothing to do meanwhile.
        let output = command.output().expect("run the Python client");
        node.machine().learn_ids();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.lines().count(), 35, "calls that the package knows: {said}");
    });
}
