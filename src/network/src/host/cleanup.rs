//! Takes away what the network of a node leaves behind.

use std::io;
use std::path::Path;

use super::cni::network_name;
use super::portmap;
use crate::rt::{Rt, gone};
use crate::{Error, announce, nft, overlay, policy};

/// For `uninstall`, after all pods are gone: deletes the nftables tables, the pod network's routes and
/// devices, addresses held for the cluster, the rules that let pods' packets through other programs' chains, the pods' bridge with the
/// devices that hang on it, what the portmap plugin left in iptables, and host-local's address leases
/// under `host_local_dir`. What is not there is no error, so it may run again.
///
/// # Errors
/// The first thing that could not be removed; the others are tried all the same.
pub fn cleanup(table_name: &str, bridge: &str, host_local_dir: &Path) -> Result<(), Error> {
    let steps = [
        nft::delete_table(table_name).map(|_| ()).map_err(Error::from),
        nft::delete_table(&policy::table_name(table_name)).map(|_| ()).map_err(Error::from),
        overlay::remove_rules().map_err(Error::from),
        overlay::remove(bridge),
        announce::release_all(),
        delete_bridge(bridge).map_err(|source| Error::netlink("delete the pods' bridge", source)),
        portmap::remove_port_mappings(&network_name(bridge))
            .map_err(|source| Error::netlink("remove port mappings of pods", source)),
        delete_leases(host_local_dir, &network_name(bridge)),
    ];
    steps.into_iter().collect()
}

fn delete_bridge(name: &str) -> io::Result<()> {
    let netlink = Rt::open()?;
    let links = netlink.links()?;
    let Some(bridge) = links.iter().find(|link| link.name == name) else { return Ok(()) };
    if bridge.kind != "bridge" {
        return Err(io::Error::other(format!("{name} is no bridge")));
    }
    for port in links.iter().filter(|link| link.master == Some(bridge.index) && link.kind == "veth") {
        gone(netlink.delete_link(port.index))?;
    }
    gone(netlink.delete_link(bridge.index))
}

fn delete_leases(host_local_dir: &Path, network: &str) -> Result<(), Error> {
    let path = host_local_dir.join(network);
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("delete", path, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_go_and_may_be_gone() {
        let folder = tempfile::tempdir().unwrap();
        let network = network_name("kedge0");
        std::fs::create_dir(folder.path().join(&network)).unwrap();
        std::fs::write(folder.path().join(&network).join("10.244.0.2"), "id").unwrap();
        std::fs::create_dir(folder.path().join("other")).unwrap();
        delete_leases(folder.path(), &network).unwrap();
        delete_leases(folder.path(), &network).unwrap();
        assert!(!folder.path().join(&network).exists() && folder.path().join("other").exists());
    }

    #[test]
    fn only_a_bridge_is_deleted() {
        assert!(delete_bridge("lo").is_err());
        delete_bridge("no-such-bridge").unwrap();
    }
}
