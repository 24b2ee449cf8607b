//! The server's log: one line an event, on standard error.
//!
//! Under journald (which says so by `JOURNAL_STREAM`) a line begins with its priority, `<6>` for information, and has no
//! time, since the journal keeps both; elsewhere it begins with the time and the level. Then come the message, the event's fields
//! and those of the call that it belongs to:
//!
//! ```text
//! <6>done took_ms=12 rpc=RunPodSandbox sandbox=4c01db0b339c
//! ```
//!
//! `RUST_LOG` wins over the configuration's `log_level`, which a reload may change.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{DefaultFields, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::serve::spans::Spans;

/// Names the filter that wins over the configuration.
const VARIABLE: &str = "RUST_LOG";

/// Changes what is logged.
pub struct Levels(Option<reload::Handle<EnvFilter, Registry>>);

impl Levels {
    /// Logs at this level from now on, unless `RUST_LOG` says otherwise.
    pub fn set(&self, level: &str) -> Result<()> {
        match &self.0 {
            Some(handle) => handle.reload(filter(level)?).context("change what is logged"),
            None => Ok(()),
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    level.parse().with_context(|| format!("log_level {level:?}"))
}

/// Starts to log; what is logged is the spans' as well, down to information and whatever the log's level is.
pub fn start(level: &str, spans: Option<&Spans>) -> Result<Levels> {
    let variable = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let first = match &variable {
        Some(text) => text.parse().with_context(|| format!("{VARIABLE}={text:?}"))?,
        None => filter(level)?,
    };
    let (layer, handle) = reload::Layer::new(first);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .fmt_fields(DefaultFields::new())
        .event_format(Line { journal: is_journal() })
        .with_filter(layer);
    let spans = spans.map(|spans| spans.layer().with_filter(LevelFilter::INFO));
    let started = tracing_subscriber::registry().with(lines).with(spans).try_init();
    started.context("start the log")?;
    Ok(Levels(variable.is_none().then_some(handle)))
}

/// Whether standard error is the stream that journald has given us.
fn is_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else { return false };
    let stream = std::fs::metadata("/proc/self/fd/2").map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
    !std::io::stderr().is_terminal() && stream.is_ok_and(|stream| stream == told)
}

/// How a line is written.
struct Line {
    journal: bool,
}

/// syslog's number of a level.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = event.metadata().level();
        match self.journal {
            true => write!(out, "<{}>", priority(level))?,
            false => write!(out, "{} {level:<5} ", crate::time::rfc3339(crate::time::now()))?,
        }
        let mut line = String::new();
        context.format_fields(Writer::new(&mut line), event)?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                line.push(' ');
                line.push_str(fields);
            }
        }
        // Whatever an error brings along, an event is one line.
        writeln!(out, "{}", line.replace(['\n', '\r'], " "))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_its_priority_and_the_fields_of_its_call() {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(DefaultFields::new())
            .event_format(Line { journal: true });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let span = tracing::info_span!("call", rpc = "RunPodSandbox", sandbox = tracing::field::Empty);
            let _entered = span.enter();
            span.record("sandbox", tracing::field::display("4c01db0b339c"));
            tracing::info!(took_ms = 12, "done");
            tracing::error!("two\nlines");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let call = "rpc=\"RunPodSandbox\" sandbox=4c01db0b339c";
        assert_eq!(text, format!("<6>done took_ms=12 {call}\n<3>two lines {call}\n"));
    }
}
