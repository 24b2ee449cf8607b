//! Limits. In the CRI a zero says nothing: no limit when a container is made, no change when it is updated.

use coracle_engine::{HugepageLimit, Resources};
use coracle_proto::cri as v1;
use tonic::Status;

use super::{invalid, text};

/// The kernel's bounds of an OOM score adjustment.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// The limits of a new container or pod; `field` is where they stand in the request.
pub fn limits(field: &str, resources: v1::LinuxContainerResources) -> Result<Resources, Status> {
    let adj = resources.oom_score_adj;
    let mut limits = changes(field, resources)?;
    // Unlike the rest, zero is a value here: what the process of a container gets.
    limits.oom_score_adj = i32::try_from(adj).ok();
    Ok(limits)
}

/// What an update changes.
pub fn changes(field: &str, resources: v1::LinuxContainerResources) -> Result<Resources, Status> {
    let at = |name: &str| format!("{field}.{name}");
    let positive = |name: &str, value: i64| match value {
        0 => Ok(None),
        1.. => Ok(Some(value)),
        _ => Err(invalid(at(name), format!("{value} is negative"))),
    };
    let unlimited = |name: &str, value: i64| match value {
        0 => Ok(None),
        -1 | 1.. => Ok(Some(value)),
        _ => Err(invalid(at(name), format!("{value} is neither a limit nor -1 for none"))),
    };
    let r = resources;
    if !OOM_SCORE_ADJ.contains(&r.oom_score_adj) {
        return Err(invalid(at("oom_score_adj"), format!("{} is not in -1000..1000", r.oom_score_adj)));
    }
    let mut hugepage_limits = Vec::new();
    for (i, limit) in r.hugepage_limits.into_iter().enumerate() {
        let size = limit.page_size.trim_end_matches("B").trim_end_matches(['K', 'M', 'G']);
        if size.is_empty() || size == limit.page_size || !size.bytes().all(|b| b.is_ascii_digit()) {
            let why = format!("{:?} is no size of huge pages such as \"2MB\"", limit.page_size);
            return Err(invalid(at(&format!("hugepage_limits[{i}].page_size")), why));
        }
        hugepage_limits.push(HugepageLimit { page_size: limit.page_size, limit: limit.limit });
    }
    for (key, value) in &r.unified {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if key.is_empty() || !key.contains('.') || !key.chars().all(plain) {
            return Err(invalid(at("unified"), format!("{key:?} is no file of a cgroup")));
        }
        text(at("unified"), value)?;
    }
    Ok(Resources {
        cpu_shares: positive("cpu_shares", r.cpu_shares)?.map(i64::unsigned_abs),
        cpu_quota: unlimited("cpu_quota", r.cpu_quota)?,
        cpu_period: positive("cpu_period", r.cpu_period)?.map(i64::unsigned_abs),
        cpuset_cpus: cpuset(at("cpuset_cpus"), r.cpuset_cpus)?,
        cpuset_mems: cpuset(at("cpuset_mems"), r.cpuset_mems)?,
        memory: unlimited("memory_limit_in_bytes", r.memory_limit_in_bytes)?,
        memory_swap: unlimited("memory_swap_limit_in_bytes", r.memory_swap_limit_in_bytes)?,
        oom_score_adj: i32::try_from(r.oom_score_adj).ok().filter(|adj| *adj != 0),
        hugepage_limits,
        unified: r.unified.into_iter().collect(),
        ..Default::default()
    })
}

/// A list of CPUs or of memory nodes: `0-3,5`.
fn cpuset(field: String, list: String) -> Result<Option<String>, Status> {
    let number = |n: &str| !n.is_empty() && n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit());
    let part = |p: &str| match p.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(p),
    };
    match list.as_str() {
        "" => Ok(None),
        text if text.split(',').all(part) => Ok(Some(list)),
        _ => Err(invalid(field, format!("{list:?} is no list such as \"0-3,5\""))),
    }
}

/// The limits as the CRI shows them.
pub fn shown(resources: &Resources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| value.map_or(0, |v| i64::try_from(v).unwrap_or(i64::MAX));
    let pages = |l: &HugepageLimit| v1::HugepageLimit { page_size: l.page_size.clone(), limit: l.limit };
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory.unwrap_or(0),
        oom_score_adj: i64::from(resources.oom_score_adj.unwrap_or(0)),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: resources.hugepage_limits.iter().map(pages).collect(),
        unified: resources.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: resources.memory_swap.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Wire = v1::LinuxContainerResources;

    #[test]
    fn limits_come_back_as_they_were_given() {
        let wire = Wire {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: -998,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("memory.high".to_owned(), "max".to_owned())].into(),
            memory_swap_limit_in_bytes: 128 << 20,
        };
        assert_eq!(shown(&limits("r", wire.clone()).unwrap()), wire);
        assert_eq!(shown(&limits("r", Wire::default()).unwrap()), Wire::default());
    }

    #[test]
    fn a_zero_is_no_limit_and_no_change() {
        assert_eq!(changes("r", Wire::default()).unwrap(), Resources::default());
        assert_eq!(limits("r", Wire::default()).unwrap().oom_score_adj, Some(0));
    }

    #[test]
    fn what_no_limit_can_be_is_refused_by_its_field() {
        let page = |size: &str| vec![v1::HugepageLimit { page_size: size.into(), limit: 1 }];
        let table = [
            ("r.cpu_shares", Wire { cpu_shares: -1, ..Default::default() }),
            ("r.cpu_quota", Wire { cpu_quota: -2, ..Default::default() }),
            ("r.cpu_period", Wire { cpu_period: -1, ..Default::default() }),
            ("r.memory_limit_in_bytes", Wire { memory_limit_in_bytes: -5, ..Default::default() }),
            ("r.memory_swap_limit_in_bytes", Wire { memory_swap_limit_in_bytes: i64::MIN, ..Default::default() }),
            ("r.oom_score_adj", Wire { oom_score_adj: 1001, ..Default::default() }),
            ("r.cpuset_cpus", Wire { cpuset_cpus: "0-".into(), ..Default::default() }),
            ("r.cpuset_mems", Wire { cpuset_mems: "all".into(), ..Default::default() }),
            ("r.hugepage_limits[0].page_size", Wire { hugepage_limits: page("big"), ..Default::default() }),
            ("r.hugepage_limits[0].page_size", Wire { hugepage_limits: page("../2MB"), ..Default::default() }),
            ("r.unified", Wire { unified: [("../x.y".to_owned(), String::new())].into(), ..Default::default() }),
        ];
        for (field, wire) in table {
            let error = changes("r", wire).unwrap_err();
            assert!(error.message().starts_with(field), "{field}: {}", error.message());
        }
    }
}
