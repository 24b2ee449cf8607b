//! The low-level OCI runtime as a library.

pub mod cgroup;
pub mod seccomp;
