//! What containerd, and only containerd, has to do with: it begins this program as its runtime handler.
//!
//! | from containerd | to it |
//! |---|---|
//! | flags and variables: its namespace, sockets and program ([`Containerd`]) | the address, in the form it knows ([`start`]) |
//! | standard input: parameters ([`bootstrap`]) and runtime options ([`options`]) | events of tasks ([`news`], [`events`]) |
//! | the working directory: the bundle of the first container | what we are, when it asks ([`info`]) |
//!
//! With `Vm = true` among the options the pod is in a virtual machine ([`machine`]).
//!
//! Containers of one pod share a supervisor: the annotations that containerd's CRI gives them name its group. The rest,
//! the task API, is the same as for our own engine, which gives no address and is sent no events.

pub mod bootstrap;
pub mod events;
pub mod info;
pub mod machine;
pub mod news;
pub mod options;
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
    /// It wrote parameters to our standard input, and reads the answer to them.
    pub bootstrap: bool,
    /// Where it wants our socket.
    pub socket_folder: Option<PathBuf>,
}

impl Containerd {
    /// From the flags, completed by the environment.
    pub fn new(namespace: String, address: PathBuf) -> Containerd {
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
        let max_version = variable("MAX_SHIM_VERSION").to_str().and_then(|text| text.parse().ok());
        let ttrpc_address = variable("TTRPC_ADDRESS").into();
        let (bootstrap, socket_folder) = (false, None);
        Containerd { namespace, address, ttrpc_address, max_version, bootstrap, socket_folder }
    }

    #[cfg(test)]
    pub fn for_tests(namespace: &str, address: &str) -> Containerd {
        Containerd {
            namespace: namespace.into(),
            address: address.into(),
            ttrpc_address: PathBuf::new(),
            max_version: None,
            bootstrap: false,
            socket_folder: None,
        }
    }
}
