//! Routes of the main table and the addresses of one link.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::links::ip;
use super::{DELADDR, DELROUTE, GETADDR, GETROUTE, NEWADDR, NEWROUTE, Rt, link_number, number};
use crate::netlink::{Builder, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, attribute};

const TABLE_MAIN: u8 = 254;
const UNICAST: u8 = 1;
const ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
/// What the kernel takes for an IPv6 route without a metric.
const IPV6_METRIC: u32 = 1024;
/// `IFA_F_NODAD`: there is nobody to ask whether the address is in use.
const NO_DAD: u8 = 0x02;

/// A route to a network by way of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) via: IpAddr,
    /// The interface.
    pub(crate) link: u32,
    /// The gateway is reachable though no address of the interface says so.
    pub(crate) onlink: bool,
}

/// A route as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KernelRoute {
    pub(crate) to: IpNet,
    /// Absent for a network that is on the link itself.
    pub(crate) via: Option<IpAddr>,
    pub(crate) link: u32,
    pub(crate) onlink: bool,
    pub(crate) metric: u32,
    /// Who made it (`RTPROT_*`).
    pub(crate) protocol: u8,
}

impl KernelRoute {
    /// Whether it is what setting `route` makes.
    pub(crate) fn is(&self, route: &Route) -> bool {
        (self.to, self.via, self.link) == (route.to, Some(route.via), route.link)
            && self.metric == default_metric(&route.to)
            && (self.onlink || !route.onlink)
    }

    /// Whether setting a route to the same network replaces this one.
    pub(crate) fn is_replaced_by(&self, route: &Route) -> bool {
        self.to == route.to && self.metric == default_metric(&route.to)
    }
}

fn default_metric(net: &IpNet) -> u32 {
    if net.addr().is_ipv4() { 0 } else { IPV6_METRIC }
}

/// How a packet to an address leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) link: u32,
    /// Absent when the address is a neighbour.
    pub(crate) via: Option<IpAddr>,
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// `struct rtmsg`
fn header(to: &IpNet, protocol: u8, flags: u32) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family(to.addr());
    header[1] = to.prefix_len();
    header[4] = TABLE_MAIN;
    header[5] = protocol;
    header[7] = UNICAST;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Rt {
    /// The main table's unicast routes.
    pub(crate) fn routes(&self) -> io::Result<Vec<KernelRoute>> {
        self.dump(GETROUTE, &[0; 12], read_route)
    }

    /// Make the route, in place of one to the same network.
    pub(crate) fn set_route(&self, route: &Route, protocol: u8) -> io::Result<()> {
        let flags = if route.onlink { ONLINK } else { 0 };
        self.change(NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &header(&route.to, protocol, flags), |out| {
            out.attribute(RTA_DST, &bytes(route.to.addr()));
            out.attribute(RTA_GATEWAY, &bytes(route.via));
            out.attribute(RTA_OIF, &route.link.to_ne_bytes());
        })
    }

    /// Exactly this one.
    pub(crate) fn delete_route(&self, route: &KernelRoute) -> io::Result<()> {
        self.change(DELROUTE, 0, &header(&route.to, route.protocol, 0), |out| {
            out.attribute(RTA_DST, &bytes(route.to.addr()));
            if let Some(via) = route.via {
                out.attribute(RTA_GATEWAY, &bytes(via));
            }
            out.attribute(RTA_OIF, &route.link.to_ne_bytes());
            out.attribute(RTA_PRIORITY, &route.metric.to_ne_bytes());
        })
    }

    /// How packets to an address leave; `None` when they cannot.
    pub(crate) fn way_to(&self, address: IpAddr) -> io::Result<Option<Way>> {
        let mut request = Builder::default();
        request.begin(GETROUTE, NLM_F_REQUEST | NLM_F_ACK, 1);
        let mut header = [0; 12];
        header[0] = family(address);
        header[1] = if address.is_ipv4() { 32 } else { 128 };
        request.raw(&header);
        request.attribute(RTA_DST, &bytes(address));
        request.end();
        let mut way = None;
        let asked = self.0.dump(request.bytes(), |message| way = way.or_else(|| read_way(message)));
        match asked {
            Ok(_) => Ok(way),
            // ENETUNREACH, EHOSTUNREACH, and what "unreachable" and "prohibit" routes say.
            Err(error) if error.raw_os_error().is_some_and(|errno| [101, 113, 13, 22].contains(&errno)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The addresses of a link, link-local ones excepted.
    pub(crate) fn addresses_of(&self, link: u32) -> io::Result<Vec<IpNet>> {
        let all = self.dump(GETADDR, &[0; 8], read_address)?;
        Ok(all.into_iter().filter(|(of, _)| *of == link).map(|(_, net)| net).collect())
    }

    /// No error when it is there.
    pub(crate) fn add_address(&self, link: u32, net: &IpNet) -> io::Result<()> {
        self.change(NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &address_header(link, net), |out| {
            out.attribute(2, &bytes(net.addr()));
            out.attribute(1, &bytes(net.addr()));
        })
    }

    pub(crate) fn delete_address(&self, link: u32, net: &IpNet) -> io::Result<()> {
        self.change(DELADDR, 0, &address_header(link, net), |out| {
            out.attribute(2, &bytes(net.addr()));
            out.attribute(1, &bytes(net.addr()));
        })
    }
}

/// `struct ifaddrmsg`
fn address_header(link: u32, net: &IpNet) -> [u8; 8] {
    let mut header = [0; 8];
    header[0] = family(net.addr());
    header[1] = net.prefix_len();
    header[2] = if net.addr().is_ipv4() { 0 } else { NO_DAD };
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header
}

pub(super) fn read_address(message: &Message<'_>) -> Option<(u32, IpNet)> {
    if message.kind != NEWADDR || *message.body.get(3)? != 0 {
        return None;
    }
    let parts = message.attributes(8);
    let address = attribute(parts, 2).or_else(|| attribute(parts, 1)).and_then(ip)?;
    Some((link_number(message)?, IpNet::new(address, *message.body.get(1)?).ok()?))
}

pub(super) fn read_route(message: &Message<'_>) -> Option<KernelRoute> {
    let header = message.body.get(..12)?;
    if ![NEWROUTE, DELROUTE].contains(&message.kind) || header[4] != TABLE_MAIN || header[7] != UNICAST {
        return None;
    }
    // RTM_F_CLONED: a cache entry, not a route.
    let flags = number(&header[8..])?;
    if flags & 0x200 != 0 {
        return None;
    }
    let parts = message.attributes(12);
    let everywhere = || -> IpAddr {
        if header[0] == 2 {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        }
    };
    let address = attribute(parts, RTA_DST).map_or_else(|| Some(everywhere()), ip)?;
    Some(KernelRoute {
        to: IpNet::new(address, header[1]).ok()?,
        via: attribute(parts, RTA_GATEWAY).and_then(ip),
        link: attribute(parts, RTA_OIF).and_then(number)?,
        onlink: flags & ONLINK != 0,
        metric: attribute(parts, RTA_PRIORITY).and_then(number).unwrap_or(0),
        protocol: header[5],
    })
}

pub(super) fn read_way(message: &Message<'_>) -> Option<Way> {
    // Only unicast: a local or blackholed address is no way.
    if message.kind != NEWROUTE || *message.body.get(7)? != UNICAST {
        return None;
    }
    let parts = message.attributes(12);
    Some(Way {
        link: attribute(parts, RTA_OIF).and_then(number)?,
        via: attribute(parts, RTA_GATEWAY).and_then(ip),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    #[test]
    fn a_route_reads_back_and_compares() {
        let to: IpNet = "10.244.2.0/24".parse().unwrap();
        let route = Route { to, via: "10.244.2.0".parse().unwrap(), link: 7, onlink: true };
        let mut out = Builder::default();
        out.begin(NEWROUTE, 0, 1);
        out.raw(&header(&to, 107, ONLINK));
        out.attribute(RTA_DST, &bytes(to.addr()));
        out.attribute(RTA_GATEWAY, &bytes(route.via));
        out.attribute(RTA_OIF, &7u32.to_ne_bytes());
        out.end();
        let read = messages(out.bytes()).find_map(|message| read_route(&message)).unwrap();
        assert_eq!((read.protocol, read.onlink, read.metric), (107, true, 0));
        assert!(read.is(&route) && read.is_replaced_by(&route));
        assert!(!KernelRoute { metric: 5, ..read }.is(&route), "another metric is another route");
        assert!(!KernelRoute { onlink: false, ..read }.is(&route));
        assert!(!KernelRoute { link: 8, ..read }.is(&route));
        assert!(KernelRoute { link: 8, ..read }.is_replaced_by(&route));
    }

    /// Asking needs no privilege, so this reads the machine it runs on.
    #[test]
    fn loopback_is_no_way_to_others() {
        let rt = Rt::open().unwrap();
        rt.routes().unwrap();
        assert_eq!(rt.way_to("127.0.0.1".parse().unwrap()).unwrap(), None);
    }
}
