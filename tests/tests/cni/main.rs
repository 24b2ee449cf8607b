//! CNI by the engine's network: real plugins (Debian's, in /usr/lib/cni), plugins of our own making, and none at all
//! where the engine does their work.
//!
//! Each test has a host of its own: a network namespace, a state folder, a folder of configurations. Real plugins keep
//! addresses in the test's own `dataDir`.

mod common;
mod cri;
mod engine;
mod native;
mod plugins;
mod traffic;
