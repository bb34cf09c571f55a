//! Which ports of this machine its own programs use: Services must not take them away.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use kedge_client::load_balancer::Port;

/// What of `asked` other programs listen on, at an address that others reach (`proc` is /proc/net).
pub(super) fn taken(proc: &Path, asked: &BTreeSet<Port>, reserved: &BTreeSet<u16>) -> BTreeSet<Port> {
    let mut used: BTreeSet<Port> = BTreeSet::new();
    let protocols: BTreeSet<&str> = asked.iter().map(|port| port.protocol.as_str()).collect();
    for (protocol, file, listening) in
        [("TCP", "tcp", "0A"), ("TCP", "tcp6", "0A"), ("UDP", "udp", "07"), ("UDP", "udp6", "07")]
    {
        if !protocols.contains(protocol) {
            continue;
        }
        match std::fs::read_to_string(proc.join(file)) {
            Ok(text) => used.extend(
                sockets(&text, listening).map(|number| Port { protocol: protocol.to_owned(), number }),
            ),
            // Without IPv6 there is no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, file, "the ports in use are not known"),
        }
    }
    let is_taken =
        |port: &&Port| used.contains(*port) || (port.protocol == "TCP" && reserved.contains(&port.number));
    asked.iter().filter(is_taken).cloned().collect()
}

/// The ports of one of the kernel's tables; those on loopback addresses get no packets from elsewhere.
fn sockets<'a>(text: &'a str, listening: &'a str) -> impl Iterator<Item = u16> + 'a {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (address, port) = local.split_once(':')?;
        let is_reached = state == listening && !loopback(address)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        is_reached.then_some(port)
    })
}

/// The kernel prints 32-bit words of its own byte order.
fn loopback(text: &str) -> Option<bool> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match text.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
        }
        _ => return None,
    };
    Some(address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use kedge_client::load_balancer::parse_ports;

    use super::*;

    #[test]
    fn listening_sockets_that_others_reach_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        // The addresses as a little-endian machine prints them.
        let tcp = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
                   \x20  1: 0100007F:01BB 00000000:0000 0A 00000000:00000000\n\
                   \x20  2: 010200C0:1F90 020200C0:9C40 01 00000000:00000000\n\
                   \x20  3: 010200C0:0019 00000000:0000 0A 00000000:00000000\n";
        let tcp6 = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A x\n\
                    \x20  1: 00000000000000000000000000000000:1538 00000000000000000000000000000000:0000 0A x\n";
        let udp = "  99: 00000000:0035 00000000:0000 07 00000000:00000000\n";
        for (name, text) in [("tcp", tcp), ("tcp6", tcp6), ("udp", udp)] {
            std::fs::write(folder.path().join(name), format!("{heading}{text}")).unwrap();
        }
        let asked = parse_ports(
            "TCP/80,TCP/443,TCP/8080,TCP/25,TCP/22,TCP/5432,TCP/53,UDP/53,TCP/6443,UDP/6443,SCTP/80",
        );
        if cfg!(target_endian = "little") {
            let found = taken(folder.path(), &asked, &BTreeSet::from([6443]));
            assert_eq!(found, parse_ports("TCP/80,TCP/25,TCP/5432,UDP/53,TCP/6443"));
        }
    }

    #[test]
    fn this_machines_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = parse_ports(&format!("TCP/{port}"));
        assert_eq!(taken(Path::new("/proc/thread-self/net"), &asked, &BTreeSet::new()), asked);
    }
}
