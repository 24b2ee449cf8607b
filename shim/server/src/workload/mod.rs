//! From documents to running pods, and back.
//!
//! - [`input`] reads files, folders and standard input;
//! - [`store`] keeps what their pods refer to;
//! - [`launch`] starts pods and lets go of them: all of a call's pods, or none;
//! - [`preview`] shows what would be done;
//! - [`job`] decides which pods of a Job are due, and makes them when others have ended.
//!
//! Workloads keep no process: a Deployment's pods start again in place, by their restart policy, and a Job's next pod is
//! made by whoever tends the one that has ended ([`tended`]).

pub mod input;
pub mod job;
pub mod launch;
pub mod preview;
pub mod store;

pub use job::tended;
