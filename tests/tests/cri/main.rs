//! The CRI server as a whole, driven by clients that are not ours.

mod bad;
mod calls;
mod handlers;
mod images;
mod life;
mod many;
mod node;
mod python;
mod retry;
mod server;
mod spans;
