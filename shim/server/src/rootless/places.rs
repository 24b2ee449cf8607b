//! An ordinary user's places, by the XDG base directory specification; flags and his configuration win.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::unistd::geteuid;

use super::Places as Found;
use crate::cli::Places;
use crate::config::{Config, File};
use crate::exit::Coded;

/// The name of our folder in each.
const NAME: &str = "coracle";

/// Sets the places that no flag has set.
pub fn fill(places: &mut Places) -> Result<Found> {
    let config =
        config_home(&|name| env::var_os(name).map(PathBuf::from)).map(|dir| dir.join(NAME).join("config.toml"));
    let own = places.config.is_some() || config.as_ref().is_some_and(|path| path.exists());
    places.config = places.config.take().or(config.filter(|path| path.exists()));
    // The machine's configuration names the machine's places, which are not his.
    let said = if own { File::read(places.config.as_deref())?.config } else { Config::default() };
    let usual = Config::default();
    let chosen = |said: PathBuf, usual: PathBuf| Some(said).filter(|said| *said != usual);
    let get = |name: &str| env::var_os(name).map(PathBuf::from);
    if places.root.is_none() {
        places.root = chosen(said.root, usual.root);
    }
    if places.state.is_none() {
        places.state = chosen(said.state, usual.state);
    }
    if places.log_dir.is_none() {
        places.log_dir = chosen(said.log_dir, usual.log_dir);
    }
    let root = places.root.get_or_insert(data_home(&get)?.join(NAME)).clone();
    let state = match &places.state {
        Some(state) => state.clone(),
        None => runtime_dir(&get)?.join(NAME),
    };
    places.state = Some(state.clone());
    places.log_dir.get_or_insert(root.join("logs"));
    Ok(Found { state, root })
}

type Get<'a> = &'a dyn Fn(&str) -> Option<PathBuf>;

/// A variable of the specification; what is not absolute is to be ignored.
fn named(get: Get<'_>, name: &str) -> Option<PathBuf> {
    get(name).filter(|path| path.is_absolute())
}

fn config_home(get: Get<'_>) -> Option<PathBuf> {
    named(get, "XDG_CONFIG_HOME").or_else(|| Some(named(get, "HOME")?.join(".config")))
}

fn data_home(get: Get<'_>) -> Result<PathBuf> {
    let home = || named(get, "HOME").map(|home| home.join(".local/share"));
    named(get, "XDG_DATA_HOME").or_else(home).ok_or_else(|| Coded::usage("neither HOME nor XDG_DATA_HOME is set"))
}

fn runtime_dir(get: Get<'_>) -> Result<PathBuf> {
    if let Some(dir) = named(get, "XDG_RUNTIME_DIR") {
        return Ok(dir);
    }
    let uid = geteuid().as_raw();
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    match is_his(&usual, uid) {
        true => Ok(usual),
        false => Err(Coded::usage(format!(
            "XDG_RUNTIME_DIR is not set and {} is not there: a login by systemd makes both (with su or sudo it does not \
             happen; `machinectl shell USER@` and ssh log in)",
            usual.display()
        ))),
    }
}

fn is_his(path: &Path, uid: u32) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_variables_win_and_relative_ones_are_ignored() {
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/a"));
        assert_eq!(data_home(&home).unwrap(), Path::new("/home/a/.local/share"));
        assert_eq!(config_home(&home).unwrap(), Path::new("/home/a/.config"));
        let set = |name: &str| match name {
            "XDG_DATA_HOME" => Some(PathBuf::from("/data")),
            "XDG_CONFIG_HOME" => Some(PathBuf::from("config")),
            "XDG_RUNTIME_DIR" => Some(PathBuf::from("/run/me")),
            _ => None,
        };
        assert_eq!(data_home(&set).unwrap(), Path::new("/data"));
        assert_eq!(config_home(&set), None);
        assert_eq!(runtime_dir(&set).unwrap(), Path::new("/run/me"));
        assert!(data_home(&|_| None).unwrap_err().to_string().contains("HOME"));
    }
}
