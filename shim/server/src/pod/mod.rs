//! The life of a local pod: what kubelet does for a node, without a process that stays.
//!
//! A pod is a sandbox of the engine with three files of ours in its folder ([`keep`]). Whoever tends it ([`tender`])
//! holds its `tender.lock`, looks at its containers, asks [`policy`] what to do, does it, and looks again. With
//! `coracle run` that is the command itself for as long as it is in the foreground; otherwise the pod's supervisor
//! starts `coracle tend` when a container has ended and nobody tends, which leaves when there is nothing to do but to
//! wait for a running container. A pod that somebody has to be there for ([`needs`]) has `coracle tend` stay; its
//! supervisor starts it again when it dies.

pub mod class;
pub mod condition;
pub mod describe;
pub mod env;
pub mod events;
pub mod facts;
pub mod hook;
pub mod images;
pub mod keep;
pub mod kill;
pub mod logs;
pub mod making;
pub mod message;
pub mod needs;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod print;
pub mod probe;
pub mod qos;
pub mod reach;
pub mod secure;
pub mod select;
pub mod tasks;
pub mod tender;
pub mod view;
pub mod volume;
