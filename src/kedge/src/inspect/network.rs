//! Ports, addresses and routes, forwarding, and the host's resolvers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use super::{Context, Found, Moment, fail, ok, warn};
use crate::config::Config;

/// flannel's VXLAN port.
const VXLAN_PORT: u16 = 8472;

pub(super) fn ports(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let wanted = [
        ("--port", config.port),
        ("--cluster-port", config.cluster_port),
        ("--kubelet-port", config.kubelet_port),
    ];
    // A node that runs has them itself.
    if let Some(process) = context.process {
        let list: Vec<String> = wanted.iter().map(|(_, port)| port.to_string()).collect();
        return vec![ok(format!("ports {} belong to kedge (process {})", list.join(", "), process.pid))];
    }
    let mut found = Vec::new();
    for (flag, port) in wanted {
        let Err(error) = TcpListener::bind((config.bind_address(), port)) else { continue };
        found.push(match error.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = port_owner(port).map(|owner| format!(" by {owner}")).unwrap_or_default();
                fail(
                    format!("port {port} is in use{owner}"),
                    format!("stop that program, or choose another port with {flag}"),
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                return vec![fail(
                    format!("this machine does not have the address {}", config.bind_address()),
                    "choose one of its addresses with --bind-address",
                )];
            }
            _ => {
                fail(format!("cannot listen on port {port}: {error}"), format!("choose another with {flag}"))
            }
        });
    }
    if context.own_pod_network()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, VXLAN_PORT))
            .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        && !Path::new("/sys/class/net/flannel.1").exists()
    {
        found.push(warn(
            format!("UDP port {VXLAN_PORT}, which carries pods' packets between nodes, is in use"),
            "end the other network overlay of this machine before other nodes join",
        ));
    }
    if found.is_empty() {
        found.push(ok(format!(
            "ports {}, {} and {} are free",
            config.port, config.cluster_port, config.kubelet_port
        )));
    }
    found
}

/// Who listens on a TCP port: "NAME (process 42)".
fn port_owner(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let owns = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new(&wanted))
        });
        if owns {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the listening socket (state 0A) in a table of /proc/net.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
        if listens { fields.get(9)?.parse().ok() } else { None }
    })
}

pub(super) fn routes(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let mut found = Vec::new();
    let mut addresses = crate::node::addresses(config);
    if context.moment == Moment::Join && addresses.is_err() {
        // Which IP families the cluster has is not known before it is asked.
        let other = !config.pod_cidrs.first().is_none_or(|network| network.addr().is_ipv4());
        if let Ok(address) = kedge_network::default_address_of(other) {
            addresses = Ok(vec![address]);
        }
    }
    match addresses {
        Ok(addresses) => found.extend(addresses.into_iter().map(|address| {
            if has_address(address) {
                return ok(format!("this node announces {address}"));
            }
            fail(
                format!("this machine does not have the address {address} that it is to announce"),
                "choose one of its addresses (ip address) with --node-ip",
            )
        })),
        Err(error) => found.push(fail(
            format!("{error:#}"),
            "give an interface an address, or name the address with --node-ip",
        )),
    }
    let table = parse_routes(&fs::read_to_string("/proc/net/route").unwrap_or_default());
    found.extend(judge_routes(&table, config));
    found
}

/// Binding to it tells; no port is taken.
fn has_address(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    device: String,
    net: Ipv4Net,
}

/// /proc/net/route writes addresses as hexadecimal numbers of this machine's byte order.
fn parse_routes(table: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (net, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
            let net = Ipv4Net::with_netmask(net, mask).ok()?;
            Some(Route { device: (*fields.first()?).to_owned(), net })
        })
        .collect()
}

fn judge_routes(table: &[Route], config: &Config) -> Vec<Found> {
    let mut found = Vec::new();
    if !table.iter().any(|route| route.net.prefix_len() == 0) {
        found.push(warn(
            "there is no default route: pods reach this network only, and images must be there already",
            "nothing, if that is wanted; otherwise: ip route add default via ROUTER",
        ));
    }
    let ours = |device: &str| {
        device == config.bridge_name || device.starts_with("flannel.") || device.starts_with("kedge")
    };
    let pods = config.pod_cidrs.iter().map(|range| ("--pod-cidr", range));
    let services = config.service_cidrs.iter().map(|range| ("--service-cidr", range));
    for (flag, range) in pods.chain(services) {
        let IpNet::V4(range) = range else { continue };
        for route in table.iter().filter(|route| route.net.prefix_len() > 0 && !ours(&route.device)) {
            // Routes of another node's pods lead into our own range, through the other node.
            if range.contains(&route.net) && flag == "--pod-cidr" && config.pki_dir().exists() {
                continue;
            }
            let text =
                format!("the network {} of {} overlaps {} {range}", route.net, route.device, &flag[2..]);
            if range.contains(&route.net) {
                found.push(fail(text, format!("choose another range with {flag}, the same on all nodes")));
            } else if route.net.contains(range) {
                found.push(warn(
                    format!("{text}; hosts of that network with such addresses cannot be reached"),
                    format!("choose another range with {flag} if there are any"),
                ));
            }
        }
    }
    found
}

pub(super) fn forwarding(context: &Context<'_>) -> Vec<Found> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim() == "1");
    vec![judge_forwarding(
        read("/proc/sys/net/ipv4/ip_forward"),
        read("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        context.moment == Moment::Inspect && context.process.is_some(),
    )]
}

fn judge_forwarding(forward: Option<bool>, bridge: Option<bool>, runs: bool) -> Found {
    match (forward, bridge, runs) {
        (None, ..) => fail("the kernel has no IPv4 forwarding", "use a kernel with IPv4"),
        (Some(true), Some(true), true) => ok("packets are forwarded, and seen by netfilter on bridges"),
        (Some(false), _, true) => fail(
            "forwarding was switched off after kedge had switched it on: pods reach nothing",
            "sysctl -w net.ipv4.ip_forward=1, and look who sets it: grep -r ip_forward /etc/sysctl.conf /etc/sysctl.d",
        ),
        (_, bridge, true) => fail(
            if bridge.is_some() {
                "bridge-nf-call-iptables was switched off: Services do not work between pods of one node"
            } else {
                "br_netfilter is not loaded: Services do not work between pods of one node"
            },
            "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1",
        ),
        (Some(true), ..) => ok("packets are forwarded"),
        (Some(false), ..) => ok("forwarding is off; kedge switches it on when it starts"),
    }
}

pub(super) fn resolv_conf(context: &Context<'_>) -> Vec<Found> {
    let file = kedge_network::dns::host_resolv_conf();
    let text = fs::read_to_string(&file).unwrap_or_default();
    vec![judge_resolvers(&file, &nameservers(&text), context.config)]
}

fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().split(['%', ' ', '\t']).next()?.parse().ok())
        .collect()
}

fn judge_resolvers(file: &Path, servers: &[IpAddr], config: &Config) -> Found {
    let place = file.display();
    if let Some(own) =
        servers.iter().find(|server| **server == config.cluster_dns || config.is_service(**server))
    {
        return fail(
            format!(
                "{place} names {own}, the cluster's own DNS: questions for other names go round in circles"
            ),
            "put your network's name server there, or: kedge enable dns:upstream=ADDRESS",
        );
    }
    if servers.is_empty() {
        return warn(
            format!("{place} names no server: pods resolve the cluster's names only"),
            "put your network's name server there, or: kedge enable dns:upstream=ADDRESS",
        );
    }
    if servers.iter().all(IpAddr::is_loopback) {
        return warn(
            format!(
                "{place} names only this machine itself, which pods cannot ask: they resolve the cluster's names only"
            ),
            "kedge enable dns:upstream=ADDRESS with your network's name server",
        );
    }
    let list: Vec<String> = servers.iter().map(ToString::to_string).collect();
    ok(format!("pods' other names are resolved by {} ({place})", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Settings;

    fn config() -> Config {
        Config::load(Some(Path::new("/nonexistent")), &Settings::default()).unwrap()
    }

    #[test]
    fn a_listener_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:192B 00000000:0000 01 00000000:00000000 00:00000000 00000000 0 0 111 1\n\
            1: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1\n";
        assert_eq!(listening_inode(table, 6443), Some(4242));
        assert_eq!(listening_inode(table, 6444), None);
    }

    #[test]
    fn the_owner_of_a_port_is_this_test() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = port_owner(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("(process {})", std::process::id())), "{owner}");
    }

    fn route(device: &str, net: &str) -> Route {
        Route { device: device.into(), net: net.parse().unwrap() }
    }

    #[test]
    fn the_kernels_table_of_routes() {
        let hex = |text: &str| {
            let address: Ipv4Addr = text.parse().unwrap();
            format!("{:08X}", u32::from_ne_bytes(address.octets()))
        };
        let table = format!(
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
             eth0 00000000 {} 0003 0 0 0 00000000 0 0 0\neth0 {} 00000000 0001 0 0 0 {} 0 0 0\n",
            hex("192.0.2.1"),
            hex("192.0.2.0"),
            hex("255.255.255.0")
        );
        assert_eq!(parse_routes(&table), [route("eth0", "0.0.0.0/0"), route("eth0", "192.0.2.0/24")]);
    }

    #[test]
    fn ranges_that_are_taken() {
        let config = config();
        let default = || route("eth0", "0.0.0.0/0");
        let judge = |table: &[Route]| -> Vec<Verdict> {
            judge_routes(table, &config).into_iter().map(|found| found.0).collect()
        };
        assert_eq!(judge(&[default(), route("eth0", "192.168.1.0/24")]), []);
        assert_eq!(judge(&[route("eth0", "192.168.1.0/24")]), [Verdict::Warn], "no default route");
        assert_eq!(judge(&[default(), route("eth0", "10.244.7.0/24")]), [Verdict::Fail]);
        assert_eq!(judge(&[default(), route("eth0", "10.96.0.0/16")]), [Verdict::Fail]);
        assert_eq!(judge(&[default(), route("vpn0", "10.0.0.0/8")]), [Verdict::Warn, Verdict::Warn]);
        assert_eq!(
            judge(&[default(), route("kedge0", "10.244.0.0/24"), route("flannel.1", "10.244.1.0/24")]),
            []
        );
    }

    #[test]
    fn forwarding_before_and_after() {
        for (forward, bridge, runs, expected) in [
            (Some(false), None, false, Verdict::Ok),
            (Some(true), None, false, Verdict::Ok),
            (Some(true), Some(true), true, Verdict::Ok),
            (Some(false), Some(true), true, Verdict::Fail),
            (Some(true), Some(false), true, Verdict::Fail),
            (Some(true), None, true, Verdict::Fail),
            (None, None, false, Verdict::Fail),
        ] {
            let found = judge_forwarding(forward, bridge, runs);
            assert_eq!(found.0, expected, "{forward:?} {bridge:?} {runs} {found:?}");
        }
    }

    #[test]
    fn resolvers_that_lead_nowhere() {
        let config = config();
        for (text, expected, part) in [
            ("nameserver 192.0.2.53\nsearch x\n", Verdict::Ok, "192.0.2.53"),
            ("nameserver 127.0.0.53\nnameserver 192.0.2.53\n", Verdict::Ok, "192.0.2.53"),
            ("nameserver 127.0.0.53\n", Verdict::Warn, "only this machine"),
            ("nameserver fe80::1%eth0\n", Verdict::Ok, "fe80::1"),
            ("# nothing\n", Verdict::Warn, "names no server"),
            ("nameserver 10.96.0.10\n", Verdict::Fail, "circles"),
        ] {
            let found = judge_resolvers(Path::new("/etc/resolv.conf"), &nameservers(text), &config);
            assert_eq!(found.0, expected, "{text:?} {found:?}");
            assert!(found.1.contains(part), "{part:?} is not in {found:?}");
        }
    }
}
