//! Links, addresses, routes and neighbours over netlink, as linux/rtnetlink.h and its neighbours define
//! them. Knows nothing of Kubernetes; only `netlink` lies below.

#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod held;
mod links;
mod neighbours;
mod routes;
mod watch;

use std::io;

pub(crate) use held::Assigned;
pub(crate) use links::{Address, DefaultRoute, Link, Mac, Vxlan};
pub(crate) use neighbours::{Fdb, Neighbour};
pub(crate) use routes::{KernelRoute, Route, Way};
pub(crate) use watch::{Event, RtWatcher};

use crate::netlink::{Builder, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Protocol, Socket};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;

/// So often at most a list is read until nothing changes meanwhile.
const DUMPS: usize = 20;

/// A netlink socket for questions and changes.
#[derive(Debug)]
pub(crate) struct Rt(Socket);

impl Rt {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(Protocol::Route, 0)?))
    }

    /// Everything of a kind; `header` is the kind's fixed header.
    fn dump<T>(&self, kind: u16, header: &[u8], read: fn(&Message<'_>) -> Option<T>) -> io::Result<Vec<T>> {
        let mut request = Builder::default();
        request.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, 1);
        request.raw(header);
        request.end();
        // Kernels before 6.10 may leave out what is there when something else goes at that moment.
        let mut found = Vec::new();
        for _ in 0..DUMPS {
            found.clear();
            if self.0.dump(request.bytes(), |message| found.extend(read(message)))? {
                break;
            }
        }
        Ok(found)
    }

    /// One change, acknowledged by the kernel.
    fn change(
        &self,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Builder),
    ) -> io::Result<()> {
        let mut request = Builder::default();
        request.begin(kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1);
        request.raw(header);
        fill(&mut request);
        request.end();
        self.0.acknowledged(request.bytes())
    }
}

/// `struct ifinfomsg` of any family.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The interface that a message about a link, address or neighbour is about.
fn link_number(message: &Message<'_>) -> Option<u32> {
    number(message.body.get(4..)?)
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// Deleting what has vanished meanwhile is fine.
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    use nix::errno::Errno;
    match result {
        Err(error)
            if [Errno::ENODEV, Errno::ESRCH, Errno::ENOENT, Errno::EADDRNOTAVAIL]
                .iter()
                .any(|errno| error.raw_os_error() == Some(*errno as i32)) =>
        {
            Ok(())
        }
        other => other,
    }
}
