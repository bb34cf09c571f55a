//! Network interfaces, addresses and routes as the kernel tells them (linux/rtnetlink.h).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{
    DELLINK, GETADDR, GETLINK, GETROUTE, NEWADDR, NEWLINK, NEWROUTE, Rt, link_header, link_number, number,
};
use crate::netlink::{Builder, Message, NLM_F_CREATE, NLM_F_EXCL, attribute, attributes, text};

const UP: u32 = 0x1;
const LOOPBACK: u32 = 0x8;

// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VXLAN_GBP: u16 = 23;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) is_up: bool,
    pub(crate) is_loopback: bool,
    /// The bridge (or bond) it belongs to.
    pub(crate) master: Option<u32>,
    /// "bridge", "veth", ...; empty for hardware.
    pub(crate) kind: String,
    /// In bytes.
    pub(crate) mtu: u32,
    /// The hardware address, when it is an Ethernet one.
    pub(crate) mac: Option<Mac>,
    /// `IFLA_IFALIAS`: a free text.
    pub(crate) alias: String,
    /// What kind "vxlan" was made with.
    pub(crate) vxlan: Option<Vxlan>,
}

/// How a VXLAN device sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vxlan {
    /// The network's number.
    pub(crate) id: u32,
    /// UDP.
    pub(crate) port: u16,
    /// The address that packets leave from.
    pub(crate) local: Option<IpAddr>,
    /// The interface that they leave through; 0 for any.
    pub(crate) link: u32,
    /// Whether it learns from what it receives where machines are.
    pub(crate) learning: bool,
    /// Group policy extension.
    pub(crate) gbp: bool,
}

/// An Ethernet address; shown as colon separated lower-case hexadecimal, as Go's `net` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() { Err(()) } else { Ok(Self(bytes)) }
    }
}

/// An address that other machines may use to reach this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    pub(crate) link: u32,
    pub(crate) is_ipv4: bool,
    pub(crate) metric: u32,
    /// The source address that the route prescribes.
    pub(crate) source: Option<IpAddr>,
}

impl Rt {
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        self.dump(GETLINK, &[0; 16], link)
    }

    /// Addresses of global scope that are in use.
    pub(crate) fn addresses(&self) -> io::Result<Vec<Address>> {
        self.dump(GETADDR, &[0; 8], address)
    }

    pub(crate) fn default_routes(&self) -> io::Result<Vec<DefaultRoute>> {
        self.dump(GETROUTE, &[0; 12], default_route)
    }

    pub(crate) fn delete_link(&self, index: u32) -> io::Result<()> {
        self.change(DELLINK, 0, &link_header(index, 0, 0), |_| ())
    }

    /// Make a VXLAN device. It is down. Fails with `EOPNOTSUPP` where the kernel knows no VXLAN.
    pub(crate) fn add_vxlan(&self, name: &str, mtu: u32, mac: Mac, vxlan: &Vxlan) -> io::Result<()> {
        self.change(NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0), |out| {
            out.string(IFLA_IFNAME, name);
            out.attribute(IFLA_MTU, &mtu.to_ne_bytes());
            out.attribute(IFLA_ADDRESS, &mac.0);
            out.nested(IFLA_LINKINFO, |out| {
                out.string(IFLA_INFO_KIND, "vxlan");
                out.nested(IFLA_INFO_DATA, |out| vxlan_data(out, vxlan));
            });
        })
    }

    /// Change what differs; `None` leaves a thing as it is.
    pub(crate) fn change_link(
        &self,
        index: u32,
        up: bool,
        mtu: Option<u32>,
        mac: Option<Mac>,
        alias: Option<&str>,
    ) -> io::Result<()> {
        let flag = if up { UP } else { 0 };
        self.change(NEWLINK, 0, &link_header(index, flag, flag), |out| {
            if let Some(mtu) = mtu {
                out.attribute(IFLA_MTU, &mtu.to_ne_bytes());
            }
            if let Some(mac) = mac {
                out.attribute(IFLA_ADDRESS, &mac.0);
            }
            if let Some(alias) = alias {
                out.attribute(IFLA_IFALIAS, alias.as_bytes());
            }
        })
    }
}

fn vxlan_data(out: &mut Builder, vxlan: &Vxlan) {
    out.attribute(VXLAN_ID, &vxlan.id.to_ne_bytes());
    if vxlan.link != 0 {
        out.attribute(VXLAN_LINK, &vxlan.link.to_ne_bytes());
    }
    match vxlan.local {
        Some(IpAddr::V4(local)) => out.attribute(VXLAN_LOCAL, &local.octets()),
        Some(IpAddr::V6(local)) => out.attribute(VXLAN_LOCAL6, &local.octets()),
        None => {}
    }
    out.attribute(VXLAN_LEARNING, &[u8::from(vxlan.learning)]);
    out.attribute(VXLAN_PORT, &vxlan.port.to_be_bytes());
    if vxlan.gbp {
        out.attribute(VXLAN_GBP, &[]);
    }
}

fn read_vxlan(data: &[u8]) -> Option<Vxlan> {
    let parts = attributes(data);
    let port = attribute(parts, VXLAN_PORT)?;
    Some(Vxlan {
        id: attribute(parts, VXLAN_ID).and_then(number)?,
        port: u16::from_be_bytes(port.get(..2)?.try_into().ok()?),
        local: attribute(parts, VXLAN_LOCAL).or_else(|| attribute(parts, VXLAN_LOCAL6)).and_then(ip),
        link: attribute(parts, VXLAN_LINK).and_then(number).unwrap_or(0),
        learning: attribute(parts, VXLAN_LEARNING).is_some_and(|value| value != [0]),
        gbp: attribute(parts, VXLAN_GBP).is_some(),
    })
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

pub(super) fn link(message: &Message<'_>) -> Option<Link> {
    if ![NEWLINK, DELLINK].contains(&message.kind) {
        return None;
    }
    let flags = number(message.body.get(8..)?)?;
    let parts = message.attributes(16);
    let info = attribute(parts, IFLA_LINKINFO).map(attributes);
    let kind = info.and_then(|info| attribute(info, IFLA_INFO_KIND)).map(text).unwrap_or_default();
    let data = info.and_then(|info| attribute(info, IFLA_INFO_DATA));
    let mac = attribute(parts, IFLA_ADDRESS).and_then(|mac| Some(Mac(mac.try_into().ok()?)));
    Some(Link {
        index: link_number(message)?,
        name: text(attribute(parts, IFLA_IFNAME)?),
        is_up: flags & UP != 0,
        is_loopback: flags & LOOPBACK != 0,
        master: attribute(parts, 10).and_then(number),
        vxlan: data.filter(|_| kind == "vxlan").and_then(read_vxlan),
        kind,
        mtu: attribute(parts, IFLA_MTU).and_then(number).unwrap_or(0),
        mac,
        alias: attribute(parts, IFLA_IFALIAS).map(text).unwrap_or_default(),
    })
}

pub(super) fn address(message: &Message<'_>) -> Option<Address> {
    if message.kind != NEWADDR {
        return None;
    }
    let parts = message.attributes(8);
    // Anything but RT_SCOPE_UNIVERSE stays on the link or the host.
    if *message.body.get(3)? != 0 {
        return None;
    }
    // IFA_F_DADFAILED, IFA_F_DEPRECATED; and for IPv6 (AF_INET6) IFA_F_TEMPORARY, which changes every day. A
    // tentative one will do: the kernel is about to confirm it.
    let flags = attribute(parts, 8).and_then(number).unwrap_or(u32::from(*message.body.get(2)?));
    let is_ipv6 = message.body.first() == Some(&10);
    if flags & (0x08 | 0x20) != 0 || (is_ipv6 && flags & 0x01 != 0) {
        return None;
    }
    // On point-to-point links IFA_ADDRESS is the other end.
    let bytes = attribute(parts, 2).or_else(|| attribute(parts, 1))?;
    Some(Address { link: number(message.body.get(4..)?)?, address: ip(bytes)? })
}

pub(super) fn default_route(message: &Message<'_>) -> Option<DefaultRoute> {
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
        let links = Rt::open().unwrap().links().unwrap();
        let loopback = links.iter().find(|link| link.is_loopback).unwrap();
        assert_eq!(loopback.name, "lo");
        let addresses = Rt::open().unwrap().addresses().unwrap();
        assert!(addresses.iter().all(|address| !address.address.is_loopback()), "{addresses:?}");
        Rt::open().unwrap().default_routes().unwrap();
    }
}
