//! `google.protobuf.Any` as containerd uses it: the type url of a protobuf message is its full name, without a host;
//! OCI documents travel as JSON under a url of their own.

use crate::Any;
use prost::{DecodeError, Message, Name};

/// Type url of an OCI process as JSON (`ExecProcessRequest.spec`).
pub const OCI_PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type url of OCI LinuxResources as JSON (`UpdateTaskRequest.resources`).
pub const OCI_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Type url of an OCI runtime spec as JSON.
pub const OCI_SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Packs a message under its full name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Packs a JSON document under one of the urls above.
pub fn pack_json(type_url: &str, json: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: json }
}

/// Whether the url names the type `M`, with a host before it or without.
pub fn is<M: Name>(any: &Any) -> bool {
    names(&any.type_url, &M::full_name())
}

/// Unpacks a message of type `M`; `None` when the url names another type.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Option<Result<M, DecodeError>> {
    is::<M>(any).then(|| M::decode(any.value.as_slice()))
}

/// Whether a type url names a type, with a host before it or without.
pub fn names(type_url: &str, full_name: &str) -> bool {
    type_url.strip_suffix(full_name).is_some_and(|host| host.is_empty() || host.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coracle::{NamespaceMode, SandboxOptions};
    use crate::runc;

    #[test]
    fn a_message_is_packed_under_its_bare_full_name_and_found_again() {
        let options = SandboxOptions { hostname: "web".into(), pid: NamespaceMode::Node.into(), ..Default::default() };
        let any = pack(&options);
        assert_eq!(any.type_url, "coracle.v1.SandboxOptions");
        assert_eq!(unpack::<SandboxOptions>(&any).unwrap().unwrap(), options);
        assert!(unpack::<runc::Options>(&any).is_none());
    }

    #[test]
    fn a_host_before_the_name_is_accepted_but_a_longer_name_is_not() {
        assert!(names("type.googleapis.com/coracle.v1.X", "coracle.v1.X"));
        assert!(!names("not.coracle.v1.X", "coracle.v1.X"));
        assert!(!names("", "coracle.v1.X"));
    }
}
