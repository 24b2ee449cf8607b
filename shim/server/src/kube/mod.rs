//! Kubernetes YAML: from a file's text to validated pods and what they refer to, in three steps that each know nothing
//! of the next; [`documents`] takes a document through them by its kind.
//!
//! ```text
//! text --yaml--> located tree --raw--> what the file says, field by field --pod, service, ...--> what it means
//! ```
//!
//! - [`yaml`] parses documents into a tree in which each node knows its line and column, within limits.
//! - [`raw`] lists the fields of the Kubernetes types. Each field that exists is known: it is read, or has no effect on
//!   one machine, or is refused by name; a name that does not exist gets a suggestion.
//! - [`pod`] validates as the API server does, fills in the defaults, and gives the only types the rest uses.

pub mod bytes;
pub mod config;
pub mod container;
pub mod documents;
pub mod env;
pub mod expand;
pub mod fault;
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
pub mod workload;
pub mod yaml;

use std::path::Path;

pub use documents::{Documents, Note, Source, read};
pub use fault::Fault;

/// Whether a file of a folder is named as YAML.
pub fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == "yaml" || suffix == "yml")
}

/// Whether a file of a folder is named as documents are: YAML, or JSON, which is YAML too.
pub fn is_document(path: &Path) -> bool {
    is_yaml(path) || path.extension().is_some_and(|suffix| suffix == "json")
}
