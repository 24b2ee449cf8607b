//! Images as files: OCI layouts (a directory, or a tar of one) and docker archives (`docker save`), in and out.
//!
//! ```text
//! place.rs   a directory or a tar archive as a set of named files
//! load.rs    what images are in it, each as a `Source`: from there on it is a pull
//! save.rs    images of the store to a layout or an archive
//! ```
//!
//! An archive may be compressed with gzip or zstd, and may come from a pipe; it is then spooled into the store's scratch
//! space, because the files in it must be read out of order.

mod load;
mod place;
pub(crate) mod save;

pub use save::Format;
