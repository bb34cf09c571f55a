//! Notices what others do to nftables: changes of our table, and chains that drop forwarded packets.

use std::io;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::{FAMILY_INET, GETCHAIN, NEWCHAIN, SUBSYSTEM, header, kind};
use crate::netlink::{
    Builder, Message, NLM_F_DUMP, NLM_F_REQUEST, Protocol, Socket, attribute, attributes, messages, text,
};

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
    table: String,
    own_port: u32,
}

impl Watcher {
    /// `own_port` is the port of the [`super::Writer`] whose changes are not news.
    pub(crate) fn open(table: &str, own_port: u32) -> io::Result<Self> {
        let socket = Socket::open(Protocol::Netfilter, GROUP_NFTABLES)?;
        // Without the privilege the default size has to do.
        let _ = socket.reserve_receive(RECEIVE_BUFFER);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; this socket owns its descriptor for as long as it lives"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, table: table.to_owned(), own_port })
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
        message.port != self.own_port
            && message.kind >> 8 == SUBSYSTEM
            && message.kind != kind(NEWGEN)
            && message.body.first() == Some(&FAMILY_INET)
            && attribute(message.attributes(4), 1).is_some_and(|table| text(table) == self.table)
    }
}

/// A base chain of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignChain {
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) chain: String,
}

/// Chains outside `own_table` that hang in the forward hook and drop what they do not accept.
pub(crate) fn dropping_forward_chains(own_table: &str) -> io::Result<Vec<ForeignChain>> {
    let socket = Socket::open(Protocol::Netfilter, 0)?;
    let mut request = Builder::default();
    request.begin(kind(GETCHAIN), NLM_F_REQUEST | NLM_F_DUMP, 1);
    request.raw(&header(0));
    request.end();
    let mut found = Vec::new();
    socket.dump(request.bytes(), |message| {
        found.extend(dropping_forward_chain(message).filter(|chain| chain.table != own_table));
    })?;
    Ok(found)
}

fn dropping_forward_chain(message: &Message<'_>) -> Option<ForeignChain> {
    let family = match (message.kind == kind(NEWCHAIN), message.body.first()?) {
        (true, 1) => "inet",
        (true, 2) => "ip",
        (true, 10) => "ip6",
        _ => return None,
    };
    let parts = message.attributes(4);
    let hook = attribute(attributes(attribute(parts, 4)?), 1)?;
    let policy = attribute(parts, 5)?;
    // NF_INET_FORWARD, NF_DROP
    (hook == [0, 0, 0, 2] && policy == [0, 0, 0, 0]).then_some(())?;
    Some(ForeignChain { family, table: text(attribute(parts, 1)?), chain: text(attribute(parts, 3)?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{BaseChain, Batch, Hook};

    #[test]
    fn accepting_chains_are_not_reported() {
        let mut batch = Batch::new("filter");
        let base = BaseChain { kind: "filter", hook: Hook::Forward, priority: 0 };
        batch.add_chain("FORWARD", Some(base), "");
        let built = batch.finish();
        let mut bytes = built.bytes().to_vec();
        let find = |bytes: &[u8]| messages(bytes).find_map(|message| dropping_forward_chain(&message));
        assert_eq!(find(&bytes), None);
        // The policy's value: turn accept into drop.
        let policy = bytes.windows(8).position(|w| w == [8, 0, 5, 0, 0, 0, 0, 1]);
        let at = policy.expect("the policy attribute is there");
        bytes[at + 7] = 0;
        let expected = ForeignChain { family: "inet", table: "filter".into(), chain: "FORWARD".into() };
        assert_eq!(find(&bytes), Some(expected));
    }
}
