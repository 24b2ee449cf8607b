//! Capabilities: the default set, what is added and dropped, and what this host can give at all.

use crate::error::{Error, Result};
use crate::types::Security;

/// Every capability, in the kernel's order, without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has by default: containerd's and Docker's fourteen.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const ALL: &str = "ALL";

/// A set of capabilities as the kernel's bits.
pub type Bits = u64;

/// All that has a name.
const KNOWN: Bits = (1 << NAMES.len()) - 1;

/// What there is to give: what this process may hand on, and in a virtual machine everything, whose kernel is the pod's own.
pub fn available(guest: bool) -> Bits {
    if guest {
        return KNOWN;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    line.and_then(|hex| Bits::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// The capabilities of a container, sorted by the kernel's number, with their `CAP_` names.
pub fn resolve(security: &Security, available: Bits) -> Result<Vec<String>> {
    let known = available & KNOWN;
    let mut set = if security.privileged { known } else { bits(&DEFAULT) & known };
    let has = |list: &[String], word| list.iter().any(|c| c.eq_ignore_ascii_case(word));
    if has(&security.add_capabilities, ALL) {
        set = known;
    }
    if has(&security.drop_capabilities, ALL) {
        set = 0;
    }
    let added = security.add_capabilities.iter().filter(|n| !n.eq_ignore_ascii_case(ALL));
    for name in added.chain(&security.add_ambient_capabilities) {
        let bit = bit("capabilities.add", name)?;
        if available & bit == 0 {
            return Err(Error::invalid("capabilities.add", format!("{name}: this host does not have it to give")));
        }
        set |= bit;
    }
    for name in security.drop_capabilities.iter().filter(|n| !n.eq_ignore_ascii_case(ALL)) {
        set &= !bit("capabilities.drop", name)?;
    }
    Ok(NAMES.iter().enumerate().filter(|(n, _)| set & (1 << n) != 0).map(|(_, name)| format!("CAP_{name}")).collect())
}

/// The ambient capabilities, with their `CAP_` names. They are in all the other sets as well.
pub fn ambient(security: &Security) -> Result<Vec<String>> {
    let mut set = 0;
    for name in &security.add_ambient_capabilities {
        set |= bit("capabilities.add_ambient", name)?;
    }
    Ok(NAMES.iter().enumerate().filter(|(n, _)| set & (1 << n) != 0).map(|(_, name)| format!("CAP_{name}")).collect())
}

fn bits(names: &[&str]) -> Bits {
    NAMES.iter().enumerate().filter(|(_, n)| names.contains(n)).fold(0, |set, (n, _)| set | 1 << n)
}

fn bit(field: &str, name: &str) -> Result<Bits> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let at = NAMES.iter().position(|n| *n == plain);
    at.map(|n| 1 << n).ok_or_else(|| Error::invalid(field, format!("{name:?} is no capability")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Bits = Bits::MAX;

    fn caps(add: &[&str], drop: &[&str]) -> Result<Vec<String>> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let security = Security { add_capabilities: own(add), drop_capabilities: own(drop), ..Default::default() };
        resolve(&security, EVERYTHING)
    }

    #[test]
    fn the_default_is_the_known_fourteen() {
        let set = caps(&[], &[]).unwrap();
        assert_eq!(set.len(), 14);
        assert!(set.contains(&"CAP_KILL".to_owned()) && !set.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn adding_and_dropping_takes_both_spellings_and_all() {
        assert_eq!(caps(&["net_bind_service"], &["ALL"]).unwrap(), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(caps(&["all"], &[]).unwrap().len(), NAMES.len());
        assert!(!caps(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()));
        assert!(caps(&["SYS_FOO"], &[]).unwrap_err().to_string().contains("SYS_FOO"));
    }

    #[test]
    fn what_the_host_lacks_is_refused_when_asked_for_by_name() {
        let without = EVERYTHING & !(1 << 24);
        let ask = Security { add_capabilities: vec!["SYS_RESOURCE".into()], ..Default::default() };
        assert!(resolve(&ask, without).unwrap_err().to_string().contains("SYS_RESOURCE"));
        let privileged = Security { privileged: true, ..Default::default() };
        assert_eq!(resolve(&privileged, without).unwrap().len(), NAMES.len() - 1);
    }
}
