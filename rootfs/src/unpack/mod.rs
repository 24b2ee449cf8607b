//! One layer: from a compressed stream of bytes to a directory, in one pass, on one thread.
//!
//! ```text
//! stream.rs  blob -> digest -> inflate -> diff id      the bytes of the archive
//! tar.rs     headers and extended headers -> Entry     what each entry is
//! tree.rs    Entry -> files beneath a directory        where it may go, and the calls that put it there
//! record.rs  all that is not a file's content          so that the same archive can be made again
//! ```
//!
//! [`unpack`] fills an empty directory with `fs/` (the tree in overlay's form), `record.zst`, and `shadowed/` if an entry
//! replaced another one's content. It knows nothing of the store: its caller makes the directory, commits it by
//! rename, or removes it with everything in it when unpacking failed.
//!
//! ## What may be in a layer
//! Everything is hostile until it is shown to be harmless. No path is ever resolved by the kernel over more than one
//! component: the tree is walked by directory descriptors, each opened without following links. So nothing outside of
//! `fs/` can be named, whatever the archive says:
//! - a path with a `..` is refused; an absolute path counts from the layer's root, as everyone's tools do;
//! - a symbolic link of the same layer that stands where a directory is needed is followed *within the layer's
//!   root* (containerd and docker do so, and images depend on it); one of another layer is unknown here, and a
//!   directory takes its place in the merged view;
//! - a hard link must name an earlier entry of the same layer, since layers are unpacked apart and in parallel;
//! - a later entry replaces an earlier one; directories merge;
//! - `trusted.overlay.*` and `user.overlay.*` attributes are overlay's own language and refused;
//! - sizes, counts and ratios are bounded by [`Limits`], free space is looked at before a large file is begun.
//!
//! ## Overlay's form
//! A whiteout `.wh.NAME` becomes a character device 0:0 called NAME, `.wh..wh..opq` becomes `trusted.overlay.opaque=y`
//! on its directory. They hide what lower layers have and never what their own layer has, in whichever order the
//! entries come. (`user.overlay.*` would serve mounts in a user namespace; nothing here needs them yet.)
//!
//! ## Directories without an entry
//! A layer may have `usr/bin/x` and no entry for `usr`. The directory that is then made has no attributes of its own
//! (root's, 0755, time 0), and its path is told in [`Unpacked::implicit`]: what the image's user must see there is what a
//! lower layer says, see `overlay`.

pub mod model;
pub mod record;
pub mod stream;
pub mod tar;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::source::Descriptor;
use stream::{Blob, Plain};
use tree::Tree;

/// The tree's name in the layer's directory.
pub const TREE: &str = "fs";

/// How much a layer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of a layer's archive.
    pub layer_bytes: u64,
    /// The entries of a layer.
    pub entries: u64,
    /// How many times larger than its blob an archive may be; beneath 256 MiB it may be anything.
    pub ratio: u64,
    /// The free space, in bytes, that is left to others: unpacking stops before it gets smaller.
    pub reserve: u64,
}

impl Default for Limits {
    /// Ten times what the largest public images have, and what a host can still bear.
    fn default() -> Limits {
        Limits { layer_bytes: 256 << 30, entries: 4_000_000, ratio: 4000, reserve: 16 << 20 }
    }
}

/// What unpacking a layer brought to light.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// The bytes of the archive.
    pub archive_size: u64,
    /// The bytes of all files' contents.
    pub content_size: u64,
    /// How many entries it had.
    pub entries: u64,
    /// Directories that were made without an entry, by path; the empty path is the layer's root.
    pub implicit: Vec<Vec<u8>>,
    /// The layer hides all lower ones.
    pub opaque_root: bool,
}

/// Unpacks a blob into an empty directory. `on_bytes` is told of compressed bytes as they arrive.
///
/// It runs on a thread of its own, because that thread's umask and working directory are taken from the process.
pub fn unpack<'a>(
    input: Box<dyn Read + Send + 'a>,
    blob: &Descriptor,
    diff_id: &Digest,
    layer: impl AsFd + Sync,
    limits: &Limits,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<Unpacked> {
    let work = || unpack_here(input, blob, diff_id, &layer, limits, on_bytes);
    let run = || std::thread::scope(|scope| scope.spawn(work).join());
    run().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn unpack_here(
    input: Box<dyn Read + Send + '_>,
    blob: &Descriptor,
    diff_id: &Digest,
    layer: impl AsFd,
    limits: &Limits,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<Unpacked> {
    crate::sys::private_umask().map_err(|err| Error::io("set the umask of a thread", err))?;
    let record = create(&layer, record::FILE)?;
    mkdirat(&layer, TREE, Mode::from_bits_retain(0o755)).map_err(|err| Error::io("create fs", err.into()))?;
    let mut record = record::Writer::new(record)?;
    let input: Box<dyn Read + '_> = input;
    let plain = Plain::new(Blob::new(input, blob, &on_bytes), diff_id, limits)?;
    let mut parser = tar::Parser::new(plain);
    let mut tree = Tree::new(&layer, *limits)?;
    while let Some(entry) = parser.next_entry()? {
        tree.apply(entry, &mut parser, &mut record)?;
    }
    record.raw(&mut parser.raw)?;
    let archive_size = parser.into_inner().finish(diff_id)?;
    record.finish()?;
    let mut unpacked = tree.finish()?;
    unpacked.archive_size = archive_size;
    Ok(unpacked)
}

fn create(layer: impl AsFd, name: &str) -> Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(layer, name, flags, Mode::from_bits_retain(0o600));
    file.map(File::from).map_err(|err| Error::io(format!("create {name}"), err.into()))
}
