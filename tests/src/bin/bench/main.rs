//! Benchmarks against the programs that people use today, on the same machine, in the same run.
//!
//! `oci`: coracle-oci and other OCI runtimes. `pull`: pulling an image. `pod`: a pod's life and memory.
//! `cri`: the same through the CRI. `shim`: a container of containerd. `vm`: pods in virtual machines, one kernel beside another.
//! Contestants take turns, so that what else the machine does meets them alike; medians are compared. `scripts/bench` builds and runs it.

mod bundle;
mod cri;
mod oci;
mod pod;
mod pull;
mod series;
mod shim;
mod sys;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Benchmarks of coracle against its peers")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The life of a container: coracle-oci, crun, runc.
    Oci(oci::Options),
    /// Pulling an image of 1 GiB in 6 layers from a registry on loopback: coracle, podman, containerd.
    Pull(pull::Options),
    /// The life of a pod, and the memory behind it: coracle, podman.
    Pod(pod::Options),
    /// Pods through the CRI, one by one and ten at a time: coracle, containerd.
    Cri(cri::Options),
    /// A container of containerd, and the memory behind it: our supervisor, containerd-shim-runc-v2.
    Shim(shim::Options),
    /// Pods in virtual machines: boot, exec, memory, and whether all boots succeed.
    Vm(vm::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Oci(options) => oci::run(&options),
        What::Pull(options) => pull::run(&options),
        What::Pod(options) => pod::run(&options),
        What::Cri(options) => cri::run(&options),
        What::Shim(options) => shim::run(&options),
        What::Vm(options) => vm::run(&options),
    }
}
