//! Cluster IPs and node ports of Services. Each is claimed by a record of its own, written in the
//! same transaction as the Service with an "absent" check, so two Services can never have the same
//! one and no repair loop is needed. A cluster IP's record is the IPAddress object that upstream
//! keeps too (KEP-1880); a node port's is internal.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kedge_api::field::FieldError;
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use kedge_store::{Check, Condition, Key, Op};
use serde_json::{Value, json};

use crate::encode;
use crate::families;
use crate::random;
use crate::state::State;

const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const RANGES: &str = "servicecidrs.networking.k8s.io";
/// Not a resource: nobody can list it.
const PORTS: &str = "@nodeports";

/// What a write claims and gives back beside the object itself.
#[derive(Default)]
pub(crate) struct Claims {
    taken: Vec<(Key, kedge_store::Value)>,
    returned: Vec<Key>,
    /// What the client asked for by name; everything else was the server's choice.
    fixed: Vec<Key>,
}

impl Claims {
    pub(crate) fn add_to(&mut self, conditions: &mut Vec<Condition>, ops: &mut Vec<Op>) {
        for (key, value) in &self.taken {
            conditions.push(Condition { key: key.clone(), check: Check::Absent });
            ops.push(Op::Put { key: key.clone(), value: value.clone() });
        }
        ops.extend(self.returned.iter().map(|key| Op::Delete { key: key.clone() }));
    }

    /// Whether the claim that clashed was the server's own choice.
    pub(crate) fn may_choose_again(&self, key: &Key) -> bool {
        self.taken.iter().any(|(taken, _)| taken == key) && !self.fixed.contains(key)
    }

    /// Somebody else was faster with an address or a port.
    #[expect(clippy::unused_self, reason = "the claims' own keys are what the conflict is about")]
    pub(crate) fn conflict(&self, key: &str, resource: &Resource, name: &str) -> Status {
        let (kind, value) = key.rsplit_once('/').unwrap_or(("", key));
        let error = if kind.starts_with(PORTS) {
            FieldError::invalid(
                "spec.ports[0].nodePort",
                json!(value.parse::<u16>().unwrap_or(0)),
                "provided port is already allocated",
            )
        } else {
            taken_address(value)
        };
        Status::invalid(&resource.group, &resource.kind, name, vec![error])
    }
}

fn taken_address(address: &str) -> FieldError {
    FieldError::invalid(
        "spec.clusterIPs",
        json!([address]),
        format!("failed to allocate IP {address}: provided IP is already allocated"),
    )
}

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && &*resource.plural == "services"
}

/// Fill in what a Service leaves to the server, and say what that claims.
pub(crate) fn prepare(
    state: &State,
    resource: &Resource,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Claims, Status> {
    if !is_service(resource) {
        return Ok(Claims::default());
    }
    let none = Value::Null;
    let old = old.unwrap_or(&none);
    carry_over(service, old);
    let mut errors = Vec::new();
    let mut claims = Claims::default();
    addresses(state, service, old, &mut claims, &mut errors);
    node_ports(state, service, old, &mut claims, &mut errors);
    if errors.is_empty() {
        return Ok(claims);
    }
    Err(Status::invalid(&resource.group, &resource.kind, object::name(service), errors))
}

/// Everything that a Service which goes away had claimed.
pub(crate) fn release(_state: &State, resource: &Resource, service: &Value) -> Claims {
    if !is_service(resource) {
        return Claims::default();
    }
    let addresses = own_addresses(service).into_iter().map(address_key);
    let ports = own_ports(service).into_iter().map(port_key);
    Claims { returned: addresses.chain(ports).collect(), ..Claims::default() }
}

fn address_key(address: IpAddr) -> Key {
    format!("{ADDRESSES}//{address}").into()
}

fn port_key(port: u16) -> Key {
    format!("{PORTS}//{port}").into()
}

fn own_addresses(service: &Value) -> BTreeSet<IpAddr> {
    let list = service["spec"]["clusterIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).filter_map(|text| text.parse().ok()).collect()
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

fn own_ports(service: &Value) -> BTreeSet<u16> {
    let health = port_number(&service["spec"]["healthCheckNodePort"]);
    ports(service).filter_map(|port| port_number(&port["nodePort"])).chain(health).collect()
}

/// A client that leaves out what the server chose keeps it (`registry/core/service/strategy.go`, `patchAllocatedValues`).
fn carry_over(service: &mut Value, old: &Value) {
    if old.is_null() {
        return;
    }
    if has_node_ports(service) && has_node_ports(old) {
        let before: Vec<Value> = ports(old).cloned().collect();
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port_number(&port["nodePort"]).is_some() {
                continue;
            }
            let same =
                before.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
            if let Some(number) = same.and_then(|old| port_number(&old["nodePort"])) {
                port["nodePort"] = json!(number);
            }
        }
    }
}

fn has_node_ports(service: &Value) -> bool {
    matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// Whether ports that the client names none for get one (`storage/alloc.go`, `shouldAllocateNodePorts`).
fn chooses_node_ports(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "NodePort"
        || spec["type"] == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false
}

fn addresses(
    state: &State,
    service: &mut Value,
    old: &Value,
    claims: &mut Claims,
    errors: &mut Vec<FieldError>,
) {
    let before = own_addresses(old);
    if service["spec"]["type"] == "ExternalName" {
        if let Some(spec) = service["spec"].as_object_mut() {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
        }
        claims.returned.extend(before.into_iter().map(address_key));
        return;
    }
    let configured: Vec<&str> =
        state.config.service_ranges.iter().map(|(address, _)| families::family_of(*address)).collect();
    let faults = families::resolve(service, old, &configured);
    if !faults.is_empty() {
        errors.extend(faults);
        return;
    }
    let wanted: Vec<String> = texts(&service["spec"]["clusterIPs"]);
    if wanted.first().is_some_and(|first| first == "None") {
        claims.returned.extend(before.into_iter().map(address_key));
        return;
    }
    let ranges = ranges(state);
    let mut chosen: Vec<IpAddr> = Vec::new();
    for (index, family) in texts(&service["spec"]["ipFamilies"]).iter().enumerate() {
        let wanted = wanted.get(index).and_then(|text| text.parse::<IpAddr>().ok());
        let address = match wanted {
            Some(address) if before.contains(&address) => Some(address),
            _ => claim(state, service, &ranges, family, wanted, claims, errors),
        };
        chosen.extend(address);
    }
    if !errors.is_empty() {
        return;
    }
    let texts: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    service["spec"]["clusterIP"] = json!(texts.first());
    service["spec"]["clusterIPs"] = json!(texts);
    claims.returned.extend(before.into_iter().filter(|address| !chosen.contains(address)).map(address_key));
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// One address of a family that the Service did not have before: the one that is wanted, or a free one.
fn claim(
    state: &State,
    service: &Value,
    ranges: &[Range],
    family: &str,
    wanted: Option<IpAddr>,
    claims: &mut Claims,
    errors: &mut Vec<FieldError>,
) -> Option<IpAddr> {
    let taken = |address: IpAddr| state.cache.bucket(ADDRESSES).get(&format!("/{address}")).is_some();
    let mut of_family = ranges.iter().filter(|range| families::family_of(range.first) == family);
    let address = match wanted {
        None => match of_family.find_map(|range| range.free(taken)) {
            Some(address) => address,
            None => {
                errors.push(FieldError::invalid(
                    "spec.clusterIPs",
                    Value::Null,
                    "failed to allocate a serviceIP: range is full",
                ));
                return None;
            }
        },
        Some(address) if taken(address) => {
            errors.push(taken_address(&address.to_string()));
            return None;
        }
        Some(address) if of_family.any(|range| range.contains(address)) => address,
        Some(address) => {
            errors.push(FieldError::invalid(
                "spec.clusterIPs",
                json!([address.to_string()]),
                format!(
                    "failed to allocate IP {address}: the provided network does not match the current range"
                ),
            ));
            return None;
        }
    };
    let record = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "uid": object::new_uid(),
            "creationTimestamp": object::now_rfc3339(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": {
            "group": "", "resource": "services",
            "namespace": object::namespace(service), "name": object::name(service),
        }},
    });
    if wanted.is_some() {
        claims.fixed.push(address_key(address));
    }
    claims.taken.push((address_key(address), encode::encode(&record)));
    Some(address)
}

/// The configured ranges, and those that an administrator has added as ServiceCIDR objects (KEP-1880).
fn ranges(state: &State) -> Vec<Range> {
    let mut ranges: Vec<Range> = state.config.service_ranges.iter().copied().map(Range::new).collect();
    // Usually there is just the one that says what is configured.
    if state.cache.bucket(RANGES).len() > 1 {
        for stored in crate::admission::objects_in(state, RANGES, "") {
            let Ok(object) = serde_json::from_slice::<Value>(&stored.bytes) else { continue };
            if object::name(&object) == "kubernetes" || !object["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            let cidrs = texts(&object["spec"]["cidrs"]);
            let parsed = cidrs.iter().filter_map(|cidr| {
                let (address, prefix) = cidr.split_once('/')?;
                Some((address.parse().ok()?, prefix.parse().ok()?))
            });
            ranges.extend(parsed.map(Range::new));
        }
    }
    ranges
}

fn node_ports(
    state: &State,
    service: &mut Value,
    old: &Value,
    claims: &mut Claims,
    errors: &mut Vec<FieldError>,
) {
    let before = own_ports(old);
    let (low, high) = state.config.node_ports;
    let bucket = state.cache.bucket(PORTS);
    let taken = |port: u16| bucket.get(&format!("/{port}")).is_some();
    let mut mine: BTreeSet<u16> = own_ports(service);
    // A port that the client names, whether Kedge would have chosen one or not.
    let mut named = |number: &Value, field: String| {
        let refused = match u16::try_from(number.as_i64().unwrap_or_default()) {
            Ok(port) if before.contains(&port) => return,
            Ok(port) if (low..=high).contains(&port) && !taken(port) => {
                claims.fixed.push(port_key(port));
                return;
            }
            Ok(port) if (low..=high).contains(&port) => "provided port is already allocated".to_owned(),
            _ => format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"),
        };
        errors.push(FieldError::invalid(field, number.clone(), refused));
    };
    let is_named = |number: &Value| number.as_i64().is_some_and(|number| number != 0);
    if has_node_ports(service) {
        let chooses = chooses_node_ports(service);
        let mut chosen: Vec<(Value, u16)> = Vec::new();
        let mut full = Vec::new();
        for (index, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
            let field = format!("spec.ports[{index}].nodePort");
            if is_named(&port["nodePort"]) {
                named(&port["nodePort"], field);
            } else if chooses {
                // The same port by TCP and by UDP shares one node port.
                let shared =
                    chosen.iter().find(|(number, _)| *number == port["port"]).map(|(_, chosen)| *chosen);
                let free =
                    shared.or_else(|| free_port(low, high, |port| taken(port) || mine.contains(&port)));
                if let Some(number) = free {
                    chosen.push((port["port"].clone(), number));
                    mine.insert(number);
                    port["nodePort"] = json!(number);
                } else {
                    full.push(field);
                }
            }
        }
        let wants_health =
            service["spec"]["type"] == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local";
        if is_named(&service["spec"]["healthCheckNodePort"]) {
            named(&service["spec"]["healthCheckNodePort"], "spec.healthCheckNodePort".into());
        } else if wants_health {
            let kept = port_number(&old["spec"]["healthCheckNodePort"]);
            let free = kept.or_else(|| free_port(low, high, |port| taken(port) || mine.contains(&port)));
            match free {
                Some(number) => service["spec"]["healthCheckNodePort"] = json!(number),
                None => full.push("spec.healthCheckNodePort".into()),
            }
        }
        errors.extend(full.into_iter().map(|field| {
            FieldError::invalid(field, Value::Null, "failed to allocate a nodePort: range is full")
        }));
    } else if has_node_ports(old) || service["spec"]["type"] == "ExternalName" {
        // A Service that is no longer of a type with node ports gives them back; one that never was is refused
        // by validation.
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    let after = own_ports(service);
    let record = json!({ "service": format!("{}/{}", object::namespace(service), object::name(service)) });
    for port in after.difference(&before) {
        let value = kedge_store::Value { bytes: record.to_string().into(), splice: None };
        claims.taken.push((port_key(*port), value));
    }
    claims.returned.extend(before.difference(&after).copied().map(port_key));
}

fn free_port(low: u16, high: u16, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let size = u64::from(high - low) + 1;
    // Leave the lower part to people who choose their own (KEP-3668).
    let reserved = (size / 32).clamp(16, 128).min(size - 1);
    probe(size, reserved).map(|offset| low + u16::try_from(offset).unwrap_or(0)).find(|port| !taken(*port))
}

/// All numbers below `size`, starting at a random one, those below `reserved` last.
fn probe(size: u64, reserved: u64) -> impl Iterator<Item = u64> {
    let dynamic = size - reserved;
    let start = random::below(dynamic);
    (0..dynamic).map(move |step| reserved + (start + step) % dynamic).chain(0..reserved)
}

/// The Services' addresses.
struct Range {
    first: IpAddr,
    /// Number of addresses, capped: nobody has more Services.
    size: u64,
}

impl Range {
    fn new((address, prefix): (IpAddr, u8)) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let host = u32::from(bits - prefix.min(bits)).min(20);
        let mask = !((1u128 << host) - 1);
        Self { first: from_number(to_number(address) & mask, address.is_ipv4()), size: 1 << host }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4()
            && to_number(address)
                .checked_sub(to_number(self.first))
                .is_some_and(|offset| offset > 0 && offset < u128::from(self.size))
    }

    fn free(&self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        // Neither the network's address nor, for IPv4, the broadcast address.
        let usable = self.size - if self.first.is_ipv4() { 2 } else { 1 };
        let reserved = (self.size / 16).clamp(16, 256).min(usable.saturating_sub(1));
        probe(usable, reserved)
            .map(|offset| from_number(to_number(self.first) + 1 + u128::from(offset), self.first.is_ipv4()))
            .find(|address| !taken(*address))
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn from_number(number: u128, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::from(u32::try_from(number & u128::from(u32::MAX)).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from(number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_range_is_given_once() {
        let range = Range::new(("10.96.0.7".parse().expect("address"), 26));
        let mut seen = BTreeSet::new();
        while let Some(address) = range.free(|address| seen.contains(&address)) {
            assert!(range.contains(address), "{address}");
            assert!(seen.insert(address));
        }
        assert_eq!(seen.len(), 62);
        assert_eq!(seen.first().map(ToString::to_string).as_deref(), Some("10.96.0.1"));
        assert_eq!(seen.last().map(ToString::to_string).as_deref(), Some("10.96.0.62"));
        assert!(!range.contains("10.96.0.64".parse().expect("address")));
        assert!(!range.contains("fd00::1".parse().expect("address")));
    }

    #[test]
    fn ports_are_given_from_the_upper_part_first() {
        assert!(free_port(30000, 32767, |_| false).expect("free") >= 30000 + 86);
        assert_eq!(free_port(30000, 30100, |port| port != 30003), Some(30003));
        assert_eq!(free_port(30000, 30001, |_| true), None);
    }

    #[test]
    fn what_the_server_chose_is_kept() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        carry_over(&mut new, &old);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert!(new["spec"]["ports"][1]["nodePort"].is_null());
    }
}
