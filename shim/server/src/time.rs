//! Points in time as nanoseconds since the epoch: now, RFC 3339, and ages as kubectl writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One second.
pub const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    nanos(since)
}

/// A duration's nanoseconds; one longer than any clock tells is the longest.
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// How long it is from one point in time until another; nothing once that has passed.
pub fn between(now: i64, at: i64) -> Duration {
    Duration::from_nanos(at.saturating_sub(now).max(0).unsigned_abs())
}

/// How long it is until then; nothing once that has passed.
pub fn until(at: i64) -> Duration {
    between(now(), at)
}

/// `2026-01-02T03:04:05Z`.
pub fn rfc3339(nanos: i64) -> String {
    let seconds = nanos.div_euclid(SECOND);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}

/// `2026-01-02T03:04:05.000000006Z`: such texts sort as the times do.
pub fn rfc3339_nanos(nanos: i64) -> String {
    let seconds = rfc3339(nanos);
    format!("{}.{:09}Z", seconds.trim_end_matches('Z'), nanos.rem_euclid(SECOND))
}

/// Reads RFC 3339, with `Z` or an offset such as `+02:00`.
pub fn parse(text: &str) -> Option<i64> {
    if text.ends_with('Z') {
        return coracle_engine::record::parse_rfc3339(text);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    let at = coracle_engine::record::parse_rfc3339(&format!("{local}Z"))?;
    match offset.as_bytes()[0] {
        b'+' => Some(at - minutes * 60 * SECOND),
        b'-' => Some(at + minutes * 60 * SECOND),
        _ => None,
    }
}

/// `Fri, 02 Jan 2026 03:04:05 +0000`, as kubectl describes times.
pub fn rfc1123(nanos: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = nanos.div_euclid(SECOND).div_euclid(86_400);
    let (year, month, day) = civil(days);
    // The epoch was a Thursday.
    let weekday = usize::try_from(days.rem_euclid(7)).map_or("", |index| DAYS[index]);
    let month = usize::try_from(month - 1).map_or("", |index| MONTHS[index]);
    format!("{weekday}, {day:02} {month} {year} {} +0000", &rfc3339(nanos)[11..19])
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last of its year; 400 years have 146 097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// How long ago that was, as kubectl's AGE column has it: two units while they matter.
pub fn age(since: i64, now: i64) -> String {
    let s = (now - since).max(0) / SECOND;
    let (m, h, d, y) = (s / 60, s / 3600, s / 86_400, s / (365 * 86_400));
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if s < 120 => format!("{s}s"),
        () if m < 10 => two(m, "m", s % 60, "s"),
        () if h < 3 => format!("{m}m"),
        () if h < 8 => two(h, "h", m % 60, "m"),
        () if h < 48 => format!("{h}h"),
        () if d < 8 => two(d, "d", h % 24, "h"),
        () if y < 2 => format!("{d}d"),
        () if y < 8 => two(y, "y", d % 365, "d"),
        () => format!("{y}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400 * SECOND), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_323_045 * SECOND + 5), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339(-SECOND), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn times_are_written_for_people_and_read_with_their_offset() {
        assert_eq!(rfc1123(1_767_323_045 * SECOND), "Fri, 02 Jan 2026 03:04:05 +0000");
        assert_eq!(rfc3339_nanos(1_767_323_045 * SECOND + 6), "2026-01-02T03:04:05.000000006Z");
        assert_eq!(parse("2026-01-02T05:04:05+02:00"), parse("2026-01-02T03:04:05Z"));
        assert_eq!(parse("2026-01-01T22:34:05.5-04:30"), Some(1_767_323_045 * SECOND + SECOND / 2));
        assert!(["", "now", "2026-01-02", "2026-01-02T03:04:05", "ü2:00"].iter().all(|text| parse(text).is_none()));
    }

    #[test]
    fn what_has_passed_is_not_waited_for() {
        assert_eq!(between(5, 7), Duration::from_nanos(2));
        assert_eq!(between(7, 5), Duration::ZERO);
        assert_eq!((until(0), nanos(Duration::MAX)), (Duration::ZERO, i64::MAX));
    }

    #[test]
    fn ages_read_as_kubectls() {
        let ages = [(5, "5s"), (119, "119s"), (125, "2m5s"), (600, "10m"), (3 * 3600 + 60, "3h1m")];
        for (seconds, text) in ages.into_iter().chain([(90_000, "25h"), (3 * 86_400, "3d"), (800 * 86_400, "2y70d")]) {
            assert_eq!(age(0, seconds * SECOND), text);
        }
        assert_eq!(age(10 * SECOND, 0), "0s", "a clock that went back");
    }
}
