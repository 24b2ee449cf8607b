//! What containerd, and only containerd, has to do with: it begins this program as its runtime handler.
//!
//! | from containerd | to it |
//! |---|---|
//! | flags and variables: its namespace, sockets and program ([`Containerd`]) | the address, in the form it knows ([`start`]) |
//! | standard input: the options of the container | events of tasks ([`events`]) |
//! | the working directory: the bundle of the first container | |
//!
//! Containers of one pod share a supervisor: the annotations that containerd's CRI gives them name its group. The rest,
//! the task API, is the same as for our own engine, which gives no address and is sent no events.

pub mod events;
pub mod start;

use std::path::PathBuf;

/// Where containerd can be reached, and what it understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containerd {
    /// The namespace of the tasks (`default`, `k8s.io`, `moby`).
    pub namespace: String,
    /// Its main socket.
    pub address: PathBuf,
    /// Its ttrpc socket, where events go; empty if it has told of none.
    pub ttrpc_address: PathBuf,
    /// The newest version of shims it knows; containerd 1.6, which knows but one, does not tell.
    pub max_version: Option<u32>,
}

impl Containerd {
    /// From the flags, completed by the environment.
    pub fn new(namespace: String, address: PathBuf) -> Containerd {
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
        let max_version = variable("MAX_SHIM_VERSION").to_str().and_then(|text| text.parse().ok());
        let ttrpc_address = variable("TTRPC_ADDRESS").into();
        Containerd { namespace, address, ttrpc_address, max_version }
    }
}
