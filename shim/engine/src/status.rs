//! The states of a container and of a sandbox, and the one function each that moves them.
//!
//! ```text
//!  container:  Creating --created--> Created --started--> Running --exited--> Exited --removing--> Removing
//!                 |                     |  \------------ exited ---------------^  ^ |
//!                 |                     |        (start failed, killed before)    | |
//!                 +------- removing ----+---------------- Running --lost----------+ |
//!                                                     (supervisor proven dead)
//!  sandbox:    Creating --ready--> Ready --stopping--> Stopping --stopped--> NotReady --removing--> Removing
//!                 |                  \---------lost---------------------------^
//!                 +-- removing --> Removing
//! ```
//!
//! A transition that makes no sense is refused ([`None`]) and changes nothing; repeating the one that led to the
//! present state is allowed and changes nothing, because every act of the engine may be retried.
//! `Unknown` is never stored: it is how a living object is *shown* whose supervisor does not answer.

use serde::{Deserialize, Serialize};

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Its creation has begun; if its creator is dead it never finishes.
    Creating,
    /// Made, not started.
    Created,
    /// Its process runs.
    Running,
    /// It ended, or can never run.
    Exited,
    /// Its removal has begun.
    Removing,
    /// Its supervisor lives but does not answer.
    Unknown,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerEvent {
    /// The runtime made it.
    Created,
    /// Its process was started.
    Started,
    /// It ended, or starting it failed.
    Exited,
    /// Its supervisor is proven dead and left no exit record.
    Lost,
    /// Its removal begins.
    Removing,
}

impl ContainerState {
    /// The state after `event`, or `None` where the event cannot happen.
    pub fn next(self, event: ContainerEvent) -> Option<ContainerState> {
        use {ContainerEvent as E, ContainerState as S};
        match (self, event) {
            (S::Creating | S::Created, E::Created) => Some(S::Created),
            (S::Created | S::Running, E::Started) => Some(S::Running),
            (S::Created | S::Running | S::Exited, E::Exited) => Some(S::Exited),
            (S::Created | S::Running | S::Exited, E::Lost) => Some(S::Exited),
            (S::Unknown, _) => None,
            (_, E::Removing) => Some(S::Removing),
            _ => None,
        }
    }

    /// The word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ContainerState::Creating => "creating",
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited => "exited",
            ContainerState::Removing => "removing",
            ContainerState::Unknown => "unknown",
        }
    }
}

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Its creation has begun; if its creator is dead it never finishes.
    Creating,
    /// Its supervisor lives and containers may run in it.
    Ready,
    /// Its stop has begun.
    Stopping,
    /// Nothing of it runs.
    NotReady,
    /// Its removal has begun.
    Removing,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxEvent {
    /// Supervisor, namespaces and network are there.
    Ready,
    /// Its stop begins.
    Stopping,
    /// All of it is stopped and released.
    Stopped,
    /// Its supervisor is proven dead.
    Lost,
    /// Its removal begins.
    Removing,
}

impl SandboxState {
    /// The state after `event`, or `None` where the event cannot happen.
    pub fn next(self, event: SandboxEvent) -> Option<SandboxState> {
        use {SandboxEvent as E, SandboxState as S};
        match (self, event) {
            (S::Creating | S::Ready, E::Ready) => Some(S::Ready),
            (S::Ready | S::Stopping | S::NotReady, E::Stopping) => {
                Some(if self == S::NotReady { S::NotReady } else { S::Stopping })
            }
            (S::Stopping | S::NotReady, E::Stopped) => Some(S::NotReady),
            (S::Ready | S::Stopping | S::NotReady, E::Lost) => Some(S::NotReady),
            (S::Creating | S::NotReady | S::Removing, E::Removing) => Some(S::Removing),
            _ => None,
        }
    }

    /// The word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SandboxState::Creating => "creating",
            SandboxState::Ready => "ready",
            SandboxState::Stopping => "stopping",
            SandboxState::NotReady => "notready",
            SandboxState::Removing => "removing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The model: what a bystander who only counts would say of a container.
    #[derive(Default)]
    struct Model {
        created: bool,
        started: bool,
        ended: bool,
        removing: bool,
    }

    impl Model {
        fn step(&mut self, event: ContainerEvent) -> bool {
            let ok = match event {
                ContainerEvent::Created => !self.started && !self.ended && !self.removing,
                ContainerEvent::Started => self.created && !self.ended && !self.removing,
                ContainerEvent::Exited | ContainerEvent::Lost => self.created && !self.removing,
                ContainerEvent::Removing => true,
            };
            if ok {
                match event {
                    ContainerEvent::Created => self.created = true,
                    ContainerEvent::Started => self.started = true,
                    ContainerEvent::Exited | ContainerEvent::Lost => self.ended = true,
                    ContainerEvent::Removing => self.removing = true,
                }
            }
            ok
        }

        fn state(&self) -> ContainerState {
            match self {
                Model { removing: true, .. } => ContainerState::Removing,
                Model { ended: true, .. } => ContainerState::Exited,
                Model { started: true, .. } => ContainerState::Running,
                Model { created: true, .. } => ContainerState::Created,
                _ => ContainerState::Creating,
            }
        }
    }

    fn container_event() -> impl Strategy<Value = ContainerEvent> {
        prop_oneof![
            Just(ContainerEvent::Created),
            Just(ContainerEvent::Started),
            Just(ContainerEvent::Exited),
            Just(ContainerEvent::Lost),
            Just(ContainerEvent::Removing),
        ]
    }

    fn sandbox_event() -> impl Strategy<Value = SandboxEvent> {
        prop_oneof![
            Just(SandboxEvent::Ready),
            Just(SandboxEvent::Stopping),
            Just(SandboxEvent::Stopped),
            Just(SandboxEvent::Lost),
            Just(SandboxEvent::Removing),
        ]
    }

    proptest! {
        #[test]
        fn a_container_moves_as_the_model_does(events in prop::collection::vec(container_event(), 0..40)) {
            let (mut state, mut model) = (ContainerState::Creating, Model::default());
            for event in events {
                let next = state.next(event);
                prop_assert_eq!(next.is_some(), model.step(event), "{:?} in {:?}", event, state);
                state = next.unwrap_or(state);
                prop_assert_eq!(state, model.state());
            }
        }

        #[test]
        fn a_sandbox_is_removed_only_when_nothing_of_it_runs(events in prop::collection::vec(sandbox_event(), 0..40)) {
            let mut state = SandboxState::Creating;
            for event in events {
                if let Some(next) = state.next(event) {
                    if next == SandboxState::Removing {
                        prop_assert!(!matches!(state, SandboxState::Ready | SandboxState::Stopping));
                    }
                    prop_assert_eq!(next.next(event), Some(next), "a repeated event changes nothing");
                    state = next;
                }
            }
        }
    }

    #[test]
    fn unknown_is_shown_and_never_left_by_an_event() {
        assert_eq!(ContainerState::Unknown.next(ContainerEvent::Removing), None);
    }
}
