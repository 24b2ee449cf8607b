//! The supervisor as the init of a virtual machine.

#[allow(dead_code)] // the init that calls it is being built
pub mod net;
