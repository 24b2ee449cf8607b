//! The entrances of the fuzzer (tests/fuzz), which no other build has: parsers that meet what others wrote, each with what
//! must hold whatever they meet.

use std::path::{Component, Path};

use oci_spec::runtime::LinuxSeccomp;

use crate::cgroup::{Cgroup, CgroupPath, CgroupState, Group, Version};
use crate::identity::Identity;
use crate::spec::Spec;
use crate::state::Record;
use crate::{hooks, idmap, options, refuse, seccomp, state};

/// config.json: refused in one line of words, or understood.
pub fn config(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    if let Err(error) = refuse::check(&spec) {
        // What the words quote is escaped.
        assert!(!error.to_string().contains('\n'), "{error}");
        return;
    }
    for mount in &spec.mounts {
        let _ = options::parse(&mount.options, "here");
    }
    for name in spec.linux.sysctl.keys() {
        let path = refuse::sysctl_path(name);
        assert!(Path::new(&path).components().all(|part| matches!(part, Component::Normal(_))), "{path}");
    }
    let _ = CgroupPath::new(spec.linux.cgroups_path.as_deref().map(Path::new), "id");
    let filter = spec.linux.profile().ok().flatten().and_then(|profile| seccomp::compile(&profile).ok());
    if let Some(process) = &spec.process {
        let _ = Identity::plan(process, &spec.linux, filter, None);
    }
    let told = state::hook_state(&spec, "id", Path::new("/bundle"), "creating", 1);
    assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok(), "{told}");
}

/// state.json: what is read is what was written.
pub fn record(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(data) else { return };
    let text = serde_json::to_string(&record).expect("a record can be written");
    let again: Record = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_string(&again).expect("twice"), text);
    if refuse::check_id(&record.id).is_ok() {
        assert!(!record.id.contains('/') && record.id != "..", "{:?} is a path", record.id);
    }
}

/// A seccomp profile: a program that the kernel takes, for no jump of it leads out.
pub fn profile(data: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(data) else { return };
    let Ok(program) = seccomp::compile(&profile) else { return };
    let instructions = program.instructions();
    assert!(!instructions.is_empty() && instructions.len() <= 4096, "{} instructions", instructions.len());
    for (at, instruction) in instructions.iter().enumerate() {
        let class = u32::from(instruction.code) & 0x07;
        if class != libc::BPF_JMP {
            continue;
        }
        let far = match u32::from(instruction.code) & 0xf0 {
            libc::BPF_JA => instruction.operand as usize,
            _ => instruction.jump_true.max(instruction.jump_false) as usize,
        };
        assert!(at + 1 + far < instructions.len(), "the jump at {at} leads out");
    }
    assert_eq!(u32::from(instructions[instructions.len() - 1].code) & 0x07, libc::BPF_RET, "it does not end");
}

/// What a failed hook wrote: one line of an error.
pub fn hook_output(data: &[u8]) {
    let words = hooks::words(data);
    assert!(!words.contains('\n'), "{words:?}");
}

/// cgroupsPath, the kernel's tables of cgroups, systemd's properties and messages, maps of ids.
pub fn cgroup(data: &[u8]) {
    crate::cgroup::fuzz::systemd(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    crate::cgroup::fuzz::paths(text);
    let _ = idmap::parse(text);
    assert!(refuse::check_id(text).is_err() || (!text.contains('/') && text != ".." && !text.is_empty()), "{text:?}");
}

/// The files of a cgroup, each with this content, in a directory of the caller's.
pub fn stats(data: &[u8], directory: &Path) {
    const V1: [&str; 5] = ["cpu,cpuacct", "memory", "pids", "blkio", "hugetlb"];
    const FILES: [&str; 12] = [
        "cpu.stat",
        "cpu.pressure",
        "memory.stat",
        "memory.current",
        "memory.events",
        "memory.max",
        "io.stat",
        "pids.current",
        "cpuacct.usage_percpu",
        "cpuacct.usage_all",
        "memory.usage_in_bytes",
        "blkio.throttle.io_serviced",
    ];
    for file in FILES {
        std::fs::write(directory.join(file), data).expect("write into the directory");
    }
    let group = |controllers: &str| Group {
        controllers: controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        path: directory.to_owned(),
    };
    for (version, groups) in [(Version::V2, vec![group("")]), (Version::V1, V1.map(group).to_vec())] {
        let text = serde_json::json!({ "version": version, "groups": groups }).to_string();
        let state: CgroupState = serde_json::from_str(&text).expect("a state without the newer fields");
        if let Ok(stats) = Cgroup::open(&state).stats() {
            assert!(serde_json::to_string(&stats).is_ok());
        }
    }
}
