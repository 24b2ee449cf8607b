//! A real registry for tests: Debian's `docker-registry` on a loopback port of the kernel's choice.
//!
//! One registry belongs to one test: it dies with the thread that started it (so that a killed test leaves none
//! behind), and with the value. It can ask for passwords (htpasswd), speak TLS with a certificate of a throw-away
//! authority, and believe the tokens of a [`TokenService`](crate::token::TokenService).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::image::{Layout, run};

/// How long a registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How a registry is started.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Asks for this user and password.
    pub user: Option<(&'a str, &'a str)>,
    /// Speaks TLS.
    pub tls: Option<&'a Authority>,
    /// With TLS: takes only clients with a certificate of the same authority.
    pub client_certs: bool,
    /// Sends clients to this token service: its realm URL and the certificate that its tokens are signed with.
    pub token: Option<(&'a str, &'a Path)>,
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    creds: Option<String>,
}

impl Registry {
    /// Starts one that lets everyone in over plain http.
    pub fn start() -> Registry {
        Registry::start_with(&Options::default())
    }

    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up: with its log.
    pub fn start_with(options: &Options<'_>) -> Registry {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let config = dir.path().join("config.yml");
        fs::write(&config, configuration(dir.path(), options)).expect("write the registry's configuration");
        let log = fs::File::create(dir.path().join("log")).expect("make the registry's log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            // Its environment would override its configuration, and traces would wait for a collector.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate the log"))
            .stderr(log)
            .spawn()
            .expect("start docker-registry through setpriv");
        let creds = options.user.map(|(user, password)| format!("{user}:{password}"));
        let mut registry = Registry { child, dir, port: 0, creds };
        registry.port = registry.wait_for_port();
        registry
    }

    /// `127.0.0.1:PORT`, as it stands in image references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT/NAME`.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Pushes an image of a layout under a name (`app:v1`), with further options of `skopeo copy`.
    pub fn push(&self, layout: &Layout, tag: &str, name: &str, options: &[&str]) {
        let mut all = vec!["--dest-tls-verify=false"];
        let creds = self.creds.as_ref().map(|creds| format!("--dest-creds={creds}"));
        all.extend(creds.as_deref());
        all.extend(options);
        layout.copy(tag, &format!("docker://{}", self.name(name)), &all);
    }

    /// The directory with the registry's files, for tests that damage them.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("data/docker/registry/v2")
    }

    /// All that the registry has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait_for_port(&mut self) -> u16 {
        let start = Instant::now();
        loop {
            let log = self.log();
            let port = log.split("listening on 127.0.0.1:").nth(1).map(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().expect("a port in the registry's log")
            });
            if let Some(port) = port {
                return port;
            }
            let ended = self.child.try_wait().expect("wait for docker-registry");
            assert!(ended.is_none() && start.elapsed() < START_LIMIT, "docker-registry does not listen:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, options: &Options<'_>) -> String {
    let dir = dir.display();
    let mut text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {dir}/data}}\n  \
         delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:0\n"
    );
    if let Some(authority) = options.tls {
        let (cert, key) = authority.issue("registry", "IP:127.0.0.1,DNS:localhost,DNS:registry.test");
        let clients = match options.client_certs {
            true => format!(", clientcas: [{}]", authority.cert().display()),
            false => String::new(),
        };
        text += &format!("  tls: {{certificate: {}, key: {}{clients}}}\n", cert.display(), key.display());
    }
    if let Some((user, password)) = options.user {
        let line = run("htpasswd", &["-nbB", user, password]);
        fs::write(format!("{dir}/htpasswd"), line).expect("write htpasswd");
        text += &format!("auth:\n  htpasswd: {{realm: test, path: {dir}/htpasswd}}\n");
    }
    if let Some((realm, cert)) = options.token {
        let cert = cert.display();
        text += &format!(
            "auth:\n  token: {{realm: \"{realm}\", service: test-registry, issuer: test-issuer, rootcertbundle: {cert}}}\n"
        );
    }
    text
}

/// A throw-away certificate authority, made by the openssl program.
#[derive(Debug)]
pub struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    /// Makes one.
    pub fn create() -> Authority {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let authority = Authority { dir };
        let (key, cert) = (authority.path("ca.key"), authority.path("ca.crt"));
        let subject = "/CN=test authority";
        #[rustfmt::skip]
        openssl(&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", subject, "-keyout", &key, "-out", &cert, "-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        authority
    }

    /// The authority's certificate.
    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Issues a certificate for the alternative names (`DNS:a,IP:b`): the paths of the certificate and of its key.
    pub fn issue(&self, name: &str, alt_names: &str) -> (PathBuf, PathBuf) {
        let [key, request, cert, ext] = ["key", "csr", "crt", "ext"].map(|ext| self.path(&format!("{name}.{ext}")));
        let extensions = format!("subjectAltName={alt_names}\nextendedKeyUsage=serverAuth,clientAuth\n");
        fs::write(&ext, extensions).expect("write the certificate's extensions");
        let subject = format!("/CN={name}");
        #[rustfmt::skip]
        openssl(&["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", &subject,
            "-keyout", &key, "-out", &request]);
        #[rustfmt::skip]
        openssl(&["x509", "-req", "-in", &request, "-CA", &self.path("ca.crt"), "-CAkey", &self.path("ca.key"),
            "-CAcreateserial", "-days", "2", "-extfile", &ext, "-out", &cert]);
        (cert.into(), key.into())
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }
}

/// Runs the openssl program.
pub fn openssl(args: &[&str]) -> String {
    run("openssl", args)
}
