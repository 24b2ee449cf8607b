//! What an attacker has at hand: perl with its bare system calls, programs of a few instructions, and swappers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::oci_support::{Bundle, wait_for};

/// What root of a container without a user namespace can be given.
pub const ALL: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// Gives the container's process these capabilities.
pub fn capabilities(bundle: &mut Bundle, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(names));
    }
}

/// Gives the container a user namespace of its own.
pub fn user_namespace(bundle: &mut Bundle) {
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    bundle.namespace("user", Some(None));
    bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
}

/// Shows the host's /usr inside, read-only, for its perl.
pub fn with_perl(bundle: &mut Bundle) {
    fs::create_dir(bundle.rootfs().join("usr")).expect("mkdir");
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), bundle.rootfs().join(name)).expect("symlink");
    }
    bundle.mount("/usr", "bind", "/usr", &["rbind", "ro"]);
}

/// A container that runs a perl script.
pub fn perl(script: &str) -> Bundle {
    let mut bundle = Bundle::new(&["/usr/bin/perl", "-e", script]);
    with_perl(&mut bundle);
    bundle
}

/// Creates and starts it.
pub fn start(bundle: &Bundle) {
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
}

/// A process that exchanges two names as fast as it can, until it is dropped.
pub struct Swapper {
    child: Child,
    count: tempfile::NamedTempFile,
}

impl Swapper {
    /// Swaps two paths of the host. It is what a container does that shares the directory, without its start.
    pub fn new(one: &Path, other: &Path) -> Swapper {
        let count = tempfile::NamedTempFile::new().expect("a file");
        // 316 is renameat2, 2 RENAME_EXCHANGE.
        let script = r#"
            my ($one, $other, $file) = @ARGV;
            open(my $out, ">", $file) or die; $out->autoflush(1);
            for (my $n = 1;; $n++) {
                syscall(316, -100, $one, -100, $other, 2) == 0 or die "swap: $!";
                print $out "swap\n" if $n % 1000 == 0;
            }"#;
        let child = Command::new("perl")
            .args(["-MIO::Handle", "-e", script])
            .args([one, other, count.path()])
            .stdin(Stdio::null())
            .spawn()
            .expect("perl");
        let swapper = Swapper { child, count };
        wait_for("the first swaps", || swapper.thousands() > 0);
        swapper
    }

    /// How many thousand times it has swapped.
    pub fn thousands(&self) -> u64 {
        fs::metadata(self.count.path()).expect("stat").len() / 5
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// x86 machine code, as much of it as attacks take.
#[derive(Default)]
pub struct Code(Vec<u8>);

/// Where a program of [`Code`] is loaded.
const BASE: u64 = 0x40_0000;
/// Its code follows the header of the file and that of its only segment.
const ENTRY: u64 = 0x78;

impl Code {
    /// A system call by the 64-bit way.
    pub fn call(mut self, number: u32, args: [u32; 3]) -> Code {
        self.load(0xb8, number);
        for (register, value) in [0xbf, 0xbe, 0xba].into_iter().zip(args) {
            self.load(register, value);
        }
        self.0.extend([0x0f, 0x05]);
        self
    }

    /// A system call by the 32-bit way.
    pub fn call32(mut self, number: u32, args: [u32; 3]) -> Code {
        self.load(0xb8, number);
        for (register, value) in [0xbb, 0xb9, 0xba].into_iter().zip(args) {
            self.load(register, value);
        }
        self.0.extend([0xcd, 0x80]);
        self
    }

    /// Ends with the last call's result, without its sign, as the exit code.
    pub fn exit_with_result(mut self) -> Code {
        self.0.extend([0xf7, 0xd8, 0x89, 0xc7]); // neg eax; mov edi, eax
        self.load(0xb8, 60);
        self.0.extend([0x0f, 0x05]);
        self
    }

    fn load(&mut self, register: u8, value: u32) {
        self.0.push(register);
        self.0.extend(value.to_le_bytes());
    }

    /// The address of a text that the program carries at its end, 64 bytes for each.
    pub fn text(index: u64) -> u32 {
        (BASE + ENTRY + 512 + 64 * index) as u32
    }

    /// Writes an executable of the code and its texts.
    pub fn write(mut self, path: &Path, texts: &[&[u8]]) {
        assert!(self.0.len() <= 512, "more code than there is room for");
        self.0.resize(512, 0x90);
        for text in texts {
            assert!(text.len() < 64, "a text longer than its room");
            let end = self.0.len() + 64;
            self.0.extend(*text);
            self.0.resize(end, 0);
        }
        let size = ENTRY + self.0.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half = |file: &mut Vec<u8>, n: u16| file.extend(n.to_le_bytes());
        let word = |file: &mut Vec<u8>, n: u32| file.extend(n.to_le_bytes());
        let long = |file: &mut Vec<u8>, n: u64| file.extend(n.to_le_bytes());
        half(&mut file, 2); // an executable
        half(&mut file, 62); // of x86_64
        word(&mut file, 1);
        [BASE + ENTRY, 64, 0].into_iter().for_each(|n| long(&mut file, n));
        word(&mut file, 0);
        [64, 56, 1, 0, 0, 0].into_iter().for_each(|n| half(&mut file, n));
        word(&mut file, 1); // loaded,
        word(&mut file, 7); // for everything
        [0, BASE, BASE, size, size, 0x1000].into_iter().for_each(|n| long(&mut file, n));
        file.extend(self.0);
        fs::write(path, file).expect("write the program");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

/// A directory of the host's that nothing may be made in, with a file that nobody inside may see.
pub struct Outside {
    dir: tempfile::TempDir,
}

/// What the file holds.
pub const SECRET: &str = "of-the-host-alone";

impl Outside {
    pub fn new() -> Outside {
        let dir = tempfile::Builder::new().prefix("coracle-outside-").tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        fs::write(dir.path().join("marker"), SECRET).expect("write");
        Outside { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn marker(&self) -> PathBuf {
        self.dir.path().join("marker")
    }

    /// Nothing was made, changed or mounted there.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.path()).expect("list").flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["marker"], "made outside of the container");
        assert_eq!(fs::read_to_string(self.marker()).expect("read"), SECRET);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(self.path().to_str().expect("UTF-8")), "mounted outside: {mounts}");
    }
}

/// A setting of the host's that an attack aims at. Should one work, it is put back when the test has told so.
pub struct Setting(String);

/// What the kernel runs, as root of the host, when a process dumps core.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl Setting {
    /// The core pattern.
    pub fn core_pattern() -> Setting {
        Setting(fs::read_to_string(CORE_PATTERN).expect("read"))
    }

    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(fs::read_to_string(CORE_PATTERN).expect("read"), self.0, "a setting of the host was changed");
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if fs::read_to_string(CORE_PATTERN).is_ok_and(|now| now != self.0) {
            let _ = fs::write(CORE_PATTERN, &self.0);
        }
    }
}
