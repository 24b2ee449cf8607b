//! state, list, ps, kill's signal names, events and stats.

use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_runtime::{Runtime, State, Status};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use std::os::fd::AsFd;

use super::args::{Events, Format, Kill, List, Ps};
use super::{Call, log};

/// Between two readings of `events`, unless told otherwise; as runc's.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often `events` looks whether the container still runs.
const LOOK: Duration = Duration::from_secs(1);

/// Writes to stdout; a reader that went away is no error of ours.
pub fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to stdout"),
    }
}

/// state
pub fn state(runtime: &Runtime, id: &str) -> Result<i32> {
    print(&serde_json::to_string_pretty(&runtime.state(id)?)?)?;
    Ok(0)
}

/// kill
pub fn kill(runtime: &Runtime, args: &Kill) -> Result<i32> {
    let signal = match args.words.get(1).map(String::as_str) {
        None | Some("") => libc::SIGTERM,
        Some(text) => signal(text)?,
    };
    runtime.kill(&args.words[0], signal, args.all)?;
    Ok(0)
}

/// A signal by number or name.
fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        // 0 only asks whether the process is there.
        if (0..=64).contains(&number) {
            return Ok(number);
        }
        bail!("unknown signal {text:?}: a number is between 0 and 64");
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().context("signal after SIGRTMIN")? };
        return if (0..=30).contains(&offset) { Ok(34 + offset) } else { bail!("no signal {text}") };
    }
    match Signal::from_str(&name) {
        Ok(signal) => Ok(signal as i32),
        Err(_) => bail!("unknown signal {text:?}"),
    }
}

/// list
pub fn list(call: &Call, args: &List) -> Result<i32> {
    let format = Format::of(&args.format)?;
    let (runtime, mut states) = (&call.runtime, Vec::new());
    if call.globals.root.is_some() && !runtime.root.exists() {
        bail!("list {}: no such directory", runtime.root.display());
    }
    for id in runtime.ids()? {
        match runtime.state(&id) {
            Ok(state) => states.push(state),
            // Removed while we looked, or still being made.
            Err(coracle_runtime::Error::NotFound(_)) => {}
            // One broken container must not hide the others.
            Err(error) => log::warning(&format!("container {id}: {error}")),
        }
    }
    match format {
        _ if args.quiet => states.iter().try_for_each(|s| print(&s.id))?,
        Format::Json if states.is_empty() => print("null")?,
        Format::Json => print(&serde_json::to_string(&states)?)?,
        Format::Table => print(&table(&states))?,
    }
    Ok(0)
}

/// As Go's tabwriter lays it out: a cell is as wide as the widest of its column and three more, twelve at least.
fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |s: &State| {
        let bundle = s.bundle.to_string_lossy().into_owned();
        [s.id.clone(), s.pid.to_string(), s.status.to_string(), bundle, s.created.clone(), s.owner.clone()]
    };
    let rows: Vec<_> = [header].into_iter().chain(states.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).chain([0]).collect();
    let line = |row: &[String; 6]| -> String {
        row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// ps: the container's pids, or what ps(1) has to say of them.
pub fn ps(runtime: &Runtime, args: &Ps) -> Result<i32> {
    let pids = runtime.pids(&args.words[0])?;
    if Format::of(&args.format)? == Format::Json {
        print(&serde_json::to_string(&pids)?)?;
        return Ok(0);
    }
    let default = ["-ef".to_owned()];
    let options = if args.words.len() == 1 { &default[..] } else { &args.words[1..] };
    let output = std::process::Command::new("ps").args(options).output();
    let output = output.context("run ps (is procps installed? `ps --format json` does without)")?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_ascii_whitespace().position(|word| word == "PID") else {
        bail!("couldn't find PID field in the output of ps {}", options.join(" "));
    };
    print(header)?;
    lines
        .filter(|line| {
            line.split_ascii_whitespace().nth(column).and_then(|p| p.parse().ok()).is_some_and(|p| pids.contains(&p))
        })
        .try_for_each(print)?;
    Ok(0)
}

fn stats_line(runtime: &Runtime, id: &str) -> Result<String> {
    let stats = runtime.stats(id)?;
    Ok(serde_json::json!({ "type": "stats", "id": id, "data": stats }).to_string())
}

/// stats
pub fn stats(runtime: &Runtime, id: &str) -> Result<i32> {
    let text = match std::io::stdout().is_terminal() {
        true => serde_json::to_string_pretty(&runtime.stats(id)?)?,
        false => stats_line(runtime, id)?,
    };
    print(&text)?;
    Ok(0)
}

/// events: stats every interval and OOM kills as they come, until the container stops.
pub fn events(runtime: &Runtime, args: &Events) -> Result<i32> {
    let id = &args.words[0];
    let interval = args.interval.map_or(INTERVAL, |interval| interval.0);
    let stopped = || Ok::<_, anyhow::Error>(runtime.state(id)?.status == Status::Stopped);
    if stopped()? {
        bail!("container with id {id} is not running");
    }
    if interval.is_zero() {
        bail!("--interval: the duration must be greater than 0");
    }
    if args.stats {
        print(&stats_line(runtime, id)?)?;
        return Ok(0);
    }
    let oom = runtime.oom_events(id)?;
    let mut kills = runtime.oom_kills(id)?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        // Not past the end: a container that stops may leave its cgroup, and nothing wakes us then.
        let timeout = left.min(LOOK).as_millis() as u16 + 1;
        let woken = poll(&mut [PollFd::new(oom.as_fd(), PollFlags::POLLIN)], timeout).context("wait for events")? > 0;
        if woken {
            let mut buffer = [0u8; 4096];
            nix::unistd::read(&oom, &mut buffer).context("read the OOM event")?;
            // The descriptor also wakes when the cgroup goes.
            let now = runtime.oom_kills(id).unwrap_or(kills);
            for _ in kills..now {
                print(&serde_json::json!({ "type": "oom", "id": id }).to_string())?;
            }
            kills = now;
        }
        match stopped() {
            Ok(false) => {}
            Ok(true) => return Ok(0),
            // Deleted meanwhile.
            Err(_) if runtime.state(id).is_err() => return Ok(0),
            Err(error) => return Err(error),
        }
        if Instant::now() >= next {
            match stats_line(runtime, id) {
                Ok(line) => print(&line)?,
                Err(error) => log::warning(&format!("{error:#}")),
            }
            next = Instant::now() + interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(signal(text).unwrap(), 9);
        }
        assert_eq!(signal("SIGRTMIN+3").unwrap(), 37);
        for text in ["-1", "65", "SIGFOO", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
