//! Why the pod network failed.

use std::io;
use std::path::{Path, PathBuf};

use super::ip::Subnet;
use super::nl::Refusal;

/// Why the pod network failed. Each is one line with operation, object and source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing}: {why}")]
    Kernel {
        /// Operation and object.
        doing: String,
        /// The errno, and the kernel's own words.
        why: String,
    },
    /// A file of ours, or of /proc.
    #[error("{doing} {path}: {why}")]
    File {
        /// Operation.
        doing: &'static str,
        /// Object.
        path: PathBuf,
        /// Source.
        why: io::Error,
    },
    /// `nft` failed.
    #[error("make nftables table inet {table}: {words}")]
    Nft {
        /// The table.
        table: String,
        /// What nft said.
        words: String,
    },
    /// The subnet is in use by something else.
    #[error("subnet {subnet} overlaps the route {route} (choose another subnet in [network] of the config)")]
    SubnetTaken {
        /// Ours.
        subnet: Subnet,
        /// Theirs.
        route: String,
    },
    /// No address is left.
    #[error("pod subnet {subnet} has no free address: {held} are held (coracle gc clears those of dead pods)")]
    Exhausted {
        /// The subnet.
        subnet: String,
        /// How many addresses are held.
        held: usize,
    },
    /// A port of the host is not free.
    #[error("hostPort {port} is taken by {owner}")]
    PortTaken {
        /// The port.
        port: String,
        /// The pod or process that has it.
        owner: String,
    },
    /// A CNI plugin failed, or its answer makes no sense.
    #[error("CNI network {network}: plugin {plugin}: {command}: {words}")]
    Plugin {
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// What it was asked for.
        command: &'static str,
        /// What it said, or did.
        words: String,
    },
    /// There is no network for pods.
    #[error("the pod network is not ready: {0}")]
    NotReady(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(super) fn kernel(doing: impl Into<String>, why: Refusal) -> Error {
        Error::Kernel { doing: doing.into(), why: why.to_string() }
    }

    pub(super) fn file(doing: &'static str, path: &Path, why: io::Error) -> Error {
        Error::File { doing, path: path.to_owned(), why }
    }
}
