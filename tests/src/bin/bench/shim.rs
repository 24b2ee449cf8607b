//! containerd's handlers: our supervisor and Debian's containerd-shim-runc-v2 under one containerd, driven by `ctr`, taking turns.
//!
//! `ctr` itself takes its time, the same for both: `ctr version` is measured as well and told apart, so that the last column of
//! each table, the ratio, can be read with it and without it. Memory is the proportional set size of all processes that a
//! handler keeps behind one container at rest, the container's own left out.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_tests::containerd::{Containerd, HANDLER};

use crate::series::{Series, table};

/// The peer's handler.
const PEER: &str = "io.containerd.runc.v2";
/// What was started is at rest after this long: a supervisor gives back what it needed to start.
const REST: Duration = Duration::from_millis(1500);

#[derive(Args)]
pub struct Options {
    /// How often each contestant goes through each life.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// How often its memory is measured.
    #[arg(long, default_value_t = 3)]
    memories: usize,
}

/// A contestant's times in ms, and its memory in MB.
#[derive(Clone, Default)]
struct Row {
    run: Series,
    start: Series,
    exec: Series,
    memory: Series,
}

struct Bench {
    containerd: Containerd,
    rootfs: String,
}

impl Bench {
    /// Runs `ctr`, which must succeed: the time it took in ms.
    fn ctr(&self, args: &[&str]) -> Result<f64> {
        let mut command = self.containerd.command(args);
        let begin = Instant::now();
        let output = command.output().context("run ctr")?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {}: {said}\n{}", args.join(" "), self.containerd.log());
        Ok(took)
    }

    fn run(&self, handler: &str) -> Result<f64> {
        self.ctr(&["run", "--rm", "--runtime", handler, "--rootfs", &self.rootfs, "once", "/bin/true"])
    }

    /// A container at rest: the time of its start, and of a program in it; and, if asked for, the memory behind it.
    fn life(&self, handler: &str, row: &mut Row, memory: bool) -> Result<()> {
        let create = ["containers", "create", "--runtime", handler, "--rootfs", &self.rootfs, "web"];
        self.ctr(&[&create[..], &["/bin/sleep", "1000"]].concat())?;
        row.start.add(self.ctr(&["tasks", "start", "--detach", "--null-io", "web"])?);
        row.exec.add(self.ctr(&["tasks", "exec", "--exec-id", "one", "web", "/bin/true"])?);
        if memory {
            std::thread::sleep(REST);
            row.memory.add(self.memory()?);
        }
        // It tells the code of a container that was killed as its own failure.
        let _ = self.ctr(&["tasks", "delete", "--force", "web"]);
        self.ctr(&["containers", "delete", "web"])?;
        Ok(())
    }

    /// The memory of the handlers' processes in MB.
    fn memory(&self) -> Result<f64> {
        let mut sum = 0.0;
        for pid in self.containerd.supervisors() {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
            sum += line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
        }
        ensure!(sum > 0.0, "nobody is behind the container");
        Ok(sum)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let containerd = Containerd::new("");
    let rootfs = containerd.path("rootfs").display().to_string();
    let bench = Bench { containerd, rootfs };
    let contestants = [("coracle", HANDLER), ("runc's shim", PEER)];
    let mut rows = vec![Row::default(); contestants.len()];
    let mut client = Series::default();
    for (_, handler) in contestants {
        // Fills caches.
        bench.run(handler)?;
        bench.life(handler, &mut Row::default(), false)?;
    }
    for round in 0..options.rounds {
        client.add(bench.ctr(&["version"])?);
        for ((_, handler), row) in contestants.iter().zip(&mut rows) {
            row.run.add(bench.run(handler)?);
            bench.life(handler, row, round < options.memories)?;
        }
    }
    let of = |what: fn(&Row) -> &Series| -> Vec<_> {
        contestants.iter().zip(&rows).map(|((name, _), row)| ((*name).to_owned(), what(row).clone())).collect()
    };
    table("shim: ctr run --rm, a container that ends at once", "ms", &of(|row| &row.run));
    table("shim: ctr tasks start --detach", "ms", &of(|row| &row.start));
    table("shim: ctr tasks exec", "ms", &of(|row| &row.exec));
    table("shim: PSS of the processes behind one container", "MB", &of(|row| &row.memory));
    let own = client.median();
    println!("\nctr version takes {own:.2} ms; without as much, coracle / runc's shim:");
    for (name, what) in
        [("run", (|row| &row.run) as fn(&Row) -> &Series), ("start", |row| &row.start), ("exec", |row| &row.exec)]
    {
        let net = |row: &Row| what(row).median() - own;
        println!("  {name:<16} {:.2}", net(&rows[0]) / net(&rows[1]));
    }
    Ok(())
}
