//! When to try again, and after how long.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::progress::{Progress, ProgressEvent};

/// A server may ask for at most this much patience. Whoever must wait longer should rather be told.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(60);

/// Bounds of trying again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// How often one thing is tried without any progress, the first time included.
    pub attempts: u32,
    /// The wait before the second attempt; doubles each time.
    pub base: Duration,
    /// No wait is longer, unless the server asks for it.
    pub limit: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { attempts: 5, base: Duration::from_millis(400), limit: Duration::from_secs(10) }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub struct Failure {
    /// For the user, if it stays the last.
    pub error: Error,
    /// May another attempt succeed?
    pub transient: bool,
    /// The wait that the server asks for.
    pub retry_after: Option<Duration>,
    /// The distribution specification's word for it, if the server gave one: `NAME_UNKNOWN`.
    pub code: String,
}

impl Failure {
    /// One that may pass.
    pub fn passing(error: Error) -> Failure {
        Failure { transient: true, ..error.into() }
    }
}

impl From<Error> for Failure {
    /// Final.
    fn from(error: Error) -> Failure {
        Failure { error, transient: false, retry_after: None, code: String::new() }
    }
}

impl Retry {
    /// Sleeps before attempt number `next` (2, 3, ...), or gives the error back if there shall be none.
    pub fn wait(&self, failure: Failure, next: u32, what: &str, progress: &dyn Progress) -> Result<()> {
        let too_long = failure.retry_after.is_some_and(|asked| asked > RETRY_AFTER_LIMIT);
        if !failure.transient || next > self.attempts || too_long {
            return Err(failure.error);
        }
        let delay = self.delay(next, failure.retry_after);
        let why = failure.error.to_string();
        // The line names the thing, and so does the event.
        let short = why.split_once(&format!("{what}: ")).map_or(why.as_str(), |(_, short)| short);
        progress.event(ProgressEvent::Retry { what, why: short, attempt: next, delay });
        thread::sleep(delay);
        Ok(())
    }

    /// Half of an exponential wait is left to chance, so that many clients of one failed server do not come back as
    /// one.
    fn delay(&self, next: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.base.saturating_mul(1 << next.saturating_sub(2).min(16)).min(self.limit);
        let chance = RandomState::new().hash_one(next) % 1000;
        let jittered = doubled / 2 + (doubled / 2).mul_f64(chance as f64 / 1000.0);
        asked.map_or(jittered, |asked| asked.max(jittered))
    }
}

/// `Retry-After`: seconds, or a date.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = parse_http_date(value)?;
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, as seconds since 1970.
fn parse_http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let mut clock = time.split(':').map(|part| part.parse::<u64>().ok().filter(|part| *part < 61));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..10_000).contains(&year) || !(1..32).contains(&day) {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, with years that begin in March so that leap days come last.
    let (shifted_year, shifted_month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = shifted_year * 365 + leap_days + (153 * shifted_month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::progress::Silent;

    #[test]
    fn waits_grow_within_bounds_and_the_server_is_heard() {
        let retry = Retry { attempts: 9, base: Duration::from_millis(100), limit: Duration::from_secs(1) };
        for (next, low, high) in [(2, 50, 100), (3, 100, 200), (4, 200, 400), (9, 500, 1000), (60, 500, 1000)] {
            let delay = retry.delay(next, None).as_millis();
            assert!((low..=high).contains(&delay), "{next}: {delay} ms");
        }
        assert_eq!(retry.delay(2, Some(Duration::from_secs(7))), Duration::from_secs(7));
    }

    #[test]
    fn attempts_end_and_final_failures_end_them_at_once() {
        let retry = Retry { attempts: 2, base: Duration::ZERO, limit: Duration::ZERO };
        let failure = |transient| Failure { transient, ..Error::new(ErrorKind::Unavailable, "x").into() };
        assert!(retry.wait(failure(true), 2, "a", &Silent).is_ok());
        assert!(retry.wait(failure(true), 3, "a", &Silent).is_err());
        assert!(retry.wait(failure(false), 2, "a", &Silent).is_err());
        let asked = Failure { retry_after: Some(Duration::from_secs(3600)), ..failure(true) };
        assert!(retry.wait(asked, 2, "a", &Silent).is_err(), "an hour is for the user to wait");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(parse_retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(
            parse_retry_after("Thu, 29 Feb 1996 00:00:00 GMT", UNIX_EPOCH),
            Some(Duration::from_secs(825_552_000))
        );
        assert_eq!(parse_retry_after("Sun, 06 Nov 1980 08:49:37 GMT", now), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 99 Foo 1994 08:49:37 GMT"] {
            assert_eq!(parse_retry_after(bad, now), None, "{bad}");
        }
    }
}
