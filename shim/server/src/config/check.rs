//! What is wrong with a configuration that can be read: names that cannot be, files that are not there, programs that
//! cannot be started. All of it is told at once, each problem with its place in the file.

use std::fmt;
use std::path::Path;

use coracle_engine::handler::{HandlerKind, HandlerSettings, Handlers};
use coracle_engine::{Error, find_program};
use toml::de::{DeTable, DeValue};

use super::{Config, position};

/// The kernel's limit of an interface's name.
const MAX_IFNAME: usize = 15;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path of the key.
    key: Vec<String>,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key.join("."), self.text)
    }
}

impl Problem {
    /// The problem with its place in the file's text, as compilers write it. A problem of a default has none.
    pub fn at(&self, file: &Path, text: &str) -> String {
        match locate(text, &self.key) {
            Some((line, column)) => format!("{}:{line}:{column}: {self}", file.display()),
            None => format!("{}: {self}", file.display()),
        }
    }
}

/// Where the longest known part of a key stands.
fn locate(text: &str, key: &[String]) -> Option<(usize, usize)> {
    let file = DeTable::parse(text).ok()?;
    let mut table = file.get_ref();
    let mut found = None;
    for word in key {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == word) else { break };
        found = Some(name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found.map(|at| position(text, at))
}

/// Gathers problems.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: &[&str], text: impl Into<String>) {
        self.0.push(Problem { key: key.iter().map(|word| (*word).to_owned()).collect(), text: text.into() });
    }

    fn absolute(&mut self, key: &[&str], path: &Path) {
        if !path.is_absolute() {
            self.add(key, format!("{} is no absolute path", path.display()));
        }
    }

    fn file(&mut self, key: &[&str], path: &Path) {
        match path.metadata() {
            Err(error) => self.add(key, format!("{}: {error}", path.display())),
            Ok(meta) if !meta.is_file() => self.add(key, format!("{} is no file", path.display())),
            Ok(_) => {}
        }
    }

    fn folder(&mut self, key: &[&str], path: &Path) {
        match path.metadata() {
            Err(error) => self.add(key, format!("{}: {error}", path.display())),
            Ok(meta) if !meta.is_dir() => self.add(key, format!("{} is no folder", path.display())),
            Ok(_) => {}
        }
    }
}

/// Everything that is wrong.
pub fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Problems::default();
    top(config, &mut problems);
    serve(config, &mut problems);
    network(config, &mut problems);
    for path in &config.image.extra_cas {
        problems.file(&["image", "extra_cas"], path);
    }
    if config.image.parallel == 0 {
        problems.add(&["image", "parallel"], "at least one layer is fetched at once");
    }
    for (name, settings) in &config.handlers {
        if let Err((key, why)) = handler(name, settings) {
            problems.add(&key.split('.').collect::<Vec<_>>(), why);
        }
    }
    problems.0
}

/// The handlers whose programs are not there. A server starts all the same: their pods are refused, and others' are not.
pub fn programs(config: &Config) -> Vec<Problem> {
    let mut problems = Problems::default();
    for (name, settings) in &config.handlers {
        let Ok(kind) = handler(name, settings) else { continue };
        let machine = match kind {
            HandlerKind::Coracle => continue,
            HandlerKind::Oci { binary, .. } | HandlerKind::Shim { binary, .. } => (binary, None),
            HandlerKind::Vm { binary, options } => (binary, Some(options)),
        };
        if let Err(why) = find_program(&machine.0) {
            problems.add(&["handlers", name, "binary"], why);
        }
        if let Some(Err(why)) = machine.1.map(|options| options.check_files()) {
            problems.add(&["handlers", name, "options"], why);
        }
    }
    problems.0
}

fn top(config: &Config, problems: &mut Problems) {
    for (key, path) in [("root", &config.root), ("state", &config.state), ("log_dir", &config.log_dir)] {
        problems.absolute(&[key], path);
    }
    if let Some(parent) = &config.cgroup_parent
        && (!parent.starts_with('/') || parent.len() < 2 || parent.contains(".."))
    {
        problems.add(&["cgroup_parent"], format!("{parent:?} is no absolute path such as /coracle"));
    }
    if let Err(error) = config.log_level.parse::<tracing_subscriber::EnvFilter>() {
        problems.add(&["log_level"], format!("{:?}: {error}", config.log_level));
    }
    let default = &config.default_handler;
    if default != "coracle" && !config.handlers.contains_key(default) {
        let known: Vec<&str> = config.handlers.keys().map(String::as_str).chain(["coracle"]).collect();
        problems.add(&["default_handler"], format!("no handler {default:?}: known are {}", known.join(", ")));
    }
}

fn serve(config: &Config, problems: &mut Problems) {
    let serve = &config.serve;
    if let Some(listen) = &serve.listen {
        problems.absolute(&["serve", "listen"], listen);
    }
    let files = [
        ("streaming_cert", &serve.streaming_cert),
        ("streaming_key", &serve.streaming_key),
        ("streaming_client_ca", &serve.streaming_client_ca),
    ];
    for (key, path) in files {
        if let Some(path) = path {
            problems.file(&["serve", key], path);
        }
    }
    let address = serve.streaming_address;
    match (&serve.streaming_cert, &serve.streaming_key) {
        (Some(_), None) => problems.add(&["serve", "streaming_cert"], "a certificate needs its streaming_key"),
        (None, Some(_)) => problems.add(&["serve", "streaming_key"], "a key needs its streaming_cert"),
        (None, None) if !address.ip().is_loopback() => {
            let why =
                format!("{address} is no loopback address: whoever reaches it could read along; set streaming_cert");
            problems.add(&["serve", "streaming_address"], why);
        }
        _ => {}
    }
    if serve.streaming_client_ca.is_some() && serve.streaming_cert.is_none() {
        problems.add(
            &["serve", "streaming_client_ca"],
            "clients show certificates to a server that has one: set streaming_cert",
        );
    }
    if let Some(endpoint) = &serve.otlp_endpoint {
        let parsed = endpoint.parse::<hyper::Uri>();
        if !parsed.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
        {
            problems.add(&["serve", "otlp_endpoint"], format!("{endpoint:?}: expected http://HOST:PORT"));
        }
    }
    if let Some(dir) = &serve.services_dir {
        problems.folder(&["serve", "services_dir"], dir);
    }
}

fn network(config: &Config, problems: &mut Problems) {
    let network = &config.network;
    problems.absolute(&["network", "cni_conf_dir"], &network.cni_conf_dir);
    for dir in &network.cni_bin_dirs {
        problems.absolute(&["network", "cni_bin_dirs"], dir);
    }
    if network.cni_timeout.is_zero() {
        problems.add(&["network", "cni_timeout"], "no plugin is done in no time");
    }
    const LONGEST_SERVICE_PREFIX: u8 = 27; // the DNS server's is the tenth
    if !(8..=LONGEST_SERVICE_PREFIX).contains(&network.service_subnet.prefix()) {
        let why = format!("{}: the prefix must be 8 to {LONGEST_SERVICE_PREFIX}", network.service_subnet);
        problems.add(&["network", "service_subnet"], why);
    }
    if network.service_subnet.overlaps(network.subnet) {
        let why = format!("{} overlaps the pods' subnet {}", network.service_subnet, network.subnet);
        problems.add(&["network", "service_subnet"], why);
    }
    if let Err(why) = crate::kube::names::subdomain(&network.cluster_domain) {
        problems.add(&["network", "cluster_domain"], why);
    }
    let bridge = &network.bridge;
    let plain = !bridge.is_empty() && !bridge.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !plain || bridge.len() > MAX_IFNAME {
        let why = format!("{bridge:?} is no name of an interface: 1 to {MAX_IFNAME} bytes without spaces, '/' and ':'");
        problems.add(&["network", "bridge"], why);
    }
}

/// What a handler runs; or the key that is wrong, and why.
fn handler(name: &str, settings: &HandlerSettings) -> Result<HandlerKind, (String, String)> {
    let named = |key: &str| format!("handlers.{name}{key}");
    let handlers = Handlers::new("", [(name.to_owned(), settings.clone())].into()).map_err(|error| match error {
        Error::Invalid { field, reason } => (if field == "handlers" { named("") } else { field }, reason),
        other => (named(""), other.to_string()),
    })?;
    let found = handlers.named.get(name).map(|handler| handler.kind.clone());
    found.ok_or_else(|| (named(""), "is not among the handlers".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn problems(text: &str) -> Vec<String> {
        let config = parse(text).unwrap();
        let all = check(&config).into_iter().chain(programs(&config));
        all.map(|problem| problem.at(Path::new("c.toml"), text)).collect()
    }

    #[test]
    fn the_defaults_have_no_problem() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert_eq!(problems(crate::config::DEFAULT_TEXT), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_told_with_its_place() {
        for (text, wanted) in [
            ("state = 'run'\n", "c.toml:1:1: state: run is no absolute path"),
            ("default_handler = 'kata'\n", "c.toml:1:1: default_handler: no handler \"kata\": known are coracle"),
            ("log_level = 'coracle=loud'\n", "c.toml:1:1: log_level: \"coracle=loud\": "),
            (
                "[serve]\notlp_endpoint = 'collector:4317'\n",
                "c.toml:2:1: serve.otlp_endpoint: \"collector:4317\": expected http://HOST:PORT",
            ),
            (
                "[serve]\nstreaming_address = '0.0.0.0:1'\n",
                "c.toml:2:1: serve.streaming_address: 0.0.0.0:1 is no loopback",
            ),
            ("[serve]\nservices_dir = '/nowhere'\n", "c.toml:2:1: serve.services_dir: /nowhere: No such file"),
            ("[network]\n bridge = 'a/b'\n", "c.toml:2:2: network.bridge: \"a/b\" is no name of an interface"),
            ("[image]\nextra_cas = ['/nowhere']\n", "c.toml:2:1: image.extra_cas: /nowhere: No such file"),
            ("[handlers.Kata]\n", "c.toml:1:11: handlers.Kata: \"Kata\" is no DNS-1123 label"),
            (
                "[handlers.x]\ntype = 'vm'\nbinary = '/bin/sh'\noptions = { kernel = '/nowhere/k' }\n",
                "c.toml:4:1: handlers.x.options: its kernel /nowhere/k: No such file",
            ),
            (
                "[handlers.x]\ntype = 'vm'\noptions = { memory = 1024 }\n",
                "c.toml:3:13: handlers.x.options.memory: 1024 bytes are less than",
            ),
            ("[handlers.x]\ntype = 'oci'\n", "c.toml:1:11: handlers.x.binary: the program's path is missing"),
            (
                "[handlers.x]\ntype = 'oci'\nbinary = '/etc/passwd'\n",
                "c.toml:3:1: handlers.x.binary: program /etc/passwd cannot be executed",
            ),
            (
                "[handlers.x]\ntype = 'shim'\nbinary = 'io.containerd.none.v2'\n",
                "c.toml:3:1: handlers.x.binary: program containerd-shim-none-v2 is not in PATH (is it installed?)",
            ),
            ("[handlers.x]\noptions = { root = '/x' }\n", "c.toml:2:13: handlers.x.options.root: "),
        ] {
            let found = problems(text);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(wanted), "{found:?}, wanted {wanted}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        assert_eq!(problems("root = 'r'\nstate = 's'\n[network]\nbridge = ''\n").len(), 3);
    }
}
