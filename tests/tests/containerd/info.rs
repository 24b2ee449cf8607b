//! `-info`: what containerd since 2.0 asks of a handler before its first container.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use coracle_proto::types::RuntimeInfo;
use coracle_proto::{Any, Message, any, runc};
use coracle_tests::bin;
use serde_json::Value;

fn ask(input: &[u8]) -> Output {
    let mut command = Command::new(bin("containerd-shim-coracle-v1"));
    command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn info(input: &[u8]) -> (RuntimeInfo, Value) {
    let output = ask(input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let info = RuntimeInfo::decode(output.stdout.as_slice()).unwrap();
    let features = info.features.clone().unwrap();
    assert_eq!(features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    (info, serde_json::from_slice(&features.value).unwrap())
}

#[test]
fn it_tells_its_name_its_version_and_its_features() {
    let (info, features) = info(b"");
    assert_eq!(info.name, "io.containerd.coracle.v1");
    assert!(!info.version.unwrap().version.is_empty());
    assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()), "{features}");
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    let output = Command::new(bin("coracle-oci")).arg("features").output().unwrap();
    assert_eq!(features, serde_json::from_slice::<Value>(&output.stdout).unwrap(), "as the runtime tells");
}

#[test]
fn a_binary_of_the_options_is_asked_in_its_place() {
    let options = any::pack(&runc::Options { binary_name: "runc".into(), ..Default::default() });
    let (info, features) = info(&options.encode_to_vec());
    assert_eq!(info.options, Some(options));
    assert!(features["annotations"]["org.opencontainers.runc.version"].is_string(), "{features}");
    let unknown = Any { type_url: "io.containerd.runsc.v1.options".into(), value: Vec::new() };
    let output = ask(&unknown.encode_to_vec());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("runsc"));
}
