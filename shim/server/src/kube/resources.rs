//! Resources as they are meant: what was written, and what the kernel makes of it.

use serde::{Deserialize, Serialize};

use super::Fault;
use super::container::Container;
use super::pod::value;
use super::quantity::{Quantities, Quantity};
use super::raw::{self, Amount, At, Map};

/// `resources`, as written and as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 `cpu.shares`; v2 weights follow from it.
    pub cpu_shares: u64,
    /// Microseconds of CPU in each period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: u64,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// What is asked for; a limit without a request is one too, as the API server has it.
    #[serde(default)]
    pub requests: Quantities,
    /// What may be taken.
    #[serde(default)]
    pub limits: Quantities,
}

/// The CFS period that kubelet uses, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// The kernel takes no smaller quota, in microseconds.
const MIN_QUOTA: i64 = 1_000;
/// The kernel's bounds for cpu.shares.
const SHARES: (i64, i64) = (2, 262_144);
/// runc, containerd and kubelet's validation all refuse less: a process cannot start in it.
const MIN_MEMORY: i64 = 4096;

impl Resources {
    /// Gives resources their meaning.
    pub fn convert(raw: raw::ResourceRequirements) -> Result<Resources, Fault> {
        let limits = amounts(raw.limits)?;
        if let Some((.., at)) = limits.iter().find(|(name, ..)| name == STORAGE) {
            return Err(at.fault("nothing here counts what a container writes: remove it (a request is fine)"));
        }
        let mut requests = amounts(raw.requests)?;
        for (name, limit, at) in &limits {
            match requests.iter().find(|(other, ..)| other == name) {
                Some((_, request, at)) if request > limit => {
                    return Err(at.fault(format!("{request} is more than the limit, {limit}")));
                }
                Some((_, request, at)) if name.starts_with(HUGE) && request != limit => {
                    return Err(at.fault(format!("must be the limit, {limit}: huge pages are not overcommitted")));
                }
                Some(_) => {}
                None => requests.push((name.clone(), *limit, at.clone())),
            }
        }
        if let Some((.., at)) =
            requests.iter().find(|(name, ..)| name.starts_with(HUGE) && !limits.iter().any(|(other, ..)| other == name))
        {
            return Err(at.fault("needs a limit of the same: huge pages are not overcommitted"));
        }
        if let Some((_, limit, at)) = limits.iter().find(|(name, ..)| name == "memory")
            && (1..MIN_MEMORY).contains(&limit.value())
        {
            let hint = if at.value.0.ends_with('m') { " (`m` is a thousandth of a byte: `Mi` was meant?)" } else { "" };
            return Err(at.fault(format!("{} bytes are too few to start a process{hint}", limit.value())));
        }
        let map = |list: Vec<(String, Quantity, At<Amount>)>| list.into_iter().map(|(name, q, _)| (name, q)).collect();
        Ok(Resources::of(map(requests), map(limits)))
    }

    /// What the kernel makes of these.
    pub fn of(requests: Quantities, limits: Quantities) -> Resources {
        let cpu_limit = limits.get("cpu").filter(|q| q.milli() > 0);
        let cpu_request = requests.get("cpu").map_or(0, |q| q.milli());
        let shares = cpu_request.saturating_mul(1024) / 1000;
        Resources {
            cpu_shares: shares.clamp(SHARES.0, SHARES.1).unsigned_abs(),
            cpu_quota: cpu_limit.map(|q| (q.milli().saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA)),
            cpu_period: CPU_PERIOD.unsigned_abs(),
            memory_limit: limits.get("memory").map(|q| q.value()).filter(|bytes| *bytes > 0),
            requests,
            limits,
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Resources::of(Quantities::new(), Quantities::new())
    }
}

/// Whether what a whole pod asks for and may take leaves room for its containers; an answer is why not.
pub fn check(pod: &Resources, containers: &[Container]) -> Result<(), String> {
    for (name, request) in &pod.requests {
        let sum = |unit: fn(Quantity) -> i64| -> i64 {
            containers.iter().filter_map(|c| c.resources.requests.get(name)).map(|q| unit(*q)).sum()
        };
        if sum(Quantity::milli) > request.milli() {
            return Err(format!("requests.{name}: its containers ask for more than {request} together"));
        }
    }
    for (name, limit) in &pod.limits {
        if let Some(container) = containers.iter().find(|c| c.resources.limits.get(name).is_some_and(|own| own > limit))
        {
            return Err(format!("limits.{name}: container {} may take more than {limit}", container.name));
        }
    }
    Ok(())
}

/// Room on the disk, which nothing here counts.
const STORAGE: &str = "ephemeral-storage";
/// How the names of huge pages begin.
const HUGE: &str = "hugepages-";

fn amounts(map: Option<At<Map<Amount>>>) -> Result<Vec<(String, Quantity, At<Amount>)>, Fault> {
    let mut out = Vec::new();
    for (name, at) in value(map).unwrap_or_default() {
        match name.value.as_str() {
            "cpu" | "memory" => {}
            STORAGE => {}
            text if text.starts_with(HUGE) => {
                if Quantity::parse(&text[HUGE.len()..]).is_err() {
                    return Err(name.fault("is not hugepages- and a size, such as hugepages-2Mi"));
                }
            }
            _ => {
                return Err(name.fault("is offered by a device plugin, and none is run here: remove it"));
            }
        }
        out.push((name.value, super::config::quantity(&at)?, at));
    }
    Ok(out)
}
