//! Reading the statistics out of a cgroup's files.
//!
//! A value the kernel does not offer is left at its default, as runc does: which files exist depends on the version, the
//! configuration and the age of the kernel. A file that exists and cannot be understood is an error.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Cgroup, Version,
    error::{Error, Result},
    stats::*,
};

impl Cgroup {
    /// Reads all statistics.
    pub fn stats(&self) -> Result<Stats> {
        self.require_one("statistics")?;
        match self.state.version {
            Version::V1 => v1(self),
            Version::V2 => v2(&Files { directory: self.state.groups.first().map(|group| group.path.clone()) }),
        }
    }
}

/// The files of one controller, which may not be there at all.
struct Files {
    directory: Option<PathBuf>,
}

impl Files {
    fn of(cgroup: &Cgroup, controller: &str) -> Files {
        Files { directory: cgroup.dir_of(controller).map(Path::to_path_buf) }
    }

    /// A file's text; `None` where there is no such file, or the kernel knows nothing to say.
    fn text(&self, file: &str) -> Result<Option<String>> {
        let Some(path) = self.directory.as_ref().map(|d| d.join(file)) else { return Ok(None) };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => Ok(None),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    fn malformed(&self, file: &str, text: &str) -> Error {
        Error::Malformed { path: self.directory.clone().unwrap_or_default().join(file), text: text.to_owned() }
    }

    /// A number, `max` being the largest. 0 where there is no such file.
    fn number(&self, file: &str) -> Result<u64> {
        let Some(text) = self.text(file)? else { return Ok(0) };
        number(text.trim()).ok_or_else(|| self.malformed(file, &text))
    }

    /// Lines of `key number`.
    fn map(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        let text = self.text(file)?.unwrap_or_default();
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), number(value.trim())?))
        };
        text.lines().map(|line| pair(line).ok_or_else(|| self.malformed(file, line))).collect()
    }

    fn numbers(&self, file: &str) -> Result<Vec<u64>> {
        let text = self.text(file)?.unwrap_or_default();
        text.split_whitespace().map(|n| number(n).ok_or_else(|| self.malformed(file, n))).collect()
    }

    /// A list such as `0-2,7`.
    fn list(&self, file: &str) -> Result<Vec<u16>> {
        let text = self.text(file)?.unwrap_or_default();
        list(text.trim()).ok_or_else(|| self.malformed(file, &text))
    }

    fn psi(&self, file: &str) -> Result<Option<Psi>> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        psi(&text).map(Some).ok_or_else(|| self.malformed(file, &text))
    }
}

fn number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        // v1 prints "no limit" of some files as -1.
        "-1" => Some(u64::MAX),
        other => other.parse().ok(),
    }
}

/// The number behind a key in lines of `key number`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn list(text: &str) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

fn psi(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    for line in text.lines() {
        let (kind, values) = line.split_once(' ')?;
        let mut data = PsiData::default();
        for value in values.split(' ') {
            match value.split_once('=')? {
                ("avg10", v) => data.avg10 = v.parse().ok()?,
                ("avg60", v) => data.avg60 = v.parse().ok()?,
                ("avg300", v) => data.avg300 = v.parse().ok()?,
                ("total", v) => data.total = v.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            "some" => psi.some = data,
            "full" => psi.full = data,
            _ => {}
        }
    }
    Some(psi)
}

fn v1(cgroup: &Cgroup) -> Result<Stats> {
    Ok(Stats {
        cpu: cpu_v1(&Files::of(cgroup, "cpu"), &Files::of(cgroup, "cpuacct"))?,
        cpuset: cpuset_v1(&Files::of(cgroup, "cpuset"))?,
        memory: memory_v1(&Files::of(cgroup, "memory"))?,
        pids: pids(&Files::of(cgroup, "pids"))?,
        blkio: blkio_v1(&Files::of(cgroup, "blkio"))?,
        hugetlb: hugetlb(&Files::of(cgroup, "hugetlb"), "usage_in_bytes")?,
        rdma: rdma(&Files::of(cgroup, "rdma"))?,
        misc: BTreeMap::new(),
    })
}

fn cpu_v1(cpu: &Files, accounting: &Files) -> Result<Cpu> {
    let stat = cpu.map("cpu.stat")?;
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let mut usage = CpuUsage {
        total: accounting.number("cpuacct.usage")?,
        percpu: accounting.numbers("cpuacct.usage_percpu")?,
        kernel: accounting.number("cpuacct.usage_sys")?,
        user: accounting.number("cpuacct.usage_user")?,
        ..CpuUsage::default()
    };
    // A heading, then "CPU USER SYSTEM".
    for line in accounting.text("cpuacct.usage_all")?.unwrap_or_default().lines().skip(1) {
        let mut fields = line.split(' ').skip(1).map(|n| n.parse().unwrap_or(0));
        usage.percpu_user.push(fields.next().unwrap_or(0));
        usage.percpu_kernel.push(fields.next().unwrap_or(0));
    }
    let throttling = Throttling {
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_time: of("throttled_time"),
    };
    Ok(Cpu { usage, throttling, psi: None })
}

fn cpuset_v1(files: &Files) -> Result<Cpuset> {
    let level = files.text("cpuset.sched_relax_domain_level")?.unwrap_or_default();
    Ok(Cpuset {
        cpus: files.list("cpuset.cpus")?,
        cpu_exclusive: files.number("cpuset.cpu_exclusive")?,
        mems: files.list("cpuset.mems")?,
        mem_hardwall: files.number("cpuset.mem_hardwall")?,
        mem_exclusive: files.number("cpuset.mem_exclusive")?,
        memory_migrate: files.number("cpuset.memory_migrate")?,
        memory_spread_page: files.number("cpuset.memory_spread_page")?,
        memory_spread_slab: files.number("cpuset.memory_spread_slab")?,
        memory_pressure: files.number("cpuset.memory_pressure")?,
        sched_load_balance: files.number("cpuset.sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    })
}

fn memory_v1(files: &Files) -> Result<Memory> {
    let raw = files.map("memory.stat")?;
    let entry = |prefix: &str| -> Result<MemoryEntry> {
        Ok(MemoryEntry {
            limit: files.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: files.number(&format!("{prefix}.usage_in_bytes"))?,
            max: files.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: files.number(&format!("{prefix}.failcnt"))?,
        })
    };
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry("memory")?,
        swap: entry("memory.memsw")?,
        kernel: entry("memory.kmem")?,
        kernel_tcp: entry("memory.kmem.tcp")?,
        raw,
        psi: None,
    })
}

fn pids(files: &Files) -> Result<Pids> {
    let limit = files.number("pids.max")?;
    Ok(Pids { current: files.number("pids.current")?, limit: if limit == u64::MAX { 0 } else { limit } })
}

fn blkio_v1(files: &Files) -> Result<Blkio> {
    // The counters of the scheduler in use come first; those of throttling see every request.
    let first = |names: &[String]| -> Result<Vec<BlkioEntry>> {
        for name in names {
            let entries = blkio_entries(&files.text(name)?.unwrap_or_default());
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    let always = |what: &str| {
        let kinds = ["bfq.{}_recursive", "throttle.{}_recursive", "throttle.{}"];
        first(&kinds.map(|kind| format!("blkio.{}", kind.replace("{}", what))))
    };
    // Only a scheduler knows these: bfq, or cfq before 5.0, whose files do not have its name.
    let scheduler = |what: &str| first(&["bfq.", ""].map(|kind| format!("blkio.{kind}{what}_recursive")));
    Ok(Blkio {
        io_service_bytes_recursive: always("io_service_bytes")?,
        io_serviced_recursive: always("io_serviced")?,
        io_queued_recursive: scheduler("io_queued")?,
        io_service_time_recursive: scheduler("io_service_time")?,
        io_wait_time_recursive: scheduler("io_wait_time")?,
        io_merged_recursive: scheduler("io_merged")?,
        io_time_recursive: scheduler("time")?,
        sectors_recursive: scheduler("sectors")?,
        psi: None,
    })
}

/// Lines of `MAJOR:MINOR OP VALUE`; the line with the total has no device and is left out.
fn blkio_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        // Times and sectors are not told apart by direction.
        let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.trim().parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// The page sizes whose files are in a directory, by the name of the file with the usage.
/// What is reserved counts, where the kernel tells it (5.7): a mapping takes its pages then.
fn hugetlb(files: &Files, usage: &str) -> Result<BTreeMap<String, Hugetlb>> {
    let Some(Ok(entries)) = files.directory.as_ref().map(fs::read_dir) else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|n| n.strip_suffix(usage)).and_then(|n| n.strip_suffix('.'));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        let file = |suffix: &str| format!("hugetlb.{size}.{suffix}");
        let number = |suffix: &str| match files.text(&file(&format!("rsvd.{suffix}")))? {
            Some(_) => files.number(&file(&format!("rsvd.{suffix}"))),
            None => files.number(&file(suffix)),
        };
        let events = files.text(&file("events"))?.unwrap_or_default();
        found.insert(
            size.to_owned(),
            Hugetlb {
                usage: number(usage)?,
                max: number("max_usage_in_bytes")?,
                failcnt: match value_of(&events, "max") {
                    Some(times) => times,
                    None => number("failcnt")?,
                },
            },
        );
    }
    Ok(found)
}

fn v2(files: &Files) -> Result<Stats> {
    Ok(Stats {
        cpu: cpu_v2(files)?,
        cpuset: Cpuset {
            cpus: files.list("cpuset.cpus.effective")?,
            mems: files.list("cpuset.mems.effective")?,
            ..Cpuset::default()
        },
        memory: memory_v2(files)?,
        pids: pids(files)?,
        blkio: blkio_v2(files)?,
        hugetlb: hugetlb(files, "current")?,
        rdma: rdma(files)?,
        misc: misc(files)?,
    })
}

fn rdma(files: &Files) -> Result<Rdma> {
    let read = |file: &str| -> Result<Vec<RdmaEntry>> {
        let text = files.text(file)?.unwrap_or_default();
        text.lines().map(|line| rdma_entry(line).ok_or_else(|| files.malformed(file, line))).collect()
    };
    Ok(Rdma { current: read("rdma.current")?, limit: read("rdma.max")? })
}

/// A line of `DEVICE hca_handle=N hca_object=max`.
fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split_whitespace();
    let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = if value == "max" { u32::MAX } else { value.parse().ok()? };
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}

fn misc(files: &Files) -> Result<BTreeMap<String, Misc>> {
    let events = files.map("misc.events")?;
    let one = |(name, usage): (String, u64)| {
        let events = events.get(&format!("{name}.max")).copied().unwrap_or(0);
        (name, Misc { usage, events })
    };
    Ok(files.map("misc.current")?.into_iter().map(one).collect())
}

fn cpu_v2(files: &Files) -> Result<Cpu> {
    let stat = files.map("cpu.stat")?;
    let nanoseconds = |key: &str| stat.get(key).copied().unwrap_or(0).saturating_mul(1000);
    let count = |key: &str| stat.get(key).copied().unwrap_or(0);
    Ok(Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
        },
        psi: files.psi("cpu.pressure")?,
    })
}

fn memory_v2(files: &Files) -> Result<Memory> {
    let raw = files.map("memory.stat")?;
    let events = files.map("memory.events")?;
    let usage = MemoryEntry {
        limit: files.number("memory.max")?,
        usage: files.number("memory.current")?,
        max: files.number("memory.peak")?,
        failcnt: events.get("max").copied().unwrap_or(0),
    };
    // v1 counts memory and swap together, and so does the reader of these statistics.
    let swap = MemoryEntry {
        limit: files.number("memory.swap.max")?.saturating_add(usage.limit),
        usage: files.number("memory.swap.current")?.saturating_add(usage.usage),
        ..MemoryEntry::default()
    };
    let cache = raw.get("file").copied().unwrap_or(0);
    Ok(Memory { cache, usage, swap, raw, psi: files.psi("memory.pressure")?, ..Memory::default() })
}

fn blkio_v2(files: &Files) -> Result<Blkio> {
    let mut blkio = io_stat(&files.text("io.stat")?.unwrap_or_default());
    blkio.psi = files.psi("io.pressure")?;
    Ok(blkio)
}

/// Lines of `MAJOR:MINOR key=value ...`.
fn io_stat(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let device = fields.next().and_then(|d| d.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else { continue };
        for (key, value) in fields.filter_map(|f| f.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().unwrap_or(0) });
        }
    }
    blkio
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ranges_and_numbers() {
        assert_eq!(list("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(list(""), Some(vec![]));
        assert_eq!(list("a"), None);
    }

    #[test]
    fn pressure_is_read_with_and_without_full() {
        let read = psi("some avg10=1.50 avg60=0.00 avg300=0.10 total=42\n").unwrap();
        assert_eq!((read.some.avg10, read.some.avg300, read.some.total, read.full.total), (1.5, 0.1, 42, 0));
    }

    #[test]
    fn io_stat_becomes_reads_and_writes() {
        let blkio = io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n");
        assert_eq!(
            blkio.io_service_bytes_recursive[1],
            BlkioEntry { major: 8, minor: 0, op: "Write".into(), value: 2 }
        );
        assert_eq!(blkio.io_serviced_recursive[0].value, 3);
    }

    #[test]
    fn rdma_lines_name_a_device_and_its_counts() {
        let entry = rdma_entry("mlx4_0 hca_handle=2 hca_object=max").unwrap();
        assert_eq!((entry.device.as_str(), entry.hca_handles, entry.hca_objects), ("mlx4_0", 2, u32::MAX));
        assert_eq!(rdma_entry("mlx4_0 hca_handle=x"), None);
    }

    #[test]
    fn blkio_totals_are_left_out() {
        assert_eq!(blkio_entries("8:0 Read 5\nTotal 5\n").len(), 1);
        assert_eq!(blkio_entries("8:0 77\n")[0], BlkioEntry { major: 8, value: 77, ..BlkioEntry::default() });
    }
}
