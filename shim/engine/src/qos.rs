//! The tree of pods' cgroups, as kubelet's:
//!
//! ```text
//! PARENT/pod<id>              Guaranteed
//! PARENT/burstable/pod<id>    Burstable; the branch weighs as much as its pods ask for
//! PARENT/besteffort/pod<id>   BestEffort; the branch weighs as little as can be
//! ```
//!
//! So pods that asked for nothing share what the others leave, however many they are. The branches stay when their last
//! pod goes; they hold nothing.

use crate::cgroup;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::status::SandboxState;
use crate::types::{Qos, Resources};

/// The least `cpu.shares`, and that of a branch nobody asks anything of.
const MIN_SHARES: u64 = 2;
/// The most.
const MAX_SHARES: u64 = 262_144;

impl Qos {
    /// The cgroup whose child a pod of this class is.
    pub fn branch(self, parent: &str) -> String {
        let parent = parent.trim_end_matches('/');
        match self {
            Qos::Guaranteed => parent.to_owned(),
            Qos::Burstable => format!("{parent}/burstable"),
            Qos::BestEffort => format!("{parent}/besteffort"),
        }
    }
}

impl Engine {
    /// Refuses limits where there are no cgroups to enforce them. A weight is no limit: without cgroups nobody is
    /// weighed.
    pub(crate) fn check_limits(&self, resources: &Resources) -> Result<()> {
        if self.config.cgroups {
            return Ok(());
        }
        let r = resources;
        let asked = [
            ("cpu", r.cpu_quota.is_some_and(|quota| quota > 0)),
            ("cpuset", r.cpuset_cpus.is_some() || r.cpuset_mems.is_some()),
            ("memory", [r.memory, r.memory_swap].into_iter().flatten().any(|limit| limit > 0)),
            ("pids", r.pids.is_some_and(|limit| limit > 0)),
            ("hugepages", !r.hugepage_limits.is_empty()),
            ("unified", !r.unified.is_empty()),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            None => Ok(()),
            Some((name, _)) => Err(Error::invalid(
                format!("resources.limits.{name}"),
                "this user has no cgroup that could enforce it (on cgroup v2, systemd delegates one: \
                 systemd-run --user --scope -p Delegate=yes coracle ...)",
            )),
        }
    }

    /// Gives a branch its weight, as its pods are now.
    pub(crate) fn weigh(&self, qos: Qos) -> Result<()> {
        if !self.config.cgroups {
            return Ok(());
        }
        let shares = match qos {
            Qos::Guaranteed => return Ok(()),
            Qos::BestEffort => MIN_SHARES,
            Qos::Burstable => self.burstable_shares()?,
        };
        cgroup::set_shares(&qos.branch(&self.config.cgroup_parent), shares.clamp(MIN_SHARES, MAX_SHARES))
    }

    fn burstable_shares(&self) -> Result<u64> {
        // One whose record cannot be read is told of by doctor; it weighs nothing.
        let records = self.sandbox_ids()?.into_iter().filter_map(|id| self.sandbox_record(&id).ok());
        let live = records.filter(|r| matches!(r.state, SandboxState::Creating | SandboxState::Ready));
        let shares = live.filter(|r| r.config.qos == Qos::Burstable).filter_map(|r| r.config.resources.cpu_shares);
        Ok(shares.fold(0, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_branch() {
        assert_eq!(Qos::Guaranteed.branch("/coracle/"), "/coracle");
        assert_eq!(Qos::Burstable.branch("/coracle"), "/coracle/burstable");
        assert_eq!(Qos::BestEffort.branch("/coracle"), "/coracle/besteffort");
    }
}
