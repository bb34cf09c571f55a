//! The configuration of the CNI plugins from the distribution's package (bridge, host-local, portmap);
//! the container runtime adds loopback by itself.

use std::ffi::OsString;
use std::io;
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
    remove_others(dir, &[FILE.into()])?;
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

/// Is the pod network's configuration there?
pub(crate) fn has_cni_config(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Takes the pod network's configuration away.
pub(crate) fn remove_cni_config(dir: &Path) -> Result<(), Error> {
    let path = dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("delete", path, error)),
        _ => Ok(()),
    }
}

/// Copies another network's configuration to where the container runtime looks, and takes away what it no
/// longer has.
pub(crate) fn show_foreign_cni(dir: &Path, foreign: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::file("create folder", dir, source))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(foreign).map_err(|source| Error::file("read", foreign, source))?.flatten()
    {
        let (from, to) = (entry.path(), dir.join(entry.file_name()));
        // What libcni reads (containernetworking/cni libcni/conf.go, ConfFiles).
        let is_config =
            from.extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json");
        if !is_config || entry.file_name() == FILE {
            continue;
        }
        let new = read_optional(&from).map_err(|source| Error::file("read", &from, source))?;
        let Some(new) = new.filter(|bytes| !bytes.is_empty()) else { continue };
        let old = read_optional(&to).map_err(|source| Error::file("read", &to, source))?;
        if old.as_ref() != Some(&new) {
            write_atomic(&to, &new, 0o600).map_err(|source| Error::file("write", &to, source))?;
        }
        names.push(entry.file_name());
    }
    remove_others(dir, &names)
}

/// The folder is Kedge's own: what another network had there goes.
fn remove_others(dir: &Path, kept: &[OsString]) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !kept.contains(&entry.file_name()) && entry.path().is_file() {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|source| Error::file("delete", &path, source))?;
        }
    }
    Ok(())
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
    fn another_networks_files_are_shown_while_ours_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, foreign) = (folder.path().join("net.d"), folder.path().join("etc"));
        std::fs::create_dir(&foreign).unwrap();
        let names = || {
            let entries = std::fs::read_dir(&dir).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let net: IpNet = "10.244.3.0/24".parse().unwrap();
        write_cni_config(&dir, "kedge0", net, None, Path::new("/leases")).unwrap();
        assert!(has_cni_config(&dir));
        remove_cni_config(&dir).unwrap();
        remove_cni_config(&dir).unwrap();
        assert!(!has_cni_config(&dir));
        for (name, text) in [("05-cilium.conflist", "{}"), ("notes.txt", "x"), ("empty.conf", "")] {
            std::fs::write(foreign.join(name), text).unwrap();
        }
        show_foreign_cni(&dir, &foreign).unwrap();
        assert_eq!(names(), ["05-cilium.conflist"]);
        std::fs::write(foreign.join("10-kedge.conflist"), "{}").unwrap();
        std::fs::rename(foreign.join("05-cilium.conflist"), foreign.join("10-calico.conflist")).unwrap();
        show_foreign_cni(&dir, &foreign).unwrap();
        assert_eq!(names(), ["10-calico.conflist"], "what went there goes here");
        // Ours again: the runtime takes the first file, so there must be no other.
        write_cni_config(&dir, "kedge0", net, None, Path::new("/leases")).unwrap();
        assert_eq!(names(), ["10-kedge.conflist"]);
    }

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
