//! Notices what others do to nftables.

use std::io;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::{DELCHAIN, DELRULE, FAMILY_INET, NEWCHAIN, SUBSYSTEM, kind};
use crate::netlink::{Message, Protocol, Socket, attribute, messages, text};

/// `NFNLGRP_NFTABLES` is 7; as a bit mask.
const GROUP_NFTABLES: u32 = 1 << 6;
/// A new generation number: not about a table.
const NEWGEN: u16 = 15;
/// Notifications of a large change of our own must fit.
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// What was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// Somebody else changed our table.
    Touched,
    /// Notifications were lost: anything may have happened.
    Lost,
}

/// Listens to the kernel's notifications. Needs a tokio runtime.
#[derive(Debug)]
pub(crate) struct Watcher {
    socket: AsyncFd<Socket>,
    /// `None` watches for chains and deleted rules of all tables.
    table: Option<String>,
    own_port: u32,
}

impl Watcher {
    /// `own_port` is the port of the [`super::Writer`] whose changes are not news.
    pub(crate) fn open(table: &str, own_port: u32) -> io::Result<Self> {
        Self::open_any(Some(table.to_owned()), own_port)
    }

    /// Hears of chains that are made or changed and of rules that are deleted, in any table.
    pub(crate) fn open_chains(own_port: u32) -> io::Result<Self> {
        Self::open_any(None, own_port)
    }

    fn open_any(table: Option<String>, own_port: u32) -> io::Result<Self> {
        let socket = Socket::open(Protocol::Netfilter, GROUP_NFTABLES)?;
        // Without the privilege the default size has to do.
        let _ = socket.reserve_receive(RECEIVE_BUFFER);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; this socket owns its descriptor for as long as it lives"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, table, own_port })
    }

    /// Waits until somebody else changes the table. Safe to cancel: what was noticed but not
    /// returned is lost only together with the future between two polls, never inside one.
    pub(crate) async fn noticed(&self) -> io::Result<Noticed> {
        loop {
            let mut ready = self.socket.readable().await?;
            let (mut touched, mut lost) = (false, false);
            let mut buffer = Vec::new();
            loop {
                match ready.get_inner().receive(&mut buffer, false) {
                    Ok(Some(received)) => {
                        touched |= messages(received).any(|message| self.is_foreign_change(&message));
                    }
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => lost = true,
                    Err(error) => return Err(error),
                }
            }
            ready.clear_ready();
            if touched {
                return Ok(Noticed::Touched);
            }
            if lost {
                return Ok(Noticed::Lost);
            }
        }
    }

    fn is_foreign_change(&self, message: &Message<'_>) -> bool {
        if message.port == self.own_port || message.kind >> 8 != SUBSYSTEM {
            return false;
        }
        let Some(table) = &self.table else {
            return [NEWCHAIN, DELCHAIN, DELRULE].iter().any(|of| message.kind == kind(*of));
        };
        message.kind != kind(NEWGEN)
            && message.body.first() == Some(&FAMILY_INET)
            && attribute(message.attributes(4), 1).is_some_and(|found| text(found) == *table)
    }
}
