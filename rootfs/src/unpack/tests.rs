//! Layers good and hostile, made by hand; and the tree held against its model, the archive against its replay, and our
//! unpacking against GNU tar's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::model::Model;
use super::record::Replay;
use super::tar::Parser;
use super::{Limits, Unpacked, unpack};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Descriptor;
use crate::testing::Tar;

struct Layer {
    directory: TempDir,
    unpacked: Unpacked,
}

impl Layer {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("fs").join(name)
    }
}

fn unpack_blob(blob: &[u8], archive: &[u8], limits: &Limits) -> Result<Layer> {
    let outer = tempfile::tempdir().unwrap();
    let directory = TempDir::new_in(outer.path()).unwrap();
    fs::write(outer.path().join("outside"), "safe").unwrap();
    let descriptor = Descriptor::new("", Digest::of(blob), blob.len() as u64);
    let layer = File::open(directory.path()).unwrap();
    let input = Box::new(Cursor::new(blob.to_vec()));
    let unpacked = unpack(input, &descriptor, &Digest::of(archive), &layer, limits, &|_| {});
    let names: Vec<_> = fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "something was made outside: {names:?}");
    assert_eq!(fs::read(outer.path().join("outside")).unwrap(), b"safe");
    let unpacked = unpacked?;
    let kept = tempfile::tempdir().unwrap();
    fs::remove_dir(kept.path()).unwrap();
    fs::rename(directory.path(), kept.path()).unwrap();
    let _ = directory.keep();
    Ok(Layer { directory: kept, unpacked })
}

fn unpack_plain(archive: &[u8]) -> Result<Layer> {
    unpack_blob(archive, archive, &Limits::default())
}

fn refusal(archive: Vec<u8>) -> String {
    match unpack_plain(&archive) {
        Ok(_) => panic!("was not refused"),
        Err(err) => err.to_string(),
    }
}

fn replayed(layer: &Layer) -> Vec<u8> {
    let mut archive = Vec::new();
    Replay::open(layer.directory.path()).unwrap().read_to_end(&mut archive).unwrap();
    archive
}

/// What the model says of the archive must be what is on the disk.
fn check(layer: &Layer, archive: &[u8]) {
    let mut model = Model::new();
    let mut parser = Parser::new(archive);
    while let Some(entry) = parser.next_entry().unwrap() {
        model.apply(&entry).unwrap();
        while parser.remaining() > 0 {
            let count = parser.chunk().unwrap().len();
            parser.consume(count);
        }
    }
    assert_eq!(crate::verify::compare(&model, &layer.path("")).unwrap(), None);
    assert!(replayed(layer) == archive, "the replayed archive differs");
}

#[test]
fn attributes_and_kinds_come_out_as_the_entries_say() {
    let archive = Tar::new()
        .dir("d", 0o2751)
        .entry("d/f", b'0', b"content", |h| {
            h.set_mode(0o4711);
            h.set_uid(1000);
            h.set_gid(2000);
        })
        .entry("d/root", b'0', b"", |h| h.set_mode(0o6755))
        .link("d/s", b'2', "/anywhere/../at all")
        .link("d/h", b'1', "d/f")
        .entry("null", b'3', b"", |h| {
            h.set_mode(0o666);
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .entry("p", b'6', b"", |h| h.set_uid(7))
        .pax(&[("SCHILY.xattr.user.k", b"a\nb"), ("SCHILY.xattr.security.capability", CAPABILITY), ("mtime", b"-1.5")])
        .file("x", b"x")
        .entry("sticky", b'5', b"", |h| h.set_mode(0o1777))
        .end();
    let layer = unpack_plain(&archive).unwrap();
    check(&layer, &archive);
    let meta = fs::metadata(layer.path("d/f")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()), (0o4711, 1000, 2000, 2));
    assert_eq!(fs::metadata(layer.path("d")).unwrap().mode() & 0o7777, 0o2751);
    assert_eq!(fs::metadata(layer.path("d/root")).unwrap().gid(), 0, "the group is not inherited");
    let device = fs::metadata(layer.path("null")).unwrap();
    assert!(device.file_type().is_char_device());
    assert_eq!(device.rdev(), nix::sys::stat::makedev(1, 3));
    let meta = fs::metadata(layer.path("x")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 500_000_000));
    assert_eq!(layer.unpacked.implicit, [Vec::<u8>::new()]);
}

/// VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn directories_without_an_entry_are_told() {
    let layer = unpack_plain(&Tar::new().file("usr/bin/x", b"x").dir("usr", 0o700).dir(".", 0o711).end()).unwrap();
    assert_eq!(layer.unpacked.implicit, [b"usr/bin"]);
    assert_eq!(fs::metadata(layer.path("")).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(fs::metadata(layer.path("usr")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn whiteouts_hide_lower_layers_and_never_their_own() {
    let archive = Tar::new()
        .file("gone/.wh.a", b"")
        .dir("kept", 0o755)
        .file("kept/f", b"1")
        .file(".wh.kept", b"")
        .file(".wh.later", b"")
        .dir("later", 0o755)
        .file(".wh.deep", b"")
        .file("deep/x", b"")
        .file("file", b"2")
        .file(".wh.file", b"")
        .file("o/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .end();
    let layer = unpack_plain(&archive).unwrap();
    check(&layer, &archive);
    let opaque = |name: &str| {
        let directory = File::open(layer.path(name)).unwrap();
        crate::sys::xattrs_at(&directory, b"").unwrap().contains(&(b"trusted.overlay.opaque".to_vec(), b"y".to_vec()))
    };
    let whiteout = fs::metadata(layer.path("gone/a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(opaque("kept") && opaque("later") && opaque("deep") && opaque("o") && !opaque("gone"));
    assert_eq!(fs::read(layer.path("kept/f")).unwrap(), b"1");
    assert_eq!(fs::read(layer.path("file")).unwrap(), b"2");
    assert!(!layer.path(".wh..wh.plnk").exists());
    assert!(unpack_plain(&Tar::new().file(".wh..wh..opq", b"").end()).unwrap().unpacked.opaque_root);
}

#[test]
fn later_entries_win_and_the_archive_still_comes_out_the_same() {
    let archive = Tar::new()
        .file("a/x", b"first")
        .file("a/x", b"second")
        .link("h", b'1', "a/x")
        .file("a/y", b"under a directory that goes")
        .file("a", b"now a file")
        .dir("a", 0o700)
        .file("a/x", b"third")
        .link("a/x", b'2', "y")
        .end();
    let layer = unpack_plain(&archive).unwrap();
    check(&layer, &archive);
    assert_eq!(fs::read(layer.path("h")).unwrap(), b"second");
    assert_eq!(fs::read_link(layer.path("a/x")).unwrap(), Path::new("y"));
    assert!(!layer.path("a/y").exists());
}

#[test]
fn links_are_followed_within_the_layer_only() {
    let archive = Tar::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o755)
        .link("lib", b'2', "/usr/lib")
        .link("up", b'2', "../../../../..")
        .link("usr/rel", b'2', "../usr/./lib/")
        .file("lib/a", b"a")
        .file("up/b", b"b")
        .file("usr/rel/c", b"c")
        .link("absolute", b'2', "/etc")
        .file("absolute/shadow", b"harmless")
        .link("hard", b'1', "lib/a")
        .file("/rooted", b"r")
        .end();
    let layer = unpack_plain(&archive).unwrap();
    check(&layer, &archive);
    for (path, content) in
        [("usr/lib/a", "a"), ("b", "b"), ("usr/lib/c", "c"), ("etc/shadow", "harmless"), ("rooted", "r")]
    {
        assert_eq!(fs::read(layer.path(path)).unwrap(), content.as_bytes(), "{path}");
    }
    assert_eq!(fs::metadata(layer.path("hard")).unwrap().ino(), fs::metadata(layer.path("usr/lib/a")).unwrap().ino());
}

/// A layer whose headers would all be held at once.
fn many_globals() -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    (0..8).fold(Tar::new(), |tar, _| tar.entry("g", b'g', &zeros, |_| {})).file("x", b"").end()
}

fn many_attributes() -> Vec<u8> {
    let names: Vec<String> = (0..2000).map(|number| format!("SCHILY.xattr.user.{number}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"v"[..])).collect();
    Tar::new().pax(&records).file("x", b"").end()
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let deep = "a/".repeat(49) + "a";
    let too_deep = [deep.as_bytes(), b"/", deep.as_bytes(), b"/", deep.as_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Tar::new().file("../x", b"").end(), r#"entry "../x": refused: its path has a "..""#),
        (Tar::new().file("a/../../x", b"").end(), r#"its path has a "..""#),
        (Tar::new().link("h", b'1', "../outside").end(), r#"hard link to "../outside": refused: its path has a "..""#),
        (
            Tar::new().link("h", b'1', "/etc/passwd").end(),
            r#"hard link to "/etc/passwd", which is not an earlier entry"#,
        ),
        (Tar::new().dir("d", 0o755).link("h", b'1', "d").end(), "hard link to a directory"),
        (Tar::new().link("l", b'2', "/etc").link("h", b'1', "l/passwd").end(), "which is not an earlier entry"),
        (Tar::new().file(".wh.gone", b"").link("h", b'1', "gone").end(), "which is not an earlier entry"),
        (Tar::new().link("a", b'2', "b").link("b", b'2', "a").file("a/x", b"").end(), "too many symbolic links"),
        (Tar::new().file("f", b"").file("f/x", b"").end(), "a parent is not a directory"),
        (Tar::new().file(".wh.", b"").end(), "a whiteout without a name"),
        (Tar::new().file(".wh...", b"").end(), "a whiteout without a name"),
        (Tar::new().file("x/.wh...", b"").end(), "a whiteout without a name"),
        (Tar::new().pax(&[("path", &too_deep)]).file("x", b"").end(), "its path is too deep"),
        (Tar::new().pax(&[("path", &[b'x'; 300])]).file("x", b"").end(), "too long"),
        (Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").end(), "zero byte"),
        (Tar::new().pax(&[("path", b"../x")]).file("x", b"").end(), r#"its path has a "..""#),
        (
            Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("d", 0o755).end(),
            r#"the attribute "trusted.overlay.redirect", which is overlay's own"#,
        ),
        (Tar::new().link(".", b'2', "/etc").end(), "the root is not a directory"),
        (Tar::new().entry("v", b'M', b"", |_| {}).end(), "unknown type 'M'"),
        (Tar::new().pax(&[("size", b"-1")]).file("x", b"").end(), r#"malformed PAX record "size""#),
        (Tar::new().entry("big", b'x', b"", |h| h.set_size(2 << 20)).end(), "an extended header of"),
        (Tar::new().entry("big", b'x', b"", |h| h.set_size(1 << 40)).end(), "extended headers of more than"),
        (many_globals(), "extended headers of more than"),
        (many_attributes(), "more than 1024 extended attributes"),
        (Tar::new().entry("big", b'0', b"", |h| h.set_size(1 << 50)).end(), "are free"),
        (Tar::new().pax(&[("size", b"9223372036854775808")]).file("x", b"").end(), "are free"),
        (Tar::new().entry(".wh.x", b'0', &[7; 2 << 20], |_| {}).end(), "without use for it"),
        (Tar::new().file("x", b"12345").0[..600].to_vec(), "ends in the middle of an entry"),
        ([Tar::new().file("x", b"").0, vec![0; 512], Tar::new().file("y", b"").end()].concat(), "lone zero block"),
        (vec![b'A'; 1024], "not a tar header"),
    ];
    for (archive, expected) in cases {
        let err = refusal(archive);
        assert!(err.contains(expected), "{err:?} does not say {expected:?}");
    }
}

#[test]
fn limits_hold() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let archive = Tar::new().file("a", &[1; 4000]).file("b", b"").end();
    let err = unpack_blob(&archive, &archive, &limits(|l| l.entries = 1)).err().unwrap();
    assert_eq!((err.kind(), err.to_string()), (ErrorKind::Limit, "has more than 1 entries".into()));
    let err = unpack_blob(&archive, &archive, &limits(|l| l.layer_bytes = 2000)).err().unwrap();
    assert!(err.to_string().contains("unpacks to more than 2000 bytes"), "{err}");
    // 300 MiB of zeros are some hundred bytes of zstd.
    let bomb = zstd::encode_all(std::io::repeat(0).take(300 << 20), 3).unwrap();
    let err = unpack_blob(&bomb, &[], &limits(|l| l.ratio = 1000)).err().unwrap();
    assert!(!err.to_string().is_empty());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_compression_is_understood_and_nothing_may_follow_or_lack() {
    let archive = Tar::new().file("a", &[1; 40_000]).file("b", b"").end();
    let (head, tail) = archive.split_at(20_000);
    let members = [gzip(head), gzip(tail)].concat();
    let frames = [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 1).unwrap()].concat();
    for blob in [&archive, &gzip(&archive), &members, &frames] {
        let layer = unpack_blob(blob, &archive, &Limits::default()).unwrap();
        check(&layer, &archive);
        for length in [3, blob.len() / 2, blob.len() - 1] {
            assert!(unpack_blob(&blob[..length], &archive, &Limits::default()).is_err(), "{length} bytes are enough");
        }
    }
    let err = unpack_blob(&[gzip(&archive), b"garbage".to_vec()].concat(), &archive, &Limits::default()).err().unwrap();
    assert!(err.to_string().contains("gzip stream"), "{err}");
    let err = unpack_blob(&[0xfd, b'7', b'z', b'X', b'Z', 0], &archive, &Limits::default()).err().unwrap();
    assert!(err.to_string().contains("compressed with xz"), "{err}");
}

#[test]
fn lies_about_digest_and_size_are_found() {
    let archive = Tar::new().file("a", b"a").end();
    let attempt = |blob: Digest, size: u64, diff_id: Digest| {
        let directory = tempfile::tempdir().unwrap();
        let layer = File::open(directory.path()).unwrap();
        let descriptor = Descriptor::new("", blob, size);
        let input = Box::new(Cursor::new(archive.clone()));
        unpack(input, &descriptor, &diff_id, &layer, &Limits::default(), &|_| {}).unwrap_err().to_string()
    };
    let (right, wrong, size) = (Digest::of(&archive), Digest::of(b"other"), archive.len() as u64);
    assert!(attempt(wrong.clone(), size, right.clone()).contains("the content is"));
    assert!(attempt(right.clone(), size - 1, right.clone()).contains("is longer than the 2047 bytes promised"));
    assert!(attempt(right.clone(), size + 1, right.clone()).contains("ended after 2048 of 2049 bytes"));
    assert!(attempt(right.clone(), size, wrong).contains("promises diff id"));
}

#[test]
fn a_readers_error_keeps_its_words() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(Error::new(ErrorKind::Unavailable, "registry: connection reset").into())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let layer = File::open(directory.path()).unwrap();
    let descriptor = Descriptor::new("", Digest::of(b""), 10);
    let err = unpack(Box::new(Broken), &descriptor, &Digest::of(b""), &layer, &Limits::default(), &|_| {}).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unavailable);
    assert!(err.to_string().contains("registry: connection reset"));
}

/// GNU tar makes the archive, in each of its formats.
fn gnu_tar(source: &Path, args: &[&str]) -> Vec<u8> {
    let made =
        std::process::Command::new("tar").arg("-C").arg(source).args(args).args(["-cf", "-", "."]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

#[test]
fn sparse_files_and_long_names_of_gnu_tar_come_out() {
    let source = tempfile::tempdir().unwrap();
    let name = "long".repeat(60);
    fs::create_dir(source.path().join(&name)).unwrap();
    fs::write(source.path().join(&name).join(&name), "deep").unwrap();
    std::os::unix::fs::symlink("target/".repeat(60), source.path().join("link")).unwrap();
    let sparse = File::create(source.path().join("sparse")).unwrap();
    for piece in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 4096], piece * (1 << 20)).unwrap();
    }
    sparse.set_len(100 << 20).unwrap();
    for format in [
        &["--format=gnu", "-S"][..],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
        &["--format=posix"],
        &["--format=gnu"],
    ] {
        let archive = gnu_tar(source.path(), format);
        let layer = unpack_plain(&archive).unwrap();
        check(&layer, &archive);
        assert_eq!(fs::read(layer.path(&name).join(&name)).unwrap(), b"deep", "{format:?}");
        assert_eq!(fs::read_link(layer.path("link")).unwrap().as_os_str().len(), 420, "{format:?}");
        let (ours, theirs) = (fs::metadata(layer.path("sparse")).unwrap(), sparse.metadata().unwrap());
        assert_eq!(ours.len(), theirs.len(), "{format:?}");
        assert!(
            fs::read(layer.path("sparse")).unwrap() == fs::read(source.path().join("sparse")).unwrap(),
            "{format:?}"
        );
        if format.contains(&"-S") {
            assert!(ours.blocks() < 1000, "{format:?}: holes stay holes");
        }
    }
}

/// Path, type, link target, content, mode, owner, time.
type Made = (String, u8, String, Vec<u8>, u32, u32, u64);

/// Names by kind, so that archives for GNU tar have no conflicts, on which tools differ.
fn entry() -> impl Strategy<Value = Made> {
    let directory = prop_oneof![Just(""), Just("d0/"), Just("d1/"), Just("d0/d2/"), Just("./d1/d0/")];
    let name = (0..3u8, prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5'), Just(b'6')]);
    let target = (0..3u8, prop_oneof![Just(""), Just("d0/"), Just("d1/")]);
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    (directory, name, target, content, 0..0o10000u32, 0..3u32, 0..2_000_000_000u64).prop_map(
        |(directory, (number, kind), (target, place), content, mode, uid, mtime)| {
            let letter = char::from(b"fhs..dp"[usize::from(kind - b'0')]);
            let path = format!("{directory}{letter}{number}");
            (path, kind, format!("{place}f{target}"), if kind == b'0' { content } else { Vec::new() }, mode, uid, mtime)
        },
    )
}

fn archive_of(entries: &[Made]) -> Vec<u8> {
    let mut archive = Tar::new();
    for (path, kind, target, content, mode, uid, mtime) in entries {
        archive = archive.entry(path, *kind, content, |header| {
            header.set_mode(*mode);
            header.set_uid(u64::from(*uid));
            header.set_gid(u64::from(*uid / 2));
            header.set_mtime(*mtime);
            if matches!(kind, b'1' | b'2') {
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            }
        });
    }
    archive.end()
}

type Seen = BTreeMap<Vec<u8>, (u32, u32, u32, i64, u64, Vec<u8>)>;

/// What is in a tree. Links are counted inside the tree: a replaced file's content may live on beside it, in `shadowed`.
fn seen(root: &Path) -> Seen {
    let mut seen = Seen::new();
    look(root, root, &mut seen);
    let mut links = BTreeMap::new();
    seen.values().filter(|entry| entry.4 != 0).for_each(|entry| *links.entry(entry.4).or_insert(0) += 1);
    seen.values_mut().for_each(|entry| entry.4 = links.get(&entry.4).copied().unwrap_or(0));
    seen
}

fn look(root: &Path, directory: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&path).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let inode = if meta.is_dir() { 0 } else { meta.ino() };
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        seen.insert(name, (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), inode, content));
        if meta.is_dir() {
            look(root, &path, seen);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn we_unpack_as_gnu_tar_does(entries in prop::collection::vec(entry(), 1..25)) {
        let archive = archive_of(&entries);
        let Ok(layer) = unpack_plain(&archive) else {
            return Ok(()); // a hard link to nothing
        };
        let theirs = tempfile::tempdir().unwrap();
        let mut tar = std::process::Command::new("tar");
        tar.args(["-xp", "--numeric-owner", "--same-owner", "--delay-directory-restore", "-f", "-", "-C"]).arg(theirs.path());
        let mut tar = tar.stdin(std::process::Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        prop_assert!(tar.wait().unwrap().success());
        let (mut a, mut b) = (seen(&layer.path("")), seen(theirs.path()));
        // Where there is no entry, each tool has its own defaults.
        for path in &layer.unpacked.implicit {
            a.remove(path);
            b.remove(path);
        }
        prop_assert_eq!(a, b);
        check(&layer, &archive);
    }

    #[test]
    fn whatever_is_accepted_is_as_the_model_says_and_replays(
        entries in prop::collection::vec((0..14usize, prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5')], 0..14usize), 1..30),
    ) {
        // Few names and any kind: conflicts, links in the way, whiteouts.
        const NAMES: [&str; 14] = [
            "a", "b", "a/a", "a/b", "b/a", "a/a/a", "b/c/d", ".wh.a", "a/.wh.b", "b/.wh.c", "a/.wh..wh..opq", ".", "/", "b/b",
        ];
        let entries: Vec<_> = entries
            .into_iter()
            .enumerate()
            .map(|(index, (name, kind, target))| {
                let content = if kind == b'0' && !NAMES[name].contains(".wh.") { vec![index as u8; index] } else { vec![] };
                (NAMES[name].to_owned(), kind, NAMES[target].to_owned(), content, 0o644 + index as u32, 0, index as u64)
            })
            .collect();
        let archive = archive_of(&entries);
        if let Ok(layer) = unpack_plain(&archive) {
            check(&layer, &archive);
        }
    }

    #[test]
    fn no_bytes_panic_or_escape(mut blob in prop::collection::vec(any::<u8>(), 0..3000), at in 0..2000usize, good in any::<bool>()) {
        if good {
            // A valid archive with one byte changed.
            let byte = blob.first().copied().unwrap_or(1);
            blob = Tar::new().pax(&[("path", b"x/y")]).file("a", b"content").link("h", b'1', "x/y").end();
            let at = at % blob.len();
            blob[at] ^= byte;
        }
        let _ = unpack_plain(&blob);
    }
}
