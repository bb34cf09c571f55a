//! The packets that tell a network segment where an address is now: gratuitous ARP (RFC 5227, section 3) and
//! unsolicited neighbour advertisements (RFC 4861, section 7.2.6), as whole Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rt::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];
/// ff02::1 and the Ethernet address that it maps to.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;

/// What is to be sent from a link with this Ethernet address. Two for IPv4: some machines learn from requests
/// only, others from answers only.
pub(super) fn announcements(address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![arp(address, mac, 1), arp(address, mac, 2)],
        IpAddr::V6(address) => vec![advertisement(address, mac)],
    }
}

fn arp(address: Ipv4Addr, mac: Mac, operation: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(BROADCAST);
    frame.extend(mac.0);
    // ARP; Ethernet, IPv4, lengths 6 and 4.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend(if operation == 1 { [0; 6] } else { BROADCAST });
    frame.extend(address.octets());
    frame.resize(60, 0);
    frame
}

fn advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    // Type, code, checksum, and the flag Override: what was known before is replaced.
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(address.octets());
    // The target's link-layer address.
    icmp.extend([2, 1]);
    icmp.extend(mac.0);
    let sum = checksum(address, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0]);
    frame.push(u8::try_from(icmp.len()).unwrap_or(u8::MAX));
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(icmp);
    frame
}

/// RFC 4443, section 2.3, for a packet from `source` to all nodes.
fn checksum(source: Ipv6Addr, icmp: &[u8]) -> u16 {
    let mut covered = Vec::new();
    covered.extend(source.octets());
    covered.extend(ALL_NODES.octets());
    covered.extend(u32::try_from(icmp.len()).unwrap_or(u32::MAX).to_be_bytes());
    covered.extend([0, 0, 0, ICMPV6]);
    covered.extend(icmp);
    let words = covered.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn arp_names_the_address_twice() {
        let frames = announcements("192.0.2.200".parse().unwrap(), MAC);
        assert_eq!(frames.len(), 2);
        for (frame, operation) in frames.iter().zip([1, 2]) {
            assert_eq!(frame.len(), 60);
            assert_eq!(&frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 6]);
            assert_eq!(frame[21], operation);
            assert_eq!((&frame[28..32], &frame[38..42]), (&[192, 0, 2, 200][..], &[192, 0, 2, 200][..]));
        }
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_receivers_accept() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = &announcements(address.into(), MAC)[0];
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!((frame[19], frame[20], frame[21]), (32, ICMPV6, 255));
        assert_eq!(&frame[62..78], address.octets());
        // Over everything, the checksum included, the sum is zero.
        assert_eq!(checksum(address, &frame[54..]), 0);
    }
}
