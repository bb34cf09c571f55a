//! What the kernel is asked for: addresses on and off links, and packets out of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use super::LONGEST_LIFE;
use super::frames::announcements;
use crate::rt::{Assigned, Link, Rt, gone};

/// What a pass did, and what it could not do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// Held now and not before: to be announced.
    pub(super) taken: BTreeSet<IpAddr>,
    pub(super) released: BTreeSet<IpAddr>,
    pub(super) problems: BTreeMap<IpAddr, String>,
}

/// How an address is to be held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// For how long from now on.
    pub(super) life: Duration,
    /// Also when it is held already; every such change is heard by those who watch addresses.
    pub(super) renew: bool,
}

/// Makes this machine hold `wanted`, and nothing that it held before (unless `keep_strays`).
pub(super) fn hold(
    wanted: &BTreeMap<IpAddr, Term>,
    node_ips: &[IpAddr],
    keep_strays: bool,
) -> io::Result<Pass> {
    let netlink = Rt::open()?;
    let (links, assigned) = (netlink.links()?, netlink.assigned()?);
    let mut pass = Pass::default();
    for own in assigned.iter().filter(|own| own.is_held(LONGEST_LIFE)) {
        let stays = wanted.contains_key(&own.address) || keep_strays;
        if !stays && gone(netlink.release(own.link, own.address)).is_ok() {
            pass.released.insert(own.address);
        }
    }
    for (&address, term) in wanted {
        let here: Vec<&Assigned> = assigned.iter().filter(|own| own.address == address).collect();
        if let Some(foreign) = here.iter().find(|own| !own.is_held(LONGEST_LIFE)) {
            let name =
                links.iter().find(|link| link.index == foreign.link).map_or("", |link| link.name.as_str());
            let text = format!("{name} has this address already, and not from Kedge: it is left alone");
            pass.problems.insert(address, text);
            continue;
        }
        if !here.is_empty() && !term.renew {
            continue;
        }
        let Some(link) =
            here.first().map(|own| own.link).or_else(|| place(&links, &assigned, node_ips, address))
        else {
            pass.problems.insert(address, "no network interface of this node is fit for it".to_owned());
            continue;
        };
        match netlink.hold(link, address, term.life) {
            Ok(()) if here.is_empty() => drop(pass.taken.insert(address)),
            Ok(()) => {}
            Err(error) => {
                pass.problems.insert(address, format!("the kernel does not take it: {error}"));
            }
        }
    }
    Ok(pass)
}

/// Takes off those of these addresses that a Kedge holds here.
pub(super) fn release(addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    release_those(|own| addresses.contains(&own.address))
}

/// Takes off what a Kedge holds here.
pub(super) fn release_all() -> io::Result<()> {
    release_those(|_| true)
}

fn release_those(chosen: impl Fn(&Assigned) -> bool) -> io::Result<()> {
    let netlink = Rt::open()?;
    for own in netlink.assigned()?.iter().filter(|own| own.is_held(LONGEST_LIFE) && chosen(own)) {
        gone(netlink.release(own.link, own.address))?;
    }
    Ok(())
}

/// The interface for an address: the one whose network has it, else the one with this node's own address.
fn place(links: &[Link], assigned: &[Assigned], node_ips: &[IpAddr], address: IpAddr) -> Option<u32> {
    let usable = |own: &&Assigned| {
        let link = links.iter().find(|link| link.index == own.link);
        link.is_some_and(|link| link.is_up && !link.is_loopback) && !own.is_held(LONGEST_LIFE)
    };
    let of_node = |own: &&Assigned| node_ips.contains(&own.address);
    let usable: Vec<&Assigned> = assigned.iter().filter(usable).collect();
    // A node's own network comes first where several have the address.
    let covering = usable.iter().copied().filter(|own| own.covers(address));
    let best = covering.max_by_key(|own| (of_node(own), own.prefix));
    let same_family =
        || usable.iter().copied().find(|own| of_node(own) && own.address.is_ipv4() == address.is_ipv4());
    let any = || usable.iter().copied().find(of_node);
    best.or_else(same_family).or_else(any).map(|own| own.link)
}

/// Tells the neighbours of each address that it is here. Links without Ethernet addresses have none to tell.
pub(super) fn announce(addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let netlink = Rt::open()?;
    let (links, assigned) = (netlink.links()?, netlink.assigned()?);
    // Protocol 0: it only sends.
    let out = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let ways: BTreeMap<u32, LinkAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| interface.address?.as_link_addr().copied())
        .filter_map(|way| Some((u32::try_from(way.ifindex()).ok()?, way)))
        .collect();
    for own in assigned.iter().filter(|own| addresses.contains(&own.address)) {
        let mac = links.iter().find(|link| link.index == own.link).and_then(|link| link.mac);
        let (Some(mac), Some(way)) = (mac, ways.get(&own.link)) else { continue };
        for frame in announcements(own.address, mac) {
            sendto(out.as_raw_fd(), &frame, way, MsgFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_where_its_network_is() {
        let link = |index: u32| Link { index, name: format!("if{index}"), is_up: true, ..Link::default() };
        let links =
            [Link { is_loopback: true, ..link(1) }, link(2), link(3), Link { is_up: false, ..link(4) }];
        let own = |link: u32, text: &str| {
            let net: ipnet::IpNet = text.parse().unwrap();
            Assigned::of_tests(link, net.addr(), net.prefix_len())
        };
        let assigned = [
            own(1, "127.0.0.1/8"),
            own(2, "192.0.2.1/24"),
            own(3, "198.51.100.1/24"),
            own(3, "2001:db8:3::1/64"),
            own(4, "203.0.113.1/24"),
        ];
        let node_ips = ["192.0.2.1".parse().unwrap()];
        for (address, expected) in [
            ("192.0.2.200", Some(2)),
            ("198.51.100.9", Some(3)),
            ("2001:db8:3::9", Some(3)),
            // Networks that this node has no part in: routers may lead there.
            ("10.0.0.1", Some(2)),
            ("2001:db8:4::1", Some(2)),
            ("203.0.113.9", Some(2)),
            ("127.0.0.9", Some(2)),
        ] {
            assert_eq!(place(&links, &assigned, &node_ips, address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(place(&links, &assigned[..1], &node_ips, "192.0.2.200".parse().unwrap()), None);
    }
}
