//! Which handler runs a pod: `runtimeClassName`, looked up among the RuntimeClasses that were applied, else among the
//! handlers of the configuration, whose names are classes, too.
//!
//! A class that does not exist, or whose handler is not configured, leaves the pod Failed with an event, as Kubernetes
//! documents it.

use anyhow::Result;
use coracle_engine::handler::Handlers;
use coracle_engine::{Resources, SandboxConfig};

use super::qos;
use crate::kube::config::RuntimeClass;
use crate::kube::pod::Pod;
use crate::objects::Objects;

/// The event's reason.
pub const REASON: &str = "FailedCreatePodSandBox";

/// Writes the handler and its overhead into the sandbox. An answer is why the pod cannot run, as the event tells it.
pub fn choose(
    pod: &Pod,
    objects: &Objects,
    handlers: &Handlers,
    sandbox: &mut SandboxConfig,
) -> Result<Option<String>> {
    sandbox.overhead = qos::overhead(&pod.overhead);
    let Some(name) = &pod.runtime_class else { return Ok(None) };
    let class: Option<RuntimeClass> = objects.get("", name)?;
    let handler = match &class {
        Some(class) => &class.handler,
        None if handlers.named.contains_key(name) => name,
        None => {
            return Ok(Some(format!("Failed to create pod sandbox: runtimeclass.node.k8s.io \"{name}\" not found")));
        }
    };
    if !handlers.named.contains_key(handler) {
        return Ok(Some(format!(
            "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"{handler}\" is configured"
        )));
    }
    sandbox.handler = handler.clone();
    if let Some(class) = class.filter(|_| sandbox.overhead == Resources::default()) {
        sandbox.overhead = qos::overhead(&class.overhead);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use coracle_engine::Paths;

    use super::*;

    #[test]
    fn a_class_is_looked_up_among_objects_and_handlers() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(&Paths { state: dir.path().to_owned(), ..Paths::default() });
        let pod = |class: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{runtimeClassName: {class}, containers: [{{name: c, image: b}}]}}\n"
            );
            crate::kube::pod::read("web.yaml", &text).unwrap().remove(0)
        };
        let choose = |class: &str| {
            let mut sandbox = SandboxConfig::default();
            let why = super::choose(&pod(class), &objects, &Handlers::default(), &mut sandbox).unwrap();
            (why, sandbox)
        };
        let (why, sandbox) = choose("coracle");
        assert_eq!((why, sandbox.handler.as_str()), (None, "coracle"));
        assert!(choose("none").0.unwrap().ends_with("runtimeclass.node.k8s.io \"none\" not found"));
    }
}
