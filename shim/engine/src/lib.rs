//! The pod engine: it makes sandboxes and containers, keeps their records, and finds them again.
//!
//! There is no daemon. Every process that opens the engine on the same state folder sees the same pods, because the
//! truth lies in files and locks ([`record`], [`lock`]) and in the supervisors, one for each pod. Every act is
//! recorded as an intent first and may be retried; opening the engine is also the recovery from a crash.

pub mod client;
pub mod config;
pub mod error;
pub mod id;
pub mod lock;
pub mod net;
pub mod record;
pub mod seccomp_default;
pub mod status;
pub mod types;

pub use config::{Deadlines, EngineConfig, Paths};
pub use error::{Error, Result};
pub use status::{ContainerState, SandboxState};
pub use types::*;
