//! Pulling an image of at least 1 GiB in 6 layers from a registry on loopback: time, and processor time of all involved.
//!
//! The layers are cut from this machine's own files and packed by GNU tar and umoci; each contestant has directories of its own,
//! empty before each pull, and containerd is one of our own. The registry's work is nobody's and not counted.
//!
//! Nothing is deleted before the end: for a minute ext4 does not give out the inodes of deleted files again, and searching
//! for others then costs the next contestant more than half of the processor time that it needs otherwise.

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_tests::{
    image::{self, Layout},
    registry::Registry,
};

use crate::{
    series::{Series, table},
    sys,
};

const LAYERS: usize = 6;
/// More than a sixth of 1 GiB.
const LAYER_BYTES: u64 = 184 << 20;
/// Where the layers come from.
const TREES: [&str; 4] = ["/usr/lib", "/usr/share", "/usr/bin", "/usr/include"];
/// How long containerd may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub struct Options {
    /// How often each contestant pulls.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The contestants beside coracle.
    #[arg(long, value_delimiter = ',', default_value = "podman,containerd")]
    against: Vec<String>,
    /// Where the image is kept for the next time; needs 2 GB.
    #[arg(long, default_value = "/var/tmp/coracle-bench-image")]
    image_dir: PathBuf,
    /// Where the contestants unpack; needs 2 GB for each of them in each round.
    #[arg(long, default_value = "/var/tmp")]
    scratch: PathBuf,
}

/// Time and processor time of one pull, in seconds.
struct Cost {
    wall: f64,
    cpu: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let layout = layout(&options.image_dir)?;
    let registry = Registry::start();
    let name = registry.name("bench/big:1");
    println!("pushing the image");
    let (from, to) = (format!("oci:{}:big", layout.display()), format!("docker://{name}"));
    image::run("skopeo", &["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", &from, &to]);
    let contestants: Vec<&str> = std::iter::once("coracle").chain(options.against.iter().map(String::as_str)).collect();
    let mut walls = vec![Series::default(); contestants.len()];
    let mut cpus = vec![Series::default(); contestants.len()];
    let mut scratches = Vec::new();
    for _ in 0..options.rounds {
        for (at, contestant) in contestants.iter().enumerate() {
            let scratch = tempfile::Builder::new().prefix("coracle-bench-").tempdir_in(&options.scratch)?;
            // What others have written must not be waited for by this one.
            nix::unistd::sync();
            let cost = pull(contestant, scratch.path(), &name).with_context(|| format!("pull by {contestant}"))?;
            println!("  {contestant}: {:.1} s, {:.1} s of processor time", cost.wall, cost.cpu);
            walls[at].add(cost.wall);
            cpus[at].add(cost.cpu);
            scratches.push(scratch);
        }
    }
    let rows = |series: Vec<Series>| -> Vec<_> { contestants.iter().map(|c| (*c).to_owned()).zip(series).collect() };
    table("pull: time", "s", &rows(walls));
    table("pull: processor time", "s", &rows(cpus));
    Ok(())
}

fn pull(contestant: &str, scratch: &Path, name: &str) -> Result<Cost> {
    let dir = |sub: &str| scratch.join(sub).display().to_string();
    let (root, state) = (dir("root"), dir("state"));
    match contestant {
        "coracle" => {
            let program = coracle_tests::bin("coracle");
            measured(Command::new(program).args(["--root", &root, "--state", &state, "pull", name]))
        }
        "podman" => {
            let args = ["--root", &root, "--runroot", &state, "--storage-driver", "overlay", "pull", "--quiet"];
            measured(Command::new("podman").args(args).args(["--tls-verify=false", name]))
        }
        "containerd" => {
            let daemon = Containerd::start(scratch)?;
            let before = daemon.cpu()?;
            let args = ["--address", &daemon.socket, "images", "pull", "--plain-http", name];
            let mut cost = measured(Command::new("ctr").args(args))?;
            cost.cpu += daemon.cpu()? - before;
            Ok(cost)
        }
        other => anyhow::bail!("{other} is not known here: podman, containerd"),
    }
}

/// Runs a command; its time, and the processor time of it and its children.
fn measured(command: &mut Command) -> Result<Cost> {
    let begin = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let (pid, mut said) = (child.id() as i32, child.stderr);
    let mut text = String::new();
    if let Some(said) = &mut said {
        std::io::Read::read_to_string(said, &mut text)?;
    }
    let (status, usage) = sys::wait4(pid)?;
    ensure!(status == 0, "status {status}: {text}");
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    Ok(Cost { wall: begin.elapsed().as_secs_f64(), cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime) })
}

/// A containerd of our own.
struct Containerd {
    child: Child,
    socket: String,
}

impl Containerd {
    fn start(scratch: &Path) -> Result<Containerd> {
        let path = |name: &str| scratch.join(name).display().to_string();
        let socket = path("containerd.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            socket,
            path("ttrpc.sock")
        );
        fs::write(scratch.join("config.toml"), config)?;
        let log = fs::File::create(scratch.join("log"))?;
        let child = Command::new("containerd")
            .args(["--config", &path("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let daemon = Containerd { child, socket };
        let end = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&daemon.socket).is_err() {
            let log = || fs::read_to_string(scratch.join("log")).unwrap_or_default();
            ensure!(Instant::now() < end, "containerd does not listen:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// Processor time so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        // utime, stime, and those of children that were waited for: fields 14 to 17, in hundredths.
        let ticks: f64 = fields.iter().skip(11).take(4).filter_map(|n| n.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// The image, made on the first run.
fn layout(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("layout");
    if dir.join("complete").exists() {
        return Ok(path);
    }
    println!("making the image in {}", dir.display());
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    let layout = Layout::create(&path);
    let mut files = TREES.iter().flat_map(|tree| walk(Path::new(tree)));
    let mut builder = layout.image("big");
    for number in 0..LAYERS {
        let list = dir.join("list");
        let mut bytes = 0;
        let mut out = fs::File::create(&list)?;
        while bytes < LAYER_BYTES {
            let (path, size) = files.next().context("this machine's files do not fill the image")?;
            writeln!(out, "{}", path.display())?;
            bytes += size;
        }
        let archive = dir.join(format!("{number}.tar"));
        let status = Command::new("tar")
            .args(["--create", "--no-recursion", "--file"])
            .arg(&archive)
            .arg("--files-from")
            .arg(&list)
            .stderr(Stdio::null()) // It tells that it takes the leading slashes off.
            .status()?;
        ensure!(status.success(), "tar: {status}");
        builder = builder.tar(&archive);
        fs::remove_file(&archive)?;
    }
    builder.build();
    fs::write(dir.join("complete"), "")?;
    Ok(path)
}

/// Directories, regular files and symlinks beneath a tree, parents first, with their sizes.
fn walk(tree: &Path) -> Box<dyn Iterator<Item = (PathBuf, u64)>> {
    let Ok(entries) = fs::read_dir(tree) else { return Box::new(std::iter::empty()) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let own = std::iter::once((tree.to_path_buf(), 0));
    Box::new(own.chain(paths.into_iter().flat_map(|path| -> Box<dyn Iterator<Item = (PathBuf, u64)>> {
        let Ok(meta) = path.symlink_metadata() else { return Box::new(std::iter::empty()) };
        let plain = !path.to_string_lossy().contains('\n');
        match meta.file_type() {
            kind if kind.is_dir() => walk(&path),
            kind if (kind.is_file() || kind.is_symlink()) && plain => {
                Box::new(std::iter::once((path, if kind.is_file() { meta.size() } else { 0 })))
            }
            _ => Box::new(std::iter::empty()),
        }
    })))
}
