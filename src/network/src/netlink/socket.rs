//! A netlink socket. The kernel handles a request inside `send`, so answers are read at once and
//! nothing here waits for anything but the kernel's own work.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendto,
    setsockopt, socket, sockopt,
};

use super::message::{Message, NLMSG_DONE, NLMSG_ERROR, messages};

const NLM_F_DUMP_INTR: u16 = 0x10;

/// Which part of the kernel a socket speaks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Route,
    Netfilter,
}

/// Large enough for an error that quotes the largest message this crate sends.
const RECEIVE: usize = 128 * 1024;

#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    port: u32,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Socket {
    /// `groups` is a bit mask: bit n-1 joins multicast group n.
    pub(crate) fn open(protocol: Protocol, groups: u32) -> io::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let address: NetlinkAddr = getsockname(descriptor.as_raw_fd())?;
        Ok(Self { descriptor, port: address.pid() })
    }

    /// The port that messages caused by this socket carry.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Let one message of `bytes` fit, beyond the system's limit (needs `CAP_NET_ADMIN`).
    pub(crate) fn reserve_send(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.descriptor, sockopt::SndBufForce, &bytes)?)
    }

    /// The same for what is received.
    pub(crate) fn reserve_receive(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.descriptor, sockopt::RcvBufForce, &bytes)?)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = sendto(self.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    /// One datagram. `None` when there is none and `wait` is false.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut Vec<u8>, wait: bool) -> io::Result<Option<&'a [u8]>> {
        buffer.resize(RECEIVE, 0);
        let flags = if wait { MsgFlags::MSG_TRUNC } else { MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.as_raw_fd(), buffer, flags) {
                Ok(length) if length <= buffer.len() => return Ok(Some(&buffer[..length])),
                Ok(_) => return Err(io::Error::other("netlink message larger than the buffer")),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Send a dump request and hand every part of the answer to `each`. False when something changed meanwhile, so that
    /// parts may be missing.
    pub(crate) fn dump(&self, request: &[u8], mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        self.send(request)?;
        let mut buffer = Vec::new();
        let mut whole = true;
        loop {
            let Some(received) = self.receive(&mut buffer, true)? else { continue };
            for message in messages(received) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR if message.errno() == 0 => return Ok(whole),
                    NLMSG_ERROR => return Err(io::Error::from_raw_os_error(message.errno())),
                    _ => each(&message),
                }
            }
        }
    }

    /// Send one request that asks for an acknowledgement and wait for it.
    pub(crate) fn acknowledged(&self, request: &[u8]) -> io::Result<()> {
        self.dump(request, |_| ()).map(drop)
    }
}
