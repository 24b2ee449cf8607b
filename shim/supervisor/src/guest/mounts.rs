//! Disks that are plugged into the running machine: found by their serial numbers, mounted below the bundle.
//!
//! The kernel takes a moment to see a new disk; its node in /dev comes after its folder in /sys, and can be opened after
//! that: all is waited for.
//! The folder that the host shares has a tag where a disk has its number, and is there from the beginning.
//! What is mounted already stays so: a request that is made again has the same answer.

use crate::failure::{Fail, Failure};
use coracle_proto::ttrpc::Code;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Below the bundle.
const FOLDER: &str = "disks";
/// The filesystem of the folder that the host shares.
const SHARED: &str = "virtiofs";
/// The kernel's list of disks.
const BLOCK: &str = "/sys/block";
/// A disk has a serial number of so many characters at most: what QEMU's SCSI disks tell.
const MAX_SERIAL: usize = 20;
/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Mounts the disk of this serial number; where.
pub fn attach(bundle: &Path, serial: &str, filesystem: &str) -> Result<PathBuf, Failure> {
    let flags = match filesystem {
        "erofs" => MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
        "ext4" | SHARED => MsFlags::MS_NODEV,
        other => {
            return Err(Code::InvalidArgument.failure(format!("mount disk {serial}: unknown file system {other:?}")));
        }
    };
    let place = place(bundle, serial)?;
    let failed = |what: &str, error: io::Error| Code::Unknown.failure(format!("{what}: {error}"));
    fs::create_dir_all(&place).map_err(|error| failed(&format!("make {}", place.display()), error))?;
    if is_mounted(&place).map_err(|error| failed(&format!("look at {}", place.display()), error))? {
        return Ok(place);
    }
    let device = if filesystem == SHARED { PathBuf::from(serial) } else { wait_for(serial)? };
    let end = Instant::now() + PATIENCE;
    loop {
        match mount(Some(&device), &place, Some(filesystem), flags, None::<&str>) {
            Ok(()) => return Ok(place),
            // Its node is there before it can be opened.
            Err(nix::Error::ENXIO | nix::Error::ENOENT) if Instant::now() < end => sleep(PAUSE),
            Err(error) => {
                let what = format!("mount {serial} ({}) as {filesystem} on {}", device.display(), place.display());
                return Err(failed(&what, error.into()));
            }
        }
    }
}

/// Takes its mount away. What is not mounted needs nothing.
pub fn detach(bundle: &Path, serial: &str) -> Result<(), Failure> {
    let place = place(bundle, serial)?;
    match umount2(&place, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => {
            let code = if error == nix::Error::EBUSY { Code::FailedPrecondition } else { Code::Unknown };
            return Err(code.failure(format!("unmount {}: {error}", place.display())));
        }
    }
    let _ = fs::remove_dir(&place);
    Ok(())
}

fn place(bundle: &Path, serial: &str) -> Result<PathBuf, Failure> {
    let known = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    match (1..=MAX_SERIAL).contains(&serial.len()) && serial.bytes().all(known) {
        true => Ok(bundle.join(FOLDER).join(serial)),
        false => Err(Code::InvalidArgument.failure(format!("disk {serial:?}: not a serial number"))),
    }
}

/// Whether something is mounted there.
pub fn is_mounted(place: &Path) -> io::Result<bool> {
    let parent = place.parent().unwrap_or(place);
    Ok(fs::symlink_metadata(place)?.dev() != fs::metadata(parent)?.dev())
}

fn wait_for(serial: &str) -> Result<PathBuf, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(name) = find(Path::new(BLOCK), serial) {
            let node = Path::new("/dev").join(name);
            if node.exists() {
                return Ok(node);
            }
        }
        if Instant::now() >= end {
            let text = format!("disk {serial}: it did not appear within {} s", PATIENCE.as_secs());
            return Err(Code::NotFound.failure(text));
        }
        sleep(PAUSE);
    }
}

/// The name of the disk with this serial number.
fn find(block: &Path, serial: &str) -> Option<String> {
    fs::read_dir(block).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let page = fs::read(entry.path().join("device/vpd_pg80")).ok()?;
        (serial_of(&page)? == serial).then_some(name)
    })
}

/// What the SCSI page for it tells: two bytes of kinds, the length, and the number, which may be padded.
fn serial_of(page: &[u8]) -> Option<&str> {
    let (head, rest) = page.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    std::str::from_utf8(rest.get(..length)?).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let block = tempfile::tempdir().unwrap();
        for (name, page) in [("sda", &b"\0\x80\0\x04img1"[..]), ("sdb", b"\0\x80\0\x06img2  "), ("sdc", b"\0\x80\xff")]
        {
            let device = block.path().join(name).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vpd_pg80"), page).unwrap();
        }
        fs::create_dir_all(block.path().join("vda")).unwrap();
        assert_eq!(find(block.path(), "img2").as_deref(), Some("sdb"));
        assert_eq!(find(block.path(), "img3"), None);
        assert_eq!(serial_of(b"\0\x80\0\x09img1"), None, "shorter than it says");
    }

    #[test]
    fn a_serial_number_is_no_path() {
        for serial in ["", "..", "a/b", "a b", "123456789012345678901"] {
            let refused = attach(Path::new("/nowhere"), serial, "erofs").unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument, "{serial}");
        }
        assert!(attach(Path::new("/nowhere"), "a", "vfat").unwrap_err().message.contains("vfat"));
    }

    #[test]
    fn what_is_not_mounted_is_unmounted() {
        let bundle = tempfile::tempdir().unwrap();
        detach(bundle.path(), "a").unwrap();
        fs::create_dir_all(bundle.path().join("disks/b")).unwrap();
        detach(bundle.path(), "b").unwrap();
        assert!(!bundle.path().join("disks/b").exists());
    }
}
