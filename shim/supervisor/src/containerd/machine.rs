//! A pod of containerd's in a virtual machine: it is booted when the pod's first container is to be made, which is what
//! stands for the pod in the CRI. Its network is there by then: the namespace that its configuration names.
//!
//! ```text
//! Create (Vm = true) --> namespaces; a worker prepares --> the machine boots --> a worker connects it --> Create again
//! ```
//! Requests to create that come meanwhile wait. To containerd all processes of the machine have the supervisor's pid: it is
//! in the pod's network namespace, and it lives as long as they do.

use super::options;
use crate::connection::Call;
use crate::failure::{Fail, Failure};
use crate::oci::Oci;
use crate::ops;
use crate::sandbox::{CGROUP_RECORD, Phase};
use crate::supervisor::{Job, Supervisor};
use crate::vm;
use coracle_proto::coracle::{NamespaceMode, SandboxOptions, VmOptions};
use coracle_proto::task::CreateTaskRequest;
use coracle_proto::ttrpc::Code;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Requests that wait for the machine.
const MAX_EARLY: usize = 256;
/// A configuration is at most this long.
const MAX_CONFIG: u64 = 3 << 20;
/// Of containerd's CRI: the memory of all the pod's containers, in bytes.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// Requests to create that wait for the machine.
pub type Early = Vec<(Call, Vec<u8>)>;

/// What matters of the first container's configuration.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    netns: PathBuf,
    hostname: String,
    domainname: String,
    cgroup: String,
    memory: u64,
}

impl Wanted {
    fn of(config: &Value) -> Wanted {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespaces = config["linux"]["namespaces"].as_array();
        let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
        let told = config["annotations"][MEMORY].as_str().and_then(|text| text.parse().ok());
        let limit = config["linux"]["resources"]["memory"]["limit"].as_i64().and_then(|limit| limit.try_into().ok());
        Wanted {
            netns: network.map(|network| text(&network["path"])).unwrap_or_default().into(),
            hostname: text(&config["hostname"]),
            domainname: text(&config["domainname"]),
            cgroup: text(&config["linux"]["cgroupsPath"]),
            memory: told.filter(|bytes| *bytes > 0).or(limit).unwrap_or(0),
        }
    }

    fn read(bundle: &Path) -> Result<Wanted, Failure> {
        let path = bundle.join("config.json");
        let failed = |why: String| Code::InvalidArgument.failure(format!("the machine of {}: {why}", path.display()));
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text));
        read.map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&text).map(|config| Wanted::of(&config)).map_err(|error| failed(error.to_string()))
    }
}

impl Supervisor {
    /// Whether a request to create has to wait for the pod's machine, which it may begin.
    pub(crate) fn await_machine(
        &mut self,
        call: Call,
        request: &CreateTaskRequest,
        payload: &[u8],
    ) -> Result<bool, Failure> {
        if !self.sandbox.of_containerd() || self.sandbox.vm.as_ref().is_some_and(|vm| vm.is_connected()) {
            return Ok(false);
        }
        if let Some(early) = &mut self.early {
            if early.len() >= MAX_EARLY {
                return Err(Code::ResourceExhausted.failure(format!("{MAX_EARLY} requests wait for the machine")));
            }
            early.push((call, payload.to_vec()));
            return Ok(true);
        }
        if self.sandbox.vm.is_some() {
            self.connect_machine(Vec::new())?;
        } else {
            let invalid = |why| Code::InvalidArgument.failure(format!("container {}: {why}", request.id));
            let Some(vm) = options::machine(request.options.as_ref()).map_err(invalid)? else { return Ok(false) };
            if !self.containers.is_empty() {
                return Err(invalid("its pod is in no virtual machine".to_owned()));
            }
            if self.sandbox.phase != Phase::None {
                return Err(invalid("Vm: a sandbox of containerd's sandbox API cannot be in a machine yet".to_owned()));
            }
            if options::read(request.options.as_ref()).map_err(invalid)?.systemd_cgroup {
                return Err(invalid("SystemdCgroup: the machine's cgroup is none of systemd's".to_owned()));
            }
            self.begin_machine(&request.bundle, vm)?;
        }
        self.early = Some(vec![(call, payload.to_vec())]);
        Ok(true)
    }

    fn begin_machine(&mut self, bundle: &str, mut vm: VmOptions) -> Result<(), Failure> {
        let wanted = Wanted::read(Path::new(bundle))?;
        if wanted.memory > 0 {
            vm.memory_bytes = wanted.memory.saturating_add(options::RESERVE);
        }
        let options = SandboxOptions {
            hostname: wanted.hostname,
            domainname: wanted.domainname,
            pid: NamespaceMode::Container.into(),
            vm: Some(vm.clone()),
            ..Default::default()
        };
        self.sandbox.become_pod(options, wanted.netns)?;
        let (folder, cgroup) = (self.sandbox.bundle.clone(), wanted.cgroup);
        let body = Box::new(move || {
            if !cgroup.is_empty() {
                ops::make_pod_cgroup(&folder.join(CGROUP_RECORD), &cgroup, &[])?;
            }
            vm::prepare(&vm, &folder, &cgroup)
        });
        self.work(Job::Machine, &[], body).inspect_err(|_| self.sandbox.be_no_pod())
    }

    /// What the machine needs is prepared.
    pub(crate) fn machine_prepared(&mut self, result: Result<Vec<u8>, Failure>) {
        // All may be being ended by now.
        let begun = result.and_then(|plan| self.sandbox.check_open().and_then(|()| self.start_vm(&plan)));
        let begun = begun.inspect_err(|_| self.sandbox.be_no_pod());
        if let Err(failure) = begun.and_then(|()| self.connect_machine(Vec::new())) {
            self.machine_ready(Err(failure));
        }
    }

    /// The machine knows its network, or there is none: whoever waits for it goes on.
    pub(crate) fn machine_ready(&mut self, result: Result<(), Failure>) {
        for (call, payload) in self.early.take().unwrap_or_default() {
            let outcome = result.clone().and_then(|()| self.create(call, &payload));
            if let Err(failure) = outcome {
                self.answer(call, Err(failure));
            }
        }
    }

    /// The pid that is told of a container's process. containerd's clients look at it in /proc.
    pub(crate) fn pid_to_tell(&self, id: &str, pid: i32) -> i32 {
        let mut containers = self.containers.iter();
        let in_machine = containers.any(|container| container.id == id && matches!(container.oci, Oci::Vm(_)));
        if in_machine && self.sandbox.of_containerd() { std::process::id() as i32 } else { pid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pod_is_told_by_its_first_container() {
        let config = json!({
            "hostname": "web",
            "annotations": { MEMORY: "1048576" },
            "linux": {
                "cgroupsPath": "/kubepods/pod1/a",
                "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/var/run/netns/cni-1" }],
                "resources": { "memory": { "limit": 5 } },
            },
        });
        let wanted = Wanted::of(&config);
        assert_eq!((wanted.hostname.as_str(), wanted.netns.to_str()), ("web", Some("/var/run/netns/cni-1")));
        assert_eq!((wanted.cgroup.as_str(), wanted.memory), ("/kubepods/pod1/a", 1 << 20));
        let mut one = config.clone();
        one["annotations"] = json!({});
        assert_eq!(Wanted::of(&one).memory, 5);
        assert_eq!(Wanted::of(&json!({})), Wanted::default());
    }
}
