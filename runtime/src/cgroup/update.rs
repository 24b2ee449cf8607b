//! Changing the limits of a living cgroup: all of what is asked for, or nothing.
//!
//! What an update leaves out keeps its value. Where the kernel takes two values as one (quota and period, memory and swap
//! on v2), the one that is left out is first read from the cgroup.

use std::fs;

use oci_spec::runtime::LinuxResources;

use super::error::{Error, Result};
use super::{Cgroup, Version, plan, systemd, v1, v2};

impl Cgroup {
    /// Changes the limits of a living cgroup. Fields that are absent keep their value; when one is refused, those that
    /// were written before it get their old values back.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        self.require_one("limits")?;
        let mut resources = self.completed(resources)?;
        if self.state.systemd.is_some() {
            resources = systemd::rounded(&resources);
        }
        let steps = match self.state.version {
            Version::V1 => plan::v1(&resources)?,
            Version::V2 => plan::v2(&resources)?,
        };
        let before = self.values(&steps);
        let applied = match self.state.version {
            Version::V1 => v1::apply(self, &resources, &steps),
            Version::V2 => v2::apply(self, &resources, &steps),
        };
        let applied = applied.and_then(|()| match &self.state.systemd {
            Some(unit) => systemd::update(self, unit, &resources),
            None => Ok(()),
        });
        applied.inspect_err(|_| {
            // The error that led here is the one the caller gets; what was in force a moment ago is valid.
            before.iter().for_each(|step| drop(self.execute_step(step)));
        })
    }

    /// The writes that would bring back what `steps` are about to change.
    fn values(&self, steps: &[plan::Step]) -> Vec<plan::Step> {
        let value = |write: &plan::Write| {
            let dir = self.dir_of(write.controller)?;
            let other = write.or_file.as_ref().map(|file| file.split_once('=').map_or(file.as_str(), |(file, _)| file));
            let read = |file: &str| fs::read_to_string(dir.join(file)).ok().map(|text| (file.to_owned(), text));
            let (file, text) = read(&write.file).or_else(|| read(other?))?;
            let field = write.field.clone();
            let (controller, value) = (write.controller, text.trim().to_owned());
            Some(plan::Write { field, controller, file, or_file: None, value, optional: true })
        };
        steps.iter().map(|step| step.iter().filter_map(value).collect()).collect()
    }

    /// The resources with what they leave out of a pair.
    fn completed(&self, resources: &LinuxResources) -> Result<LinuxResources> {
        let mut all = resources.clone();
        // On v1 the kernel keeps each half by itself; systemd takes both.
        if self.state.version == Version::V2 || self.state.systemd.is_some() {
            self.complete_bandwidth(&mut all);
        }
        if self.state.version == Version::V2 {
            self.complete_memory(&mut all)?;
        }
        Ok(all)
    }

    /// The words of a file; none when it cannot be read: then the write of that file tells why.
    fn words(&self, controller: &str, file: &str) -> Vec<String> {
        let text = self.dir_of(controller).and_then(|dir| fs::read_to_string(dir.join(file)).ok()).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn number(&self, controller: &str, file: &str) -> Option<i64> {
        self.words(controller, file).first()?.parse().ok()
    }

    fn complete_bandwidth(&self, resources: &mut LinuxResources) {
        let Some(cpu) = resources.cpu_mut() else { return };
        let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
        if quota.is_some() == period.is_some() {
            return;
        }
        let now = match self.state.version {
            Version::V2 => self.words("cpu", "cpu.max"),
            Version::V1 => ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|f| self.words("cpu", f)).concat(),
        };
        if let [now_quota, now_period] = &now[..] {
            cpu.set_quota(quota.or(Some(now_quota.parse().unwrap_or(-1))));
            cpu.set_period(period.or(now_period.parse().ok()));
        }
    }

    /// The configuration limits memory and swap together, and v2 swap alone: as on v1 the sum stays when one changes.
    fn complete_memory(&self, resources: &mut LinuxResources) -> Result<()> {
        let Some(memory) = resources.memory_mut() else { return Ok(()) };
        let (limit, swap) = (memory.limit().filter(|l| *l != 0), memory.swap().filter(|s| *s != 0));
        match (limit, swap) {
            (None, Some(1..)) => {
                memory.set_limit(Some(self.number("memory", "memory.max").unwrap_or(-1)));
            }
            (Some(limit @ 1..), None) => {
                let now = (self.number("memory", "memory.max"), self.number("memory", "memory.swap.max"));
                let (Some(now_limit), Some(now_swap)) = now else { return Ok(()) };
                let both = now_limit.saturating_add(now_swap);
                if both < limit {
                    let why =
                        format!("{limit} is more than the {both} allowed to memory and swap together: raise both");
                    return Err(Error::refused("linux.resources.memory.limit", why));
                }
                memory.set_swap(Some(both));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CgroupState, Group};
    use super::*;

    /// A cgroup whose files are plain ones.
    fn cgroup(dir: &std::path::Path, version: Version, files: &[(&str, &str)]) -> Cgroup {
        files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
        let controllers = vec!["cpu".to_owned(), "memory".to_owned()];
        Cgroup::of(CgroupState::new(version, vec![Group { controllers, path: dir.to_path_buf() }]))
    }

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn read(dir: &std::path::Path, file: &str) -> String {
        fs::read_to_string(dir.join(file)).unwrap()
    }

    #[test]
    fn half_a_bandwidth_keeps_the_other_half() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = cgroup(dir.path(), Version::V2, &[("cpu.max", "20000 50000\n")]);
        cgroup.apply(&resources(r#"{"cpu":{"quota":30000}}"#)).unwrap();
        assert!(read(dir.path(), "cpu.max").starts_with("30000 50000"));
        cgroup.apply(&resources(r#"{"cpu":{"period":10000}}"#)).unwrap();
        assert!(read(dir.path(), "cpu.max").starts_with("30000 10000"));
        cgroup.apply(&resources(r#"{"cpu":{"quota":-1}}"#)).unwrap();
        assert!(read(dir.path(), "cpu.max").starts_with("max 10000"));
    }

    #[test]
    fn half_of_memory_and_swap_keeps_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("memory.max", "1000"), ("memory.swap.max", "500")];
        let cgroup = cgroup(dir.path(), Version::V2, &files);
        cgroup.apply(&resources(r#"{"memory":{"limit":1200}}"#)).unwrap();
        assert_eq!(read(dir.path(), "memory.swap.max").trim(), "300");
        cgroup.apply(&resources(r#"{"memory":{"swap":2000}}"#)).unwrap();
        assert_eq!(
            (read(dir.path(), "memory.max").as_str(), read(dir.path(), "memory.swap.max").as_str()),
            ("1200", "800")
        );
        let error = cgroup.apply(&resources(r#"{"memory":{"limit":2001}}"#)).unwrap_err().to_string();
        assert!(error.contains("memory.limit") && error.contains("2000"), "{error}");
    }

    #[test]
    fn a_limit_not_above_what_is_used_is_refused_when_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = cgroup(dir.path(), Version::V2, &[("memory.max", "max"), ("memory.current", "800\n")]);
        let asked = |limit: u32| format!(r#"{{"memory":{{"limit":{limit},"checkBeforeUpdate":true}}}}"#);
        cgroup.apply(&resources(&asked(900))).unwrap();
        let error = cgroup.apply(&resources(&asked(800))).unwrap_err().to_string();
        assert!(error.contains("800 bytes in use"), "{error}");
        assert_eq!(read(dir.path(), "memory.max"), "900");
    }
}
