//! The settings that hold one value or one of each IP family, separated by a comma: `V4,V6` or `V6,V4`. The
//! first one's family is the cluster's default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Config, Reader};

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
                self.faults.push(format!("{}: {fault}", self.settings.place(key)));
                Vec::new()
            }
        }
    }

    pub(super) fn addresses(&mut self, key: &str) -> Vec<IpAddr> {
        let found = self.list(key, "an IP address", |address: IpAddr| address.is_ipv4());
        for address in found.iter().filter(|address| address.is_unspecified() || address.is_loopback()) {
            self.faults.push(format!("{key}: {address} is no address by which others reach this machine"));
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
            self.faults.push(format!("{key}: {network} has host bits; did you mean {}?", network.trunc()));
        }
        networks
    }

    /// The tenth address of the Services' first network, unless another one is given.
    pub(super) fn cluster_dns(&mut self, services: &[IpNet]) -> IpAddr {
        let tenth = match services.first().map(IpNet::network) {
            Some(IpAddr::V4(first)) => Ipv4Addr::from(u32::from(first).saturating_add(10)).into(),
            Some(IpAddr::V6(first)) => Ipv6Addr::from(u128::from(first).saturating_add(10)).into(),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        self.parsed("cluster-dns", "an IP address", tenth)
    }
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
            let mut fault = |text: String| reader.faults.push(format!("virtual-address {address} {text}"));
            if self.node_ips.contains(address) {
                fault("is this node's own (node-ip); choose one that no machine has".to_owned());
            }
            for (key, networks) in [("pod-cidr", &self.pod_cidrs), ("service-cidr", &self.service_cidrs)] {
                if let Some(network) = networks.iter().find(|network| network.contains(address)) {
                    fault(format!("is in {key} {network}; choose one of the nodes' own network"));
                }
            }
            if !self.serves(*address) {
                fault(format!(
                    "is not served by listeners on {}; leave bind-address out, or set it to \"::\" for IPv6",
                    self.bind_address()
                ));
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

    /// Networks that are right one by one but not beside each other.
    pub(super) fn check_networks(&self, reader: &mut Reader) {
        let mut fault = |text: String| reader.faults.push(text);
        for pods in &self.pod_cidrs {
            for services in &self.service_cidrs {
                if pods.contains(services) || services.contains(pods) {
                    fault(format!(
                        "pod-cidr {pods} and service-cidr {services} overlap; choose two that do not"
                    ));
                }
            }
            let mask = if pods.addr().is_ipv4() { 24 } else { 64 };
            if pods.prefix_len() > mask {
                fault(format!(
                    "pod-cidr {pods} is too small: every node gets a /{mask} of it, so it has to be a /{mask} or larger"
                ));
            }
        }
        for services in self.service_cidrs.iter().filter(|net| net.max_prefix_len() - net.prefix_len() < 4) {
            fault(format!("service-cidr {services} is too small: it has to have 16 addresses or more"));
        }
        let families = |nets: &[IpNet]| nets.iter().map(|net| net.addr().is_ipv4()).collect::<Vec<_>>();
        let name = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
        let (pods, services) = (families(&self.pod_cidrs), families(&self.service_cidrs));
        if let Some(lacking) = services.iter().find(|family| !pods.contains(family)) {
            let (pods, services) = (joined(&self.pod_cidrs), joined(&self.service_cidrs));
            fault(format!(
                "service-cidr {services} has {family}, pod-cidr {pods} has not, so no pod could answer; give both settings \
                 networks of the same IP families",
                family = name(*lacking)
            ));
        } else if pods.first() != services.first() {
            let (pods, services) = (joined(&self.pod_cidrs), joined(&self.service_cidrs));
            fault(format!(
                "pod-cidr {pods} and service-cidr {services} begin with different IP families; name the network of \
                 the cluster's default family first in both"
            ));
        }
        if self.bind_address.is_some_and(|address| address.is_ipv4()) && pods.first() == Some(&false) {
            fault(
                "bind-address is an IPv4 address, but the cluster's default is IPv6; leave it out or use ::"
                    .into(),
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
    }

    #[test]
    fn what_cannot_work_is_said() {
        let cases: [(&[(&'static str, &str)], &str); 15] = [
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
        ];
        for (given, expected) in cases {
            let faults = load("", given).unwrap_err().to_string();
            assert!(faults.contains(expected), "{expected:?} is not in {faults:?}");
        }
    }
}
