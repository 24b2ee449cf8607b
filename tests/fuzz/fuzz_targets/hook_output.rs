//! Feeds a failed hook's output.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_runtime::fuzz::hook_output(data));
