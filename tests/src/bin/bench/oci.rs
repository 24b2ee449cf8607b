//! The life of a container: create, start, wait for its end, delete. Also `run`, `exec`, and the memory of `create`.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        ptrace,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    bundle,
    series::{Series, table},
    sys,
};

/// How long a container that runs `true` may take to end.
const PATIENCE: u16 = 10_000;

/// Peak memory hardly varies.
const MEMORY_ROUNDS: usize = 5;

#[derive(Args)]
pub struct Options {
    /// How often each contestant goes through each life.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// The contestants beside coracle-oci.
    #[arg(long, value_delimiter = ',', default_value = "crun,runc")]
    against: Vec<String>,
    /// Only the life without seccomp.
    #[arg(long)]
    quick: bool,
}

/// A runtime and where it keeps its state.
struct Contestant {
    name: String,
    program: PathBuf,
    root: PathBuf,
}

impl Contestant {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).status().with_context(|| format!("start {}", self.program.display()))?;
        ensure!(status.success(), "{} {}: {status}", self.name, args.join(" "));
        Ok(())
    }
}

pub fn run(options: &Options) -> Result<()> {
    // The containers' processes become our children when their creators leave, so that we can wait for them.
    nix::sys::prctl::set_child_subreaper(true)?;
    hide_unified()?;
    let scratch = tempfile::tempdir()?;
    let contestants: Vec<Contestant> = std::iter::once(("coracle-oci".to_owned(), coracle_tests::bin("coracle-oci")))
        .chain(options.against.iter().map(|name| (name.clone(), PathBuf::from(name))))
        .map(|(name, program)| {
            let root = scratch.path().join(format!("root-{}", name.replace('/', "_")));
            Contestant { name, program, root }
        })
        .collect();
    for seccomp in if options.quick { &[false][..] } else { &[false, true] } {
        let dir = scratch.path().join(if *seccomp { "filtered" } else { "plain" });
        let bundle = bundle::make(&dir, &["/bin/true"], &cgroup("life"), *seccomp)?;
        lives(&contestants, &bundle, options.rounds, *seccomp)?;
    }
    if !options.quick {
        let bundle = bundle::make(&scratch.path().join("run"), &["/bin/true"], &cgroup("run"), false)?;
        runs(&contestants, &bundle, options.rounds)?;
        execs(&contestants, scratch.path(), options.rounds)?;
    }
    Ok(())
}

/// crun refuses a host that has v1 controllers and a v2 tree with a controller of its own. For all contestants alike, the v2
/// tree is taken out of sight, in a mount namespace of this program.
pub fn hide_unified() -> Result<()> {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    if Path::new(UNIFIED).exists() {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (root is needed)")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
        umount2(UNIFIED, MntFlags::MNT_DETACH).with_context(|| format!("unmount {UNIFIED}"))?;
    }
    Ok(())
}

fn cgroup(what: &str) -> String {
    format!("/coracle-bench-{}-{what}", std::process::id())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn lives(contestants: &[Contestant], bundle: &Path, rounds: usize, seccomp: bool) -> Result<()> {
    let names = ["create", "start", "wait", "delete", "create + start + wait + delete"];
    let mut steps = vec![vec![Series::default(); names.len()]; contestants.len()];
    for round in 0..rounds + 1 {
        for (at, contestant) in contestants.iter().enumerate() {
            let times = life(contestant, bundle)?;
            // The first round fills caches.
            if round > 0 {
                times.iter().zip(&mut steps[at]).for_each(|(time, series)| series.add(*time));
            }
        }
    }
    let rows = |step: usize| -> Vec<(String, Series)> {
        contestants.iter().enumerate().map(|(at, c)| (c.name.clone(), steps[at][step].clone())).collect()
    };
    let with = if seccomp { "with the default seccomp profile" } else { "without seccomp" };
    for (step, name) in names.iter().enumerate() {
        table(&format!("{name}, {with}"), "ms", &rows(step));
    }
    let mut memory = vec![Series::default(); contestants.len()];
    for (contestant, series) in contestants.iter().zip(&mut memory) {
        for _ in 0..MEMORY_ROUNDS {
            series.add(peak_memory(contestant, bundle)?);
        }
    }
    let memory: Vec<_> = contestants.iter().zip(memory).map(|(c, series)| (c.name.clone(), series)).collect();
    table(&format!("peak resident memory of create, {with}"), "MB", &memory);
    Ok(())
}

/// One life: the times of its steps and of the whole.
fn life(contestant: &Contestant, bundle: &Path) -> Result<[f64; 5]> {
    let pid_file = bundle.join("pid");
    let (bundle, file) = (bundle.display().to_string(), pid_file.display().to_string());
    let begin = Instant::now();
    contestant.run(&["create", "--bundle", &bundle, "--pid-file", &file, "bench"])?;
    let created = millis(begin);
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    contestant.run(&["start", "bench"])?;
    let started = millis(begin);
    wait_for(pid)?;
    let ended = millis(begin);
    contestant.run(&["delete", "bench"])?;
    let deleted = millis(begin);
    Ok([created, started - created, ended - started, deleted - ended, deleted])
}

/// The peak resident memory of `create` in MB, read while the kernel holds it at its exit. (`ru_maxrss` would count what this
/// program was before the exec.)
fn peak_memory(contestant: &Contestant, bundle: &Path) -> Result<f64> {
    let pid_file = bundle.join("pid");
    let (bundle, file) = (bundle.display().to_string(), pid_file.display().to_string());
    let child = contestant.command(&["create", "--bundle", &bundle, "--pid-file", &file, "bench"]).spawn()?;
    let creator = Pid::from_raw(child.id() as i32);
    ptrace::seize(creator, ptrace::Options::PTRACE_O_TRACEEXIT).context("watch create")?;
    let mut status = String::new();
    loop {
        match waitpid(creator, None)? {
            WaitStatus::PtraceEvent(..) => {
                status = fs::read_to_string(format!("/proc/{creator}/status"))?;
                ptrace::cont(creator, None)?;
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(creator, signal)?,
            WaitStatus::Exited(_, 0) => break,
            other => bail!("{} create: {other:?}", contestant.name),
        }
    }
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    contestant.run(&["kill", "bench", "KILL"])?;
    wait_for(pid)?;
    contestant.run(&["delete", "bench"])?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find VmHWM")?;
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Waits for a process that is (or is about to be) our child by adoption.
fn wait_for(pid: i32) -> Result<()> {
    let pidfd = sys::pidfd_open(pid)?;
    if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(PATIENCE))? == 0 {
        bail!("the container's process {pid} did not end");
    }
    waitpid(Pid::from_raw(pid), None)?;
    Ok(())
}

fn runs(contestants: &[Contestant], bundle: &Path, rounds: usize) -> Result<()> {
    let bundle = bundle.display().to_string();
    let mut times = vec![Series::default(); contestants.len()];
    for round in 0..rounds + 1 {
        for (at, contestant) in contestants.iter().enumerate() {
            let begin = Instant::now();
            contestant.run(&["run", "--bundle", &bundle, "bench"])?;
            if round > 0 {
                times[at].add(millis(begin));
            }
        }
    }
    let rows: Vec<_> = contestants.iter().zip(times).map(|(c, series)| (c.name.clone(), series)).collect();
    table("run", "ms", &rows);
    Ok(())
}

fn execs(contestants: &[Contestant], scratch: &Path, rounds: usize) -> Result<()> {
    let mut pids = Vec::new();
    for (at, contestant) in contestants.iter().enumerate() {
        let dir = scratch.join(format!("exec-{at}"));
        let bundle = bundle::make(&dir, &["/bin/sleep", "1000"], &cgroup(&format!("exec-{at}")), false)?;
        let pid_file = dir.join("pid").display().to_string();
        let bundle = bundle.display().to_string();
        contestant.run(&["create", "--bundle", &bundle, "--pid-file", &pid_file, "bench"])?;
        contestant.run(&["start", "bench"])?;
        pids.push(fs::read_to_string(pid_file)?.trim().parse::<i32>()?);
    }
    let mut times = vec![Series::default(); contestants.len()];
    let outcome = (0..rounds + 1).try_for_each(|round| {
        contestants.iter().enumerate().try_for_each(|(at, contestant)| {
            let begin = Instant::now();
            contestant.run(&["exec", "bench", "/bin/true"])?;
            if round > 0 {
                times[at].add(millis(begin));
            }
            anyhow::Ok(())
        })
    });
    for (contestant, pid) in contestants.iter().zip(pids) {
        contestant.run(&["kill", "bench", "KILL"])?;
        wait_for(pid)?;
        std::thread::sleep(Duration::from_millis(20));
        contestant.run(&["delete", "bench"])?;
    }
    outcome?;
    let rows: Vec<_> = contestants.iter().zip(times).map(|(c, series)| (c.name.clone(), series)).collect();
    table("exec", "ms", &rows);
    Ok(())
}
