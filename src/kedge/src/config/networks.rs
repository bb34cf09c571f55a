//! The settings that hold one value or one of each IP family, separated by a comma: `V4,V6` or `V6,V4`. The
//! first one's family is the cluster's default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Config, Fault, Reader};

/// What a text stands for, or what is wrong with it.
fn parse<T: std::str::FromStr + Copy>(
    text: &str,
    what: &str,
    is_ipv4: impl Fn(T) -> bool,
) -> Result<Vec<T>, String> {
    let mut list: Vec<T> = Vec::new();
    for one in text.split(',').map(str::trim) {
        list.push(one.parse().map_err(|_| format!("{one:?} is not {what}"))?);
    }
    match list[..] {
        [_] => Ok(list),
        [first, second] if is_ipv4(first) != is_ipv4(second) => Ok(list),
        [first, _] => {
            let family = if is_ipv4(first) { "IPv4" } else { "IPv6" };
            Err(format!("{text:?} has two of {family}; a second one has to be of the other IP family"))
        }
        _ => Err(format!("{text:?} has more than two; give one, or one of each IP family")),
    }
}

impl Reader {
    fn list<T: std::str::FromStr + Copy>(
        &mut self,
        key: &str,
        what: &str,
        is_ipv4: impl Fn(T) -> bool,
    ) -> Vec<T> {
        let Some(text) = self.settings.get(key).filter(|text| !text.is_empty()) else {
            return Vec::new();
        };
        match parse(text, what, is_ipv4) {
            Ok(list) => list,
            Err(fault) => {
                self.fault(key, &fault);
                Vec::new()
            }
        }
    }

    pub(super) fn addresses(&mut self, key: &str) -> Vec<IpAddr> {
        let found = self.list(key, "an IP address", |address: IpAddr| address.is_ipv4());
        // Boards on one cable have nothing else.
        let is_zeroconf = |address: &IpAddr| matches!(address, IpAddr::V4(v4) if v4.is_link_local());
        let wrong = |address: &IpAddr| unusable((*address).into()).is_some() && !is_zeroconf(address);
        for address in found.iter().copied().filter(wrong) {
            self.refuse(
                key,
                format!("{address} is no address by which others reach this machine"),
                "choose another",
            );
        }
        found
    }

    /// Like [`Reader::addresses`]; `none` is a choice too.
    pub(super) fn virtual_addresses(&mut self, key: &str) -> Vec<IpAddr> {
        if self.settings.get(key) == Some("none") { Vec::new() } else { self.addresses(key) }
    }

    pub(super) fn networks(&mut self, key: &str, address: [u8; 4], prefix: u8) -> Vec<IpNet> {
        let what = "a network such as 10.244.0.0/16 or fd00:10:244::/56";
        let mut networks = self.list(key, what, |net: IpNet| net.addr().is_ipv4());
        if networks.is_empty() {
            networks.push(IpNet::new_assert(IpAddr::from(address), prefix));
        }
        for network in networks.iter().filter(|network| network.trunc() != **network) {
            self.refuse(
                key,
                format!("{network} has host bits"),
                format!("did you mean {}?", network.trunc()),
            );
        }
        for (network, reserved) in networks.iter().filter_map(|net| Some((net, unusable(*net)?))) {
            let such = if network.addr().is_ipv4() { "10.244.0.0/16" } else { "fd00:10:244::/56" };
            self.refuse(
                key,
                format!("{network} has {reserved}"),
                format!("choose a private network such as {such}"),
            );
        }
        networks
    }

    /// The tenth address of the Services' first network, unless another one is given.
    pub(super) fn cluster_dns(&mut self, services: &[IpNet]) -> IpAddr {
        self.parsed("cluster-dns", "an IP address", tenth(services))
    }
}

fn tenth(services: &[IpNet]) -> IpAddr {
    match services.first().map(IpNet::network) {
        Some(IpAddr::V4(first)) => Ipv4Addr::from(u32::from(first).saturating_add(10)).into(),
        Some(IpAddr::V6(first)) => Ipv6Addr::from(u128::from(first).saturating_add(10)).into(),
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// Networks of which no pod, Service or node can have its address, and what they are.
const UNUSABLE: [(&str, &str); 7] = [
    ("0.0.0.0/8", "addresses that mean none (0.0.0.0/8)"),
    ("127.0.0.0/8", "loopback addresses (127.0.0.0/8)"),
    ("169.254.0.0/16", "link-local addresses (169.254.0.0/16)"),
    ("224.0.0.0/4", "multicast addresses (224.0.0.0/4)"),
    ("::/127", "the addresses :: and ::1"),
    ("fe80::/10", "link-local addresses (fe80::/10)"),
    ("ff00::/8", "multicast addresses (ff00::/8)"),
];

/// What of it cannot be used.
fn unusable(network: IpNet) -> Option<&'static str> {
    UNUSABLE.iter().find_map(|(reserved, what)| {
        let reserved: IpNet = reserved.parse().ok()?;
        (reserved.contains(&network) || network.contains(&reserved)).then_some(*what)
    })
}

pub(crate) fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Config {
    /// Where listeners bind: IPv4 alone unless the cluster has IPv6 too.
    pub(crate) fn bind_address(&self) -> IpAddr {
        let has_ipv6 = self.pod_cidrs.iter().any(|net| net.addr().is_ipv6());
        self.bind_address.unwrap_or(if has_ipv6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        })
    }

    /// The API server's own addresses have to be served and to be nobody else's.
    pub(super) fn check_virtual_addresses(&self, reader: &mut Reader) {
        for address in &self.virtual_addresses {
            let mut refuse = |what: String, remedy: &str| {
                reader.faults.push(Fault::new(format!("virtual-address {address} {what}"), remedy));
            };
            if self.node_ips.contains(address) {
                refuse("is this node's own (node-ip)".to_owned(), "choose one that no machine has");
            }
            for (key, networks) in [("pod-cidr", &self.pod_cidrs), ("service-cidr", &self.service_cidrs)] {
                if let Some(network) = networks.iter().find(|network| network.contains(address)) {
                    refuse(format!("is in {key} {network}"), "choose one of the nodes' own network");
                }
            }
            if !self.serves(*address) {
                refuse(
                    format!("is not served by listeners on {}", self.bind_address()),
                    "leave bind-address out, or set it to \"::\" for IPv6",
                );
            }
        }
    }

    /// Whether listeners answer at an address that this machine gets later.
    pub(crate) fn serves(&self, address: IpAddr) -> bool {
        let bind = self.bind_address();
        bind.is_unspecified() && (address.is_ipv4() || bind.is_ipv6())
    }

    /// Whether Services have such addresses.
    pub(crate) fn is_service(&self, address: IpAddr) -> bool {
        self.service_cidrs.iter().any(|net| net.contains(&address))
    }

    /// The cluster IPs of the Service `kubernetes`: the first one of each network.
    pub(crate) fn kubernetes_service(&self) -> Vec<IpAddr> {
        self.service_cidrs.iter().filter_map(|net| net.hosts().find(|host| *host != net.network())).collect()
    }

    /// The DNS Service's address is no other's. Outside of the range it is a server of the user's.
    pub(super) fn check_cluster_dns(&self, reader: &mut Reader) {
        let dns = self.cluster_dns;
        let services = self.service_cidrs.iter().find(|services| services.contains(&dns));
        let fault = match services {
            Some(_) if self.kubernetes_service().contains(&dns) => "is the Service kubernetes' in".to_owned(),
            Some(net) if dns == net.network() || (dns.is_ipv4() && dns == net.broadcast()) => {
                "is no Service's address in".to_owned()
            }
            _ => return,
        };
        let (range, tenth) = (joined(&self.service_cidrs), tenth(&self.service_cidrs));
        reader.refuse(
            "cluster-dns",
            format!("{dns} {fault} service-cidr {range}"),
            format!("leave it out for {tenth}, or choose another of that range"),
        );
    }

    /// Networks that are right one by one but not beside each other.
    pub(super) fn check_networks(&self, reader: &mut Reader) {
        let mut refuse = |what: String, remedy: String| reader.faults.push(Fault::new(what, remedy));
        for pods in &self.pod_cidrs {
            for services in &self.service_cidrs {
                if pods.contains(services) || services.contains(pods) {
                    refuse(
                        format!("pod-cidr {pods} and service-cidr {services} overlap"),
                        "choose two that do not".to_owned(),
                    );
                }
            }
            let mask = if pods.addr().is_ipv4() { 24 } else { 64 };
            if pods.prefix_len() > mask {
                refuse(
                    format!("pod-cidr {pods} is too small: every node gets a /{mask} of it"),
                    format!("it has to be a /{mask} or larger"),
                );
            }
        }
        for services in self.service_cidrs.iter().filter(|net| net.max_prefix_len() - net.prefix_len() < 4) {
            refuse(
                format!("service-cidr {services} is too small"),
                "it has to have 16 addresses or more".to_owned(),
            );
        }
        let families = |nets: &[IpNet]| nets.iter().map(|net| net.addr().is_ipv4()).collect::<Vec<_>>();
        let name = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
        let (pods, services) = (families(&self.pod_cidrs), families(&self.service_cidrs));
        let both = (joined(&self.pod_cidrs), joined(&self.service_cidrs));
        if let Some(lacking) = services.iter().find(|family| !pods.contains(family)) {
            let family = name(*lacking);
            refuse(
                format!(
                    "service-cidr {} has {family}, pod-cidr {} has not, so no pod could answer",
                    both.1, both.0
                ),
                "give both settings networks of the same IP families".to_owned(),
            );
        } else if pods.first() != services.first() {
            refuse(
                format!("pod-cidr {} and service-cidr {} begin with different IP families", both.0, both.1),
                "name the network of the cluster's default family first in both".to_owned(),
            );
        }
        if self.bind_address.is_some_and(|address| address.is_ipv4()) && pods.first() == Some(&false) {
            refuse(
                "bind-address is an IPv4 address, but the cluster's default is IPv6".to_owned(),
                "leave it out or use ::".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn one_or_two_families_in_either_order() {
        let config = load("", &[]).unwrap();
        assert_eq!((config.bind_address().to_string(), config.node_ips), ("0.0.0.0".into(), vec![]));
        for (pods, services, dns, bind, kubernetes) in [
            ("10.244.0.0/16", "10.96.0.0/16", "10.96.0.10", "0.0.0.0", "10.96.0.1"),
            ("fd00:1::/56", "fd00:2::/112", "fd00:2::a", "::", "fd00:2::1"),
            ("10.1.0.0/16,fd00:1::/56", "10.2.0.0/16,fd00:2::/112", "10.2.0.10", "::", "10.2.0.1,fd00:2::1"),
            ("fd00:1::/56, 10.1.0.0/16", "fd00:2::/112,10.2.0.0/16", "fd00:2::a", "::", "fd00:2::1,10.2.0.1"),
            ("10.1.0.0/16,fd00:1::/56", "10.2.0.0/16", "10.2.0.10", "::", "10.2.0.1"),
        ] {
            let config = load("", &[("pod-cidr", pods), ("service-cidr", services)]).unwrap();
            assert_eq!(joined(&config.pod_cidrs), pods.replace(' ', ""));
            assert_eq!(config.cluster_dns.to_string(), dns, "{services}");
            assert_eq!(config.bind_address().to_string(), bind, "{pods}");
            assert_eq!(joined(&config.kubernetes_service()), kubernetes, "{services}");
        }
        let config = load("", &[("node-ip", "2001:db8::1,192.0.2.1")]).unwrap();
        assert_eq!(joined(&config.node_ips), "2001:db8::1,192.0.2.1");
        let cable = load("", &[("node-ip", "169.254.7.1"), ("cluster-dns", "169.254.20.10")]).unwrap();
        assert_eq!(joined(&cable.node_ips), "169.254.7.1");
    }

    #[test]
    fn what_cannot_work_is_said() {
        let cases: [(&[(&'static str, &str)], &str); 28] = [
            (
                &[("pod-cidr", "10.1.0.0/16,10.2.0.0/16")],
                "has two of IPv4; a second one has to be of the other",
            ),
            (&[("pod-cidr", "10.1.0.0/16,fd00::/56,fd01::/56")], "has more than two"),
            (&[("pod-cidr", "10.1.0.0/16,")], "\"\" is not a network"),
            (&[("pod-cidr", "fd00::1/56")], "did you mean fd00::/56?"),
            (&[("pod-cidr", "fd00::/72"), ("service-cidr", "fd01::/112")], "has to be a /64 or larger"),
            (&[("service-cidr", "10.96.0.0/16,fd01::/112")], "service-cidr 10.96.0.0/16,fd01::/112 has IPv6"),
            (
                &[("pod-cidr", "10.1.0.0/16,fd00::/56"), ("service-cidr", "fd01::/112,10.2.0.0/16")],
                "begin with different IP families",
            ),
            (
                &[("pod-cidr", "fd00::/56"), ("service-cidr", "fd01::/112"), ("bind-address", "0.0.0.0")],
                "use ::",
            ),
            (&[("node-ip", "192.0.2.1,192.0.2.2")], "has two of IPv4"),
            (&[("node-ip", "::1")], "no address by which others"),
            (&[("virtual-address", "192.0.2.9"), ("node-ip", "192.0.2.9")], "is this node's own (node-ip)"),
            (&[("virtual-address", "10.96.0.77")], "is in service-cidr 10.96.0.0/16"),
            (
                &[("virtual-address", "192.0.2.9"), ("bind-address", "192.0.2.1")],
                "is not served by listeners on",
            ),
            (&[("virtual-address", "2001:db8::9")], "is not served by listeners on 0.0.0.0"),
            (&[("virtual-address", "192.0.2.9,192.0.2.8")], "has two of IPv4"),
            (&[("virtual-address", "224.0.0.9")], "no address by which others"),
            (
                &[("pod-cidr", "127.16.0.0/16")],
                "has loopback addresses (127.0.0.0/8); choose a private network",
            ),
            (&[("pod-cidr", "0.0.0.0/1"), ("service-cidr", "192.168.0.0/16")], "addresses that mean none"),
            (&[("service-cidr", "169.254.0.0/20")], "--service-cidr: 169.254.0.0/20 has link-local"),
            (&[("service-cidr", "239.0.0.0/16")], "has multicast addresses"),
            (
                &[("pod-cidr", "fe80::/56"), ("service-cidr", "fd01::/112")],
                "has link-local addresses (fe80::/10)",
            ),
            (
                &[("pod-cidr", "fd00::/56"), ("service-cidr", "ff05::/112")],
                "has multicast addresses (ff00::/8)",
            ),
            (&[("cluster-dns", "10.96.0.1")], "is the Service kubernetes' in"),
            (&[("cluster-dns", "10.96.0.0")], "is no Service's address in"),
            (&[("cluster-dns", "10.96.255.255")], "is no Service's address in"),
            (
                &[("cluster-dns", "10.32.0.1"), ("service-cidr", "10.32.0.0/16")],
                "is the Service kubernetes' in",
            ),
            (&[("port", "30443")], "30443 is one of Services' node ports, 30000-32767; choose another"),
            (&[("port", "0")], "--port: 0 is not a port"),
        ];
        for (given, expected) in cases {
            let faults = load("", given).unwrap_err().to_string();
            assert!(faults.contains(expected), "{expected:?} is not in {faults:?}");
        }
    }
}
