//! A container's environment, composed when it starts, in kubelet's order and by its rules:
//!
//! 1. `envFrom`, in the order of the file: every key of a ConfigMap's data or of a Secret, behind the prefix; a later one
//!    of a name wins. A name that no variable can have is left out, and an event tells so;
//! 2. `env`, in the order of the file, over those: `$(NAME)` in a value is a variable of 1, one of `env` that stands
//!    before, or one of a Service; what is unknown stays as written;
//! 3. the variables of Services whose name is not taken.
//!
//! `command` and `args` are expanded with all of them. What refers to something that is not there, and must be, is
//! CreateContainerConfigError: the container waits for it.

use std::collections::HashMap;

use anyhow::Result;

use super::facts::Facts;
use super::making::Blocked;
use crate::kube::config::{ConfigMap, Secret};
use crate::kube::container::Container;
use crate::kube::env::{EnvFrom, EnvSource, EnvValue};
use crate::kube::expand::expand;
use crate::kube::names;

/// The waiting reason of a container whose settings refer to what is not there.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// What a container runs, and with which variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Composed {
    /// Instead of the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// Instead of the image's arguments.
    pub args: Option<Vec<String>>,
    /// The variables; each name once.
    pub env: Vec<(String, String)>,
    /// What was left out: sentences for events.
    pub skipped: Vec<String>,
}

/// Variables in the order in which their names came.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.places.get(name) {
            Some(place) => self.list[*place].1 = value,
            None => {
                self.places.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.list[*place].1.as_str())
    }
}

/// Composes a container's environment, command and arguments.
pub fn compose(container: &Container, facts: &Facts<'_>) -> Result<Composed> {
    let mut variables = Variables::default();
    let mut skipped = Vec::new();
    for from in &container.env_from {
        add_all(&mut variables, from, facts, &mut skipped)?;
    }
    let services: HashMap<&str, &str> =
        facts.services.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for variable in &container.env {
        let lookup = |name: &str| variables.get(name).or_else(|| services.get(name).copied());
        if let Some(value) = value(&variable.value, container, facts, lookup)? {
            variables.set(&variable.name, value);
        }
    }
    for (name, value) in &facts.services {
        if variables.get(name).is_none() {
            variables.set(name, value.clone());
        }
    }
    if let Some((name, _)) = variables.list.iter().find(|(_, value)| value.contains('\0')) {
        let message = format!("the value of the variable {name} contains a NUL byte, which no variable can");
        return Err(Blocked::new(CONFIG_ERROR, message).into());
    }
    let words = |words: &Option<Vec<String>>| {
        words.as_ref().map(|words| words.iter().map(|word| expand(word, |name| variables.get(name))).collect())
    };
    let (command, args) = (words(&container.command), words(&container.args));
    Ok(Composed { command, args, env: variables.list, skipped })
}

/// All keys of an object.
fn add_all(variables: &mut Variables, from: &EnvFrom, facts: &Facts<'_>, skipped: &mut Vec<String>) -> Result<()> {
    let (kind, name, pairs): (_, _, Vec<(String, String)>) = match &from.source {
        EnvSource::ConfigMap(name) => {
            let found: Option<ConfigMap> = facts.object(name, from.optional, CONFIG_ERROR)?;
            ("configMap", name, found.map(|map| map.data.into_iter().collect()).unwrap_or_default())
        }
        EnvSource::Secret(name) => {
            let found: Option<Secret> = facts.object(name, from.optional, CONFIG_ERROR)?;
            let data = found.map(|secret| secret.data).unwrap_or_default();
            ("secret", name, data.into_iter().map(|(key, bytes)| (key, text(bytes))).collect())
        }
    };
    let mut bad = Vec::new();
    for (key, value) in pairs {
        let variable = format!("{}{key}", from.prefix);
        match names::env_var(&variable) {
            Ok(()) => variables.set(&variable, value),
            Err(_) => bad.push(variable),
        }
    }
    if !bad.is_empty() {
        let object = format!("{kind} {}/{name}", facts.pod.namespace);
        skipped.push(format!(
            "Keys [{}] from the EnvFrom {object} were skipped since they are considered invalid environment variable names.",
            bad.join(", ")
        ));
    }
    Ok(())
}

/// Bytes as kubelet's strings: what is not UTF-8 cannot be in a JSON configuration either.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The value of one variable; None for one that is not set.
fn value<'v>(
    value: &EnvValue,
    container: &Container,
    facts: &Facts<'_>,
    lookup: impl Fn(&str) -> Option<&'v str>,
) -> Result<Option<String>> {
    let missing = |key: &str, kind: &str, name: &str| {
        let message = format!("couldn't find key {key} in {kind} {}/{name}", facts.pod.namespace);
        Err(Blocked::new(CONFIG_ERROR, message).into())
    };
    match value {
        EnvValue::Literal(text) => Ok(Some(expand(text, lookup))),
        EnvValue::Field { path } => facts.field(path).map(Some),
        EnvValue::Resource(field) => facts.resource(field, Some(container)).map(Some),
        EnvValue::ConfigMap { name, key, optional } => {
            let found: Option<ConfigMap> = facts.object(name, *optional, CONFIG_ERROR)?;
            match found.and_then(|mut map| map.data.remove(key)) {
                None if !optional => missing(key, "ConfigMap", name),
                value => Ok(value),
            }
        }
        EnvValue::Secret { name, key, optional } => {
            let found: Option<Secret> = facts.object(name, *optional, CONFIG_ERROR)?;
            match found.and_then(|mut secret| secret.data.remove(key)) {
                None if !optional => missing(key, "Secret", name),
                value => Ok(value.map(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::pod::Pod;
    use crate::objects::Objects;
    use coracle_engine::Paths;

    struct World {
        pod: Pod,
        objects: Objects,
        _dir: tempfile::TempDir,
    }

    /// A pod whose container has these fields, and objects to refer to.
    fn world(fields: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(&Paths { state: dir.path().join("state"), ..Paths::default() });
        let mut map = ConfigMap::default();
        (map.meta.name, map.meta.namespace) = ("settings".into(), "default".into());
        map.data = [("A", "from map"), ("B", "b")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        objects.put(&map).unwrap();
        let mut secret = Secret::default();
        (secret.meta.name, secret.meta.namespace) = ("keys".into(), "default".into());
        secret.data = [("A", "from secret"), ("NUL", "\0")].map(|(key, value)| (key.to_owned(), value.into())).into();
        objects.put(&secret).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: shop}}}}\nspec:\n  containers:\n  - name: c\n    \
             image: b\n    {fields}\n"
        );
        let pod = crate::kube::pod::read("web.yaml", &text).unwrap().remove(0);
        World { pod, objects, _dir: dir }
    }

    fn compose_in(world: &World) -> Result<Composed> {
        let services = [("DB_SERVICE_HOST", "10.96.0.7"), ("OWN", "service")];
        let facts = Facts {
            pod: &world.pod,
            uid: "u-1",
            objects: &world.objects,
            ips: &["10.1.2.3".parse().unwrap()],
            services: services.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        };
        compose(&world.pod.containers[0], &facts)
    }

    fn composed(fields: &str) -> Composed {
        compose_in(&world(fields)).unwrap()
    }

    fn blocked(fields: &str) -> String {
        let error = compose_in(&world(fields)).unwrap_err();
        assert_eq!(error.downcast_ref::<Blocked>().unwrap().reason, CONFIG_ERROR);
        error.downcast_ref::<Blocked>().unwrap().message.clone()
    }

    fn get<'c>(composed: &'c Composed, name: &str) -> Option<&'c str> {
        composed.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn values_expand_with_what_stands_before_them_and_with_services() {
        let c = composed(
            "env: [{name: LATE, value: $(A)}, {name: A, value: '1'}, {name: B, value: x$(A)$$(A)}, {name: OWN, value: mine}, \
             {name: DB, value: 'at $(DB_SERVICE_HOST)'}, {name: A, value: $(A)2}]\n    command: [run, $(B), $(OWN)]\n    args: [$(NONE), $(DB)]",
        );
        assert_eq!(get(&c, "LATE"), Some("$(A)"));
        assert_eq!((get(&c, "A"), get(&c, "B")), (Some("12"), Some("x1$(A)")));
        assert_eq!((get(&c, "OWN"), get(&c, "DB")), (Some("mine"), Some("at 10.96.0.7")));
        assert_eq!(c.command.unwrap(), ["run", "x1$(A)", "mine"]);
        assert_eq!(c.args.unwrap(), ["$(NONE)", "at 10.96.0.7"]);
    }

    #[test]
    fn all_keys_come_behind_their_prefix_and_env_wins() {
        let c = composed(
            "envFrom: [{configMapRef: {name: settings}}, {prefix: P_, configMapRef: {name: settings}}, \
             {secretRef: {name: none, optional: true}}]\n    env: [{name: B, value: $(P_A)}]",
        );
        assert_eq!(
            (get(&c, "A"), get(&c, "P_A"), get(&c, "B")),
            (Some("from map"), Some("from map"), Some("from map"))
        );
        assert_eq!(c.env.iter().filter(|(name, _)| name == "B").count(), 1);
    }

    #[test]
    fn keys_and_fields_are_looked_up() {
        let c = composed(
            "resources: {limits: {memory: 64Mi}}\n    env: [{name: M, valueFrom: {configMapKeyRef: {name: settings, key: A}}}, \
             {name: S, valueFrom: {secretKeyRef: {name: keys, key: A}}}, \
             {name: O, valueFrom: {secretKeyRef: {name: none, key: A, optional: true}}}, \
             {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, \
             {name: L, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}, \
             {name: I, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
             {name: R, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]",
        );
        let expected =
            [("M", "from map"), ("S", "from secret"), ("WHO", "web"), ("L", "shop"), ("I", "10.1.2.3"), ("R", "64")];
        for (name, value) in expected {
            assert_eq!(get(&c, name), Some(value), "{name}");
        }
        assert_eq!(get(&c, "O"), None);
    }

    #[test]
    fn what_is_missing_is_told_in_kubelets_words() {
        for (fields, message) in [
            ("envFrom: [{configMapRef: {name: none}}]", "configmap \"none\" not found"),
            ("envFrom: [{secretRef: {name: none}}]", "secret \"none\" not found"),
            (
                "env: [{name: X, valueFrom: {configMapKeyRef: {name: settings, key: none}}}]",
                "couldn't find key none in ConfigMap default/settings",
            ),
            (
                "env: [{name: X, valueFrom: {secretKeyRef: {name: keys, key: none}}}]",
                "couldn't find key none in Secret default/keys",
            ),
        ] {
            assert_eq!(blocked(fields), message);
        }
        assert!(blocked("envFrom: [{secretRef: {name: keys}}]").contains("NUL"));
    }
}
