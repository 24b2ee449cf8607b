//! Whether this machine's KVM can run a handler's kernel: found out by a machine that is booted once, since a KVM that is
//! there need not work (in another virtual machine it may refuse what QEMU sets).
//!
//! The supervisor's program boots it: `-vm-probe JSON`, with the fields of [`Question`], answers one line of JSON with the
//! fields of [`Answer`]. The answer is kept in `<state>/vm/probe-KEY.json`, where KEY is made of the boot's id, of all
//! files that take part (device, inode, size and time of change of the programs, the kernel, its modules and checksums,
//! and of /dev/kvm) and of the kernel's arguments: so what is changed is asked for again, and nothing else is.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::probe::identity;
use super::vm::Machine;
use crate::config::Paths;
use crate::record;

/// How long it may take to boot a machine and to give up on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the program says of its failure is shown up to here.
const MAX_WORDS: usize = 600;
/// The kernel's device.
const DEVICE: &str = "/dev/kvm";

/// One question at a time: pods that are made at once do not boot a machine each to learn the same.
static ASKED: Mutex<()> = Mutex::const_new(());

#[derive(Serialize)]
struct Question<'a> {
    vmm: &'a Path,
    kernel: &'a Path,
    modules: &'a Path,
    manifest: &'a Path,
    kernel_arguments: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    /// It can.
    kvm: bool,
    /// Why not.
    #[serde(default)]
    reason: String,
}

impl Machine {
    fn key(&self, vmm: &Path, supervisor: &Path) -> String {
        let files = [vmm, supervisor, &self.kernel, &self.modules, &self.manifest, Path::new(DEVICE)];
        let mut parts = format!("{}\n{}\n", record::boot_id(), self.kernel_arguments);
        for file in files {
            parts += &format!("{} {:?}\n", file.display(), identity(file));
        }
        Sha256::digest(parts).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether machines of this handler can run; an error says why not. Which of them is emulated, its supervisor decides.
    pub(super) async fn check_kvm(&self, vmm: &Path, paths: &Paths) -> Result<(), String> {
        let folder = paths.state.join("vm");
        let file = folder.join(format!("probe-{}.json", self.key(vmm, &paths.supervisor)));
        let _one = ASKED.lock().await;
        // A file that cannot be read is written anew.
        let known: Option<Answer> = record::read_json(&file).unwrap_or_default();
        let answer = match known {
            Some(answer) => answer,
            None => {
                let answer = self.ask(vmm, &paths.supervisor).await?;
                keep(&folder, &file, &answer);
                answer
            }
        };
        match answer.kvm || self.allow_emulation {
            true => Ok(()),
            false => Err(format!(
                "KVM cannot be used here: {} (options.allow_emulation = true has its machines emulated, which is slow)",
                answer.reason
            )),
        }
    }

    async fn ask(&self, vmm: &Path, supervisor: &Path) -> Result<Answer, String> {
        let modules = self.modules();
        let question = Question {
            vmm,
            kernel: &self.kernel,
            modules: &modules,
            manifest: &self.manifest,
            kernel_arguments: &self.kernel_arguments,
        };
        let question = serde_json::to_string(&question).map_err(|error| error.to_string())?;
        let what = format!("{} -vm-probe", supervisor.display());
        let said = Command::new(supervisor)
            .args(["-vm-probe", &question])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = match timeout(PATIENCE, said).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{what}: {error}")),
            Err(_) => return Err(format!("{what}: no answer within {}s", PATIENCE.as_secs())),
        };
        serde_json::from_slice(&output.stdout).map_err(|_| {
            // What is wrong with the kernel's files is told so.
            let words = String::from_utf8_lossy(&output.stderr);
            let words = words.trim().chars().take(MAX_WORDS).collect::<String>().replace('\n', "; ");
            format!("{what}: {}: {words}", output.status)
        })
    }
}

/// What cannot be kept is asked for again.
fn keep(folder: &Path, file: &Path, answer: &Answer) {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let (Ok(()), Ok(bytes)) = (made, serde_json::to_vec(answer)) {
        let _ = record::write_file(file, &bytes, 0o600);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_machine_is_booted_once_and_emulation_is_never_silent() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = dir.path().join("supervisor");
        let answer = r#"{"kvm":false,"reason":"/dev/kvm: No such file"}"#;
        let text = format!("#!/bin/sh\necho >> \"$0.asked\"\necho '{answer}'\n");
        fs::write(&supervisor, text).unwrap();
        fs::set_permissions(&supervisor, fs::Permissions::from_mode(0o755)).unwrap();
        let paths = Paths { state: dir.path().join("state"), supervisor: supervisor.clone(), ..Paths::default() };
        let mut machine = Machine { kernel: "/k".into(), allow_emulation: true, ..Machine::default() };
        let vmm = Path::new("/bin/true");
        assert_eq!(machine.check_kvm(vmm, &paths).await, Ok(()));
        machine.allow_emulation = false;
        let why = machine.check_kvm(vmm, &paths).await.unwrap_err();
        assert!(why.starts_with("KVM cannot be used here: /dev/kvm: No such file (options.allow_emulation"), "{why}");
        assert_eq!(fs::read_to_string(dir.path().join("supervisor.asked")).unwrap(), "\n");
        machine.kernel_arguments = "quiet".into();
        machine.check_kvm(vmm, &paths).await.unwrap_err();
        assert_eq!(fs::read_to_string(dir.path().join("supervisor.asked")).unwrap(), "\n\n");
    }
}
