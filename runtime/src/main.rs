//! `coracle-oci`: the runtime's command line, a drop-in for runc.
//!
//! One verb, one arm of [`cli::run`]. An error is printed once, here: on stderr, and as a record in the file that
//! `--log` names, where containerd and podman read it.

mod cli;

use clap::Parser;
use cli::args::{Cli, Command};
use cli::log::Log;

fn main() {
    // The run that seals is replaced by the next, so it had better not read its arguments first. What fails here is
    // told by the verb, which asks for the same again.
    let makes = |word: std::ffi::OsString| ["create", "run", "exec", "restore"].iter().any(|verb| word == *verb);
    if std::env::args_os().any(makes) {
        let _ = coracle_runtime::seal_self();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // runc answers a usage error with 1, help and version with 0.
        Err(error) => {
            let code = error.use_stderr() as i32;
            // A closed stderr leaves nobody to read it.
            let _ = error.print();
            std::process::exit(code);
        }
    };
    let log = Log::new(&cli);
    // runc tells "exec failed" from a program's own exit 1 by 255.
    let failure = if matches!(cli.command, Command::Exec(_)) { 255 } else { 1 };
    let code = cli::run(cli).unwrap_or_else(|error| {
        log.error(&error);
        failure
    });
    std::process::exit(code);
}
