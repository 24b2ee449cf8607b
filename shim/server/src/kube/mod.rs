//! Kubernetes YAML: from a file's text to validated pods, in three steps that each know nothing of the next.
//!
//! ```text
//! text --yaml--> located tree --raw--> what the file says, field by field --pod--> what it means
//! ```
//!
//! - [`yaml`] parses documents into a tree in which each node knows its line and column, within limits.
//! - [`raw`] lists the fields of the Kubernetes types. Each field that exists is known: it is either read, or
//!   refused by name as not honoured yet; a name that does not exist gets a suggestion.
//! - [`pod`] validates as the API server does, fills in the defaults, and gives the only types the rest uses.

pub mod bytes;
pub mod config;
pub mod container;
pub mod env;
pub mod expand;
pub mod fault;
pub mod later;
pub mod lifecycle;
pub mod meta;
pub mod mount;
pub mod names;
pub mod pod;
pub mod quantity;
pub mod raw;
pub mod resources;
pub mod security;
pub mod service;
pub mod storage;
pub mod volume;
pub mod yaml;

pub use fault::Fault;
