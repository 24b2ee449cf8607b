//! Pods in virtual machines, by the front doors. They need QEMU and the kernel that `scripts/guest-kernel` makes, in
//! /usr/lib/coracle/vm or where `CORACLE_VM_KERNEL` says; without KVM they are emulated. One test at a time has a machine.

#[allow(dead_code)] // it is the streaming tests'
#[path = "../streaming/client.rs"]
mod client;
mod common;
mod containerd;
mod crash;
mod cri;
mod guest;
mod link;
mod network;
#[allow(dead_code)] // it is the supervisor's tests'
#[path = "../supervisor/pod.rs"]
mod pod;
mod run;
mod share;
#[allow(dead_code)] // it is the streaming tests'
#[path = "../streaming/spdy.rs"]
mod spdy;
mod tasks;
