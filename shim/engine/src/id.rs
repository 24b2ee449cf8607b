//! Ids: 64 hex digits of the kernel's randomness; people type a prefix.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Hex digits of an id.
pub const LEN: usize = 64;
/// Hex digits that are shown to people.
pub const SHORT: usize = 12;

/// A new id.
pub fn new() -> Result<String> {
    let mut bytes = [0u8; LEN / 2];
    let path = Path::new("/dev/urandom");
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    Ok(hex(&bytes))
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Whether `s` is an id and nothing else, so that it may stand in a path.
pub fn is_id(s: &str) -> bool {
    s.len() == LEN && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first digits.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// The one id that is `prefix` or begins with it.
pub fn resolve(kind: &'static str, prefix: &str, ids: impl IntoIterator<Item = String>) -> Result<String> {
    let missing = || Error::NotFound { kind, name: prefix.to_owned(), hint: None };
    if prefix.is_empty() || prefix.len() > LEN {
        return Err(missing());
    }
    let mut found: Vec<String> = ids.into_iter().filter(|id| id.starts_with(prefix)).collect();
    match (found.len(), found.pop()) {
        (1, Some(id)) => Ok(id),
        (0, _) | (_, None) => Err(missing()),
        (count, _) => Err(Error::Ambiguous { kind, prefix: prefix.to_owned(), count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ids_and_differ() {
        let (a, b) = (new().unwrap(), new().unwrap());
        assert!(is_id(&a) && is_id(&b) && a != b);
        assert!(!is_id("../x") && !is_id(&a[1..]) && !is_id(&a.to_uppercase().replace('0', "G")));
        assert_eq!(short(&a).len(), SHORT);
    }

    #[test]
    fn a_prefix_is_resolved_when_one_id_has_it() {
        let ids = || ["aa1", "ab2", "ab3"].map(String::from);
        assert_eq!(resolve("sandbox", "aa", ids()).unwrap(), "aa1");
        assert!(matches!(resolve("sandbox", "ab", ids()), Err(Error::Ambiguous { count: 2, .. })));
        assert!(resolve("sandbox", "", ids()).unwrap_err().is_not_found());
        assert!(resolve("sandbox", "zz", ids()).unwrap_err().is_not_found());
    }
}
