//! `/etc/coracle/config.toml`: where things lie and how the machine is used.
//!
//! Every key, its meaning and its default are in `default.toml` beside this file, which `coracle config default`
//! prints; a test compares the two. An unknown key is an error: a setting that is not applied must not look as if it
//! were. Flags win over the file; a file named by `--config` must exist, the default one need not.
//!
//! Reading the file ([`File::read`]) finds what is no configuration at all. What only this machine can tell (a missing
//! certificate, a program that cannot be started) is found by [`check`], at the start of the server, at a reload, and
//! by `coracle config check`.

pub mod check;
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::handler::HandlerSettings;
use coracle_engine::net::{NetConfig, Subnet};
use serde::{Deserialize, Serialize};

use crate::exit::Coded;
use crate::kube::fault::nearest;

/// Read when `--config` names no other.
pub const DEFAULT: &str = "/etc/coracle/config.toml";
/// The file with every key, its meaning and its default.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");
/// Larger than any sensible file.
const MAX_BYTES: u64 = 1 << 20;

/// The file. What it does not say is the default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Images and writable layers.
    pub root: PathBuf,
    /// What runs.
    pub state: PathBuf,
    /// The local pods' logs.
    pub log_dir: PathBuf,
    /// The cgroup below which the pods' are made; `None` for one that follows from the state folder.
    pub cgroup_parent: Option<String>,
    /// What the server logs, as RUST_LOG has it.
    pub log_level: String,
    /// The handler of pods that name none.
    pub default_handler: String,
    /// The CRI server.
    pub serve: Serve,
    /// The network of pods.
    pub network: Network,
    /// Registries.
    pub image: Image,
    /// What runs pods, by name.
    pub handlers: BTreeMap<String, HandlerSettings>,
}

impl Default for Config {
    fn default() -> Config {
        let paths = coracle_engine::Paths::default();
        Config {
            root: paths.root,
            state: paths.state,
            log_dir: paths.logs,
            cgroup_parent: None,
            log_level: "info".into(),
            default_handler: "coracle".into(),
            serve: Serve::default(),
            network: Network::default(),
            image: Image::default(),
            handlers: BTreeMap::new(),
        }
    }
}

/// `[serve]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// The socket; `None` for the one in the state folder.
    pub listen: Option<PathBuf>,
    /// Where exec, attach and port-forward are served.
    #[serde(deserialize_with = "value::parsed")]
    pub streaming_address: SocketAddr,
    /// The streaming server's certificate chain: a PEM file.
    pub streaming_cert: Option<PathBuf>,
    /// Its key: a PEM file.
    pub streaming_key: Option<PathBuf>,
    /// The authority of the clients' certificates: a PEM file.
    pub streaming_client_ca: Option<PathBuf>,
    /// When a stream that carries nothing is closed.
    #[serde(deserialize_with = "value::span")]
    pub stream_idle_timeout: Duration,
    /// The most output of ExecSync in bytes, for each stream.
    #[serde(deserialize_with = "value::size")]
    pub exec_sync_limit: u64,
    /// The size at which a container's log is cut over to a new file; 0 for never.
    #[serde(deserialize_with = "value::size")]
    pub log_max_bytes: u64,
    /// Give containers variables that tell of the pod and of services.
    pub inject_env: bool,
    /// Manifests of services, for `inject_env`.
    pub services_dir: Option<PathBuf>,
    /// Where Prometheus' metrics are served.
    #[serde(deserialize_with = "value::parsed_option")]
    pub metrics_address: Option<SocketAddr>,
    /// Where the calls' spans are sent by OTLP over gRPC: `http://HOST:PORT`.
    pub otlp_endpoint: Option<String>,
    /// Clamp oom_score_adj to what this process may set.
    pub restrict_oom_score_adj: bool,
    /// Images that are never collected.
    pub pinned_images: Vec<String>,
    /// How often a pull tells its progress in the log.
    #[serde(deserialize_with = "value::span")]
    pub pull_progress_interval: Duration,
    /// How long running calls may take to finish when the server stops.
    #[serde(deserialize_with = "value::span")]
    pub stop_timeout: Duration,
}

impl Default for Serve {
    fn default() -> Serve {
        Serve {
            listen: None,
            streaming_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            streaming_cert: None,
            streaming_key: None,
            streaming_client_ca: None,
            stream_idle_timeout: Duration::from_secs(4 * 3600),
            exec_sync_limit: 16 << 20,
            log_max_bytes: 0,
            inject_env: false,
            services_dir: None,
            metrics_address: None,
            otlp_endpoint: None,
            restrict_oom_score_adj: false,
            pinned_images: Vec::new(),
            pull_progress_interval: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// The folder of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are looked for.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// When a plugin is killed.
    #[serde(deserialize_with = "value::span")]
    pub cni_timeout: Duration,
    /// Do the common plugins' work without starting them.
    pub native: bool,
    /// Use the embedded network where there is no CNI configuration.
    pub embedded: bool,
    /// Local pods get the network of `cni_conf_dir`, too.
    pub cni_for_local_pods: bool,
    /// The embedded network's bridge.
    pub bridge: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// The cluster addresses of local pods' services.
    pub service_subnet: Subnet,
    /// The domain that services and local pods have their names in.
    pub cluster_domain: String,
    /// Its MTU; `None` for that of the default route.
    pub mtu: Option<u32>,
    /// Whether pods reach the world with the machine's address.
    pub masquerade: bool,
}

impl Default for Network {
    fn default() -> Network {
        let net = NetConfig::default();
        Network {
            cni_conf_dir: net.cni_conf_dir,
            cni_bin_dirs: net.cni_bin_dirs,
            cni_timeout: net.cni_timeout,
            native: net.native,
            embedded: net.embedded,
            cni_for_local_pods: net.cni_for_local_pods,
            bridge: net.bridge,
            subnet: net.subnet,
            service_subnet: net.service_subnet,
            cluster_domain: net.cluster_domain,
            mtu: net.mtu,
            masquerade: net.masquerade,
        }
    }
}

/// `[image]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Folders of HOST/hosts.toml, as containerd has them.
    pub hosts_dirs: Vec<PathBuf>,
    /// Registries that may speak plain http.
    pub insecure_registries: Vec<String>,
    /// More certificate authorities: PEM files.
    pub extra_cas: Vec<PathBuf>,
    /// Layers fetched at once.
    pub parallel: usize,
}

impl Default for Image {
    fn default() -> Image {
        Image {
            hosts_dirs: coracle_rootfs::RegistryConfig::default().hosts_dir,
            insecure_registries: Vec::new(),
            extra_cas: Vec::new(),
            parallel: coracle_rootfs::PullOptions::default().parallel,
        }
    }
}

/// A file as it was read: read once, for its settings and for what is wrong with them.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    /// None: there is no such file, and all settings are the defaults.
    text: Option<String>,
    /// What it says; a reload keeps some of the settings before it.
    pub config: Config,
}

impl Deref for File {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl File {
    /// Reads the file that was named, or the default one if there is one.
    pub fn read(named: Option<&Path>) -> Result<File> {
        let path = named.unwrap_or(Path::new(DEFAULT)).to_owned();
        let text = read(named)?;
        let config = parse(text.as_deref().unwrap_or_default());
        let config = config.map_err(|why| Coded::usage(format!("{}:{why}", path.display())))?;
        Ok(File { path, text, config })
    }

    /// Everything that is wrong with it, a line each.
    pub fn problems(&self) -> Vec<String> {
        self.with_places(check::check(&self.config))
    }

    /// The handlers whose programs are not there, a line each.
    pub fn missing_programs(&self) -> Vec<String> {
        self.with_places(check::programs(&self.config))
    }

    /// Fails with everything that is wrong.
    pub fn check(&self) -> Result<()> {
        match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Coded::usage(problems.join("; "))),
        }
    }

    /// The file with other settings than it says.
    pub fn with(self, config: Config) -> File {
        File { config, ..self }
    }

    /// Whether there is such a file.
    pub fn exists(&self) -> bool {
        self.text.is_some()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn with_places(&self, problems: Vec<check::Problem>) -> Vec<String> {
        let text = self.text.as_deref().unwrap_or_default();
        problems.iter().map(|problem| problem.at(&self.path, text)).collect()
    }
}

/// The text of the file that was named, or of the default one; `None` if there is no default one.
fn read(named: Option<&Path>) -> Result<Option<String>> {
    let path = named.unwrap_or(Path::new(DEFAULT));
    let size = fs::metadata(path).map(|meta| meta.len());
    match size.and_then(|size| if size > MAX_BYTES { Ok(None) } else { fs::read_to_string(path).map(Some) }) {
        Ok(Some(text)) => Ok(Some(text)),
        Ok(None) => Err(Coded::usage(format!("{}: larger than {MAX_BYTES} bytes", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Coded::usage(format!("read the configuration {}: {error}", path.display())))
        }
        Err(error) => Err(error).with_context(|| format!("read the configuration {}", path.display())),
    }
}

/// Reads the text; an error is "LINE:COLUMN: what is wrong".
pub fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        format!("{line}:{column}: {}", explain(error.message()))
    })
}

/// The line and column of a place in a text, from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.len() - before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1) + 1;
    (line, column)
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
    use std::collections::BTreeSet;

    use super::*;

    /// The default file with the settings that have no default, too.
    fn all_set() -> String {
        let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let lines = DEFAULT_TEXT.lines().map(|line| Some(line).filter(is_setting).map_or(line, |line| &line[1..]));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// All keys of a table, as serde knows them.
    fn keys(table: &str) -> BTreeSet<String> {
        let error = toml::from_str::<Config>(&format!("{table}\nno-such-key = 1\n")).unwrap_err().to_string();
        error.split('`').skip(3).step_by(2).map(String::from).collect()
    }

    #[test]
    fn the_default_file_says_what_the_program_does_without_a_file() {
        assert_eq!(parse(DEFAULT_TEXT).unwrap(), Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_default_file_has_every_key_with_a_comment_above_it() {
        let text = all_set();
        parse(&text).unwrap();
        let file: toml::Table = text.parse().unwrap();
        let handlers = file["handlers"].as_table().unwrap();
        let tables = [
            (keys(""), &file),
            (keys("[serve]"), file["serve"].as_table().unwrap()),
            (keys("[network]"), file["network"].as_table().unwrap()),
            (keys("[image]"), file["image"].as_table().unwrap()),
            (keys("[handlers.x]"), handlers.values().next().unwrap().as_table().unwrap()),
        ];
        for (known, written) in tables {
            assert!(!known.is_empty());
            assert_eq!(known, written.keys().cloned().collect());
        }
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| !pair[1].starts_with('#') && !pair[1].is_empty()) {
            assert!(pair[0].starts_with("# "), "no comment above {:?}", pair[1]);
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        assert_eq!(parse("\nrooot = 1\n").unwrap_err(), "2:1: unknown key `rooot`: did you mean `root`?");
        let far = parse("[image]\nbandwidth = 1\n").unwrap_err();
        let known = "hosts_dirs, insecure_registries, extra_cas, parallel";
        assert_eq!(far, format!("2:1: unknown key `bandwidth`: known here are {known}"));
        assert!(parse("[network]\nmtu = 'x'\n").unwrap_err().starts_with("2:7: invalid type"));
        assert!(parse("root = \n").unwrap_err().starts_with("1:"));
        assert!(parse("[handlers.x]\ntype = 'docker'\n").unwrap_err().starts_with("2:8: unknown variant `docker`"));
    }

    #[test]
    fn values_are_read_where_they_stand() {
        let config = parse("[serve]\nexec_sync_limit = '1Mi'\nstop_timeout = '1m'\nlog_max_bytes = 5\n").unwrap();
        assert_eq!((config.serve.exec_sync_limit, config.serve.log_max_bytes), (1 << 20, 5));
        assert_eq!(config.serve.stop_timeout, Duration::from_secs(60));
        for (text, wanted) in [
            ("[serve]\nstreaming_address = 'localhost'\n", "2:21: \"localhost\": invalid socket address syntax"),
            ("[serve]\nstop_timeout = '5'\n", "2:16: \"5\" is no span of time"),
            ("[serve]\nexec_sync_limit = -1\n", "2:19: a number of bytes is not negative"),
            ("[network]\nsubnet = '10.0.0.1/33'\n", "2:10: \"10.0.0.1/33\" is not an IPv4 subnet"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
