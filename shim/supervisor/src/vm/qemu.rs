//! QEMU's `microvm`: no PCI, no firmware, a kernel by its PVH entry, and on virtio-mmio only what a pod needs:
//!
//! | device | for |
//! |---|---|
//! | virtio-serial | the link to the guest, its port `coracle` |
//! | virtio-scsi | disks, which are plugged in: microvm has no other hotplug |
//! | virtio-net | the pod's network, by a tap device |
//! | virtio-rng | random numbers |
//! | virtio-fs | folders of the host, by a server of them with which it shares its memory; only where they are let in |
//! | serial port | the console, to standard output |
//!
//! A machine with its memory in a file can be saved and restored: what is shared is left out of its state, which is then a
//! tenth of a megabyte, and goes through a descriptor.
//!
//! Under emulation some things are otherwise. QEMU 7.2's cmpxchg16b loses updates when threads compete, and Linux then
//! dies in its allocator: the processor has none. There is no timer that Linux could calibrate the time-stamp counter
//! by, so it is told the frequency, which is this machine's own.

use super::qmp::Qmp;
use super::vmm::{Accelerator, Descriptors, INITRD, KERNEL, MEMORY, SHARE_TAG, Spec, Vmm};
use crate::failure::{Fail, Failure};
use coracle_proto::ttrpc::Code;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// What its own filter of system calls forbids.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
const MACHINE: &str = "microvm,mem-merge=off,dump-guest-core=off";
/// Its memory is an object of its own: a file, or memory that another process shares.
const MACHINE_OF_OBJECT: &str = "microvm,mem-merge=off,dump-guest-core=off,memory-backend=memory";
/// For every guest. A panic ends the machine (`-no-reboot`), and nobody looks for devices that are not there: of disks none
/// is, and its init allows them to be found before the first is plugged in.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests pci=off audit=0 scsi_mod.scan=manual";
/// The guest answers a request to give a disk back in a moment, or not at all.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(10);
/// A machine's state is written or read in a moment, and looked for this often.
const STATE_PATIENCE: Duration = Duration::from_secs(30);
const STATE_PAUSE: Duration = Duration::from_millis(2);
/// By which the monitor knows the descriptor.
const STATE: &str = "state";

/// QEMU.
pub struct Qemu;

impl Vmm for Qemu {
    fn arguments(&self, spec: &Spec, descriptors: &Descriptors) -> Vec<String> {
        let mut command_line = COMMAND_LINE.to_owned();
        let (accelerator, cpu) = match spec.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Emulation { tsc_khz } => {
                command_line += " tsc=reliable no_timer_check";
                if tsc_khz > 0 {
                    command_line += &format!(" tsc_early_khz={tsc_khz}");
                }
                ("tcg,thread=multi", "max,-cx16")
            }
        };
        if !spec.kernel_arguments.is_empty() {
            command_line += &format!(" {}", spec.kernel_arguments);
        }
        let listener = |id: &str, fd: i32| format!("socket,id={id},fd={fd},server=on,wait=off");
        let memory = format!("{}M", spec.memory_bytes >> 20);
        let (cpus, agent, control) =
            (spec.cpus.to_string(), listener("agent", descriptors.agent), listener("qmp", descriptors.control));
        let mut words = vec![
            ("-machine", if spec.memory_file || descriptors.share.is_some() { MACHINE_OF_OBJECT } else { MACHINE }),
            ("-accel", accelerator),
            ("-cpu", cpu),
            ("-smp", &cpus),
            ("-m", &memory),
            ("-sandbox", SANDBOX),
            ("-nodefaults", ""),
            ("-no-user-config", ""),
            ("-display", "none"),
            ("-no-reboot", ""),
            ("-kernel", KERNEL),
            ("-initrd", INITRD),
            ("-append", &command_line),
            ("-chardev", "stdio,id=console,signal=off"),
            ("-serial", "chardev:console"),
            ("-chardev", &control),
            ("-mon", "chardev=qmp,mode=control"),
            ("-global", "virtio-mmio.force-legacy=false"),
            ("-chardev", &agent),
            ("-device", "virtio-serial-device,id=serial0,max_ports=2"),
            ("-device", "virtserialport,id=port0,bus=serial0.0,chardev=agent,name=coracle"),
            ("-device", "virtio-scsi-device,id=scsi0"),
            ("-object", "rng-builtin,id=random0"),
            ("-device", "virtio-rng-device,rng=random0"),
        ];
        let network = descriptors.tap.map(|fd| format!("tap,id=net0,fd={fd},vhost=off"));
        let of_file =
            format!("memory-backend-file,id=memory,size={memory},mem-path={MEMORY},share=on,merge=off,dump=off");
        if spec.memory_file {
            words.push(("-object", &of_file));
        }
        let of_nobody = format!("memory-backend-memfd,id=memory,size={memory},share=on,merge=off,dump=off");
        let share = descriptors.share.map(|fd| format!("socket,id=share,fd={fd}"));
        let shared = format!("vhost-user-fs-device,chardev=share,tag={SHARE_TAG}");
        if let Some(share) = &share {
            words.extend([("-object", of_nobody.as_str()), ("-chardev", share), ("-device", &shared)]);
        }
        if spec.incoming {
            words.push(("-incoming", "defer"));
        }
        if let Some(network) = &network {
            words.extend([("-netdev", network.as_str()), ("-device", "virtio-net-device,netdev=net0")]);
        }
        let words = words.into_iter().flat_map(|(flag, value)| [flag, value]).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    fn plug(&self, folder: &Path, serial: &str, file: &File, read_only: bool) -> Result<(), Failure> {
        let mut qmp = Qmp::connect(folder)?;
        let added = qmp.command_with("add-fd", json!({ "opaque": serial }), file.as_fd())?;
        let Some(set) = added["fdset-id"].as_u64() else {
            return Err(Code::DataLoss.failure(format!("plug in disk {serial}: add-fd is answered {added}")));
        };
        let plugged = plug_set(&mut qmp, serial, set, read_only);
        if plugged.is_err() {
            let _ = qmp.command("remove-fd", json!({ "fdset-id": set }));
        }
        plugged
    }

    fn unplug(&self, folder: &Path, serial: &str) -> Result<(), Failure> {
        let mut qmp = Qmp::connect(folder)?;
        qmp.command("device_del", json!({ "id": serial }))?;
        let deleted =
            |event: &serde_json::Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == *serial;
        qmp.event(deleted, UNPLUG_PATIENCE).map_err(|error| {
            Code::DeadlineExceeded.failure(format!("take disk {serial} away: the guest does not let go of it: {error}"))
        })?;
        qmp.command("blockdev-del", json!({ "node-name": serial }))?;
        remove_set(&mut qmp, serial)
    }

    fn save(&self, folder: &Path, state: &File) -> Result<(), Failure> {
        let mut qmp = Qmp::connect(folder)?;
        qmp.command("stop", json!({}))?;
        leave_memory_out(&mut qmp)?;
        qmp.command_with("getfd", json!({ "fdname": STATE }), state.as_fd())?;
        qmp.command("migrate", json!({ "uri": format!("fd:{STATE}") }))?;
        until(&mut qmp, "query-migrate", |answer| match answer["status"].as_str() {
            Some("completed") => Some(Ok(())),
            Some(status @ ("failed" | "cancelled")) => Some(Err(status.to_owned())),
            _ => None,
        })
    }

    fn restore(&self, folder: &Path, state: &File) -> Result<(), Failure> {
        let mut qmp = Qmp::connect(folder)?;
        leave_memory_out(&mut qmp)?;
        qmp.command_with("getfd", json!({ "fdname": STATE }), state.as_fd())?;
        qmp.command("migrate-incoming", json!({ "uri": format!("fd:{STATE}") }))?;
        until(&mut qmp, "query-status", |answer| match answer["status"].as_str() {
            Some("inmigrate") => None,
            Some("paused" | "running" | "postmigrate") => Some(Ok(())),
            status => Some(Err(status.unwrap_or_default().to_owned())),
        })?;
        qmp.command("cont", json!({})).map(drop)
    }

    fn wait_for_port(&self, folder: &Path, patience: Duration) -> Result<(), Failure> {
        let mut qmp = Qmp::connect(folder)?;
        let told = |event: &serde_json::Value| match event["event"].as_str() {
            Some("VSERPORT_CHANGE") => event["data"]["open"] == true,
            // It cannot run what it was told to.
            Some("STOP") => true,
            _ => false,
        };
        let failed = |error: std::io::Error| Code::DeadlineExceeded.failure(format!("wait for the guest: {error}"));
        let event = qmp.event(told, patience).map_err(failed)?;
        match event["event"] == "STOP" {
            true => Err(Code::Aborted.failure("the machine stops before its guest is up".into())),
            false => Ok(()),
        }
    }
}

/// Memory that is in a shared file is no part of the state.
fn leave_memory_out(qmp: &mut Qmp) -> Result<(), Failure> {
    let capability = json!({ "capability": "x-ignore-shared", "state": true });
    qmp.command("migrate-set-capabilities", json!({ "capabilities": [capability] })).map(drop)
}

/// Asks until the answer is one.
fn until(
    qmp: &mut Qmp,
    question: &str,
    done: impl Fn(&serde_json::Value) -> Option<Result<(), String>>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + STATE_PATIENCE;
    loop {
        match done(&qmp.command(question, json!({}))?) {
            Some(Ok(())) => return Ok(()),
            Some(Err(status)) => {
                return Err(Code::Unknown.failure(format!("save or restore a machine: {question}: {status}")));
            }
            None if Instant::now() >= deadline => {
                return Err(Code::DeadlineExceeded.failure(format!("save or restore a machine: {question}: no end")));
            }
            None => std::thread::sleep(STATE_PAUSE),
        }
    }
}

fn plug_set(qmp: &mut Qmp, serial: &str, set: u64, read_only: bool) -> Result<(), Failure> {
    let node = json!({
        "driver": "raw",
        "node-name": serial,
        "read-only": read_only,
        "file": { "driver": "file", "filename": format!("/dev/fdset/{set}"), "read-only": read_only },
    });
    qmp.command("blockdev-add", node)?;
    let device = json!({ "driver": "scsi-hd", "id": serial, "drive": serial, "bus": "scsi0.0", "serial": serial });
    let added = qmp.command("device_add", device);
    if added.is_err() {
        let _ = qmp.command("blockdev-del", json!({ "node-name": serial }));
    }
    added.map(drop)
}

/// The monitor closes the file of a disk that is gone.
fn remove_set(qmp: &mut Qmp, serial: &str) -> Result<(), Failure> {
    let sets = qmp.command("query-fdsets", json!({}))?;
    let of_disk = |set: &&serde_json::Value| {
        set["fds"].as_array().is_some_and(|fds| fds.iter().any(|fd| fd["opaque"] == *serial))
    };
    match sets.as_array().and_then(|sets| sets.iter().find(of_disk)) {
        Some(set) => qmp.command("remove-fd", json!({ "fdset-id": set["fdset-id"] })).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(accelerator: Accelerator, tap: Option<i32>, share: Option<i32>) -> String {
        let spec = Spec {
            accelerator,
            memory_bytes: 256 << 20,
            cpus: 2,
            kernel_arguments: "lsm=landlock".into(),
            memory_file: false,
            incoming: false,
        };
        Qemu.arguments(&spec, &Descriptors { agent: 5, control: 6, tap, share }).join(" ")
    }

    #[test]
    fn an_emulated_processor_lacks_what_is_broken_and_is_told_its_clock() {
        let words = arguments(Accelerator::Emulation { tsc_khz: 2_596_122 }, None, None);
        assert!(words.contains("-accel tcg,thread=multi -cpu max,-cx16 -smp 2 -m 256M"), "{words}");
        assert!(words.contains("tsc_early_khz=2596122 lsm=landlock"), "{words}");
        assert!(!words.contains("net") && !words.contains("memory-backend") && !words.contains("-fs-"), "{words}");
        let words = arguments(Accelerator::Kvm, Some(7), Some(8));
        assert!(words.contains("-accel kvm -cpu host"), "{words}");
        assert!(!words.contains("tsc") && !words.contains("cx16"), "{words}");
        assert!(words.contains("-netdev tap,id=net0,fd=7"), "{words}");
        assert!(
            words.contains("memory-backend=memory")
                && words.contains("memory-backend-memfd,id=memory,size=256M,share=on")
        );
        assert!(
            words
                .contains("-chardev socket,id=share,fd=8 -device vhost-user-fs-device,chardev=share,tag=coracle-share")
        );
        assert!(words.contains(SANDBOX) && words.contains("fd=6,server=on,wait=off -mon chardev=qmp"), "{words}");
    }
}
