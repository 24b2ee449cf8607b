//! `/etc/coracle/config.toml`: where things lie and how the machine is used.
//!
//! ```toml
//! root = "/var/lib/coracle"       # images and writable layers
//! state = "/run/coracle"          # what runs
//! log_dir = "/var/log/pods"       # the containers' logs
//! cgroup_parent = "/coracle"      # the pods' cgroups; with another state than the default, one named after it
//!
//! [network]
//! bridge = "coracle0"
//! subnet = "10.88.0.0/16"
//! mtu = 1500                      # absent: the kernel's choice
//! masquerade = true               # pods reach the world with the machine's address
//!
//! [image]
//! hosts_dirs = ["/etc/containerd/certs.d"]
//! insecure_registries = []        # plain http, or certificates nobody vouches for; loopback always may
//! extra_cas = []                  # PEM files
//! parallel = 4                    # layers at once
//! ```
//!
//! An unknown key is an error: a setting that is not applied must not look as if it were. Flags win over the file;
//! a file named by `--config` must exist, the default one need not.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::exit::Coded;
use crate::kube::fault::nearest;

/// Read when `--config` names no other.
pub const DEFAULT: &str = "/etc/coracle/config.toml";
/// Larger than any sensible file.
const MAX_BYTES: u64 = 1 << 20;

/// The file. What it does not say is the default of who uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Images and writable layers.
    pub root: Option<PathBuf>,
    /// What runs.
    pub state: Option<PathBuf>,
    /// The containers' logs.
    pub log_dir: Option<PathBuf>,
    /// The cgroup below which the pods' are made.
    pub cgroup_parent: Option<String>,
    /// The embedded default network.
    pub network: Network,
    /// Registries.
    pub image: Image,
}

/// `[network]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// The bridge's name.
    pub bridge: Option<String>,
    /// The pods' addresses.
    pub subnet: Option<String>,
    /// The interfaces' MTU.
    pub mtu: Option<u32>,
    /// Whether pods reach the world with the machine's address.
    pub masquerade: Option<bool>,
}

/// `[image]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Folders of HOST/hosts.toml, as containerd has them.
    pub hosts_dirs: Option<Vec<PathBuf>>,
    /// Registries that may speak plain http.
    pub insecure_registries: Vec<String>,
    /// More certificate authorities: PEM files.
    pub extra_cas: Vec<PathBuf>,
    /// Layers fetched at once.
    pub parallel: Option<usize>,
}

/// Reads the file that was named, or the default one if there is one.
pub fn load(named: Option<&Path>) -> Result<Config> {
    let path = named.unwrap_or(Path::new(DEFAULT));
    let size = fs::metadata(path).map(|meta| meta.len());
    let text = match size.and_then(|size| if size > MAX_BYTES { Ok(None) } else { fs::read_to_string(path).map(Some) })
    {
        Ok(Some(text)) => text,
        Ok(None) => return Err(Coded::usage(format!("{}: larger than {MAX_BYTES} bytes", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => return Ok(Config::default()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Coded::usage(format!("read the configuration {}: {error}", path.display())));
        }
        Err(error) => return Err(error).with_context(|| format!("read the configuration {}", path.display())),
    };
    parse(&text).map_err(|why| Coded::usage(format!("{}:{why}", path.display())))
}

/// Reads the text; an error is "LINE:COLUMN: what is wrong".
fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = &text.as_bytes()[..at];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = at - before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1) + 1;
        format!("{line}:{column}: {}", explain(error.message()))
    })
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a suggestion.
fn explain(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let mut words = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), words.next()) {
        (true, Some(word)) => {
            let known: Vec<&str> = words.collect();
            let hint = match nearest(word, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here are {}", known.join(", ")),
            };
            format!("unknown key `{word}`: {hint}")
        }
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_every_key_is_read() {
        let text = "root = '/r'\nstate = '/s'\nlog_dir = '/l'\ncgroup_parent = '/c'\n[network]\nbridge = 'b'\nsubnet = '10.0.0.0/8'\nmtu = 9000\n\
            masquerade = false\n[image]\nhosts_dirs = ['/h']\ninsecure_registries = ['r']\nextra_cas = ['/c']\nparallel = 2\n";
        let config = parse(text).unwrap();
        assert_eq!(config.network.mtu, Some(9000));
        assert_eq!(config.image.parallel, Some(2));
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        assert_eq!(parse("\nrooot = 1\n").unwrap_err(), "2:1: unknown key `rooot`: did you mean `root`?");
        let far = parse("[network]\nbandwidth = 1\n").unwrap_err();
        assert_eq!(far, "2:1: unknown key `bandwidth`: known here are bridge, subnet, mtu, masquerade");
        assert!(parse("[network]\nmtu = 'x'\n").unwrap_err().starts_with("2:7: invalid type"));
        assert!(parse("root = \n").unwrap_err().starts_with("1:"));
    }
}
