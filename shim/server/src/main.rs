//! `coracle`: Kubernetes pods on one machine, without a cluster.

#[allow(dead_code, reason = "the commands that use it land next")]
mod kube;

fn main() {}
