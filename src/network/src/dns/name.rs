//! Small helpers for domain names. Names are made from bytes here, never through the conversions for
//! international names: what Kubernetes allows in a name is ASCII.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// The name without an upper-case letter.
pub(crate) fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

/// An absolute name, with or without the dot at its end. `None` when a label or the whole is too
/// long, or a label is empty.
pub(crate) fn parse_name(text: &str) -> Option<Name> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Some(Name::root());
    }
    if text.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return None;
    }
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The address that a name in `in-addr.arpa` or `ip6.arpa` stands for, when the name is complete.
/// `labels` are in lower case, from the left.
pub(crate) fn reverse_address(labels: &[&[u8]]) -> Option<IpAddr> {
    let (rest, top) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    match top {
        [b"in-addr", b"arpa"] if rest.len() == 4 => {
            let mut octets = [0; 4];
            for (octet, label) in octets.iter_mut().rev().zip(rest) {
                let text = std::str::from_utf8(label).ok()?;
                let canonical = text.bytes().all(|byte| byte.is_ascii_digit())
                    && (text.len() == 1 || !text.starts_with('0'));
                *octet = canonical.then(|| text.parse().ok())??;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        [b"ip6", b"arpa"] if rest.len() == 32 => {
            let mut bits = 0_u128;
            for label in rest.iter().rev() {
                let [digit] = label else { return None };
                bits = bits << 4 | u128::from((*digit as char).to_digit(16)?);
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

/// Whether the name lies in a reverse zone of addresses that only this network can know (RFC 6303
/// and RFC 6598). Asking the Internet for those is pointless.
pub(crate) fn is_private_reverse(labels: &[&[u8]]) -> bool {
    let digits = |label: &[u8]| std::str::from_utf8(label).ok().and_then(|text| text.parse::<u8>().ok());
    match labels {
        [.., b"10", b"in-addr", b"arpa"] | [.., b"c" | b"d", b"f", b"ip6", b"arpa"] => true,
        [.., b"168", b"192", b"in-addr", b"arpa"] | [.., b"254", b"169", b"in-addr", b"arpa"] => true,
        [.., second, b"172", b"in-addr", b"arpa"] => digits(second).is_some_and(|n| (16..32).contains(&n)),
        [.., second, b"100", b"in-addr", b"arpa"] => digits(second).is_some_and(|n| (64..128).contains(&n)),
        [.., third, b"e", b"f", b"ip6", b"arpa"] => matches!(*third, b"8" | b"9" | b"a" | b"b"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<&[u8]> {
        text.split('.').map(str::as_bytes).collect()
    }

    #[test]
    fn reverse_names_are_complete_addresses_or_nothing() {
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        let cases = [
            ("10.0.96.10.in-addr.arpa", Some("10.96.0.10")),
            ("0.96.10.in-addr.arpa", None),
            ("1.2.3.4.5.in-addr.arpa", None),
            ("010.0.96.10.in-addr.arpa", None),
            ("256.0.96.10.in-addr.arpa", None),
            ("+1.0.96.10.in-addr.arpa", None),
            ("arpa", None),
            (six, Some("fd00::1")),
            (&six[2..], None),
        ];
        for (name, expected) in cases {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(reverse_address(&labels(name)), expected, "{name}");
        }
    }

    #[test]
    fn private_reverse_zones() {
        for (name, expected) in [
            ("1.0.96.10.in-addr.arpa", true),
            ("10.in-addr.arpa", true),
            ("1.31.172.in-addr.arpa", true),
            ("1.32.172.in-addr.arpa", false),
            ("1.168.192.in-addr.arpa", true),
            ("1.64.100.in-addr.arpa", true),
            ("8.8.8.8.in-addr.arpa", false),
            ("0.d.f.ip6.arpa", true),
            ("0.8.e.f.ip6.arpa", true),
            ("8.b.d.0.1.0.0.2.ip6.arpa", false),
        ] {
            assert_eq!(is_private_reverse(&labels(name)), expected, "{name}");
        }
    }

    #[test]
    fn names_are_checked() {
        let long = "a".repeat(64);
        for (text, expected) in [
            ("www.example.com", Some("www.example.com.")),
            ("www.example.com.", Some("www.example.com.")),
            ("", Some(".")),
            ("a..b", None),
            (long.as_str(), None),
        ] {
            assert_eq!(parse_name(text).map(|name| name.to_ascii()), expected.map(str::to_owned), "{text}");
        }
    }
}
