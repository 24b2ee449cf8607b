//! The supervisor over its sockets: the real program, driven by a client of the tests' own.
//!
//! Each test has a pod of its own in a scratch directory, with cgroups of its own name; both go when the test ends.

mod pod;

mod hostile;
mod lifecycle;
mod loggers;
mod memory;
mod robust;
mod sandbox;
mod streams;
