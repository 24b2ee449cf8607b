//! The node: what this server is, whether it is ready, how kubelet must be set up.

use std::time::Duration;

use coracle_engine::handler::{Handler, HandlerKind};
use coracle_proto::cri as v1;
use serde_json::json;
use tonic::Status;

use super::{Cri, fault, verbose};
use crate::cmd::version::VERSION;

/// The version of the kubelet's runtime API, the same since there is one.
const KUBELET_API: &str = "0.1.0";
/// The version of the CRI that is served.
const CRI_API: &str = "v1";
/// How this runtime calls itself.
const NAME: &str = "coracle";
/// How long a kubelet that asks for the status waits for what is not yet known of a handler.
const PATIENCE: Duration = Duration::from_millis(200);
/// The bits of an address of each kind.
const MAX_PREFIX: [u8; 2] = [32, 128];

impl Cri {
    pub(super) async fn version_rpc(&self, _request: v1::VersionRequest) -> Result<v1::VersionResponse, Status> {
        Ok(v1::VersionResponse {
            version: KUBELET_API.into(),
            runtime_name: NAME.into(),
            runtime_version: VERSION.into(),
            runtime_api_version: CRI_API.into(),
        })
    }

    pub(super) async fn status_rpc(&self, request: v1::StatusRequest) -> Result<v1::StatusResponse, Status> {
        let mut conditions = vec![self.runtime_condition(), self.network_condition().await?];
        conditions.extend(self.handlers_condition().await);
        let info = match request.verbose {
            true => verbose::node(&self.settings()),
            false => Default::default(),
        };
        Ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            info,
            runtime_handlers: self.handlers().await,
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        })
    }

    /// Ready, if there is the program that pods are run by.
    fn runtime_condition(&self) -> v1::RuntimeCondition {
        let supervisor = &self.engine().paths().supervisor;
        let found = supervisor.is_file();
        v1::RuntimeCondition {
            r#type: "RuntimeReady".into(),
            status: found,
            reason: if found { String::new() } else { "SupervisorMissing".into() },
            message: if found { String::new() } else { format!("{}: there is no such program", supervisor.display()) },
        }
    }

    async fn network_condition(&self) -> Result<v1::RuntimeCondition, Status> {
        let engine = self.engine().clone();
        let status = super::blocking(move || Ok(engine.network().status())).await?;
        Ok(v1::RuntimeCondition {
            r#type: "NetworkReady".into(),
            status: status.ready,
            reason: status.reason,
            message: status.message,
        })
    }

    /// Whether what the configured handlers need is there: a kubelet shows it and does not act upon it, since pods of the
    /// other handlers can run.
    async fn handlers_condition(&self) -> Option<v1::RuntimeCondition> {
        let handlers = self.engine().handlers();
        let mut problems = Vec::new();
        let configured = handlers.named.values().filter(|handler| handler.kind != HandlerKind::Coracle);
        let mut any = false;
        for handler in configured {
            any = true;
            problems.extend(self.handler_problem(handler).await);
        }
        any.then(|| v1::RuntimeCondition {
            r#type: "HandlersReady".into(),
            status: problems.is_empty(),
            reason: if problems.is_empty() { String::new() } else { "HandlerNotReady".into() },
            message: problems.join("; "),
        })
    }

    async fn handler_problem(&self, handler: &Handler) -> Option<String> {
        if let Err(why) = handler.check().await {
            return Some(why.to_string());
        }
        // The first time a machine may be booted to find out. That is not waited for: a later answer tells.
        let (handler, paths) = (handler.clone(), self.engine().paths().clone());
        let asked = tokio::spawn(async move { handler.check_machine(&paths).await });
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(Err(why))) => Some(why.to_string()),
            _ => None,
        }
    }

    /// The handlers by name, and the default one once more without.
    async fn handlers(&self) -> Vec<v1::RuntimeHandler> {
        let handlers = self.engine().handlers();
        let mut shown = Vec::new();
        for name in std::iter::once("").chain(handlers.named.keys().map(String::as_str)) {
            let features = handlers.features(name).await.ok().map(|features| v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            });
            shown.push(v1::RuntimeHandler { name: name.into(), features });
        }
        shown
    }

    /// What the server was set up with, for people.
    fn settings(&self) -> serde_json::Value {
        let (paths, config) = (self.engine().paths(), self.engine().config());
        json!({
            "root": paths.root,
            "state": paths.state,
            "cgroupParent": config.cgroup_parent,
            "cgroupDriver": "cgroupfs",
            "supervisor": paths.supervisor,
            "version": VERSION,
        })
    }

    pub(super) async fn runtime_config_rpc(
        &self,
        _request: v1::RuntimeConfigRequest,
    ) -> Result<v1::RuntimeConfigResponse, Status> {
        let cgroup_driver = v1::CgroupDriver::Cgroupfs as i32;
        Ok(v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver }) })
    }

    /// The node's range of pod addresses. Who brings the network's configuration has his own way to learn it, so as
    /// with containerd without a template the word is noted and nothing follows.
    pub(super) async fn update_runtime_config_rpc(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        for range in network.pod_cidr.split(',').filter(|range| !range.is_empty()) {
            if !is_range(range) {
                let why = format!("{range:?} is no range of addresses such as 10.1.0.0/16");
                return Err(fault::invalid("runtime_config.network_config.pod_cidr", why));
            }
        }
        if !network.pod_cidr.is_empty() {
            tracing::info!(
                pod_cidr = network.pod_cidr,
                "told of the pods' addresses; the network's configuration decides"
            );
        }
        Ok(v1::UpdateRuntimeConfigResponse {})
    }
}

fn is_range(text: &str) -> bool {
    let Some((ip, prefix)) = text.split_once('/') else { return false };
    let Ok(ip) = ip.parse::<std::net::IpAddr>() else { return false };
    prefix.parse::<u8>().is_ok_and(|bits| bits <= MAX_PREFIX[usize::from(ip.is_ipv6())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses_are_told_from_other_words() {
        for good in ["10.1.0.0/16", "fd00::/64", "0.0.0.0/0"] {
            assert!(is_range(good), "{good}");
        }
        for bad in ["10.1.0.0", "10.1.0.0/33", "pods", "fd00::/129", "/8"] {
            assert!(!is_range(bad), "{bad}");
        }
    }
}
