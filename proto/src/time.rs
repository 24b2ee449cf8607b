//! Conversions between [`Timestamp`] and [`SystemTime`].

use crate::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() as i32 },
            // Before 1970 the nanoseconds still count forward from the (negative) second.
            Err(before) => {
                let before = before.duration();
                let (seconds, nanos) = (before.as_secs() as i64, before.subsec_nanos());
                if nanos == 0 {
                    Timestamp { seconds: -seconds, nanos: 0 }
                } else {
                    Timestamp { seconds: -seconds - 1, nanos: (NANOS_PER_SECOND - nanos) as i32 }
                }
            }
        }
    }
}

impl From<&Timestamp> for SystemTime {
    /// Nanoseconds out of range are brought into it: a timestamp from the wire never panics.
    fn from(stamp: &Timestamp) -> Self {
        let nanos = Duration::from_nanos(stamp.nanos.clamp(0, NANOS_PER_SECOND as i32 - 1) as u64);
        let seconds = Duration::from_secs(stamp.seconds.unsigned_abs());
        let whole = if stamp.seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
        whole.and_then(|time| time.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_the_round_trip() {
        for time in [UNIX_EPOCH + Duration::new(5, 7), UNIX_EPOCH - Duration::new(5, 7), UNIX_EPOCH] {
            assert_eq!(SystemTime::from(&Timestamp::from(time)), time);
        }
    }

    #[test]
    fn nonsense_from_the_wire_is_a_time_all_the_same() {
        for (seconds, nanos) in [(i64::MAX, -1), (i64::MIN, i32::MAX), (0, -5)] {
            let _ = SystemTime::from(&Timestamp { seconds, nanos });
        }
    }
}
