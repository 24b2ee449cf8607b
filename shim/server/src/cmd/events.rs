//! `coracle events`: what happened to pods.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use coracle_engine::{Engine, Paths};
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::exit;
use crate::out::{self, Cell, Colour, Table};
use crate::pod::events::{self, Event, Log, Owner, Type};
use crate::time;

/// How often new events are looked for.
const POLL: Duration = Duration::from_millis(250);
/// Who tells the events, where kubectl shows kubelet.
pub const COMPONENT: &str = "coracle";

/// Show what happened to pods
///
/// The latest last; an event is kept for an hour after it was last seen, also when its pod has gone.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on
    #[arg(short, long)]
    watch: bool,
    /// Only these types
    #[arg(long, value_name = "TYPE", value_delimiter = ',', ignore_case = true)]
    types: Vec<Which>,
    /// How to write the list; with --watch, JSON is one event a line
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
    /// Names, ids or uids [default: all]
    #[arg(value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// As expected
    Normal,
    /// Worth a look
    Warning,
}

impl Events {
    /// Shows them.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let engine = app.engine()?;
        let paths = engine.paths();
        let wanted = self.wanted(&engine)?;
        let mut logs = self.select(paths, &wanted)?;
        match (self.output.is_some(), self.watch) {
            (true, false) => {
                out::json(&sorted(&logs).map(|(log, event)| as_json(&log.owner, event)).collect::<Vec<_>>())?
            }
            (json, _) => self.print(&logs, json, true)?,
        }
        if !self.watch {
            return Ok(ExitCode::SUCCESS);
        }
        let mut seen = HashMap::new();
        loop {
            for log in &logs {
                let last = log.events.iter().map(|event| event.number).max().unwrap_or(0);
                seen.insert(log.owner.uid.clone(), last);
            }
            tokio::time::sleep(POLL).await;
            logs = self.select(paths, &wanted)?;
            let mut new = logs.clone();
            for log in &mut new {
                let last = seen.get(&log.owner.uid).copied().unwrap_or(0);
                log.events.retain(|event| event.number > last);
            }
            self.print(&new, self.output.is_some(), false)?;
        }
    }

    /// The pods asked for, by what the user may call them: those that are there by their uids, too.
    fn wanted(&self, engine: &Engine) -> Result<Vec<String>> {
        let mut wanted = Vec::new();
        for name in &self.pods {
            match app::find(engine, name) {
                Ok(found) => wanted.push(engine.sandbox_status(&found.sandbox)?.config.uid),
                Err(error) if exit::code(&error) != exit::NOT_FOUND => return Err(error),
                Err(error)
                    if !self.watch && !events::list(engine.paths())?.iter().any(|log| calls(&log.owner, name)) =>
                {
                    return Err(error);
                }
                Err(_) => {}
            }
            // Beside the one that is there, its predecessors of the same name.
            wanted.push(name.clone());
        }
        Ok(wanted)
    }

    fn select(&self, paths: &Paths, wanted: &[String]) -> Result<Vec<Log>> {
        let mut logs = events::list(paths)?;
        logs.retain(|log| wanted.is_empty() || wanted.iter().any(|wanted| calls(&log.owner, wanted)));
        let shown = |event: &Event| {
            let which = if event.kind == Type::Normal { Which::Normal } else { Which::Warning };
            self.types.is_empty() || self.types.contains(&which)
        };
        logs.iter_mut().for_each(|log| log.events.retain(shown));
        Ok(logs)
    }

    fn print(&self, logs: &[Log], json: bool, first: bool) -> Result<()> {
        if json {
            return sorted(logs).try_for_each(|(log, event)| out::line(as_json(&log.owner, event).to_string()));
        }
        if first && logs.iter().all(|log| log.events.is_empty()) {
            return if self.watch { Ok(()) } else { out::line("no events") };
        }
        let mut table = Table::new(["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
        for (log, event) in sorted(logs) {
            let namespace = Some(&log.owner.namespace).filter(|namespace| *namespace != "default");
            let object = match namespace {
                Some(namespace) => format!("{namespace}/{}", log.owner.name),
                None => format!("pod/{}", log.owner.name),
            };
            table.row([
                age(event).into(),
                Cell::coloured(event.kind.as_str(), colour(event.kind)),
                event.reason.clone().into(),
                object.into(),
                out::plain(&event.message).into(),
            ]);
        }
        if first { table.print() } else { table.print_rows() }
    }
}

/// The colour of a type.
pub fn colour(kind: Type) -> Colour {
    match kind {
        Type::Normal => Colour::Plain,
        Type::Warning => Colour::Yellow,
    }
}

/// Whether the user's word means this pod.
fn calls(owner: &Owner, wanted: &str) -> bool {
    /// Fewer digits of a uid name nothing.
    const MIN_DIGITS: usize = 6;
    match wanted.split_once('/') {
        Some((namespace, name)) => (namespace, name) == (owner.namespace.as_str(), owner.name.as_str()),
        None if owner.name == wanted => owner.namespace == "default",
        None => wanted.len() >= MIN_DIGITS && owner.uid.starts_with(wanted),
    }
}

/// All events, the latest last.
fn sorted(logs: &[Log]) -> impl Iterator<Item = (&Log, &Event)> {
    let mut all: Vec<_> = logs.iter().flat_map(|log| log.events.iter().map(move |event| (log, event))).collect();
    all.sort_by_key(|(_, event)| (event.last, event.number));
    all.into_iter()
}

/// When it last happened, and how often since when: `3s (x3 over 2m)`.
pub fn age(event: &Event) -> String {
    let now = time::now();
    let last = time::age(event.last, now);
    match event.count {
        0 | 1 => last,
        count => format!("{last} (x{count} over {})", time::age(event.first, now)),
    }
}

/// An event as the API has it.
pub fn as_json(owner: &Owner, event: &Event) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": owner.namespace, "name": owner.name, "uid": owner.uid,
    });
    if !event.field_path.is_empty() {
        object["fieldPath"] = event.field_path.clone().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "type": event.kind.as_str(),
        "reason": event.reason,
        "message": event.message,
        "count": event.count,
        "firstTimestamp": time::rfc3339(event.first),
        "lastTimestamp": time::rfc3339(event.last),
        "involvedObject": object,
        "source": { "component": COMPONENT },
    })
}
