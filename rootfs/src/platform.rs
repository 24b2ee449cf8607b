//! Platforms as image indexes name them: operating system, architecture, variant; and which of them this machine runs.
//!
//! An index entry suits if it *is* the platform, or an older variant of the same architecture that the machine runs
//! too: amd64 v3 runs v2 and v1 (which is written without variant), arm v7 runs v6 and v5. 64-bit machines are not
//! given 32-bit images unasked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// An operating system, an architecture in Go's words, and maybe a variant of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, ...
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine. On amd64 the variant is the level of the x86-64 instruction set it has.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", x86_64_level()),
            "aarch64" => ("arm64", Some("v8")),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            other => (other, None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(String::from) }
    }

    /// How well an image for `image` suits this platform: `None` is not at all, and more is better.
    pub fn suits(&self, image: &Platform) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        let own = level(&self.architecture, self.variant.as_deref())?;
        let its = level(&image.architecture, image.variant.as_deref())?;
        (its <= own).then_some(its)
    }
}

/// The number of a variant; a missing one is the architecture's base line. Unknown variants suit nothing.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let variant = match (architecture, variant.unwrap_or_default()) {
        ("amd64", "") => "v1",
        ("arm64", "") => "v8",
        ("arm", "") => "v7",
        (_, "") => "v0",
        (_, other) => other,
    };
    // v8.1 counts as between v8 and v9.
    let (major, minor) = variant.strip_prefix('v')?.split_once('.').unwrap_or((&variant[1..], "0"));
    Some(major.parse::<u16>().ok()? as u32 * 100 + u32::from(minor.parse::<u8>().ok()?.min(99)))
}

#[cfg(target_arch = "x86_64")]
fn x86_64_level() -> Option<&'static str> {
    let v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("movbe");
    match (v2, v3) {
        (_, true) => Some("v3"),
        (true, _) => Some("v2"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_64_level() -> Option<&'static str> {
    None
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(inner)
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(plain) {
            return Err(Error::new(ErrorKind::Invalid, format!("platform {text:?}: not OS/ARCHITECTURE[/VARIANT]"))
                .hint("as in linux/amd64 or linux/arm/v7"));
        }
        // The names that `uname -m` prints are what people type; the ecosystem's are Go's.
        let architecture = match parts[1] {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "i386" | "i686" => "386",
            other => other,
        };
        let variant = parts.get(2).map(|variant| (*variant).to_owned());
        Ok(Platform { os: parts[0].into(), architecture: architecture.into(), variant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn older_variants_suit_and_newer_do_not() {
        let v3 = platform("linux/amd64/v3");
        assert!(v3.suits(&platform("linux/amd64/v3")) > v3.suits(&platform("linux/amd64")));
        assert!(v3.suits(&platform("linux/amd64")).is_some());
        assert_eq!(v3.suits(&platform("linux/amd64/v4")), None);
        assert_eq!(v3.suits(&platform("linux/arm64")), None);
        assert_eq!(v3.suits(&platform("windows/amd64")), None);
        assert_eq!(v3.suits(&platform("linux/amd64/odd")), None);
        assert!(platform("linux/arm64").suits(&platform("linux/arm64/v8")).is_some());
        assert!(platform("linux/arm/v7").suits(&platform("linux/arm/v6")).is_some());
        assert!(platform("linux/riscv64").suits(&platform("linux/riscv64")).is_some());
    }

    #[test]
    fn text_goes_both_ways() {
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        assert_eq!(platform("linux/x86_64").to_string(), "linux/amd64");
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/../x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!(Platform::host().os, "linux");
    }
}
