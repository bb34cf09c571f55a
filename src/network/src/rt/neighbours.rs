//! Static neighbours: which hardware address an IP address has (ARP, NDP), and behind which machine of a
//! VXLAN a hardware address lives (FDB).

use std::io;
use std::net::IpAddr;

use super::links::{Mac, ip};
use super::routes::bytes;
use super::{DELNEIGH, GETNEIGH, NEWNEIGH, Rt, link_number};
use crate::netlink::{Message, NLM_F_CREATE, NLM_F_REPLACE, attribute};

const BRIDGE: u8 = 7;
const PERMANENT: u16 = 0x80;
/// `NTF_SELF`: the device's own table, not that of a bridge above it.
const SELF: u8 = 0x02;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// An entry of the ARP or NDP table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    pub(crate) mac: Mac,
}

/// An entry of a VXLAN device's forwarding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Fdb {
    pub(crate) link: u32,
    pub(crate) mac: Mac,
    /// The machine.
    pub(crate) to: IpAddr,
}

/// `struct ndmsg`
fn header(family: u8, link: u32, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    header[10] = flags;
    header
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

impl Rt {
    /// The permanent entries of all links.
    pub(crate) fn neighbours(&self) -> io::Result<Vec<Neighbour>> {
        self.dump(GETNEIGH, &[0; 12], read_neighbour)
    }

    /// The entries of all VXLAN devices.
    pub(crate) fn fdb(&self) -> io::Result<Vec<Fdb>> {
        self.dump(GETNEIGH, &header(BRIDGE, 0, 0), read_fdb)
    }

    pub(crate) fn set_neighbour(&self, entry: &Neighbour) -> io::Result<()> {
        let header = header(family(entry.address), entry.link, 0);
        self.change(NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &header, |out| {
            out.attribute(NDA_DST, &bytes(entry.address));
            out.attribute(NDA_LLADDR, &entry.mac.0);
        })
    }

    pub(crate) fn delete_neighbour(&self, entry: &Neighbour) -> io::Result<()> {
        self.change(DELNEIGH, 0, &header(family(entry.address), entry.link, 0), |out| {
            out.attribute(NDA_DST, &bytes(entry.address));
        })
    }

    pub(crate) fn set_fdb(&self, entry: &Fdb) -> io::Result<()> {
        let header = header(BRIDGE, entry.link, SELF);
        self.change(NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &header, |out| {
            out.attribute(NDA_DST, &bytes(entry.to));
            out.attribute(NDA_LLADDR, &entry.mac.0);
        })
    }

    pub(crate) fn delete_fdb(&self, entry: &Fdb) -> io::Result<()> {
        self.change(DELNEIGH, 0, &header(BRIDGE, entry.link, SELF), |out| {
            out.attribute(NDA_DST, &bytes(entry.to));
            out.attribute(NDA_LLADDR, &entry.mac.0);
        })
    }
}

fn parts(message: &Message<'_>) -> Option<(u32, IpAddr, Mac)> {
    let parts = message.attributes(12);
    let mac = Mac(attribute(parts, NDA_LLADDR)?.try_into().ok()?);
    Some((link_number(message)?, ip(attribute(parts, NDA_DST)?)?, mac))
}

pub(super) fn read_neighbour(message: &Message<'_>) -> Option<Neighbour> {
    let state = u16::from_ne_bytes(message.body.get(8..10)?.try_into().ok()?);
    if message.kind != NEWNEIGH || message.body[0] == BRIDGE || state & PERMANENT == 0 {
        return None;
    }
    let (link, address, mac) = parts(message)?;
    Some(Neighbour { link, address, mac })
}

pub(super) fn read_fdb(message: &Message<'_>) -> Option<Fdb> {
    if message.kind != NEWNEIGH || *message.body.first()? != BRIDGE {
        return None;
    }
    let (link, to, mac) = parts(message)?;
    Some(Fdb { link, mac, to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Builder, messages};

    #[test]
    fn entries_read_back_and_are_not_confused() {
        let (mac, address): (Mac, IpAddr) = (Mac([2, 0, 0, 0, 0, 9]), [192, 0, 2, 9].into());
        for (family, is_fdb) in [(2, false), (BRIDGE, true)] {
            let mut out = Builder::default();
            out.begin(NEWNEIGH, 0, 1);
            out.raw(&header(family, 5, 0));
            out.attribute(NDA_DST, &bytes(address));
            out.attribute(NDA_LLADDR, &mac.0);
            out.end();
            let message = messages(out.bytes()).next().unwrap();
            let fdb = read_fdb(&message);
            assert_eq!(fdb, is_fdb.then_some(Fdb { link: 5, mac, to: address }));
            let neighbour = read_neighbour(&message);
            assert_eq!(neighbour, (!is_fdb).then_some(Neighbour { link: 5, address, mac }));
        }
    }

    /// Asking needs no privilege, so this reads the machine it runs on.
    #[test]
    fn both_tables_can_be_read() {
        let rt = Rt::open().unwrap();
        rt.neighbours().unwrap();
        rt.fdb().unwrap();
    }
}
