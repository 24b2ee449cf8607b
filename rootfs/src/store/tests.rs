//! The store as a whole, over images made by hand.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::gc::GcOptions;
use crate::testing::{Tar, TestStore};

/// Mounts a snapshot, runs a look at it, unmounts.
fn mounted<T>(test: &TestStore, image: &crate::Image, look: impl FnOnce(&std::path::Path) -> T) -> T {
    let place = tempfile::tempdir_in(test.directory.path()).unwrap();
    let mount = test.store.snapshot(image, place.path()).unwrap().remove(0);
    let target = place.path().join("merged");
    fs::create_dir(&target).unwrap();
    let options = mount.options.join(",");
    let run = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&target).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let seen = look(&target);
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    seen
}

#[test]
fn an_image_is_loaded_mounted_removed_and_collected() {
    let test = TestStore::new();
    let lower = Tar::new().dir("etc", 0o750).file("etc/passwd", b"root").file("etc/gone", b"x").end();
    let upper = Tar::new().file("etc/new", b"n").file("etc/.wh.gone", b"").end();
    let image = test.load(&[lower.clone(), upper.clone()]).unwrap();
    assert_eq!(image.names, ["example.com/test:1"]);
    assert_eq!(test.store.image("example.com/test:1").unwrap().unwrap().id, image.id);
    assert_eq!(test.store.image(image.id.short()).unwrap().unwrap().id, image.id);
    mounted(&test, &image, |root| {
        assert_eq!(fs::read(root.join("etc/passwd")).unwrap(), b"root");
        assert_eq!(fs::read(root.join("etc/new")).unwrap(), b"n");
        assert!(!root.join("etc/gone").exists());
        // `etc` has no entry in the upper layer, and must look as the lower one says.
        assert_eq!(fs::metadata(root.join("etc")).unwrap().mode() & 0o7777, 0o750);
        assert_eq!(fs::metadata(root.join("etc")).unwrap().mtime(), 1_600_000_000);
    });
    test.store.lease("c1", &image).unwrap();
    assert!(test.store.remove("example.com/test:1", false).unwrap_err().to_string().contains("in use by c1"));
    test.store.remove("example.com/test:1", true).unwrap();
    assert_eq!(test.store.gc(&GcOptions::default()).unwrap().layers, []);
    test.store.drop_lease("c1").unwrap();
    let report = test.store.gc(&GcOptions { dry_run: true, ..GcOptions::default() }).unwrap();
    assert_eq!(report.layers.len(), 2);
    assert!(test.tree(&lower).exists());
    test.store.gc(&GcOptions::default()).unwrap();
    for directory in ["layers/sha256", "layers/fixup", "links", "blobs", "images", "names", "tmp"] {
        let left: Vec<_> = fs::read_dir(test.store.path(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}
