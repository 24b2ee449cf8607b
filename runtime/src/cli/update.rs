//! update: limits from a file or from flags.

use std::io::Read;

use anyhow::{Context, Result};
use coracle_runtime::Runtime;
use coracle_runtime::cgroup::Resources;
use serde_json::{Map, Value, json};

use super::args::Update;

/// A resources file is read no further.
const MAX_BYTES: u64 = 1 << 20;

/// update
pub fn update(runtime: &Runtime, args: &Update) -> Result<()> {
    let (l3_cache, mem_bw) = (args.l3_cache_schema.as_deref(), args.mem_bw_schema.as_deref());
    let rdt = l3_cache.is_some() || mem_bw.is_some();
    let resources = match &args.resources {
        Some(file) => Some(from_file(file)?),
        None => from_flags(args)?,
    };
    if rdt {
        runtime.update_rdt(&args.words[0], l3_cache, mem_bw)?;
    }
    // Nothing to change is no error, as with runc; that the container runs is checked all the same.
    Ok(runtime.update(&args.words[0], &resources.unwrap_or_default())?)
}

fn from_file(file: &std::path::Path) -> Result<Resources> {
    let what = || format!("read {}", file.display());
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).with_context(what)?;
    } else {
        std::fs::File::open(file).with_context(what)?.take(MAX_BYTES).read_to_string(&mut text).with_context(what)?;
    }
    serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
}

/// The flags are a resources document: written as one, so that both ways go through one parser. `None` without any.
fn from_flags(args: &Update) -> Result<Option<Resources>> {
    fn section(pairs: &[(&str, Value)]) -> Option<Value> {
        let map: Map<String, Value> =
            pairs.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        (!map.is_empty()).then_some(Value::Object(map))
    }
    let cpu = section(&[
        ("shares", json!(args.cpu_share)),
        ("quota", json!(args.cpu_quota)),
        ("period", json!(args.cpu_period)),
        ("burst", json!(args.cpu_burst)),
        ("realtimeRuntime", json!(args.cpu_rt_runtime)),
        ("realtimePeriod", json!(args.cpu_rt_period)),
        ("idle", json!(args.cpu_idle)),
        ("cpus", json!(args.cpuset_cpus)),
        ("mems", json!(args.cpuset_mems)),
    ]);
    let memory = section(&[
        ("limit", json!(args.memory)),
        ("reservation", json!(args.memory_reservation)),
        ("swap", json!(args.memory_swap)),
        ("kernel", json!(args.kernel_memory)),
        ("kernelTCP", json!(args.kernel_memory_tcp)),
    ]);
    let pids = section(&[("limit", json!(args.pids_limit))]);
    let block_io = section(&[("weight", json!(args.blkio_weight))]);
    let all =
        section(&[("cpu", json!(cpu)), ("memory", json!(memory)), ("pids", json!(pids)), ("blockIO", json!(block_io))]);
    all.map(|all| serde_json::from_value(all).context("the flags make no resources")).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Resources>> {
        from_flags(&crate::cli::flags::parse(words.iter().map(|word| (*word).to_owned()), false).unwrap())
    }

    #[test]
    fn flags_become_resources() {
        let resources =
            parsed(&["--memory", "1048576", "--pids-limit", "-1", "--cpuset-cpus", "0", "c"]).unwrap().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(1_048_576));
        assert_eq!(resources.pids().unwrap().limit(), -1);
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0"));
        assert!(resources.block_io().is_none());
    }

    #[test]
    fn without_flags_there_are_no_resources() {
        assert!(parsed(&["--l3-cache-schema", "L3:0=f", "c"]).unwrap().is_none());
    }
}
