//! Bytes by key in our records: as base64, which is what Kubernetes' own JSON has.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes by key.
pub type Bytes = BTreeMap<String, Vec<u8>>;

/// Writes them.
pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let text: BTreeMap<&String, String> = bytes.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
    text.serialize(serializer)
}

/// Reads them.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text: BTreeMap<String, String> = BTreeMap::deserialize(deserializer)?;
    text.into_iter().map(|(key, value)| Ok((key, decode(&value).map_err(D::Error::custom)?))).collect()
}

/// Decodes base64 as Go does: line breaks may stand anywhere, the padding must be there.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let clean: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    STANDARD.decode(clean).map_err(|error| format!("not base64 ({error}): encode it (`base64 -w0`)"))
}
