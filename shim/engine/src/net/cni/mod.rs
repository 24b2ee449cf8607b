//! CNI 1.1: the network that a configuration names, made by its plugins, or by us where that is the same.
//!
//! | file | job |
//! |---|---|
//! | `conf` | which network the folder of configurations names |
//! | `args` | what plugins are told of a pod |
//! | `plugin` | running one plugin, within limits |
//! | `result` | what plugins answer |
//! | `record` | what is kept of each attachment, locks |
//! | `native` | `bridge`, `host-local` and `portmap` without plugins |
//!
//! ```text
//! attach:  record (intent) -> pin netns -> lo up -> ADD plugin 1..n, each with the result before -> record (result)
//! detach:                     DEL plugin n..1 with the last result -> unpin netns -> record removed
//! ```
//!
//! An ADD that fails is followed by DEL of all plugins, as the specification wants. A DEL that fails stops there and keeps
//! the record: whoever tries again (kubelet, `coracle gc`) runs it from the start.

mod args;
mod conf;
mod native;
mod plugin;
mod record;
mod result;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::kernel::{Pool, inside, open_netns, up};
use super::nl::Socket;
use super::port::{self, Holder};
use super::{Attach, Attachment, Error, NetConfig, NetworkStatus, POD_INTERFACE, nft};
use crate::types::PortMapping;
use conf::{Conf, Found, Plugin, Version};
use native::{Native, Plan, Store};
use plugin::{Plugins, Subject, Verb};
use record::{Exec, How, Record, Records};

/// Kubernetes' word for a node without a pod network.
const NOT_READY: &str = "NetworkPluginNotReady";
/// A question for the node's health is not waited for as long as the making of a network.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// How many acts of another that each take a plugin's whole time one waits for.
const PATIENCE: u32 = 8;

/// Pods' networks by CNI.
pub(super) struct Cni {
    config: NetConfig,
    plugins: Plugins,
    records: Records,
    native: Native,
    /// This is the system's own engine, not one with another state folder.
    system: bool,
    /// What each program said of its versions, for as long as the program is the same.
    versions: Mutex<HashMap<PathBuf, (Stamp, Vec<String>)>>,
}

/// Changes with a file.
type Stamp = (u64, u64, i64, i64);

impl Cni {
    /// Opens what is kept of attachments under `state_dir`.
    pub(super) fn open(state_dir: &Path, config: NetConfig, kernels: Arc<Pool>) -> Result<Cni, Error> {
        let records = Records::open(state_dir.join("net").join("cni"))?;
        let plugins = Plugins { dirs: config.cni_bin_dirs.clone(), timeout: config.cni_timeout };
        let system = state_dir == Path::new(crate::config::STATE);
        Ok(Cni { config, plugins, records, native: Native::new(kernels), system, versions: Mutex::default() })
    }

    fn patience(&self) -> Duration {
        self.plugins.timeout * PATIENCE
    }

    /// How to do a network's work without its plugins; `None` when they have to be run.
    fn plan(&self, conf: &Conf) -> Option<Plan> {
        let plan = Plan::of(conf).filter(|_| self.config.native)?;
        (!plan.translates() || nft::is_installed()).then_some(plan)
    }

    /// What the folder of configurations says now.
    pub(super) fn found(&self) -> Found {
        conf::read(&self.config.cni_conf_dir)
    }

    /// Why there is no network when [`Cni::found`] found none.
    pub(super) fn absence(&self, found: &Found) -> String {
        let dir = self.config.cni_conf_dir.display();
        match found.skipped.is_empty() {
            true => format!("no CNI network configuration is in {dir} (install a network plugin)"),
            false => format!("no usable CNI network configuration is in {dir}: {}", found.skipped.join("; ")),
        }
    }

    /// Who has which ports here.
    pub(super) fn holders(&self) -> Result<Vec<Holder>, Error> {
        let records = self.records.all()?.into_iter().filter(|record| !record.ports.is_empty());
        Ok(records.map(|record| Holder { sandbox: record.sandbox, ports: record.ports }).collect())
    }

    /// Attaches a sandbox to the network `conf`; `others` have ports, too.
    pub(super) fn attach(&self, conf: Conf, attach: &Attach, others: &[Holder]) -> Result<Attachment, Error> {
        let ports = port::wanted(attach.ports)?;
        let netns = open_netns(attach.netns)?;
        self.detach(attach.sandbox)?;
        let _held = self.records.hold(attach.sandbox, self.patience())?;
        let plan = self.plan(&conf).filter(|plan| plan.fits(&ports));
        let notes = notes(&conf, &ports);
        let attached = match plan {
            Some(plan) => self.attach_natively(plan, &conf, attach, ports, others, &netns),
            None => self.attach_by_plugins(conf, attach, ports, others, &netns),
        };
        if attached.is_err() && self.records.read(attach.sandbox).is_ok_and(|record| record.is_none()) {
            self.records.remove(attach.sandbox)?;
        }
        attached.map(|attachment| Attachment { notes: [attachment.notes, notes].concat(), ..attachment })
    }

    /// Writes an attachment's intent, once its ports are known to be free.
    fn begin(&self, record: &Record, others: &[Holder]) -> Result<(), Error> {
        if record.ports.is_empty() {
            return self.records.write(record);
        }
        let _ports = self.records.ports(self.patience())?;
        port::check_free(&record.ports, others)?;
        port::check_free(&record.ports, &self.holders()?)?;
        self.records.write(record)
    }

    fn attach_natively(
        &self,
        plan: Plan,
        conf: &Conf,
        attach: &Attach,
        ports: Vec<PortMapping>,
        others: &[Holder],
        netns: &File,
    ) -> Result<Attachment, Error> {
        let mut record = Record {
            sandbox: attach.sandbox.to_owned(),
            network: conf.name.clone(),
            ifname: POD_INTERFACE.to_owned(),
            ports,
            how: How::Native(self.native.intend(&plan, conf.versions[0], attach)),
        };
        self.begin(&record, others)?;
        let made = self.native.attach(&plan, &mut record, netns, &self.records);
        if made.is_err() {
            // The first error is what the caller hears; the record of what cannot be undone now stays for gc.
            let _ = self.undo(&record);
        }
        made
    }

    fn attach_by_plugins(
        &self,
        conf: Conf,
        attach: &Attach,
        ports: Vec<PortMapping>,
        others: &[Holder],
        netns: &File,
    ) -> Result<Attachment, Error> {
        // Without its program a plugin could not be asked to undo either, and the pod would never end.
        for plugin in &conf.plugins {
            let missing = |words| Error::Plugin {
                network: conf.name.clone(),
                plugin: plugin.kind.clone(),
                command: Verb::Add.as_str(),
                words,
            };
            self.plugins.find(&plugin.kind).map_err(missing)?;
        }
        let exec = Exec {
            version: self.version(&conf),
            args: args::cni_args(attach)?,
            capabilities: args::capabilities(attach, &ports)?,
            dirs: self.plugins.dirs.clone(),
            netns: record::pin_path(attach.sandbox),
            result: None,
            conf,
        };
        let record = Record {
            sandbox: attach.sandbox.to_owned(),
            network: exec.conf.name.clone(),
            ifname: POD_INTERFACE.to_owned(),
            ports,
            how: How::Exec(exec.clone()),
        };
        let _shared = self.records.share(self.patience())?;
        self.begin(&record, others)?;
        self.records.note_use(&record.network)?;
        let made = self.add(&record, exec, netns);
        if made.is_err() {
            // As above.
            let _ = self.undo(&record);
        }
        made
    }

    /// ADD of all plugins in turn.
    fn add(&self, record: &Record, mut exec: Exec, netns: &File) -> Result<Attachment, Error> {
        record::pin(netns, &exec.netns)?;
        inside(netns, loopback_up)?;
        let mut result = None;
        for plugin in &exec.conf.plugins {
            let answer = self.ask(record, &exec, plugin, Verb::Add, result.as_ref())?;
            result = Some(result::convert(&answer, exec.version).map_err(|words| Error::Plugin {
                network: record.network.clone(),
                plugin: plugin.kind.clone(),
                command: Verb::Add.as_str(),
                words,
            })?);
        }
        let place = result::place(result.as_ref().unwrap_or(&Value::Null), &record.ifname);
        if place.ips.is_empty() {
            let (network, ifname) = (&record.network, &record.ifname);
            return Err(Error::Invalid(format!("CNI network {network}: its plugins gave {ifname} no address")));
        }
        for dir in native::store_dirs(&exec.conf.plugins, &record.network) {
            Store::open(&dir)?.sign(&place.ips.iter().map(|net| net.ip).collect::<Vec<_>>());
        }
        exec.result = result;
        self.records.write(&Record { how: How::Exec(exec), ..record.clone() })?;
        Ok(Attachment {
            ifname: record.ifname.clone(),
            mac: place.mac,
            ips: place.ips,
            gateway: place.gateway,
            dns: place.dns,
            notes: Vec::new(),
        })
    }

    /// Asks one plugin about an attachment.
    fn ask(
        &self,
        record: &Record,
        exec: &Exec,
        plugin: &Plugin,
        verb: Verb,
        prev: Option<&Value>,
    ) -> Result<Vec<u8>, Error> {
        let mut config = base(plugin, &record.network, exec.version);
        if let Some(prev) = prev {
            config["prevResult"] = prev.clone();
        }
        let taken = |name: &&String| plugin.capabilities.get(*name) == Some(&true);
        let told: serde_json::Map<String, Value> =
            exec.capabilities.iter().filter(|(name, _)| taken(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !told.is_empty() {
            config["runtimeConfig"] = told.into();
        }
        let netns = if record::is_pinned(&exec.netns) { exec.netns.to_string_lossy() } else { "".into() };
        let subject = Subject { container: &record.sandbox, netns: &netns, ifname: &record.ifname, args: &exec.args };
        // The folders of today come after those it was made with: plugins may have moved.
        let mut plugins = Plugins { dirs: exec.dirs.clone(), timeout: self.plugins.timeout };
        plugins.dirs.extend(self.plugins.dirs.iter().filter(|dir| !exec.dirs.contains(dir)).cloned());
        plugins.ask(&record.network, &plugin.kind, verb, &subject, &config)
    }

    /// Detaches a sandbox; that it is not attached is no error.
    pub(super) fn detach(&self, sandbox: &str) -> Result<(), Error> {
        if !self.records.has(sandbox) {
            return Ok(());
        }
        let _held = self.records.hold(sandbox, self.patience())?;
        let Some(record) = self.records.read(sandbox)? else { return self.records.remove(sandbox) };
        let _shared = match record.how {
            How::Exec(_) => Some(self.records.share(self.patience())?),
            How::Native(_) => None,
        };
        self.undo(&record)
    }

    /// Undoes an attachment and forgets it.
    fn undo(&self, record: &Record) -> Result<(), Error> {
        let _settled = match &record.how {
            How::Native(held) => Some(self.native.detach(record, held)?),
            How::Exec(exec) => {
                let prev = exec.result.as_ref().filter(|_| exec.version >= Version::V0_4);
                for plugin in exec.conf.plugins.iter().rev() {
                    self.ask(record, exec, plugin, Verb::Del, prev)?;
                }
                record::unpin(&exec.netns)?;
                None
            }
        };
        self.records.remove(&record.sandbox)
    }

    /// Asks whether an attachment still is what it was made. `netns` is the pod's namespace.
    pub(super) fn check(&self, sandbox: &str, netns: &Path) -> Result<(), Error> {
        if !self.records.has(sandbox) {
            return Ok(());
        }
        let _held = self.records.hold(sandbox, self.patience())?;
        let Some(record) = self.records.read(sandbox)? else { return Ok(()) };
        let exec = match &record.how {
            How::Native(held) => return self.native.check(&record, held, &open_netns(netns)?),
            How::Exec(exec) => exec,
        };
        if exec.conf.disable_check || exec.version < Version::V0_4 || exec.result.is_none() {
            return Ok(());
        }
        let _shared = self.records.share(self.patience())?;
        exec.conf
            .plugins
            .iter()
            .try_for_each(|plugin| self.ask(&record, exec, plugin, Verb::Check, exec.result.as_ref()).map(drop))
    }

    /// The sandboxes of which something is kept, each with its network's name where that is known.
    pub(super) fn attached(&self) -> Result<Vec<(String, String)>, Error> {
        let network = |sandbox: &str| self.records.read(sandbox).ok().flatten().map(|r| r.network).unwrap_or_default();
        Ok(self
            .records
            .sandboxes()?
            .into_iter()
            .map(|sandbox| (network(&sandbox), sandbox))
            .map(|(n, s)| (s, n))
            .collect())
    }

    /// Clears what is left of pods of other boots, and lets the plugins of the present network clear what belongs to no
    /// attachment, where they can and may.
    ///
    /// A plugin takes all that is not told to be valid for garbage, so only who has the network may ask: the system's own
    /// engine, and one that attached pods to it since the host started.
    pub(super) fn collect(&self) -> Result<(), Error> {
        let Some(conf) = self.found().conf else { return Ok(()) };
        for dir in native::store_dirs(&conf.plugins, &conf.name) {
            Store::open(&dir)?.sweep()?;
        }
        let ours = self.system || self.records.is_used(&conf.name);
        if conf.disable_gc || !ours || self.plan(&conf).is_some() {
            return Ok(());
        }
        let version = self.version(&conf);
        if version < Version::V1_1 {
            return Ok(());
        }
        let _alone = self.records.alone(self.patience())?;
        let records = self.records.all()?.into_iter().filter(|record| record.network == conf.name);
        let valid: Vec<Value> =
            records.map(|record| json!({"containerID": record.sandbox, "ifname": record.ifname})).collect();
        let mut first = Ok(());
        for plugin in &conf.plugins {
            let mut config = base(plugin, &conf.name, version);
            // The second is what the specification said by mistake, and some plugins read.
            config["cni.dev/valid-attachments"] = valid.clone().into();
            config["cni.dev/attachments"] = valid.clone().into();
            let done = self.plugins.ask(&conf.name, &plugin.kind, Verb::Gc, &Subject::default(), &config);
            first = first.and(done.map(drop));
        }
        first
    }

    /// Removes what native attachments share, when there are none.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let native = |record: &Record| matches!(record.how, How::Native(_));
        if self.records.all()?.iter().any(native) {
            return Ok(());
        }
        self.native.remove()
    }

    /// Whether the network that was found can be joined.
    pub(super) fn status(&self, found: &Found) -> NetworkStatus {
        let Some(conf) = &found.conf else { return not_ready(self.absence(found)) };
        let passed_over = match found.skipped.is_empty() {
            true => String::new(),
            false => format!("passed over: {}", found.skipped.join("; ")),
        };
        let ready = NetworkStatus { ready: true, reason: String::new(), message: passed_over };
        if self.plan(conf).is_some() {
            return ready;
        }
        match self.trouble(conf) {
            Some(why) => {
                not_ready([why, ready.message].into_iter().filter(|m| !m.is_empty()).collect::<Vec<_>>().join("; "))
            }
            None => ready,
        }
    }

    /// Why a network's plugins cannot do their work.
    fn trouble(&self, conf: &Conf) -> Option<String> {
        let plugins = Plugins { timeout: self.plugins.timeout.min(STATUS_TIMEOUT), ..self.plugins.clone() };
        let version = self.version(conf);
        for plugin in &conf.plugins {
            let kind = &plugin.kind;
            let known = plugins.find(kind).and_then(|program| self.spoken(&program));
            let (network, version) = (&conf.name, version.as_str());
            match known {
                Err(why) => return Some(format!("CNI network {network}: plugin {kind}: {why}")),
                Ok(spoken) if !spoken.iter().any(|v| v == version) => {
                    let spoken = spoken.join(", ");
                    let words =
                        format!("it does not speak cniVersion {version} of {} (it does {spoken})", conf.path.display());
                    return Some(format!("CNI network {network}: plugin {kind}: {words}"));
                }
                Ok(_) => {}
            }
        }
        if version < Version::V1_1 {
            return None;
        }
        let ask = |plugin: &Plugin| {
            let config = base(plugin, &conf.name, version);
            plugins.ask(&conf.name, &plugin.kind, Verb::Status, &Subject::default(), &config)
        };
        conf.plugins.iter().find_map(|plugin| ask(plugin).err()).map(|e| e.to_string())
    }

    /// The newest version that a network and all its plugins speak; when there is none the plugins tell so themselves.
    fn version(&self, conf: &Conf) -> Version {
        let [newest, rest @ ..] = conf.versions.as_slice() else { unreachable!("a network has a version") };
        if rest.is_empty() {
            return *newest;
        }
        let mut common = conf.versions.clone();
        for plugin in &conf.plugins {
            if let Ok(spoken) = self.plugins.find(&plugin.kind).and_then(|program| self.spoken(&program)) {
                common.retain(|version| spoken.iter().any(|v| v == version.as_str()));
            }
        }
        common.first().copied().unwrap_or(*newest)
    }

    /// The versions that a program speaks.
    fn spoken(&self, program: &Path) -> Result<Vec<String>, String> {
        let meta = fs::metadata(program).map_err(|e| format!("stat {}: {e}", program.display()))?;
        let stamp = (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        let known = || self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, versions)) = known().get(program).filter(|(s, _)| *s == stamp) {
            return Ok(versions.clone());
        }
        let versions = self.plugins.versions(program)?;
        known().insert(program.to_owned(), (stamp, versions.clone()));
        Ok(versions)
    }
}

fn not_ready(message: String) -> NetworkStatus {
    NetworkStatus { ready: false, reason: NOT_READY.into(), message }
}

/// Runs inside a pod's network namespace.
fn loopback_up() -> Result<(), Error> {
    let mut pod = Socket::route().map_err(|e| Error::kernel("open a netlink socket in the pod", e))?;
    up(&mut pod, "lo").map(drop).map_err(|e| Error::kernel("set up lo in the pod", e))
}

/// A plugin's configuration as it gets it, before what is said about one attachment.
fn base(plugin: &Plugin, network: &str, version: Version) -> Value {
    let mut config = plugin.body.clone();
    config.insert("name".into(), network.into());
    config.insert("cniVersion".into(), version.as_str().into());
    config.into()
}

/// What the user should know of a network that does not do all that was asked for.
fn notes(conf: &Conf, ports: &[PortMapping]) -> Vec<String> {
    let mapped = conf.plugins.iter().any(|plugin| plugin.capabilities.get("portMappings") == Some(&true));
    match ports.is_empty() || mapped {
        true => Vec::new(),
        false => vec![format!(
            "no plugin of CNI network {} takes portMappings: hostPorts are left to the network",
            conf.name
        )],
    }
}
