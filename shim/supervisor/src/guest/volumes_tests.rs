//! Folders that come over the link: updates, hostile containers, removal.

use super::*;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

fn entry(path: &str, kind: Kind, content: &str) -> GuestEntry {
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let mode = if kind == Kind::Folder { 0o750 } else { 0o640 };
    GuestEntry { path: path.into(), kind: kind.into(), mode, uid, gid, content: content.into() }
}

fn whole(entries: Vec<GuestEntry>) -> GuestPutRequest {
    GuestPutRequest { volume: "config".into(), entries, whole: true, ..Default::default() }
}

fn fetched(bundle: &Path, path: &str, max_bytes: u64) -> Result<Vec<u8>, Failure> {
    fetch(bundle, &GuestFetchRequest { volume: "config".into(), path: path.into(), max_bytes })
}

#[test]
fn a_volume_swings_as_kubelet_has_it_and_loses_what_is_no_more() {
    let bundle = tempfile::tempdir().unwrap();
    let volume = |time: &str, text: &str| {
        whole(vec![
            entry("key", Kind::Link, "..data/key"),
            entry("..data", Kind::Link, time),
            entry("", Kind::Folder, ""),
            entry(time, Kind::Folder, ""),
            entry(&format!("{time}/key"), Kind::File, text),
        ])
    };
    let path = put(bundle.path(), &volume("..1", "one")).unwrap();
    assert_eq!(fs::read_to_string(path.join("key")).unwrap(), "one");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o750);
    assert_eq!(fs::metadata(path.join("..1/key")).unwrap().mode() & 0o777, 0o640);
    put(bundle.path(), &volume("..2", "two")).unwrap();
    assert_eq!(fs::read_to_string(path.join("key")).unwrap(), "two");
    assert!(!path.join("..1").exists() && !path.join(NEW_LINK).exists());
}

#[test]
fn a_file_is_written_in_place_and_a_volume_may_come_in_parts() {
    let bundle = tempfile::tempdir().unwrap();
    let path =
        put(bundle.path(), &whole(vec![entry("hosts", Kind::File, "longer text"), entry("old", Kind::File, "")]))
            .unwrap();
    let inode = fs::metadata(path.join("hosts")).unwrap().ino();
    let part = GuestPutRequest { whole: false, ..whole(vec![entry("a/b/hosts", Kind::File, "deep")]) };
    put(bundle.path(), &part).unwrap();
    assert!(path.join("old").exists(), "nothing goes before the last part");
    let last = GuestPutRequest { kept: vec!["a/b/hosts".into()], ..whole(vec![entry("hosts", Kind::File, "short")]) };
    put(bundle.path(), &last).unwrap();
    assert_eq!(fs::read_to_string(path.join("hosts")).unwrap(), "short");
    assert_eq!(fs::metadata(path.join("hosts")).unwrap().ino(), inode);
    assert_eq!(fs::read_to_string(path.join("a/b/hosts")).unwrap(), "deep");
    assert!(!path.join("old").exists());
}

#[test]
fn what_a_container_put_in_the_way_leads_nowhere() {
    let bundle = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    fs::set_permissions(outside.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let path = put(bundle.path(), &whole(vec![])).unwrap();
    symlink(outside.path(), path.join("folder")).unwrap();
    symlink(outside.path().join("victim"), path.join("file")).unwrap();
    nix::unistd::mkfifo(&path.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::create_dir_all(path.join("link/full")).unwrap();
    assert!(fetched(bundle.path(), "file", 100).is_err());
    assert!(fetched(bundle.path(), "folder/victim", 100).is_err());
    assert!(fetched(bundle.path(), "pipe", 100).is_err());
    let entries = vec![
        entry("folder/victim", Kind::File, "ours"),
        entry("file", Kind::File, "ours"),
        entry("pipe", Kind::File, "ours"),
        entry("link", Kind::Link, "file"),
    ];
    put(bundle.path(), &whole(entries)).unwrap();
    for name in ["folder/victim", "file", "pipe", "link"] {
        assert_eq!(fs::read_to_string(path.join(name)).unwrap(), "ours", "{name}");
    }
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(fs::metadata(outside.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_volume_in_memory_is_mounted_once_and_has_its_size() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not root: nothing can be mounted");
    }
    // The thread's own, with what is mounted in it.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let bundle = tempfile::tempdir().unwrap();
    let memory = GuestMemory { size_bytes: 1 << 20, no_exec: true, ..Default::default() };
    let entries = vec![entry("", Kind::Folder, "")];
    let request =
        GuestPutRequest { volume: "config".into(), entries, memory: Some(memory), ..GuestPutRequest::default() };
    let path = put(bundle.path(), &request).unwrap();
    fs::write(path.join("kept"), "content").unwrap();
    assert_eq!(put(bundle.path(), &request).unwrap(), path);
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "content");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o750);
    let full = fs::write(path.join("big"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let flags = statvfs(&path).unwrap().flags();
    assert!(flags.contains(FsFlags::ST_NOEXEC) && !flags.contains(FsFlags::ST_NOSUID), "{flags:?}");
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn the_end_of_a_file_is_fetched() {
    let bundle = tempfile::tempdir().unwrap();
    put(bundle.path(), &whole(vec![entry("log", Kind::File, "the last words")])).unwrap();
    assert_eq!(fetched(bundle.path(), "log", 5).unwrap(), b"words");
    assert_eq!(fetched(bundle.path(), "log", u64::MAX).unwrap(), b"the last words");
    assert_eq!(fetched(bundle.path(), "none", 5).unwrap_err().code, Code::NotFound);
}

#[test]
fn paths_and_names_are_refused_before_anything_is_made() {
    let bundle = tempfile::tempdir().unwrap();
    for path in ["..", "a/../b", "/etc", "a//b", "a/", ".", "a\0b"] {
        let refused = put(bundle.path(), &whole(vec![entry(path, Kind::File, "")])).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "{path:?}");
        assert_eq!(fetched(bundle.path(), path, 1).unwrap_err().code, Code::InvalidArgument, "{path:?}");
    }
    for volume in ["", "..", "a/b", ".hidden", "a b"] {
        let request = GuestPutRequest { volume: volume.into(), ..whole(vec![]) };
        assert_eq!(put(bundle.path(), &request).unwrap_err().code, Code::InvalidArgument, "{volume:?}");
    }
}
