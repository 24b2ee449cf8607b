//! Values of the configuration that TOML has no type for: spans of time, sizes, and what parses from a string.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};

use crate::kube::quantity::Quantity;

/// The units of a span of time, the longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1000)];

/// A span of time such as `90s`, `1h30m` or `500ms`.
pub fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    text(from, "a span of time such as \"90s\" or \"1h30m\"", parse_span)
}

/// A number of bytes: a number, or a quantity such as `16Mi`.
pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Size;
    impl Visitor<'_> for Size {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number of bytes such as 65536 or \"16Mi\"")
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
            u64::try_from(value).map_err(|_| E::custom("a number of bytes is not negative"))
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            let value = Quantity::parse(text).map_err(E::custom)?;
            u64::try_from(value.value()).map_err(|_| E::custom("a number of bytes is not negative"))
        }
    }
    from.deserialize_any(Size)
}

/// Anything that is read from a string.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    text(from, "a string", |text| text.parse().map_err(|why| format!("{text:?}: {why}")))
}

/// The same, of a key that may be absent.
pub fn parsed_option<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    parsed(from).map(Some)
}

fn text<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<F>(&'static str, F);
    impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
    }
    from.deserialize_any(Text(expected, read))
}

fn parse_span(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no span of time: write such as \"90s\", \"1h30m\" or \"500ms\"");
    let mut millis = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(bad)?;
        millis = number.checked_mul(*factor).and_then(|part| millis.checked_add(part)).ok_or_else(bad)?;
        rest = &tail[unit.len()..];
    }
    match text.is_empty() {
        true => Err(bad()),
        false => Ok(Duration::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_time_is_a_sum_of_numbers_with_units() {
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_span("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "s", "1d", "1 s", "-1s", "99999999999999999999h", "9999999999999999999h"] {
            assert!(parse_span(bad).unwrap_err().contains("is no span of time"), "{bad}");
        }
    }
}
