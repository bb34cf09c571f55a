//! What a node's configuration says of a cluster that the node has left: the address that clients reach the cluster by,
//! and the string to join it with. The configuration is the operator's and stays as it is; a single node passes over
//! these until they are changed, or until it joins again. And the keys on their way out.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The file in the data folder.
pub(crate) const FILE: &str = "left.json";
/// Where keys are on their way out, in the data folder.
const KEYS: &str = "pki.left";
/// The time that was seen last, among the keys.
const FLOOR: &str = "time-floor";

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
    write(config, &left)?;
    let names = [("join", left.join.is_some()), ("virtual-address", !left.virtual_addresses.is_empty())];
    Ok(names.into_iter().filter(|(_, said)| *said).map(|(key, _)| key.to_owned()).collect())
}

/// What was kept is of no interest to a member.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn forget(config: &Config) -> anyhow::Result<()> {
    match std::fs::remove_file(file(config)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", file(config).display()))
        }
        _ => Ok(()),
    }
}

/// Takes out of a single node's settings what is the left cluster's. Says which, and why.
///
/// # Errors
/// When what was kept cannot be read.
pub(crate) fn pass_over(config: &mut Config) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut passed = Vec::new();
    let Some(left) = kept(config)? else { return Ok(passed) };
    if config.join.is_some() && config.join == left.join {
        config.join = None;
        let why = "it names the cluster that this node has left: passed over until it is changed";
        passed.push(("join", why.to_owned()));
    }
    if !left.virtual_addresses.is_empty() && config.virtual_addresses == left.virtual_addresses {
        let addresses = crate::config::joined(&left.virtual_addresses);
        config.virtual_addresses.clear();
        let why =
            format!("{addresses} is of the cluster that this node has left: not taken until it is changed");
        passed.push(("virtual-address", why));
    }
    Ok(passed)
}

/// What was changed since counts from now on, also when it is what it was once more.
///
/// # Errors
/// When what was kept cannot be read or written.
pub(crate) fn forget_changed(config: &Config) -> anyhow::Result<()> {
    let Some(mut left) = kept(config)? else { return Ok(()) };
    let before = (left.join.is_some(), left.virtual_addresses.len());
    left.join = left.join.filter(|join| config.join.as_ref() == Some(join));
    if left.virtual_addresses != config.virtual_addresses {
        left.virtual_addresses.clear();
    }
    if (left.join.is_some(), left.virtual_addresses.len()) == before {
        return Ok(());
    }
    if left == Left::default() { forget(config) } else { write(config, &left) }
}

fn kept(config: &Config) -> anyhow::Result<Option<Left>> {
    let file = file(config);
    let bytes = kedge_base::read_optional(&file).with_context(|| format!("read {}", file.display()))?;
    let left = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    left.with_context(|| format!("read {}", file.display()))
}

fn write(config: &Config, left: &Left) -> anyhow::Result<()> {
    let (file, bytes) = (file(config), serde_json::to_vec(left).context("write what was left")?);
    kedge_base::write_atomic(&file, &bytes, 0o600).with_context(|| format!("write {}", file.display()))
}

/// Takes the keys of a data folder away, all or none: with some of them a machine that comes back halfway would take
/// the left cluster's authority for its own. The time that was seen last stays, for boards without a clock.
///
/// # Errors
/// Any failure of the file system; repeating it goes on.
pub(crate) fn discard_keys(data_dir: &Path) -> anyhow::Result<()> {
    tidy(data_dir)?;
    match std::fs::rename(data_dir.join("pki"), data_dir.join(KEYS)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.and_then(|()| kedge_base::sync_dir(data_dir)).context("put the keys aside")?,
    }
    tidy(data_dir)
}

/// Finishes what [`discard_keys`] was cut off at.
///
/// # Errors
/// Any failure of the file system; repeating it goes on.
pub(crate) fn tidy(data_dir: &Path) -> anyhow::Result<()> {
    let (keys, aside) = (data_dir.join("pki"), data_dir.join(KEYS));
    let floor = kedge_base::read_optional(&aside.join(FLOOR)).context("read the last time seen")?;
    if let Some(floor) = floor.filter(|_| !keys.join(FLOOR).exists()) {
        std::fs::create_dir_all(&keys).context("create the folder of keys")?;
        kedge_base::write_atomic(&keys.join(FLOOR), &floor, 0o600).context("keep the last time seen")?;
    }
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove the keys put aside"),
        _ => Ok(()),
    }
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
        forget_changed(&load('0', "192.0.2.9")).unwrap();
        forget_changed(&load('0', "192.0.2.8")).unwrap();
        let mut back = load('0', "192.0.2.9");
        let passed = pass_over(&mut back).unwrap();
        assert_eq!((passed.len(), passed[0].0, back.virtual_addresses.len()), (1, "join", 1));
        forget_changed(&changed).unwrap();
        assert!(!file(&changed).exists());
        forget(&changed).unwrap();
        let mut again = load('0', "192.0.2.9");
        pass_over(&mut again).unwrap();
        assert!(again.join.is_some());
    }

    #[test]
    fn keys_go_all_or_none_and_the_clocks_floor_stays() {
        let dir = tempfile::tempdir().unwrap();
        discard_keys(dir.path()).unwrap();
        let (keys, aside) = (dir.path().join("pki"), dir.path().join(KEYS));
        let floor_alone = || {
            let left: Vec<_> =
                std::fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [FLOOR]);
            assert_eq!(std::fs::read_to_string(keys.join(FLOOR)).unwrap(), "1800000000\n");
            assert!(!aside.exists());
        };
        for folder in [&keys, &aside] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("ca.key"), "key").unwrap();
        }
        std::fs::write(keys.join(FLOOR), "1800000000\n").unwrap();
        discard_keys(dir.path()).unwrap();
        floor_alone();

        // The power went right after the keys were put aside: the next start goes on.
        std::fs::write(keys.join("ca.key"), "key").unwrap();
        std::fs::rename(&keys, &aside).unwrap();
        tidy(dir.path()).unwrap();
        floor_alone();
    }
}
