//! Calls that wait for an end, `Task.Wait` and `Sandbox.WaitSandbox`: how many, and until when.
//!
//! A client that gives its call a deadline (`timeout_nano` of ttrpc) is answered DEADLINE_EXCEEDED when that has come, and
//! counts no longer among those who wait. Other calls are things to do: they are done, however long that takes, and the
//! client that has given up finds out with its next one.

use crate::connection::Call;
use crate::failure::Fail;
use crate::service::Outcome;
use crate::supervisor::Supervisor;
use coracle_proto::ttrpc::{Code, Request, method};
use std::time::{Duration, Instant};

/// Calls that wait, and until when.
#[derive(Debug, Default)]
pub struct Deadlines(Vec<(Instant, Call)>);

impl Deadlines {
    /// Remembers a call that was not answered at once, if it is one that waits and has a deadline.
    pub fn note(&mut self, call: Call, request: &Request, outcome: &Outcome) {
        let waits = matches!(request.method.as_str(), method::WAIT | method::WAIT_SANDBOX);
        let Ok(nanos @ 1..) = u64::try_from(request.timeout_nano) else { return };
        let at = Instant::now().checked_add(Duration::from_nanos(nanos));
        if let (true, Ok(None), Some(at)) = (waits, outcome, at) {
            self.0.push((at, call));
        }
    }

    /// It was answered.
    pub fn forget(&mut self, call: Call) {
        self.0.retain(|(_, other)| *other != call);
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(at, _)| *at).min()
    }

    /// Takes those that are due.
    fn due(&mut self, now: Instant) -> Vec<Call> {
        let due = self.0.iter().filter(|(at, _)| *at <= now).map(|(_, call)| *call).collect();
        self.0.retain(|(at, _)| *at > now);
        due
    }
}

/// Who waits for one end.
const MAX_WAITERS: usize = 4096;

impl Supervisor {
    /// Adds a call to those who wait for an end. Of too many, those go first whose client has left.
    pub(crate) fn join_waiters(&self, waiters: &mut Vec<Call>, call: Call, what: &str) -> Outcome {
        if waiters.len() >= MAX_WAITERS {
            waiters.retain(|call| self.is_connected(*call));
        }
        if waiters.len() >= MAX_WAITERS {
            let text = format!("wait for {what}: {MAX_WAITERS} others wait already");
            return Err(Code::ResourceExhausted.failure(text));
        }
        waiters.push(call);
        Ok(None)
    }

    /// Answers those whose deadline has come.
    pub(crate) fn end_waits(&mut self) {
        for call in self.deadlines.due(Instant::now()) {
            self.sandbox.waiters.retain(|other| *other != call);
            for container in &mut self.containers {
                let processes = std::iter::once(&mut container.init).chain(&mut container.execs);
                processes.for_each(|process| process.waiters.retain(|other| *other != call));
            }
            self.answer(call, Err(Code::DeadlineExceeded.failure("wait: the call's deadline has come".into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(method: &str, timeout_nano: i64, outcome: &Outcome) -> Deadlines {
        let mut deadlines = Deadlines::default();
        let request = Request { method: method.into(), timeout_nano, ..Request::default() };
        deadlines.note(Call { connection: 1, stream: 3 }, &request, outcome);
        deadlines
    }

    #[test]
    fn only_calls_that_wait_and_have_a_deadline_have_one_here() {
        assert!(noted(method::WAIT, 5, &Ok(None)).next().is_some());
        assert!(noted(method::WAIT_SANDBOX, i64::MAX, &Ok(None)).next().is_some());
        for nanos in [0, -1, i64::MIN] {
            assert!(noted(method::WAIT, nanos, &Ok(None)).next().is_none(), "{nanos}");
        }
        assert!(noted(method::CREATE, 5, &Ok(None)).next().is_none());
        assert!(noted(method::WAIT, 5, &Ok(Some(Vec::new()))).next().is_none());
    }

    #[test]
    fn what_was_answered_or_is_due_is_forgotten() {
        let mut deadlines = noted(method::WAIT, 5, &Ok(None));
        let at = deadlines.next().unwrap();
        assert!(deadlines.due(at - Duration::from_nanos(1)).is_empty());
        assert_eq!(deadlines.due(at), [Call { connection: 1, stream: 3 }]);
        assert!(deadlines.next().is_none());
        let mut deadlines = noted(method::WAIT, 5, &Ok(None));
        deadlines.forget(Call { connection: 1, stream: 3 });
        assert!(deadlines.next().is_none());
    }
}
