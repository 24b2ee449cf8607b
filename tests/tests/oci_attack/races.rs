//! Names that change while the runtime looks at them: a container that shares a directory exchanges a folder and a link.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use crate::oci_support::{Bundle, ours, peer, wait_for};
use crate::tools::{Outside, Setting, Swapper, perl, start};

/// Containers made while the names change.
const ROUNDS: usize = 40;

/// A shared volume, with `target` (a folder) and `link` (to the host) that can be exchanged.
fn volume(outside: &Outside) -> tempfile::TempDir {
    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("target")).unwrap();
    symlink(outside.path(), volume.path().join("link")).unwrap();
    // The witness: who walks this path as it is ends up on the host.
    fs::create_dir(volume.path().join("link/witness")).unwrap();
    fs::remove_dir(outside.path().join("witness")).unwrap();
    volume
}

fn swapper(volume: &Path) -> Swapper {
    Swapper::new(&volume.join("target"), &volume.join("link"))
}

/// The mount points of a container's process, each with what is mounted there.
fn mounts_of(bundle: &Bundle) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", bundle.state()["pid"])).unwrap();
    text.lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|fields| (fields[4].to_owned(), fields[3].to_owned()))
        .collect()
}

#[test]
fn cve_2021_30465_a_volume_is_mounted_in_the_container_or_nowhere() {
    let outside = Outside::new();
    let volume = volume(&outside);
    let payload = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("target/inner")).unwrap();
    let swapper = swapper(volume.path());
    let (mut made, mut elsewhere) = (0, 0);
    for _ in 0..ROUNDS {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        bundle.mount("/vol", "bind", volume.path().to_str().unwrap(), &["rbind"]);
        bundle.mount("/vol/target", "bind", payload.path().to_str().unwrap(), &["rbind"]);
        if bundle.create().code == 0 {
            made += 1;
            // What is mounted on a path of the host goes with the host's root, and is seen no more inside.
            let name = payload.path().file_name().unwrap().to_str().unwrap();
            let points: Vec<_> = mounts_of(&bundle).into_iter().filter(|(_, root)| root.ends_with(name)).collect();
            assert_eq!(points.len(), 1, "the volume was mounted outside: {points:?}");
            elsewhere += usize::from(points[0].0 != "/vol/target");
        }
        outside.assert_untouched();
    }
    assert!(swapper.thousands() > 1, "nobody raced");
    assert!(made > 0, "no container was ever made");
    println!("{made} containers of {ROUNDS}, in {elsewhere} of them the link was followed, inside");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(payload.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn cve_2024_45310_nothing_is_made_on_the_host_for_a_mount_target() {
    let outside = Outside::new();
    let volume = volume(&outside);
    let swapper = swapper(volume.path());
    for round in 0..ROUNDS {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.mount("/vol", "bind", volume.path().to_str().unwrap(), &["rbind"]);
        bundle.mount(&format!("/vol/target/folder-{round}/deep"), "tmpfs", "tmpfs", &[]);
        bundle.mount(&format!("/vol/target/file-{round}"), "bind", "/etc/hostname", &["bind"]);
        bundle.set("/process/cwd", json!(format!("/vol/target/cwd-{round}/deep")));
        bundle.run();
        outside.assert_untouched();
    }
    assert!(swapper.thousands() > 1, "nobody raced");
}

#[test]
fn cve_2021_30465_the_attacker_may_be_a_container_itself() {
    let outside = Outside::new();
    let volume = volume(&outside);
    let source = volume.path().to_str().unwrap();
    // The same exchange, by a container that has the volume and nothing else of the host.
    let mut attacker = perl(
        r#"$| = 1; my ($one, $other) = ("/vol/target", "/vol/link");
           for (my $n = 1;; $n++) { syscall(316, -100, $one, -100, $other, 2) == 0 or die; print "swap\n" if $n == 1000 }"#,
    );
    attacker.mount("/vol", "bind", source, &["rbind"]);
    start(&attacker);
    wait_for("the first swaps", || attacker.file("out").contains("swap"));
    for round in 0..ROUNDS / 3 {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.mount("/vol", "bind", source, &["rbind"]);
        bundle.mount(&format!("/vol/target/folder-{round}"), "tmpfs", "tmpfs", &[]);
        bundle.run();
        outside.assert_untouched();
    }
    assert_eq!(attacker.status(), "running");
}

#[test]
fn devices_and_copies_stay_inside_while_names_change() {
    let outside = Outside::new();
    let volume = volume(&outside);
    let swapper = swapper(volume.path());
    for round in 0..ROUNDS / 2 {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.mount("/vol", "bind", volume.path().to_str().unwrap(), &["rbind"]);
        bundle.mount("/vol/target", "tmpfs", "tmpfs", &["tmpcopyup"]);
        let path = format!("/vol/target/null-{round}");
        let device = json!([{ "path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o6777, "uid": 5 }]);
        bundle.set("/linux/devices", device);
        bundle.run();
        outside.assert_untouched();
    }
    assert!(swapper.thousands() > 1, "nobody raced");
}

/// A folder to be bound as /dev: nodes of our own, and what else an attacker puts there.
fn device_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mode = Mode::from_bits_truncate(0o666);
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        mknod(&dir.path().join(name), SFlag::S_IFCHR, mode, makedev(1, minor)).unwrap();
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    dir
}

/// The container's /dev is that folder.
fn with_devices(bundle: &mut Bundle, folder: &Path) {
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev");
    let bind = json!({ "destination": "/dev", "type": "bind", "source": folder, "options": ["rbind"] });
    bundle.config["mounts"].as_array_mut().unwrap().insert(1, bind);
    // Devices of the test's own making are allowed to be used.
    bundle.set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]));
}

#[test]
fn cve_2025_31133_a_false_null_covers_nothing_of_the_hosts() {
    let outside = Outside::new();
    let folder = device_folder();
    // What a masked file would be covered with: it could be read and written at the mask's place.
    for target in ["/proc/sys/kernel/core_pattern", "/secret", "/no/such/file"] {
        let _ = fs::remove_file(folder.path().join("null"));
        symlink(target, folder.path().join("null")).unwrap();
        let mut bundle = Bundle::sh("stat -c %t:%T /masked; cat /masked; echo stolen > /masked");
        fs::write(bundle.rootfs().join("secret"), "secret").unwrap();
        fs::write(bundle.rootfs().join("masked"), "masked").unwrap();
        with_devices(&mut bundle, folder.path());
        bundle.set("/linux/maskedPaths", json!(["/masked", "/proc/keys"]));
        let pattern = Setting::core_pattern();
        let answer = bundle.run();
        if ours() {
            assert_eq!(answer.ok().out, "1:3\n", "{target}");
        }
        assert_eq!(fs::read_to_string(bundle.rootfs().join("secret")).unwrap(), "secret");
        pattern.assert_untouched();
    }
    outside.assert_untouched();
}

#[test]
fn cve_2025_31133_the_mask_is_the_null_device_while_null_changes() {
    let folder = device_folder();
    symlink("/proc/sys/kernel/core_pattern", folder.path().join("link")).unwrap();
    let swapper = Swapper::new(&folder.path().join("null"), &folder.path().join("link"));
    for _ in 0..ROUNDS / 2 {
        let mut bundle = Bundle::sh("stat -c %t:%T /proc/keys /proc/timer_list");
        with_devices(&mut bundle, folder.path());
        bundle.set("/linux/maskedPaths", json!(["/proc/keys", "/proc/timer_list"]));
        let answer = bundle.run();
        assert!(answer.code != 0 || answer.out == "1:3\n1:3\n" || !ours(), "{answer:?}");
    }
    assert!(swapper.thousands() > 1, "nobody raced");
}

#[test]
fn cve_2025_52565_the_terminal_is_bound_inside_whatever_console_is() {
    let outside = Outside::new();
    let pattern = Setting::core_pattern();
    let folder = device_folder();
    fs::write(folder.path().join("console"), "").unwrap();
    symlink(outside.marker(), folder.path().join("link")).unwrap();
    let swapper = Swapper::new(&folder.path().join("console"), &folder.path().join("link"));
    for round in 0..ROUNDS / 2 {
        let script = "echo '|/stolen' 2>/dev/null > /proc/sys/kernel/core_pattern && echo wrote; sleep 1000";
        let mut bundle = Bundle::sh(script);
        with_devices(&mut bundle, folder.path());
        bundle.set("/process/terminal", json!(true));
        let socket = bundle.dir.path().join("console.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        if bundle.create_with(&["--console-socket", socket.to_str().unwrap()]).code == 0 {
            let terminals: Vec<_> = mounts_of(&bundle).into_iter().filter(|(_, root)| root == "/0").collect();
            assert_eq!(terminals.len(), 1, "round {round}: the terminal is not bound inside: {terminals:?}");
            bundle.oci(&["start", &bundle.id]).ok();
        }
        outside.assert_untouched();
    }
    assert!(swapper.thousands() > 1, "nobody raced");
    drop(swapper);
    // And standing still, at what a terminal must not be bound over for long: the masks come after it.
    for target in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/keys"] {
        for name in ["console", "link"] {
            let _ = fs::remove_file(folder.path().join(name));
        }
        symlink(target, folder.path().join("console")).unwrap();
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        with_devices(&mut bundle, folder.path());
        bundle.set("/process/terminal", json!(true));
        let socket = bundle.dir.path().join("console.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        if bundle.create_with(&["--console-socket", socket.to_str().unwrap()]).code == 0 {
            let masked = fs::metadata(format!("/proc/{}/root/proc/keys", bundle.state()["pid"])).unwrap();
            assert_eq!(masked.rdev(), makedev(1, 3), "{target}");
        }
    }
    pattern.assert_untouched();
}

#[test]
fn cve_2023_27561_proc_is_itself_while_its_place_changes() {
    // Two containers of one root filesystem: the other exchanges /proc and a link to a copy of its own making.
    let bundle = Bundle::sh("sleep 1000");
    fs::create_dir_all(bundle.rootfs().join("false/sys/kernel")).unwrap();
    symlink("/false", bundle.rootfs().join("link")).unwrap();
    let swapper = Swapper::new(&bundle.rootfs().join("proc"), &bundle.rootfs().join("link"));
    let mut made = 0;
    for _ in 0..ROUNDS {
        if bundle.create().code == 0 {
            made += 1;
            let mounts = mounts_of(&bundle);
            let points: Vec<_> = mounts.iter().map(|(point, _)| point.as_str()).collect();
            // Where procfs was mounted was no link then: nothing lies in what the link leads to.
            assert!(!points.contains(&"/false") || peer("crun"), "{points:?}");
            bundle.oci(&["delete", "--force", &bundle.id]).ok();
        }
    }
    assert!(swapper.thousands() > 1, "nobody raced");
    println!("{made} containers of {ROUNDS}");
}
