//! Images for tests, made by other people's tools: layers by GNU tar, the image by umoci, its transport by skopeo.
//!
//! An [`Layout`] is an OCI image layout in a directory; [`Layout::image`] builds one image in it, under a tag:
//!
//! ```no_run
//! # use coracle_tests::image::Layout;
//! let dir = tempfile::tempdir().unwrap();
//! let layout = Layout::create(&dir.path().join("layout"));
//! layout.image("box").busybox().file("etc/motd", 0o644, b"hello").config(&["--config.cmd", "sh"]).build();
//! ```
//!
//! No network is needed: the content is Debian's static busybox and whatever the test writes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program to its end and gives its standard output.
///
/// # Panics
/// When it cannot be run or fails: with its command line and all that it said.
pub fn run(program: &str, args: &[impl AsRef<OsStr>]) -> String {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|err| panic!("run {program}: {err}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// An OCI image layout in a directory.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes an empty layout; the directory must not exist yet.
    pub fn create(dir: &Path) -> Layout {
        run("umoci", &[OsStr::new("init"), OsStr::new("--layout"), dir.as_os_str()]);
        Layout { dir: dir.to_owned() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts an image with that tag, without any layer.
    pub fn image(&self, tag: &str) -> ImageBuilder<'_> {
        let image = format!("{}:{tag}", self.dir.display());
        run("umoci", &["new", "--image", &image]);
        ImageBuilder { layout: self, image, tree: None, layers: 0 }
    }

    /// skopeo's name of the image with that tag.
    pub fn transport(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Copies an image to where skopeo's other name points, with skopeo's further options.
    pub fn copy(&self, tag: &str, to: &str, options: &[&str]) {
        let from = self.transport(tag);
        let mut args = vec!["--insecure-policy", "copy", "--quiet"];
        args.extend(options);
        args.extend([from.as_str(), to]);
        run("skopeo", &args);
    }
}

/// Builds one image. Files gather in a tree, and [`layer`](Self::layer) closes it: what follows is another layer.
#[derive(Debug)]
pub struct ImageBuilder<'a> {
    layout: &'a Layout,
    image: String,
    tree: Option<tempfile::TempDir>,
    layers: u32,
}

impl ImageBuilder<'_> {
    /// Puts busybox into the layer, with a link for each of its applets, and the usual directories and users.
    pub fn busybox(mut self) -> Self {
        let root = self.tree();
        for dir in ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "var"] {
            fs::create_dir_all(root.join(dir)).expect("make a directory of the image");
        }
        set_mode(&root.join("tmp"), 0o1777);
        set_mode(&root.join("root"), 0o700);
        crate::copy_program("/bin/busybox", root.join("bin/busybox"));
        for applet in run("busybox", &["--list"]).lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
        self.file("etc/passwd", 0o644, users.as_bytes())
            .file("etc/group", 0o644, b"root:x:0:\ndaemon:x:1:nobody\nnogroup:x:65534:\n")
            .config(&["--config.env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
    }

    /// Writes a file into the layer, its directories made as needed.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let path = self.tree().join(path);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("make a directory of the image");
        fs::write(&path, content).unwrap_or_else(|err| panic!("write {}: {err}", path.display()));
        set_mode(&path, mode);
        self
    }

    /// Lets the caller fill the layer's tree by hand.
    pub fn with(mut self, fill: impl FnOnce(&Path)) -> Self {
        fill(&self.tree());
        self
    }

    /// Ends the layer that the calls before this one filled.
    pub fn layer(mut self) -> Self {
        if let Some(tree) = self.tree.take() {
            self.add_tree(tree.path());
        }
        self
    }

    /// Adds a directory of the machine as a layer of its own.
    pub fn dir(self, dir: &Path) -> Self {
        let mut builder = self.layer();
        builder.add_tree(dir);
        builder
    }

    /// Adds a tar archive, as it is, as a layer of its own.
    pub fn tar(self, archive: &Path) -> Self {
        let mut builder = self.layer();
        builder.add_tar(archive);
        builder
    }

    /// Sets the image's configuration by options of `umoci config`: `--config.cmd`, `--config.env`, ...
    pub fn config(self, options: &[&str]) -> Self {
        let mut args = vec!["config", "--no-history", "--image", &self.image];
        args.extend(options);
        run("umoci", &args);
        self
    }

    /// Finishes the image.
    pub fn build(self) {
        let builder = self.layer();
        run("umoci", &["gc", "--layout", &builder.layout.dir.to_string_lossy()]);
    }

    fn tree(&mut self) -> PathBuf {
        let tree = self.tree.get_or_insert_with(|| {
            let tree = tempfile::tempdir().expect("make a temporary directory");
            set_mode(tree.path(), 0o755);
            tree
        });
        tree.path().to_owned()
    }

    fn add_tree(&mut self, dir: &Path) {
        let archive = tempfile::NamedTempFile::new().expect("make a temporary file");
        let owner = ["--owner=0", "--group=0", "--numeric-owner", "--xattrs", "--sort=name", "-cf"].map(OsStr::new);
        let mut args = owner.to_vec();
        args.extend([archive.path().as_os_str(), OsStr::new("-C"), dir.as_os_str(), OsStr::new(".")]);
        run("tar", &args);
        self.add_tar(archive.path());
    }

    fn add_tar(&mut self, archive: &Path) {
        self.layers += 1;
        run("umoci", &["raw", "add-layer", "--image", &self.image, &archive.to_string_lossy()]);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|err| panic!("chmod {}: {err}", path.display()));
}
