//! Identity and privileges of a pod's containers, as the engine is asked for them.
//!
//! `runAsNonRoot` is checked here in kubelet's words before a container is made, and by the engine once more.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use coracle_engine::{AppArmor, Seccomp, Security, SelinuxOptions};

use crate::kube::container::Container;
use crate::kube::pod::Pod;
use crate::kube::security::{AppArmor as KubeAppArmor, SeLinux, Seccomp as KubeSeccomp};

/// Where files of `localhostProfile` lie: ours, then kubelet's.
const PROFILES: [&str; 2] = ["/etc/coracle/seccomp", "/var/lib/kubelet/seccomp"];
/// By which a pod asked for AppArmor profiles before there was a field for them; the container's name follows.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What a container may do, and who it is.
pub fn security(pod: &Pod, container: &Container) -> Result<Security> {
    let own = &container.security;
    // As kubelet has it, processes have the group of the volumes.
    let mut groups = own.groups.clone();
    groups.extend(pod.security.fs_group.filter(|group| !own.groups.contains(group)));
    Ok(Security {
        privileged: own.privileged,
        run_as_user: own.user,
        run_as_group: own.group,
        supplemental_groups: groups,
        strict_groups: pod.security.strict_groups,
        require_non_root: own.non_root,
        add_capabilities: own.cap_add.clone(),
        drop_capabilities: own.cap_drop.clone(),
        no_new_privs: !own.allow_escalation,
        readonly_rootfs: own.read_only_rootfs,
        seccomp: match &own.seccomp {
            KubeSeccomp::RuntimeDefault => Seccomp::RuntimeDefault,
            KubeSeccomp::Unconfined => Seccomp::Unconfined,
            KubeSeccomp::Localhost(file) => Seccomp::Localhost(profile(file, &PROFILES.map(Path::new))),
        },
        apparmor: match &own.app_armor {
            None => annotated(pod, container)?,
            Some(KubeAppArmor::RuntimeDefault) => AppArmor::RuntimeDefault,
            Some(KubeAppArmor::Unconfined) => AppArmor::Unconfined,
            Some(KubeAppArmor::Localhost(name)) => AppArmor::Localhost(name.clone()),
        },
        selinux: own.selinux.as_ref().map(selinux),
        unmasked_proc: own.proc_unmasked,
        ..Security::default()
    })
}

/// A label, in the engine's words.
pub fn selinux(label: &SeLinux) -> SelinuxOptions {
    let SeLinux { user, role, kind, level } = label.clone();
    SelinuxOptions { user, role, kind, level }
}

/// The file of a profile; where none is, the error is that of the first folder.
fn profile(file: &str, folders: &[&Path]) -> PathBuf {
    let mut paths = folders.iter().map(|folder| folder.join(file));
    let first = paths.next().unwrap_or_default();
    match first.exists() {
        true => first,
        false => paths.find(|path| path.exists()).unwrap_or(first),
    }
}

/// The profile that an annotation names.
fn annotated(pod: &Pod, container: &Container) -> Result<AppArmor> {
    let key = format!("{ANNOTATION}{}", container.name);
    Ok(match pod.annotations.get(&key).map(String::as_str) {
        None | Some("runtime/default") => AppArmor::RuntimeDefault,
        Some("unconfined") => AppArmor::Unconfined,
        Some(other) => match other.strip_prefix("localhost/").filter(|name| !name.is_empty()) {
            Some(name) => AppArmor::Localhost(name.to_owned()),
            None => bail!("metadata.annotations.{key}: {other:?} is not runtime/default, unconfined or localhost/NAME"),
        },
    })
}

/// Why a container that must not run as root would or might: kubelet's words. `image` is the image's user.
pub fn root_refused(pod: &Pod, uid: &str, container: &Container, image: &str) -> Option<String> {
    if !container.security.non_root {
        return None;
    }
    let whose = format!("(pod: \"{}_{}({uid})\", container: {})", pod.name, pod.namespace, container.name);
    let name = image.split(':').next().unwrap_or_default();
    match (container.security.user, name.parse::<u32>()) {
        (Some(0), _) => Some(format!("container's runAsUser breaks non-root policy {whose}")),
        (Some(_), _) => None,
        (None, Ok(0)) => Some(format!("container has runAsNonRoot and image will run as root {whose}")),
        (None, Ok(_)) => None,
        (None, Err(_)) if name.is_empty() => {
            Some(format!("container has runAsNonRoot and image will run as root {whose}"))
        }
        (None, Err(_)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(meta: &str, spec: &str, container: &str) -> Pod {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web{meta}}}\nspec: {{containers: [{{name: c, image: b{container}}}]{spec}}}\n"
        );
        crate::kube::pod::read("web.yaml", &text).unwrap().remove(0)
    }

    fn of(pod: &Pod) -> Security {
        security(pod, &pod.containers[0]).unwrap()
    }

    #[test]
    fn a_container_that_must_not_be_root_is_refused_in_kubelets_words() {
        let told = |context: &str, image: &str| {
            let pod = pod("", "", &format!(", securityContext: {context}"));
            root_refused(&pod, "u", &pod.containers[0], image)
        };
        let non_root = "{runAsNonRoot: true}";
        let words = "container has runAsNonRoot and image will run as root (pod: \"web_default(u)\", container: c)";
        assert_eq!(told(non_root, "").as_deref(), Some(words));
        assert_eq!(told(non_root, "0:5").as_deref(), Some(words));
        assert!(told(non_root, "www-data").unwrap().contains("non-numeric user (www-data), cannot verify"));
        assert_eq!(told(non_root, "33"), None);
        assert_eq!(told("{runAsNonRoot: true, runAsUser: 5}", "root"), None);
        assert_eq!(told("{}", "root"), None);
    }

    #[test]
    fn apparmor_is_by_its_field_or_by_the_older_annotation() {
        let annotation = |value: &str| format!(", annotations: {{\"{ANNOTATION}c\": {value}}}");
        assert_eq!(of(&pod(&annotation("unconfined"), "", "")).apparmor, AppArmor::Unconfined);
        assert_eq!(of(&pod(&annotation("localhost/x"), "", "")).apparmor, AppArmor::Localhost("x".into()));
        let both = pod(&annotation("unconfined"), "", ", securityContext: {appArmorProfile: {type: RuntimeDefault}}");
        assert_eq!(of(&both).apparmor, AppArmor::RuntimeDefault);
        let bad = pod(&annotation("whatever"), "", "");
        assert!(security(&bad, &bad.containers[0]).unwrap_err().to_string().contains("whatever"));
    }

    #[test]
    fn a_profile_is_looked_for_in_both_folders() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [one.path(), two.path()];
        assert_eq!(profile("p/f.json", &folders), one.path().join("p/f.json"));
        std::fs::write(two.path().join("g.json"), "").unwrap();
        assert_eq!(profile("g.json", &folders), two.path().join("g.json"));
    }

    #[test]
    fn groups_and_labels_are_handed_on() {
        let context = "{supplementalGroups: [7], supplementalGroupsPolicy: Strict, seLinuxOptions: {level: \"s0:c1\"}}";
        let security = of(&pod("", &format!(", securityContext: {context}"), ""));
        assert_eq!((security.supplemental_groups, security.strict_groups), (vec![7], true));
        assert_eq!(security.selinux.unwrap().level, "s0:c1");
    }
}
