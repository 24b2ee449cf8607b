//! Files as a tar stream, from and to where they may be hostile: the two ends of `coracle cp`.
//!
//! One end is on the machine, the other a process that has the container's rights alone and resolves every path from the
//! container's own root, so no link can lead it to the machine's files: a helper that has entered the container's mount
//! namespace (`shim/server/src/copy`), or, in a virtual machine, a process of the container ([`inside`]). What that end
//! cannot be tricked into:
//!
//! - Device nodes. A container may make one that its device cgroup forbids it to open, and nothing forbids a helper: a
//!   file is opened without access (`O_PATH`), looked at, and only a regular one is opened for reading, by that
//!   descriptor. A file is written under a new name and renamed over the old one: what stood there is never opened.
//! - Pipes and sockets are told and left out, so nothing waits for ever.
//!
//! On the machine's side the stream is hostile data (in a virtual machine the packer is the guest's, too): it gets the name
//! of what was asked for and makes nothing beside that; a name is placed component by component beneath the folder named
//! on the command line, no link is followed, none is made that could lead out of what is copied, no file gets the
//! set-user-id or set-group-id bit, and of tar's many ways to say something only the packer's own are understood.

pub mod inside;
mod pack;
mod unpack;

pub use pack::{pack, packed_name};
pub use unpack::{Side, Stream, unpack};

use std::path::Path;

use anyhow::Result;

/// Whether the other side of the stream has gone, which it tells itself.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(broken)
}

/// Told on standard error: something was left out, and the rest goes on. A container chose the name: it is quoted.
fn left_out(path: &Path, why: &str) -> Result<()> {
    eprintln!("coracle: cp: {path:?} is left out: {why}");
    Ok(())
}
