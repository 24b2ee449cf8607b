//! update: limits from a file or from flags.

use std::io::Read;

use anyhow::{Context, Result, bail};
use coracle_runtime::Runtime;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::args::Update;

/// A resources file is read no further.
const MAX_BYTES: u64 = 1 << 20;

/// update
pub fn update(runtime: &Runtime, args: &Update) -> Result<()> {
    if args.l3_cache_schema.is_some() || args.mem_bw_schema.is_some() {
        bail!("--l3-cache-schema and --mem-bw-schema are not supported yet");
    }
    let resources = match &args.resources {
        Some(file) => from_file(file)?,
        None => from_flags(args)?,
    };
    Ok(runtime.update(&args.words[0], &resources)?)
}

fn from_file(file: &std::path::Path) -> Result<LinuxResources> {
    let what = || format!("read {}", file.display());
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).with_context(what)?;
    } else {
        std::fs::File::open(file).with_context(what)?.take(MAX_BYTES).read_to_string(&mut text).with_context(what)?;
    }
    serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
}

/// The flags are a resources document: written as one, so that both ways go through one parser.
fn from_flags(args: &Update) -> Result<LinuxResources> {
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
    ]);
    let pids = section(&[("limit", json!(args.pids_limit))]);
    let block_io = section(&[("weight", json!(args.blkio_weight))]);
    let all =
        section(&[("cpu", json!(cpu)), ("memory", json!(memory)), ("pids", json!(pids)), ("blockIO", json!(block_io))]);
    let Some(all) = all else { bail!("nothing to update: give limits by flags, or a file by --resources") };
    serde_json::from_value(all).context("the flags make no resources")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<LinuxResources> {
        from_flags(&crate::cli::flags::parse(words.iter().map(|word| (*word).to_owned()), false).unwrap())
    }

    #[test]
    fn flags_become_resources() {
        let resources = parsed(&["--memory", "1048576", "--pids-limit", "-1", "--cpuset-cpus", "0", "c"]).unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(1_048_576));
        assert_eq!(resources.pids().unwrap().limit(), -1);
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0"));
        assert!(resources.block_io().is_none());
    }

    #[test]
    fn nothing_to_update_is_an_error() {
        assert!(parsed(&["c"]).is_err());
    }
}
