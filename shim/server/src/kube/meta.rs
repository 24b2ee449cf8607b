//! The metadata of an object as it is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};

use super::Fault;
use super::names;
use super::pod::{checked, required, value};
use super::raw::{self, At, Map, Place};
use crate::text::cut;

/// The namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Most bytes of annotations, keys and values together, as in Kubernetes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The name.
    pub name: String,
    /// The namespace; empty for a kind without.
    #[serde(default)]
    pub namespace: String,
    /// What selectors match.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Other facts.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `generateName`, if the name was made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
}

impl Meta {
    /// Reads the metadata of a namespaced object whose name follows `rule`.
    pub fn namespaced(
        meta: Option<At<raw::ObjectMeta>>,
        root: &Place,
        rule: fn(&str) -> names::Check,
    ) -> Result<Meta, Fault> {
        let at = required(meta, root, "metadata")?;
        let namespace = at.value.namespace.as_ref().filter(|at| !at.value.is_empty());
        let namespace = namespace.map(|at| checked(at, names::label)).transpose()?;
        let mut meta = Meta::convert(at, rule)?;
        meta.namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        Ok(meta)
    }

    /// The same for an object of the cluster.
    pub fn of_cluster(
        meta: Option<At<raw::ObjectMeta>>,
        root: &Place,
        rule: fn(&str) -> names::Check,
    ) -> Result<Meta, Fault> {
        let at = required(meta, root, "metadata")?;
        if let Some(at) = at.value.namespace.as_ref().filter(|at| !at.value.is_empty()) {
            return Err(at.fault("this kind has no namespace: remove it"));
        }
        Meta::convert(at, rule)
    }

    /// Reads the metadata of a workload's pods: their names and namespace follow from the workload's.
    pub fn of_template(at: Option<At<raw::ObjectMeta>>, workload: &Meta) -> Result<Meta, Fault> {
        let raw = value(at).unwrap_or_default();
        Ok(Meta {
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            labels: string_map(raw.labels, Some(names::label_value))?,
            annotations: annotations(raw.annotations)?,
            generated: None,
        })
    }

    fn convert(at: At<raw::ObjectMeta>, rule: fn(&str) -> names::Check) -> Result<Meta, Fault> {
        let At { value: raw, place } = at;
        let generate = raw.generate_name.filter(|at| !at.value.is_empty());
        let (name, generated) = match (raw.name.filter(|at| !at.value.is_empty()), generate) {
            (Some(name), _) => (checked(&name, rule)?, None),
            (None, Some(prefix)) => {
                // Cut as by the API server, so that the name fits a host name.
                let name = format!("{}{}", cut(&prefix.value, names::MAX_LABEL - SUFFIX), random_suffix());
                rule(&name).map_err(|why| prefix.fault(why))?;
                (name, Some(prefix.value))
            }
            (None, None) => return Err(place.fault("name is missing")),
        };
        Ok(Meta {
            name,
            namespace: String::new(),
            labels: string_map(raw.labels, Some(names::label_value))?,
            annotations: annotations(raw.annotations)?,
            generated,
        })
    }
}

/// The characters of generated names: without vowels and look-alikes, as in Kubernetes.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many of them.
const SUFFIX: usize = 5;

/// Five random characters, as the API server adds to `generateName`.
pub fn random_suffix() -> String {
    let mut bytes = [0; SUFFIX];
    // The kernel's random source has no way to fail once the machine is up; a name that is taken is refused later.
    let _ = fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

/// Reads labels or annotations: the keys are qualified names, the values follow `rule`.
pub fn string_map(
    map: Option<At<Map<String>>>,
    rule: Option<fn(&str) -> names::Check>,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut out = BTreeMap::new();
    for (key, at) in value(map).unwrap_or_default() {
        checked(&key, names::qualified)?;
        if let Some(rule) = rule {
            checked(&at, rule)?;
        }
        out.insert(key.value, at.value);
    }
    Ok(out)
}

fn annotations(map: Option<At<Map<String>>>) -> Result<BTreeMap<String, String>, Fault> {
    let place = map.as_ref().map(|at| at.place.clone());
    let out = string_map(map, None)?;
    let size: usize = out.iter().map(|(key, value)| key.len() + value.len()).sum();
    match place {
        Some(place) if size > MAX_ANNOTATIONS => {
            Err(place.fault(format!("larger than {} KiB together", MAX_ANNOTATIONS >> 10)))
        }
        _ => Ok(out),
    }
}

/// A label selector, as it is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Labels and the value that each must have.
    pub labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The label.
    pub key: String,
    /// What must be so.
    pub operator: Operator,
    /// For `In` and `NotIn`.
    pub values: BTreeSet<String>,
}

/// What a condition asks of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values, or no such label.
    NotIn,
    /// Any value.
    Exists,
    /// No such label.
    DoesNotExist,
}

impl Selector {
    /// Reads a selector.
    pub fn convert(raw: raw::LabelSelector) -> Result<Selector, Fault> {
        let mut conditions = Vec::new();
        for At { value: raw, place } in value(raw.match_expressions).unwrap_or_default() {
            let key = checked(&required(raw.key, &place, "key")?, names::qualified)?;
            let at = required(raw.operator, &place, "operator")?;
            let operators = [
                ("In", Operator::In),
                ("NotIn", Operator::NotIn),
                ("Exists", Operator::Exists),
                ("DoesNotExist", Operator::DoesNotExist),
            ];
            let operator = super::pod::choice(&at, &operators)?;
            let values: BTreeSet<String> =
                value(raw.values).unwrap_or_default().into_iter().map(|at| at.value).collect();
            let wants_values = matches!(operator, Operator::In | Operator::NotIn);
            if wants_values == values.is_empty() {
                let text = if wants_values { "needs values" } else { "takes no values" };
                return Err(at.fault(format!("{} {text}", at.value)));
            }
            conditions.push(Condition { key, operator, values });
        }
        Ok(Selector { labels: string_map(raw.match_labels, Some(names::label_value))?, conditions })
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.conditions.is_empty()
    }

    /// Whether these labels are meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let plain = self.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        plain
            && self.conditions.iter().all(|condition| {
                let found = labels.get(&condition.key);
                match condition.operator {
                    Operator::In => found.is_some_and(|value| condition.values.contains(value)),
                    Operator::NotIn => !found.is_some_and(|value| condition.values.contains(value)),
                    Operator::Exists => found.is_some(),
                    Operator::DoesNotExist => found.is_none(),
                }
            })
    }
}
