//! `coracle-oci`: the runtime's command line, a drop-in for runc.
//!
//! One verb, one row of the table in [`cli`]. An error is printed once, by [`cli::main`]: on stderr, and as a record in
//! the file that `--log` names, where containerd and podman read it.

mod cli;

fn main() {
    std::process::exit(cli::main());
}
