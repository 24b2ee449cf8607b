//! `containerd-shim-coracle-v1`: one small process for each pod, the parent of its containers.
//!
//! It speaks containerd's task and sandbox API over ttrpc on `<bundle>/supervisor.sock`, writes the containers' CRI logs,
//! serves attach clients on `<bundle>/attach.sock`, and keeps exit codes on disk. Everything else may come and go.
//!
//! ```text
//! arguments   the command line             service     which handler answers what
//! daemon      start                        tasks       containers and execs
//! cleanup     delete                       sandbox     the pod around them; namespaces
//! supervisor  what is known, the loop      task        the states of a process (pure)
//! reactor     epoll                        worker      forks for what may hang; ops: what they do
//! containerd  its flags, address, events  relay       a terminal over fifos
//! connection  a task client                streams     what processes say and hear
//! attach      an attach client             stdio       where that comes from and goes to
//! buffer      bytes on their way           log         CRI log files
//! logger      programs that take the output checkpoint  Task.Checkpoint
//! exits       exit.json                    tender      calling the engine when a container exits
//! failure     status codes                 stats       runtime's numbers in containerd's messages
//! oci         what runs a container        foreign     other runtimes than ours; shim: containerd's shims
//! remote      calls of those that run it   vm          virtual machines, on the machine's side
//! guest       the init of one              netlink     the network of both
//! signals     by pid or by the runtime     sys         the crate's unsafe code
//! link        streams over a guest's port
//! ```

mod arguments;
mod attach;
mod buffer;
mod checkpoint;
mod cleanup;
mod connection;
mod containerd;
mod daemon;
mod exits;
mod failure;
mod foreign;
mod guest;
mod link;
mod log;
mod logger;
mod netlink;
mod oci;
mod ops;
mod reactor;
mod relay;
mod remote;
mod sandbox;
mod service;
mod shim;
mod signals;
mod stats;
mod stdio;
mod streams;
mod supervisor;
mod sys;
mod task;
mod tasks;
mod tender;
mod vm;
mod waits;
mod worker;

use arguments::{Action, Arguments};
use coracle_copy::inside;
use std::ffi::OsString;
use std::process::ExitCode;

const NAME: &str = "containerd-shim-coracle-v1";
const USAGE: &str = "usage: containerd-shim-coracle-v1 -id ID [-bundle DIR] [-debug] start|delete
  start    begin the supervisor of sandbox ID in DIR (default: the working directory) and print its address
  delete   clear up after a supervisor that died
  -info    print what containerd asks of a runtime handler
  -vm-probe JSON  print whether KVM runs the machine with this vmm, kernel and modules
  -v       print the version";

/// This program as a process of a container: the container's end of a copy.
fn copy(words: &[OsString]) -> ExitCode {
    match inside::run(words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("coracle: cp: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    coracle_runtime::hear_children();
    let words: Vec<_> = std::env::args_os().collect();
    if words.first().is_some_and(|name| name == inside::NAME) {
        return copy(&words[1..]);
    }
    if guest::is_init() {
        guest::run();
    }
    let done = Arguments::parse(words.into_iter().skip(1)).and_then(|arguments| match arguments.action {
        Action::Start => {
            // Containers begin as forks of this process, so its file must be out of their reach: see runtime's seal.rs.
            coracle_runtime::seal_self()?;
            daemon::start(arguments)
        }
        Action::Delete => cleanup::delete(&arguments),
        Action::Info => containerd::info::tell(),
        Action::VmProbe => vm::probe::tell(&arguments.question),
        Action::Version => {
            println!("{NAME}:\n  Version:  {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Help => {
            println!("{USAGE}");
            Ok(())
        }
        Action::None => anyhow::bail!("no action is given\n{USAGE}"),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
