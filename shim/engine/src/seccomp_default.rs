//! The built-in seccomp profile: what Kubernetes calls `RuntimeDefault`.
//!
//! An allow list with EPERM for all else. It allows what the profiles of containerd and docker allow, so that an image
//! which runs there runs here; the list is kept by subject, with the calls of all ABIs of a machine together, since a
//! name that an ABI does not know means nothing there. Some calls are allowed only to holders of a capability, without
//! which the kernel would refuse them anyway, or with which there is nothing left to protect.
//!
//! What it keeps out, above all: new namespaces and mounts (`unshare`, `mount`, `clone` with namespace flags), kernel
//! modules and `kexec`, keyrings, `bpf`, `perf_event_open`, `userfaultfd`, `io_uring`, and sockets of the families AF_ALG and
//! AF_VSOCK, which reach the kernel's crypto code and the hypervisor past every network namespace.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Files: opening, reading, writing, seeking.
#[rustfmt::skip] // one name a line would take six pages
const FILE_IO: &[&str] = &[
    "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "fadvise64", "fadvise64_64", "fallocate",
    "fcntl", "fcntl64", "fdatasync", "flock", "fsync", "ftruncate", "ftruncate64", "ioctl", "_llseek", "lseek", "open",
    "openat", "openat2", "pipe", "pipe2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
    "readahead", "readv", "sendfile", "sendfile64", "splice", "sync", "sync_file_range", "syncfs", "tee", "truncate",
    "truncate64", "vmsplice", "write", "writev",
];

/// Names, directories, attributes.
#[rustfmt::skip] // one name a line would take six pages
const FILE_SYSTEM: &[&str] = &[
    "access", "chdir", "chmod", "chown", "chown32", "faccessat", "faccessat2", "fanotify_mark", "fchdir", "fchmod",
    "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr",
    "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "futimesat", "getcwd", "getdents", "getdents64",
    "getxattr", "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "lchown",
    "lchown32", "lgetxattr", "link", "linkat", "listmount", "listxattr", "listxattrat", "llistxattr", "lremovexattr",
    "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat",
    "readlink", "readlinkat", "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "setxattr",
    "setxattrat", "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "umask",
    "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
];

/// Waiting for events, and asynchronous input and output of the old kind.
#[rustfmt::skip] // one name a line would take six pages
const EVENTS: &[&str] = &[
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_setup", "io_submit", "_newselect", "poll", "ppoll", "ppoll_time64", "pselect6",
    "pselect6_time64", "select", "signalfd", "signalfd4",
];

/// Memory.
#[rustfmt::skip] // one name a line would take six pages
const MEMORY: &[&str] = &[
    "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2",
    "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
];

/// Processes and threads: life, signals, scheduling, limits.
#[rustfmt::skip] // one name a line would take six pages
const PROCESSES: &[&str] = &[
    "alarm", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_time64", "futex_wait",
    "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getitimer", "getpgid", "getpgrp",
    "getpid", "getppid", "getpriority", "getrlimit", "getrusage", "getsid", "gettid", "ioprio_get", "ioprio_set",
    "kill", "nanosleep", "pause", "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "process_vm_readv",
    "process_vm_writev", "ptrace", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "set_robust_list",
    "set_thread_area", "set_tid_address", "setitimer", "setpgid", "setpriority", "setrlimit", "setsid", "sigaltstack",
    "sigprocmask", "sigreturn", "tgkill", "times", "tkill", "ugetrlimit", "uretprobe", "vfork", "wait4", "waitid",
    "waitpid",
];

/// Users, groups, capabilities, and the sandboxing of oneself.
#[rustfmt::skip] // one name a line would take six pages
const IDENTITY: &[&str] = &[
    "capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups",
    "getgroups32", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",
    "seccomp", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32",
    "setregid", "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32",
    "setuid", "setuid32",
];

/// Sockets (but `socket` itself), message queues, System V IPC.
#[rustfmt::skip] // one name a line would take six pages
const COMMUNICATION: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "ipc", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendmmsg",
    "sendmsg", "sendto", "setsockopt", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "socketcall", "socketpair",
];

/// Clocks and timers, and facts about the system. Setting the clock needs CAP_SYS_TIME, and the kernel checks it.
#[rustfmt::skip] // one name a line would take six pages
const TIME_AND_SYSTEM: &[&str] = &[
    "adjtimex", "cachestat", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getrandom", "gettimeofday", "sysinfo", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
    "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64",
    "uname",
];

/// Calls of one processor family.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
const PROCESSOR: &[&str] = &["arch_prctl", "modify_ldt"];
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const PROCESSOR: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64", target_arch = "arm")))]
const PROCESSOR: &[&str] = &[];

/// What everyone may call.
const EVERYONE: &[&[&str]] =
    &[FILE_IO, FILE_SYSTEM, EVENTS, MEMORY, PROCESSES, IDENTITY, COMMUNICATION, TIME_AND_SYSTEM, PROCESSOR];

/// What the holder of a capability may call besides.
#[rustfmt::skip] // one name a line would take six pages
const BY_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (
        Capability::SysAdmin,
        &[
            "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
            "mount", "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd",
            "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
];

/// Address families kept out: see the head.
const AF_ALG: u64 = libc::AF_ALG as u64;
const AF_VSOCK: u64 = libc::AF_VSOCK as u64;

/// personality(2): Linux, Linux with 32-bit `uname`, both without address randomization of old programs, and the question.
const PERSONALITIES: &[u64] = &[0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of clone(2) that make namespaces.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// The profile for a container whose bounding set is `capabilities`.
pub fn profile(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut rules: Vec<LinuxSyscall> = EVERYONE.iter().map(|names| allow(names)).collect();
    // Ranges around the two families. One rule with two "not equal" on the same argument would be two alternatives, and any
    // family differs from one of the two.
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpLt, AF_ALG));
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1));
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK));
    rules.extend(PERSONALITIES.iter().map(|p| allow_if("personality", 0, LinuxSeccompOperator::ScmpCmpEq, *p)));
    let held = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    rules.extend(held.map(|(_, names)| allow(names)));
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.push(allow_if("clone", 0, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACE_FLAGS));
        // A filter cannot see the flags of clone3 behind its pointer. ENOSYS makes C libraries use clone.
        let refused = LinuxSyscallBuilder::default().names(["clone3".to_owned()]);
        rules.push(built(refused.action(LinuxSeccompAction::ScmpActErrno).errno_ret(libc::ENOSYS as u32).build()));
    }
    let profile = LinuxSeccompBuilder::default().default_action(LinuxSeccompAction::ScmpActErrno);
    built(profile.architectures(architectures()).syscalls(rules).build())
}

/// The ABIs of this machine's kernel.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        Vec::new()
    }
}

fn allow(names: &[&str]) -> LinuxSyscall {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    built(LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow).build())
}

/// Allows a call while one argument compares so. (For a masked comparison the value is the mask, and all of it must be zero.)
fn allow_if(name: &str, index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSyscall {
    let arg: LinuxSeccompArg = built(LinuxSeccompArgBuilder::default().index(index).op(op).value(value).build());
    let rule = LinuxSyscallBuilder::default().names([name.to_owned()]).action(LinuxSeccompAction::ScmpActAllow);
    built(rule.args([arg]).build())
}

/// The builders of `oci_spec` fail on missing fields only, and every field has a default.
fn built<T, E: std::fmt::Debug>(value: Result<T, E>) -> T {
    value.expect("every field of the OCI type has a default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn unconditional(profile: &LinuxSeccomp) -> Vec<&String> {
        let rules = profile.syscalls().as_ref().unwrap().iter();
        rules
            .filter(|r| r.args().is_none() && r.action() == LinuxSeccompAction::ScmpActAllow)
            .flat_map(|r| r.names())
            .collect()
    }

    #[test]
    fn each_call_is_listed_once() {
        let profile = profile(&[]);
        let names = unconditional(&profile);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() > 350);
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = profile(&[]);
        let admin = profile(&[Capability::SysAdmin, Capability::SysModule]);
        for call in ["mount", "unshare", "setns", "init_module", "clone3", "bpf"] {
            assert!(!unconditional(&plain).iter().any(|n| *n == call), "{call}");
            assert!(unconditional(&admin).iter().any(|n| *n == call), "{call}");
        }
        for call in ["keyctl", "kexec_load", "userfaultfd", "io_uring_setup", "socket", "swapon"] {
            assert!(!unconditional(&admin).iter().any(|n| *n == call), "{call}");
        }
    }

    #[test]
    fn clone_makes_no_namespaces_and_clone3_looks_unknown() {
        let profile = profile(&[]);
        let rules = profile.syscalls().as_ref().unwrap();
        let rule = |name: &str| rules.iter().find(|r| r.names().iter().any(|n| n == name)).unwrap();
        assert_eq!(rule("clone").args().as_ref().unwrap()[0].value(), 0x7e02_0000);
        assert_eq!(rule("clone3").errno_ret(), Some(libc::ENOSYS as u32));
    }
}
