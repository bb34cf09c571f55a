//! From what the nodes announce to what the kernel should have, and from there to the changes. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::lease::{HOST_GW, Lease, Share, VXLAN};
use crate::rt::{Fdb, KernelRoute, Mac, Neighbour, Route, Way};

/// `rtm_protocol` of routes that are ours (values from 5 on are free; this one is in no list).
pub(crate) const ROUTE_PROTOCOL: u8 = 107;
/// `RTPROT_KERNEL`: follows from an address of the link.
const PROTOCOL_KERNEL: u8 = 2;

/// This node's side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    pub(crate) name: String,
    /// The cluster's pod networks.
    pub(crate) networks: Vec<IpNet>,
    /// This node's own pods.
    pub(crate) subnets: Vec<IpNet>,
    /// The VXLAN devices' interface numbers. Absent with host-gw.
    pub(crate) device_v4: Option<u32>,
    pub(crate) device_v6: Option<u32>,
    pub(crate) direct_routing: bool,
}

impl Own {
    fn device(&self, is_ipv4: bool) -> Option<u32> {
        if is_ipv4 { self.device_v4 } else { self.device_v6 }
    }

    fn has_device(&self, link: u32) -> bool {
        self.device_v4 == Some(link) || self.device_v6 == Some(link)
    }
}

/// What the kernel should have. A key has one value, so that no two nodes can fight for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) routes: BTreeMap<IpNet, Route>,
    pub(crate) neighbours: BTreeMap<(u32, IpAddr), Mac>,
    pub(crate) fdb: BTreeMap<(u32, Mac), IpAddr>,
    /// Nodes that cannot be reached, each with the reason and what to do.
    pub(crate) problems: Vec<String>,
}

impl Wanted {
    /// `way` says how packets to an address leave.
    pub(crate) fn new(
        own: &Own,
        leases: &BTreeMap<String, Lease>,
        way: &dyn Fn(IpAddr) -> Option<Way>,
    ) -> Self {
        let mut this = Self::default();
        for (name, lease) in leases.iter().filter(|(name, _)| **name != own.name) {
            for share in &lease.shares {
                if let Err(problem) = this.add(own, lease, share, way) {
                    this.problems
                        .push(format!("pods of node {name} ({}) cannot be reached: {problem}", share.subnet));
                }
            }
        }
        this
    }

    fn add(
        &mut self,
        own: &Own,
        lease: &Lease,
        share: &Share,
        way: &dyn Fn(IpAddr) -> Option<Way>,
    ) -> Result<(), String> {
        let Share { subnet, public, vtep } = *share;
        let is_ipv4 = subnet.addr().is_ipv4();
        if !own.networks.iter().any(|net| net.contains(&subnet)) {
            return Err("its range lies outside the cluster's pod network".into());
        }
        let overlaps = |other: &IpNet| other.contains(&subnet) || subnet.contains(other);
        if own.subnets.iter().any(overlaps) {
            return Err("its range is also this node's".into());
        }
        if self.routes.keys().any(overlaps) {
            return Err("its range is also another node's".into());
        }
        match (lease.backend.as_str(), own.device(is_ipv4), vtep) {
            (VXLAN, Some(device), Some(vtep)) => {
                if own.direct_routing
                    && let Some(Way { link, via: None }) = way(public)
                {
                    self.routes.insert(subnet, Route { to: subnet, via: public, link, onlink: false });
                    return Ok(());
                }
                if self.fdb.contains_key(&(device, vtep.mac)) {
                    return Err(format!("its hardware address {} is also another node's", vtep.mac));
                }
                let gateway = subnet.network();
                self.fdb.insert((device, vtep.mac), public);
                self.neighbours.insert((device, gateway), vtep.mac);
                self.routes.insert(subnet, Route { to: subnet, via: gateway, link: device, onlink: true });
                Ok(())
            }
            (VXLAN, Some(_), None) => Err("it announces no hardware address".into()),
            // Where one of two cannot do VXLAN, both send each other packets as they are.
            (VXLAN | HOST_GW, ..) => match way(public) {
                Some(Way { link, via: None }) => {
                    self.routes.insert(subnet, Route { to: subnet, via: public, link, onlink: false });
                    Ok(())
                }
                Some(Way { via: Some(router), .. }) => Err(format!(
                    "without VXLAN both nodes have to be in one network segment, but {public} is behind {router}; \
                     use the vxlan backend"
                )),
                None => Err(format!("there is no route to its address {public}")),
            },
            (other, ..) => Err(format!("it uses flannel's backend {other}; use vxlan or host-gw")),
        }
    }
}

/// What the kernel has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Actual {
    pub(crate) routes: Vec<KernelRoute>,
    pub(crate) neighbours: Vec<Neighbour>,
    pub(crate) fdb: Vec<Fdb>,
}

/// What has to be done. Everything is set before anything is deleted, and neighbours before routes
/// that need them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) set_neighbours: Vec<Neighbour>,
    pub(crate) set_fdb: Vec<Fdb>,
    pub(crate) set_routes: Vec<Route>,
    pub(crate) delete_routes: Vec<KernelRoute>,
    pub(crate) delete_neighbours: Vec<Neighbour>,
    pub(crate) delete_fdb: Vec<Fdb>,
}

impl Changes {
    pub(crate) fn new(own: &Own, wanted: &Wanted, actual: &Actual) -> Self {
        let mut changes = Self::default();
        let is_right = |route: &Route| {
            actual.routes.iter().any(|found| found.is(route) && found.protocol == ROUTE_PROTOCOL)
        };
        changes.set_routes = wanted.routes.values().filter(|route| !is_right(route)).copied().collect();
        let is_ours = |route: &KernelRoute| {
            route.protocol == ROUTE_PROTOCOL
                || own.has_device(route.link) && route.protocol != PROTOCOL_KERNEL
        };
        changes.delete_routes = actual
            .routes
            .iter()
            .filter(|found| is_ours(found))
            .filter(|found| wanted.routes.get(&found.to).is_none_or(|route| !found.is_replaced_by(route)))
            .copied()
            .collect();

        for ((link, address), mac) in &wanted.neighbours {
            let entry = Neighbour { link: *link, address: *address, mac: *mac };
            if !actual.neighbours.contains(&entry) {
                changes.set_neighbours.push(entry);
            }
        }
        let stale = |entry: &&Neighbour| {
            own.has_device(entry.link) && !wanted.neighbours.contains_key(&(entry.link, entry.address))
        };
        changes.delete_neighbours = actual.neighbours.iter().filter(stale).copied().collect();

        for ((link, mac), to) in &wanted.fdb {
            let entry = Fdb { link: *link, mac: *mac, to: *to };
            if !actual.fdb.contains(&entry) {
                changes.set_fdb.push(entry);
            }
        }
        let stale = |entry: &&Fdb| {
            own.has_device(entry.link) && wanted.fdb.get(&(entry.link, entry.mac)) != Some(&entry.to)
        };
        changes.delete_fdb = actual.fdb.iter().filter(stale).copied().collect();
        changes
    }

    pub(crate) fn count(&self) -> usize {
        self.set_neighbours.len()
            + self.set_fdb.len()
            + self.set_routes.len()
            + self.delete_routes.len()
            + self.delete_neighbours.len()
            + self.delete_fdb.len()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
