//! The flags, as runc has them, and their values.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::flags::{Single, flags};

flags! {
    /// Before the verb.
    Globals {
        /// write debug records to the log
        debug: bool,
        /// write the log to this file, not to standard error
        log: Option<PathBuf>,
        /// the log's format: 'text' (the default) or 'json'
        log_format: Option<String>,
        /// where the state of containers is kept, best on a tmpfs (default: "/run/coracle-oci", or $XDG_RUNTIME_DIR/coracle-oci for an ordinary user)
        root: Option<PathBuf>,
        /// the criu program for checkpoint and restore (default: "criu")
        criu: Option<String>,
        /// use the systemd cgroup driver; cgroupsPath is then "slice:prefix:name"
        systemd_cgroup: bool,
        /// ignore cgroup permission errors: 'true', 'false' or 'auto' (default: "auto")
        rootless: Option<String>,
        /// print the version
        version ["v"]: bool,
    }
}

flags! {
    /// No flags: a container, or nothing.
    Plain {}
}

flags! {
    /// create
    Create {
        /// the directory with config.json and, usually, the root filesystem (default: the current directory)
        bundle ["b"]: PathBuf,
        /// a unix socket that gets the master of the terminal
        console_socket: Option<PathBuf>,
        /// a unix socket that gets a pidfd of the container's first process
        pidfd_socket: Option<PathBuf>,
        /// write the pid to this file
        pid_file: Option<PathBuf>,
        /// move the root instead of pivot_root; for a root filesystem on an initramfs
        no_pivot: bool,
        /// keep the session keyring of the caller
        no_new_keyring: bool,
        /// pass on this many descriptors after stdio and $LISTEN_FDS (default: 0)
        preserve_fds: u32,
    }
}

flags! {
    /// run
    Run {
        /// the directory with config.json and, usually, the root filesystem (default: the current directory)
        bundle ["b"]: PathBuf,
        /// a unix socket that gets the master of the terminal; with --detach
        console_socket: Option<PathBuf>,
        /// a unix socket that gets a pidfd of the container's first process
        pidfd_socket: Option<PathBuf>,
        /// do not wait for the container
        detach ["d"]: bool,
        /// keep the stopped container's state
        keep: bool,
        /// write the pid to this file
        pid_file: Option<PathBuf>,
        /// do not adopt the orphans of the container
        no_subreaper: bool,
        /// move the root instead of pivot_root; for a root filesystem on an initramfs
        no_pivot: bool,
        /// keep the session keyring of the caller
        no_new_keyring: bool,
        /// pass on this many descriptors after stdio and $LISTEN_FDS (default: 0)
        preserve_fds: u32,
    }
}

flags! {
    /// checkpoint
    Checkpoint {
        /// the directory for CRIU's images (default: "checkpoint")
        image_path: Option<PathBuf>,
        /// the directory for CRIU's log (default: that of the images)
        work_path: Option<PathBuf>,
        /// the images of an earlier --pre-dump, relative to --image-path
        parent_path: Option<PathBuf>,
        /// leave the container running
        leave_running: bool,
        /// allow open TCP connections
        tcp_established: bool,
        /// leave out TCP connections that are just being made
        tcp_skip_in_flight: bool,
        /// link files without a name for the time being
        link_remap: bool,
        /// allow unix sockets with an end outside
        ext_unix_sk: bool,
        /// allow processes of a session from outside
        shell_job: bool,
        /// not supported
        lazy_pages: bool,
        /// not supported
        status_fd: Option<i64>,
        /// send the pages to ADDRESS:PORT
        page_server: Option<String>,
        /// keep locks of files
        file_locks: bool,
        /// save the memory alone, ahead of a checkpoint; the container runs on
        pre_dump: bool,
        /// 'soft' (the default), 'full', 'strict' or 'ignore'
        manage_cgroups_mode: String,
        /// make this namespace ('network') anew, but do not fill it; may be repeated
        empty_ns: Vec<String>,
        /// remove pages from earlier images that this one has
        auto_dedup: bool,
    }
}

flags! {
    /// restore
    Restore {
        /// a unix socket for a terminal: not supported
        console_socket: Option<PathBuf>,
        /// the directory with CRIU's images (default: "checkpoint")
        image_path: Option<PathBuf>,
        /// the directory for CRIU's log (default: that of the images)
        work_path: Option<PathBuf>,
        /// allow open TCP connections
        tcp_established: bool,
        /// allow unix sockets with an end outside
        ext_unix_sk: bool,
        /// allow processes of a session from outside
        shell_job: bool,
        /// keep locks of files
        file_locks: bool,
        /// 'soft' (the default), 'full', 'strict' or 'ignore'
        manage_cgroups_mode: String,
        /// the directory with config.json and, usually, the root filesystem (default: the current directory)
        bundle ["b"]: PathBuf,
        /// do not wait for the container
        detach ["d"]: bool,
        /// write the pid to this file
        pid_file: Option<PathBuf>,
        /// do not adopt the orphans of the container
        no_subreaper: bool,
        /// changes nothing: CRIU makes the mounts
        no_pivot: bool,
        /// make this namespace ('network') anew, but do not fill it; may be repeated
        empty_ns: Vec<String>,
        /// remove pages from the images once they are restored
        auto_dedup: bool,
        /// not supported
        lazy_pages: bool,
        /// an LSM profile instead of the saved one, TYPE:NAME
        lsm_profile: Option<String>,
        /// an SELinux context for mounts instead of the saved one
        lsm_mount_context: Option<String>,
    }
}

flags! {
    /// kill
    Kill {
        /// to every process of the container
        all ["a"]: bool,
    }
}

flags! {
    /// delete
    Delete {
        /// kill it if it runs; one that does not exist is no error
        force ["f"]: bool,
    }
}

flags! {
    /// exec
    Exec {
        /// a unix socket that gets the master of the terminal; with --detach
        console_socket: Option<PathBuf>,
        /// a unix socket that gets a pidfd of the process
        pidfd_socket: Option<PathBuf>,
        /// the working directory
        cwd: Option<PathBuf>,
        /// a variable for the environment, NAME=VALUE; may be repeated
        env ["e"]: Vec<String>,
        /// give the process a terminal
        tty ["t"]: bool,
        /// the user, UID or UID:GID
        user ["u"]: Option<String>,
        /// an additional group; may be repeated
        additional_gids ["g"]: Vec<u32>,
        /// a JSON file of the process, as in config.json, instead of a command
        process ["p"]: Option<PathBuf>,
        /// do not wait for the process
        detach ["d"]: bool,
        /// write the pid to this file
        pid_file: Option<PathBuf>,
        /// the SELinux label of the process
        process_label: Option<String>,
        /// the AppArmor profile of the process
        apparmor: Option<String>,
        /// set no_new_privs, or with =false do not
        no_new_privs: Option<bool>,
        /// a capability to add; may be repeated
        cap ["c"]: Vec<String>,
        /// pass on this many descriptors after stdio (default: 0)
        preserve_fds: u32,
        /// run in this cgroup beneath the container's, [CONTROLLER[,CONTROLLER]:]PATH; it must exist; may be repeated with other controllers
        cgroup: Vec<String>,
        /// exec in a paused container too; the process waits for the resume
        ignore_paused: bool,
    }
}

flags! {
    /// list
    List {
        /// 'table' or 'json' (default: "table")
        format ["f"]: Option<String>,
        /// only the ids
        quiet ["q"]: bool,
    }
}

flags! {
    /// ps
    Ps {
        /// 'table' or 'json' (default: "table")
        format ["f"]: Option<String>,
    }
}

flags! {
    /// update
    Update {
        /// read the resources from this file, - for the standard input: JSON as linux.resources of config.json, of which what is absent stays as it is; the other flags do not count then
        resources ["r"]: Option<PathBuf>,
        /// block I/O weight, 10 to 1000
        blkio_weight: Option<u16>,
        /// CFS period in microseconds
        cpu_period: Option<u64>,
        /// CFS quota in microseconds per period, -1 for none
        cpu_quota: Option<i64>,
        /// CFS burst in microseconds
        cpu_burst: Option<u64>,
        /// CPU shares
        cpu_share: Option<u64>,
        /// real-time period in microseconds
        cpu_rt_period: Option<u64>,
        /// real-time runtime in microseconds per period
        cpu_rt_runtime: Option<i64>,
        /// 1 runs the container only on idle CPUs, 0 as others
        cpu_idle: Option<i64>,
        /// CPUs to run on, such as 0-2,4
        cpuset_cpus: Option<String>,
        /// memory nodes to use
        cpuset_mems: Option<String>,
        /// memory limit in bytes or with a unit (512m), -1 for none
        memory: Option<Bytes>,
        /// soft limit of memory
        memory_reservation: Option<Bytes>,
        /// limit of memory and swap together, -1 for none
        memory_swap: Option<Bytes>,
        /// obsolete
        kernel_memory: Option<Bytes>,
        /// obsolete
        kernel_memory_tcp: Option<Bytes>,
        /// number of processes, -1 for no limit
        pids_limit: Option<i64>,
        /// Intel RDT L3 cache schema
        l3_cache_schema: Option<String>,
        /// Intel RDT memory bandwidth schema
        mem_bw_schema: Option<String>,
    }
}

flags! {
    /// events
    Events {
        /// time between two readings, such as 500ms or 1m30s (default: 5s)
        interval: Option<Interval>,
        /// print the statistics once and end
        stats: bool,
    }
}

flags! {
    /// spec
    Spec {
        /// the directory to write it to (default: the current directory)
        bundle ["b"]: PathBuf,
        /// for a container without root rights
        rootless: bool,
    }
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Format {
    /// Of the flag.
    pub fn of(flag: &Option<String>) -> Result<Format> {
        match flag.as_deref() {
            None | Some("table") => Ok(Format::Table),
            Some("json") => Ok(Format::Json),
            Some(other) => bail!("invalid format option {other:?}: it is table or json"),
        }
    }
}

/// `--rootless`: `None` finds out by itself.
pub fn bool_or_auto(text: Option<&str>) -> Result<Option<bool>> {
    match text {
        None | Some("") => Ok(None),
        Some(word) if word.eq_ignore_ascii_case("auto") => Ok(None),
        Some(word) => super::flags::boolean(word)
            .map(Some)
            .with_context(|| format!("--rootless {word:?}: it is true, false or auto")),
    }
}

/// A directory flag; empty is the current one.
pub fn directory(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// A number of bytes, in powers of 1024: 512, 512k, 1.5GiB; -1 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes(pub i64);

impl Single for Bytes {
    fn from_text(text: &str) -> Option<Bytes> {
        if let Ok(number) = text.parse() {
            return Some(Bytes(number));
        }
        let lower = text.to_ascii_lowercase();
        let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = lower.split_at(end);
        let unit = unit.trim_start();
        let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
        let power = if unit.is_empty() { 0 } else { 1 + "kmgtp".find(unit).filter(|_| unit.len() == 1)? };
        let bytes = number.parse::<f64>().ok()? * (1u64 << (10 * power)) as f64;
        (bytes < i64::MAX as f64).then_some(Bytes(bytes as i64))
    }
}

/// A duration as Go writes it: `300ms`, `1m30s`, `1.5h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval(pub Duration);

impl Single for Interval {
    fn from_text(text: &str) -> Option<Interval> {
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        // A bare zero needs no unit. It is refused later, by name.
        if rest == "0" {
            return Some(Interval(Duration::ZERO));
        }
        let mut seconds = 0.0;
        while !rest.is_empty() || seconds == 0.0 {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..end].parse().ok()?;
            rest = &rest[end..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            seconds += number
                * match &rest[..end] {
                    "ns" => 1e-9,
                    "us" | "µs" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return None,
                };
            rest = &rest[end..];
            if rest.is_empty() {
                break;
            }
        }
        Duration::try_from_secs_f64(seconds).ok().map(Interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_written_as_in_go() {
        let of = |text| Interval::from_text(text).map(|i| i.0);
        assert_eq!(of("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(of("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(of("1.5h"), Some(Duration::from_secs(5400)));
        for zero in ["0", "0s"] {
            assert_eq!(of(zero), Some(Duration::ZERO));
        }
        for text in ["", "x", "5d", "-1s", "5", "1s2"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_have_units() {
        let of = |text| Bytes::from_text(text).map(|b| b.0);
        for (text, bytes) in
            [("-1", -1), ("17", 17), ("512m", 512 << 20), ("1G", 1 << 30), ("1.5KiB", 1536), ("2kb", 2048)]
        {
            assert_eq!(of(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "1x", "1mm", "1e30", "99999999p"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn rootless_is_a_boolean_or_auto() {
        assert_eq!(bool_or_auto(None).unwrap(), None);
        assert_eq!(bool_or_auto(Some("Auto")).unwrap(), None);
        assert_eq!(bool_or_auto(Some("true")).unwrap(), Some(true));
        assert!(bool_or_auto(Some("maybe")).is_err());
    }
}
