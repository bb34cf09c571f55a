//! What a node's configuration says of a cluster that the node has left: the address that clients reach the cluster by,
//! and the string to join it with. The configuration is the operator's and stays as it is; a single node passes over
//! these until they are changed, or until it joins again.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The file in the data folder.
pub(crate) const FILE: &str = "left.json";

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    join: Option<String>,
    virtual_addresses: Vec<IpAddr>,
}

fn file(config: &Config) -> PathBuf {
    config.data_dir.join(FILE)
}

/// Keeps what the configuration says now. Called when the node leaves, before it begins anew. Says what is passed over
/// from now on, if there is anything.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn keep(config: &Config) -> anyhow::Result<Vec<String>> {
    let left = Left { join: config.join.clone(), virtual_addresses: config.virtual_addresses.clone() };
    if left == Left::default() {
        return Ok(Vec::new());
    }
    let (file, bytes) = (file(config), serde_json::to_vec(&left).context("write what was left")?);
    kedge_base::write_atomic(&file, &bytes, 0o600).with_context(|| format!("write {}", file.display()))?;
    let names = [("join", left.join.is_some()), ("virtual-address", !left.virtual_addresses.is_empty())];
    Ok(names.into_iter().filter(|(_, said)| *said).map(|(key, _)| key.to_owned()).collect())
}

/// What was kept is of no interest to a member.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn forget(config: &Config) -> anyhow::Result<()> {
    match std::fs::remove_file(file(config)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", file(config).display()))
        }
        _ => Ok(()),
    }
}

/// Takes out of a single node's settings what is the left cluster's.
///
/// # Errors
/// When what was kept cannot be read.
pub(crate) fn pass_over(config: &mut Config) -> anyhow::Result<()> {
    let file = file(config);
    let kept = kedge_base::read_optional(&file).with_context(|| format!("read {}", file.display()))?;
    let Some(kept) = kept else { return Ok(()) };
    let left: Left = serde_json::from_slice(&kept).with_context(|| format!("read {}", file.display()))?;
    if config.join.is_some() && config.join == left.join {
        config.join = None;
        tracing::warn!("`join` names the cluster that this node has left: passed over until it is changed");
    }
    if !left.virtual_addresses.is_empty() && config.virtual_addresses == left.virtual_addresses {
        let addresses = crate::config::joined(&left.virtual_addresses);
        config.virtual_addresses.clear();
        tracing::warn!(
            addresses,
            "`virtual-address` is that of the cluster that this node has left: not taken until it is changed"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn what_was_left_is_passed_over_until_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let load = |token: char, address: &str| {
            let mut given = Settings::default();
            given.insert("data-dir", dir.path().display().to_string());
            let (token, hash) = (token.to_string().repeat(51), "0123456789abcdef".repeat(2));
            given.insert("join", format!("192.0.2.1:25000/{token}0/{hash}"));
            given.insert("virtual-address", address.to_owned());
            Config::load(Some(std::path::Path::new("/nonexistent")), &given).unwrap()
        };
        let mut before = load('0', "192.0.2.9");
        pass_over(&mut before).unwrap();
        assert!(before.join.is_some() && before.virtual_addresses.len() == 1, "nothing was left yet");
        assert_eq!(keep(&before).unwrap(), ["join", "virtual-address"]);

        let mut same = load('0', "192.0.2.9");
        pass_over(&mut same).unwrap();
        assert_eq!((same.join, same.virtual_addresses.len()), (None, 0));
        let mut changed = load('1', "192.0.2.8");
        pass_over(&mut changed).unwrap();
        assert!(changed.join.is_some() && changed.virtual_addresses.len() == 1);
        forget(&changed).unwrap();
        forget(&changed).unwrap();
        let mut again = load('0', "192.0.2.9");
        pass_over(&mut again).unwrap();
        assert!(again.join.is_some());
    }
}
