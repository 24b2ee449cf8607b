//! Image reference in, root filesystem out.
//!
//! | module | what it is for |
//! |---|---|
//! | [`reference`] | image names, whole and checked |
//! | [`digest`], [`platform`] | the names of content and of machines |
//! | [`source`] | what a place that has images offers |
//! | [`registry`], [`hosts`], [`auth`] | such places in the net, how to reach them, what to show them |
//! | [`progress`] | how far a long operation has come |
//! | [`error`] | the one error type |
//! | [`store`] | images, their names, their layers on the disk |
//! | [`archive`] | load and save |
//! | [`unpack`] | one layer from a stream to a directory |
//! | [`verify`] | is it still what was pulled |
//! | [`gc`] | what nobody needs any more goes |
//! | [`overlay`] | an image as the description of a mount |
//! | [`erofs`] | an image as one file, for virtual machines |
//! | [`usage`] | how much of the disk it takes |

pub mod archive;
pub mod auth;
pub mod digest;
pub mod erofs;
pub mod error;
pub mod gc;
pub mod hosts;
pub mod overlay;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;
mod sys;
#[cfg(test)]
mod testing;
pub mod unpack;
pub mod usage;
pub mod verify;

pub use archive::Format;
pub use auth::{Credentials, Keyring};
pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use gc::{GcOptions, GcReport};
pub use overlay::MountSpec;
pub use platform::Platform;
pub use progress::{Progress, ProgressEvent};
pub use reference::Reference;
pub use registry::{Registry, RegistryConfig};
pub use source::{Descriptor, Source};
pub use store::{Image, Lease, PullOptions, Removed, Store};
pub use sys::{in_user_namespace, overlay_marks};
pub use unpack::Limits;
pub use verify::Damage;
