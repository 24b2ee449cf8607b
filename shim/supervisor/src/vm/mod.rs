//! A pod's virtual machine, on the machine's side.

#[allow(dead_code)] // the machine that calls it is being built
pub mod net;
