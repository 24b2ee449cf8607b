//! What every command shares: the settings that flags, file and defaults come to, the engine opened with them, and how
//! a pod is found by what the user calls it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_engine::handler::Handlers;
use coracle_engine::net::NetConfig;
use coracle_engine::{ContainerState, ContainerStatus, Engine, EngineConfig, Error, Paths};
use coracle_rootfs::{PullOptions, Registry, RegistryConfig, Store};

use crate::cli::Places;
use crate::config::File;
use crate::exit::{self, Coded};
use crate::kube::container::Container;
use crate::pod::keep::{Folder, Kept};
use crate::pod::observe::Observed;
use crate::rootless::{self, Rootless};

/// The settings of this invocation.
#[derive(Debug, Clone)]
pub struct App {
    /// The flags, for handing on to `coracle tend`.
    pub places: Places,
    /// The file.
    pub config: File,
    /// Where things lie.
    pub paths: Paths,
    /// Whose the pods are, if not the machine's root's.
    pub rootless: Option<Rootless>,
}

/// A local pod that was found.
#[derive(Debug)]
pub struct Found {
    /// Its sandbox.
    pub sandbox: String,
    /// Its files.
    pub folder: Folder,
    /// What runs; None if another client made the sandbox.
    pub kept: Option<Kept>,
}

impl App {
    /// Reads the settings.
    pub fn new(places: Places) -> Result<App> {
        let config = File::read(places.config.as_deref())?;
        let pick = |flag: &Option<PathBuf>, file: &Path| flag.clone().unwrap_or_else(|| file.to_owned());
        let paths = Paths {
            root: pick(&places.root, &config.root),
            state: pick(&places.state, &config.state),
            logs: absolute(&pick(&places.log_dir, &config.log_dir))?,
            supervisor: rootless::supervisor(),
        };
        let rootless = Rootless::of(&paths.state)?;
        Ok(App { places, config, paths, rootless })
    }

    /// Opens the engine.
    pub fn engine(&self) -> Result<Engine> {
        let delegated = self.rootless.as_ref().map(Rootless::cgroup_parent);
        let config = EngineConfig {
            network: self.net_config(),
            handlers: self.handlers()?,
            cgroups: delegated != Some(None),
            cgroup_parent: match delegated {
                Some(parent) => parent.unwrap_or_default(),
                None => self.cgroup_parent()?,
            },
            restrict_oom_score_adj: self.config.serve.restrict_oom_score_adj || self.rootless.is_some(),
            ..EngineConfig::default()
        };
        Ok(Engine::open(self.paths.clone(), config)?)
    }

    /// The handlers as configured.
    pub fn handlers(&self) -> Result<Handlers> {
        Ok(Handlers::new(&self.config.default_handler, self.config.handlers.clone())?)
    }

    /// The network as configured.
    fn net_config(&self) -> NetConfig {
        let network = &self.config.network;
        NetConfig {
            bridge: network.bridge.clone(),
            subnet: network.subnet,
            service_subnet: network.service_subnet,
            cluster_domain: network.cluster_domain.clone(),
            masquerade: network.masquerade,
            mtu: network.mtu,
            cni_conf_dir: network.cni_conf_dir.clone(),
            cni_bin_dirs: network.cni_bin_dirs.clone(),
            cni_timeout: network.cni_timeout,
            embedded: network.embedded,
            native: network.native,
            cni_for_local_pods: network.cni_for_local_pods,
            unprivileged: self.rootless.is_some(),
            ..NetConfig::default()
        }
    }

    /// The cgroup below which the pods' are made, where the settings name one; empty leaves it to the engine.
    fn cgroup_parent(&self) -> Result<String> {
        let Some(parent) = &self.config.cgroup_parent else { return Ok(String::new()) };
        match parent.starts_with('/') && parent.len() > 1 && !parent.contains("..") {
            true => Ok(parent.clone()),
            false => Err(Coded::usage(format!("cgroup_parent {parent:?}: expected an absolute path such as /coracle"))),
        }
    }

    /// Opens the image store alone: enough for the commands about images.
    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(&self.paths.root)?)
    }

    /// The registries as configured.
    pub fn registry(&self) -> Registry {
        let image = &self.config.image;
        Registry::new(RegistryConfig {
            hosts_dir: image.hosts_dirs.clone(),
            extra_cas: image.extra_cas.clone(),
            insecure: image.insecure_registries.clone(),
            user_agent: format!("coracle/{}", crate::cmd::version::VERSION),
            ..RegistryConfig::default()
        })
    }

    /// How images are pulled and loaded.
    pub fn pull_options(&self) -> PullOptions {
        PullOptions { parallel: self.config.image.parallel.max(1), ..PullOptions::default() }
    }

    /// The command by which a supervisor has its pod tended.
    pub fn tend_command(&self, uid: &str) -> Result<Vec<String>> {
        self.own_command(&["tend", uid])
    }

    /// A command of this program, with the places of this invocation.
    pub fn own_command(&self, words: &[&str]) -> Result<Vec<String>> {
        let text = |path: PathBuf| {
            let told = path.display().to_string();
            path.into_os_string().into_string().map_err(|_| Coded::usage(format!("{told}: not a UTF-8 path")))
        };
        let program = rootless::program().context("find the running program")?;
        let mut command = vec![text(program)?];
        let places = [
            ("--root", Some(&self.paths.root)),
            ("--state", Some(&self.paths.state)),
            ("--log-dir", Some(&self.paths.logs)),
            ("--config", self.places.config.as_ref()),
        ];
        for (flag, path) in places {
            if let Some(path) = path {
                command.extend([flag.to_owned(), text(absolute(path)?)?]);
            }
        }
        command.extend(words.iter().map(|word| (*word).to_owned()));
        Ok(command)
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))
}

/// Finds a pod by its name, `namespace/name`, id or the first digits of its id.
pub fn find(engine: &Engine, wanted: &str) -> Result<Found> {
    let sandbox = match engine.find_sandbox(wanted) {
        Err(Error::NotFound { .. }) => {
            return Err(Coded::error(exit::NOT_FOUND, format!("no pod {wanted} (`coracle ps -a` lists all)")));
        }
        found => found?,
    };
    let folder = Folder::of(engine.paths(), &sandbox);
    let kept = folder.read_pod()?;
    Ok(Found { sandbox, folder, kept })
}

/// Refuses a container that does not run.
pub fn check_running(status: &ContainerStatus) -> Result<()> {
    match status.state {
        ContainerState::Running => Ok(()),
        state => {
            let text = format!("container {} is not running: it is {}", status.config.name, state.as_str());
            Err(Coded::error(exit::CONFLICT, text))
        }
    }
}

impl Found {
    /// The same pod once more.
    pub fn again(&self) -> Found {
        Found { sandbox: self.sandbox.clone(), folder: self.folder.clone(), kept: self.kept.clone() }
    }

    /// The latest incarnation of a container of the pod: the one named, else the pod's first.
    pub async fn container(&self, engine: &Engine, name: Option<&str>) -> Result<ContainerStatus> {
        let observed = Observed::look(engine, &self.sandbox).await?;
        let first = || match &self.kept {
            Some(kept) => kept.pod.containers.first().map(|container| container.name.clone()),
            None => observed.all_latest().next().map(|status| status.config.name.clone()),
        };
        let name = match name {
            Some(name) => self.check_name(name, &observed)?.to_owned(),
            None => first().context("the pod has no container")?,
        };
        let Some(status) = observed.latest(&name) else {
            return Err(Coded::error(exit::NOT_FOUND, format!("container {name} was not started yet")));
        };
        Ok(status.clone())
    }

    /// Answers the name if the pod has such a container.
    pub fn check_name<'n>(&self, name: &'n str, observed: &Observed) -> Result<&'n str> {
        let known: Vec<&str> = match &self.kept {
            Some(kept) => kept.pod.all_containers().map(|container: &Container| container.name.as_str()).collect(),
            None => observed.all_latest().map(|status| status.config.name.as_str()).collect(),
        };
        match known.contains(&name) {
            true => Ok(name),
            false => {
                let text = format!("no container {name} in the pod: it has {}", known.join(", "));
                Err(Coded::error(exit::NOT_FOUND, text))
            }
        }
    }
}
