//! Pods in virtual machines, as kubelet sees them: the time until a sandbox is ready, a program's round trip in it, the
//! memory that the machine takes beyond its guest's, and whether boots succeed, one by one and several at once.
//!
//! Each kernel is a handler of its own, and with `--template` each is measured again with machines that are copies of one
//! that has booted. Without a usable KVM all of it is emulated, which is said: such times are no measure of a node's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_tests::cri::{self, Node, Runtime, node_with, script};
use k8s_cri::v1;

use crate::series::{Series, table};

/// Pods that are made at the same time.
const AT_ONCE: usize = 4;
/// A machine is at rest after this long.
const REST: Duration = Duration::from_secs(2);
/// The whole benchmark takes no longer.
const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Args)]
pub struct Options {
    /// Folders made by scripts/guest-kernel; each is measured.
    #[arg(long, default_value = "/usr/lib/coracle/vm")]
    kernel: Vec<PathBuf>,
    /// Measures machines from templates as well.
    #[arg(long)]
    template: bool,
    /// How many pods are made and removed one after the other.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many programs are run in each.
    #[arg(long, default_value_t = 20)]
    execs: usize,
    /// How often four pods are made at the same time.
    #[arg(long, default_value_t = 5)]
    bursts: usize,
}

/// One handler's times in ms, and memory in MB.
#[derive(Default)]
struct Row {
    handler: String,
    ready: Series,
    container: Series,
    exec: Series,
    removal: Series,
    /// Of the machine beyond the guest's, of the link and the supervisor.
    behind: Series,
    /// The guest's own, as far as it was used.
    guest: Series,
    at_once: Series,
    pods: usize,
    failures: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut config = String::new();
    let mut rows = Vec::new();
    for (number, folder) in options.kernel.iter().enumerate() {
        ensure!(folder.join("vmlinux").is_file(), "{}: no vmlinux (scripts/guest-kernel makes one)", folder.display());
        let name = folder.file_name().map_or("vm".into(), |name| name.to_string_lossy());
        for template in [false, true].into_iter().filter(|template| !template || options.template) {
            let handler = format!("{}{}{name}", number + 1, if template { "t-" } else { "-" });
            config += &format!(
                "[handlers.{handler:?}]\ntype = \"vm\"\n[handlers.{handler:?}.options]\nkernel_dir = {folder:?}\n\
                 allow_emulation = true\ntemplate = {template}\n"
            );
            rows.push(Row { handler, ..Row::default() });
        }
    }
    let mut result = Ok(());
    let node_options = cri::Options { config, deadline: DEADLINE, ..cri::Options::default() };
    node_with(node_options, async |node| result = measure(options, node, &mut rows).await);
    result?;
    print(&rows);
    Ok(())
}

async fn measure(options: &Options, node: &Node, rows: &mut [Row]) -> Result<()> {
    for round in 0..options.rounds + 1 {
        for row in rows.iter_mut() {
            let name = format!("{}-{round}", row.handler);
            // The first round makes what is kept: the image's file system, templates, the bridge.
            let mut unused = Row { handler: row.handler.clone(), ..Row::default() };
            let done = life(options, node, &name, if round == 0 { &mut unused } else { &mut *row }).await;
            row.failures.extend(done.err().map(|error| format!("{name}: {error:#}")));
            row.pods += 1;
        }
    }
    for burst in 0..options.bursts {
        for row in rows.iter_mut() {
            at_once(node, burst, row).await;
        }
    }
    Ok(())
}

/// A pod with one container: made, used and removed.
async fn life(options: &Options, node: &Node, name: &str, row: &mut Row) -> Result<()> {
    let mut runtime = node.runtime();
    let begin = Instant::now();
    let id = make(node, name, &row.handler).await?;
    row.ready.add(millis(begin));
    let begin = Instant::now();
    let create = v1::CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(script("main", "exec sleep 100000")),
        sandbox_config: Some(node.pod(name)),
    };
    let container = runtime.create_container(create).await?.into_inner().container_id;
    runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await?;
    row.container.add(millis(begin));
    for _ in 0..options.execs {
        let begin = Instant::now();
        let exec = v1::ExecSyncRequest {
            container_id: container.clone(),
            cmd: vec!["/bin/true".into()],
            ..Default::default()
        };
        let code = runtime.exec_sync(exec).await?.into_inner().exit_code;
        ensure!(code == 0, "true ended with {code}");
        row.exec.add(millis(begin));
    }
    tokio::time::sleep(REST).await;
    let (behind, guest) = memory(&node.path(""), &id)?;
    row.behind.add(behind);
    row.guest.add(guest);
    let begin = Instant::now();
    remove(&mut runtime, id).await?;
    row.removal.add(millis(begin));
    Ok(())
}

async fn make(node: &Node, name: &str, handler: &str) -> Result<String> {
    let config = node.pod(name);
    fs::create_dir_all(&config.log_directory)?;
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
    Ok(node.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn remove(runtime: &mut Runtime, id: String) -> Result<()> {
    runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
    runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    Ok(())
}

/// Several pods at the same time: the time until the last is ready.
async fn at_once(node: &Node, burst: usize, row: &mut Row) {
    let begin = Instant::now();
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("{}-burst{burst}-{number}", row.handler)).collect();
    let all = futures_of(names.iter().map(|name| make(node, name, &row.handler))).await;
    let took = millis(begin);
    let before = row.failures.len();
    for (name, made) in names.iter().zip(all) {
        let removed = match made {
            Ok(id) => remove(&mut node.runtime(), id).await,
            Err(error) => Err(error),
        };
        row.failures.extend(removed.err().map(|error| format!("{name}: {error:#}")));
        row.pods += 1;
    }
    if row.failures.len() == before {
        row.at_once.add(took);
    }
}

/// Awaits all, which go on side by side.
async fn futures_of<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = all.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(cx) {
                *output = Some(ready);
            }
        }
        match waiting.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

fn millis(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// The memory of a pod's processes in MB: what is not its guest's, and what is.
fn memory(place: &Path, sandbox: &str) -> Result<(f64, f64)> {
    let (mut behind, mut guest) = (0.0, 0.0);
    let processes = processes()?;
    let monitor = processes.iter().find(|process| process.monitor && process.serves(place, sandbox, &processes));
    let supervisor = monitor.context("no machine monitor is found for the pod")?.parent;
    for process in processes.iter().filter(|one| one.pid == supervisor || one.parent == supervisor) {
        let (all, of_guest) = process.memory()?;
        behind += (all - of_guest) / 1024.0;
        guest += of_guest / 1024.0;
    }
    Ok((behind, guest))
}

/// A process of this machine.
struct Process {
    pid: i32,
    parent: i32,
    monitor: bool,
}

fn processes() -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Any process can end while it is looked at.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        let parent = rest.split(' ').nth(1).and_then(|parent| parent.parse().ok()).unwrap_or_default();
        processes.push(Process { pid, parent, monitor: name.contains("(qemu-system") });
    }
    Ok(processes)
}

impl Process {
    /// Whether its parent is the supervisor of this pod, whose working directory is the pod's.
    fn serves(&self, place: &Path, sandbox: &str, all: &[Process]) -> bool {
        let parent = all.iter().find(|process| process.pid == self.parent);
        let folder = parent.and_then(|parent| fs::read_link(format!("/proc/{}/cwd", parent.pid)).ok());
        folder.is_some_and(|folder| folder.starts_with(place) && folder.to_string_lossy().contains(sandbox))
    }

    /// Its proportional set size in kB, and the part of it that is a guest's memory: a mapping of exactly that size.
    fn memory(&self) -> Result<(f64, f64)> {
        let words = fs::read(format!("/proc/{}/cmdline", self.pid))?;
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let size = words.iter().position(|word| word == "-m").and_then(|at| words.get(at + 1));
        let size = size.and_then(|size| size.trim_end_matches('M').parse::<f64>().ok()).filter(|_| self.monitor);
        let guest_size = size.map(|megabytes| megabytes * 1024.0);
        ensure!(guest_size.is_some() == self.monitor, "the monitor's command line does not tell the guest's size");
        let (mut all, mut of_guest, mut mapping) = (0.0, 0.0, 0.0);
        for line in fs::read_to_string(format!("/proc/{}/smaps", self.pid))?.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let kilobytes = || value.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default();
            match name {
                "Size" => mapping = kilobytes(),
                "Pss" if Some(mapping) == guest_size => (all, of_guest) = (all + kilobytes(), of_guest + kilobytes()),
                "Pss" => all += kilobytes(),
                _ => {}
            }
        }
        ensure!(of_guest > 0.0 || !self.monitor, "no mapping of the monitor is as big as the guest's memory");
        Ok((all, of_guest))
    }
}

fn print(rows: &[Row]) {
    let kvm = ["kvm_intel", "kvm_amd"].iter().any(|module| Path::new("/sys/module").join(module).is_dir());
    let how = if kvm { "with KVM, if it can be used" } else { "EMULATED: no measure of a machine with KVM" };
    println!("vm: {how}; a pod has one processor");
    type Column = fn(&Row) -> &Series;
    let titles: [(&str, &str, Column); 7] = [
        ("vm: RunPodSandbox, until it is ready", "ms", |row| &row.ready),
        ("vm: CreateContainer + StartContainer", "ms", |row| &row.container),
        ("vm: ExecSync of true", "ms", |row| &row.exec),
        ("vm: StopPodSandbox + RemovePodSandbox", "ms", |row| &row.removal),
        ("vm: the host's memory behind a pod, without its guest's", "MB", |row| &row.behind),
        ("vm: the guest's memory, as far as it was used", "MB", |row| &row.guest),
        ("vm: 4 pods at the same time, until the last is ready", "ms", |row| &row.at_once),
    ];
    for (title, unit, column) in titles {
        let rows: Vec<_> = rows.iter().map(|row| (row.handler.clone(), column(row).clone())).collect();
        table(title, unit, &rows);
    }
    println!("\nvm: failures");
    for row in rows {
        println!("  {:<16} {} of {} pods", row.handler, row.failures.len(), row.pods);
        row.failures.iter().for_each(|failure| println!("    {failure}"));
    }
}
