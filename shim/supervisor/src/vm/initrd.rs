//! The guest's initial file system: the kernel's modules, if it has any, and this very program as `/init`.
//!
//! Both are archives of cpio in its form "newc", one behind the other, which the kernel unpacks in turn. The second is
//! written here: the two devices that matter first, since the kernel opens /dev/console before init can mount /dev, and
//! the program. Of that only what is loaded is taken: symbols for a debugger would fill the guest's memory. So a guest
//! always has the supervisor that it talks to.
//!
//! One file serves all guests of the same program and modules; it is named by their digest, appears whole, and is read
//! again each time that it is made, so that a damaged one is written anew. Those of earlier programs are taken away then:
//! a machine has read its own when it has booted.

use crate::failure::{Fail, Failure};
use coracle_proto::ttrpc::Code;
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// This program.
const PROGRAM: &str = "/proc/self/exe";
/// No archive of a guest's modules is bigger.
const MAX_MODULES: u64 = 256 << 20;
/// What the files are called, before their digest.
const PREFIX: &str = "initrd-";
/// One that is younger may still be wanted by a machine that is about to boot.
const MIN_AGE: Duration = Duration::from_secs(600);
/// Archives begin at multiples of this, as everything in them.
const ALIGNMENT: usize = 4;
/// Bytes of the digest in the file's name, twice as many characters.
const NAME_BYTES: usize = 16;
/// The first name of an entry that is none: the archive's end.
const TRAILER: &str = "TRAILER!!!";

/// The initial file system with these modules (an archive of cpio; an empty path for none), kept in `folder`. Its path.
pub fn make(modules: &Path, folder: &Path) -> Result<PathBuf, Failure> {
    let told = |what: String| move |error: io::Error| Code::Unknown.failure(format!("vm: {what}: {error}"));
    let mut archive = Vec::new();
    if !modules.as_os_str().is_empty() {
        archive = read(modules).map_err(told(format!("read the kernel's modules {}", modules.display())))?;
    }
    let program = fs::read(PROGRAM).map_err(told("read this program".to_owned()))?;
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    let program = loaded(&program).map_err(told("a guest's init is this program".to_owned()))?;
    archive.extend(own_archive(program));
    let digest = Sha256::digest(&archive);
    let name: String = digest[..NAME_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("{PREFIX}{name}"));
    keep(&path, &archive).map_err(told(format!("write {}", path.display())))?;
    Ok(path)
}

/// Takes away what earlier programs had made in this folder, but what is young, and links to what is gone.
pub fn prune(folder: &Path, but: &Path) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let old = meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= MIN_AGE));
        let dangling = meta.is_symlink() && !path.exists();
        if named && path != but && (dangling || meta.is_file() && old) {
            // What stays costs memory and nothing else; the next one tries again.
            let _ = fs::remove_file(&path);
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(MAX_MODULES + 1).read_to_end(&mut bytes)? as u64;
    match read > MAX_MODULES {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_MODULES} bytes"))),
        false => Ok(bytes),
    }
}

/// Has a file with this content, whole or not at all.
fn keep(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let new = path.with_extension(std::process::id().to_string());
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        // The monitor's own user reads it.
        file.set_permissions(Permissions::from_mode(0o644))
    });
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// A 64-bit ELF program up to the end of what the kernel loads of it.
fn loaded(program: &[u8]) -> io::Result<&[u8]> {
    const LOAD: u64 = 1;
    const INTERPRETER: u64 = 3;
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "this program is no 64-bit ELF file");
    let number = |at: u64, size: usize| -> Option<u64> {
        let bytes = program.get(usize::try_from(at).ok()?..)?.get(..size)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return Err(strange());
    }
    let field = |at, size| number(at, size).ok_or_else(strange);
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let mut end = table.saturating_add(size * count);
    for header in (0..count).map(|index| table.saturating_add(index * size)) {
        match field(header, 4)? {
            INTERPRETER => {
                let text = "this program wants libraries, which a guest does not have: the static one of scripts/build is needed";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            LOAD => end = end.max(field(header + 8, 8)?.saturating_add(field(header + 32, 8)?)),
            _ => {}
        }
    }
    program.get(..usize::try_from(end).map_err(|_| strange())?).ok_or_else(strange)
}

/// The second archive.
fn own_archive(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(program.len() + 1024);
    add(&mut archive, "dev", 0o040755, (0, 0), b"");
    add(&mut archive, "dev/console", 0o020600, (5, 1), b"");
    // What a program without open files opens instead of them, before its first own instruction.
    add(&mut archive, "dev/null", 0o020666, (1, 3), b"");
    add(&mut archive, "init", 0o100755, (0, 0), program);
    add(&mut archive, TRAILER, 0, (0, 0), b"");
    archive
}

/// An entry: thirteen numbers of eight hexadecimal digits, the name, the content; both padded.
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let (name_size, size) = (name.len() as u32 + 1, content.len() as u32);
    archive.extend_from_slice(b"070701");
    // inode, mode, user, group, links, time, size, the file system's device, the node's device, name, check sum
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A program with one segment, and symbols behind it.
    fn program(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 200];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[32], bytes[54], bytes[56]) = (64, 56, 1);
        (bytes[64], bytes[64 + 8], bytes[64 + 32]) = (kind, 120, 30);
        bytes
    }

    #[test]
    fn what_earlier_programs_had_goes_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let old = std::time::SystemTime::now() - MIN_AGE;
        for (name, aged) in [("initrd-a", true), ("initrd-b", false), ("initrd-c", true), ("kvm-x.json", true)] {
            let file = File::create(path(name)).unwrap();
            if aged {
                file.set_modified(old).unwrap();
            }
        }
        std::os::unix::fs::symlink(path("initrd-a"), path("initrd-of-1")).unwrap();
        std::os::unix::fs::symlink(path("initrd-c"), path("initrd-of-3")).unwrap();
        prune(dir.path(), &path("initrd-c"));
        prune(dir.path(), &path("initrd-c"));
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["initrd-b", "initrd-c", "initrd-of-3", "kvm-x.json"]);
    }

    #[test]
    fn a_program_is_what_is_loaded_of_it_and_static() {
        assert_eq!(loaded(&program(1)).unwrap().len(), 150);
        assert!(loaded(&program(3)).unwrap_err().to_string().contains("libraries"));
        assert!(loaded(&program(1)[..140]).is_err(), "cut off");
        assert!(loaded(&program(1)[..70]).is_err(), "cut off");
        assert!(loaded(b"#!/bin/sh").is_err());
    }

    #[test]
    fn the_archive_is_a_cpio() {
        let archive = own_archive(b"the program");
        assert_eq!(archive.len() % ALIGNMENT, 0);
        let Ok(mut cpio) =
            Command::new("cpio").args(["-it", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            return;
        };
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert!(listed.status.success());
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "dev\ndev/console\ndev/null\ninit\n");
    }

    #[test]
    fn a_kept_file_is_written_anew_if_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initrd-x");
        keep(&path, b"content").unwrap();
        fs::write(&path, b"garbage").unwrap();
        keep(&path, b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
