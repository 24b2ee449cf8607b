//! The store as a whole, over images made by hand.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::archive::Format;
use crate::digest::Digest;
use crate::gc::GcOptions;
use crate::progress::Silent;
use crate::reference::Reference;
use crate::store::PullOptions;
use crate::store::scratch::Scratch;
use crate::testing::{Tar, TestStore, layout};

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

#[test]
fn what_is_saved_loads_as_the_same_image_everywhere() {
    let test = TestStore::new();
    let lower = Tar::new().dir("d", 0o755).file("d/a", &[5; 100_000]).file("d/a", b"again").end();
    let image = test.load(&[lower.clone(), Tar::new().file("d/.wh.a", b"").end()]).unwrap();
    for format in [Format::OciArchive, Format::OciDir, Format::DockerArchive] {
        let out = test.directory.path().join(format!("{format:?}"));
        test.store.save(&["example.com/test:1"], format, &out).unwrap();
        let other = TestStore::new();
        let images = other.store.load(&out, &PullOptions::default(), &Silent).unwrap();
        assert_eq!(
            (images[0].id.clone(), images[0].names.clone()),
            (image.id.clone(), image.names.clone()),
            "{format:?}"
        );
        assert_eq!(other.store.verify().unwrap(), []);
        if format != Format::OciDir {
            let piped = TestStore::new();
            let compressed = zstd::encode_all(fs::File::open(&out).unwrap(), 1).unwrap();
            let images = piped.store.load_reader(&compressed[..], &PullOptions::default(), &Silent).unwrap();
            assert_eq!(images[0].id, image.id);
        }
    }
    let err = test.store.save(&["nothing"], Format::OciArchive, &test.directory.path().join("x")).unwrap_err();
    assert!(err.to_string().contains("image nothing: not in the store"), "{err}");
    let left: Vec<_> = fs::read_dir(test.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn every_kind_of_damage_is_found_and_only_the_damaged_layer_is_rebuilt() {
    let test = TestStore::new();
    let good = Tar::new().file("good", b"good").end();
    let bad = Tar::new().dir("d", 0o755).file("d/f", b"content").link("l", b'2', "d").end();
    let layers = [good.clone(), bad.clone()];
    test.load(&layers).unwrap();
    let tree = test.tree(&bad);
    let damages: [(&str, &dyn Fn()); 7] = [
        ("its files now make", &|| fs::write(tree.join("d/f"), b"CONTENT").unwrap()),
        ("is too short", &|| fs::write(tree.join("d/f"), b"c").unwrap()),
        ("/d: mode is 700", &|| {
            fs::set_permissions(tree.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap()
        }),
        ("/d: owner is 5:0", &|| std::os::unix::fs::chown(tree.join("d"), Some(5), None).unwrap()),
        ("/l: is missing", &|| fs::remove_file(tree.join("l")).unwrap()),
        ("/extra: does not belong here", &|| {
            let time = fs::metadata(&tree).unwrap().modified().unwrap();
            fs::write(tree.join("extra"), b"").unwrap();
            fs::File::open(&tree).unwrap().set_modified(time).unwrap();
        }),
        ("layer's record", &|| {
            let record = tree.parent().unwrap().join("record.zst");
            fs::write(&record, zstd::encode_all(&b"coracle layer record 1\n\x09"[..], 1).unwrap()).unwrap();
        }),
    ];
    let untouched = fs::metadata(test.tree(&good)).unwrap().ino();
    for (expected, damage) in damages {
        assert_eq!(test.store.verify().unwrap(), []);
        damage();
        let found = test.store.verify().unwrap();
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(found[0].why.contains(expected), "{expected}: {}", found[0]);
        assert_eq!(found[0].images, ["example.com/test:1"]);
        let layout_dir = tempfile::tempdir().unwrap();
        layout(layout_dir.path(), &layers);
        let name = Reference::parse("example.com/test:1").unwrap();
        let repaired = test.store.discard_damaged(&name).unwrap();
        assert_eq!(repaired.len(), 1);
        test.store.load(layout_dir.path(), &PullOptions::default(), &Silent).unwrap();
    }
    assert_eq!(test.store.verify().unwrap(), []);
    assert_eq!(fs::metadata(test.tree(&good)).unwrap().ino(), untouched, "the good layer was left alone");
}

#[test]
fn a_bad_layer_leaves_nothing_behind() {
    let test = TestStore::new();
    let err = test.load(&[Tar::new().file("ok", b"").end(), Tar::new().file("../x", b"").end()]).unwrap_err();
    assert!(err.to_string().contains(r#"entry "../x": refused"#), "{err}");
    assert_eq!(test.store.images().unwrap(), []);
    assert_eq!(fs::read_dir(test.store.path("tmp")).unwrap().count(), 0);
    test.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fs::read_dir(test.store.path("layers/sha256")).unwrap().count(), 0);
}

#[test]
fn two_hundred_layers_mount_with_the_uppermost_on_top() {
    let test = TestStore::new();
    let layer = |n: u32| Tar::new().file(&format!("f{n}"), b"").file("last", n.to_string().as_bytes()).end();
    let layers: Vec<Vec<u8>> = (0..200).map(layer).collect();
    let image = test.load(&layers).unwrap();
    let lower = test.store.lower_directories(&image).unwrap();
    assert_eq!(lower.len(), 200);
    // Short names: even `mount(2)` with its one page takes many of them, relative to the links' directory.
    assert!(lower.iter().all(|path| path.rsplit('/').next().unwrap().len() == 20), "{}", lower[0]);
    assert_eq!(fs::read(test.tree(&layers[199]).join("last")).unwrap(), b"199");
}

#[test]
fn a_layer_twice_in_an_image_is_mounted_once_and_attributes_of_the_root_arrive() {
    let test = TestStore::new();
    let a = Tar::new().dir(".", 0o711).file("a", b"a").end();
    let b = Tar::new().file(".wh.a", b"").file("b", b"b").end();
    let image = test.load(&[a.clone(), b, a]).unwrap();
    mounted(&test, &image, |root| {
        assert_eq!(fs::read(root.join("a")).unwrap(), b"a");
        assert_eq!(fs::read(root.join("b")).unwrap(), b"b");
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o711);
    });
    let nothing = test.load(&[]).unwrap();
    mounted(&test, &nothing, |root| assert_eq!(fs::read_dir(root).unwrap().count(), 0));
}

#[test]
fn an_opaque_root_hides_all_below() {
    let test = TestStore::new();
    let image =
        test.load(&[Tar::new().file("old", b"").end(), Tar::new().file(".wh..wh..opq", b"").file("new", b"").end()]);
    mounted(&test, &image.unwrap(), |root| assert!(!root.join("old").exists() && root.join("new").exists()));
}

#[test]
fn names_move_and_ambiguity_is_an_error() {
    let test = TestStore::new();
    let first = test.load(&[Tar::new().file("1", b"").end()]).unwrap();
    let second = test.load(&[Tar::new().file("2", b"").end()]).unwrap();
    assert_eq!(test.store.image("example.com/test:1").unwrap().unwrap().id, second.id);
    assert!(test.store.image(&first.id.to_string()).unwrap().unwrap().is_dangling());
    assert_eq!(test.store.image("example.com/test:2").unwrap(), None);
    let other = Reference::parse("busybox").unwrap();
    test.store.tag(first.id.short(), &other).unwrap();
    assert_eq!(test.store.image("busybox").unwrap().unwrap().id, first.id);
    test.store.pin("busybox", true).unwrap();
    assert!(test.store.untag(&other).unwrap());
    test.store.remove("example.com/test:1", false).unwrap();
    let report = test.store.gc(&GcOptions { unused_images: true, ..GcOptions::default() }).unwrap();
    assert_eq!((report.images.len(), report.layers.len()), (0, 1), "the pinned image stays");
    test.store.pin(first.id.short(), false).unwrap();
    let report = test.store.gc(&GcOptions { dangling_images: true, ..GcOptions::default() }).unwrap();
    assert_eq!((report.images, report.layers.len()), (vec![first.id], 1));
}

#[test]
fn the_dead_are_cleared_and_the_living_are_left_alone() {
    let test = TestStore::new();
    let alive = Scratch::new(&test.store).unwrap();
    let layer = Tar::new().file("1", b"").end();
    test.load(std::slice::from_ref(&layer)).unwrap();
    alive.uses(&[Digest::of(&layer)]).unwrap();
    fs::create_dir_all(test.store.path("tmp/work-dead/layer")).unwrap();
    fs::write(test.store.path("names/.new-unfinished"), b"{").unwrap();
    test.store.remove("example.com/test:1", false).unwrap();
    let report = test.store.gc(&GcOptions::default()).unwrap();
    assert_eq!((report.layers.len(), report.scratch.len()), (0, 1));
    assert!(alive.path().exists() && !test.store.path("tmp/work-dead").exists());
    assert!(!test.store.path("names/.new-unfinished").exists());
    drop(alive);
    assert_eq!(test.store.gc(&GcOptions::default()).unwrap().layers.len(), 1);
}

#[test]
fn a_name_that_another_store_gave_or_took_is_seen_at_once() {
    let test = TestStore::new();
    let image = test.load(&[Tar::new().file("a", b"a").end()]).unwrap();
    let other = crate::Store::open(test.store.root()).unwrap();
    let name = Reference::parse("example.com/moved:1").unwrap();
    let seen = || other.image(&name.to_string()).unwrap().is_some();
    for round in 0..40 {
        if round % 20 == 0 {
            // Long enough for what was read to be kept.
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        assert!(!seen());
        test.store.tag(&image.id.to_string(), &name).unwrap();
        assert!(seen(), "round {round}");
        assert!(test.store.untag(&name).unwrap());
    }
}
