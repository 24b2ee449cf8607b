//! Limits, in the OCI spec's words.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::types::{HugepageLimit, Resources};

/// Devices every container may use: (major, minor), character devices all; the runtime makes their nodes.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts/*
];

/// `linux.resources` of a container: its limits and its devices; `more` are rules beyond the usual ones.
pub fn linux(resources: &Resources, all_devices: bool, more: Vec<Value>) -> Result<Value> {
    let mut value = limits(resources)?;
    value["devices"] = if all_devices { json!([{ "allow": true, "access": "rwm" }]) } else { devices(more) };
    Ok(value)
}

fn devices(more: Vec<Value>) -> Value {
    // Making nodes is harmless without the right to open them.
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in DEVICES {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    rules.extend(more);
    Value::Array(rules)
}

/// Only the limits: what a pod's cgroup gets, or an update.
pub fn limits(resources: &Resources) -> Result<Value> {
    let object = |pairs: Vec<(&str, Option<Value>)>| {
        let set = pairs.into_iter().filter_map(|(name, value)| value.map(|v| (name.to_owned(), v)));
        set.collect::<Map<String, Value>>()
    };
    let r = resources;
    let cpu = object(vec![
        ("shares", r.cpu_shares.map(Value::from)),
        ("quota", r.cpu_quota.map(Value::from)),
        ("period", r.cpu_period.map(Value::from)),
        ("cpus", r.cpuset_cpus.clone().map(Value::from)),
        ("mems", r.cpuset_mems.clone().map(Value::from)),
    ]);
    let memory = object(vec![("limit", r.memory.map(Value::from)), ("swap", r.memory_swap.map(Value::from))]);
    let pids = object(vec![("limit", r.pids.map(Value::from))]);
    let mut all = Map::new();
    for (name, part) in [("cpu", cpu), ("memory", memory), ("pids", pids)] {
        if !part.is_empty() {
            all.insert(name.into(), part.into());
        }
    }
    if !r.unified.is_empty() {
        all.insert("unified".into(), json!(r.unified));
    }
    if !r.hugepage_limits.is_empty() {
        all.insert("hugepageLimits".into(), hugepages(&r.hugepage_limits)?);
    }
    Ok(all.into())
}

fn hugepages(limits: &[HugepageLimit]) -> Result<Value> {
    let one = |limit: &HugepageLimit| {
        let why = || Error::invalid("hugepage_limits", format!("{} bytes of {}", limit.limit, limit.page_size));
        Ok(json!({ "pageSize": limit.page_size, "limit": i64::try_from(limit.limit).map_err(|_| why())? }))
    };
    limits.iter().map(one).collect::<Result<Vec<_>>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_written() {
        assert_eq!(limits(&Resources::default()).unwrap(), json!({}));
        let some = Resources { cpu_shares: Some(2), memory: Some(3), ..Default::default() };
        assert_eq!(limits(&some).unwrap(), json!({ "cpu": { "shares": 2 }, "memory": { "limit": 3 } }));
    }

    #[test]
    fn devices_are_denied_before_the_few_are_allowed() {
        let value = linux(&Resources::default(), false, Vec::new()).unwrap();
        assert_eq!(value["devices"][0], json!({ "allow": false, "access": "rwm" }));
        assert!(value["devices"].as_array().unwrap().len() > DEVICES.len());
        assert_eq!(linux(&Resources::default(), true, Vec::new()).unwrap()["devices"][0]["allow"], json!(true));
    }
}
