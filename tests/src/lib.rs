//! The harness of the black box tests: finds the programs under test and makes scratch places.
//!
//! The tests run whole programs, built by `scripts/build`, against real peers. They need root; what a test makes
//! (directories, cgroups, network namespaces, bridges) carries a name of its own and goes when the test ends.

pub mod containerd;
pub mod cri;
pub mod fault;
pub mod http;
pub mod image;
pub mod machine;
pub mod registry;
pub mod rig;
pub mod sys;
pub mod token;
pub mod trace;
pub mod ttrpc;

use std::path::PathBuf;

/// Copies a program that is to be run. By cp(1), since of a file that this process writes every fork of another thread's
/// test holds the descriptor until its exec, and a file that is open for writing cannot be run (ETXTBSY).
///
/// # Panics
/// When it cannot be copied.
pub fn copy_program(from: impl AsRef<std::path::Path>, to: impl AsRef<std::path::Path>) {
    let copied = std::process::Command::new("cp").arg(from.as_ref()).arg(to.as_ref()).status();
    assert!(copied.is_ok_and(|status| status.success()), "copy {} (installed?)", from.as_ref().display());
}

/// The path of a program under test: `$CORACLE_BIN_DIR/NAME`, else `target/dist/NAME` of this repository.
///
/// # Panics
/// When the program was not built: the message says how to build it.
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("CORACLE_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/dist"));
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run scripts/build first", path.display());
    path
}
