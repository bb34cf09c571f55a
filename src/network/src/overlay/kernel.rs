//! Brings the kernel to what is wanted: VXLAN devices, their addresses, routes and neighbours, and the
//! MTU of the pods' bridge. Blocks for as long as the kernel works.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use super::config::{Backend, VxlanConfig};
use super::lease::{HOST_GW, Lease, Share, VXLAN, Vtep};
use super::plan::{Actual, Changes, Own, ROUTE_PROTOCOL, Wanted};
use crate::rt::{KernelRoute, Link, Mac, Rt, Vxlan, gone};

/// Tells our devices from those of a flanneld, and those of several Kedges on one machine from each other
/// (they have bridges of different names). `IFLA_IFALIAS`.
const ALIAS: &str = "kedge pod network of ";

fn alias(bridge: &str) -> String {
    format!("{ALIAS}{bridge}")
}

/// The device of another Kedge on this machine.
fn is_of_another(link: &Link, bridge: &str) -> bool {
    link.alias.starts_with(ALIAS) && link.alias != alias(bridge)
}
/// What VXLAN puts around a packet, in IPv4 and in IPv6.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// This node in one IP family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnShare {
    /// This node's pods.
    pub(crate) subnet: IpNet,
    /// An address of one of this machine's interfaces.
    pub(crate) address: IpAddr,
    /// What is announced, when the user wants another one.
    pub(crate) announced: IpAddr,
    /// The VXLAN device's hardware address.
    pub(crate) mac: Mac,
}

/// All that a reconciliation needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) node: String,
    pub(crate) networks: Vec<IpNet>,
    pub(crate) backend: Backend,
    pub(crate) own: Vec<OwnShare>,
    /// This node's pods in all families, also in one that it has no address of its own in.
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) leases: BTreeMap<String, Lease>,
    /// The pods' bridge.
    pub(crate) bridge: String,
}

/// What a reconciliation found and did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// What to announce.
    pub(crate) lease: Option<Lease>,
    /// For pods, in bytes.
    pub(crate) mtu: u32,
    /// Things in the kernel that were not as they should be.
    pub(crate) changes: usize,
    /// The interfaces that matter: the VXLAN devices and those to the other nodes.
    pub(crate) devices: Vec<u32>,
    pub(crate) uplinks: Vec<u32>,
    /// The pods' bridge, once there is one.
    pub(crate) bridge: Option<u32>,
    pub(crate) routes: Vec<IpNet>,
    /// What does not work, each with what to do. They last until something changes.
    pub(crate) problems: Vec<String>,
    /// Something failed that may work the next time.
    pub(crate) try_again: bool,
    /// The same was wanted the last time: what changed, others have changed.
    pub(crate) as_before: bool,
    /// The kernel cannot make VXLAN devices.
    pub(crate) no_vxlan: bool,
}

pub(crate) fn device_name(vni: u32, is_ipv4: bool) -> String {
    if is_ipv4 { format!("flannel.{vni}") } else { format!("flannel-v6.{vni}") }
}

/// Where an overlay's state in the kernel is read and changed.
#[derive(Debug)]
pub(crate) struct Kernel(Rt);

impl Kernel {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Rt::open()?))
    }

    /// One pass over everything.
    pub(crate) fn reconcile(&self, desired: &Desired) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        let links = self.0.links()?;
        let addresses = self.0.addresses()?;
        let mut own = Own {
            name: desired.node.clone(),
            networks: desired.networks.clone(),
            subnets: desired.own.iter().map(|share| share.subnet).collect(),
            ..Own::default()
        };
        let mut lease = Lease { backend: HOST_GW.to_owned(), shares: Vec::new() };
        let mut mtu = u32::MAX;
        for share in &desired.own {
            let holder = addresses.iter().find(|found| found.address == share.address);
            let uplink = holder.and_then(|holder| links.iter().find(|link| link.index == holder.link));
            let Some(uplink) = uplink else {
                outcome.problems.push(format!(
                    "this node's address {} is on no network interface, so its pods cannot reach other nodes; \
                     give an interface that address or name another one in the configuration",
                    share.address
                ));
                continue;
            };
            outcome.uplinks.push(uplink.index);
            let mut announced = Share { subnet: share.subnet, public: share.announced, vtep: None };
            let mut share_mtu = uplink.mtu;
            if let Backend::Vxlan(config) = &desired.backend {
                let name = device_name(config.vni, share.subnet.addr().is_ipv4());
                let of_another = |link: &&Link| link.name == name && is_of_another(link, &desired.bridge);
                if let Some(link) = links.iter().find(of_another) {
                    outcome.problems.push(format!(
                        "the device {name} is the {} of another Kedge on this machine, so pods here cannot reach \
                         other nodes; give this cluster another VNI",
                        link.alias
                    ));
                    continue;
                }
                match self.device(&links, uplink, share, config, &desired.bridge, &mut outcome) {
                    Ok((index, device_mtu)) => {
                        share_mtu = device_mtu;
                        announced.vtep = Some(Vtep { vni: config.vni, mac: share.mac });
                        lease.backend = VXLAN.to_owned();
                        own.direct_routing = config.direct_routing;
                        outcome.devices.push(index);
                        if share.subnet.addr().is_ipv4() {
                            own.device_v4 = Some(index);
                        } else {
                            own.device_v6 = Some(index);
                        }
                    }
                    Err(error) if is_unsupported(&error) => outcome.no_vxlan = true,
                    Err(error) => {
                        // Nothing is announced that does not work.
                        outcome.try_again = true;
                        outcome.problems.push(format!("the device {name} cannot be set up: {error}"));
                        continue;
                    }
                }
            }
            mtu = mtu.min(share_mtu);
            lease.shares.push(announced);
        }
        if !outcome.try_again {
            // Left from another number or another backend.
            let alias = alias(&desired.bridge);
            let is_left = |link: &&Link| link.alias == alias && !outcome.devices.contains(&link.index);
            for link in links.iter().filter(|link| link.kind == "vxlan").filter(is_left) {
                gone(self.0.delete_link(link.index))?;
            }
        }
        let bridge = links.iter().find(|link| link.name == desired.bridge && link.kind == "bridge");
        if let Some(bridge) = bridge {
            outcome.bridge = Some(bridge.index);
            self.bridge_addresses(bridge, &desired.pod_cidrs, &mut outcome)?;
        }
        if lease.shares.is_empty() {
            return Ok(outcome);
        }
        outcome.mtu = mtu;
        outcome.lease = Some(lease);
        if let Some(bridge) = bridge {
            self.bridge_mtu(bridge, mtu, &mut outcome);
        }
        self.entries(&own, desired, &mut outcome)?;
        Ok(outcome)
    }

    /// Make the VXLAN device what it should be. Its interface number and MTU.
    fn device(
        &self,
        links: &[Link],
        uplink: &Link,
        share: &OwnShare,
        config: &VxlanConfig,
        bridge: &str,
        outcome: &mut Outcome,
    ) -> io::Result<(u32, u32)> {
        let is_ipv4 = share.subnet.addr().is_ipv4();
        let name = device_name(config.vni, is_ipv4);
        let overhead = if is_ipv4 { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let mtu = config.mtu.unwrap_or(uplink.mtu).saturating_sub(overhead);
        let wanted = Vxlan {
            id: config.vni,
            port: config.port,
            local: Some(share.address),
            link: uplink.index,
            learning: config.learning,
            gbp: config.gbp,
        };
        let mut found = links.iter().find(|link| link.name == name).cloned();
        if let Some(old) = &found
            && old.vxlan != Some(wanted)
        {
            // What a VXLAN device was made with cannot be changed.
            tracing::info!(device = %name, "the device of the pod network is made anew");
            gone(self.0.delete_link(old.index))?;
            found = None;
        }
        let link = match found {
            Some(link) => link,
            None => {
                self.0.add_vxlan(&name, mtu, share.mac, &wanted)?;
                outcome.changes += 1;
                let made = self.0.links()?.into_iter().find(|link| link.name == name);
                made.ok_or_else(|| io::Error::other("it vanished at once"))?
            }
        };
        let mac = (link.mac != Some(share.mac)).then_some(share.mac);
        let differs = (link.mtu != mtu).then_some(mtu);
        let alias = alias(bridge);
        let alias = (link.alias != alias).then_some(alias.as_str());
        if mac.is_some() || differs.is_some() || alias.is_some() || !link.is_up {
            self.0.change_link(link.index, true, differs, mac, alias)?;
            outcome.changes += 1;
        }
        // One address, and no network with it: the source of this node's own packets to pods elsewhere.
        let address = IpNet::from(share.subnet.network());
        let has = self.0.addresses_of(link.index)?;
        for other in has.iter().filter(|has| **has != address && has.addr().is_ipv4() == is_ipv4) {
            gone(self.0.delete_address(link.index, other))?;
            outcome.changes += 1;
        }
        if !has.contains(&address) {
            self.0.add_address(link.index, &address)?;
            outcome.changes += 1;
        }
        Ok((link.index, mtu))
    }

    /// A node that joins or leaves a cluster gets another range. With its old address the bridge would go
    /// on claiming pods that are somebody else's now, and the bridge plugin would refuse to start pods.
    fn bridge_addresses(&self, bridge: &Link, pods: &[IpNet], outcome: &mut Outcome) -> io::Result<()> {
        let stale = |net: &IpNet| !pods.iter().any(|pods| pods.contains(&net.addr()));
        for address in self.0.addresses_of(bridge.index)?.iter().filter(|net| stale(net)) {
            tracing::info!(bridge = %bridge.name, %address, "an address that is not of this node's pods is removed");
            gone(self.0.delete_address(bridge.index, address))?;
            outcome.changes += 1;
        }
        Ok(())
    }

    /// The bridge would otherwise let packets in that do not fit through.
    fn bridge_mtu(&self, bridge: &Link, mtu: u32, outcome: &mut Outcome) {
        if bridge.mtu == mtu {
            return;
        }
        match self.0.change_link(bridge.index, bridge.is_up, Some(mtu), None, None) {
            Ok(()) => outcome.changes += 1,
            Err(error) => {
                let name = &bridge.name;
                outcome.problems.push(format!("the MTU of {name} cannot be set to {mtu}: {error}"));
            }
        }
    }

    fn entries(&self, own: &Own, desired: &Desired, outcome: &mut Outcome) -> io::Result<()> {
        let wanted = Wanted::new(own, &desired.leases, &|address| self.0.way_to(address).ok().flatten());
        let actual =
            Actual { routes: self.0.routes()?, neighbours: self.0.neighbours()?, fdb: self.0.fdb()? };
        let changes = Changes::new(own, &wanted, &actual);
        outcome.changes += changes.count();
        outcome.routes = wanted.routes.keys().copied().collect();
        outcome.problems.extend(wanted.problems);
        let mut check = |what: &dyn Fn() -> String, result: io::Result<()>| {
            if let Err(error) = result {
                outcome.try_again = true;
                outcome.problems.push(format!("{} failed: {error}", what()));
            }
        };
        for entry in &changes.set_neighbours {
            check(&|| format!("setting the neighbour {}", entry.address), self.0.set_neighbour(entry));
        }
        for entry in &changes.set_fdb {
            check(&|| format!("setting the forwarding entry of {}", entry.mac), self.0.set_fdb(entry));
        }
        for route in &changes.set_routes {
            check(
                &|| format!("setting the route to {} via {}", route.to, route.via),
                self.0.set_route(route, ROUTE_PROTOCOL),
            );
        }
        for route in &changes.delete_routes {
            check(&|| format!("deleting the route to {}", route.to), gone(self.0.delete_route(route)));
        }
        for entry in &changes.delete_neighbours {
            check(
                &|| format!("deleting the neighbour {}", entry.address),
                gone(self.0.delete_neighbour(entry)),
            );
        }
        for entry in &changes.delete_fdb {
            check(
                &|| format!("deleting the forwarding entry of {}", entry.mac),
                gone(self.0.delete_fdb(entry)),
            );
        }
        Ok(())
    }

    /// For uninstalling: our routes and devices. What a flanneld or another Kedge made stays.
    pub(crate) fn remove(&self, bridge: &str) -> io::Result<()> {
        let links = self.0.links()?;
        let others: Vec<u32> =
            links.iter().filter(|link| is_of_another(link, bridge)).map(|link| link.index).collect();
        let is_ours =
            |route: &&KernelRoute| route.protocol == ROUTE_PROTOCOL && !others.contains(&route.link);
        for route in self.0.routes()?.iter().filter(is_ours) {
            gone(self.0.delete_route(route))?;
        }
        let alias = alias(bridge);
        for link in links.iter().filter(|link| link.alias == alias && link.kind == "vxlan") {
            gone(self.0.delete_link(link.index))?;
        }
        Ok(())
    }
}

/// The kernel was built without VXLAN, or its module is not there.
fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EOPNOTSUPP, Errno::ENOTSUP, Errno::EAFNOSUPPORT]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_vxlan_is_recognised() {
        assert!(is_unsupported(&io::Error::from_raw_os_error(Errno::EOPNOTSUPP as i32)));
        assert!(!is_unsupported(&io::Error::from_raw_os_error(Errno::EPERM as i32)));
    }

    #[test]
    fn devices_of_others_are_told_apart() {
        let link = |alias: &str| Link { alias: alias.to_owned(), ..Link::default() };
        assert!(!is_of_another(&link(""), "kedge0"), "flanneld's is taken over");
        assert!(!is_of_another(&link(&alias("kedge0")), "kedge0"));
        assert!(is_of_another(&link(&alias("kedge1")), "kedge0"));
    }

    #[test]
    fn devices_have_flannels_names() {
        assert_eq!(
            (device_name(1, true), device_name(1, false)),
            ("flannel.1".into(), "flannel-v6.1".into())
        );
    }
}
