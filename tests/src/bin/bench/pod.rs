//! A pod's life (started detached, then removed), and the memory of the processes that stand behind a running one.
//!
//! Both contestants get the same YAML with the host's network, so that no network setup of either is compared with the other's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_tests::machine::Machine;
use nix::unistd::Pid;

use crate::{
    oci::hide_unified,
    series::{Series, table},
};

#[derive(Args)]
pub struct Options {
    /// How often each contestant starts and removes the pod.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Without podman.
    #[arg(long)]
    alone: bool,
}

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: bench}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: sleeper
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sleep, "100000"]
"#;

/// One of the two, with places of its own.
enum Contestant {
    Coracle(Machine),
    Podman { root: PathBuf, run: PathBuf, config: PathBuf },
}

/// podman's infra container comes from an image of ours, so that Debian's catatonit is not needed; and no limit is raised, which
/// would need CAP_SYS_RESOURCE.
const PODMAN_CONFIG: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
infra_image = "localhost/infra:latest"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// The infra image's program.
const INFRA_ENTRYPOINT: &str = r#"ENTRYPOINT ["/busybox", "sleep", "1000000"]"#;

impl Contestant {
    fn name(&self) -> &'static str {
        match self {
            Contestant::Coracle(_) => "coracle",
            Contestant::Podman { .. } => "podman",
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        match self {
            Contestant::Coracle(machine) => machine.command(args),
            Contestant::Podman { root, run, config } => {
                let mut command = Command::new("podman");
                command.env("CONTAINERS_CONF", config).args(["--storage-driver", "overlay", "--root"]);
                command.arg(root).arg("--runroot").arg(run).args(args);
                command
            }
        }
    }

    /// Runs a command; how long it took, in milliseconds.
    fn run(&self, args: &[&str]) -> Result<f64> {
        let begin = Instant::now();
        let mut command = self.command(args);
        // Output goes to a file: a pipe would stay open in what the command leaves running.
        let said = tempfile::NamedTempFile::new()?;
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.reopen()?).status();
        let status = status.with_context(|| format!("start {}", self.name()))?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        ensure!(status.success(), "{} {}: {}", self.name(), args.join(" "), fs::read_to_string(said.path())?);
        Ok(took)
    }

    fn start(&self, yaml: &str) -> Result<f64> {
        match self {
            Contestant::Coracle(_) => self.run(&["run", "-d", yaml]),
            Contestant::Podman { .. } => self.run(&["kube", "play", yaml]),
        }
    }

    fn remove(&self) -> Result<f64> {
        match self {
            Contestant::Coracle(_) => self.run(&["rm", "-f", "bench"]),
            Contestant::Podman { .. } => self.run(&["pod", "rm", "--force", "--time", "0", "bench"]),
        }
    }

    /// The proportional set size, in MB, of the processes that are there for the pod and are not the pod's own.
    fn memory(&self) -> Result<f64> {
        let behind = match self {
            Contestant::Coracle(machine) => machine.programs(),
            Contestant::Podman { root, .. } => monitors(&root.display().to_string())?,
        };
        Ok(behind.into_iter().map(pss).sum::<u64>() as f64 / 1024.0)
    }
}

/// podman's process for each container.
fn monitors(root: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("conmon") && line.contains(root) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn pss(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

pub fn run(options: &Options) -> Result<()> {
    hide_unified()?;
    let scratch = tempfile::tempdir()?;
    let yaml = scratch.path().join("pod.yaml");
    fs::write(&yaml, POD)?;
    let yaml = yaml.display().to_string();
    let mut contestants = vec![Contestant::Coracle(Machine::new())];
    if !options.alone {
        let place = |name: &str| scratch.path().join(name);
        fs::write(place("containers.conf"), PODMAN_CONFIG)?;
        let podman = Contestant::Podman { root: place("podman"), run: place("run"), config: place("containers.conf") };
        let archive = scratch.path().join("busybox.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/busybox-image");
        let made = Command::new(script).arg(&archive).arg("localhost/busybox:latest").status()?;
        ensure!(made.success(), "scripts/busybox-image: {made}");
        podman.run(&["load", "--input", &archive.display().to_string()])?;
        let infra = place("infra.tar");
        let packed = Command::new("tar").args(["-C", "/bin", "-cf"]).arg(&infra).arg("busybox").status()?;
        ensure!(packed.success(), "tar: {packed}");
        let change = ["import", "--change", INFRA_ENTRYPOINT, &infra.display().to_string(), "localhost/infra:latest"];
        podman.run(&change)?;
        contestants.push(podman);
    }
    let mut series = vec![[Series::default(), Series::default(), Series::default()]; contestants.len()];
    for round in 0..options.rounds + 1 {
        for (contestant, [starts, removals, memories]) in contestants.iter().zip(&mut series) {
            let started = contestant.start(&yaml)?;
            let memory = contestant.memory()?;
            let removed = contestant.remove()?;
            if round > 0 {
                starts.add(started);
                removals.add(removed);
                memories.add(memory);
            }
        }
    }
    let titles = [("pod: start, detached", "ms"), ("pod: remove", "ms"), ("pod: PSS of the processes behind it", "MB")];
    for (at, (title, unit)) in titles.iter().enumerate() {
        let rows: Vec<_> = contestants.iter().zip(&series).map(|(c, s)| (c.name().to_owned(), s[at].clone())).collect();
        table(title, unit, &rows);
    }
    Ok(())
}
