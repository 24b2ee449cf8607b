//! What the results of one probe come to: thresholds and times, without a clock or a socket.
//!
//! A verdict stands from the container's start (alive, not ready, not started yet) and changes once a result has come
//! as often in a row as its threshold says. A failed liveness or startup probe is the last word about its container:
//! it is killed, and the next one is judged anew.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{self, SECOND};

/// Which probe of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Which {
    /// Holds the others back until it succeeds.
    Startup,
    /// Its failure ends the container.
    Liveness,
    /// Tells whether traffic may come.
    Readiness,
}

impl Which {
    /// As events begin: `Liveness probe failed: ...`.
    pub fn title(self) -> &'static str {
        match self {
            Which::Startup => "Startup",
            Which::Liveness => "Liveness",
            Which::Readiness => "Readiness",
        }
    }

    /// As it stands within a sentence.
    pub fn word(self) -> &'static str {
        match self {
            Which::Startup => "startup",
            Which::Liveness => "liveness",
            Which::Readiness => "readiness",
        }
    }
}

/// The numbers of a probe, in seconds and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first probe.
    pub initial_delay: u32,
    /// From one probe to the next.
    pub period: u32,
    /// Successes in a row that count.
    pub success: u32,
    /// Failures in a row that count.
    pub failure: u32,
}

/// One probe of one incarnation of a container.
#[derive(Debug, Clone)]
pub struct Machine {
    which: Which,
    timing: Timing,
    last: Option<bool>,
    /// How often in a row.
    run: u32,
    verdict: Option<bool>,
}

impl Machine {
    /// That of a container that has just started.
    pub fn new(which: Which, timing: Timing) -> Machine {
        Machine { which, timing, last: None, run: 0, verdict: None }
    }

    /// Takes a result; the answer is the verdict if it has changed.
    pub fn take(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.timing.success } else { self.timing.failure };
        if self.is_over() || self.run < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }

    /// Whether nothing more is to be asked: a startup probe that has a verdict, a liveness probe that has failed.
    pub fn is_over(&self) -> bool {
        match self.which {
            Which::Startup => self.verdict.is_some(),
            Which::Liveness => self.verdict == Some(false),
            Which::Readiness => false,
        }
    }

    /// How long to wait for the first probe of a container that started then.
    pub fn first(&self, started_at: i64, now: i64) -> Duration {
        time::between(now, started_at.saturating_add(i64::from(self.timing.initial_delay) * SECOND))
    }

    /// How long to wait after a probe that began then: a slow one is followed at once.
    pub fn next(&self, began_at: i64, now: i64) -> Duration {
        time::between(now, began_at.saturating_add(i64::from(self.timing.period.max(1)) * SECOND))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMING: Timing = Timing { initial_delay: 5, period: 10, success: 1, failure: 3 };

    fn verdicts(which: Which, timing: Timing, results: &[bool]) -> Vec<Option<bool>> {
        let mut machine = Machine::new(which, timing);
        results.iter().map(|result| machine.take(*result)).collect()
    }

    #[test]
    fn failures_in_a_row_count_and_a_success_forgives_them() {
        let told = verdicts(Which::Liveness, TIMING, &[true, false, false, true, false, false, false]);
        assert_eq!(told, [Some(true), None, None, None, None, None, Some(false)]);
    }

    #[test]
    fn readiness_comes_and_goes_by_its_thresholds() {
        let timing = Timing { success: 2, failure: 1, ..TIMING };
        let told = verdicts(Which::Readiness, timing, &[true, true, true, false, true, true]);
        assert_eq!(told, [None, Some(true), None, Some(false), None, Some(true)]);
    }

    #[test]
    fn a_failed_container_gets_no_second_verdict() {
        let told = verdicts(Which::Startup, Timing { failure: 1, ..TIMING }, &[false, true, true]);
        assert_eq!(told, [Some(false), None, None]);
    }

    #[test]
    fn probes_begin_after_their_delay_and_come_by_their_period() {
        let machine = Machine::new(Which::Liveness, TIMING);
        assert_eq!(machine.first(100 * SECOND, 102 * SECOND), Duration::from_secs(3));
        assert_eq!(machine.first(100 * SECOND, 200 * SECOND), Duration::ZERO);
        assert_eq!(machine.next(100 * SECOND, 104 * SECOND), Duration::from_secs(6));
        assert_eq!(machine.next(100 * SECOND, 111 * SECOND), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_verdict_needs_as_many_equal_results_as_its_threshold(
            which in prop_oneof![Just(Which::Startup), Just(Which::Liveness), Just(Which::Readiness)],
            success in 1u32..5,
            failure in 1u32..5,
            results in prop::collection::vec(any::<bool>(), 0..40),
        ) {
            let timing = Timing { success, failure, ..TIMING };
            let mut machine = Machine::new(which, timing);
            let mut verdict = None;
            for (index, result) in results.iter().enumerate() {
                let over = machine.is_over();
                let told = machine.take(*result);
                let row = results[..=index].iter().rev().take_while(|other| *other == result).count();
                let threshold = if *result { success } else { failure };
                let expected = !over && row >= threshold as usize && verdict != Some(*result);
                prop_assert_eq!(told, expected.then_some(*result));
                verdict = told.or(verdict);
            }
        }
    }
}
