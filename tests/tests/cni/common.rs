//! A host for one test, pods on it, and plugins that write down what they are asked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coracle_engine::net::{Attach, Attachment, Error, NetConfig, Network};
use coracle_engine::{DnsConfig, PortMapping, Protocol};
use coracle_tests::machine::{Netns, sh};
use serde_json::Value;

/// Where Debian has the plugins.
pub const REAL: &str = "/usr/lib/cni";

/// A host: its network namespace and its folders.
pub struct Host {
    pub netns: Netns,
    dir: tempfile::TempDir,
    settings: NetConfig,
}

/// A pod: its sandbox's id and its network namespace.
pub struct Pod {
    pub id: String,
    pub netns: Netns,
}

/// What a pod wants of its network.
#[derive(Default)]
pub struct Wish {
    pub ports: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    pub dns: Option<DnsConfig>,
    pub local: bool,
}

impl Pod {
    pub fn new() -> Pod {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{:08x}{:08x}", COUNT.fetch_add(1, Ordering::Relaxed), std::process::id());
        Pod { id, netns: Netns::new() }
    }

    pub fn sh(&self, line: &str) -> String {
        self.netns.run(|| sh(line))
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.sh(line)).expect("JSON")
    }
}

impl Host {
    /// A host with no configuration, no embedded network and our own plugins only.
    pub fn new() -> Host {
        let dir = tempfile::Builder::new().prefix("coracle-cni.").tempdir().expect("make a scratch place");
        for folder in ["conf", "bin", "calls", "data", "state"] {
            fs::create_dir(dir.path().join(folder)).expect("make a folder");
        }
        let settings = NetConfig {
            cni_conf_dir: dir.path().join("conf"),
            cni_bin_dirs: vec![dir.path().join("bin")],
            cni_timeout: Duration::from_secs(60),
            embedded: false,
            ..NetConfig::default()
        };
        let netns = Netns::new();
        eprintln!("host in {}; nsenter --net={}", dir.path().display(), netns.path());
        netns.run(|| sh("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"));
        Host { netns, dir, settings }
    }

    /// As [`Host::new`], with the real plugins.
    pub fn real() -> Host {
        Host::new().with(|settings| settings.cni_bin_dirs = vec![REAL.into()])
    }

    pub fn with(mut self, change: impl FnOnce(&mut NetConfig)) -> Host {
        change(&mut self.settings);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a network configuration; `DATA` in it is the folder for addresses.
    pub fn conf(&self, name: &str, text: &str) {
        let text = text.replace("DATA", &self.path("data").display().to_string());
        fs::write(self.path("conf").join(name), text).expect("write a configuration");
    }

    /// A network of this host, as a process opens it.
    pub fn network(&self) -> Network {
        self.network_in("state")
    }

    pub fn network_in(&self, state: &str) -> Network {
        Network::open(&self.path(state), self.settings.clone()).expect("open the network")
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    pub fn sh(&self, line: &str) -> String {
        self.run(|| sh(line))
    }

    pub fn attach(&self, network: &Network, pod: &Pod, wish: &Wish) -> Result<Attachment, Error> {
        self.run(|| attach(network, pod, wish))
    }

    pub fn detach(&self, network: &Network, pod: &Pod) -> Result<(), Error> {
        self.run(|| network.detach(&pod.id))
    }

    /// What is kept of a pod's attachment.
    pub fn record(&self, pod: &Pod) -> Option<Value> {
        let path = self.path("state").join("net/cni").join(&pod.id).join("attachment.json");
        Some(serde_json::from_str(&fs::read_to_string(path).ok()?).expect("JSON"))
    }

    /// Makes a plugin that writes down each call and then runs `script`, a piece of shell with `$CNI_COMMAND` and `$dir`.
    pub fn plugin(&self, kind: &str, script: &str) {
        let text = format!(
            "#!/bin/sh\ndir={}\nconfig=$(cat)\nn=$(ls $dir/calls | wc -l)\n{{ env | grep ^CNI_ | sort; echo \
             \"CONFIG=$config\"; }} > $dir/calls/.new\nmv $dir/calls/.new $dir/calls/$(printf %03d $n).$CNI_COMMAND.{kind}\n\
             {script}\n",
            self.dir.path().display()
        );
        let path = self.path("bin").join(kind);
        fs::write(&path, text).expect("write a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    /// A plugin that gives `address`, and does all else without a word.
    pub fn giver(&self, kind: &str, address: &str) {
        let result = format!(
            r#"{{"cniVersion": "1.0.0", "interfaces": [{{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "'"$CNI_NETNS"'"}}],
                "ips": [{{"interface": 0, "address": "{address}"}}], "from": "{kind}"}}"#
        );
        self.plugin(kind, &format!("test $CNI_COMMAND != ADD || echo '{result}'\n{VERSIONS}"));
    }

    /// The calls of our plugins until now, as `COMMAND plugin`.
    pub fn calls(&self) -> Vec<String> {
        self.call_files().iter().map(|path| call_name(path)).collect()
    }

    fn call_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.path("calls")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Forgets the calls until now.
    pub fn forget_calls(&self) {
        self.call_files().iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    /// The environment and the configuration of the last call of that name.
    pub fn call(&self, name: &str) -> (BTreeMap<String, String>, Value) {
        let files = self.call_files();
        let path = files.iter().rev().find(|path| call_name(path) == name);
        let text = fs::read_to_string(path.unwrap_or_else(|| panic!("no call {name} in {:?}", self.calls()))).unwrap();
        let (env, config) = text.split_once("CONFIG=").expect("a call has a configuration");
        let env = env.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        (env, serde_json::from_str(config).expect("JSON"))
    }

    /// Whether anything is kept of any attachment.
    pub fn is_clean(&self) -> bool {
        let dir = self.path("state").join("net/cni");
        fs::read_dir(dir).unwrap().all(|entry| !entry.unwrap().path().is_dir())
    }
}

impl Drop for Host {
    /// Lets go of the namespaces of pods that a test left attached.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("state").join("net/cni")).into_iter().flatten().flatten() {
            let pin = Path::new("/run/netns").join(format!("coracle-{}", entry.file_name().to_string_lossy()));
            if nix::mount::umount(&pin).is_ok() {
                let _ = fs::remove_file(pin);
            }
        }
    }
}

/// Attaches a pod in the thread's own network namespace.
pub fn attach(network: &Network, pod: &Pod, wish: &Wish) -> Result<Attachment, Error> {
    network.attach(&Attach {
        sandbox: &pod.id,
        name: "web",
        namespace: "default",
        uid: "uid-1",
        netns: Path::new(&pod.netns.path()),
        ports: &wish.ports,
        annotations: &wish.annotations,
        dns: wish.dns.as_ref(),
        cgroup: "/kubepods/poduid-1",
        local: wish.local,
    })
}

/// Answers VERSION as a plugin of today.
pub const VERSIONS: &str = r#"test $CNI_COMMAND != VERSION || echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}'"#;

fn call_name(path: &Path) -> String {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    name.split('.').skip(1).collect::<Vec<_>>().join(" ")
}

/// Where a pod's network namespace is pinned while plugins have it.
pub fn pin(pod: &Pod) -> PathBuf {
    format!("/run/netns/coracle-{}", pod.id).into()
}

pub fn port(host_ip: &str, host_port: u16, container_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_ip: host_ip.parse().ok(), host_port, container_port, protocol }
}
