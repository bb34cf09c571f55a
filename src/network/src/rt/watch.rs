//! The kernel's notifications about links, addresses, routes and neighbours.

use std::io;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::links::link;
use super::routes::read_route;
use super::{
    DELADDR, DELLINK, DELNEIGH, DELROUTE, KernelRoute, Link, NEWADDR, NEWLINK, NEWNEIGH, NEWROUTE,
    link_number,
};
use crate::netlink::{Message, Protocol, Socket, messages};

// linux/rtnetlink.h, RTMGRP_*
const LINK: u32 = 0x1;
const NEIGHBOUR: u32 = 0x4;
const IPV4_ADDRESS: u32 = 0x10;
const IPV4_ROUTE: u32 = 0x40;
const IPV6_ADDRESS: u32 = 0x100;
const IPV6_ROUTE: u32 = 0x400;
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// What the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A link was made, changed or deleted.
    Link(Link),
    /// A neighbour of this link.
    Neighbour(u32),
    /// An address of this link.
    Address(u32),
    /// A unicast route of the main table was made or deleted.
    Route(KernelRoute),
    /// Notifications were lost: anything may have happened.
    Lost,
}

/// Listens. Needs a tokio runtime.
#[derive(Debug)]
pub(crate) struct RtWatcher(AsyncFd<Socket>);

impl RtWatcher {
    pub(crate) fn open() -> io::Result<Self> {
        let groups = LINK | NEIGHBOUR | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE;
        let socket = Socket::open(Protocol::Route, groups)?;
        // Without the privilege the default size has to do.
        let _ = socket.reserve_receive(RECEIVE_BUFFER);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; this socket owns its descriptor for as long as it lives"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self(socket))
    }

    /// Waits until something happens that `concerns` us, then returns once all that is known by now
    /// was read. Safe to cancel.
    pub(crate) async fn until(&self, concerns: impl Fn(&Event) -> bool) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut found = false;
            let mut buffer = Vec::new();
            loop {
                match ready.get_inner().receive(&mut buffer, false) {
                    Ok(Some(received)) => {
                        found |= messages(received).filter_map(|m| event(&m)).any(|event| concerns(&event));
                    }
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                        found |= concerns(&Event::Lost);
                    }
                    Err(error) => return Err(error),
                }
            }
            ready.clear_ready();
            if found {
                return Ok(());
            }
        }
    }
}

pub(super) fn event(message: &Message<'_>) -> Option<Event> {
    match message.kind {
        NEWLINK | DELLINK => link(message).map(Event::Link),
        NEWADDR | DELADDR => link_number(message).map(Event::Address),
        NEWROUTE | DELROUTE => read_route(message).map(Event::Route),
        NEWNEIGH | DELNEIGH => link_number(message).map(Event::Neighbour),
        _ => None,
    }
}
