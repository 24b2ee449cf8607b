//! Feeds the files that a cgroup's statistics are read from.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

/// In memory; the script that starts the fuzzer removes it.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::var_os("FUZZ_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = directory.join(format!("coracle-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("make a directory for the files");
    directory
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_runtime::fuzz::stats(data, &DIRECTORY));
