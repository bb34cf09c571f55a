//! Addresses that this machine holds for the cluster: host addresses with a short life, so that the kernel takes
//! them off by itself when nobody renews them (linux/if_addr.h).

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::links::ip;
use super::{DELADDR, GETADDR, NEWADDR, Rt, number};
use crate::netlink::{Message, NLM_F_CREATE, NLM_F_REPLACE, attribute};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DEPRECATED: u32 = 0x20;
/// Who made an address, where the kernel remembers it (since 5.18).
const OURS: u8 = 0x4b;

/// Any address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// Until the kernel takes it off; `None`: it stays.
    pub(crate) left: Option<Duration>,
    /// New connections do not begin from it.
    is_deprecated: bool,
    made_by: Option<u8>,
}

impl Assigned {
    /// Whether a Kedge holds it, an earlier process included. One that another program made would have to be
    /// about to vanish anyway.
    pub(crate) fn is_held(&self, life: Duration) -> bool {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        self.prefix == whole
            && self.is_deprecated
            && self.left.is_some_and(|left| left <= life)
            && self.made_by.is_none_or(|maker| maker == OURS)
    }

    #[cfg(test)]
    pub(crate) fn of_tests(link: u32, address: IpAddr, prefix: u8) -> Self {
        Self { link, address, prefix, left: None, is_deprecated: false, made_by: None }
    }

    /// Whether its network has this address.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        ipnet::IpNet::new(self.address, self.prefix).is_ok_and(|net| net.contains(&address))
    }
}

/// `struct ifaddrmsg` for a host address.
fn header(link: u32, address: IpAddr) -> [u8; 8] {
    let (family, prefix) = if address.is_ipv4() { (2, 32) } else { (10, 128) };
    let [a, b, c, d] = link.to_ne_bytes();
    [family, prefix, 0, 0, a, b, c, d]
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Rt {
    /// All addresses of all links.
    pub(crate) fn assigned(&self) -> io::Result<Vec<Assigned>> {
        self.dump(GETADDR, &[0; 8], assigned)
    }

    /// Put an address on a link, or renew it, for `life`. It is deprecated from the beginning: nobody's
    /// connections begin from it.
    pub(crate) fn hold(&self, link: u32, address: IpAddr, life: Duration) -> io::Result<()> {
        let seconds = u32::try_from(life.as_secs()).unwrap_or(u32::MAX);
        // struct ifa_cacheinfo: preferred, valid, and two that only the kernel fills in.
        let mut cache = [0; 16];
        cache[4..8].copy_from_slice(&seconds.to_ne_bytes());
        self.change(NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header(link, address), |out| {
            out.attribute(IFA_LOCAL, &bytes(address));
            out.attribute(IFA_ADDRESS, &bytes(address));
            out.attribute(IFA_CACHEINFO, &cache);
            if address.is_ipv6() {
                // The holder before may still have it: who holds it was decided, not found out.
                out.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
            }
            out.attribute(IFA_PROTO, &[OURS]);
        })
    }

    /// Take it off.
    pub(crate) fn release(&self, link: u32, address: IpAddr) -> io::Result<()> {
        self.change(DELADDR, 0, &header(link, address), |out| {
            out.attribute(IFA_LOCAL, &bytes(address));
            out.attribute(IFA_ADDRESS, &bytes(address));
        })
    }
}

fn assigned(message: &Message<'_>) -> Option<Assigned> {
    if message.kind != NEWADDR {
        return None;
    }
    let parts = message.attributes(8);
    let (prefix, flags) = (*message.body.get(1)?, *message.body.get(2)?);
    let flags = attribute(parts, IFA_FLAGS).and_then(number).unwrap_or(u32::from(flags));
    let valid = attribute(parts, IFA_CACHEINFO).and_then(|info| number(info.get(4..)?));
    Some(Assigned {
        link: number(message.body.get(4..)?)?,
        address: attribute(parts, IFA_LOCAL).or_else(|| attribute(parts, IFA_ADDRESS)).and_then(ip)?,
        prefix,
        left: valid.filter(|seconds| *seconds != u32::MAX).map(|seconds| Duration::from_secs(seconds.into())),
        is_deprecated: flags & IFA_F_DEPRECATED != 0,
        made_by: attribute(parts, IFA_PROTO).and_then(|maker| maker.first().copied()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asking needs no privilege, so this reads the machine it runs on.
    #[test]
    fn own_addresses_are_read_and_none_is_taken_for_held() {
        let all = Rt::open().unwrap().assigned().unwrap();
        let loopback = all.iter().find(|one| one.address == IpAddr::from([127, 0, 0, 1])).unwrap();
        assert_eq!((loopback.prefix, loopback.left), (8, None));
        assert!(loopback.covers("127.9.9.9".parse().unwrap()));
        assert!(!loopback.is_held(Duration::from_secs(60)));
    }

    #[test]
    fn held_ones_are_told_from_others() {
        let held = Assigned {
            link: 2,
            address: "192.0.2.200".parse().unwrap(),
            prefix: 32,
            left: Some(Duration::from_secs(20)),
            is_deprecated: true,
            made_by: Some(OURS),
        };
        let life = Duration::from_secs(30);
        assert!(held.is_held(life));
        assert!(Assigned { made_by: None, ..held }.is_held(life), "a kernel that does not remember");
        for other in [
            Assigned { prefix: 24, ..held },
            Assigned { left: None, ..held },
            Assigned { left: Some(Duration::from_secs(3600)), ..held },
            Assigned { is_deprecated: false, ..held },
            Assigned { made_by: Some(2), ..held },
        ] {
            assert!(!other.is_held(life), "{other:?}");
        }
    }
}
