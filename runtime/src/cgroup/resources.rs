//! `linux.resources` as it is read: for what the type of the specification's crate cannot tell apart.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// `linux.resources`. `pids` without a limit asks for nothing; the type would make it a limit of 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources(LinuxResources);

impl std::ops::Deref for Resources {
    type Target = LinuxResources;

    fn deref(&self) -> &LinuxResources {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let unset = |pids: &Value| pids.is_object() && pids.get("limit").is_none_or(Value::is_null);
        if value.get("pids").is_some_and(unset) {
            value.as_object_mut().and_then(|resources| resources.remove("pids"));
        }
        serde_json::from_value(value).map(Resources).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_without_a_limit_ask_for_none() {
        let read = |text| serde_json::from_str::<Resources>(text);
        for text in [r#"{"pids":{}}"#, r#"{"pids":{"limit":null}}"#, "{}"] {
            assert!(read(text).unwrap().pids().is_none(), "{text}");
        }
        assert_eq!(read(r#"{"pids":{"limit":0}}"#).unwrap().pids().unwrap().limit(), 0);
        assert!(read(r#"{"pids":5}"#).is_err());
    }
}
