//! `coracle wait`: until pods are as asked for.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coracle_engine::Engine;
use tokio::time::Instant;

use crate::app::{App, Found};
use crate::exit::{self, Coded};
use crate::out;
use crate::pod::policy::Phase;
use crate::pod::select::{self, Selector};
use crate::pod::view::PodView;

/// How often the pods are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Wait until pods are as asked for
///
/// The exit code is 1 if one is not in time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle wait --for=condition=Ready web
  coracle wait --for=phase=Succeeded --timeout=5m job
  coracle wait --for=delete -l app=web")]
pub struct Wait {
    /// condition=Ready (or PodScheduled, Initialized, ContainersReady; =false for its contrary), phase=Running, or delete
    #[arg(long = "for", value_name = "WHAT")]
    what: What,
    /// For how long: 30s, 5m, 1h30m; 0 looks once, a negative time waits for ever
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, allow_hyphen_values = true)]
    timeout: Timeout,
    /// The pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// Names or ids
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Condition(String, bool),
    Phase(Phase),
    Delete,
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<What, String> {
        const CONDITIONS: [&str; 5] =
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
        const PHASES: [Phase; 4] = [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed];
        let (kind, rest) = text.split_once('=').unwrap_or((text, ""));
        match kind {
            "delete" if rest.is_empty() => Ok(What::Delete),
            "condition" => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
                let condition = CONDITIONS.iter().find(|condition| condition.eq_ignore_ascii_case(name));
                match (condition, value.to_ascii_lowercase().as_str()) {
                    (Some(condition), "true") => Ok(What::Condition((*condition).to_owned(), true)),
                    (Some(condition), "false") => Ok(What::Condition((*condition).to_owned(), false)),
                    _ => Err(format!("the conditions of a pod are {}, =true or =false", CONDITIONS.join(", "))),
                }
            }
            "phase" => {
                let phase = PHASES.iter().find(|phase| format!("{phase:?}").eq_ignore_ascii_case(rest));
                phase.copied().map(What::Phase).ok_or_else(|| format!("the phases of a pod are {PHASES:?}"))
            }
            "jsonpath" => Err("jsonpath is not supported: wait for condition=..., phase=... or delete".into()),
            _ => Err("expected condition=NAME, phase=PHASE or delete".into()),
        }
    }
}

/// None: for ever.
pub type Timeout = Option<Duration>;

/// Reads `1h30m`, `30s`, `500ms` or plain seconds.
pub fn duration(text: &str) -> Result<Timeout, String> {
    let wrong = || format!("{text:?}: expected a time such as 30s, 5m or 1h30m");
    if text.starts_with('-') {
        return Ok(None);
    }
    if let Ok(seconds) = text.parse() {
        return Ok(Some(Duration::from_secs(seconds)));
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = &rest[digits..];
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        let (name, millis) = units.into_iter().find(|(name, _)| unit.starts_with(name)).ok_or_else(wrong)?;
        let part = Duration::from_millis(millis).checked_mul(number).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &unit[name.len()..];
    }
    Ok(Some(total))
}

impl Wait {
    /// Waits.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut left =
            if self.what == What::Delete { self.there(&engine)? } else { self.selected(&engine, &self.pods)? };
        let names = |left: &[Found]| left.iter().map(name).collect::<Vec<_>>().join(", ");
        loop {
            let mut waiting = Vec::new();
            for found in left {
                match self.met(&engine, &found).await? {
                    true if self.what == What::Delete => out::line(format!("pod/{} deleted", name(&found)))?,
                    true => out::line(format!("pod/{} condition met", name(&found)))?,
                    false => waiting.push(found),
                }
            }
            left = waiting;
            if left.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let text = format!("wait: the time is over and it is not so yet: {}", names(&left));
                return Err(Coded::error(exit::ERROR, text));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn selected(&self, engine: &Engine, pods: &[String]) -> Result<Vec<Found>> {
        select::pods(engine, pods, self.selector.as_ref())
    }

    /// Those that are not gone already, each looked for by itself.
    fn there(&self, engine: &Engine) -> Result<Vec<Found>> {
        let each: Vec<&[String]> = if self.pods.is_empty() { vec![&[]] } else { self.pods.chunks(1).collect() };
        let mut there = Vec::new();
        for pods in each {
            match self.selected(engine, pods) {
                Err(error) if exit::code(&error) == exit::NOT_FOUND => {}
                found => there.extend(found?),
            }
        }
        Ok(there)
    }

    async fn met(&self, engine: &Engine, found: &Found) -> Result<bool> {
        let look = async { anyhow::Ok(PodView::of(engine, &engine.sandbox_status(&found.sandbox)?).await?) };
        let view = match look.await {
            Err(error) if exit::code(&error) == exit::NOT_FOUND || !engine.paths().pod(&found.sandbox).exists() => {
                return match self.what {
                    What::Delete => Ok(true),
                    _ => Err(Coded::error(exit::NOT_FOUND, format!("wait: pod {} was removed", name(found)))),
                };
            }
            view => view?,
        };
        Ok(match &self.what {
            What::Delete => false,
            What::Phase(phase) => view.phase == *phase,
            What::Condition(name, value) => {
                view.conditions.iter().any(|condition| condition.kind == *name && condition.status == *value)
            }
        })
    }
}

fn name(found: &Found) -> &str {
    found.kept.as_ref().map_or(&found.sandbox, |kept| &kept.pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_read_as_kubectls() {
        assert_eq!("condition=ready".parse(), Ok(What::Condition("Ready".into(), true)));
        assert_eq!("condition=Ready=False".parse(), Ok(What::Condition("Ready".into(), false)));
        assert_eq!("phase=Succeeded".parse(), Ok(What::Phase(Phase::Succeeded)));
        assert_eq!("delete".parse(), Ok(What::Delete));
        assert!("jsonpath={.status.phase}=Running".parse::<What>().unwrap_err().contains("jsonpath is not supported"));
        assert!("condition=Nice".parse::<What>().is_err() && "phase=Gone".parse::<What>().is_err());
    }

    #[test]
    fn times_are_read_as_gos() {
        let seconds = |text: &str| duration(text).unwrap().map(|time| time.as_secs_f64());
        assert_eq!(
            ["30s", "1h30m", "500ms", "7", "-1s"].map(seconds),
            [Some(30.), Some(5400.), Some(0.5), Some(7.), None]
        );
        assert!(["", "s", "1d", "1.5h", "5x"].iter().all(|text| text.is_empty() || duration(text).is_err()));
    }
}
