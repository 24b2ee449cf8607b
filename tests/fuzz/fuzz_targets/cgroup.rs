//! Feeds paths and tables of cgroups, systemd's properties and messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_runtime::fuzz::cgroup(data));
