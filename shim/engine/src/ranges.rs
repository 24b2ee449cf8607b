//! Ids for pods' user namespaces: 65536 for each, which no other pod has and no user of the machine.
//!
//! They come from what the administrator gives to the user `coracle` in `/etc/subuid` and `/etc/subgid`, in both the same;
//! without such lines from the ids that systemd's table of uids leaves to nobody. What those files give to others is
//! left out. A pod's record keeps its range until the pod is removed, and is all there is to know: the choice is made
//! in the section in which records are made.

use std::fs;
use std::ops::Range;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::types::{IdMapping, UserNamespace};

/// How many ids a pod gets: what Kubernetes promises.
const LENGTH: u64 = 65_536;
/// The ids that no program of a usual machine takes (systemd's UIDS-GIDS).
const UNUSED: Range<u64> = 0x7000_0000..0x7fff_0000;
/// In whose name ids are given.
const USER: &str = "coracle";
/// Where ids are given.
const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// What is mapped in this process's own user namespace.
const OWN_MAPS: [&str; 2] = ["/proc/self/uid_map", "/proc/self/gid_map"];

impl Engine {
    /// A range that nobody has; the caller is in the section.
    pub(crate) fn free_range(&self) -> Result<UserNamespace> {
        let mut taken = Vec::new();
        for id in self.sandbox_ids()? {
            match self.sandbox_record(&id) {
                Ok(record) => taken.extend(record.config.user_namespace.iter().flat_map(ranges_of)),
                Err(e) if e.is_not_found() => {}
                // It may have any range.
                Err(e) => return Err(e),
            }
        }
        let given = FILES.map(|path| given(&fs::read_to_string(path).unwrap_or_default()));
        let mapped = OWN_MAPS.map(|path| mapped(&fs::read_to_string(path).unwrap_or_default()));
        let Some(first) = choose(&given, &mapped, &taken) else {
            let why = format!(
                "no {LENGTH} ids are free that the machine maps and nobody has (lines of {USER} in /etc/subuid and /etc/subgid give more)"
            );
            return Err(Error::invalid("hostUsers", why));
        };
        let map = vec![IdMapping { container_id: 0, host_id: first, length: LENGTH as u32 }];
        Ok(UserNamespace { uids: map.clone(), gids: map })
    }
}

fn ranges_of(namespace: &UserNamespace) -> impl Iterator<Item = Range<u64>> {
    let maps = namespace.uids.iter().chain(&namespace.gids);
    maps.map(|map| u64::from(map.host_id)..u64::from(map.host_id) + u64::from(map.length))
}

/// The ranges of a file, and whether they are ours.
fn given(text: &str) -> Vec<(bool, Range<u64>)> {
    let line = |line: &str| {
        let mut parts = line.trim().split(':');
        let (user, first, count) = (parts.next()?, parts.next()?.parse::<u64>().ok()?, parts.next()?.parse().ok()?);
        Some((user == USER, first..first.saturating_add(count)))
    };
    text.lines().filter_map(line).collect()
}

/// The ids that this process's user namespace has.
fn mapped(text: &str) -> Vec<Range<u64>> {
    let line = |line: &str| {
        let mut parts = line.split_whitespace().map(str::parse::<u64>);
        let (first, _, count) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        Some(first..first.saturating_add(count))
    };
    text.lines().filter_map(line).collect()
}

fn meets(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn holds(outer: &[Range<u64>], inner: &Range<u64>) -> bool {
    outer.iter().any(|outer| outer.start <= inner.start && inner.end <= outer.end)
}

/// The first id of a range that is ours, mapped and nobody's.
fn choose(given: &[Vec<(bool, Range<u64>)>; 2], mapped: &[Vec<Range<u64>>; 2], taken: &[Range<u64>]) -> Option<u32> {
    let ours = given.each_ref().map(|list| list.iter().filter(|g| g.0).map(|g| g.1.clone()).collect::<Vec<_>>());
    let any = ours.iter().any(|list| !list.is_empty());
    let pools: Vec<Range<u64>> = if any { ours[0].clone() } else { vec![UNUSED] };
    let others = given.iter().flatten().filter(|g| !g.0).map(|g| &g.1);
    let barred: Vec<&Range<u64>> = others.chain(taken).collect();
    pools.iter().find_map(|pool| {
        let mut first = pool.start;
        // Each step goes beyond one barred range, so the search ends.
        while first + LENGTH <= pool.end {
            let range = first..first + LENGTH;
            match barred.iter().find(|other| meets(&range, other)) {
                Some(other) => first = other.end,
                None if any && !holds(&ours[1], &range) => return None,
                None if mapped.iter().all(|mapped| holds(mapped, &range)) => return u32::try_from(first).ok(),
                None => return None,
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";

    fn chosen(subuid: &str, subgid: &str, maps: &str, taken: &[Range<u64>]) -> Option<u32> {
        choose(&[given(subuid), given(subgid)], &[mapped(maps), mapped(maps)], taken)
    }

    #[test]
    fn two_pods_never_overlap() {
        let mut taken: Vec<Range<u64>> = std::iter::once(0x7000_0005..0x7000_000a).collect();
        for _ in 0..50 {
            let first = u64::from(chosen("", "", ALL, &taken).unwrap());
            let range = first..first + LENGTH;
            assert!(!taken.iter().any(|other| meets(other, &range)), "{range:?}");
            taken.push(range);
        }
        assert_eq!(chosen("", "", ALL, &[UNUSED]), None);
    }

    #[test]
    fn the_administrators_lines_come_first_and_others_are_respected() {
        let lines = "alice:100000:65536\ncoracle:165536:131072\n";
        assert_eq!(chosen(lines, lines, ALL, &[]), Some(165_536));
        assert_eq!(chosen(lines, lines, ALL, std::slice::from_ref(&(165_536..231_072))), Some(231_072));
        assert_eq!(chosen(lines, "", ALL, &[]), None, "groups have no such range");
        let other = format!("bob:{}:65536\n", 0x7000_0000);
        assert_eq!(chosen(&other, &other, ALL, &[]), Some(0x7001_0000));
    }

    #[test]
    fn what_the_own_user_namespace_lacks_cannot_be_given() {
        assert_eq!(chosen("", "", "0 1000 1\n1 100000 65536\n", &[]), None);
    }
}
