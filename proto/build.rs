//! Compiles the `.proto` files beside this script, without a `protoc` on the machine.

use std::error::Error;

/// The roots: every other file is imported by one of these.
const FILES: &[&str] = &[
    "task.proto",
    "sandbox.proto",
    "events.proto",
    "events_ttrpc.proto",
    "runc.proto",
    "bootstrap.proto",
    "pod_sandbox.proto",
    "cgroups_v1.proto",
    "cgroups_v2.proto",
    "ttrpc.proto",
    "coracle.proto",
    "handler.proto",
    "runtimeoptions.proto",
    "google/protobuf/empty.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    prost_build::Config::new()
        // Our own copies of Any, Timestamp and Empty: one dependency less for a program that is counted in kilobytes.
        .compile_well_known_types()
        .enable_type_names()
        .include_file("all.rs")
        .compile_fds(descriptors)?;
    cri()
}

/// The CRI and the gRPC health check, with their services; see the feature `cri`.
#[cfg(feature = "cri")]
fn cri() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["cri.proto", "health.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(true).compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "cri"))]
fn cri() -> Result<(), Box<dyn Error>> {
    Ok(())
}
