//! Credentials for registries, from the files that docker, podman and kubelet use.
//!
//! A [`Keyring`] is read from *one* file, the first that exists in kubelet's order ([`SearchPath::kubelet`]): every
//! `config.json` first, then every legacy `.dockercfg`. Given an image, it says which credentials to try, and in which
//! order, by kubelet's rules:
//!
//! 1. a key is `[SCHEME://]HOST[:PORT][/PATH]`; the scheme does not matter, and a leading `/v1/` or `/v2/` of the path
//!    counts as nothing;
//! 2. a key matches an image if the ports are equal, the hosts have as many dot-separated parts and each part of the
//!    key's, as a glob, matches the image's, and the key's path is a prefix of the image's;
//! 3. all keys that match are tried, in reverse lexical order, so a longer path comes before a shorter one;
//! 4. images of Docker Hub also match the key `index.docker.io`, if no other did.
//!
//! Credentials that came otherwise ([`Keyring::from_secrets`], a Pod's `imagePullSecrets`) can be put before a keyring
//! ([`Keyring::then`]): theirs are tried first, then those of the file. A secret names no programs: it may have come from
//! anywhere, and its `credHelpers` and `credsStore` are passed over, as kubelet does.
//!
//! A `credHelpers` entry or the `credsStore` answers for the registry before the `auths` do. Unlike kubelet, which
//! logs and goes on, a malformed file is an error that names the file and the field: a pull that silently runs without
//! its credentials fails later and says less.

mod file;
mod helper;
mod matching;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The key under which docker keeps the credentials of Docker Hub, and its host alone.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB_HOST: &str = "index.docker.io";

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A user and a password.
    Basic {
        /// The user's name.
        username: String,
        /// The password, or whatever token the registry takes for one.
        password: String,
    },
    /// An OAuth2 refresh token, which a token service turns into access tokens.
    IdentityToken(String),
    /// An access token, sent as it is.
    RegistryToken(String),
}

impl Credentials {
    /// A user and a password; nothing if both are empty.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        let (username, password) = (username.into(), password.into());
        match username.is_empty() && password.is_empty() {
            true => Credentials::Anonymous,
            false => Credentials::Basic { username, password },
        }
    }

    /// From the base64 of `USER:PASSWORD`, as in `auth` fields; the error says what is wrong with it.
    pub fn from_auth(auth: &str) -> Result<Credentials, String> {
        file::decode_auth(auth)
    }

    /// Who asks, for errors: never a secret.
    pub fn describe(&self) -> String {
        match self {
            Credentials::Anonymous => "no credentials".into(),
            Credentials::Basic { username, .. } => format!("user {username:?}"),
            Credentials::IdentityToken(_) => "an identity token".into(),
            Credentials::RegistryToken(_) => "a registry token".into(),
        }
    }
}

/// Secrets do not show.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Where credentials are looked for.
#[derive(Debug, Clone, Default)]
pub struct SearchPath {
    /// Directories whose `config.json` is read, if no earlier one has any.
    pub config_json: Vec<PathBuf>,
    /// Directories whose `.dockercfg` is read, if there was no `config.json` at all.
    pub dockercfg: Vec<PathBuf>,
    /// Where the `docker-credential-*` programs are; the `PATH` of this process if `None`.
    pub helpers: Option<OsString>,
}

impl SearchPath {
    /// Kubelet's order: an explicit directory, the working directory, `$HOME/.docker` (or `$DOCKER_CONFIG` in its
    /// stead, as docker has it), and `/.docker`; then the same for `.dockercfg`, in the directories themselves.
    pub fn kubelet(explicit: Option<&Path>) -> SearchPath {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("HOME");
        let docker = set("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let explicit = explicit.map(Path::to_owned);
        let (here, root) = (PathBuf::from("."), PathBuf::from("/"));
        let config_json = [explicit.clone(), Some(here.clone()), docker, Some(root.join(".docker"))];
        let dockercfg = [explicit, Some(here), home, Some(root)];
        SearchPath {
            config_json: config_json.into_iter().flatten().collect(),
            dockercfg: dockercfg.into_iter().flatten().collect(),
            helpers: None,
        }
    }
}

/// The credentials of one file; see the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// The file, for errors; empty if there is none.
    origin: PathBuf,
    /// Normalized keys in the order in which they are tried, with their credentials.
    entries: Vec<(String, Credentials)>,
    /// Programs that answer for one registry, by its host.
    cred_helpers: Vec<(String, String)>,
    /// The program that answers for all registries.
    creds_store: Option<String>,
    /// Where those programs are.
    helper_path: Option<OsString>,
    /// Whose credentials are tried after these.
    next: Option<Box<Keyring>>,
}

/// The credentials in a Kubernetes Secret.
#[derive(Debug, Clone, Copy)]
pub enum PullSecret<'a> {
    /// `kubernetes.io/dockerconfigjson`: a whole config.json.
    ConfigJson(&'a [u8]),
    /// `kubernetes.io/dockercfg`: the older file.
    Dockercfg(&'a [u8]),
}

impl Keyring {
    /// Reads the first file that exists; an empty keyring if none does.
    pub fn load(search: &SearchPath) -> Result<Keyring> {
        let config_json = search.config_json.iter().map(|dir| (dir.join("config.json"), file::Format::ConfigJson));
        let dockercfg = search.dockercfg.iter().map(|dir| (dir.join(".dockercfg"), file::Format::Dockercfg));
        for (path, format) in config_json.chain(dockercfg) {
            if let Some(text) = file::read(&path)?
                && let Some(mut keyring) = file::parse(&text, &path, format)?
            {
                keyring.helper_path = search.helpers.clone();
                return Ok(keyring);
            }
        }
        Ok(Keyring::default())
    }

    /// Parses the text of a `config.json`; `origin` names it in errors.
    pub fn parse(text: &str, origin: &Path) -> Result<Keyring> {
        Ok(file::parse(text, origin, file::Format::ConfigJson)?.unwrap_or_default())
    }

    /// The credentials of several secrets together; each has a name for errors.
    pub fn from_secrets<'a>(secrets: impl IntoIterator<Item = (&'a str, PullSecret<'a>)>) -> Result<Keyring> {
        let mut all = Keyring::default();
        for (name, secret) in secrets {
            let (bytes, format) = match secret {
                PullSecret::ConfigJson(bytes) => (bytes, file::Format::ConfigJson),
                PullSecret::Dockercfg(bytes) => (bytes, file::Format::Dockercfg),
            };
            let origin = PathBuf::from(format!("of secret {name}"));
            let text = String::from_utf8_lossy(bytes);
            all.entries.extend(file::parse(&text, &origin, format)?.unwrap_or_default().entries);
        }
        // As of one file; of one key the first secret comes first.
        all.entries.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(all)
    }

    /// These credentials first, then those of another keyring.
    pub fn then(mut self, next: Keyring) -> Keyring {
        self.next = Some(Box::new(match self.next.take() {
            Some(before) => before.then(next),
            None => next,
        }));
        self
    }

    /// The file that the keyring was read from.
    pub fn origin(&self) -> Option<&Path> {
        (self.origin != Path::new("")).then_some(&self.origin)
    }

    /// The credentials to try for an image, in order; empty means to go without. Fails if a helper program does.
    pub fn lookup(&self, image: &Reference) -> Result<Vec<Credentials>> {
        let mut found = Vec::new();
        if let Some(helper) = self.helper(image.registry()) {
            let server = if image.registry() == DEFAULT_REGISTRY { HUB_KEY } else { image.registry() };
            found.extend(helper::get(helper, server, self.helper_path.as_deref(), &self.origin)?);
        }
        let name = image.name();
        let matches = self.entries.iter().filter(|(key, _)| matching::matches(key, &name));
        let mut listed: Vec<Credentials> = matches.map(|(_, credentials)| credentials.clone()).collect();
        if listed.is_empty() && image.registry() == DEFAULT_REGISTRY {
            let hub = self.entries.iter().filter(|(key, _)| key == HUB_HOST);
            listed.extend(hub.map(|(_, credentials)| credentials.clone()));
        }
        found.extend(listed);
        for credentials in self.next.as_ref().map_or(Ok(Vec::new()), |next| next.lookup(image))? {
            // The same once more would be refused once more.
            if !found.contains(&credentials) {
                found.push(credentials);
            }
        }
        Ok(found)
    }

    /// The program that answers for a registry, if any.
    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.cred_helpers.iter().find(|(host, _)| {
            let host = matching::normalize(host);
            host == registry || (registry == DEFAULT_REGISTRY && host == HUB_HOST)
        });
        own.map(|(_, helper)| helper.as_str()).or(self.creds_store.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn lookup(keyring: &Keyring, image: &str) -> Vec<String> {
        let found = keyring.lookup(&Reference::parse(image).unwrap()).unwrap();
        found.iter().map(Credentials::describe).collect()
    }

    /// A config.json whose users are called as their keys.
    fn keyring(keys: &[&str]) -> Keyring {
        let auths: serde_json::Map<_, _> = keys
            .iter()
            .map(|key| ((*key).to_owned(), serde_json::json!({ "username": key, "password": "x" })))
            .collect();
        Keyring::parse(&serde_json::json!({ "auths": auths }).to_string(), Path::new("test")).unwrap()
    }

    #[test]
    fn all_matches_are_tried_and_the_longest_path_first() {
        let ring =
            keyring(&["quay.io", "https://quay.io/v2/team", "quay.io/team/app", "*.io", "other.io", "quay.io:443"]);
        let expect = [r#"user "quay.io/team/app""#, r#"user "https://quay.io/v2/team""#, r#"user "quay.io""#];
        assert_eq!(lookup(&ring, "quay.io/team/app:v1"), [&expect[..], &[r#"user "*.io""#]].concat());
        assert_eq!(lookup(&ring, "quay.io/else"), [r#"user "quay.io""#, r#"user "*.io""#]);
        assert_eq!(lookup(&ring, "quay.io:443/x"), [r#"user "quay.io:443""#]);
        assert!(lookup(&ring, "nowhere.example/x").is_empty());
    }

    #[test]
    fn docker_hub_has_several_names() {
        assert_eq!(lookup(&keyring(&["https://index.docker.io/v1/"]), "busybox").len(), 1);
        assert_eq!(lookup(&keyring(&["index.docker.io"]), "docker.io/a/b").len(), 1);
        assert_eq!(lookup(&keyring(&["docker.io"]), "busybox").len(), 1);
        assert!(lookup(&keyring(&["https://index.docker.io/v1/"]), "quay.io/x").is_empty());
        let ring = keyring(&["docker.io", "https://index.docker.io/v1/"]);
        assert_eq!(lookup(&ring, "busybox"), [r#"user "docker.io""#], "the hub's key is only a fallback");
    }

    #[test]
    fn the_first_file_in_kubelets_order_wins() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        for dir in [&a, &b, &c] {
            fs::create_dir(dir).unwrap();
        }
        let file = |user: &str| format!(r#"{{"auths":{{"quay.io":{{"username":"{user}","password":"x"}}}}}}"#);
        let dirs = vec![a.clone(), b.clone(), c.clone()];
        let search = SearchPath { config_json: dirs.clone(), dockercfg: dirs, helpers: None };
        assert!(lookup(&Keyring::load(&search).unwrap(), "quay.io/x").is_empty());
        fs::write(a.join(".dockercfg"), r#"{"quay.io":{"auth":"bGVnYWN5OnB3"}}"#).unwrap();
        assert_eq!(lookup(&Keyring::load(&search).unwrap(), "quay.io/x"), [r#"user "legacy""#]);
        fs::write(c.join("config.json"), file("third")).unwrap();
        assert_eq!(lookup(&Keyring::load(&search).unwrap(), "quay.io/x"), [r#"user "third""#]);
        // An OCI bundle's config.json is something else.
        fs::write(a.join("config.json"), r#"{"ociVersion":"1.2.0","process":{}}"#).unwrap();
        fs::write(b.join("config.json"), file("second")).unwrap();
        let keyring = Keyring::load(&search).unwrap();
        assert_eq!(lookup(&keyring, "quay.io/x"), [r#"user "second""#]);
        assert_eq!(keyring.origin(), Some(b.join("config.json").as_path()));
    }

    #[test]
    fn secrets_come_before_the_machines_own_and_name_no_programs() {
        let config = |user: &str, key: &str| {
            format!(
                r#"{{"auths":{{"{key}":{{"username":"{user}","password":"x"}}}},"credHelpers":{{"quay.io":"evil"}},"credsStore":"evil"}}"#
            )
        };
        let (one, two) = (config("one", "quay.io"), config("two", "quay.io/team"));
        let old = r#"{"quay.io":{"auth":"b2xkOnB3"}}"#;
        let secrets = [
            ("ns/one", PullSecret::ConfigJson(one.as_bytes())),
            ("ns/two", PullSecret::ConfigJson(two.as_bytes())),
            ("ns/old", PullSecret::Dockercfg(old.as_bytes())),
        ];
        let ring = Keyring::from_secrets(secrets).unwrap().then(keyring(&["quay.io", "ghcr.io"]));
        let expect = [r#"user "two""#, r#"user "one""#, r#"user "old""#, r#"user "quay.io""#];
        assert_eq!(lookup(&ring, "quay.io/team/app"), expect);
        assert_eq!(lookup(&ring, "ghcr.io/x"), [r#"user "ghcr.io""#]);
        let bad = Keyring::from_secrets([("ns/bad", PullSecret::ConfigJson(b"{"))]).unwrap_err().to_string();
        assert!(bad.contains("secret ns/bad"), "{bad}");
    }

    fn with_helper(dir: &Path, script: &str) -> Keyring {
        let program = dir.join("docker-credential-test");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let text =
            r#"{"credHelpers":{"quay.io":"test"},"auths":{"quay.io":{},"*.io":{"username":"glob","password":"x"}}}"#;
        let mut keyring = Keyring::parse(text, Path::new("/x/config.json")).unwrap();
        let path = std::env::join_paths([dir, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
        keyring.helper_path = Some(path);
        keyring
    }

    #[test]
    fn a_helper_is_asked_first_and_only_for_its_registry() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"[ "$1" = get ] && read server && echo "{\"Username\":\"for-$server\",\"Secret\":\"s\"}""#;
        let keyring = with_helper(dir.path(), script);
        assert_eq!(lookup(&keyring, "quay.io/x"), [r#"user "for-quay.io""#, r#"user "glob""#]);
        assert_eq!(lookup(&keyring, "ghcr.io/x"), [r#"user "glob""#]);
        let token = with_helper(dir.path(), r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        assert_eq!(lookup(&token, "quay.io/x")[0], "an identity token");
        let none = with_helper(dir.path(), "echo credentials not found in native keychain; exit 1");
        assert_eq!(lookup(&none, "quay.io/x"), [r#"user "glob""#]);
    }

    #[test]
    fn a_helper_that_fails_is_an_error_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        for (script, words) in [
            ("echo the vault is sealed >&2; exit 3", "the vault is sealed"),
            ("echo nonsense", "not the JSON"),
            ("echo '{}'", "Secret is missing"),
        ] {
            let keyring = with_helper(dir.path(), script);
            let err = keyring.lookup(&Reference::parse("quay.io/x").unwrap()).unwrap_err().to_string();
            assert!(err.contains(words) && err.contains("docker-credential-test"), "{err}");
            assert!(err.contains("/x/config.json"), "{err}");
        }
        let mut gone = with_helper(dir.path(), "true");
        gone.helper_path = Some("/nowhere".into());
        let err = gone.lookup(&Reference::parse("quay.io/x").unwrap()).unwrap_err().to_string();
        assert!(err.contains("not found in PATH"), "{err}");
    }
}
