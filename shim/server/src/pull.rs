//! Pulling an image: the registries as configured, the machine's credentials, and progress that people can read.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use coracle_rootfs::auth::SearchPath;
use coracle_rootfs::progress::Silent;
use coracle_rootfs::{Digest, Image, Keyring, Progress, ProgressEvent, Reference, Store};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::app::App;
use crate::out;

/// Pulls an image into the store, and says so.
pub fn pull(app: &App, store: &Store, reference: &Reference) -> Result<Image> {
    with(app, store, reference, &Keyring::load(&SearchPath::kubelet(None))?, true)
}

/// The same with these credentials; `aloud` if somebody wants to see how far it has come.
pub fn with(app: &App, store: &Store, reference: &Reference, keyring: &Keyring, aloud: bool) -> Result<Image> {
    let sources = app.registry().sources(reference, keyring)?;
    if !aloud {
        return Ok(store.pull(reference, &sources, &app.pull_options(), &Silent)?);
    }
    let display = Display::new(&reference.familiar());
    let result = store.pull(reference, &sources, &app.pull_options(), &display);
    display.finish(result.is_ok());
    Ok(result?)
}

/// Shows how far a pull or a load has come: bars on a terminal, plain lines elsewhere. All of it goes to standard
/// error: standard output is for results.
pub struct Display {
    what: String,
    lines: bool,
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<String, ProgressBar>>,
}

/// How long a digest is shown: as docker shows it.
const DIGITS: usize = 12;

impl Display {
    /// Begins to show the work on `what`.
    pub fn new(what: &str) -> Display {
        let display = Display { what: what.to_owned(), lines: !io::stderr().is_terminal(), ..Display::bars_only() };
        if display.lines {
            eprintln!("pulling {what}");
        }
        display
    }

    /// Shows bars on a terminal, and nothing elsewhere.
    pub fn bars_only() -> Display {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        Display { what: String::new(), lines: false, bars, layers: Mutex::default() }
    }

    /// Takes the bars away, and says what became of it.
    pub fn finish(&self, well: bool) {
        for bar in self.layers().values() {
            bar.finish_and_clear();
        }
        if well {
            eprintln!("pulled {}", self.what);
        }
    }

    fn layers(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, digest: &Digest, size: u64) {
        let short = short(digest);
        match &self.bars {
            Some(bars) => {
                let bar = bars.add(ProgressBar::new(size).with_style(style()).with_message(short.clone()));
                self.layers().insert(short, bar);
            }
            None if self.lines => eprintln!("  layer {short}: {}", out::size(size)),
            None => {}
        }
    }

    /// A line above the bars, or among the lines.
    fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    fn end(&self, digest: &Digest, how: &str) {
        let short = short(digest);
        match (&self.bars, self.layers().remove(&short)) {
            (Some(_), Some(bar)) => bar.finish_and_clear(),
            (Some(_), None) => {}
            (None, _) if self.lines => eprintln!("  layer {short}: {how}"),
            (None, _) => {}
        }
    }
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(DIGITS).collect()
}

fn style() -> ProgressStyle {
    let template = "  {msg} [{bar:30}] {bytes:>10} / {total_bytes:<10} {bytes_per_sec:>12} {eta:>4}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Progress for Display {
    fn event(&self, event: ProgressEvent<'_>) {
        match event {
            ProgressEvent::LayerStart { digest, size } => self.start(digest, size),
            ProgressEvent::LayerBytes { digest, bytes } => {
                if self.bars.is_some()
                    && let Some(bar) = self.layers().get(&short(digest))
                {
                    bar.inc(bytes);
                }
            }
            ProgressEvent::LayerWait { digest } => {
                self.say(&format!("  layer {}: another pull is unpacking it, waiting", short(digest)));
            }
            ProgressEvent::LayerDone { digest } => self.end(digest, "done"),
            ProgressEvent::LayerExists { digest } => self.end(digest, "already here"),
            ProgressEvent::Retry { what, why, attempt, delay } => {
                self.say(&format!("  {what}: {why}; attempt {attempt} in {:.0} s", delay.as_secs_f64().ceil()));
            }
            _ => {}
        }
    }
}
