//! An address with a prefix length, and the little arithmetic on it that a bridge's subnet needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and the length of its network's prefix: `10.88.0.5/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IpNet {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An IPv4 network, its address masked: `10.88.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// The network that `ip` lies in.
    ///
    /// # Panics
    /// When `prefix` is over 32.
    pub fn new(ip: Ipv4Addr, prefix: u8) -> Subnet {
        assert!(prefix <= 32, "an IPv4 prefix has at most 32 bits, not {prefix}");
        Subnet { base: u32::from(ip) & mask(prefix), prefix }
    }

    /// Bits of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address `offset` above the network's own.
    pub fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base.wrapping_add(offset))
    }

    /// How far `ip` is above the network's own address; `None` when it lies outside.
    pub fn offset(self, ip: Ipv4Addr) -> Option<u32> {
        self.contains(ip).then(|| u32::from(ip) - self.base)
    }

    /// The offset of the last address: the broadcast address.
    pub fn last(self) -> u32 {
        !mask(self.prefix)
    }

    /// Whether `ip` lies in the network.
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & mask(self.prefix) == self.base
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Subnet) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.base & shorter == other.base & shorter
    }

    /// `ip` with this network's prefix length.
    pub fn host(self, ip: Ipv4Addr) -> IpNet {
        IpNet { ip: IpAddr::V4(ip), prefix: self.prefix }
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// Accepts `10.88.0.0/16`; an address with bits below the prefix is refused, since one of the two is then a slip.
    fn from_str(text: &str) -> Result<Subnet, String> {
        let wrong = || format!("{text:?} is not an IPv4 subnet such as 10.88.0.0/16");
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(wrong)?;
        let subnet = Subnet::new(ip, prefix);
        if subnet.nth(0) != ip {
            return Err(format!("{text:?} has address bits below its prefix; did you mean {subnet}?"));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Subnet, String> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_parses_prints_and_counts() {
        let subnet = net("10.88.0.0/16");
        assert_eq!(subnet.to_string(), "10.88.0.0/16");
        assert_eq!(subnet.nth(1), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(subnet.last(), 65535);
        assert_eq!(subnet.offset(Ipv4Addr::new(10, 88, 1, 0)), Some(256));
        assert_eq!(subnet.offset(Ipv4Addr::new(10, 89, 0, 1)), None);
        assert_eq!(subnet.host(subnet.nth(5)).to_string(), "10.88.0.5/16");
        assert_eq!(net("0.0.0.0/0").last(), u32::MAX);
        assert_eq!(net("10.0.0.1/32").last(), 0);
    }

    #[test]
    fn overlap_is_found_in_both_directions() {
        assert!(net("10.0.0.0/8").overlaps(net("10.88.0.0/16")));
        assert!(net("10.88.4.0/24").overlaps(net("10.88.0.0/16")));
        assert!(!net("10.89.0.0/16").overlaps(net("10.88.0.0/16")));
        assert!(net("0.0.0.0/0").overlaps(net("10.88.0.0/16")));
    }

    #[test]
    fn slips_are_refused_with_the_likely_meaning() {
        for wrong in ["10.88.0.0", "10.88.0/16", "10.88.0.0/33", "::/0", "10.88.0.0/"] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong}");
        }
        assert!("10.88.0.1/16".parse::<Subnet>().unwrap_err().contains("10.88.0.0/16"));
    }
}
