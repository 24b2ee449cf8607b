//! ConfigMap, Secret, ServiceAccount and RuntimeClass as they are meant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bytes::{self, Bytes};
use super::meta::Meta;
use super::pod::{checked, required, value};
use super::quantity::{Quantities, Quantity};
use super::raw::{self, At, Map, Place};
use super::{Fault, names};
use crate::objects::Kind;

/// Most bytes of the data of a ConfigMap or Secret, as in Kubernetes.
const MAX_DATA: usize = 1 << 20;

/// Settings for pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigMap {
    /// Name and labels.
    pub meta: Meta,
    /// Text by key.
    pub data: BTreeMap<String, String>,
    /// Bytes by key.
    #[serde(with = "bytes")]
    pub binary: Bytes,
    /// Whether its data may never change.
    pub immutable: bool,
}

/// What only its pods should see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Name and labels.
    pub meta: Meta,
    /// `type`.
    pub kind: String,
    /// Bytes by key, `stringData` among them.
    #[serde(with = "bytes")]
    pub data: Bytes,
    /// Whether its data may never change.
    pub immutable: bool,
}

/// A carrier of imagePullSecrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccount {
    /// Name and labels.
    pub meta: Meta,
    /// Secrets for pulling the images of its pods.
    pub pull_secrets: Vec<String>,
}

/// A name for a handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeClass {
    /// Name and labels; no namespace.
    pub meta: Meta,
    /// The handler of the configuration.
    pub handler: String,
    /// What the handler takes for each pod.
    pub overhead: Quantities,
}

impl Kind for ConfigMap {
    const KIND: &'static str = "ConfigMap";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        let same = (&self.data, &self.binary, true) == (&new.data, &new.binary, new.immutable);
        check_immutable(self.immutable, same)
    }
}

impl Kind for Secret {
    const KIND: &'static str = "Secret";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        if self.kind != new.kind {
            return Err(format!("type is immutable: it is {}; delete it first", self.kind));
        }
        check_immutable(self.immutable, (&self.data, true) == (&new.data, new.immutable))
    }
}

fn check_immutable(immutable: bool, same: bool) -> Result<(), String> {
    match immutable && !same {
        true => Err("it is immutable: delete it first".to_owned()),
        false => Ok(()),
    }
}

impl Kind for ServiceAccount {
    const KIND: &'static str = "ServiceAccount";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Kind for RuntimeClass {
    const KIND: &'static str = "RuntimeClass";
    const NAMESPACED: bool = false;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        match self.handler == new.handler {
            true => Ok(()),
            false => Err(format!("handler is immutable: it is {}; delete the class first", self.handler)),
        }
    }
}

impl ConfigMap {
    /// Gives a ConfigMap its meaning.
    pub fn convert(raw: raw::ConfigMap, root: &Place) -> Result<ConfigMap, Fault> {
        let meta = Meta::namespaced(raw.metadata, root, names::subdomain)?;
        let mut data = BTreeMap::new();
        for (key, at) in value(raw.data).unwrap_or_default() {
            checked(&key, names::config_key)?;
            data.insert(key.value, at.value);
        }
        let mut binary = Bytes::new();
        for (key, at) in value(raw.binary_data).unwrap_or_default() {
            checked(&key, names::config_key)?;
            if data.contains_key(&key.value) {
                return Err(key.fault("this key is in data too"));
            }
            binary.insert(key.value.clone(), bytes::decode(&at.value).map_err(|why| at.fault(why))?);
        }
        let size = data.values().map(String::len).chain(binary.values().map(Vec::len)).sum();
        check_size(size, root)?;
        Ok(ConfigMap { meta, data, binary, immutable: value(raw.immutable).unwrap_or(false) })
    }
}

fn check_size(size: usize, root: &Place) -> Result<(), Fault> {
    match size > MAX_DATA {
        true => Err(root.fault(format!("{size} bytes of data: at most {MAX_DATA}"))),
        false => Ok(()),
    }
}

/// The keys that a type of Secret asks for.
const TYPES: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];
/// Types whose data is JSON.
const JSON_KEYS: [&str; 2] = [".dockerconfigjson", ".dockercfg"];

impl Secret {
    /// Gives a Secret its meaning.
    pub fn convert(raw: raw::Secret, root: &Place) -> Result<Secret, Fault> {
        let meta = Meta::namespaced(raw.metadata, root, names::subdomain)?;
        let mut data = Bytes::new();
        for (key, at) in value(raw.data).unwrap_or_default() {
            checked(&key, names::config_key)?;
            data.insert(key.value, bytes::decode(&at.value).map_err(|why| at.fault(why))?);
        }
        for (key, at) in value(raw.string_data).unwrap_or_default() {
            checked(&key, names::config_key)?;
            data.insert(key.value, at.value.into_bytes());
        }
        check_size(data.values().map(Vec::len).sum(), root)?;
        let class = raw.class.filter(|at| !at.value.is_empty());
        let place = class.as_ref().map_or(root, |at| &at.place);
        let kind = class.as_ref().map_or("Opaque", |at| at.value.as_str()).to_owned();
        check_type(&kind, &data, place)?;
        Ok(Secret { meta, kind, data, immutable: value(raw.immutable).unwrap_or(false) })
    }
}

fn check_type(kind: &str, data: &Bytes, place: &Place) -> Result<(), Fault> {
    if kind == "kubernetes.io/service-account-token" {
        return Err(place.fault("there is no API server whose token this could be: remove it"));
    }
    if kind == "kubernetes.io/basic-auth" && !["username", "password"].iter().any(|key| data.contains_key(*key)) {
        return Err(place.fault("a Secret of this type has the key username or password"));
    }
    let keys = TYPES.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, keys)| keys);
    for key in keys {
        let Some(bytes) = data.get(*key) else {
            return Err(place.fault(format!("a Secret of the type {kind} has the key {key}")));
        };
        if JSON_KEYS.contains(key)
            && let Err(error) = serde_json::from_slice::<serde_json::Value>(bytes)
        {
            return Err(place.fault(format!("data of {key} is not JSON: {error}")));
        }
    }
    Ok(())
}

impl ServiceAccount {
    /// Gives a ServiceAccount its meaning.
    pub fn convert(raw: raw::ServiceAccount, root: &Place) -> Result<ServiceAccount, Fault> {
        let meta = Meta::namespaced(raw.metadata, root, names::subdomain)?;
        Ok(ServiceAccount { meta, pull_secrets: references(raw.pull_secrets)? })
    }
}

/// The names that a list of references holds.
pub fn references(list: Option<At<raw::List<raw::LocalReference>>>) -> Result<Vec<String>, Fault> {
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let name = required(item.value.name, &item.place, "name")?;
        out.push(checked(&name, names::subdomain)?);
    }
    Ok(out)
}

impl RuntimeClass {
    /// Gives a RuntimeClass its meaning.
    pub fn convert(raw: raw::RuntimeClass, root: &Place) -> Result<RuntimeClass, Fault> {
        let meta = Meta::of_cluster(raw.metadata, root, names::subdomain)?;
        let handler = checked(&required(raw.handler, root, "handler")?, names::label)?;
        let overhead = value(raw.overhead).and_then(|raw| raw.pod_fixed);
        Ok(RuntimeClass { meta, handler, overhead: quantities(overhead)? })
    }
}

/// Reads amounts by resource: none is negative.
pub fn quantities(map: Option<At<Map<raw::Amount>>>) -> Result<Quantities, Fault> {
    let mut out = Quantities::new();
    for (name, at) in value(map).unwrap_or_default() {
        checked(&name, names::qualified)?;
        out.insert(name.value, quantity(&at)?);
    }
    Ok(out)
}

/// Reads an amount that is not negative.
pub fn quantity(at: &At<raw::Amount>) -> Result<Quantity, Fault> {
    let quantity = Quantity::parse(&at.value.0).map_err(|why| at.fault(why))?;
    match quantity.is_negative() {
        true => Err(at.fault("must not be negative")),
        false => Ok(quantity),
    }
}
