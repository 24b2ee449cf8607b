//! Who a container's process is and what it may do.

use coracle_engine::{AppArmor, NamespaceMode, PidNamespace, SandboxConfig, Seccomp, Security};
use coracle_proto::cri as v1;
use tonic::Status;
use v1::security_profile::ProfileType;

use super::{invalid, mode, path, selinux, text};

/// Where the context stands in a request.
const FIELD: &str = "config.linux.security_context";
/// The prefix of a profile that lies on the node, in the older fields.
const LOCALHOST: &str = "localhost/";

fn field(name: &str) -> String {
    format!("{FIELD}.{name}")
}

/// The identity and privileges of a container of this sandbox, and where its processes' ids come from.
pub fn security(
    context: Option<v1::LinuxContainerSecurityContext>,
    sandbox: &SandboxConfig,
) -> Result<(Security, PidNamespace), Status> {
    // Without a word about security the process is confined as usual.
    let Some(context) = context else { return Ok((Security::default(), PidNamespace::Sandbox)) };
    let pid = namespaces(context.namespace_options.clone(), sandbox)?;
    if context.privileged && !sandbox.privileged {
        return Err(invalid(field("privileged"), "no privileged container in a sandbox that is not privileged"));
    }
    let (seccomp, apparmor) = (seccomp(&context)?, apparmor(&context)?);
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let mut security = Security {
        privileged: context.privileged,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        add_capabilities: capability_names("add_capabilities", capabilities.add_capabilities)?,
        drop_capabilities: capability_names("drop_capabilities", capabilities.drop_capabilities)?,
        add_ambient_capabilities: capability_names("add_ambient_capabilities", capabilities.add_ambient_capabilities)?,
        seccomp,
        apparmor,
        selinux: selinux(context.selinux_options.clone()),
        // kubelet sends the usual paths, and none for procMount: Unmasked. So an empty list is what it says.
        masked_paths: Some(paths("masked_paths", context.masked_paths.clone())?),
        readonly_paths: Some(paths("readonly_paths", context.readonly_paths.clone())?),
        ..Default::default()
    };
    identity(&mut security, &context)?;
    Ok((security, pid))
}

fn identity(security: &mut Security, context: &v1::LinuxContainerSecurityContext) -> Result<(), Status> {
    security.run_as_user = context.run_as_user.map(|id| number("run_as_user", id.value)).transpose()?;
    security.run_as_group = context.run_as_group.map(|id| number("run_as_group", id.value)).transpose()?;
    if !context.run_as_username.is_empty() {
        security.run_as_username = Some(text(field("run_as_username"), &context.run_as_username)?);
    }
    if security.run_as_user.is_some() && security.run_as_username.is_some() {
        return Err(invalid(field("run_as_username"), "only one of run_as_user and run_as_username may be given"));
    }
    if security.run_as_group.is_some() && security.run_as_user.is_none() && security.run_as_username.is_none() {
        return Err(invalid(field("run_as_group"), "needs run_as_user or run_as_username"));
    }
    let groups = context.supplemental_groups.iter().map(|id| number("supplemental_groups", *id));
    security.supplemental_groups = groups.collect::<Result<_, _>>()?;
    security.strict_groups = match v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(policy) => policy == v1::SupplementalGroupsPolicy::Strict,
        Err(_) => {
            let why = format!("{} is no policy", context.supplemental_groups_policy);
            return Err(invalid(field("supplemental_groups_policy"), why));
        }
    };
    Ok(())
}

/// A user's or group's number; the highest one is the kernel's word for none.
fn number(name: &str, id: i64) -> Result<u32, Status> {
    let known = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    known.ok_or_else(|| invalid(field(name), format!("{id} is no id of a user or group")))
}

fn capability_names(list: &str, names: Vec<String>) -> Result<Vec<String>, Status> {
    for name in &names {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(invalid(field(&format!("capabilities.{list}")), format!("{name:?} is no capability")));
        }
    }
    Ok(names)
}

fn paths(name: &str, list: Vec<String>) -> Result<Vec<String>, Status> {
    for (i, entry) in list.iter().enumerate() {
        path(field(&format!("{name}[{i}]")), entry)?;
    }
    Ok(list)
}

/// The container's namespaces are its sandbox's; only that of process ids may be its own or another container's.
fn namespaces(options: Option<v1::NamespaceOption>, sandbox: &SandboxConfig) -> Result<PidNamespace, Status> {
    let Some(options) = options else { return Ok(PidNamespace::Sandbox) };
    let at = |name: &str| field(&format!("namespace_options.{name}"));
    for (name, value, pods) in [("network", options.network, sandbox.network), ("ipc", options.ipc, sandbox.ipc)] {
        if mode(&at(name), value)? == v1::NamespaceMode::Node && pods != NamespaceMode::Node {
            return Err(invalid(at(name), "NODE, but the sandbox has a namespace of its own"));
        }
    }
    if let Some(own) = super::sandbox::user_namespace(&at("userns_options"), options.userns_options)?
        && sandbox.user_namespace.as_ref() != Some(&own)
    {
        return Err(invalid(at("userns_options"), "differs from the sandbox's user namespace"));
    }
    match mode(&at("pid"), options.pid)? {
        v1::NamespaceMode::Pod => Ok(PidNamespace::Sandbox),
        v1::NamespaceMode::Container => Ok(PidNamespace::Container),
        v1::NamespaceMode::Node if sandbox.pid == NamespaceMode::Node => Ok(PidNamespace::Node),
        v1::NamespaceMode::Node => Err(invalid(at("pid"), "NODE, but the sandbox has a namespace of its own")),
        v1::NamespaceMode::Target if options.target_id.is_empty() => {
            Err(invalid(at("target_id"), "must name the container whose processes are to be seen"))
        }
        v1::NamespaceMode::Target => Ok(PidNamespace::Target(options.target_id)),
    }
}

/// What kind of profile, and its name if it is one of the node's.
fn profile(name: &str, profile: &v1::SecurityProfile) -> Result<(ProfileType, String), Status> {
    let kind = ProfileType::try_from(profile.profile_type)
        .map_err(|_| invalid(field(&format!("{name}.profile_type")), format!("{} is none", profile.profile_type)))?;
    let reference = profile.localhost_ref.strip_prefix(LOCALHOST).unwrap_or(&profile.localhost_ref);
    match kind {
        ProfileType::Localhost if reference.is_empty() => {
            Err(invalid(field(&format!("{name}.localhost_ref")), "must name the profile"))
        }
        ProfileType::Localhost => Ok((kind, text(field(&format!("{name}.localhost_ref")), reference)?)),
        // kubelet leaves it empty; containerd does not look at it.
        _ => Ok((kind, String::new())),
    }
}

#[allow(deprecated, reason = "older clients know no other field")]
fn seccomp(context: &v1::LinuxContainerSecurityContext) -> Result<Seccomp, Status> {
    let node = |name: &str, reference: &str| path(field(name), reference).map(Seccomp::Localhost);
    if let Some(wanted) = &context.seccomp {
        return match profile("seccomp", wanted)? {
            (ProfileType::RuntimeDefault, _) => Ok(Seccomp::RuntimeDefault),
            (ProfileType::Unconfined, _) => Ok(Seccomp::Unconfined),
            (ProfileType::Localhost, reference) => node("seccomp.localhost_ref", &reference),
        };
    }
    const OLD: &str = "seccomp_profile_path";
    match context.seccomp_profile_path.as_str() {
        "" | "unconfined" => Ok(Seccomp::Unconfined),
        "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
        other => match other.strip_prefix(LOCALHOST) {
            Some(reference) => node(OLD, reference),
            None => Err(invalid(field(OLD), format!("{other:?} is no profile"))),
        },
    }
}

#[allow(deprecated, reason = "older clients know no other field")]
fn apparmor(context: &v1::LinuxContainerSecurityContext) -> Result<AppArmor, Status> {
    if let Some(wanted) = &context.apparmor {
        return Ok(match profile("apparmor", wanted)? {
            (ProfileType::RuntimeDefault, _) => AppArmor::RuntimeDefault,
            (ProfileType::Unconfined, _) => AppArmor::Unconfined,
            (ProfileType::Localhost, reference) => AppArmor::Localhost(reference),
        });
    }
    match context.apparmor_profile.as_str() {
        "" | "runtime/default" => Ok(AppArmor::RuntimeDefault),
        "unconfined" => Ok(AppArmor::Unconfined),
        other => match other.strip_prefix(LOCALHOST) {
            Some(reference) if !reference.is_empty() => Ok(AppArmor::Localhost(reference.to_owned())),
            _ => Err(invalid(field("apparmor_profile"), format!("{other:?} is no profile"))),
        },
    }
}
