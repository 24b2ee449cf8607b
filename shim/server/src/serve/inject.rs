//! `inject_env`: the variables that kubelet would set, for clients of the CRI that are not kubelet.
//!
//! They tell of the pod (`POD_NAME`, `POD_NAMESPACE`, `POD_UID`, `POD_IP`, `POD_IPS`, `POD_LABEL_<KEY>`,
//! `POD_ANNOTATION_<KEY>`) and of the services of its namespace, read from the manifests in `services_dir`; the `kubernetes`
//! service of the namespace `default` is everyone's. What the client sets always wins. HOSTNAME is the engine's.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use coracle_engine::{ContainerConfig, SandboxStatus};

use crate::app::App;
use crate::kube::{
    self,
    service::{self, Service},
};

/// Manifests in the folder: each is read for each container.
const MAX_FILES: usize = 1000;

/// Adds the variables, if the configuration wants them.
pub fn apply(app: &App, pod: &SandboxStatus, config: &mut ContainerConfig) -> Result<()> {
    let serve = &app.config.serve;
    if !serve.inject_env {
        return Ok(());
    }
    let services = serve.services_dir.as_deref().map(read).transpose()?.unwrap_or_default();
    let mut env = of_services(&services, &pod.config.namespace);
    env.extend(of_pod(pod));
    let own: HashSet<&String> = config.env.iter().map(|(name, _)| name).collect();
    env.retain(|(name, _)| !own.contains(name));
    env.append(&mut config.env);
    config.env = env;
    Ok(())
}

/// The Services of a folder's `.yaml` and `.yml` files.
fn read(dir: &Path) -> Result<Vec<Service>> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut files = list().with_context(|| format!("services_dir {}", dir.display()))?;
    files.retain(|path| kube::is_yaml(path));
    ensure!(files.len() <= MAX_FILES, "services_dir {}: more than {MAX_FILES} files", dir.display());
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        match service::services(&text) {
            Ok(services) => all.extend(services),
            Err(fault) => bail!("{}", fault.in_file(&name)),
        }
    }
    Ok(all)
}

fn of_services(services: &[Service], namespace: &str) -> Vec<(String, String)> {
    let seen = |service: &&Service| service.meta.namespace == namespace || service.is_master();
    services.iter().filter(seen).flat_map(Service::variables).collect()
}

fn of_pod(pod: &SandboxStatus) -> Vec<(String, String)> {
    let config = &pod.config;
    let ips: Vec<String> = pod.ips.iter().map(IpAddr::to_string).collect();
    let mut env = vec![
        ("POD_NAME".to_owned(), config.name.clone()),
        ("POD_NAMESPACE".to_owned(), config.namespace.clone()),
        ("POD_UID".to_owned(), config.uid.clone()),
    ];
    if let Some(first) = ips.first() {
        env.push(("POD_IP".to_owned(), first.clone()));
        env.push(("POD_IPS".to_owned(), ips.join(",")));
    }
    for (prefix, map) in [("POD_LABEL_", &config.labels), ("POD_ANNOTATION_", &config.annotations)] {
        env.extend(map.iter().map(|(key, value)| (format!("{prefix}{}", variable(key)), value.clone())));
    }
    env
}

/// A key as part of a variable's name.
fn variable(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use coracle_engine::{SandboxConfig, SandboxState};

    use super::*;
    use crate::cli::Places;

    const SERVICES: &str = "kind: Service\nmetadata: {name: db}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 5432}]}\n---\n\
        kind: Service\nmetadata: {name: other, namespace: elsewhere}\nspec: {clusterIP: 10.0.0.2, ports: [{port: 1}]}\n";

    fn pod() -> SandboxStatus {
        let config = SandboxConfig {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            labels: [("app.kubernetes.io/name".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        };
        SandboxStatus {
            id: String::new(),
            config,
            state: SandboxState::Ready,
            created_at: 0,
            ips: vec!["10.88.0.2".parse().unwrap()],
            notes: Vec::new(),
            supervisor: None,
        }
    }

    fn injected(text: &str, env: &[(&str, &str)]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), SERVICES).unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text.replace("DIR", &dir.path().display().to_string())).unwrap();
        let app = App::new(Places { config: Some(path), ..Places::default() })?;
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut config = ContainerConfig { env, ..Default::default() };
        apply(&app, &pod(), &mut config)?;
        Ok(config.env.iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn nothing_is_injected_unless_it_is_asked_for() {
        assert_eq!(injected("", &[("A", "1")]).unwrap(), ["A=1"]);
    }

    #[test]
    fn pod_and_services_are_told_and_the_client_wins() {
        let text = "[serve]\ninject_env = true\nservices_dir = 'DIR'\n";
        let env = injected(text, &[("POD_UID", "mine"), ("DB_SERVICE_HOST", "else")]).unwrap();
        for wanted in [
            "POD_NAME=web",
            "POD_NAMESPACE=default",
            "POD_UID=mine",
            "POD_IP=10.88.0.2",
            "POD_LABEL_APP_KUBERNETES_IO_NAME=web",
            "DB_SERVICE_HOST=else",
            "DB_SERVICE_PORT=5432",
        ] {
            assert!(env.iter().any(|line| line == wanted), "{wanted}: {env:?}");
        }
        assert_eq!(env.iter().filter(|line| line.starts_with("POD_UID=")).count(), 1);
        assert!(!env.iter().any(|line| line.starts_with("OTHER_")), "of another namespace: {env:?}");
    }
}
