//! The CRI server as a whole, driven by clients that are not ours.

mod images;
mod life;
mod node;
mod retry;
