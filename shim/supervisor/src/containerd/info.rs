//! `-info`: what containerd asks a runtime handler about itself, before any container: its version, and the OCI features of
//! the runtime beneath. The runtime options are on standard input, as for `start`; a binary among them is asked instead of us.

use super::options;
use anyhow::{Context, Result, anyhow, ensure};
use coracle_proto::types::{RuntimeInfo, RuntimeVersion};
use coracle_proto::{Any, Message, any};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

/// The handler's name in containerd's configuration.
const HANDLER: &str = "io.containerd.coracle.v1";
/// Type url of the features document.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// No options are longer.
const MAX_INPUT: u64 = 10 << 20;

/// Reads the options and prints the answer.
pub fn tell() -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().take(MAX_INPUT).read_to_end(&mut bytes).context("info: read the options")?;
    let packed = Any::decode(bytes.as_slice()).context("info: the options do not decode")?;
    let options = options::read(Some(&packed)).map_err(|why| anyhow!("info: {why}"))?;
    let features = match options.binary_name.as_str() {
        "" => Some(coracle_runtime::features()),
        // One that does not know the question is a runtime all the same.
        binary => ask(binary)?,
    };
    let features = features.map(|features| any::pack_json(FEATURES, features.to_string().into_bytes()));
    let info = RuntimeInfo {
        name: HANDLER.to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() }),
        options: (!packed.type_url.is_empty()).then_some(packed),
        features,
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.encode_to_vec()).context("info: write the answer")
}

/// The features that a program with runc's command line tells.
fn ask(binary: &str) -> Result<Option<Value>> {
    let output = Command::new(binary).arg("features").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("info: run {binary}"))?;
    if !output.status.success() {
        return Ok(None);
    }
    let features: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("info: {binary} features"))?;
    ensure!(features.is_object(), "info: {binary} features: it is no JSON object");
    Ok(Some(features))
}
