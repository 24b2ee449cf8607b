//! Names of system calls and their numbers in each ABI of this machine.
//!
//! One table for all, hashed at compile time: a profile names some 400 calls for three ABIs, and matching each name against
//! the lists of the `syscalls` crate one after the other would take longer than everything else together.

/// Calls of x86_64 whose number differs on x32: those that pass pointers to structures of pointers or longs.
const X32_OWN: &[(&str, i16)] = &[
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// Calls of x86_64 that x32 does not have.
const NOT_ON_X32: &[&str] = &[
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// i386 calls that can also be made through `socketcall` (102), with their number there.
const SOCKETCALL: &[(&str, u8)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// i386 calls that can also be made through `ipc` (117), with their number there.
const IPC: &[(&str, u8)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The i386 calls that carry others.
const NR_SOCKETCALL: u8 = 102;
const NR_IPC: u8 = 117;
/// Marks the numbers of x32 among those of x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The numbers of one name, small: a cold start reads the table from page to page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    name: &'static str,
    /// -1 where the ABI has no such call.
    x86_64: i16,
    /// Without [`X32_BIT`].
    x32: i16,
    i386: i16,
    /// i386: the call that carries this one too (0: none), and the first argument that selects it there.
    carrier: u8,
    selector: u8,
}

impl Numbers {
    const EMPTY: Numbers = Numbers { name: "", x86_64: -1, x32: -1, i386: -1, carrier: 0, selector: 0 };

    /// On x86_64.
    pub fn x86_64(&self) -> Option<u32> {
        u32::try_from(self.x86_64).ok()
    }

    /// On x32, with [`X32_BIT`].
    pub fn x32(&self) -> Option<u32> {
        u32::try_from(self.x32).ok().map(|number| number | X32_BIT)
    }

    /// On i386, made directly.
    pub fn i386(&self) -> Option<u32> {
        u32::try_from(self.i386).ok()
    }

    /// On i386, the call that carries this one too, and the first argument that selects it there.
    pub fn i386_through(&self) -> Option<(u32, u32)> {
        (self.carrier != 0).then_some((self.carrier.into(), self.selector.into()))
    }
}

/// A power of two with room enough that probing stays short (some 530 names).
const SLOTS: usize = 1024;

static TABLE: [Numbers; SLOTS] = build();

/// The numbers of a system call, by the kernel's name for it.
pub(super) fn lookup(name: &str) -> Option<&'static Numbers> {
    let found = &TABLE[slot(&TABLE, name)];
    (!found.name.is_empty()).then_some(found)
}

/// The slot that holds a name, or the empty one where it would be.
const fn slot(table: &[Numbers; SLOTS], name: &str) -> usize {
    // FNV-1a.
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    let mut slot = hash as usize % SLOTS;
    while !table[slot].name.is_empty() && !same(table[slot].name, name) {
        slot = (slot + 1) % SLOTS;
    }
    slot
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

const fn contains(list: &[&str], name: &str) -> bool {
    let mut at = 0;
    while at < list.len() {
        if same(list[at], name) {
            return true;
        }
        at += 1;
    }
    false
}

const fn build() -> [Numbers; SLOTS] {
    let mut table = [Numbers::EMPTY; SLOTS];
    let mut number = 0;
    while number <= syscalls::x86_64::Sysno::last().id() as usize {
        if let Some(call) = syscalls::x86_64::Sysno::new(number) {
            let name = call.name();
            let at = slot(&table, name);
            table[at].name = name;
            table[at].x86_64 = number as i16;
            table[at].x32 = if contains(NOT_ON_X32, name) { -1 } else { number as i16 };
        }
        number += 1;
    }
    number = 0;
    while number <= syscalls::x86::Sysno::last().id() as usize {
        if let Some(call) = syscalls::x86::Sysno::new(number) {
            let name = call.name();
            let at = slot(&table, name);
            table[at].name = name;
            table[at].i386 = number as i16;
        }
        number += 1;
    }
    number = 0;
    while number < X32_OWN.len() {
        let at = slot(&table, X32_OWN[number].0);
        table[at].x32 = X32_OWN[number].1;
        number += 1;
    }
    table = add_carried(table, SOCKETCALL, NR_SOCKETCALL);
    add_carried(table, IPC, NR_IPC)
}

const fn add_carried(
    mut table: [Numbers; SLOTS],
    list: &'static [(&'static str, u8)],
    carrier: u8,
) -> [Numbers; SLOTS] {
    let mut at = 0;
    while at < list.len() {
        let (name, selector) = list[at];
        let slot = slot(&table, name);
        table[slot].name = name;
        table[slot].carrier = carrier;
        table[slot].selector = selector;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_each_abi() {
        let numbers = |name| {
            let n = lookup(name).unwrap();
            (n.x86_64(), n.x32().map(|n| n & !X32_BIT), n.i386(), n.i386_through())
        };
        assert_eq!(numbers("read"), (Some(0), Some(0), Some(3), None));
        assert_eq!(numbers("ioctl"), (Some(16), Some(514), Some(54), None));
        assert_eq!(numbers("socket"), (Some(41), Some(41), Some(359), Some((102, 1))));
        assert_eq!(numbers("semop"), (Some(65), Some(65), None, Some((117, 1))));
        assert_eq!(numbers("send"), (None, None, None, Some((102, 9))));
        assert_eq!(numbers("chown32"), (None, None, Some(212), None));
        assert_eq!(numbers("set_thread_area"), (Some(205), None, Some(243), None));
        assert_eq!(lookup("no_such_call"), None);
        assert_eq!(lookup(""), None);
    }

    #[test]
    fn every_call_of_the_crate_is_found_under_its_name() {
        for call in syscalls::x86_64::Sysno::iter() {
            assert_eq!(lookup(call.name()).unwrap().x86_64(), Some(call.id() as u32), "{call}");
        }
        for call in syscalls::x86::Sysno::iter() {
            assert_eq!(lookup(call.name()).unwrap().i386(), Some(call.id() as u32), "{call}");
        }
    }

    #[test]
    fn the_lists_of_exceptions_name_calls_that_exist() {
        let names = X32_OWN.iter().map(|(name, _)| *name).chain(NOT_ON_X32.iter().copied());
        for name in names {
            assert!(lookup(name).is_some_and(|n| n.x86_64().is_some()), "{name}");
        }
    }
}
