//! What the controller of load balancers and the nodes say to each other: annotations of Node objects. The
//! controller writes which addresses a node is to hold and which ports it would like there; the node answers
//! which of them its own programs use.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A Node's annotation: the addresses that the node is to hold, with commas.
pub const ADDRESSES: &str = "kedge.dev/load-balancer-addresses";
/// A Node's annotation: ports on which Services want to answer at the node's own addresses, as `TCP/80,UDP/53`.
pub const PORTS: &str = "kedge.dev/load-balancer-ports";
/// A Node's annotation: the node's answer to [`PORTS`]; a `!` stands before what its own programs use.
pub const PORTS_ANSWER: &str = "kedge.dev/load-balancer-ports-answer";

/// A port with its protocol as Kubernetes writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// From 1.
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.number)
    }
}

impl FromStr for Port {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (protocol, number) = text.split_once('/').ok_or(())?;
        let known = matches!(protocol, "TCP" | "UDP" | "SCTP");
        let number = number.parse().map_err(|_| ())?;
        if known { Ok(Self { protocol: protocol.to_owned(), number }) } else { Err(()) }
    }
}

/// The value of [`PORTS`].
pub fn ports_text(ports: &BTreeSet<Port>) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Reads it; what makes no sense is left out.
pub fn parse_ports(text: &str) -> BTreeSet<Port> {
    text.split(',').filter_map(|part| part.parse().ok()).collect()
}

/// A node's answer, [`PORTS_ANSWER`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortsAnswer {
    /// Services may have them.
    pub free: BTreeSet<Port>,
    /// The node's own programs have them.
    pub taken: BTreeSet<Port>,
}

impl PortsAnswer {
    /// Reads it; what makes no sense is left out.
    pub fn parse(text: &str) -> Self {
        let (taken, free): (Vec<&str>, Vec<&str>) = text.split(',').partition(|part| part.starts_with('!'));
        let read = |parts: Vec<&str>| {
            parts.iter().filter_map(|part| part.trim_start_matches('!').parse().ok()).collect()
        };
        Self { free: read(free), taken: read(taken) }
    }
}

impl fmt::Display for PortsAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.free.iter().map(ToString::to_string);
        let taken = self.taken.iter().map(|port| format!("!{port}"));
        f.write_str(&free.chain(taken).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let ports = parse_ports("TCP/80,UDP/53,nonsense,ICMP/1,TCP/443,TCP/99999");
        assert_eq!(ports_text(&ports), "TCP/80,TCP/443,UDP/53");
        let answer = PortsAnswer { free: parse_ports("TCP/443,UDP/53"), taken: parse_ports("TCP/80") };
        assert_eq!(answer.to_string(), "TCP/443,UDP/53,!TCP/80");
        assert_eq!(PortsAnswer::parse(&answer.to_string()), answer);
        assert_eq!(PortsAnswer::parse(""), PortsAnswer::default());
    }
}
