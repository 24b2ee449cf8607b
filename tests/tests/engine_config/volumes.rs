//! Volumes: read-only to the bottom, made when missing, and images.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use coracle_engine::{IdMapping, Mount, Propagation, SandboxConfig, UserNamespace};
use coracle_rootfs::{PullOptions, progress::Silent};
use coracle_tests::image::Layout;
use coracle_tests::machine::sh;
use coracle_tests::rig::{IMAGE, Rig, rig, script};

use crate::{lines, refusal};

/// A tmpfs of the host, gone with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: &Path) -> Mounted {
        fs::create_dir_all(path).unwrap();
        sh(&format!("mount -t tmpfs coracle-test {}", path.display()));
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn recursive_read_only_reaches_the_mounts_below_and_plain_read_only_does_not() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let volume = rig.dir.join("vol");
        let _below = Mounted::new(&volume.join("below"));
        let mount = |to: &str, deep: bool| Mount {
            host_path: volume.clone(),
            container_path: to.into(),
            readonly: true,
            recursive_read_only: deep,
            ..Default::default()
        };
        let look = "touch /ro/x 2>/dev/null || echo a; touch /ro/below/x && echo b; \
                    touch /rro/x 2>/dev/null || echo c; touch /rro/below/y 2>/dev/null || echo d";
        let mut config = script("look", look);
        config.mounts = vec![mount("/ro", false), mount("/rro", true)];
        assert_eq!(lines(rig, &sandbox.id, config).await, ["a", "b", "c", "d"]);
    });
}

#[test]
fn recursive_read_only_contradicts_writing_and_propagation() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let base = Mount {
            host_path: rig.dir.clone(),
            container_path: "/v".into(),
            recursive_read_only: true,
            ..Default::default()
        };
        let shared = Mount { readonly: true, propagation: Propagation::HostToContainer, ..base.clone() };
        for mount in [base, shared] {
            let mut config = script("main", "");
            config.mounts = vec![mount];
            let error = refusal(rig, &sandbox.id, config).await;
            assert!(error.contains("/v") && error.contains("recursive_read_only"), "{error}");
        }
    });
}

#[test]
fn a_missing_source_is_made_only_where_that_is_asked_for() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let path = rig.dir.join("made/by/need");
        let mount = |create_source| Mount {
            host_path: path.clone(),
            container_path: "/v".into(),
            create_source,
            ..Default::default()
        };
        let mut config = script("main", "touch /v/x");
        config.mounts = vec![mount(false)];
        let error = refusal(rig, &sandbox.id, config.clone()).await;
        assert!(error.contains("made/by/need") && !path.exists(), "{error}");
        config.mounts = vec![mount(true)];
        lines(rig, &sandbox.id, config).await;
        assert!(path.join("x").exists());
    });
}

/// Loads an image of two layers with links that try to leave it. Returns its name.
fn tree_image(rig: &Rig) -> String {
    let layout = Layout::create(&rig.dir.join("layout"));
    let builder =
        layout.image("tree").file("dir/file", 0o644, b"below\n").file("dir/sub/leaf", 0o755, b"leaf\n").layer();
    let links = |root: &Path| {
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), "of the image\n").unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink("../../../../../../etc", root.join("dir/upwards")).unwrap();
    };
    builder.file("dir/file", 0o644, b"above\n").with(links).build();
    rig.engine.store().load(layout.dir(), &PullOptions::default(), &Silent).expect("load the image");
    let images = rig.engine.store().images().expect("list the images");
    let tree = images.iter().find(|image| !image.names.iter().any(|name| name == IMAGE));
    tree.expect("the new image").id.to_string()
}

fn image(image: &str, sub: &str, to: &str) -> Mount {
    Mount {
        image: Some(image.into()),
        image_sub_path: sub.into(),
        container_path: to.into(),
        readonly: true,
        ..Default::default()
    }
}

#[test]
fn an_image_is_a_volume_whole_or_in_part() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let tree = tree_image(rig);
        let look = "cat /all/dir/file /part/leaf /one; touch /all/x 2>/dev/null || echo readonly; \
                    /part/leaf 2>/dev/null || echo noexec; cat /abs/passwd /up/passwd; /box/busybox true 2>/dev/null || echo noexec";
        let mut config = script("look", look);
        config.mounts = vec![
            image(&tree, "", "/all"),
            image(&tree, "dir/sub", "/part"),
            image(&tree, "dir/file", "/one"),
            image(&tree, "absolute", "/abs"),
            image(&tree, "dir/upwards", "/up"),
            image(IMAGE, "bin", "/box"),
        ];
        let seen = lines(rig, &sandbox.id, config).await;
        let inside = "of the image";
        assert_eq!(seen, ["above", "leaf", "above", "readonly", "noexec", inside, inside, "noexec"]);
        // While a container has it, its layers are held; with the container the leases go.
        let leases = rig.engine.store().leases().unwrap();
        assert_eq!(leases.len(), 7, "{leases:?}");
    });
}

#[test]
fn an_image_volume_in_a_user_namespace_shows_its_own_users() {
    rig(async |rig| {
        let maps = vec![IdMapping { container_id: 0, host_id: 200_000, length: 65_536 }];
        let user_namespace = Some(UserNamespace { uids: maps.clone(), gids: maps });
        let sandbox = rig.engine.run_sandbox(SandboxConfig { user_namespace, ..rig.pod("web") }).await.unwrap();
        let tree = tree_image(rig);
        let mut config = script("look", "stat -c %u /all/dir/file /part/leaf; cat /part/leaf");
        config.mounts = vec![image(&tree, "", "/all"), image(&tree, "dir/sub", "/part")];
        assert_eq!(lines(rig, &sandbox.id, config).await, ["0", "0", "leaf"]);
    });
}

#[test]
fn an_image_volume_that_cannot_be_names_what_is_missing() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let mut config = script("main", "");
        for (mount, words) in [
            (image("localhost/nothing:1", "", "/v"), "localhost/nothing:1"),
            (image(IMAGE, "no/such/dir", "/v"), "no/such/dir"),
            (image(IMAGE, "../etc", "/v"), "image_sub_path"),
            (image(IMAGE, "/etc", "/v"), "image_sub_path"),
        ] {
            config.mounts = vec![mount];
            let error = refusal(rig, &sandbox.id, config.clone()).await;
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(rig.engine.store().leases().unwrap(), []);
    });
}

fn part(source: &Path, sub: &str, to: &str) -> Mount {
    Mount { host_path: source.into(), sub_path: sub.into(), container_path: to.into(), ..Default::default() }
}

#[test]
fn a_part_of_a_volume_is_found_beneath_it_alone() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let volume = rig.engine.make_volume(&sandbox.id, "v").unwrap();
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/file"), "inside\n").unwrap();
        symlink("a/b", volume.join("near")).unwrap();
        symlink("/etc", volume.join("far")).unwrap();
        symlink("../../../../../../../../etc", volume.join("a/up")).unwrap();
        let mut config = script("look", "cat /dir/file /linked/file /file; echo more > /dir/new");
        config.mounts =
            vec![part(&volume, "a/b", "/dir"), part(&volume, "near", "/linked"), part(&volume, "a/b/file", "/file")];
        assert_eq!(lines(rig, &sandbox.id, config).await, ["inside"; 3]);
        assert_eq!(fs::read_to_string(volume.join("a/b/new")).unwrap(), "more\n");
        for (sub, words) in [
            ("far", "leads out of the volume"),
            ("far/passwd", "leads out of the volume"),
            ("a/up", "leads out of the volume"),
            ("../x", "`..`"),
            ("/etc", "relative"),
            ("no/such", "no/such"),
        ] {
            let mut config = script("main", "");
            config.mounts = vec![part(&volume, sub, "/v")];
            let error = refusal(rig, &sandbox.id, config).await;
            assert!(error.contains(words) && error.contains("/v"), "{sub}: {error}");
        }
    });
}

#[test]
fn a_part_that_is_swapped_for_a_link_at_that_moment_never_shows_the_host() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let volume = rig.engine.make_volume(&sandbox.id, "v").unwrap();
        let outside = rig.dir.join("outside");
        for (dir, text) in [(volume.join("d/x"), "inside\n"), (outside.join("x"), "outside\n")] {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), text).unwrap();
        }
        symlink(&outside, volume.join("l")).unwrap();
        // What a hostile container of the same pod does: the folder and the link change places all the time. It ends with
        // this program, however that ends.
        let place = volume.display();
        let swap = "import ctypes, os, sys\nlibc, parent = ctypes.CDLL(None), os.getppid()\n\
                    a, b = [p.encode() for p in sys.argv[1:3]]\n\
                    while os.getppid() == parent:\n for _ in range(1000): libc.renameat2(-100, a, -100, b, 2)";
        let (d, l) = (format!("{place}/d"), format!("{place}/l"));
        let mut swapper = std::process::Command::new("python3").args(["-c", swap, &d, &l]).spawn().unwrap();
        let (mut seen, mut refused) = (0, 0);
        for attempt in 0..30 {
            let mut config = script("look", "cat /v/file");
            config.attempt = attempt;
            config.mounts = vec![part(&volume, "d/x", "/v")];
            match rig.engine.create_container(&sandbox.id, config).await {
                Ok(id) => {
                    rig.engine.start_container(&id).await.unwrap();
                    rig.engine.wait_container(&id).await.unwrap();
                    let log = rig.log(&id);
                    assert!(!log.is_empty() && log.lines().all(|line| line == "inside"), "{log}");
                    seen += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("leads out of the volume"), "{error}");
                    refused += 1;
                }
            }
        }
        swapper.kill().unwrap();
        swapper.wait().unwrap();
        eprintln!("{seen} began inside, {refused} were refused");
    });
}

#[test]
fn a_volume_in_memory_has_its_size_and_goes_with_the_running_pod() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        let volume = rig.engine.make_memory_volume(&sandbox.id, "m", 1 << 20).unwrap();
        let mut config = script("fill", "dd if=/dev/zero of=/m/x bs=64k count=32 2>/dev/null; stat -c '%s %a' /m/x /m");
        config.mounts = vec![Mount { host_path: volume, container_path: "/m".into(), ..Default::default() }];
        let seen = lines(rig, &sandbox.id, config).await;
        assert!(seen[0].starts_with("1048576 ") && seen[1].ends_with(" 777"), "{seen:?}");
        let again = rig.another().make_memory_volume(&sandbox.id, "m", 1 << 20).unwrap();
        assert!(again.join("x").exists(), "the same mount for the pod's next container");
        rig.engine.stop_sandbox(&sandbox.id).await.unwrap();
        assert!(!again.join("x").exists());
    });
}
