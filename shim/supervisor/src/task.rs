//! The life of a process (a container's init, or an exec) as one enum and one pure function.
//!
//! ```text
//! Creating -> Created -> Starting -> Running <-> Pausing/Paused/Resuming
//!     |          |          |           |             |
//!  (forgotten)   +----------+-----------+-------------+--> Stopped -> Deleting -> (forgotten)
//! ```
//! The states ending in -ing are those in which a worker has been asked to do something and has not reported yet.
//! A process can die in any of them; what the worker reports afterwards changes nothing.

use coracle_proto::task_types::Status as WireStatus;
use std::fmt;

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The worker that makes it is running.
    Creating,
    /// It exists and waits to be started. (An exec: it is described and does not exist.)
    Created,
    /// The worker that starts it is running.
    Starting,
    /// Its program runs.
    Running,
    /// The worker that freezes it is running.
    Pausing,
    /// Frozen.
    Paused,
    /// The worker that thaws it is running.
    Resuming,
    /// Dead and reaped.
    Stopped,
    /// The worker that clears up after it is running, or will once it is dead.
    Deleting,
}

/// What can happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The worker made it.
    Created,
    /// Asked to start.
    Start,
    /// The worker started it.
    Started,
    /// The worker could not.
    StartFailed,
    /// Asked to freeze.
    Pause,
    /// The worker froze it.
    Paused,
    /// The worker could not.
    PauseFailed,
    /// Asked to thaw.
    Resume,
    /// The worker thawed it.
    Resumed,
    /// The worker could not.
    ResumeFailed,
    /// It was reaped.
    Exited,
    /// Asked to forget it.
    Delete,
    /// The worker could not clear up.
    DeleteFailed,
}

/// The event is impossible, or may not be asked for, in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    state: State,
    event: Event,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.event {
            Event::Start => "start",
            Event::Pause => "pause",
            Event::Resume => "resume",
            Event::Delete => "delete",
            _ => "change",
        };
        write!(f, "cannot {verb} a process that is {}", self.state)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Creating => "being created",
            State::Created => "created",
            State::Starting => "being started",
            State::Running => "running",
            State::Pausing => "being paused",
            State::Paused => "paused",
            State::Resuming => "being resumed",
            State::Stopped => "stopped",
            State::Deleting => "being deleted",
        })
    }
}

impl State {
    /// The state after `event`.
    pub fn after(self, event: Event) -> Result<State, Refused> {
        use State::*;
        Ok(match (self, event) {
            (Creating, Event::Created) => Created,
            (Created, Event::Start) => Starting,
            (Starting, Event::Started) => Running,
            (Starting, Event::StartFailed) => Created,
            (Running, Event::Pause) => Pausing,
            (Pausing, Event::Paused) => Paused,
            (Pausing, Event::PauseFailed) => Running,
            (Paused, Event::Resume) => Resuming,
            (Resuming, Event::Resumed) => Running,
            (Resuming, Event::ResumeFailed) => Paused,
            (Created | Starting | Running | Pausing | Paused | Resuming, Event::Exited) => Stopped,
            // A created container is killed first, and cleared up when it is dead.
            (Created | Stopped, Event::Delete) => Deleting,
            (Deleting, Event::DeleteFailed) => Stopped,
            // Whoever died meanwhile stays dead, whatever the worker says.
            (Stopped | Deleting, event) if event.is_late_report() => self,
            (Deleting, Event::Exited) => Deleting,
            (state, event) => return Err(Refused { state, event }),
        })
    }

    /// What containerd calls it.
    pub fn wire(self) -> WireStatus {
        match self {
            State::Creating | State::Created | State::Starting => WireStatus::Created,
            State::Running => WireStatus::Running,
            State::Pausing => WireStatus::Pausing,
            State::Paused | State::Resuming => WireStatus::Paused,
            State::Stopped | State::Deleting => WireStatus::Stopped,
        }
    }

    /// Whether a process is there to be signalled.
    pub fn alive(self) -> bool {
        !matches!(self, State::Creating | State::Stopped | State::Deleting)
    }
}

impl Event {
    /// A worker's report about a process that may have died while the worker ran.
    fn is_late_report(self) -> bool {
        use Event::*;
        matches!(self, Started | StartFailed | Paused | PauseFailed | Resumed | ResumeFailed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 9] = [
        State::Creating,
        State::Created,
        State::Starting,
        State::Running,
        State::Pausing,
        State::Paused,
        State::Resuming,
        State::Stopped,
        State::Deleting,
    ];
    const REPORTS: [Event; 6] =
        [Event::Started, Event::StartFailed, Event::Paused, Event::PauseFailed, Event::Resumed, Event::ResumeFailed];

    fn walk(events: &[Event]) -> State {
        events.iter().fold(State::Creating, |state, event| state.after(*event).unwrap())
    }

    #[test]
    fn the_ordinary_life() {
        let life = [Event::Created, Event::Start, Event::Started, Event::Pause, Event::Paused, Event::Resume];
        assert_eq!(walk(&life), State::Resuming);
        assert_eq!(
            walk(&[Event::Created, Event::Start, Event::Started, Event::Exited, Event::Delete]),
            State::Deleting
        );
    }

    #[test]
    fn no_report_of_a_worker_revives_the_dead() {
        for state in [State::Stopped, State::Deleting] {
            for event in REPORTS {
                assert_eq!(state.after(event), Ok(state));
            }
        }
    }

    #[test]
    fn whatever_lives_can_die_at_any_time() {
        for state in STATES.into_iter().filter(|state| state.alive()) {
            assert_eq!(state.after(Event::Exited), Ok(State::Stopped), "{state:?}");
        }
    }

    #[test]
    fn a_running_process_is_not_deleted() {
        for state in [State::Starting, State::Running, State::Pausing, State::Paused, State::Resuming] {
            let refused = state.after(Event::Delete).unwrap_err();
            assert!(refused.to_string().starts_with("cannot delete a process that is"), "{refused}");
        }
    }

    #[test]
    fn nothing_is_started_twice() {
        for state in STATES.into_iter().filter(|state| *state != State::Created) {
            assert!(state.after(Event::Start).is_err(), "{state:?}");
        }
    }
}
