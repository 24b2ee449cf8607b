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
