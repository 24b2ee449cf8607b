//! The wire contracts of coracle and nothing else: messages generated from the `.proto` files in `proto/`, and the
//! framing around them. Nothing here does I/O, so the supervisor's poll loop and the engine's async client share it.
//!
//! - [`task`], [`sandbox`], [`events`], [`types`], [`task_types`], [`runc`]: containerd's shim v2 API;
//! - [`cgroups_v1`], [`cgroups_v2`]: what `Task.Stats` answers;
//! - [`coracle`]: our own sandbox options and control service;
//! - [`ttrpc`]: the transport's frames, status codes, and the names of services and methods;
//! - [`attach`]: the frames of the attach socket;
//! - [`netlink`]: the kernel's requests about networks;
//! - [`link`]: byte streams over the port of a virtual machine;
//! - [`family`]: what a command has started, as the kernel tells;
//! - [`any`]: packing and unpacking of `google.protobuf.Any`, and the type urls of JSON payloads.

pub mod any;
pub mod attach;
pub mod family;
pub mod link;
pub mod netlink;
pub mod ttrpc;

mod time;

/// The server of shared folders that comes with QEMU 7.2: what `VmOptions.host_paths` needs on the machine.
pub const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// The output of prost, in the module tree of the proto packages.
#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}

/// `runtime.v1`: the Kubernetes CRI, its messages and its two services.
#[cfg(feature = "cri")]
#[allow(missing_docs, clippy::all)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// `grpc.health.v1`: what gRPC probes ask.
#[cfg(feature = "cri")]
#[allow(missing_docs, clippy::all)]
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// `containerd.runtime.bootstrap.v1`: how containerd since 2.3 starts a shim.
pub use generated::containerd::runtime::bootstrap::v1 as bootstrap;
/// `containerd.runtime.sandbox.v1`: messages of the sandbox service.
pub use generated::containerd::runtime::sandbox::v1 as sandbox;
/// `containerd.task.v2`: messages of the task service, used unchanged by `containerd.task.v3`.
pub use generated::containerd::task::v2 as task;
/// `containerd.types`: mounts, platforms, metrics, event envelopes.
pub use generated::containerd::types;
/// `containerd.v1.types`: task status and process descriptions.
pub use generated::containerd::v1::types as task_types;
/// `containerd.events`: what shims tell containerd.
pub use generated::containerd::{events, runc::v1 as runc, services::events::ttrpc::v1 as event_service};
/// The part of CRI's `PodSandboxConfig` that makes a sandbox, without the rest of the CRI.
pub use generated::coracle::podsandbox as pod_sandbox;
/// `coracle.v1`: sandbox options and the control service.
pub use generated::coracle::v1 as coracle;
/// `google.protobuf.Any`, `Timestamp`, `Empty`, and `google.rpc.Status`.
pub use generated::google::{
    protobuf::{Any, Empty, Timestamp},
    rpc::Status,
};
/// `io.containerd.cgroups.v1` and `.v2`: statistics.
pub use generated::io::containerd::cgroups::{v1 as cgroups_v1, v2 as cgroups_v2};
/// `runtimeoptions.v1`: what containerd tells shims whose own options it does not know.
pub use generated::runtimeoptions::v1 as runtime_options;

/// For callers who encode and decode: the trait, without naming prost in their manifest.
pub use prost::{DecodeError, Message, Name};
