//! The pod engine: it makes sandboxes and containers, keeps their records, and finds them again.
//!
//! There is no daemon. Every process that opens the engine on the same state folder sees the same pods, because the
//! truth lies in files and locks ([`record`], [`lock`]) and in the supervisors, one for each pod. Every act is
//! recorded as an intent first and may be retried; so there is nothing to recover at the start, only to look at.
//!
//! | what | where |
//! |---|---|
//! | [`Engine`], finding things, taking turns, calling supervisors | `engine`, `turns`, `client`, `supervisor` |
//! | a sandbox's life, and how its making is undone; its volumes | `sandbox`, `undo`, `names`, `volume` |
//! | a container's life, what it is now | `container`, `observe`, `isolation`, `spec`, `update` |
//! | the tree of pods' cgroups, ids for pods' user namespaces | `qos`, `ranges` |
//! | what runs the containers | [`handler`], `program` |
//! | what containers and pods use | [`stats`] |
//! | commands in it, its streams, connections into its pod | `exec`, `exec_sync`, `family`, `dial`, `dial_address` |
//! | what happens to them, told as it happens | [`events`] |
//! | what a crash leaves | `doctor`, `recover`, `cgroup` |

mod cgroup;
pub mod client;
pub mod config;
mod container;
mod dial;
mod doctor;
mod engine;
pub mod error;
pub mod events;
mod exec;
mod exec_sync;
mod family;
pub mod handler;
pub mod id;
mod isolation;
pub mod lock;
mod names;
pub mod net;
mod observe;
mod program;
mod qos;
mod ranges;
pub mod record;
mod recover;
mod sandbox;
pub mod seccomp_default;
pub mod signal;
pub mod spec;
pub mod stats;
pub mod status;
mod supervisor;
mod sys;
mod turns;
pub mod types;
mod undo;
mod update;
mod volume;

pub use config::{Deadlines, EngineConfig, Paths};
pub use dial::Dialled;
pub use doctor::{Action, Finding};
pub use engine::Engine;
pub use error::{Error, Result};
pub use exec::{Output, OutputStream, Session, SessionControl, Stdin};
pub use exec_sync::ExecOutcome;
pub use handler::{Handler, HandlerSettings, Handlers};
pub use lock::LifeLock;
pub use program::{find_program, is_program};
pub use status::{ContainerState, SandboxState};
pub use types::*;
