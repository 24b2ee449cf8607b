//! What containerd writes to our standard input at `start`.
//!
//! | containerd | input | answer |
//! |---|---|---|
//! | up to 1.6 | the runtime options, or nothing | the address as text |
//! | 1.7 to 2.2 (`MAX_SHIM_VERSION` is set) | the same | `{"version":2,"address":...,"protocol":"ttrpc"}` |
//! | since 2.3 | `BootstrapParams`, with the options as an extension | `BootstrapResult` |
//!
//! Options can decode as parameters; only those with the id and the namespace of the command line are taken for such.

use super::{Containerd, options};
use anyhow::{Context, Result, anyhow};
use coracle_proto::bootstrap::BootstrapParams;
use coracle_proto::{Any, Message, any, runc, runtime_options};
use std::io::Read;

/// As much as containerd's own shims read.
const MAX_INPUT: u64 = 10 << 20;
/// This level and those below ask for messages.
const DEBUG_LEVEL: i32 = -4;

/// What was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Input {
    /// The runtime options.
    pub options: runc::Options,
    /// Messages are wanted.
    pub debug: bool,
}

/// Reads it; what it says about containerd is noted there.
pub fn read(input: impl Read, id: &str, containerd: &mut Containerd) -> Result<Input> {
    let mut bytes = Vec::new();
    input.take(MAX_INPUT).read_to_end(&mut bytes).context("read the parameters on standard input")?;
    let packed = match BootstrapParams::decode(bytes.as_slice()) {
        Ok(params) if params.instance_id == id && params.namespace == containerd.namespace => {
            let debug = params.log_level <= DEBUG_LEVEL;
            let options = adopt(params, containerd);
            return Ok(Input { options: unpack(options.as_ref())?, debug });
        }
        _ => Any::decode(bytes.as_slice()).context("the parameters on standard input do not decode")?,
    };
    Ok(Input { options: unpack(Some(&packed))?, debug: false })
}

fn unpack(packed: Option<&Any>) -> Result<runc::Options> {
    options::read(packed).map_err(|why| anyhow!(why))
}

/// Takes over what parameters say, and returns the runtime options among them. Other extensions are for other shims.
fn adopt(params: BootstrapParams, containerd: &mut Containerd) -> Option<Any> {
    containerd.bootstrap = true;
    containerd.socket_folder = params.socket_dir.filter(|folder| !folder.is_empty()).map(Into::into);
    if !params.containerd_ttrpc_address.is_empty() {
        let address = params.containerd_ttrpc_address;
        containerd.ttrpc_address = address.strip_prefix("unix://").unwrap_or(&address).into();
    }
    let mut values = params.extensions.into_iter().filter_map(|extension| extension.value);
    values.find(|value| any::is::<runc::Options>(value) || any::is::<runtime_options::Options>(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proto::bootstrap::Extension;

    fn containerd() -> Containerd {
        Containerd::for_tests("k8s.io", "/run/containerd/containerd.sock")
    }

    #[test]
    fn older_containerds_write_the_options_or_nothing() {
        let mut known = containerd();
        assert_eq!(read(&b""[..], "web", &mut known).unwrap(), Input::default());
        let options = runc::Options { shim_cgroup: "/shims".into(), ..Default::default() };
        let bytes = any::pack(&options).encode_to_vec();
        let input = read(bytes.as_slice(), "web", &mut known).unwrap();
        assert_eq!((input.options, known.bootstrap), (options, false));
        assert!(read(&b"\xff\xff"[..], "web", &mut known).is_err());
    }

    #[test]
    fn newer_ones_write_parameters_for_this_container() {
        let options = runc::Options { root: "/r".into(), ..Default::default() };
        let extension = |value| Extension { value: Some(value) };
        let params = BootstrapParams {
            instance_id: "web".into(),
            namespace: "k8s.io".into(),
            log_level: -4,
            containerd_ttrpc_address: "unix:///t.sock".into(),
            containerd_binary: "/usr/bin/containerd".into(),
            extensions: vec![
                extension(Any { type_url: "containerd.io/other".into(), value: vec![1] }),
                extension(any::pack(&options)),
            ],
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        };
        let (mut known, bytes) = (containerd(), params.encode_to_vec());
        assert_eq!(read(bytes.as_slice(), "web", &mut known).unwrap(), Input { options, debug: true });
        assert!(known.bootstrap);
        assert_eq!(known.socket_folder.unwrap(), std::path::Path::new("/run/s"));
        assert_eq!(known.ttrpc_address, std::path::Path::new("/t.sock"));
        // Another container's are no parameters of ours, and no options either.
        assert!(read(bytes.as_slice(), "other", &mut containerd()).is_err());
    }
}
