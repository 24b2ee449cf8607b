//! Records: what is intended, written before the act; what came of it, written after.
//!
//! A record is one JSON file that is only ever replaced as a whole (a temporary file beside it, then rename), so a
//! reader sees the old or the new one. It lies on a tmpfs: nothing needs an fsync, since a power cut takes the record
//! together with everything it describes. `boot_id` tells a state folder that was kept on a disk instead from one of
//! this boot: pids, mounts and interfaces of another boot are gone by proof.
//!
//! A record of an older coracle must stay readable: fields are added with defaults, never renamed.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::status::{ContainerState, SandboxState};
use crate::types::{ContainerConfig, Exit, SandboxConfig};

/// The file's name in each folder.
pub const FILE: &str = "record.json";
/// A record is at most this long; what is longer was not written by us.
const MAX_LEN: u64 = 8 << 20;

/// A sandbox's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The boot during which it was made.
    pub boot_id: String,
    /// Its id.
    pub id: String,
    /// What it was asked to be.
    pub config: SandboxConfig,
    /// What it is.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: i64,
    /// The supervisor's pid, for people; life is proven by its lock.
    #[serde(default)]
    pub supervisor: Option<i32>,
    /// The init of the shared PID namespace.
    #[serde(default)]
    pub pid_ns_pid: Option<i32>,
    /// The path of the pod's user namespace, if it has one of its own.
    #[serde(default)]
    pub user_ns: Option<String>,
    /// The pod's addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// What was changed on the host for its network.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The pod's cgroup; empty for none.
    pub cgroup: String,
    /// What runs its containers, as it was configured when the pod was made.
    #[serde(default)]
    pub handler: crate::handler::Handler,
    /// The size of the pod's virtual machine, if it has one.
    #[serde(default)]
    pub vm: Option<crate::handler::Size>,
}

impl SandboxRecord {
    /// The cgroup of a container of the pod; empty where there are none.
    pub(crate) fn cgroup_of(&self, container: &str) -> String {
        if self.cgroup.is_empty() { String::new() } else { format!("{}/{container}", self.cgroup) }
    }
}

/// A container's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// What it was asked to be.
    pub config: ContainerConfig,
    /// The image's id.
    #[serde(default)]
    pub image_id: String,
    /// A name by digest that the image had.
    #[serde(default)]
    pub image_digest: String,
    /// The signal that asks it to stop.
    #[serde(default)]
    pub stop_signal: i32,
    /// Who its first process is.
    #[serde(default)]
    pub user: Option<crate::types::ContainerUser>,
    /// What it is, as far as the engine did it; exit.json may know more.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: i64,
    /// When it was started.
    #[serde(default)]
    pub started_at: i64,
    /// The pid of its init.
    #[serde(default)]
    pub pid: Option<i32>,
    /// How it ended where no exit.json tells: start failed, supervisor lost.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// The kernel's id of this boot.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
    })
}

/// Replaces the file at `path` by `bytes`.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use io::Write;
    // No two writers share a temporary file: the pid keeps processes apart, the number tasks of one.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let tmp = path.with_extension(format!("tmp{}-{number}", std::process::id()));
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&tmp)
        .and_then(|mut f| f.write_all(bytes))
        .and_then(|()| fs::rename(&tmp, path))
        .map_err(|e| {
            let _ = fs::remove_file(&tmp);
            Error::io("write", path)(e)
        })
}

/// Replaces the record in `dir`.
pub fn write<T: Serialize>(dir: &Path, record: &T) -> Result<()> {
    let path = dir.join(FILE);
    let bytes = serde_json::to_vec(record).map_err(|source| Error::Record { path: path.clone(), source })?;
    // What could not be read again is not written.
    if bytes.len() as u64 > MAX_LEN {
        let why = format!("takes {} bytes as a record, more than {MAX_LEN}", bytes.len());
        return Err(Error::invalid("config", why));
    }
    write_file(&path, &bytes, 0o600)
}

/// Reads a JSON file; `None` if it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| {
        // At once: a list of all pods reads some hundred of these.
        let length = file.metadata()?.len().min(MAX_LEN);
        bytes.reserve_exact(usize::try_from(length).unwrap_or(0) + 1);
        file.take(MAX_LEN).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => {}
        // ENOTDIR: something else stands where the folder would be.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Record { path: path.to_owned(), source })
}

/// Reads the record in `dir`; `None` if there is none.
pub fn read<T: DeserializeOwned>(dir: &Path) -> Result<Option<T>> {
    read_json(&dir.join(FILE))
}

/// The names of the entries of `dir` that are ids; none if it is not there.
pub fn ids_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir)(e)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        if let Some(name) = entry.file_name().to_str().filter(|n| crate::id::is_id(n)) {
            ids.push(name.to_owned());
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// What the supervisor writes when a container ends.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ExitFile {
    /// The init's pid.
    #[serde(default)]
    pub pid: i32,
    /// The exit code; 128 + n after signal n.
    pub exit_status: i32,
    /// RFC 3339 with nanoseconds, UTC.
    pub exited_at: String,
    /// The OOM killer was at work in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
    /// Why it ended, where the supervisor knows it better than the code tells.
    #[serde(default)]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default)]
    pub message: Option<String>,
}

/// What a supervisor says of an exit is shown up to here.
const MAX_REASON: usize = 64;
const MAX_MESSAGE: usize = 4 << 10;

impl ExitFile {
    /// In the engine's terms.
    pub fn exit(&self) -> Exit {
        let cut = |text: &Option<String>, length| text.iter().flat_map(|text| text.chars().take(length)).collect();
        let mut reason: String = cut(&self.reason, MAX_REASON);
        if reason.is_empty() {
            reason = match (self.oom_killed, self.exit_status) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            }
            .into();
        }
        Exit {
            code: self.exit_status,
            finished_at: parse_rfc3339(&self.exited_at).unwrap_or(0),
            oom_killed: self.oom_killed,
            reason,
            message: cut(&self.message, MAX_MESSAGE),
        }
    }
}

/// Nanoseconds since the epoch of `2026-01-02T03:04:05[.fraction]Z`.
pub fn parse_rfc3339(s: &str) -> Option<i64> {
    let s = s.strip_suffix('Z')?;
    let (date, time) = s.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(|n| n.parse::<i64>().ok());
    let (h, m, sec) = (time.next()??, time.next()??, time.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || h > 23 || m > 59 || sec > 60 || fraction.len() > 9 {
        return None;
    }
    let nanos = match fraction {
        "" => 0,
        f => f.parse::<i64>().ok()? * 10i64.pow(9 - u32::try_from(f.len()).ok()?),
    };
    // Days since the epoch by counting from March, so that the leap day is the year's last.
    let (y, mon) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (mon * 153 + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + h * 3600 + m * 60 + sec) * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_whole_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read::<Vec<u32>>(dir.path()).unwrap(), None);
        write(dir.path(), &vec![1, 2]).unwrap();
        write(dir.path(), &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(dir.path()).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_record_too_long_to_be_read_again_is_refused_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &"short").unwrap();
        let error = write(dir.path(), &"x".repeat(MAX_LEN as usize)).unwrap_err();
        assert!(error.to_string().starts_with("config: "), "{error}");
        assert_eq!(read::<String>(dir.path()).unwrap().as_deref(), Some("short"));
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = read::<SandboxRecord>(dir.path()).unwrap_err();
        assert!(error.to_string().contains("record.json"), "{error}");
    }

    #[test]
    fn times_are_read_as_the_supervisor_writes_them() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2024-02-29T12:34:56.000000789Z"), Some(1_709_210_096_000_000_789));
        assert_eq!(parse_rfc3339("2026-01-02T03:04:05.5Z"), Some(1_767_323_045_500_000_000));
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert_eq!(parse_rfc3339("2026-13-02T03:04:05Z"), None);
    }

    #[test]
    fn the_reason_of_an_exit_is_kubernetes_word() {
        let file = |exit_status, oom_killed| -> ExitFile {
            let text = format!(r#"{{"pid":1,"exit_status":{exit_status},"exited_at":"","oom_killed":{oom_killed}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(file(0, false).exit().reason, "Completed");
        assert_eq!(file(3, false).exit().reason, "Error");
        assert_eq!(file(137, true).exit().reason, "OOMKilled");
        let told =
            ExitFile { reason: Some("VMDied".into()), message: Some("m".repeat(9000)), ..file(137, false) }.exit();
        assert_eq!((told.reason.as_str(), told.message.len()), ("VMDied", MAX_MESSAGE));
    }
}
