//! The published ways out of containers, each tried against the runtime under test, and each with a witness that would
//! show it if it worked: a file of the host's, its mounts, a control that does succeed.
//!
//! | class | public identifiers | where |
//! |---|---|---|
//! | the runtime's own program overwritten, by `/proc/PID/exe` and by the image's loader | CVE-2019-5736 | program |
//! | leaked descriptors as working directory or program | CVE-2024-21626 | descriptors |
//! | descriptors and environment that reach hooks, terminals from a false ptmx | - | descriptors |
//! | mount targets, files and folders through symlinks that change meanwhile | CVE-2021-30465, CVE-2024-45310 | races |
//! | false `/dev/null` and `/dev/console` | CVE-2025-31133, CVE-2025-52565 | races |
//! | a false `/proc`, sysctls and labels written to it | CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-52881 | redirects |
//! | traced while it enters; pids used again | CVE-2016-9962 | entering |
//! | capabilities, groups, ids | CVE-2022-29162, CVE-2018-7169, CVE-2024-40635 | privileges |
//! | the caller's keys and terminal | CVE-2016-2568 and its like | privileges |
//! | release_agent, cgroups that can be written, devices, core_pattern, sysfs | CVE-2022-0492, CVE-2023-25809 | kernel |
//! | system calls by another ABI's numbers | - | kernel |
//!
//! Not reproduced: CVE-2020-15257 is of a shim's abstract sockets, and that there are none is asserted in `descriptors`;
//! CVE-2021-43784 is an overflow of a length in runc's own netlink message, and there is no such message here: what it was
//! overflowed with, maps beyond all measure, is in `privileges`.
//!
//! Races get a bounded number of rounds against a process that does nothing but swap names.

#[path = "../oci_support/mod.rs"]
mod oci_support;

mod descriptors;
mod entering;
mod kernel;
mod privileges;
mod program;
mod races;
mod redirects;
mod tools;
