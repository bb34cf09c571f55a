//! Hears other machines announce addresses: one that this machine holds as well is held twice.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::rt::Mac;

/// ETH_P_ARP
const ARP: u16 = 0x0806;
const ADVERTISEMENT: u8 = 136;
const SOLICITED: u8 = 0x40;
const TARGET_LINK_LAYER: u8 = 2;

/// Listens on all interfaces. Needs a tokio runtime.
#[derive(Debug)]
pub(super) struct Claims {
    arp: AsyncFd<Socket>,
    /// `None`: a machine without IPv6.
    neighbours: Option<AsyncFd<Socket>>,
}

impl Claims {
    pub(super) fn open() -> io::Result<Self> {
        let arp = listen(Domain::PACKET, Type::DGRAM, Protocol::from(i32::from(ARP.to_be())))?;
        let neighbours = listen(Domain::IPV6, Type::RAW, Protocol::ICMPV6).ok();
        Ok(Self { arp, neighbours })
    }

    /// The next announcement of one of `ours`, and whose it is. Safe to cancel.
    pub(super) async fn next(&self, ours: impl Fn(IpAddr) -> bool) -> io::Result<(IpAddr, Mac)> {
        loop {
            let found = tokio::select! {
                found = heard(&self.arp, arp_claim, &ours) => found?,
                found = heard_by(self.neighbours.as_ref(), &ours) => found?,
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }
}

fn listen(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; this socket owns its descriptor for as long as it lives"
    )]
    AsyncFd::new(socket)
}

async fn heard_by(
    socket: Option<&AsyncFd<Socket>>,
    ours: &impl Fn(IpAddr) -> bool,
) -> io::Result<Option<(IpAddr, Mac)>> {
    match socket {
        Some(socket) => heard(socket, advertisement_claim, ours).await,
        None => std::future::pending().await,
    }
}

/// All packets that are there; the first claim among them. More of them come if it stays claimed.
async fn heard(
    socket: &AsyncFd<Socket>,
    read: fn(&[u8]) -> Option<(IpAddr, Mac)>,
    ours: &impl Fn(IpAddr) -> bool,
) -> io::Result<Option<(IpAddr, Mac)>> {
    let mut ready = socket.readable().await?;
    let mut found = None;
    let mut packet = [0; 256];
    loop {
        match (&mut ready.get_inner()).read(&mut packet) {
            Ok(length) => {
                let claim = packet.get(..length).and_then(read).filter(|(address, _)| ours(*address));
                found = found.or(claim);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An interface that went down.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENETDOWN as i32) => {}
            Err(error) => return Err(error),
        }
    }
    ready.clear_ready();
    Ok(found)
}

/// Gratuitous ARP names the same address as sender and target.
fn arp_claim(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    // Ethernet, IPv4, lengths 6 and 4.
    if !packet.starts_with(&[0, 1, 0x08, 0, 6, 4]) {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let (sender, target) = (address(14)?, address(24)?);
    let mac = Mac(packet.get(8..14)?.try_into().ok()?);
    (sender == target).then_some((sender.into(), mac))
}

/// An advertisement that nobody asked for.
fn advertisement_claim(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    if *packet.first()? != ADVERTISEMENT || *packet.get(4)? & SOLICITED != 0 {
        return None;
    }
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
    let mut options = packet.get(24..)?;
    while let [kind, length, ..] = *options {
        let length = usize::from(length) * 8;
        if kind == TARGET_LINK_LAYER && length == 8 {
            return Some((target.into(), Mac(options.get(2..8)?.try_into().ok()?)));
        }
        options = options.get(length..).filter(|_| length > 0)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::frames::announcements;
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn what_is_announced_is_understood() {
        let v4: IpAddr = "192.0.2.200".parse().unwrap();
        for frame in announcements(v4, MAC) {
            assert_eq!(arp_claim(&frame[14..]), Some((v4, MAC)));
        }
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        for frame in announcements(v6, MAC) {
            assert_eq!(advertisement_claim(&frame[54..]), Some((v6, MAC)));
        }
    }

    #[test]
    fn questions_answers_and_rubbish_are_no_claims() {
        let mut frame = announcements("192.0.2.200".parse().unwrap(), MAC)[0][14..].to_vec();
        frame[27] = 1;
        assert_eq!(arp_claim(&frame), None, "it asks for another address");
        let mut answer = announcements("2001:db8::10".parse().unwrap(), MAC)[0][54..].to_vec();
        for cut in 0..answer.len() {
            assert_eq!(advertisement_claim(&answer[..cut]), None);
            assert_eq!(arp_claim(&frame[..cut.min(frame.len())]), None);
        }
        answer[4] |= SOLICITED;
        assert_eq!(advertisement_claim(&answer), None);
        answer[4] = 0;
        answer[25] = 0;
        assert_eq!(advertisement_claim(&answer), None, "an option without length");
    }
}
