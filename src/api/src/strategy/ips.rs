//! Addresses and ranges in fields older than strict parsing: any form of a valid one is taken, but no
//! leading zeros, no IPv4 inside IPv6 and no bits beyond a prefix (`util/validation/ip.go`, KEP-4858).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checks::Checks;
use crate::field::At;

const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address, and whether it has leading zeros (which some read as octal).
fn sloppy(s: &str) -> Option<(IpAddr, bool)> {
    if let Ok(ip) = s.parse() {
        return Some((ip, false));
    }
    let mut octets = [0; 4];
    let mut parts = s.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse::<u32>().ok().and_then(|n| u8::try_from(n).ok())?;
    }
    parts.next().is_none().then(|| (Ipv4Addr::from(octets).into(), true))
}

/// The address, however it is written.
pub(super) fn parse(s: &str) -> Option<IpAddr> {
    sloppy(s).map(|(ip, _)| ip)
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

fn legacy(value: &str) -> Result<IpAddr, &'static str> {
    match sloppy(value) {
        None => Err(NO_ADDRESS),
        Some((_, true)) => Err("must not have leading 0s"),
        Some((ip, _)) if is_mapped(ip) => Err("must not be an IPv4-mapped IPv6 address"),
        Some((ip, _)) => Ok(ip),
    }
}

/// `IsValidIPForLegacyField`
pub(super) fn address(c: &mut Checks, value: &str, at: At<'_>) {
    if let Err(why) = legacy(value) {
        c.invalid(at, value, why);
    }
}

/// `IsValidIP`: what is wrong with an address in a newer field, where it has one form only.
pub(super) fn canonical_address(value: &str) -> Vec<String> {
    match legacy(value) {
        Err(why) => vec![why.to_owned()],
        Ok(ip) if ip.to_string() != value => {
            vec![format!("must be in canonical form ({:?})", ip.to_string())]
        }
        Ok(_) => Vec::new(),
    }
}

/// `ValidateEndpointIP`: no address that means something else on every machine.
pub(super) fn endpoint(c: &mut Checks, value: &str, at: At<'_>) {
    let Some(ip) = parse(value).map(|ip| ip.to_canonical()) else {
        return c.invalid(at, value, "must be a valid IP address");
    };
    let (unicast, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    let mut say = |what: String| c.invalid(at, value, what);
    if ip.is_unspecified() {
        say(format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        say("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    if unicast {
        say("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if multicast {
        say("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// As written, with the bits beyond the prefix.
    address: IpAddr,
    prefix: u32,
    leading_zeros: bool,
}

/// The address without the bits beyond the prefix.
fn masked(ip: IpAddr, prefix: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(32 - prefix).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into()
        }
    }
}

impl Range {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (address, length) = value.split_once('/')?;
        let (address, zeros) = sloppy(address)?;
        let is_number = length.bytes().all(|b| b.is_ascii_digit());
        let prefix = length.parse::<u32>().ok().filter(|_| is_number)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let leading_zeros = zeros || length.len() > 1 && length.starts_with('0');
        (prefix <= most).then_some(Self { address, prefix, leading_zeros })
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.address.to_canonical().is_ipv4()
    }

    /// The other range lies inside this one and is smaller.
    pub(super) fn has_inside(&self, other: &Self) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.prefix < other.prefix
            && masked(self.address, self.prefix) == masked(other.address, self.prefix)
    }
}

/// `IsValidCIDRForLegacyField`: the range if it can be read at all.
pub(super) fn range(c: &mut Checks, value: &str, at: At<'_>) -> Option<Range> {
    let Some(range) = Range::parse(value) else {
        c.invalid(at, value, NO_RANGE);
        return None;
    };
    let what = if range.leading_zeros {
        "must not have leading 0s in IP or prefix length"
    } else if is_mapped(range.address) {
        "must not have an IPv4-mapped IPv6 address"
    } else if masked(range.address, range.prefix) != range.address {
        "must not have bits set beyond the prefix length"
    } else {
        return Some(range);
    };
    c.invalid(at, value, what);
    Some(range)
}

/// `IsValidCIDR`: a range in a newer field.
pub(super) fn canonical_range(c: &mut Checks, value: &str, at: At<'_>) {
    let before = c.errors.len();
    if let Some(Range { address, prefix, .. }) = range(c, value, at).filter(|_| c.errors.len() == before) {
        let form = format!("{address}/{prefix}");
        if form != value {
            c.invalid(at, value, format!("must be in canonical form ({form:?})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(f: impl FnOnce(&mut Checks)) -> String {
        let mut c = Checks::default();
        f(&mut c);
        c.errors.iter().map(|e| e.detail.as_str()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn addresses() {
        for (value, wanted) in [
            ("10.0.0.1", ""),
            ("2001:DB8::0001", ""),
            ("010.0.0.1", "must not have leading 0s"),
            ("0000000000010.0.0.1", "must not have leading 0s"),
            ("::ffff:10.0.0.1", "must not be an IPv4-mapped IPv6 address"),
            ("10.0.0", NO_ADDRESS),
            ("10.0.0.256", NO_ADDRESS),
            ("10.0.0.1.2", NO_ADDRESS),
            ("x", NO_ADDRESS),
            ("", NO_ADDRESS),
        ] {
            assert_eq!(told(|e| address(e, value, At::ROOT)), wanted, "{value}");
        }
    }

    #[test]
    fn endpoints() {
        for (value, wanted) in [
            ("10.0.0.1", ""),
            ("2001:db8::1", ""),
            ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
            ("::", "may not be unspecified (::)"),
            ("127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
            ("::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
            ("169.254.169.254", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
            ("fe80::9", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
            ("224.0.0.1", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
            ("ff02::1", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
            ("x", "must be a valid IP address"),
        ] {
            assert_eq!(told(|e| endpoint(e, value, At::ROOT)), wanted, "{value}");
        }
    }

    #[test]
    fn ranges() {
        for (value, wanted) in [
            ("10.0.0.0/8", ""),
            ("0.0.0.0/0", ""),
            ("::/0", ""),
            ("10.0.0.1/32", ""),
            ("2001:db8::1/128", ""),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("::ffff:10.0.0.0/120", "must not have an IPv4-mapped IPv6 address"),
            ("10.0.0.0/33", NO_RANGE),
            ("10.0.0.0", NO_RANGE),
            ("10.0.0.0/+8", NO_RANGE),
            ("x/8", NO_RANGE),
        ] {
            assert_eq!(
                told(|e| {
                    let _ = range(e, value, At::ROOT);
                }),
                wanted,
                "{value}"
            );
        }
        let inside = |a: &str, b: &str| Range::parse(a).unwrap().has_inside(&Range::parse(b).unwrap());
        assert!(inside("10.0.0.0/8", "10.1.0.0/16") && inside("0.0.0.0/0", "10.0.0.0/8"));
        assert!(inside("::/0", "fd00::/8"));
        assert!(!inside("10.0.0.0/8", "10.0.0.0/8") && !inside("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!inside("10.0.0.0/8", "0.0.0.0/0") && !inside("::/0", "10.0.0.0/8"));
    }
}
