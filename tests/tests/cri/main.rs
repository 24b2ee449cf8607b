//! The CRI server as a whole, driven by clients that are not ours. `life` is asked of containerd with our supervisor, too
//! (`tests/tests/containerd`).

mod bad;
mod calls;
mod handlers;
mod images;
mod life;
mod many;
mod node;
mod ours;
mod python;
mod retry;
mod server;
mod spans;

use coracle_tests::cri::node;
