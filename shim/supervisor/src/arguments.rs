//! The command line containerd gives its shims: flags in the manner of Go's (`-id X`, `-id=X`, `--id X`), then an action.

use crate::containerd::Containerd;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Nothing was named.
    #[default]
    None,
    /// Begin a supervisor.
    Start,
    /// Clear up after one that died.
    Delete,
    /// Say what we are, to containerd.
    Info,
    /// Say whether KVM can be used.
    VmProbe,
    /// Say the version.
    Version,
    /// Say how it is used.
    Help,
}

/// The command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The action.
    pub action: Action,
    /// The sandbox's id.
    pub id: String,
    /// Its directory; the working directory if it is not given.
    pub bundle: Option<PathBuf>,
    /// Of which machine it is asked whether KVM can be used: JSON.
    pub question: String,
    /// Messages go to `<bundle>/log`.
    pub debug: bool,
    /// Who begins us, if it is containerd and not our engine.
    pub containerd: Option<Containerd>,
}

impl Arguments {
    /// Reads the command line, without the program's name.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut arguments = Arguments::default();
        let (mut namespace, mut address) = Default::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8"))?;
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                if arguments.action != Action::None {
                    bail!("unexpected argument {word:?}");
                }
                arguments.action = match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    other => bail!("unknown action {other:?}: start or delete"),
                };
                continue;
            };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let mut value = || match value {
                Some(value) => Ok(value.to_owned()),
                None => {
                    let next = words.next().with_context(|| format!("flag -{name} needs a value"))?;
                    next.into_string().map_err(|value| anyhow::anyhow!("value {value:?} of -{name} is not UTF-8"))
                }
            };
            match name {
                "id" => arguments.id = value()?,
                "bundle" => arguments.bundle = Some(value()?.into()),
                "namespace" => namespace = value()?,
                "address" => address = value()?,
                // Its own program, to publish events by where it has no socket for them, which it has long had. Where to
                // listen and to be debugged: of containerd's own shims, for themselves.
                "publish-binary" | "socket" | "debug-socket" => drop(value()?),
                "debug" => arguments.debug = flag == "debug" || value()? == "true",
                "info" => arguments.action = Action::Info,
                "vm-probe" => {
                    arguments.action = Action::VmProbe;
                    arguments.question = value()?;
                }
                "v" | "version" => arguments.action = Action::Version,
                "h" | "help" => arguments.action = Action::Help,
                other => bail!("unknown flag -{other}"),
            }
        }
        if !address.is_empty() {
            if namespace.is_empty() {
                bail!("-address is given, but no -namespace");
            }
            arguments.containerd = Some(Containerd::new(namespace, address.into()));
        }
        Ok(arguments)
    }

    /// The bundle, absolute.
    pub fn bundle(&self) -> Result<PathBuf> {
        let given = match &self.bundle {
            Some(path) if !path.as_os_str().is_empty() => path.clone(),
            _ => std::env::current_dir().context("find the working directory")?,
        };
        given.canonicalize().with_context(|| format!("find bundle {}", given.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn containerds_command_line_is_understood() {
        let words =
            ["-namespace", "k8s.io", "-id", "web", "-address", "/a.sock", "-publish-binary", "", "-debug", "start"];
        let arguments = parse(&words).unwrap();
        assert_eq!((arguments.action, arguments.id.as_str(), arguments.debug), (Action::Start, "web", true));
        let containerd = arguments.containerd.unwrap();
        assert_eq!((containerd.namespace.as_str(), containerd.address), ("k8s.io", "/a.sock".into()));
        assert_eq!(parse(&["-address", "", "-id", "web", "start"]).unwrap().containerd, None, "our engine's");
        assert_eq!(parse(&["--bundle=/b", "delete"]).unwrap().bundle, Some("/b".into()));
        assert_eq!(parse(&["-v"]).unwrap().action, Action::Version);
        assert_eq!(parse(&["-info"]).unwrap().action, Action::Info);
    }

    #[test]
    fn mistakes_are_named() {
        for (words, part) in [
            (&["-idd", "x", "start"][..], "unknown flag -idd"),
            (&["-id"], "-id needs a value"),
            (&["-address", "/a.sock", "start"], "no -namespace"),
            (&["begin"], "unknown action \"begin\""),
            (&["start", "delete"], "unexpected argument \"delete\""),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
