//! Ranges of IP addresses as people write them: `192.0.2.200-192.0.2.220`, `2001:db8::10/124`, one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// What is wrong with a text that should be a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an address, a range such as 192.0.2.200-192.0.2.220, or a network such as 2001:db8::10/124{why}"
)]
pub struct NotARange {
    text: String,
    why: &'static str,
}

impl AddressRange {
    /// Comma-separated ranges; an empty text has none.
    ///
    /// # Errors
    /// The first part that is no range.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, NotARange> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
    }

    /// Whether it has this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Whether its addresses are IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// All addresses in order; stops at the last one of the family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (is_ipv4, last) = (self.is_ipv4(), number(self.last));
        let mut next = Some(number(self.first));
        std::iter::from_fn(move || {
            let now = next.filter(|now| *now <= last)?;
            next = now.checked_add(1);
            Some(address(now, is_ipv4))
        })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(bits) if is_ipv4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

impl FromStr for AddressRange {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, NotARange> {
        let wrong = |why| NotARange { text: text.to_owned(), why };
        let parse = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| wrong(""));
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (parse(first)?, parse(last)?);
            return match (first.is_ipv4() == last.is_ipv4(), first <= last) {
                (true, true) => Ok(Self { first, last }),
                (true, false) => Err(wrong(": its end comes before its beginning")),
                (false, _) => Err(wrong(": its ends are of different IP families")),
            };
        }
        let Some((base, bits)) = text.split_once('/') else {
            let one = parse(text)?;
            return Ok(Self { first: one, last: one });
        };
        let base = parse(base)?;
        let width: u32 = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse::<u32>().ok().filter(|bits| *bits <= width).ok_or_else(|| wrong(""))?;
        let free = 1_u128.checked_shl(width - bits).map_or(u128::MAX, |size| size - 1);
        let first = number(base) & !free;
        Ok(Self { first: address(first, base.is_ipv4()), last: address(first | free, base.is_ipv4()) })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_people_write_them() {
        for (text, expected) in [
            ("192.0.2.200-192.0.2.220", Ok("192.0.2.200-192.0.2.220")),
            ("192.0.2.200 - 192.0.2.201", Ok("192.0.2.200-192.0.2.201")),
            ("192.0.2.7", Ok("192.0.2.7")),
            ("192.0.2.5/30", Ok("192.0.2.4-192.0.2.7")),
            ("2001:db8::10/124", Ok("2001:db8::10-2001:db8::1f")),
            ("::/0", Ok("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
            ("0.0.0.0/0", Ok("0.0.0.0-255.255.255.255")),
            ("192.0.2.9-192.0.2.8", Err("its end comes before")),
            ("192.0.2.9-2001:db8::1", Err("different IP families")),
            ("192.0.2.0/33", Err("not an address")),
            ("192.0.2", Err("not an address")),
            ("192.0.2.1-", Err("not an address")),
        ] {
            match (text.parse::<AddressRange>(), expected) {
                (Ok(range), Ok(expected)) => assert_eq!(range.to_string(), expected),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
        let both = AddressRange::parse_list("192.0.2.1, 2001:db8::/127,").unwrap();
        assert_eq!(both.len(), 2);
        assert!(AddressRange::parse_list("192.0.2.1,x").is_err());
    }

    #[test]
    fn all_addresses_are_walked_and_contained() {
        for (text, count) in [("192.0.2.254-192.0.3.1", 4), ("255.255.255.254/31", 2), ("2001:db8::/126", 4)]
        {
            let range: AddressRange = text.parse().unwrap();
            let all: Vec<IpAddr> = range.addresses().collect();
            assert_eq!(all.len(), count, "{text}");
            assert!(all.is_sorted() && all.iter().all(|address| range.contains(*address)), "{text}");
        }
        let last: AddressRange = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert_eq!(last.addresses().count(), 1);
        assert!(!last.contains("255.255.255.255".parse().unwrap()));
    }
}
