//! A machine with a handler `vm` for one test.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_tests::machine::{IMAGE, Machine, Said};

/// The class of pods in virtual machines.
pub const CLASS: &str = "  runtimeClassName: vm\n";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The turn of the test that holds it: several emulated machines at once would only wait for each other.
pub fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of the kernel.
///
/// # Panics
/// Without one.
pub fn kernel_dir() -> PathBuf {
    let folder = std::env::var_os("CORACLE_VM_KERNEL").map_or_else(|| "/usr/lib/coracle/vm".into(), PathBuf::from);
    assert!(folder.join("vmlinux").is_file(), "{} has no vmlinux: run scripts/guest-kernel", folder.display());
    folder
}

/// The configuration of a handler `vm`, whose machines are emulated where they must be.
pub fn handler() -> String {
    let options = format!("kernel_dir = {:?}\nallow_emulation = true\n", kernel_dir());
    format!("[handlers.vm]\ntype = \"vm\"\n[handlers.vm.options]\n{options}")
}

/// A machine whose `coracle` knows the handler `vm`.
pub struct Vms {
    machine: Machine,
    config: String,
    // After the machine, which removes its pods when it goes.
    _turn: MutexGuard<'static, ()>,
}

impl Vms {
    /// One with `more` in its configuration.
    pub fn with(more: &str) -> Vms {
        Vms::configured(more, |_| String::new())
    }

    /// One whose handler has more options, which may name files of the machine.
    pub fn with_options(options: impl FnOnce(&Machine) -> String) -> Vms {
        Vms::configured("", options)
    }

    fn configured(more: &str, options: impl FnOnce(&Machine) -> String) -> Vms {
        let turn = turn();
        let machine = Machine::new();
        let config = machine.path("config.toml");
        let options = options(&machine);
        fs::write(&config, format!("{more}\n{}{options}", handler())).expect("write the configuration");
        Vms { machine, config: config.display().to_string(), _turn: turn }
    }

    /// Runs `coracle` with this configuration.
    pub fn say(&self, args: &[&str]) -> Said {
        self.machine.coracle(&[&["--config", &self.config], args].concat())
    }

    /// The same, which must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.machine.ok(&[&["--config", &self.config], args].concat())
    }

    /// Starts `coracle` with this configuration.
    pub fn start(&self, args: &[&str]) -> Child {
        self.machine.start(&[&["--config", &self.config], args].concat())
    }

    /// What a shell line in a pod says; it must succeed.
    pub fn inside(&self, pod: &str, line: &str) -> String {
        self.ok(&["exec", pod, "--", "sh", "-c", line])
    }

    /// Writes a labelled Pod of this class with one container, and `more` below the container's fields.
    pub fn script_pod(&self, name: &str, script: &str, more: &str) -> String {
        self.pod(name, &self.script_pod_text(name, script, more))
    }

    /// The document of such a Pod.
    pub fn document(&self, name: &str, script: &str, more: &str) -> String {
        let spec = self.script_pod_text(name, script, more);
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{spec}\n---\n")
    }

    fn script_pod_text(&self, name: &str, script: &str, more: &str) -> String {
        let script = script.replace('\'', "''");
        format!(
            "{CLASS}  terminationGracePeriodSeconds: 1\n  containers:\n  - name: {name}\n    image: {IMAGE}\n    \
             imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n{more}"
        )
    }
}

impl Deref for Vms {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}
