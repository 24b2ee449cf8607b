//! The image store under stress, and among its peers: pulls that are killed, disks that are full, layers that are hostile,
//! several pulls at once; and the same image through umoci's, podman's and skopeo's hands.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use coracle_rootfs::progress::Silent;
use coracle_rootfs::{
    ErrorKind, Format, GcOptions, Image, Keyring, PullOptions, Reference, Registry, RegistryConfig, Store,
};
use coracle_tests::image::{Layout, run};
use coracle_tests::registry::Registry as TestRegistry;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A scratch place: a layout, and a store for the program or the library.
struct Place {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(&dir.path().join("layout"));
        Place { dir, layout }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> Store {
        Store::open(&self.path("root")).unwrap()
    }

    /// The program, with everything of its own.
    fn coracle(&self, args: &[&str]) -> Command {
        let mut command = Command::new(coracle_tests::bin("coracle"));
        command.arg("--root").arg(self.path("root")).arg("--state").arg(self.path("state"));
        command.arg("--log-dir").arg(self.path("logs")).args(args).env("HOME", self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.coracle(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn load(&self, tag: &str) -> Image {
        let image = self.path("one");
        self.layout.copy(tag, &format!("oci:{}:{tag}", image.display()), &[]);
        let mut images = self.store().load(&image, &PullOptions::default(), &Silent).unwrap();
        fs::remove_dir_all(image).unwrap();
        images.remove(0)
    }
}

fn pull(store: &Store, name: &str) -> coracle_rootfs::Result<Image> {
    let reference = Reference::parse(name).unwrap();
    let registry = Registry::new(RegistryConfig { hosts_dir: Vec::new(), ..RegistryConfig::default() });
    let sources = registry.sources(&reference, &Keyring::default())?;
    store.pull(&reference, &sources, &PullOptions::default(), &Silent)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn entries(directory: &Path) -> BTreeSet<String> {
    let list = fs::read_dir(directory).unwrap_or_else(|err| panic!("{}: {err}", directory.display()));
    list.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Runs `work` on a thread with mounts of its own, which end with it.
fn with_private_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root: unshare(CLONE_NEWNS)");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make all mounts private");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A snapshot of the image, mounted. Layers are named relative to the directory of links, so that many fit in a page.
fn mount_snapshot(store: &Store, image: &Image, place: &Path) -> PathBuf {
    let spec = store.snapshot(image, place).unwrap().remove(0);
    let merged = place.join("merged");
    fs::create_dir(&merged).unwrap();
    let options = spec.options.join(",").replace(&format!("{}/links/", store.root().display()), "");
    let mut command = Command::new("mount");
    command.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).current_dir(store.root().join("links"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "mount -o {options}: {}", text(&output));
    merged
}

/// A tree as one archive by GNU tar: equal archives are equal trees, attributes and all.
fn archive(tree: &Path) -> Vec<u8> {
    let args = ["--xattrs", "--xattrs-include=*", "--sort=name", "--numeric-owner", "--format=posix"];
    let mut command = Command::new("tar");
    command.args(args).arg("--pax-option=delete=atime,delete=ctime,exthdr.name=%f").arg("-C").arg(tree);
    let output = command.args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What differs between two archives, for people.
fn listing(archive: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), archive).unwrap();
    run("tar", &[OsStr::new("--xattrs"), OsStr::new("--full-time"), OsStr::new("-tvvf"), file.path().as_os_str()])
}

fn assert_same_tree(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (archive(ours), archive(theirs));
    if ours != theirs {
        let (ours, theirs) = (listing(&ours), listing(&theirs));
        let only = |a: &str, b: &str| {
            let known: BTreeSet<&str> = b.lines().collect();
            a.lines().filter(|line| !known.contains(line)).collect::<Vec<_>>().join("\n")
        };
        panic!("the trees differ; ours:\n{}\ntheirs:\n{}", only(&ours, &theirs), only(&theirs, &ours));
    }
}

/// Everything that is easy to lose on the way, in three layers.
fn rich_image(place: &Place, tag: &str) {
    let chown = |path: PathBuf, uid, gid| std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let first = place.path("first");
    for directory in ["etc", "opt/app/data", "home/user", "var/cache", "deep/er/still"] {
        fs::create_dir_all(first.join(directory)).unwrap();
    }
    fs::write(first.join("etc/passwd"), "root:x:0:0").unwrap();
    fs::write(first.join("etc/gone"), "x").unwrap();
    fs::write(first.join("home/user/file"), "mine").unwrap();
    chown(first.join("home/user"), 1000, 1000);
    chown(first.join("home/user/file"), 1000, 1001);
    mode(first.join("home/user"), 0o2750);
    fs::write(first.join("opt/app/tool"), noise(100_000, 1)).unwrap();
    chown(first.join("opt/app/tool"), 0, 42);
    mode(first.join("opt/app/tool"), 0o6755);
    fs::hard_link(first.join("opt/app/tool"), first.join("opt/app/twin")).unwrap();
    fs::write(first.join("opt/app/cap"), "net").unwrap();
    run("setcap", &[OsStr::new("cap_net_bind_service+ep"), first.join("opt/app/cap").as_os_str()]);
    fs::write(first.join("var/cache/old"), "old").unwrap();
    symlink("../opt/app/tool", first.join("etc/link")).unwrap();
    chown(first.join("etc/link"), 7, 8);
    run("mknod", &[first.join("opt/null").as_os_str(), OsStr::new("c"), OsStr::new("1"), OsStr::new("3")]);
    run("mkfifo", &[first.join("opt/pipe")]);
    mode(first.join("deep/er"), 0o711);
    for (path, time) in
        [("etc", "2001-02-03 04:05:06"), ("deep/er", "1999-01-01 00:00:01"), ("opt/app/tool", "1970-01-02")]
    {
        run("touch", &[OsStr::new("-d"), OsStr::new(time), first.join(path).as_os_str()]);
    }
    let second = place.path("second");
    fs::create_dir_all(second.join("etc")).unwrap();
    fs::create_dir_all(second.join("var/cache")).unwrap();
    fs::write(second.join("etc/.wh.gone"), "").unwrap();
    fs::write(second.join("var/cache/.wh..wh..opq"), "").unwrap();
    fs::write(second.join("var/cache/new"), "new").unwrap();
    // The third has no entries for its directories: `deep` and `deep/er` must look as the first one says.
    let third = place.path("third");
    fs::create_dir_all(third.join("deep/er/still")).unwrap();
    fs::write(third.join("deep/er/still/file"), "here").unwrap();
    let bare = place.path("third.tar");
    run(
        "tar",
        &[OsStr::new("-C"), third.as_os_str(), OsStr::new("-cf"), bare.as_os_str(), OsStr::new("deep/er/still/file")],
    );
    place.layout.image(tag).dir(&first).dir(&second).tar(&bare).build();
}

#[test]
fn the_merged_tree_is_the_one_that_umoci_and_podman_unpack() {
    let place = Place::new();
    rich_image(&place, "rich");
    let image = place.load("rich");
    let bundle = place.path("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:rich", place.layout.dir().display()), &bundle.to_string_lossy()]);
    with_private_mounts(|| {
        let merged = mount_snapshot(&place.store(), &image, &place.path("container"));
        let meta = fs::metadata(merged.join("deep/er")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o711, 915_148_801));
        assert_eq!(fs::metadata(merged.join("opt/app/twin")).unwrap().nlink(), 2);
        // umoci writes what the layers say in place, so directories that lost something have a new time. These are
        // compared to podman's below.
        let ours = ["opt", "home", "deep"].map(|name| merged.join(name));
        let theirs = ["opt", "home", "deep"].map(|name| bundle.join("rootfs").join(name));
        ours.iter().zip(&theirs).for_each(|(ours, theirs)| assert_same_tree(ours, theirs));
        assert_eq!(entries(&merged.join("etc")), entries(&bundle.join("rootfs/etc")));
        assert_eq!(entries(&merged.join("var/cache")), ["new".to_owned()].into());
    });
}

#[test]
fn saved_images_are_read_by_skopeo_podman_and_umoci_and_theirs_by_us() {
    let place = Place::new();
    rich_image(&place, "rich");
    let image = place.load("rich");
    let store = place.store();
    store.tag(&image.id.to_string(), &Reference::parse("example.com/rich:1").unwrap()).unwrap();
    let save = |format, name: &str| {
        let out = place.path(name);
        store.save(&["example.com/rich:1"], format, &out).unwrap();
        out.display().to_string()
    };
    let (oci, docker) = (save(Format::OciArchive, "oci.tar"), save(Format::DockerArchive, "docker.tar"));
    let directory = save(Format::OciDir, "directory");
    let config = |transport: &str| run("skopeo", &["inspect", "--config", "--raw", transport]);
    let expected = config(&place.layout.transport("rich"));
    assert_eq!(config(&format!("oci-archive:{oci}")), expected);
    assert_eq!(config(&format!("docker-archive:{docker}")), expected);
    assert_eq!(config(&format!("oci:{directory}:example.com/rich:1")), expected);
    // Copying reads every layer, and checks its digest.
    let copy = |from: &str, to: &str| {
        run("skopeo", &["--insecure-policy", "copy", "--quiet", from, to]);
    };
    copy(
        &format!("oci-archive:{oci}"),
        &format!("docker-archive:{}:example.com/theirs:1", place.path("theirs-docker").display()),
    );
    copy(&format!("docker-archive:{docker}"), &format!("oci-archive:{}:theirs", place.path("theirs-oci").display()));
    for name in ["theirs-docker", "theirs-oci", "oci.tar", "docker.tar", "directory"] {
        let other = Store::open(&place.path(&format!("store-{name}"))).unwrap();
        let images = other.load(&place.path(name), &PullOptions::default(), &Silent).unwrap();
        assert_eq!(images[0].layers, image.layers, "{name}");
        assert_eq!(other.verify().unwrap(), [], "{name}");
    }
    let (graph, run_root) = (place.path("podman"), place.path("podman-run"));
    for archive in [&oci, &docker] {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(&graph).arg("--runroot").arg(&run_root).args([
            "--storage-driver=vfs",
            "load",
            "-q",
            "-i",
            archive,
        ]);
        let output = podman.output().unwrap();
        assert!(output.status.success() && text(&output).contains("example.com/rich:1"), "{}", text(&output));
    }
}

#[test]
fn an_image_of_180_layers_is_mounted() {
    let place = Place::new();
    let mut builder = place.layout.image("many");
    for layer in 0..180 {
        builder = builder
            .file(&format!("d/f{layer}"), 0o644, b"")
            .file("d/last", 0o644, format!("{layer}").as_bytes())
            .layer();
    }
    builder.build();
    let image = place.load("many");
    with_private_mounts(|| {
        let merged = mount_snapshot(&place.store(), &image, &place.path("container"));
        assert_eq!(entries(&merged.join("d")).len(), 181);
        assert_eq!(fs::read_to_string(merged.join("d/last")).unwrap(), "179");
    });
}

/// Three layers that take a moment.
fn push_heavy(place: &Place, registry: &TestRegistry) -> String {
    let builder = place.layout.image("heavy").file("a", 0o644, &noise(12 << 20, 1)).layer();
    builder.file("b", 0o644, &noise(8 << 20, 2)).layer().file("c", 0o644, &noise(4 << 20, 3)).build();
    registry.push(&place.layout, "heavy", "heavy:1", &[]);
    registry.name("heavy:1")
}

#[test]
fn a_pull_that_is_killed_at_any_moment_leaves_all_or_nothing_and_the_next_one_completes_it() {
    let place = Place::new();
    let registry = TestRegistry::start();
    let name = push_heavy(&place, &registry);
    let start = Instant::now();
    let output = place.coracle(&["pull", &name]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let whole = start.elapsed();
    for step in 1..=10 {
        fs::remove_dir_all(place.path("root")).unwrap();
        let mut child = place.spawn(&["pull", &name]);
        std::thread::sleep(whole * step / 10);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = place.store();
        for image in store.images().unwrap() {
            assert_eq!(image.layers.len(), 3);
        }
        assert_eq!(store.verify().unwrap(), [], "killed after {step}/10");
        let kept: Vec<u64> = layers_inodes(&place);
        let image = pull(&store, &name).unwrap();
        let after = layers_inodes(&place);
        assert!(kept.iter().all(|inode| after.contains(inode)), "a finished layer was fetched again");
        assert_eq!((store.verify().unwrap(), image.layers.len()), (vec![], 3));
        store.gc(&GcOptions::default()).unwrap();
        assert_eq!(entries(&place.path("root/tmp")), BTreeSet::new());
        assert_eq!(layers_inodes(&place).len(), 3);
    }
}

fn layers_inodes(place: &Place) -> Vec<u64> {
    let layers = fs::read_dir(place.path("root/layers/sha256")).unwrap();
    layers.map(|entry| fs::metadata(entry.unwrap().path()).unwrap().ino()).collect()
}

#[test]
fn pulls_at_the_same_time_share_the_work() {
    let place = Place::new();
    let registry = TestRegistry::start();
    let name = push_heavy(&place, &registry);
    let fetched = || registry.log().matches("\"GET /v2/heavy/blobs/").count();
    let children: Vec<Child> = (0..4).map(|_| place.spawn(&["pull", &name])).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(place.store().verify().unwrap(), []);
    // Each of the four reads the configuration; each layer is fetched by one of them.
    let log_lines = fetched();
    assert!(log_lines <= 4 + 3, "{log_lines} blobs were fetched");
}

#[test]
fn a_digest_is_not_answered_with_a_tag_and_moves_none() {
    let place = Place::new();
    let registry = TestRegistry::start();
    for (name, content) in [("old", b"1"), ("new", b"2")] {
        place.layout.image(name).file("which", 0o644, content).build();
    }
    let name = registry.name("app:1");
    registry.push(&place.layout, "old", "app:1", &[]);
    let store = place.store();
    let old = pull(&store, &name).unwrap();
    let digest = old.repo_digests[0].split_once('@').unwrap().1.to_owned();
    registry.push(&place.layout, "new", "app:1", &[]);
    let new = pull(&store, &name).unwrap();
    assert_ne!(old.id, new.id);
    let pinned = format!("{name}@{digest}");
    assert_eq!(pull(&store, &pinned).unwrap().id, old.id);
    assert_eq!(store.image(&pinned).unwrap().unwrap().id, old.id);
    assert_eq!(store.image(&name).unwrap().unwrap().id, new.id, "nobody asked the registry for the tag");
    let unknown = format!("{name}@sha256:{}", "0".repeat(64));
    assert!(store.image(&unknown).unwrap().is_none());
    let reference = Reference::parse(&unknown).unwrap();
    assert_eq!(store.tag(&name, &reference).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!store.untag(&reference).unwrap());
    assert_eq!(store.image(&name).unwrap().unwrap().id, new.id);
}

#[test]
fn what_images_hold_is_closed_to_others_and_one_that_was_open_is_closed() {
    let place = Place::new();
    drop(place.store());
    let folders = ["layers", "layers/sha256", "blobs", "erofs", "tmp"].map(|name| place.path("root").join(name));
    for folder in &folders {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    drop(place.store());
    for folder in &folders {
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700, "{}", folder.display());
    }
}

/// A small file system of its own, with room for so many bytes.
fn mount_disk(place: &Place, bytes: u64) {
    let file = fs::File::create(place.path("disk")).unwrap();
    file.set_len(bytes).unwrap();
    run("mkfs.ext4", &[OsStr::new("-q"), OsStr::new("-m0"), place.path("disk").as_os_str()]);
    fs::create_dir(place.path("root")).unwrap();
    run(
        "mount",
        &[OsStr::new("-o"), OsStr::new("loop"), place.path("disk").as_os_str(), place.path("root").as_os_str()],
    );
}

#[test]
fn on_a_full_disk_a_pull_fails_cleanly_and_deleting_works() {
    let place = Place::new();
    let registry = TestRegistry::start();
    let name = push_heavy(&place, &registry);
    place.layout.image("small").file("a", 0o644, &noise(1 << 20, 9)).build();
    registry.push(&place.layout, "small", "small:1", &[]);
    with_private_mounts(|| {
        mount_disk(&place, 24 << 20);
        let store = place.store();
        let err = pull(&store, &name).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NoSpace, "{err}");
        assert!(err.to_string().contains("coracle gc"), "{err}");
        let output = place.coracle(&["pull", &name]).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{}", text(&output));
        assert_eq!((store.images().unwrap(), entries(&place.path("root/tmp"))), (vec![], BTreeSet::new()));
        store.gc(&GcOptions::default()).unwrap();
        assert_eq!(layers_inodes(&place).len(), 0);
        let small = pull(&store, &registry.name("small:1")).unwrap();
        // Not one block is left; then all goes.
        let mut filler = fs::File::create(place.path("root/filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 512]).is_ok() {}
        filler.sync_all().unwrap();
        store.remove(&small.id.to_string(), false).unwrap();
        let report = store.gc(&GcOptions::default()).unwrap();
        assert_eq!(report.layers, small.layers);
        assert_eq!((layers_inodes(&place).len(), entries(&place.path("root/tmp"))), (0, BTreeSet::new()));
    });
}

#[test]
fn hostile_layers_are_refused_and_leave_nothing() {
    let place = Place::new();
    let registry = TestRegistry::start();
    let source = place.path("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("f"), "pwned").unwrap();
    fs::hard_link(source.join("f"), source.join("g")).unwrap();
    symlink("/", source.join("slash")).unwrap();
    let tar = |name: &str, args: &[&str]| {
        let out = place.path(name);
        let mut all =
            vec!["-C".to_owned(), source.display().to_string(), "-P".into(), "-cf".into(), out.display().to_string()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        run("tar", &all);
        out
    };
    let outside = place.path("outside");
    let target = outside.display();
    let cases = [
        (
            "dots",
            tar("dots.tar", &["--transform=s,^f,../../../../../../../..TARGET,;s,TARGET,/tmp/x,", "f"]),
            r#"its path has a "..""#,
        ),
        (
            "hard",
            tar("hard.tar", &["--transform=s,^f,/etc/passwd,RSh", "f", "g"]),
            "which is not an earlier entry of this layer",
        ),
        ("hard-dots", tar("hd.tar", &["--transform=s,^f,../../etc/passwd,RSh", "f", "g"]), r#"its path has a "..""#),
        ("cut", cut(&place), "ends in the middle"),
        ("garbage", noise_file(&place), "not a tar header"),
    ];
    for (name, layer, expected) in cases {
        place.layout.image(name).tar(&layer).build();
        registry.push(&place.layout, name, &format!("{name}:1"), &[]);
        let output = place.coracle(&["pull", &registry.name(&format!("{name}:1"))]).output().unwrap();
        let said = text(&output);
        assert!(!output.status.success() && said.contains(expected), "{name}: {said}");
        assert_eq!(said.lines().filter(|line| line.contains("coracle: ")).count(), 1, "{name}: {said}");
        assert_eq!(entries(&place.path("root/layers/sha256")), BTreeSet::new(), "{name}");
        assert_eq!(entries(&place.path("root/tmp")), BTreeSet::new(), "{name}");
    }
    // An absolute name, and a link to the host's root that a later entry goes through: harmless, and inside.
    let through = tar("through.tar", &["--transform=s,^f,slash/coracle-was-here,", "slash", "f"]);
    let absolute = tar("absolute.tar", &[&format!("--transform=s,^f,{target},"), "f"]);
    place.layout.image("inside").tar(&through).tar(&absolute).build();
    let image = place.load("inside");
    assert!(!outside.exists() && !Path::new("/coracle-was-here").exists());
    with_private_mounts(|| {
        let merged = mount_snapshot(&place.store(), &image, &place.path("container"));
        assert_eq!(fs::read_to_string(merged.join("coracle-was-here")).unwrap(), "pwned");
        let inside = merged.join(outside.strip_prefix("/").unwrap());
        assert_eq!(fs::read_to_string(inside).unwrap(), "pwned");
    });
}

fn cut(place: &Place) -> PathBuf {
    let out = place.path("cut.tar");
    fs::write(&out, &archive(&place.path("source"))[..700]).unwrap();
    out
}

fn noise_file(place: &Place) -> PathBuf {
    let out = place.path("noise.tar");
    fs::write(&out, noise(4096, 5)).unwrap();
    out
}

#[test]
fn a_damaged_layer_is_rebuilt_alone() {
    let place = Place::new();
    let registry = TestRegistry::start();
    let name = push_heavy(&place, &registry);
    let store = place.store();
    let image = pull(&store, &name).unwrap();
    let before = layers_inodes(&place);
    let tree = place.path("root/layers/sha256").join(image.layers[1].hex()).join("fs");
    let mut content = fs::read(tree.join("b")).unwrap();
    content[4_000_000] ^= 1;
    fs::write(tree.join("b"), content).unwrap();
    let found = store.verify().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].layer.as_ref(), Some(&image.layers[1]), "{}", found[0]);
    let reference = Reference::parse(&name).unwrap();
    let source = Registry::new(RegistryConfig::default()).sources(&reference, &Keyring::default()).unwrap();
    let (again, damages) = store.repair(&reference, &source, &PullOptions::default(), &Silent).unwrap();
    assert_eq!((again.id, damages.len(), store.verify().unwrap()), (image.id, 1, vec![]));
    let after = layers_inodes(&place);
    assert_eq!(before.iter().filter(|inode| after.contains(inode)).count(), 2);
}
