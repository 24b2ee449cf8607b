//! Values of the OCI configuration (whose words are cgroup v1's) in the words of cgroup v2. Pure functions.

/// The kernel's range of `cpu.shares`.
pub(super) const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// The range of `blkio.weight` in the OCI specification.
pub(super) const BLKIO_WEIGHT: std::ops::RangeInclusive<u16> = 10..=1000;

/// `cpu.shares` (2..262144, 1024 by default) as `cpu.weight` (1..10000, 100 by default).
///
/// The curve that runc, crun and the kubelet agreed on: it maps minimum, default and maximum exactly. (The older linear
/// formula mapped 1024 to 39, so that containers with default shares weighed less than their neighbours.)
pub(super) fn shares_to_weight(shares: u64) -> u64 {
    if shares <= *SHARES.start() {
        return 1;
    }
    if shares >= *SHARES.end() {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// `blkio.weight` (10..1000) as `io.weight` (1..10000), linearly.
pub(super) fn blkio_to_io_weight(weight: u16) -> u64 {
    let beyond = u64::from(weight.clamp(*BLKIO_WEIGHT.start(), *BLKIO_WEIGHT.end()) - BLKIO_WEIGHT.start());
    1 + beyond * 9999 / 990
}

/// The OCI `memory.swap` (memory and swap together; 0 unset, -1 unlimited) as `memory.swap.max` (swap alone).
/// `None` leaves the file alone.
pub(super) fn swap_to_v2(swap: i64, memory: i64) -> Result<Option<String>, &'static str> {
    match (swap, memory) {
        // As on v1, memory without limit takes swap along unless told otherwise.
        (0, -1) | (-1, _) => Ok(Some("max".to_owned())),
        (0, _) => Ok(None),
        (swap, _) if swap < -1 => Err("is below -1, which means unlimited"),
        (swap, -1) => Ok(Some(swap.to_string())),
        (_, 0) => Err("needs memory.limit: swap counts memory and swap together"),
        (swap, memory) if swap < memory => Err("is lower than memory.limit: swap counts memory and swap together"),
        (swap, memory) => Ok(Some((swap - memory).to_string())),
    }
}

/// A byte limit of v2: -1 is `max`, and 0 leaves the file alone.
pub(super) fn limit_to_v2(limit: i64) -> Option<String> {
    match limit {
        0 => None,
        -1 => Some("max".to_owned()),
        other => Some(other.to_string()),
    }
}

/// `pids.limit` as both versions write it. 0 is written as 1, as runc does: a cgroup with no room even for the init could not
/// start, and either value forbids every fork.
pub(super) fn pids_limit(limit: i64) -> String {
    match limit {
        0 => "1".to_owned(),
        negative if negative < 0 => "max".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights_keep_minimum_default_and_maximum() {
        assert_eq!(shares_to_weight(2), 1);
        assert_eq!(shares_to_weight(1024), 100);
        assert_eq!(shares_to_weight(262_144), 10_000);
        assert_eq!(blkio_to_io_weight(10), 1);
        assert_eq!(blkio_to_io_weight(1000), 10_000);
    }

    #[test]
    fn swap_is_what_lies_beyond_memory() {
        assert_eq!(swap_to_v2(300, 100), Ok(Some("200".into())));
        assert_eq!(swap_to_v2(100, 100), Ok(Some("0".into())));
        assert_eq!(swap_to_v2(-1, 100), Ok(Some("max".into())));
        assert_eq!(swap_to_v2(0, -1), Ok(Some("max".into())));
        assert_eq!(swap_to_v2(0, 100), Ok(None));
        assert!(swap_to_v2(50, 100).is_err());
        assert!(swap_to_v2(50, 0).is_err());
    }

    #[test]
    fn pids_limits_follow_runc() {
        assert_eq!((pids_limit(0), pids_limit(-1), pids_limit(7)), ("1".into(), "max".into(), "7".into()));
    }

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(a in 0u64..300_000, b in 0u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(shares_to_weight(low) <= shares_to_weight(high));
            prop_assert!((1..=10_000).contains(&shares_to_weight(a)));
        }
    }
}
