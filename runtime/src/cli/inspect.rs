//! state, list, ps, kill's signal names, events and stats.

use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_runtime::{Runtime, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::os::fd::AsFd;

use super::args::{Events, Format, List, Ps};

/// Writes to stdout; a reader that went away is no error of ours.
pub fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to stdout"),
    }
}

/// state
pub fn state(runtime: &Runtime, id: &str) -> Result<()> {
    print(&serde_json::to_string_pretty(&runtime.state(id)?)?)
}

/// A signal by number or name.
pub fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        if (1..=64).contains(&number) {
            return Ok(number);
        }
        bail!("signal {number} is not between 1 and 64");
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().context("signal after SIGRTMIN")? };
        return if (0..=30).contains(&offset) { Ok(34 + offset) } else { bail!("no signal {text}") };
    }
    Ok(Signal::from_str(&name).with_context(|| format!("unknown signal {text:?}"))? as i32)
}

/// list
pub fn list(runtime: &Runtime, args: &List) -> Result<()> {
    let states = runtime.list()?;
    if args.quiet {
        return states.iter().try_for_each(|s| print(&s.id));
    }
    if args.format == Format::Json {
        return print(&serde_json::to_string(&states)?);
    }
    let row = |id: &str, pid: &str, status: &str, bundle: &str, created: &str, owner: &str| {
        print(&format!("{id:<12} {pid:<11} {status:<11} {bundle:<20} {created:<30} {owner}"))
    };
    row("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")?;
    states.iter().try_for_each(|s| {
        row(&s.id, &s.pid.to_string(), &s.status.to_string(), &s.bundle.to_string_lossy(), &s.created, &s.owner)
    })
}

/// ps: the container's pids, or what ps(1) has to say of them.
pub fn ps(runtime: &Runtime, args: &Ps) -> Result<()> {
    let pids = runtime.pids(&args.id)?;
    if args.format == Format::Json {
        return print(&serde_json::to_string(&pids)?);
    }
    let default = ["-ef".to_owned()];
    let options = if args.options.is_empty() { &default[..] } else { &args.options[..] };
    let output = std::process::Command::new("ps").args(options).output();
    let output = output.context("run ps (is procps installed? `ps --format json` does without)")?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_ascii_whitespace().position(|word| word == "PID") else {
        bail!("ps {} prints no PID column", options.join(" "));
    };
    print(header)?;
    lines
        .filter(|line| {
            line.split_ascii_whitespace().nth(column).and_then(|p| p.parse().ok()).is_some_and(|p| pids.contains(&p))
        })
        .try_for_each(print)
}

fn stats_line(runtime: &Runtime, id: &str) -> Result<String> {
    let stats = runtime.stats(id)?;
    Ok(serde_json::json!({ "type": "stats", "id": id, "data": stats }).to_string())
}

/// stats
pub fn stats(runtime: &Runtime, id: &str) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        return print(&stats_line(runtime, id)?);
    }
    print(&serde_json::to_string_pretty(&runtime.stats(id)?)?)
}

/// A duration as Go writes it: a number and a unit.
fn interval(text: &str) -> Result<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().with_context(|| format!("--interval {text:?}: no duration like 5s"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => bail!("--interval {text:?}: the unit is ms, s, m or h"),
    };
    if !(0.001..=86_400.0).contains(&seconds) {
        bail!("--interval {text:?}: must be between 1ms and 24h");
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// events: stats every interval and OOM kills as they come, until the container stops.
pub fn events(runtime: &Runtime, args: &Events) -> Result<()> {
    if args.stats {
        return print(&stats_line(runtime, &args.id)?);
    }
    let interval = interval(&args.interval)?;
    let oom = runtime.oom_events(&args.id)?;
    let mut kills = runtime.oom_kills(&args.id)?;
    let timeout = PollTimeout::try_from(interval.as_millis().min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX);
    while runtime.state(&args.id)?.status != Status::Stopped {
        print(&stats_line(runtime, &args.id)?)?;
        let woken = poll(&mut [PollFd::new(oom.as_fd(), PollFlags::POLLIN)], timeout).context("wait for events")? > 0;
        if woken {
            let mut buffer = [0u8; 4096];
            nix::unistd::read(&oom, &mut buffer).context("read the OOM event")?;
            // The descriptor also wakes when the cgroup goes.
            let now = runtime.oom_kills(&args.id).unwrap_or(kills);
            if now > kills {
                print(&serde_json::json!({ "type": "oom", "id": args.id }).to_string())?;
            }
            kills = now;
        }
    }
    Ok(())
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
        for text in ["0", "65", "SIGFOO", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals_are_written_as_in_go() {
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(interval("1m").unwrap(), Duration::from_secs(60));
        for text in ["", "x", "5d", "-1s", "0s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
