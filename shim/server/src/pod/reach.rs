//! How whoever tends a pod reaches its containers, as hooks and probes do: by commands in them, and by requests to the
//! pod's address. These come from the machine, as kubelet's do; an ordinary user's machine does not reach the networks of
//! his pods, so there they come from within the pod. Errors are sentences in kubelet's words, for events.

use std::sync::Arc;
use std::time::Duration;

use coracle_engine::{Engine, Error, ExecOutcome};

use super::events::{On, Recorder};
use super::keep::Kept;
use super::probe::dial::Dialer;
use super::probe::http::{self, Answer, MAX_BODY};
use super::probe::url::{Scheme, Url};
use crate::kube::container::{Container, PortRef};
use crate::kube::lifecycle::HttpGet;
use crate::rootless::Rootless;

/// The address of a pod in the machine's network.
const LOOPBACK: &str = "127.0.0.1";

/// A pod within reach. Cheap to clone.
#[derive(Clone)]
pub struct Reach {
    /// What runs it.
    pub engine: Engine,
    /// Its sandbox.
    pub sandbox: String,
    /// What it is.
    pub kept: Arc<Kept>,
    /// Where its events go.
    pub recorder: Recorder,
}

impl Reach {
    /// What events about a container are about.
    pub fn on<'n>(&self, name: &'n str) -> On<'n> {
        On::container(&self.kept.pod, name)
    }

    /// Runs a command in a container; of its output no more is kept than an event may show.
    pub async fn exec(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<ExecOutcome, Error> {
        self.engine.exec_first(id, command.to_vec(), timeout, MAX_BODY).await
    }

    /// Asks a web server, by default the pod's.
    pub async fn get(&self, container: &Container, get: &HttpGet, agent: &str) -> Result<Answer, String> {
        let scheme = if get.https { Scheme::Https } else { Scheme::Http };
        let url = Url::new(scheme, &self.host(get.host.as_deref())?, port(container, &get.port)?, &get.path);
        http::get(&self.dialer(get.host.as_deref())?, url, &get.headers, agent).await
    }

    /// Opens a connection and closes it.
    pub async fn connect(&self, container: &Container, host: Option<&str>, at: &PortRef) -> Result<(), String> {
        self.dialer(host)?.connect(&self.host(host)?, port(container, at)?).await.map(drop)
    }

    /// From where a host is reached: the one given, else the pod's address.
    pub fn dialer(&self, given: Option<&str>) -> Result<Dialer, String> {
        if self.kept.pod.host_network || given.is_some_and(|host| !host.is_empty()) {
            return Ok(Dialer::Machine);
        }
        match Rootless::of(&self.engine.paths().state).map_err(|error| format!("{error:#}"))? {
            None => Ok(Dialer::Machine),
            Some(_) => Ok(Dialer::Pod { engine: self.engine.clone(), sandbox: self.sandbox.clone() }),
        }
    }

    /// The host that is asked: the one given, else the pod's address.
    pub fn host(&self, given: Option<&str>) -> Result<String, String> {
        if let Some(host) = given.filter(|host| !host.is_empty()) {
            return Ok(host.to_owned());
        }
        if self.kept.pod.host_network {
            return Ok(LOOPBACK.to_owned());
        }
        let status = self.engine.sandbox_status(&self.sandbox).map_err(|error| error.to_string())?;
        let address = status.ips.first().ok_or("the pod has no address")?;
        Ok(address.to_string())
    }
}

fn port(container: &Container, port: &PortRef) -> Result<u16, String> {
    match port {
        PortRef::Number(number) => Ok(*number),
        PortRef::Name(name) => {
            let named = container.ports.iter().find(|port| port.name.as_ref() == Some(name));
            named
                .map(|port| port.container_port)
                .ok_or_else(|| format!("couldn't find port: {name} in {}", container.name))
        }
    }
}
