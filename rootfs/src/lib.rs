//! Image reference in, root filesystem out.
//!
//! | module | what it is for |
//! |---|---|
//! | [`reference`] | image names, whole and checked |
//! | [`digest`], [`platform`] | the names of content and of machines |
//! | [`source`] | what a place that has images offers |
//! | [`progress`] | how far a long operation has come |
//! | [`error`] | the one error type |

pub mod digest;
pub mod error;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod source;

pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use platform::Platform;
pub use progress::{Progress, ProgressEvent};
pub use reference::Reference;
pub use source::{Descriptor, Source};
