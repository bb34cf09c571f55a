//! The configuration of the CNI plugins from the distribution's package (bridge, host-local, portmap);
//! the container runtime adds loopback by itself.

use std::path::Path;

use ipnet::IpNet;
use kedge_base::{read_optional, write_atomic};
use serde_json::{Value, json};

use crate::Error;

/// Sorts before what other network add-ons write: the runtime takes the first file.
const FILE: &str = "10-kedge.conflist";

/// The network's name: host-local keeps its state in a folder of this name, portmap marks its rules with
/// it. Several Kedges on one machine have bridges of different names, and so different networks.
pub(super) fn network_name(bridge: &str) -> String {
    match bridge {
        "kedge0" => "kedge".to_owned(),
        other => other.to_owned(),
    }
}

/// Write `10-kedge.conflist` into `dir`, whole or not at all, and only when its content changes.
/// `pod_cidr` is this node's share of the pod network; `mtu` in bytes, `None` leaves the kernel's
/// default; `host_local_dir` is where address leases are kept.
///
/// # Errors
/// When the folder or file cannot be written.
pub fn write_cni_config(
    dir: &Path,
    bridge: &str,
    pod_cidr: IpNet,
    mtu: Option<u32>,
    host_local_dir: &Path,
) -> Result<(), Error> {
    write_cni_config_for(dir, bridge, &[pod_cidr], mtu, host_local_dir)
}

/// As [`write_cni_config`], with one range per IP family.
///
/// # Errors
/// When the folder or file cannot be written.
pub fn write_cni_config_for(
    dir: &Path,
    bridge: &str,
    pod_cidrs: &[IpNet],
    mtu: Option<u32>,
    host_local_dir: &Path,
) -> Result<(), Error> {
    let path = dir.join(FILE);
    let mut text = serde_json::to_string_pretty(&config(bridge, pod_cidrs, mtu, host_local_dir))
        .map_err(|error| Error::file("write", &path, error.into()))?;
    text.push('\n');
    let old = read_optional(&path).map_err(|source| Error::file("read", &path, source))?;
    if old.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|source| Error::file("create folder", dir, source))?;
    write_atomic(&path, text.as_bytes(), 0o644).map_err(|source| Error::file("write", &path, source))
}

fn config(name: &str, pod_cidrs: &[IpNet], mtu: Option<u32>, host_local_dir: &Path) -> Value {
    let range = |net: &IpNet| json!([{ "subnet": net.trunc().to_string() }]);
    let everywhere = |net: &IpNet| json!({ "dst": if net.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
    let mut bridge = json!({
        "type": "bridge",
        "bridge": name,
        "isGateway": true,
        // A pod reaches itself through its own Service.
        "hairpinMode": true,
        // The proxy's table masquerades.
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "ranges": pod_cidrs.iter().map(range).collect::<Vec<_>>(),
            "routes": pod_cidrs.iter().map(everywhere).collect::<Vec<_>>(),
            "dataDir": host_local_dir,
        },
    });
    if let Some(mtu) = mtu {
        bridge["mtu"] = json!(mtu);
    }
    json!({
        // The newest that Debian 11's plugins know.
        "cniVersion": "0.4.0",
        "name": network_name(name),
        "plugins": [bridge, { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }],
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_written_once_and_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("net.d");
        let leases = Path::new("/var/lib/kedge/cni");
        let net: IpNet = "10.244.3.7/24".parse().unwrap();
        let inode = || std::fs::metadata(dir.join(FILE)).unwrap().ino();
        write_cni_config(&dir, "kedge0", net, None, leases).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join(FILE)).unwrap()).unwrap();
        assert_eq!(json["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(json["plugins"][0]["ipam"]["dataDir"], "/var/lib/kedge/cni");
        assert_eq!(json["plugins"][0]["mtu"], Value::Null);
        assert_eq!(json["plugins"][1]["capabilities"]["portMappings"], true);

        // Kept open, so that the number of a replaced file cannot be used again.
        let _first_file = std::fs::File::open(dir.join(FILE)).unwrap();
        let first = inode();
        write_cni_config(&dir, "kedge0", net, None, leases).unwrap();
        assert_eq!(inode(), first, "the same content is not written again");
        write_cni_config(&dir, "kedge0", net, Some(1450), leases).unwrap();
        assert_ne!(inode(), first);
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join(FILE)).unwrap()).unwrap();
        assert_eq!(json["plugins"][0]["mtu"], 1450);

        let both = [net, "fd00:3::/64".parse().unwrap()];
        write_cni_config_for(&dir, "kedge0", &both, Some(1430), leases).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join(FILE)).unwrap()).unwrap();
        assert_eq!(json["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd00:3::/64");
        assert_eq!(json["plugins"][0]["ipam"]["routes"], json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]));
    }
}
