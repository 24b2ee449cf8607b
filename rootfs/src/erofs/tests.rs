//! An image's EROFS shows what the image's overlay shows.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;
use crate::gc::GcOptions;
use crate::reference::Reference;
use crate::testing::{Tar, TestStore};

/// Mounts the file, looks at it, unmounts.
fn mounted<T>(test: &TestStore, file: &Path, look: impl FnOnce(&Path) -> T) -> T {
    let target = tempfile::tempdir_in(test.directory.path()).unwrap();
    let mut mount = Command::new("mount");
    let run = mount.args(["-t", "erofs", "-o", "ro"]).args([file, target.path()]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let seen = look(target.path());
    assert!(Command::new("umount").arg(target.path()).status().unwrap().success());
    seen
}

type Shown = (u32, u32, u32, i64, i64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// Everything that there is to see of a tree.
fn tree(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let mut all = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        let meta = fs::symlink_metadata(&place).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&place).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&place).unwrap().into_os_string().into_encoded_bytes(),
            kind if kind.is_char_device() => format!("{}", meta.rdev()).into_bytes(),
            _ => Vec::new(),
        };
        if meta.is_dir() {
            let names = fs::read_dir(&place).unwrap().map(|entry| path.join(entry.unwrap().file_name()));
            pending.extend(names);
        }
        let parent = File::open(place.parent().unwrap()).unwrap();
        let mut xattrs = sys::xattrs_at(&parent, place.file_name().unwrap().as_encoded_bytes()).unwrap();
        xattrs.retain(|(name, _)| !sys::is_overlays(name));
        let shown = (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), content, xattrs);
        all.insert(path, shown);
    }
    all
}

fn layers() -> [Vec<u8>; 2] {
    let lower = Tar::new().dir(".", 0o711).dir("etc", 0o750).file("etc/passwd", b"root").file("etc/gone", b"x");
    let lower = lower.dir("hidden", 0o755).file("hidden/old", b"o");
    let lower = lower.entry("owned", b'0', b"mine", |header| {
        header.set_uid(1234);
        header.set_gid(70_000);
        header.set_mode(0o4751);
    });
    let lower = lower.link("same", b'1', "owned").link("link", b'2', "etc/passwd");
    let lower = lower.entry("null", b'3', b"", |header| {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    });
    let lower =
        lower.pax(&[("SCHILY.xattr.user.note", b"said"), ("mtime", b"1500000000.123456789")]).file("noted", b"n");
    let big: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let upper = Tar::new().file("etc/new", b"n").file("etc/.wh.gone", b"").file("hidden/.wh..wh..opq", b"");
    let upper = upper.file("hidden/new", b"h").file("big", &big);
    [lower.end(), upper.end()]
}

#[test]
fn it_shows_what_a_container_on_the_host_sees() {
    let test = TestStore::new();
    let image = test.load(&layers()).unwrap();
    let file = test.store.erofs(&image).unwrap();
    let overlay = tempfile::tempdir_in(test.directory.path()).unwrap();
    let mount = test.store.snapshot(&image, overlay.path()).unwrap().remove(0);
    let merged = overlay.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let options = mount.options.join(",");
    let run = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).status();
    assert!(run.unwrap().success());
    let wanted = tree(&merged);
    assert!(Command::new("umount").arg(&merged).status().unwrap().success());
    assert!(wanted.contains_key(Path::new("noted")) && !wanted.contains_key(Path::new("hidden/old")));
    mounted(&test, &file, |root| {
        for (path, shown) in tree(root) {
            assert_eq!(Some(&shown), wanted.get(&path), "{}", path.display());
        }
        assert_eq!(tree(root).len(), wanted.len());
        let [owned, same] = ["owned", "same"].map(|name| fs::metadata(root.join(name)).unwrap());
        assert_eq!((owned.ino(), owned.nlink()), (same.ino(), 2));
    });
}

#[test]
fn it_is_made_once_and_a_damaged_one_alone_is_made_again() {
    let test = TestStore::new();
    let image = test.load(&layers()).unwrap();
    let file = test.store.erofs(&image).unwrap();
    let inode = || fs::metadata(&file).unwrap().ino();
    let first = inode();
    assert_eq!((test.store.erofs(&image).unwrap(), inode()), (file.clone(), first));
    assert_eq!(test.store.verify().unwrap(), []);
    // Cut off: noticed at the next use.
    File::options().write(true).open(&file).unwrap().set_len(5000).unwrap();
    assert_eq!(test.store.erofs(&image).unwrap(), file);
    assert_ne!(inode(), first);
    // Changed in the middle: noticed by who verifies.
    let written = File::options().write(true).open(&file).unwrap();
    written.write_all_at(b"bits", 4096).unwrap();
    let damages = test.store.verify().unwrap();
    assert_eq!(damages.len(), 1);
    assert!(
        damages[0].why.starts_with("what virtual machines have of it its content is sha256:"),
        "{}",
        damages[0].why
    );
    test.store.discard_damaged(&Reference::parse("example.com/test:1").unwrap()).unwrap();
    assert!(!file.exists());
    test.store.erofs(&image).unwrap();
    assert_eq!(test.store.verify().unwrap(), []);
}

#[test]
fn it_is_counted_and_goes_with_the_image_and_its_leases() {
    let test = TestStore::new();
    let image = test.load(&layers()).unwrap();
    let before = test.store.usage(&mut Default::default()).unwrap();
    let file = test.store.erofs(&image).unwrap();
    let after = test.store.usage(&mut Default::default()).unwrap();
    assert!(after.bytes > before.bytes + 800_000, "{after:?}");
    test.store.lease("c1", &image).unwrap();
    test.store.remove("example.com/test:1", true).unwrap();
    assert_eq!(test.store.gc(&GcOptions::default()).unwrap().erofs, Vec::<PathBuf>::new());
    test.store.drop_lease("c1").unwrap();
    let report = test.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.erofs, [file.parent().unwrap()]);
    assert!(!file.exists() && report.bytes > 800_000);
    assert_eq!(fs::read_dir(test.store.path(DIRECTORY)).unwrap().count(), 0);
}

#[test]
fn two_hundred_layers_become_one_file() {
    let test = TestStore::new();
    let layer = |n: u32| Tar::new().file(&format!("f{n}"), b"").file("last", n.to_string().as_bytes()).end();
    let image = test.load(&(0..200).map(layer).collect::<Vec<_>>()).unwrap();
    let file = test.store.erofs(&image).unwrap();
    mounted(&test, &file, |root| {
        assert_eq!(fs::read(root.join("last")).unwrap(), b"199");
        assert_eq!(fs::read_dir(root).unwrap().count(), 201);
    });
    let nothing = test.load(&[]).unwrap();
    let file = test.store.erofs(&nothing).unwrap();
    mounted(&test, &file, |root| assert_eq!(fs::read_dir(root).unwrap().count(), 0));
}
