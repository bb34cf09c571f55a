//! Network interfaces, addresses and routes as the kernel tells them (linux/rtnetlink.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{
    Builder, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Protocol, Socket, attribute, attributes, text,
};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;

const UP: u32 = 0x1;
const LOOPBACK: u32 = 0x8;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
    /// The bridge (or bond) it belongs to.
    pub(super) master: Option<u32>,
    /// "bridge", "veth", ...; empty for hardware.
    pub(super) kind: String,
}

/// An address that other machines may use to reach this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) address: IpAddr,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub(super) link: u32,
    pub(super) is_ipv4: bool,
    pub(super) metric: u32,
    /// The source address that the route prescribes.
    pub(super) source: Option<IpAddr>,
}

/// A netlink socket for the questions below.
pub(super) struct Links(Socket);

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(Protocol::Route, 0)?))
    }

    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        self.all(GETLINK, 16, link)
    }

    /// Addresses of global scope that are in use.
    pub(super) fn addresses(&self) -> io::Result<Vec<Address>> {
        self.all(GETADDR, 8, address)
    }

    pub(super) fn default_routes(&self) -> io::Result<Vec<DefaultRoute>> {
        self.all(GETROUTE, 12, default_route)
    }

    pub(super) fn delete(&self, index: u32) -> io::Result<()> {
        let mut request = Builder::default();
        request.begin(DELLINK, NLM_F_REQUEST | NLM_F_ACK, 1);
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        request.raw(&header);
        request.end();
        self.0.acknowledged(request.bytes())
    }

    fn all<T>(&self, kind: u16, header: usize, read: fn(&Message<'_>) -> Option<T>) -> io::Result<Vec<T>> {
        let mut request = Builder::default();
        request.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, 1);
        request.raw(&vec![0; header]);
        request.end();
        let mut found = Vec::new();
        self.0.dump(request.bytes(), |message| found.extend(read(message)))?;
        Ok(found)
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn link(message: &Message<'_>) -> Option<Link> {
    if message.kind != NEWLINK {
        return None;
    }
    let flags = number(message.body.get(8..)?)?;
    let parts = message.attributes(16);
    let kind = attribute(parts, 18).and_then(|info| attribute(attributes(info), 1)).map(text);
    Some(Link {
        index: number(message.body.get(4..)?)?,
        name: text(attribute(parts, 3)?),
        is_up: flags & UP != 0,
        is_loopback: flags & LOOPBACK != 0,
        master: attribute(parts, 10).and_then(number),
        kind: kind.unwrap_or_default(),
    })
}

fn address(message: &Message<'_>) -> Option<Address> {
    if message.kind != NEWADDR {
        return None;
    }
    let parts = message.attributes(8);
    // Anything but RT_SCOPE_UNIVERSE stays on the link or the host.
    if *message.body.get(3)? != 0 {
        return None;
    }
    // IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE
    let flags = attribute(parts, 8).and_then(number).unwrap_or(u32::from(*message.body.get(2)?));
    if flags & (0x08 | 0x20 | 0x40) != 0 {
        return None;
    }
    // On point-to-point links IFA_ADDRESS is the other end.
    let bytes = attribute(parts, 2).or_else(|| attribute(parts, 1))?;
    Some(Address { link: number(message.body.get(4..)?)?, address: ip(bytes)? })
}

fn default_route(message: &Message<'_>) -> Option<DefaultRoute> {
    if message.kind != NEWROUTE {
        return None;
    }
    let header = message.body.get(..12)?;
    let (family, destination_length, table, kind) = (header[0], header[1], header[4], header[7]);
    // RT_TABLE_MAIN, RTN_UNICAST
    if destination_length != 0 || table != 254 || kind != 1 {
        return None;
    }
    let parts = message.attributes(12);
    // With several next hops the first one's interface: struct rtnexthop has it at offset 4.
    let multipath = || attribute(parts, 9).and_then(|hops| number(hops.get(4..)?));
    Some(DefaultRoute {
        link: attribute(parts, 4).and_then(number).or_else(multipath)?,
        is_ipv4: family == 2,
        metric: attribute(parts, 6).and_then(number).unwrap_or(0),
        source: attribute(parts, 7).and_then(ip),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asking needs no privilege, so this reads the machine it runs on.
    #[test]
    fn the_loopback_interface_is_found() {
        let links = Links::open().unwrap().links().unwrap();
        let loopback = links.iter().find(|link| link.is_loopback).unwrap();
        assert_eq!(loopback.name, "lo");
        let addresses = Links::open().unwrap().addresses().unwrap();
        assert!(addresses.iter().all(|address| !address.address.is_loopback()), "{addresses:?}");
        Links::open().unwrap().default_routes().unwrap();
    }
}
