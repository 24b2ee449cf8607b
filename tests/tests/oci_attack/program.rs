//! The runtime's own program: it may be run from inside, and never written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::oci_support::{Bundle, ours, runtime, wait_for};
use crate::tools::{ALL, Code, capabilities, perl, start};

/// A runtime that may be lost: a copy of the one under test.
struct Victim {
    _dir: tempfile::TempDir,
    path: PathBuf,
    content: Vec<u8>,
}

impl Victim {
    fn new(program: &std::path::Path) -> Victim {
        // By this name the attacker knows it: what else enters a container (nsenter, of the host) is to be spared.
        let dir = tempfile::Builder::new().prefix("coracle-victim-").tempdir().unwrap();
        let content = fs::read(program).unwrap();
        let path = dir.path().join(program.file_name().unwrap());
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Victim { _dir: dir, path, content }
    }

    fn is_whole(&self) -> bool {
        fs::read(&self.path).unwrap() == self.content
    }

    /// An exec in the container.
    fn exec(&self, bundle: &Bundle, args: &[&str]) {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(bundle.state_root()).args(["exec", &bundle.id]).args(args);
        command.stdin(Stdio::null()).output().unwrap();
    }
}

/// Keeps a descriptor of the runtime (a sealed one has no name but `/`), and writes it once nobody runs it.
const OVERWRITER: &str = r#"
    $| = 1; my %kept; my $n = 0;
    while (1) {
        opendir(my $d, "/proc"); 
        for my $p (grep { /^\d+$/ } readdir $d) {
            my $exe = readlink("/proc/$p/exe"); next unless defined $exe && ($exe eq "/" || $exe =~ m{/coracle-victim-});
            next if $kept{$p}; 
            sysopen(my $f, "/proc/$p/exe", 0x200000) or next;  # O_PATH
            # Meanwhile it may have become the container's own program.
            next unless readlink("/proc/self/fd/" . fileno($f)) eq $exe;
            $kept{$p} = $f; print "kept\n";
        }
        for my $p (keys %kept) {
            my $path = "/proc/self/fd/" . fileno($kept{$p});
            if (sysopen(my $w, $path, 1)) { syswrite($w, "overwritten"); print "overwritten\n"; }
            else { print "refused $!\n" if $n++ < 1000 && $! !~ /busy/; }
        }
        select(undef, undef, undef, 0.002);
    }"#;

/// A program of the image that is the runtime.
fn trap(bundle: &Bundle) {
    fs::write(bundle.rootfs().join("trap"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.rootfs().join("trap"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A container with an attacker in it that has every right but one over the host.
fn overwriting() -> Bundle {
    let mut bundle = perl(OVERWRITER);
    capabilities(&mut bundle, &ALL);
    trap(&bundle);
    bundle
}

#[test]
fn cve_2019_5736_the_runtime_is_not_overwritten_from_where_it_enters() {
    let victim = Victim::new(&runtime());
    let bundle = overwriting();
    start(&bundle);
    // The image makes it run itself, again and again; the attacker keeps what it can get hold of.
    for _ in 0..30 {
        victim.exec(&bundle, &["/trap"]);
        victim.exec(&bundle, &["/bin/sleep", "0.01"]);
    }
    if ours() {
        // It got hold of it, and was told that its place is read-only.
        wait_for("a refusal", || bundle.file("out").contains("refused Read-only"));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!bundle.file("out").contains("overwritten"), "{}", bundle.file("out"));
    assert!(victim.is_whole());
}

#[test]
fn cve_2019_5736_the_attack_does_overwrite_a_program_that_is_not_protected() {
    // The witness: a program of the host's that enters the container's PID namespace as it is.
    let victim = Victim::new(std::path::Path::new("/bin/busybox"));
    let bundle = overwriting();
    start(&bundle);
    let pid = bundle.state()["pid"].to_string();
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &pid, "--pid"]).arg(&victim.path).args(["sleep", "0.2"]);
    assert!(enter.stdin(Stdio::null()).status().unwrap().success());
    wait_for("the attack to work", || !victim.is_whole());
}

#[test]
fn cve_2019_5736_the_images_loader_does_not_get_the_runtime_to_write() {
    let victim = Victim::new(&runtime());
    let mut bundle = Bundle::sh("sleep 1000");
    capabilities(&mut bundle, &ALL);
    // What the kernel loads for a dynamic runtime that is run from inside. It opens the program (O_PATH, so that no lock
    // is in the way), becomes a shell, and the shell writes.
    fs::create_dir_all(bundle.rootfs().join("lib64")).unwrap();
    let (exe, shell) = (Code::text(0), Code::text(1));
    let argv = Code::text(2);
    let texts: [&[u8]; 5] = [
        b"/proc/self/exe",
        b"/bin/shell",
        &[u64::from(shell).to_le_bytes(), u64::from(Code::text(4)).to_le_bytes(), [0; 8]].concat(),
        b"",
        b"/attack",
    ];
    Code::default()
        .call(libc::SYS_open as u32, [exe, libc::O_PATH as u32, 0])
        .call(libc::SYS_dup2 as u32, [3, 9, 0])
        .call(libc::SYS_execve as u32, [shell, argv, 0])
        .exit_with_result()
        .write(&bundle.rootfs().join("lib64/ld-linux-x86-64.so.2"), &texts);
    fs::write(bundle.rootfs().join("bin/shell"), "#!/bin/sh\necho ran > /ran; exec 8> /proc/self/fd/9; echo x >&8\n")
        .unwrap();
    fs::set_permissions(bundle.rootfs().join("bin/shell"), fs::Permissions::from_mode(0o755)).unwrap();
    trap(&bundle);
    start(&bundle);
    for _ in 0..10 {
        victim.exec(&bundle, &["/trap"]);
    }
    let dynamic = victim.content.windows(27).any(|w| w == b"/lib64/ld-linux-x86-64.so.2");
    if ours() && dynamic {
        assert!(bundle.rootfs().join("ran").exists(), "the loader of the image was not run: the test proves nothing");
    }
    assert!(victim.is_whole());
}

#[test]
fn the_sealed_program_cannot_be_unsealed_by_mounts() {
    if !ours() {
        return; // The others are sealed in other ways.
    }
    let victim = Victim::new(&runtime());
    // All that mount(2) can be asked for with the right over the container's own mounts.
    let script = r#"
        $| = 1; my ($none, $to) = ("none", "/tmp/bound");
        while (1) {
            opendir(my $d, "/proc");
            for my $p (grep { /^\d+$/ } readdir $d) {
                my $exe = readlink("/proc/$p/exe"); next unless defined $exe && ($exe eq "/" || $exe =~ m{/coracle-victim-});
                my $path = "/proc/$p/exe";
                for my $flags (0x1020, 0x20, 0x1000, 0x5000) {  # remount and bind, remount, bind, recursive
                    my $r = syscall(165, $path, $to, $none, $flags, 0);
                    $r = syscall(165, $none, $path, $none, $flags, 0) if $r < 0;
                    print $r == 0 ? "changed $flags\n" : "refused\n";
                }
            }
        }"#;
    let mut bundle = perl(script);
    fs::write(bundle.rootfs().join("tmp/bound"), "").unwrap();
    capabilities(&mut bundle, &ALL);
    trap(&bundle);
    start(&bundle);
    for _ in 0..20 {
        victim.exec(&bundle, &["/trap"]);
    }
    wait_for("an attempt", || bundle.file("out").contains("refused"));
    assert!(!bundle.file("out").contains("changed"), "{}", bundle.file("out"));
    assert!(victim.is_whole());
}
