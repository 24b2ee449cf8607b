//! Runs a program, and all it starts, under a filter of system calls: `faulty missing CALL,... PROGRAM [ARG]...` answers
//! these calls with ENOSYS, as a kernel does that is older than they are, or a sandbox; with `traced` in place of `missing`
//! they stop for the tracer (see `fault`), and are answered with ENOSYS where there is none.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use coracle_tests::sys;
use syscalls::Sysno;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let mut next = || args.next().context("usage: faulty missing|traced CALL,... PROGRAM [ARG]...");
    let (how, calls, program) = (next()?, next()?, next()?);
    let action = match how.to_str() {
        Some("missing") => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        Some("traced") => libc::SECCOMP_RET_TRACE,
        _ => bail!("{}: neither missing nor traced", how.display()),
    };
    let number = |name: &str| match Sysno::from_str(name) {
        Ok(call) => Ok(call.id() as u32),
        Err(()) => bail!("no system call {name:?}"),
    };
    let calls = calls.to_string_lossy().split(',').map(number).collect::<Result<Vec<_>>>()?;
    sys::filter(&calls, action).context("install the filter")?;
    Err(Command::new(&program).args(args.collect::<Vec<OsString>>()).exec())
        .with_context(|| format!("exec {}", program.display()))
}
