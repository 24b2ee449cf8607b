//! Copies of a guest's memory: most of it was never touched, and is a hole.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Read at once, and then looked through for zeros by pages.
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;

/// Copies what is in a file to the same places of another, in which there are zeros: holes and pages of zeros are left
/// out.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Some(start) = seek(from, at, Whence::SeekData)? {
        let end = seek(from, start, Whence::SeekHole)?.unwrap_or(start);
        at = start;
        while at < end {
            let wanted = CHUNK.min((end - at) as usize);
            let count = from.read_at(&mut chunk[..wanted], at as u64)?;
            if count == 0 {
                return Ok(());
            }
            write_pages(to, &chunk[..count], at as u64)?;
            at += count as i64;
        }
    }
    Ok(())
}

/// Pages next to each other go together.
fn write_pages(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut first = None;
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        let start = number * PAGE;
        let zeros = page.iter().all(|byte| *byte == 0);
        match first {
            None if !zeros => first = Some(start),
            Some(begin) if zeros => {
                to.write_all_at(&bytes[begin..start], at + begin as u64)?;
                first = None;
            }
            _ => {}
        }
    }
    match first {
        Some(begin) => to.write_all_at(&bytes[begin..], at + begin as u64),
        None => Ok(()),
    }
}

/// The next place from there on; `None` after the last.
fn seek(file: &File, from: i64, whence: Whence) -> io::Result<Option<i64>> {
    match lseek(file, from, whence) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_has_the_holes() {
        use std::os::unix::fs::MetadataExt;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let size = 16 << 20;
        from.set_len(size).unwrap();
        to.set_len(size).unwrap();
        for (at, bytes) in [(0, vec![1u8; 10]), (5 << 20, vec![2; 3 * CHUNK / 2]), (size - 7, vec![3; 7])] {
            from.write_all_at(&bytes, at).unwrap();
        }
        from.write_all_at(&vec![0; 2 * CHUNK], 10 << 20).unwrap();
        copy(&from, &to).unwrap();
        let content = |file: &File| {
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(content(&from) == content(&to));
        assert!(to.metadata().unwrap().blocks() * 512 < 3 << 20, "zeros are holes");
        copy(&tempfile::tempfile().unwrap(), &to).unwrap();
    }
}
