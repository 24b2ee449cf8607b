//! Benchmarks against the programs that people use today, on the same machine, in the same run.
//!
//! `oci`: coracle-oci and other OCI runtimes. Contestants take turns, so that what else the machine does meets them alike; medians are compared. `scripts/bench` builds and runs it.

mod bundle;
mod oci;
mod series;
mod sys;

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
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Oci(options) => oci::run(&options),
    }
}
