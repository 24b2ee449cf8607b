//! What a sandbox is to be, in each of the forms in which it is asked for.
//!
//! | options of CreateSandbox | from |
//! |---|---|
//! | `coracle.v1.SandboxOptions` | our engine |
//! | `runtime.v1.PodSandboxConfig` | containerd's CRI, for handlers with `sandboxer = "shim"` |
//! | none | other users of containerd's sandbox API: a pod with namespaces of its own |
//!
//! The network namespace may be there already: `netns_path` is then joined. containerd keeps it, sets it up by CNI and has
//! the containers join all namespaces by the pid that StartSandbox tells; the pod's cgroup is kubelet's.

use crate::failure::{Fail, Failure};
use coracle_proto::coracle::{NamespaceMode, SandboxOptions};
use coracle_proto::pod_sandbox::PodSandboxConfig;
use coracle_proto::sandbox::CreateSandboxRequest;
use coracle_proto::ttrpc::Code;
use coracle_proto::{Message, any};

/// The type that containerd's CRI names its configuration by.
const CRI_CONFIG: &str = "runtime.v1.PodSandboxConfig";

fn invalid(text: String) -> Failure {
    Code::InvalidArgument.failure(text)
}

/// What the request asks for.
pub fn read(request: &CreateSandboxRequest) -> Result<SandboxOptions, Failure> {
    let broken = |error| invalid(format!("options of the sandbox: {error}"));
    let options = match request.options.as_ref().filter(|packed| !packed.type_url.is_empty()) {
        None => SandboxOptions::default(),
        Some(packed) if any::names(&packed.type_url, CRI_CONFIG) => {
            of_cri(PodSandboxConfig::decode(packed.value.as_slice()).map_err(broken)?)?
        }
        Some(packed) => match any::unpack(packed) {
            Some(options) => options.map_err(broken)?,
            None => return Err(invalid(format!("options of type {} are not known", packed.type_url))),
        },
    };
    if request.netns_path.is_empty() {
        return Ok(options);
    }
    if options.network != i32::from(NamespaceMode::Pod) {
        return Err(invalid(format!("netns_path {}: the sandbox has the node's network", request.netns_path)));
    }
    if options.user_namespace.is_some() {
        return Err(invalid("netns_path: a user namespace of the pod's own has to own its network namespace".into()));
    }
    Ok(options)
}

fn of_cri(config: PodSandboxConfig) -> Result<SandboxOptions, Failure> {
    let linux = config.linux.unwrap_or_default();
    let modes = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
    let node = i32::from(NamespaceMode::Node);
    if modes.userns_options.is_some_and(|user| user.mode != node) {
        let text = "userns_options: containerd's CRI does not say which ids a shim's sandbox shall map";
        return Err(Code::Unimplemented.failure(text.into()));
    }
    let known = |mode: i32| NamespaceMode::try_from(mode).map(i32::from).unwrap_or(i32::from(NamespaceMode::Container));
    Ok(SandboxOptions {
        hostname: config.hostname,
        network: known(modes.network),
        ipc: known(modes.ipc),
        // As kubelet has it: the names are the network's.
        uts: known(modes.network),
        pid: known(modes.pid),
        sysctls: linux.sysctls,
        ..SandboxOptions::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proto::Any;
    use coracle_proto::pod_sandbox::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, UserNamespace,
    };

    fn cri(modes: NamespaceOption) -> CreateSandboxRequest {
        let security_context = Some(LinuxSandboxSecurityContext { namespace_options: Some(modes) });
        let linux = LinuxPodSandboxConfig { security_context, sysctls: [("a".into(), "1".into())].into() };
        let config = PodSandboxConfig { hostname: "web".into(), linux: Some(linux) };
        let options = Any { type_url: CRI_CONFIG.into(), value: config.encode_to_vec() };
        CreateSandboxRequest { options: Some(options), ..Default::default() }
    }

    #[test]
    fn a_pod_of_the_cri_has_the_namespaces_it_asks_for() {
        let (node, container) = (i32::from(NamespaceMode::Node), i32::from(NamespaceMode::Container));
        let options = read(&cri(NamespaceOption { pid: container, ..Default::default() })).unwrap();
        assert_eq!((options.hostname.as_str(), options.pid, options.network), ("web", container, 0));
        assert_eq!(options.sysctls["a"], "1");
        let options = read(&cri(NamespaceOption { network: node, ..Default::default() })).unwrap();
        assert_eq!((options.network, options.uts, options.ipc), (node, node, 0));
        let user = Some(UserNamespace { mode: 0 });
        assert!(read(&cri(NamespaceOption { userns_options: user, ..Default::default() })).is_err());
    }

    #[test]
    fn a_network_namespace_that_is_there_goes_with_one_of_the_pods_own() {
        let netns = |request| CreateSandboxRequest { netns_path: "/run/netns/x".into(), ..request };
        assert!(read(&netns(CreateSandboxRequest::default())).is_ok());
        let node = i32::from(NamespaceMode::Node);
        assert!(read(&netns(cri(NamespaceOption { network: node, ..Default::default() }))).is_err());
        let other = Any { type_url: "some.Config".into(), value: Vec::new() };
        let request = CreateSandboxRequest { options: Some(other), ..Default::default() };
        assert!(read(&request).unwrap_err().message.contains("some.Config"));
    }
}
