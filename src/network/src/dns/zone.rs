//! Which records a name has: the Kubernetes DNS specification 1.1.0, and where it leaves a choice what
//! CoreDNS's `kubernetes` plugin does with `pods insecure`. Pure: a snapshot and a question give an
//! answer; no socket, no clock.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::name::{is_private_reverse, parse_name, reverse_address};
use super::records::{Endpoint, Kind, Port, Records, Service};
use crate::Error;

/// What the specification's version record says.
const SCHEMA_VERSION: &str = "1.1.0";
const SCHEMA_VERSION_TTL: u32 = 28_800;
/// How many aliases inside the cluster are followed for one question.
const MAX_ALIASES: usize = 8;

/// The zone of a cluster.
pub(crate) struct Zone {
    domain: Name,
    /// The domain's labels in lower case, from the right.
    labels: Vec<Box<[u8]>>,
    ttl: u32,
    /// The Service that this server is reached by; namespace and name.
    own_service: (String, String),
    /// What `ns.dns.ZONE` is when that Service does not exist.
    own_addresses: Vec<IpAddr>,
}

/// The answer to a question.
#[derive(Debug, PartialEq)]
pub(crate) enum Lookup {
    /// The name exists and has such records.
    Found { answers: Vec<Record>, additionals: Vec<Record> },
    /// An alias that ends at a name of somebody else, which is still to be resolved.
    Alias { answers: Vec<Record>, target: Name },
    /// The name exists, without such records.
    NoData { answers: Vec<Record>, soa: Box<Record> },
    /// There is no such name. The answers are the aliases that led to it.
    NoName { answers: Vec<Record>, soa: Box<Record> },
    /// A reverse name without a record: upstream decides, or if it cannot be asked the address is
    /// unknown (`private`: nobody outside can know it).
    NoAddress { private: bool },
    /// Not a name of this cluster.
    Foreign,
}

/// What a name in the zone stands for.
enum Node<'a> {
    /// The zone itself.
    Apex,
    /// It has no records but names below it.
    Empty,
    Version,
    NameServer,
    Addresses(Vec<IpAddr>),
    Service(&'a Service),
    Port(&'a Service, &'a str, &'a str),
    Endpoint(&'a Service, &'a str),
    Missing,
}

impl Zone {
    /// # Errors
    /// When `domain` is no domain name.
    pub(crate) fn new(
        domain: &str,
        ttl: u32,
        own_service: (String, String),
        own_addresses: Vec<IpAddr>,
    ) -> Result<Self, Error> {
        let name = parse_name(&domain.to_ascii_lowercase()).filter(|name| !name.is_root());
        let Some(domain) = name else {
            return Err(Error::Invalid(format!(
                "{domain:?} is no domain for the cluster; use a name such as cluster.local"
            )));
        };
        let mut labels: Vec<Box<[u8]>> = domain.iter().map(Into::into).collect();
        labels.reverse();
        Ok(Self { domain, labels, ttl, own_service, own_addresses })
    }

    /// The addresses of this server's Service, else of this machine.
    pub(crate) fn own_addresses(&self, records: &Records) -> Vec<IpAddr> {
        match records.service(&self.own_service.0, &self.own_service.1).map(|service| &service.kind) {
            Some(Kind::Cluster(addresses)) if !addresses.is_empty() => addresses.to_vec(),
            _ => self.own_addresses.clone(),
        }
    }

    /// Every address that leads to this server or to another one like it.
    pub(crate) fn all_own_addresses(&self, records: &Records) -> Vec<IpAddr> {
        let mut addresses = self.own_addresses.clone();
        if let Some(service) = records.service(&self.own_service.0, &self.own_service.1) {
            if let Kind::Cluster(own) = &service.kind {
                addresses.extend(own);
            }
            addresses.extend(service.endpoints().map(|(endpoint, _)| endpoint.address));
        }
        addresses
    }

    /// Answer a question of class IN.
    pub(crate) fn lookup(&self, records: &Records, name: &Name, kind: RecordType) -> Lookup {
        let mut answers = Vec::new();
        let mut name = name.clone();
        loop {
            let lowered = name.to_lowercase();
            let labels: Vec<&[u8]> = lowered.iter().collect();
            let Some(inside) = self.inside(&labels) else {
                return match answers.is_empty() {
                    false => Lookup::Alias { answers, target: name },
                    true if is_reverse(&labels) => self.reverse(records, &name, &labels, kind),
                    true => Lookup::Foreign,
                };
            };
            let node = self.node(records, inside);
            if let Node::Service(Service { kind: Kind::External(Some(target)), .. }) = node {
                let alias = RData::CNAME(CNAME(target.clone()));
                answers.push(Record::from_rdata(name, self.ttl, alias));
                if kind == RecordType::CNAME {
                    return Lookup::Found { answers, additionals: Vec::new() };
                }
                if answers.len() >= MAX_ALIASES {
                    return self.no_data(records, answers);
                }
                name = target.clone();
                continue;
            }
            let (found, additionals) = match node {
                Node::Missing => {
                    return Lookup::NoName { answers, soa: Box::new(self.soa(records, &self.domain)) };
                }
                node => self.records_of(records, &node, &name, kind),
            };
            if found.is_empty() {
                return self.no_data(records, answers);
            }
            answers.extend(found);
            return Lookup::Found { answers, additionals };
        }
    }

    /// The labels left of the zone, when the name is in the zone.
    fn inside<'l>(&self, labels: &'l [&'l [u8]]) -> Option<&'l [&'l [u8]]> {
        let (inside, zone) = labels.split_at_checked(labels.len().checked_sub(self.labels.len())?)?;
        zone.iter().rev().zip(&self.labels).all(|(label, own)| *label == &**own).then_some(inside)
    }

    fn node<'a>(&self, records: &'a Records, inside: &'a [&'a [u8]]) -> Node<'a> {
        match inside {
            [] => Node::Apex,
            [b"svc" | b"pod" | b"dns"] => Node::Empty,
            [b"dns-version"] => Node::Version,
            [b"ns", b"dns"] => Node::NameServer,
            [rest @ .., namespace, b"svc"] => in_namespace(records, rest, namespace, service_node),
            [rest @ .., namespace, b"pod"] => {
                in_namespace(records, rest, namespace, |_, _, rest| match rest {
                    [pod] => pod_address(pod).map_or(Node::Missing, |address| Node::Addresses(vec![address])),
                    _ => Node::Missing,
                })
            }
            _ => Node::Missing,
        }
    }

    /// The answers of the wanted type and what comes with them.
    fn records_of(
        &self,
        records: &Records,
        node: &Node<'_>,
        name: &Name,
        kind: RecordType,
    ) -> (Vec<Record>, Vec<Record>) {
        let one = |ttl, data| (vec![Record::from_rdata(name.clone(), ttl, data)], Vec::new());
        match (node, kind) {
            (Node::Apex, RecordType::SOA) => (vec![self.soa(records, name)], Vec::new()),
            (Node::Apex, RecordType::NS) => {
                let server = self.server_name();
                let mut additionals = Vec::new();
                for address in self.own_addresses(records) {
                    additionals.push(Record::from_rdata(server.clone(), self.ttl, address.into()));
                }
                (vec![Record::from_rdata(name.clone(), self.ttl, RData::NS(NS(server)))], additionals)
            }
            (Node::Version, RecordType::TXT) => {
                one(SCHEMA_VERSION_TTL, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])))
            }
            (_, RecordType::A | RecordType::AAAA) => {
                let mut wanted: Vec<IpAddr> = Vec::new();
                let mut seen = HashSet::new();
                let mut add = |address: IpAddr| {
                    if address.is_ipv4() == (kind == RecordType::A) && seen.insert(address) {
                        wanted.push(address);
                    }
                };
                match node {
                    Node::NameServer => self.own_addresses(records).into_iter().for_each(&mut add),
                    Node::Addresses(addresses) => addresses.iter().copied().for_each(&mut add),
                    Node::Service(service) => match &service.kind {
                        Kind::Cluster(addresses) => addresses.iter().copied().for_each(&mut add),
                        _ => service.endpoints().for_each(|(endpoint, _)| add(endpoint.address)),
                    },
                    Node::Endpoint(service, host) => {
                        hosts(service, host).for_each(|(endpoint, _)| add(endpoint.address));
                    }
                    _ => {}
                }
                let record = |address: IpAddr| Record::from_rdata(name.clone(), self.ttl, address.into());
                (wanted.into_iter().map(record).collect(), Vec::new())
            }
            (Node::Service(service), RecordType::SRV) => self.srv(name, service, None, |_| true),
            (Node::Port(service, port, protocol), RecordType::SRV) => {
                self.srv(name, service, None, |own| *own.name == **port && own.protocol == *protocol)
            }
            (Node::Endpoint(service, host), RecordType::SRV) => self.srv(name, service, Some(host), |_| true),
            _ => (Vec::new(), Vec::new()),
        }
    }

    /// SRV records with the addresses of their targets. Equal weights that add up to about 100, as
    /// CoreDNS has it.
    fn srv(
        &self,
        name: &Name,
        service: &Service,
        host: Option<&str>,
        wanted: impl Fn(&Port) -> bool,
    ) -> (Vec<Record>, Vec<Record>) {
        let mut targets: Vec<(Name, u16)> = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        let mut seen = HashSet::new();
        let Some(own) = self.service_name(service) else { return Default::default() };
        if let (Kind::Cluster(addresses), None) = (&service.kind, host) {
            let fresh =
                |port: &&Port| wanted(port) && !addresses.is_empty() && seen.insert(("", port.number));
            targets.extend(service.ports.iter().filter(fresh).map(|port| (own.clone(), port.number)));
            if !targets.is_empty() {
                let record = |address: &IpAddr| Record::from_rdata(own.clone(), self.ttl, (*address).into());
                additionals.extend(addresses.iter().map(record));
            }
        } else {
            let mut known = HashSet::new();
            for (endpoint, ports) in service.endpoints() {
                if host.is_some_and(|host| *endpoint.host != *host) {
                    continue;
                }
                let Ok(target) = own.prepend_label(endpoint.host.as_bytes()) else { continue };
                let mut used = false;
                for port in ports.iter().filter(|port| wanted(port)) {
                    used = true;
                    if seen.insert((&*endpoint.host, port.number)) {
                        targets.push((target.clone(), port.number));
                    }
                }
                if used && known.insert((&*endpoint.host, endpoint.address)) {
                    additionals.push(Record::from_rdata(target, self.ttl, endpoint.address.into()));
                }
            }
        }
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
        let record = |(target, port)| {
            Record::from_rdata(name.clone(), self.ttl, RData::SRV(SRV::new(0, weight, port, target)))
        };
        (targets.into_iter().map(record).collect(), additionals)
    }

    /// Cluster IPs first. Then endpoints that have a hostname, and only without those the other
    /// endpoints of headless Services.
    fn reverse(&self, records: &Records, name: &Name, labels: &[&[u8]], kind: RecordType) -> Lookup {
        let targets =
            reverse_address(labels).map(|address| self.pointers(records, address)).unwrap_or_default();
        if targets.is_empty() {
            return Lookup::NoAddress { private: is_private_reverse(labels) };
        }
        if kind != RecordType::PTR {
            let zone = name.trim_to(2);
            return Lookup::NoData { answers: Vec::new(), soa: Box::new(self.soa(records, &zone)) };
        }
        let record = |target| Record::from_rdata(name.clone(), self.ttl, RData::PTR(PTR(target)));
        Lookup::Found { answers: targets.into_iter().map(record).collect(), additionals: Vec::new() }
    }

    fn pointers(&self, records: &Records, address: IpAddr) -> Vec<Name> {
        let owners = || records.services_of(address);
        let of_cluster =
            owners().find(|service| matches!(&service.kind, Kind::Cluster(own) if own.contains(&address)));
        if let Some(service) = of_cluster {
            return self.service_name(service).into_iter().collect();
        }
        let endpoints = |named: bool| {
            let mut names: Vec<Name> = Vec::new();
            for service in owners().filter(|service| named || service.kind == Kind::Headless) {
                for (endpoint, _) in service.endpoints() {
                    if endpoint.address == address
                        && endpoint.named == named
                        && let Some(own) = self.service_name(service)
                        && let Ok(target) = own.prepend_label(endpoint.host.as_bytes())
                        && !names.contains(&target)
                    {
                        names.push(target);
                    }
                }
            }
            names
        };
        let named = endpoints(true);
        if named.is_empty() { endpoints(false) } else { named }
    }

    fn no_data(&self, records: &Records, answers: Vec<Record>) -> Lookup {
        Lookup::NoData { answers, soa: Box::new(self.soa(records, &self.domain)) }
    }

    /// The start of authority, which says for how long a negative answer may be kept.
    pub(crate) fn soa(&self, records: &Records, zone: &Name) -> Record {
        let below = |label: &[u8]| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let data = SOA::new(
            self.server_name(),
            below(b"hostmaster"),
            records.serial(),
            7200,
            1800,
            86_400,
            self.ttl,
        );
        Record::from_rdata(zone.clone(), self.ttl, RData::SOA(data))
    }

    fn server_name(&self) -> Name {
        let dns = self.domain.prepend_label(b"dns".as_slice());
        dns.and_then(|dns| dns.prepend_label(b"ns".as_slice())).unwrap_or_else(|_| self.domain.clone())
    }

    /// `None` when the name would be too long for DNS.
    fn service_name(&self, service: &Service) -> Option<Name> {
        let labels = [service.name.as_bytes(), service.namespace.as_bytes(), b"svc"];
        Name::from_labels(labels).ok()?.append_domain(&self.domain).ok()
    }
}

fn is_reverse(labels: &[&[u8]]) -> bool {
    matches!(labels, [.., b"in-addr" | b"ip6", b"arpa"])
}

fn in_namespace<'a>(
    records: &'a Records,
    rest: &'a [&'a [u8]],
    namespace: &[u8],
    inner: impl FnOnce(&'a Records, &str, &'a [&'a [u8]]) -> Node<'a>,
) -> Node<'a> {
    match std::str::from_utf8(namespace) {
        Ok(namespace) if records.has_namespace(namespace) => {
            if rest.is_empty() {
                Node::Empty
            } else {
                inner(records, namespace, rest)
            }
        }
        _ => Node::Missing,
    }
}

fn service_node<'a>(records: &'a Records, namespace: &str, rest: &'a [&'a [u8]]) -> Node<'a> {
    let Some((name, rest)) = rest.split_last() else { return Node::Empty };
    let Some(service) = records.service(namespace, text(name)) else { return Node::Missing };
    // Upstream: a headless Service without a ready endpoint does not exist, and neither does an
    // alias for an address.
    let exists = match &service.kind {
        Kind::Cluster(_) => true,
        Kind::Headless => service.endpoints().next().is_some(),
        Kind::External(target) => target.is_some() && rest.is_empty(),
    };
    if !exists {
        return Node::Missing;
    }
    let rest: Vec<&str> = rest.iter().map(|label| text(label)).collect();
    match rest[..] {
        [] => Node::Service(service),
        [label] => match label.strip_prefix('_') {
            Some(protocol)
                if ports(service).any(|port| !port.name.is_empty() && port.protocol == protocol) =>
            {
                Node::Empty
            }
            _ if hosts(service, label).next().is_some() => Node::Endpoint(service, label),
            _ => Node::Missing,
        },
        [port, protocol] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
            (Some(port), Some(protocol))
                if !port.is_empty()
                    && ports(service).any(|own| *own.name == *port && own.protocol == protocol) =>
            {
                Node::Port(service, port, protocol)
            }
            _ => Node::Missing,
        },
        _ => Node::Missing,
    }
}

/// Bytes that are no text become a label that nothing in Kubernetes can have.
fn text(label: &[u8]) -> &str {
    std::str::from_utf8(label).unwrap_or("\0")
}

/// The ports that names under the Service are made of.
fn ports(service: &Service) -> impl Iterator<Item = &Port> {
    let headless = service.kind == Kind::Headless;
    let own = service.ports.iter().filter(move |_| !headless);
    let of_slices = service.slices.iter().filter(move |slice| headless && !slice.endpoints.is_empty());
    own.chain(of_slices.flat_map(|slice| slice.ports.iter()))
}

fn hosts<'a>(service: &'a Service, host: &'a str) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> {
    service.endpoints().filter(move |(endpoint, _)| *endpoint.host == *host)
}

/// `10-244-0-5` or `fd00--5`. Whether such a pod exists is not asked (`pods insecure`).
fn pod_address(label: &[u8]) -> Option<IpAddr> {
    let label = text(label);
    let dots = label.matches('-').count() == 3 && !label.contains("--");
    label.replace('-', if dots { "." } else { ":" }).parse().ok()
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
