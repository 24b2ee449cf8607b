//! RFC 3339 with nine digits of nanoseconds, in UTC: the form of `state.json`, of CRI logs and of `exit.json`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of `2026-01-02T03:04:05.123456789Z`.
pub const LEN: usize = 30;

/// The time as text. Times before 1970 are shown as 1970: no clock of a machine that runs containers says so for long.
pub fn rfc3339(time: SystemTime) -> [u8; LEN] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], second / 3600);
    put(&mut text[14..16], second / 60 % 60);
    put(&mut text[17..19], second % 60);
    put(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

/// The same as a string.
pub fn rfc3339_string(time: SystemTime) -> String {
    rfc3339(time).iter().map(|byte| char::from(*byte)).collect()
}

fn put(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that the leap day is a
/// year's last; a cycle of 400 years has 146097 days.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_times() {
        let known = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_767_323_045, 123_456_789, "2026-01-02T03:04:05.123456789Z"),
            (4_102_444_799, 999_999_999, "2099-12-31T23:59:59.999999999Z"),
        ];
        for (seconds, nanos, text) in known {
            assert_eq!(rfc3339_string(UNIX_EPOCH + Duration::new(seconds, nanos)), text);
        }
    }
}
