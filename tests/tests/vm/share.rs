//! Folders of the host in a virtual machine: those that the handler lets in, and no others.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use coracle_tests::machine::{IMAGE, until};
use nix::sys::signal::{Signal, kill};

use crate::common::{CLASS, Vms};

/// A machine whose handler lets in its folder `allowed`, and that folder.
fn machine() -> (Vms, PathBuf) {
    let mut folder = PathBuf::new();
    let vms = Vms::with_options(|machine| {
        folder = machine.path("allowed");
        format!("host_paths = [{folder:?}]\n")
    });
    fs::create_dir_all(folder.join("data/sub")).expect("make a folder");
    fs::create_dir(vms.path("other")).expect("make a folder");
    fs::write(vms.path("other/secret"), "secret").expect("write a file");
    (vms, folder)
}

/// A pod with two containers that have the same volumes: name, path here, type, read-only.
fn pod(vms: &Vms, name: &str, volumes: &[(&str, &Path, &str, bool)]) -> String {
    let mounts = volumes.iter().map(|(volume, _, _, read_only)| {
        format!("    - {{name: {volume}, mountPath: /mnt/{volume}, readOnly: {read_only}}}\n")
    });
    let sources = volumes.iter().map(|(volume, path, kind, _)| {
        format!("  - {{name: {volume}, hostPath: {{path: {:?}, type: {kind}}}}}\n", path.display().to_string())
    });
    let mounts: String = mounts.collect();
    let container = |name| {
        format!(
            "  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: ['sh', '-c', 'sleep 1000']\n    \
             volumeMounts:\n{mounts}"
        )
    };
    let spec = format!(
        "{CLASS}  terminationGracePeriodSeconds: 1\n  containers:\n{}{}  volumes:\n{}",
        container("main"),
        container("side"),
        sources.collect::<String>()
    );
    vms.pod(name, &spec)
}

/// What a process sees mounted.
fn mounts(pid: impl std::fmt::Display) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default()
}

#[test]
fn folders_and_files_of_the_host_are_shared_as_the_handler_allows() {
    let (vms, allowed) = machine();
    vms.ok(&["run", "-d", &vms.script_pod("plain", "true", "")]);
    vms.ok(&["rm", "-f", "plain"]);
    let before = vms.traces();
    let data = allowed.join("data");
    fs::write(data.join("word"), "from the host").unwrap();
    fs::write(allowed.join("file"), "one file").unwrap();
    symlink("/etc", data.join("absolute")).unwrap();
    symlink(vms.path("other"), data.join("out")).unwrap();
    symlink("../../other/secret", data.join("secret")).unwrap();
    symlink("data", allowed.join("link")).unwrap();
    let volumes = [
        ("data", data.as_path(), "Directory", false),
        ("same", &data, "\"\"", true),
        ("file", &allowed.join("file"), "File", false),
        ("new", &allowed.join("new"), "DirectoryOrCreate", false),
        ("link", &allowed.join("link"), "\"\"", false),
    ];
    vms.ok(&["run", "-d", &pod(&vms, "shared", &volumes)]);
    let inside = |line: &str| vms.inside("shared", line);

    assert_eq!(
        inside("cat /mnt/data/word /mnt/same/word /mnt/file /mnt/link/word").matches("from the host").count(),
        3
    );
    inside("echo inside > /mnt/data/sub/new; chown 1234:99 /mnt/data/sub/new; chmod 640 /mnt/data/sub/new");
    let meta = fs::metadata(data.join("sub/new")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 99, 0o640));
    assert_eq!(inside("cat /mnt/same/sub/new /mnt/link/sub/new"), "inside\ninside\n");
    assert_eq!(vms.ok(&["exec", "shared", "-c", "side", "--", "cat", "/mnt/data/sub/new"]), "inside\n");
    inside("echo more >> /mnt/file; mkdir /mnt/new/folder; mv /mnt/data/sub/new /mnt/data/sub/newer");
    assert_eq!(fs::read_to_string(allowed.join("file")).unwrap(), "one filemore\n");
    assert!(allowed.join("new/folder").is_dir() && data.join("sub/newer").is_file());
    fs::write(data.join("later"), "seen").unwrap();
    until("what the host writes is seen", || inside("cat /mnt/data/later 2>/dev/null || true") == "seen");

    // Read-only is so on both sides, and so is what is no volume.
    let refused = |line: &str| inside(&format!("({line}) 2>&1 || true"));
    for line in ["echo x > /mnt/same/word", "rm /mnt/same/word", "mount -o remount,rw,bind /mnt/same"] {
        assert!(!refused(line).is_empty(), "{line}");
    }
    assert_eq!(fs::read_to_string(data.join("word")).unwrap(), "from the host");
    assert!(refused("mknod /mnt/data/null c 1 3").contains("not permitted"), "no device nodes");
    // A link means what it means in the guest.
    assert_eq!(inside("cat /mnt/data/absolute/hostname"), inside("cat /etc/hostname"));
    assert!(refused("cat /mnt/data/out/secret; cat /mnt/data/secret").matches("No such file").count() == 2);

    let servers: Vec<_> = vms.processes().into_iter().filter(|(_, line)| line.contains("virtiofsd")).collect();
    assert_eq!(servers.len(), 2, "the server and its child: {servers:?}");
    let seen = mounts(servers[0].0);
    let attached = |kind: &'static str| {
        seen.lines().filter(move |line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(kind)))
    };
    assert_eq!((attached("/rw-").count(), attached("/ro-").count()), (4, 1), "{seen}");
    assert!(attached("/").all(|line| line.contains("nosuid") && line.contains("nodev")), "{seen}");
    assert!(attached("/ro-").all(|line| line.split(' ').nth(5).is_some_and(|words| words.starts_with("ro"))), "{seen}");
    assert_eq!(seen.lines().count(), 6, "nothing else: {seen}");
    assert!(!mounts("self").contains("coracle-share"), "and the host has none of it");

    vms.ok(&["rm", "-f", "shared"]);
    let kept = |trace: &str| ["/objects", "/state/vm", "/leases", "/last"].iter().any(|part| trace.contains(part));
    vms.assert_traces(&before, kept);
    assert!(!vms.processes().iter().any(|(_, line)| line.contains("virtiofsd")));
    assert_eq!(fs::read_to_string(data.join("later")).unwrap(), "seen");
}

#[test]
fn what_is_not_let_in_is_refused_by_name() {
    let (vms, allowed) = machine();
    symlink("../other", allowed.join("out")).unwrap();
    symlink(vms.path("other"), allowed.join("absolute")).unwrap();
    let other = vms.path("other");
    for (name, path, words) in [
        ("outside", other.clone(), "options.host_paths of handler vm can let it in"),
        ("out", allowed.join("out"), "a symbolic link in it leads outside of"),
        ("absolute", allowed.join("absolute"), "a symbolic link in it leads outside of"),
        ("below", allowed.join("out/secret"), "a symbolic link in it leads outside of"),
    ] {
        let said = vms.say(&["run", &pod(&vms, name, &[("v", &path, "\"\"", false)])]);
        let told = format!("{}{}", said.err, vms.ok(&["events"]));
        assert!(!said.status.success() && told.contains(words), "{name}: {told}");
        vms.say(&["rm", "-f", name]);
    }
    let propagated = fs::read_to_string(pod(&vms, "propagated", &[("v", &allowed, "\"\"", false)])).unwrap();
    let path = vms.path("propagated.yaml");
    fs::write(&path, propagated.replace("readOnly: false", "mountPropagation: HostToContainer")).unwrap();
    let said = vms.say(&["run", &path.display().to_string()]);
    let told = format!("{}{}", said.err, vms.ok(&["events"]));
    assert!(!said.status.success() && told.contains("no mount is propagated"), "{told}");
    vms.say(&["rm", "-f", "propagated"]);
}

#[test]
fn a_server_goes_with_its_machine_and_a_machine_with_its_server() {
    let (vms, allowed) = machine();
    let path = pod(&vms, "lost", &[("data", &allowed.join("data"), "Directory", false)]);
    let text = fs::read_to_string(&path).unwrap().replace("spec:\n", "spec:\n  restartPolicy: Never\n");
    fs::write(&path, &text).unwrap();
    let processes = |name: &str| {
        let all = vms.processes().into_iter().filter(|(_, line)| line.contains(name));
        all.map(|(pid, _)| pid).collect::<Vec<_>>()
    };
    vms.ok(&["run", "-d", &path]);
    // The one that serves is the other's child.
    let server = processes("virtiofsd").into_iter().max().expect("a server");
    kill(server, Signal::SIGKILL).expect("kill it");
    let lost = || vms.ok(&["describe", "lost"]);
    until("the pod's containers have ended", || lost().matches("VirtualMachineLost").count() >= 2);
    assert!(lost().contains("the server of its shared folder has ended"), "{}", lost());
    vms.ok(&["rm", "-f", "lost"]);

    fs::write(&path, text.replace("name: lost", "name: orphan")).unwrap();
    vms.ok(&["run", "-d", &path]);
    let supervisor = vms.pods().iter().find_map(|id| vms.supervisor(id)).expect("a supervisor");
    kill(supervisor, Signal::SIGKILL).expect("kill it");
    until("its children have ended", || processes("virtiofsd").is_empty() && processes("qemu-system").is_empty());
    vms.ok(&["rm", "-f", "orphan"]);
}
