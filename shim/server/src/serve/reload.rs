//! Settings that change while the server runs: read anew on SIGHUP.
//!
//! A file with any problem changes nothing. What cannot change without a restart keeps its value, and the log names it.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Result;

use crate::app::App;
use crate::config::{Config, File, Image, Serve};

/// The settings as they are now. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Live(Arc<RwLock<Arc<App>>>);

/// What a reload has changed: the names of keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// These count from now on.
    pub applied: Vec<String>,
    /// These wait for a restart.
    pub waiting: Vec<String>,
}

impl Live {
    /// The settings that the server was started with.
    pub fn new(app: App) -> Live {
        Live(Arc::new(RwLock::new(Arc::new(app))))
    }

    /// The settings now.
    pub fn app(&self) -> Arc<App> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file once more.
    pub fn reload(&self) -> Result<Changes> {
        let old = self.app();
        let file = File::read(old.places.config.as_deref())?;
        file.check()?;
        let new = file.config.clone();
        let mut changes = Changes::default();
        let merged = merge(&old.config, new.clone());
        for key in changed(&old.config, &new)? {
            let stays = changed(&merged, &new)?.contains(&key);
            if stays { &mut changes.waiting } else { &mut changes.applied }.push(key);
        }
        let app = App { config: file.with(merged), ..App::clone(&old) };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(app);
        Ok(changes)
    }
}

/// The old settings with what can be taken over of the new ones. `default.toml` marks these with "(reload)".
fn merge(old: &Config, new: Config) -> Config {
    let serve = Serve {
        inject_env: new.serve.inject_env,
        services_dir: new.serve.services_dir,
        pinned_images: new.serve.pinned_images,
        ..old.serve.clone()
    };
    Config {
        log_level: new.log_level,
        default_handler: new.default_handler,
        handlers: new.handlers,
        serve,
        image: Image { parallel: old.image.parallel, ..new.image },
        ..old.clone()
    }
}

/// The keys in which two configurations differ, as `table.key`.
fn changed(old: &Config, new: &Config) -> Result<Vec<String>> {
    let (old, new) = (toml::Table::try_from(old)?, toml::Table::try_from(new)?);
    let mut keys: Vec<String> = Vec::new();
    for (name, value) in old.iter().chain(&new) {
        match value.as_table() {
            Some(table) => keys.extend(table.keys().map(|key| format!("{name}.{key}"))),
            None => keys.push(name.clone()),
        }
    }
    let value = |table: &toml::Table, key: &str| match key.split_once('.') {
        Some((name, key)) => table.get(name).and_then(|table| table.get(key)).cloned(),
        None => table.get(key).cloned(),
    };
    keys.sort();
    keys.dedup();
    keys.retain(|key| value(&old, key) != value(&new, key));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Places;
    use crate::config::{DEFAULT_TEXT, parse};

    fn live(text: &str) -> (tempfile::TempDir, Live) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let app = App::new(Places { config: Some(path), ..Places::default() }).unwrap();
        (dir, Live::new(app))
    }

    #[test]
    fn what_can_change_changes_and_the_rest_is_named() {
        let (dir, live) = live("[network]\nmtu = 1400\n");
        let text = "log_level = 'debug'\n[serve]\ninject_env = true\nstop_timeout = '1s'\n[image]\nparallel = 7\n";
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        let changes = live.reload().unwrap();
        assert_eq!(changes.applied, ["log_level", "serve.inject_env"]);
        assert_eq!(changes.waiting, ["image.parallel", "network.mtu", "serve.stop_timeout"]);
        let config = &live.app().config;
        assert_eq!((config.log_level.as_str(), config.serve.inject_env), ("debug", true));
        assert_eq!(config.network.mtu, Some(1400));
    }

    #[test]
    fn a_file_with_a_problem_changes_nothing() {
        let (dir, live) = live("");
        for text in ["log_level = 'debug'\nrooot = 1\n", "log_level = 'debug'\nstate = 'relative'\n"] {
            std::fs::write(dir.path().join("config.toml"), text).unwrap();
            let error = live.reload().unwrap_err().to_string();
            assert!(error.contains("config.toml:2:1: "), "{error}");
            assert_eq!(live.app().config.log_level, "info");
        }
    }

    #[test]
    fn the_default_file_marks_what_a_reload_takes_over() {
        let mut file: Vec<(String, bool)> = Vec::new();
        let (mut table, mut marked) = (String::new(), false);
        for line in DEFAULT_TEXT.lines() {
            let setting = line.strip_prefix('#').unwrap_or(line);
            if line.starts_with("# ") {
                marked |= line.ends_with("(reload)");
            } else if let Some(name) = setting.strip_prefix('[') {
                table = format!("{}.", name.trim_end_matches(']'));
            } else if let Some((key, _)) = setting.split_once(" = ") {
                file.push((format!("{table}{key}"), std::mem::take(&mut marked)));
            } else {
                marked = false;
            }
        }
        let all: String = DEFAULT_TEXT.lines().take_while(|line| !line.starts_with("#[handlers")).map(other).collect();
        let new = parse(&all).unwrap();
        let waiting = changed(&merge(&Config::default(), new.clone()), &new).unwrap();
        let different = changed(&Config::default(), &new).unwrap();
        for (key, reloads) in file.into_iter().filter(|(key, _)| !key.starts_with("handlers.")) {
            assert!(different.contains(&key), "{key} was not changed by this test");
            assert_eq!(reloads, !waiting.contains(&key), "{key}");
        }
    }

    /// A line of the default file with another value.
    fn other(line: &str) -> String {
        let setting = if line.starts_with("# ") { line } else { line.strip_prefix('#').unwrap_or(line) };
        let Some((key, value)) = setting.split_once(" = ").filter(|_| !setting.starts_with("# ")) else {
            return format!("{setting}\n");
        };
        let value = match (key, value) {
            ("streaming_address" | "metrics_address", _) => "'127.0.0.1:77'",
            ("subnet" | "service_subnet", _) => "'10.1.0.0/16'",
            ("cni_timeout" | "stop_timeout" | "stream_idle_timeout" | "pull_progress_interval", _) => "'77s'",
            (_, "true") => "false",
            (_, "false") => "true",
            (_, list) if list.starts_with('[') => "['/x']",
            (_, text) if text.starts_with('"') && !key.contains("limit") && !key.contains("max") => "'/x'",
            _ => "77",
        };
        format!("{key} = {value}\n")
    }
}
