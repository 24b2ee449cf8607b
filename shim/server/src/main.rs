//! `coracle`: Kubernetes pods on one machine, without a cluster and without a daemon.
//!
//! ```text
//! cli (the verbs) -> cmd (a file each) -> pod (a pod's life) -> engine, image store
//!                          \-> kube (YAML to validated pods and objects), objects (their store), workload
//! ```

mod app;
mod cli;
mod cmd;
mod config;
mod copy;
mod dns;
mod exit;
mod kube;
mod objects;
mod out;
mod pod;
mod pull;
mod rootless;
mod serve;
mod service;
mod statics;
mod sys;
mod text;
mod time;
mod workload;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match cli::parse() {
        // Before the first thread: only a process of one can enter a user namespace.
        Ok(mut cli) => rootless::enter(&mut cli).and_then(|()| cmd::run(cli)),
        Err(code) => return ExitCode::from(code),
    };
    result.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::from(exit::code(&error))
    })
}

/// Writes an error with its chain of causes, on one line.
fn print_error(error: &anyhow::Error) {
    eprintln!("coracle: {}", format!("{error:#}").replace('\n', " "));
}
