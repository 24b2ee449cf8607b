//! The running program out of the container's reach.
//!
//! Until it execs, a container's process is this program, and a hostile image can make it exec itself again
//! (`#!/proc/self/exe`): /proc/PID/exe then leads the container to the host's file, which its root could overwrite once
//! nobody runs it (the class of CVE-2019-5736). So the program runs from a detached read-only mount of its own file: the
//! same pages, nothing copied, and opening it for writing fails with EROFS whatever the rights. Where mounts are not
//! allowed, a sealed copy in memory does the same.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::MFdFlags;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Context, Result};
use crate::{mounts, sys};

const EXE: &str = "/proc/self/exe";

/// Makes sure that this program runs from where it cannot be written: execs itself once if it does not.
/// To be called first of all, by a single-threaded program.
pub fn seal_self() -> Result<()> {
    let exe = File::open(EXE).op(|| "open /proc/self/exe")?;
    if is_sealed(&exe).op(|| "look at /proc/self/exe")? {
        return Ok(());
    }
    let program = match read_only_mount() {
        Ok(tree) => tree,
        Err(_) => sealed_copy(exe).op(|| "copy this program to sealed memory")?,
    };
    let words = |word: std::ffi::OsString| CString::new(word.into_vec()).unwrap_or_default();
    let args: Vec<CString> = std::env::args_os().map(words).collect();
    let env: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            words(name)
        })
        .collect();
    Err(sys::exec_fd(&program, &args, &env)).op(|| "exec this program again from a read-only place")
}

fn is_sealed(exe: &File) -> io::Result<bool> {
    // A read-only mount of the host's may become writable one day, and a container may have kept a descriptor till then.
    // The root of a detached mount, which ours is, has no other name.
    if fstatvfs(exe)?.flags().contains(FsFlags::ST_RDONLY) && std::fs::read_link(EXE)? == Path::new("/") {
        return Ok(true);
    }
    // A file that is no memfd has no seals, and says EINVAL.
    let seals = fcntl(exe, FcntlArg::F_GET_SEALS).unwrap_or(0);
    Ok(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE))
}

fn read_only_mount() -> io::Result<OwnedFd> {
    let tree = sys::clone_tree(sys::CWD, c"/proc/self/exe", false)?;
    mounts::read_only(&tree, false)?;
    Ok(tree)
}

fn sealed_copy(mut exe: File) -> io::Result<OwnedFd> {
    let mut copy = File::from(sys::memory_file(c"coracle", MFdFlags::MFD_ALLOW_SEALING)?);
    exe.seek(SeekFrom::Start(0))?;
    io::copy(&mut exe, &mut copy)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_counts_as_sealed_and_this_program_does_not() {
        let exe = File::open(EXE).unwrap();
        assert!(!is_sealed(&exe).unwrap());
        let copy = File::from(sealed_copy(exe).unwrap());
        assert!(is_sealed(&copy).unwrap());
        assert!(nix::unistd::write(&copy, b"x").is_err());
    }
}
