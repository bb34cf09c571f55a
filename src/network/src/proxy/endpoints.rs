//! The endpoints of a service port as one node sees them, and which of them it uses. Semantics follow
//! kube-proxy's pkg/proxy/topology.go: terminating endpoints (KEP-1669), topology hints (KEP-2433) and
//! traffic distribution (KEP-3015), which is nothing but hints here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint as Listed, EndpointSlice};

use super::build::PROXY_NAME_LABEL;
use super::model::{Family, Protocol};

/// Slices of headless Services carry it.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Where this node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Place {
    /// As in `endpoints[].nodeName`.
    pub(crate) node: String,
    /// The node's label `topology.kubernetes.io/zone`; empty without one.
    pub(crate) zone: String,
}

/// Whom the endpoint's hints name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    Nobody,
    Others,
    Us,
}

impl Hint {
    fn new<'a>(mut names: impl Iterator<Item = &'a str>, own: &str) -> Self {
        let Some(first) = names.next() else { return Self::Nobody };
        if first == own || names.any(|name| name == own) { Self::Us } else { Self::Others }
    }
}

/// One endpoint of one service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    address: SocketAddr,
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    node_hint: Hint,
    zone_hint: Hint,
}

/// The family of a slice that is ours to proxy.
pub(super) fn slice_family(slice: &EndpointSlice) -> Option<Family> {
    let labels = slice.metadata.labels.as_ref();
    if labels
        .is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL))
    {
        return None;
    }
    match slice.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

/// All endpoints of a port, each once.
pub(super) fn endpoints(
    place: &Place,
    slices: &[Arc<EndpointSlice>],
    family: Family,
    port: &ServicePort,
    protocol: Protocol,
) -> Vec<Endpoint> {
    let mut found = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice_family(slice) == Some(family)) {
        let matching = slice.ports.iter().flatten().filter(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && Protocol::parse(candidate.protocol.as_deref()) == Some(protocol)
        });
        for number in matching.filter_map(|port| port.port.and_then(|number| u16::try_from(number).ok())) {
            let listed = slice.endpoints.iter().flatten();
            found.extend(listed.filter_map(|listed| endpoint(place, listed, family, number)));
        }
    }
    // An endpoint can be in two slices for a moment: the last in order is the ready one.
    let mut unique: Vec<Endpoint> = Vec::new();
    for endpoint in found {
        match unique.last_mut() {
            Some(last) if last.address == endpoint.address => *last = endpoint,
            _ => unique.push(endpoint),
        }
    }
    unique
}

fn endpoint(place: &Place, listed: &Listed, family: Family, port: u16) -> Option<Endpoint> {
    // All addresses of an endpoint are the same endpoint: the first one counts.
    let address: IpAddr = listed.addresses.first()?.parse().ok()?;
    if Family::of(address) != family {
        return None;
    }
    let conditions = listed.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let hints = listed.hints.as_ref();
    let nodes = hints.into_iter().flat_map(|hints| hints.for_nodes.iter().flatten());
    let zones = hints.into_iter().flat_map(|hints| hints.for_zones.iter().flatten());
    Some(Endpoint {
        address: SocketAddr::new(address, port),
        local: listed.node_name.as_deref() == Some(&place.node),
        ready,
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node_hint: Hint::new(nodes.map(|node| node.name.as_str()), &place.node),
        zone_hint: Hint::new(zones.map(|zone| zone.name.as_str()), &place.zone),
    })
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<SocketAddr> {
    endpoints.map(|endpoint| endpoint.address).collect()
}

/// For traffic policy Cluster: the ready endpoints that hints leave to this node, or else those that
/// still serve while they terminate.
pub(super) fn usable_anywhere(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let ready: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    if ready.is_empty() {
        return addresses(endpoints.iter().filter(|endpoint| endpoint.serving && endpoint.terminating));
    }
    // A hint counts only when every ready endpoint has one and one of them is for us: otherwise the
    // hints are older than the endpoints, or nobody has thought of this node.
    let hinted: [fn(&Endpoint) -> Hint; 2] = [|endpoint| endpoint.node_hint, |endpoint| endpoint.zone_hint];
    for hint in hinted {
        let all = ready.iter().all(|endpoint| hint(endpoint) != Hint::Nobody);
        if all && ready.iter().any(|endpoint| hint(endpoint) == Hint::Us) {
            return addresses(ready.into_iter().filter(|endpoint| hint(endpoint) == Hint::Us));
        }
    }
    addresses(ready.into_iter())
}

/// For traffic policy Local: this node's ready endpoints, or else those that still serve while they
/// terminate. Hints do not matter.
pub(super) fn usable_here(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let here = || endpoints.iter().filter(|endpoint| endpoint.local);
    let ready = addresses(here().filter(|endpoint| endpoint.ready));
    if !ready.is_empty() {
        return ready;
    }
    addresses(here().filter(|endpoint| endpoint.serving && endpoint.terminating))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ready, node hint, zone hint; the n-th has address 10.0.0.n.
    fn list(specs: &[(bool, Hint, Hint)]) -> Vec<Endpoint> {
        let endpoint = |(n, (ready, node_hint, zone_hint)): (u8, &(bool, Hint, Hint))| Endpoint {
            address: ([10, 0, 0, n], 80).into(),
            local: n == 0,
            ready: *ready,
            serving: true,
            terminating: !*ready,
            node_hint: *node_hint,
            zone_hint: *zone_hint,
        };
        (0..).zip(specs).map(endpoint).collect()
    }

    #[test]
    fn hints_count_only_when_all_have_them_and_one_is_for_us() {
        use Hint::{Nobody, Others, Us};
        for (name, specs, expected) in [
            ("no hints", &[(true, Nobody, Nobody), (true, Nobody, Nobody)][..], &[0, 1][..]),
            ("our zone", &[(true, Nobody, Others), (true, Nobody, Us)], &[1]),
            ("one without a hint", &[(true, Nobody, Us), (true, Nobody, Nobody)], &[0, 1]),
            ("nobody for our zone", &[(true, Nobody, Others), (true, Nobody, Others)], &[0, 1]),
            ("our node before our zone", &[(true, Us, Us), (true, Others, Us)], &[0]),
            ("zone where no endpoint is on our node", &[(true, Others, Us), (true, Others, Others)], &[0]),
            ("node hint missing, zones there", &[(true, Us, Others), (true, Nobody, Us)], &[1]),
            (
                "only ready ones count",
                &[(false, Nobody, Nobody), (true, Nobody, Us), (true, Nobody, Others)],
                &[1],
            ),
            ("none ready", &[(false, Nobody, Others), (false, Us, Us)], &[0, 1]),
        ] {
            let found: Vec<u8> = usable_anywhere(&list(specs))
                .into_iter()
                .map(|address| match address.ip() {
                    IpAddr::V4(ip) => ip.octets()[3],
                    IpAddr::V6(_) => u8::MAX,
                })
                .collect();
            assert_eq!(found, expected, "{name}");
        }
        let hinted_away = list(&[(true, Others, Others), (true, Us, Us)]);
        assert_eq!(usable_here(&hinted_away), [([10, 0, 0, 0], 80).into()], "Local knows no hints");
    }

    #[test]
    fn hints_name_us_or_others() {
        for (names, expected) in
            [(&[][..], Hint::Nobody), (&["a"], Hint::Others), (&["a", "b"], Hint::Us), (&["b"], Hint::Us)]
        {
            assert_eq!(Hint::new(names.iter().copied(), "b"), expected);
        }
        assert_eq!(Hint::new([""].into_iter().skip(1), ""), Hint::Nobody, "no zone, no hints");
    }
}
