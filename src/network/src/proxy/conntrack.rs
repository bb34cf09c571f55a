//! Ends UDP flows that connection tracking would keep sending to endpoints that are gone, or past a
//! Service that has endpoints only now. TCP and SCTP notice by themselves. As kube-proxy's
//! pkg/proxy/conntrack does, by netlink (linux/netfilter/nfnetlink_conntrack.h).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;

use super::model::{Family, Protocol as Transport, UdpPort};
use crate::netlink::{
    Builder, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Protocol, Socket, attribute, attributes,
};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// The UDP addresses whose flows have to be looked at, with the endpoints that are right for them.
#[derive(Debug, Default)]
pub(crate) struct StaleFlows {
    services: HashMap<SocketAddr, Vec<SocketAddr>>,
    node_ports: HashMap<(Family, u16), Vec<SocketAddr>>,
}

impl StaleFlows {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.node_ports.is_empty()
    }

    /// A Service's UDP ports changed.
    pub(crate) fn add(&mut self, old: &[UdpPort], new: &[UdpPort]) {
        // What was there and is no more has no right endpoint.
        for (ports, gone) in [(old, true), (new, false)] {
            for port in ports {
                let endpoints = || if gone { Vec::new() } else { port.endpoints.clone() };
                for address in &port.addresses {
                    self.services.insert(SocketAddr::new(*address, port.port), endpoints());
                }
                if let (Some(node_port), Some(address)) = (port.node_port, port.addresses.first()) {
                    self.node_ports.insert((Family::of(*address), node_port), endpoints());
                }
            }
        }
    }

    fn is_stale(&self, flow: &Flow, node_ips: &[IpAddr]) -> bool {
        if let Some(endpoints) = self.services.get(&flow.destination) {
            return !endpoints.contains(&flow.answers_from);
        }
        let to = flow.destination;
        let is_translated = flow.answers_from != to;
        self.node_ports.get(&(Family::of(to.ip()), to.port())).is_some_and(|right| {
            (is_translated || node_ips.contains(&to.ip())) && !right.contains(&flow.answers_from)
        })
    }

    /// Delete the stale flows from the kernel; returns how many.
    pub(crate) fn delete(&self, node_ips: &[IpAddr]) -> io::Result<usize> {
        let socket = Socket::open(Protocol::Netfilter, 0)?;
        let mut request = Builder::default();
        request.begin(GET, NLM_F_REQUEST | NLM_F_DUMP, 1);
        request.raw(&[0; 4]);
        request.end();
        let mut deletions = Vec::new();
        socket.dump(request.bytes(), |message| {
            if let Some(flow) = Flow::parse(message)
                && self.is_stale(&flow, node_ips)
            {
                deletions.push(deletion(message));
            }
        })?;
        let mut count = 0;
        for deletion in deletions {
            match socket.acknowledged(deletion.bytes()) {
                Ok(()) => count += 1,
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

/// A UDP flow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Where the client sent to.
    destination: SocketAddr,
    /// Where the answers come from: the endpoint after address translation.
    answers_from: SocketAddr,
}

impl Flow {
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let parts = message.attributes(4);
        let (_, destination) = tuple(attribute(parts, TUPLE_ORIGINAL)?)?;
        let (answers_from, _) = tuple(attribute(parts, TUPLE_REPLY)?)?;
        Some(Self { destination, answers_from })
    }
}

/// Source and destination of a tuple, when it is UDP.
fn tuple(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let addresses = attributes(attribute(attributes(bytes), 1)?);
    let transport = attributes(attribute(attributes(bytes), 2)?);
    if attribute(transport, 1)? != [Transport::Udp.number()] {
        return None;
    }
    let address = |v4, v6| -> Option<IpAddr> {
        if let Some(bytes) = attribute(addresses, v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?).into())
    };
    let port =
        |kind| -> Option<u16> { Some(u16::from_be_bytes(attribute(transport, kind)?.try_into().ok()?)) };
    Some((SocketAddr::new(address(1, 3)?, port(2)?), SocketAddr::new(address(2, 4)?, port(3)?)))
}

pub(super) fn deletion(message: &Message<'_>) -> Builder {
    let mut out = Builder::default();
    out.begin(DELETE, NLM_F_REQUEST | NLM_F_ACK, 2);
    out.raw(&[message.body.first().copied().unwrap_or(0), 0, 0, 0]);
    for (kind, payload) in message.attributes(4) {
        match kind {
            TUPLE_ORIGINAL => out.nested(kind, |out| out.raw(payload)),
            ID | ZONE => out.attribute(kind, payload),
            _ => {}
        }
    }
    out.end();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow(destination: &str, answers_from: &str) -> Flow {
        Flow { destination: socket(destination), answers_from: socket(answers_from) }
    }

    fn port(endpoints: &[&str]) -> UdpPort {
        UdpPort {
            addresses: vec!["10.96.0.10".parse().unwrap()],
            port: 53,
            node_port: Some(30053),
            endpoints: endpoints.iter().map(|text| socket(text)).collect(),
        }
    }

    #[test]
    fn only_flows_to_wrong_endpoints_are_stale() {
        let mut flows = StaleFlows::default();
        flows.add(&[port(&["10.244.0.5:53", "10.244.0.6:53"])], &[port(&["10.244.0.6:53"])]);
        let node_ips = ["192.0.2.1".parse().unwrap()];
        for (destination, answers_from, expected) in [
            ("10.96.0.10:53", "10.244.0.5:53", true),
            ("10.96.0.10:53", "10.244.0.6:53", false),
            ("10.96.0.10:53", "10.96.0.10:53", true),
            ("10.96.0.10:54", "10.244.0.5:53", false),
            ("192.0.2.1:30053", "10.244.0.5:53", true),
            ("192.0.2.1:30053", "10.244.0.6:53", false),
            ("192.0.2.1:30053", "192.0.2.1:30053", true),
            ("198.51.100.7:30053", "198.51.100.7:30053", false),
        ] {
            assert_eq!(
                flows.is_stale(&flow(destination, answers_from), &node_ips),
                expected,
                "{destination} {answers_from}"
            );
        }
        let mut gone = StaleFlows::default();
        gone.add(&[port(&["10.244.0.5:53"])], &[]);
        assert!(gone.is_stale(&flow("10.96.0.10:53", "10.244.0.5:53"), &node_ips));
    }

    fn tuple_bytes(out: &mut Builder, kind: u16, source: [u8; 4], destination: [u8; 4], protocol: u8) {
        out.nested(kind, |out| {
            out.nested(1, |out| {
                out.attribute(1, &source);
                out.attribute(2, &destination);
            });
            out.nested(2, |out| {
                out.attribute(1, &[protocol]);
                out.attribute(2, &5000u16.to_be_bytes());
                out.attribute(3, &53u16.to_be_bytes());
            });
        });
    }

    #[test]
    fn a_dumped_flow_is_read_and_its_deletion_names_it() {
        for (protocol, is_read) in [(17, true), (6, false)] {
            let mut out = Builder::default();
            out.begin(GET, 0, 1);
            out.raw(&[2, 0, 0, 0]);
            tuple_bytes(&mut out, TUPLE_ORIGINAL, [10, 244, 0, 9], [10, 96, 0, 10], protocol);
            tuple_bytes(&mut out, TUPLE_REPLY, [10, 244, 0, 5], [10, 244, 0, 9], protocol);
            out.be32(ID, 77);
            out.end();
            let message = messages(out.bytes()).next().unwrap();
            let expected = is_read.then(|| flow("10.96.0.10:53", "10.244.0.5:5000"));
            assert_eq!(Flow::parse(&message), expected);
            let deletion = deletion(&message);
            let deletion = messages(deletion.bytes()).next().unwrap();
            assert_eq!(attribute(deletion.attributes(4), ID).unwrap(), 77u32.to_be_bytes());
            assert_eq!(
                attribute(deletion.attributes(4), TUPLE_ORIGINAL),
                attribute(message.attributes(4), TUPLE_ORIGINAL)
            );
        }
    }
}
