//! What a node tells the others about its pods' network, as annotations of its Node object. Names and
//! values are those of flannel's kube subnet manager (pkg/subnet/kube), so that flanneld reads ours and
//! we read flanneld's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use crate::rt::Mac;

/// Annotations: the prefix is flannel's default.
const PREFIX: &str = "flannel.alpha.coreos.com/";
const BACKEND_TYPE: &str = "backend-type";
const MANAGED: &str = "kube-subnet-manager";

/// flannel's names of backends.
pub(crate) const VXLAN: &str = "vxlan";
pub(crate) const HOST_GW: &str = "host-gw";

/// The names of the annotations that exist once per IP family.
struct Names {
    data: &'static str,
    public: &'static str,
    overwrite: &'static str,
}

fn names(is_ipv4: bool) -> Names {
    if is_ipv4 {
        Names { data: "backend-data", public: "public-ip", overwrite: "public-ip-overwrite" }
    } else {
        Names { data: "backend-v6-data", public: "public-ipv6", overwrite: "public-ipv6-overwrite" }
    }
}

/// A VXLAN tunnel end point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vtep {
    pub(crate) vni: u32,
    pub(crate) mac: Mac,
}

/// A node's pods in one IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// The pods' addresses.
    pub(crate) subnet: IpNet,
    /// Where the node is reached.
    pub(crate) public: IpAddr,
    /// Absent where the node does not speak VXLAN.
    pub(crate) vtep: Option<Vtep>,
}

/// What one node announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// vxlan, host-gw or another of flannel's backends.
    pub(crate) backend: String,
    /// One per IP family at most.
    pub(crate) shares: Vec<Share>,
}

/// The node's pod ranges, one per family at most.
pub(crate) fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut found: Vec<IpNet> = Vec::new();
    for net in all.filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.trunc()) {
        if found.iter().all(|other| other.addr().is_ipv4() != net.addr().is_ipv4()) {
            found.push(net);
        }
    }
    found
}

fn annotation<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    let value = node.metadata.annotations.as_ref()?.get(&format!("{PREFIX}{name}"))?;
    (!value.is_empty()).then_some(value.as_str())
}

/// The address that the user wants announced in place of what was detected.
pub(crate) fn public_overwrite(node: &Node, is_ipv4: bool) -> Option<IpAddr> {
    let address: IpAddr = annotation(node, names(is_ipv4).overwrite)?.parse().ok()?;
    (address.is_ipv4() == is_ipv4).then_some(address)
}

/// Does a node write this annotation for its pod network? What a user wrote for it is none of these.
pub(crate) fn is_own_annotation(key: &str) -> bool {
    key.strip_prefix(PREFIX).is_some_and(|name| !name.ends_with("-overwrite"))
}

impl Lease {
    /// What the node announces; `None` when it takes no part (yet).
    pub(crate) fn of(node: &Node) -> Option<Self> {
        if annotation(node, MANAGED) != Some("true") {
            return None;
        }
        let backend = annotation(node, BACKEND_TYPE)?.to_owned();
        let share = |subnet: IpNet| {
            let names = names(subnet.addr().is_ipv4());
            let public: IpAddr = annotation(node, names.public)?.parse().ok()?;
            let vtep = annotation(node, names.data).and_then(read_vtep);
            (public.is_ipv4() == subnet.addr().is_ipv4()).then_some(Share { subnet, public, vtep })
        };
        let shares: Vec<Share> = pod_cidrs(node).into_iter().filter_map(share).collect();
        (!shares.is_empty()).then_some(Self { backend, shares })
    }

    /// The end point that a node announces, whatever backend it uses: the hardware address is kept over
    /// restarts.
    pub(crate) fn announced_vtep(node: &Node, is_ipv4: bool) -> Option<Vtep> {
        annotation(node, names(is_ipv4).data).and_then(read_vtep)
    }

    /// The annotations that announce this lease, by full name.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut add = |name: &str, value: String| all.insert(format!("{PREFIX}{name}"), value);
        add(BACKEND_TYPE, self.backend.clone());
        add(MANAGED, "true".to_owned());
        for share in &self.shares {
            let names = names(share.subnet.addr().is_ipv4());
            add(names.public, share.public.to_string());
            // A backend without data has Go's null there.
            let data = share.vtep.filter(|_| self.backend == VXLAN).map_or_else(
                || "null".to_owned(),
                |v| format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, v.vni, v.mac),
            );
            add(names.data, data);
        }
        all
    }

    /// Those of [`Lease::annotations`] that the node does not have yet.
    pub(crate) fn missing_annotations(&self, node: &Node) -> BTreeMap<String, String> {
        let has = node.metadata.annotations.as_ref();
        let mut wanted = self.annotations();
        wanted.retain(|name, value| has.and_then(|has| has.get(name)) != Some(value));
        wanted
    }
}

fn read_vtep(text: &str) -> Option<Vtep> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mac: Mac = value.get("VtepMAC")?.as_str()?.parse().ok()?;
    // A device cannot have a multicast address, nor none.
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return None;
    }
    // flannel before 0.13 announced no number.
    let vni = value.get("VNI").and_then(Value::as_u64).unwrap_or(0);
    Some(Vtep { vni: u32::try_from(vni).ok()?, mac })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(pod_cidrs: &[&str], annotations: &BTreeMap<String, String>) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "n", "annotations": annotations },
            "spec": { "podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs },
        }))
        .unwrap()
    }

    fn flannel(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect()
    }

    fn lease(backend: &str) -> Lease {
        let vtep = Some(Vtep { vni: 1, mac: Mac([0x0e, 0x2a, 0, 1, 2, 0xff]) });
        let share = |subnet: &str, public: &str| Share {
            subnet: subnet.parse().unwrap(),
            public: public.parse().unwrap(),
            vtep: vtep.filter(|_| backend == VXLAN),
        };
        let shares = vec![share("10.244.1.0/24", "192.0.2.1"), share("fd00:1::/64", "2001:db8::1")];
        Lease { backend: backend.to_owned(), shares }
    }

    /// As `kubectl get node -o yaml` shows them where flanneld runs.
    #[test]
    fn annotations_are_flannels_to_the_letter() {
        let expected = flannel(&[
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"0e:2a:00:01:02:ff"}"#),
            ("public-ip", "192.0.2.1"),
            ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0e:2a:00:01:02:ff"}"#),
            ("public-ipv6", "2001:db8::1"),
        ]);
        assert_eq!(lease(VXLAN).annotations(), expected);
        let host_gw = lease(HOST_GW).annotations();
        assert_eq!(host_gw[&format!("{PREFIX}backend-data")], "null");
        assert_eq!(host_gw[&format!("{PREFIX}backend-type")], "host-gw");
    }

    #[test]
    fn what_is_announced_reads_back() {
        for backend in [VXLAN, HOST_GW] {
            let lease = lease(backend);
            let node = node(&["10.244.1.0/24", "fd00:1::/64"], &lease.annotations());
            assert_eq!(Lease::of(&node), Some(lease.clone()));
            assert!(lease.missing_annotations(&node).is_empty());
        }
        let mut stale = lease(VXLAN).annotations();
        stale.insert(format!("{PREFIX}public-ip"), "192.0.2.9".into());
        let missing = lease(VXLAN).missing_annotations(&node(&["10.244.1.0/24"], &stale));
        assert_eq!(missing, flannel(&[("public-ip", "192.0.2.1")]));
    }

    #[test]
    fn who_takes_no_part_has_no_lease() {
        let whole = lease(VXLAN).annotations();
        let without = |name: &str| {
            let mut some = whole.clone();
            some.remove(&format!("{PREFIX}{name}"));
            some
        };
        let mut disabled = whole.clone();
        disabled.insert(format!("{PREFIX}kube-subnet-manager"), "false".into());
        let cidr: &[&str] = &["10.244.1.0/24"];
        for (name, cidrs, annotations) in [
            ("no range yet", &[][..], whole.clone()),
            ("no annotations", cidr, BTreeMap::new()),
            ("not managed", cidr, without("kube-subnet-manager")),
            ("managed by another", cidr, disabled),
            ("no address", cidr, without("public-ip")),
            ("no backend", cidr, without("backend-type")),
        ] {
            assert_eq!(Lease::of(&node(cidrs, &annotations)), None, "{name}");
        }
        for mac in ["0e:2a", "01:00:5e:00:00:01", "00:00:00:00:00:00", "0e:2a:00:00:00:0x"] {
            let broken = flannel(&[
                ("backend-type", "vxlan"),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.0.2.1"),
                ("backend-data", &format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
            ]);
            assert_eq!(Lease::of(&node(cidr, &broken)).unwrap().shares[0].vtep, None, "{mac}");
        }
    }
}
