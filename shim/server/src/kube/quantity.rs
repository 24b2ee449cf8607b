//! Quantities of resources: `500m`, `128Mi`, `0.5`, `1e3`, as Kubernetes writes them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount, kept exactly in units of 10^-9, which is the finest that Kubernetes keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nano: i128,
}

const NANO: i128 = 1_000_000_000;
/// Largest whole number of a quantity, as in Kubernetes: it fits a signed 64 bit number.
const MAX_VALUE: i128 = i64::MAX as i128;
/// Most digits read: more cannot fit in any case.
const MAX_DIGITS: usize = 40;

impl Quantity {
    /// 1.
    pub const ONE: Quantity = Quantity { nano: NANO };

    /// Reads `<number><suffix>`; the suffix is one of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent (e3, E-2).
    pub fn parse(text: &str) -> Result<Quantity, String> {
        let bad = || format!("{text:?} is not a quantity: write a number and a suffix, such as 0.5, 500m, 128Mi or 2G");
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || digits.len() > MAX_DIGITS || fraction.contains('.') {
            return Err(bad());
        }
        let (base, exponent) = scale(suffix).ok_or_else(bad)?;
        // value = digits * base * 10^(exponent - len(fraction)), in nano units: 9 more.
        let digits: i128 = digits.parse().map_err(|_| bad())?;
        let power = exponent - fraction.len() as i32 + 9;
        let scaled = digits.checked_mul(base).and_then(|value| shift(value, power));
        let nano = scaled.filter(|nano| *nano <= MAX_VALUE * NANO);
        let nano = nano.ok_or_else(|| format!("{text:?} is larger than 2^63-1"))?;
        Ok(Quantity { nano: if negative { -nano } else { nano } })
    }

    /// In whole units, rounded up, as Kubernetes does: bytes.
    pub fn value(self) -> i64 {
        divide_up(self.nano, NANO)
    }

    /// In thousandths, rounded up: millicores. Kept within an `i64`.
    pub fn milli(self) -> i64 {
        divide_up(self.nano, NANO / 1000)
    }

    /// As text that reads as the same amount.
    pub fn exact(self) -> String {
        let steps = [(NANO, ""), (NANO / 1000, "m"), (1000, "u"), (1, "n")];
        let step = steps.iter().find(|(unit, _)| self.nano % unit == 0);
        step.map_or_else(String::new, |(unit, suffix)| format!("{}{suffix}", self.nano / unit))
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }
}

/// A resource's amount by its name: `cpu`, `memory`, `storage`.
pub type Quantities = BTreeMap<String, Quantity>;

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Quantity::parse(&text).map_err(D::Error::custom)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nano % NANO {
            0 => write!(f, "{}", self.nano / NANO),
            _ => write!(f, "{}m", self.milli()),
        }
    }
}

/// A suffix as a factor and a power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let plain = |exponent| Some((1, exponent));
    match suffix {
        "n" => plain(-9),
        "u" => plain(-6),
        "m" => plain(-3),
        "" => plain(0),
        "k" => plain(3),
        "M" => plain(6),
        "G" => plain(9),
        "T" => plain(12),
        "P" => plain(15),
        "E" => plain(18),
        "Ki" => Some((1 << 10, 0)),
        "Mi" => Some((1 << 20, 0)),
        "Gi" => Some((1 << 30, 0)),
        "Ti" => Some((1 << 40, 0)),
        "Pi" => Some((1 << 50, 0)),
        "Ei" => Some((1 << 60, 0)),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.parse().ok()?;
            (-30..=30).contains(&exponent).then_some((1, exponent))
        }
    }
}

/// value * 10^power, rounded up; None when it does not fit.
fn shift(value: i128, power: i32) -> Option<i128> {
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    match power >= 0 {
        true if value == 0 => Some(0),
        true => value.checked_mul(factor?),
        // A divisor too large to write leaves a fraction of the smallest unit: rounded up.
        false => Some(factor.map_or(i128::from(value > 0), |factor| (value + factor - 1) / factor)),
    }
}

fn divide_up(value: i128, unit: i128) -> i64 {
    let up = value.div_euclid(unit) + i128::from(value.rem_euclid(unit) != 0);
    i64::try_from(up).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).unwrap()
    }

    #[test]
    fn suffixes_mean_what_they_mean_to_kubernetes() {
        assert_eq!(q("500m").milli(), 500);
        assert_eq!(q("0.5").milli(), 500);
        assert_eq!(q("2").milli(), 2000);
        assert_eq!(q("128Mi").value(), 128 << 20);
        assert_eq!(q("1e3").value(), 1000);
        assert_eq!(q("1E3").value(), 1000);
        assert_eq!(q("2G").value(), 2_000_000_000);
        assert_eq!(q("1.5Ki").value(), 1536);
        assert_eq!(q("1E").value(), 1_000_000_000_000_000_000);
        assert_eq!(q(".5").milli(), 500);
        assert_eq!(q("100u").milli(), 1, "rounded up");
        assert_eq!(q("0.0000000001").value(), 1, "rounded up");
        assert!(q("-1").is_negative());
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for bad in ["", "m", "1.2.3", "1mi", "1KB", "1 Mi", "one", "1e", "1e99", "9Ei", "--1", "1e+", "0x10"] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_whole_numbers_keep_their_value(text in "\\PC{0,12}", number in 0i64..1_000_000_000_000) {
            let _ = Quantity::parse(&text);
            prop_assert_eq!(q(&number.to_string()).value(), number);
            prop_assert_eq!(q(&format!("{number}m")).milli(), number);
            let nano = q(&format!("{number}n"));
            prop_assert_eq!(q(&nano.exact()), nano);
        }
    }
}
