//! The moment of a restore. A new state is built whole beside the present one, and one rename declares it the
//! node's ([`commit`]). What has to be moved after that is moved by whoever comes next ([`finish`]): the
//! command that restores, or, when the machine went down meanwhile, the next start. So there is the old state
//! or the new one, and never a mixture.
//!
//! ```text
//! DATA/restore          is being built: worth nothing
//! DATA/restore.ready    is the node's state, to be put in its place as plan.json in it says
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kedge_cluster::{ClusterConfig, Staging};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Settings, settings};
use crate::node::{left, shared};

const BUILT: &str = "restore";
const READY: &str = "restore.ready";
const PLAN: &str = "plan.json";

/// What becomes of the present state. All names are those of entries of the data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The folder that takes what was there.
    pub(crate) aside: String,
    /// What goes there.
    pub(crate) away: Vec<String>,
    /// What was built.
    pub(crate) fresh: Vec<String>,
    /// Goes to the configuration file.
    pub(crate) settings: BTreeMap<String, String>,
    /// What the new state's cluster says.
    pub(crate) cluster: ClusterConfig,
}

/// An empty folder to build in; what an earlier attempt left is gone.
///
/// # Errors
/// When that cannot be removed.
pub(crate) fn begin(data_dir: &Path) -> io::Result<PathBuf> {
    let built = data_dir.join(BUILT);
    match fs::remove_dir_all(&built) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(&built)?;
    fs::set_permissions(&built, fs::Permissions::from_mode(0o700))?;
    Ok(built)
}

/// What was built is the node's state from now on, whatever happens next.
///
/// # Errors
/// Then nothing has changed.
pub(crate) fn commit(data_dir: &Path, plan: &Plan) -> io::Result<()> {
    let built = data_dir.join(BUILT);
    kedge_base::write_atomic(&built.join(PLAN), &serde_json::to_vec(plan).map_err(io::Error::other)?, 0o600)?;
    sync(&built)?;
    fs::rename(&built, data_dir.join(READY))?;
    kedge_base::sync_dir(data_dir)
}

/// Puts a committed state in its place, if there is one that is not; what was there is aside then. `config`
/// has the settings of its cluster. The node must not run.
///
/// # Errors
/// Repeating it goes on where it ended.
pub(crate) fn finish(config: &mut Config) -> anyhow::Result<bool> {
    let ready = config.data_dir.join(READY);
    let folder = match File::open(&ready) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open {}", ready.display())),
    };
    // Another command may be about to do the same.
    folder.lock().with_context(|| format!("lock {}", ready.display()))?;
    let context = || format!("put {} in its place", ready.display());
    let Some(plan) = kedge_base::read_optional(&ready.join(PLAN)).with_context(context)? else {
        return Ok(false);
    };
    let plan: Plan = serde_json::from_slice(&plan).with_context(context)?;
    put_in_place(&config.data_dir, &plan).with_context(context)?;
    let mut given = Settings::default();
    for (key, value) in &plan.settings {
        if let Some(setting) = settings::find(key) {
            given.insert(setting.key, value.clone());
        }
    }
    config.keep(&given)?;
    shared::adopt(config, &plan.cluster)?;
    // What was left before is this node's own again, if the restored cluster has it; and a join that was under way is none
    // any more.
    left::forget(config)?;
    Staging::new(config.data_dir.join("join")).finish(&config.pki_dir()).context("tidy up")?;
    close(&config.data_dir).with_context(context)?;
    tracing::info!(aside = plan.aside, "the restored state is in place");
    Ok(true)
}

/// All that has to be moved, in order; whatever was moved already stays.
fn put_in_place(data_dir: &Path, plan: &Plan) -> io::Result<()> {
    let aside = data_dir.join(&plan.aside);
    fs::create_dir_all(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o700))?;
    while let Some((from, to)) = next(data_dir, plan) {
        fs::rename(from, to)?;
        // One after the other on the disk as well.
        for folder in [data_dir, &aside, &data_dir.join(READY)] {
            kedge_base::sync_dir(folder)?;
        }
    }
    Ok(())
}

/// The next thing to be moved. It follows from what is where.
fn next(data_dir: &Path, plan: &Plan) -> Option<(PathBuf, PathBuf)> {
    let (ready, aside) = (data_dir.join(READY), data_dir.join(&plan.aside));
    let there = |path: &Path| fs::symlink_metadata(path).is_ok();
    // What is in place of something new is old only for as long as that is not there.
    let old = plan
        .away
        .iter()
        .find(|name| there(&data_dir.join(name)) && (!plan.fresh.contains(name) || there(&ready.join(name))));
    if let Some(name) = old {
        // When the old one is aside already, somebody has made another meanwhile: a command that wrote a
        // file. It is neither the old state nor the new one.
        let mut free = (0..).map(|n| if n == 0 { name.clone() } else { format!("{name}.{n}") });
        let to = free.find(|name| !there(&aside.join(name))).unwrap_or_else(|| name.clone());
        return Some((data_dir.join(name), aside.join(to)));
    }
    let new = plan.fresh.iter().find(|name| there(&ready.join(name)))?;
    Some((ready.join(new), data_dir.join(new)))
}

/// Nothing is left to be done; what is deleted piece by piece must not look like a plan.
fn close(data_dir: &Path) -> io::Result<()> {
    let built = data_dir.join(BUILT);
    match fs::remove_dir_all(&built) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(data_dir.join(READY), &built)?;
    kedge_base::sync_dir(data_dir)?;
    fs::remove_dir_all(built)
}

/// Everything below a folder is on the disk.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    kedge_base::sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let cluster = r#"{"clusterId":"c","podCidrs":["10.1.0.0/16"],"serviceCidrs":["10.2.0.0/16"],
            "kubernetesService":["10.2.0.1"],"clusterDns":["10.2.0.10"],"clusterDomain":"new.local","settings":{}}"#;
        Plan {
            aside: "before".into(),
            away: ["store", "pki", "api-servers.json", "kubelet"].map(String::from).into(),
            fresh: ["pki", "store"].map(String::from).into(),
            settings: [("cluster-domain".to_owned(), "new.local".to_owned())].into(),
            cluster: serde_json::from_str(cluster).unwrap(),
        }
    }

    fn config(data_dir: &Path) -> Config {
        let mut given = Settings::default();
        given.insert("data-dir", data_dir.display().to_string());
        Config::load(Some(&data_dir.with_extension("yaml")), &given).unwrap()
    }

    /// The old state, and the new one beside it.
    fn prepare(data_dir: &Path) {
        fs::create_dir_all(data_dir.join("store/wal")).unwrap();
        fs::create_dir_all(data_dir.join("pki")).unwrap();
        for name in ["store/wal/1", "pki/ca.key", "api-servers.json"] {
            fs::write(data_dir.join(name), "old").unwrap();
        }
        let built = begin(data_dir).unwrap();
        fs::create_dir_all(built.join("store/wal")).unwrap();
        fs::create_dir_all(built.join("pki")).unwrap();
        for name in ["store/wal/1", "pki/ca.key"] {
            fs::write(built.join(name), "new").unwrap();
        }
    }

    fn read(path: PathBuf) -> Option<String> {
        fs::read_to_string(path).ok()
    }

    fn is_new(data_dir: &Path) {
        for (name, here, aside) in [
            ("store/wal/1", Some("new"), Some("old")),
            ("pki/ca.key", Some("new"), Some("old")),
            ("api-servers.json", None, Some("old")),
        ] {
            assert_eq!(read(data_dir.join(name)).as_deref(), here, "{name}");
            assert_eq!(read(data_dir.join("before").join(name)).as_deref(), aside, "{name}");
        }
        assert!(!data_dir.join(READY).exists() && !data_dir.join(BUILT).exists());
    }

    #[test]
    fn until_the_one_rename_nothing_has_happened() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        prepare(&data);
        // Cut off just before the rename.
        fs::write(data.join(BUILT).join(PLAN), serde_json::to_vec(&plan()).unwrap()).unwrap();
        let mut config = config(&data);
        assert!(!finish(&mut config).unwrap());
        for name in ["store/wal/1", "pki/ca.key", "api-servers.json"] {
            assert_eq!(read(data.join(name)).as_deref(), Some("old"), "{name}");
        }
        assert_eq!(begin(&data).unwrap().read_dir().unwrap().count(), 0, "the next attempt begins anew");
    }

    /// The machine goes down before, between and after all steps behind the rename.
    #[test]
    fn whatever_was_moved_already_the_next_start_moves_the_rest() {
        let mut cuts = 0;
        for cut in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            prepare(&data);
            commit(&data, &plan()).unwrap();
            fs::create_dir_all(data.join("before")).unwrap();
            let mut done = 0;
            while done < cut
                && let Some((from, to)) = next(&data, &plan())
            {
                fs::rename(from, to).unwrap();
                done += 1;
            }
            // A command looks for the node meanwhile and leaves something behind.
            for name in ["store", "pki"].into_iter().filter(|name| !data.join(name).exists()) {
                fs::create_dir(data.join(name)).unwrap();
                fs::write(data.join(name).join("stray"), "neither").unwrap();
            }
            let mut config = config(&data);
            assert!(finish(&mut config).unwrap(), "cut {cut}");
            is_new(&data);
            assert!(!data.join("store/stray").exists() && !data.join("pki/stray").exists());
            assert_eq!(config.cluster_domain, "new.local");
            let file = read(config.file.clone()).unwrap();
            assert!(file.contains("cluster-domain: \"new.local\""), "{file}");
            assert!(!finish(&mut config).unwrap(), "there is nothing left to be done");
            cuts = cut;
            if done < cut {
                break;
            }
        }
        assert_eq!(cuts, 6, "three go, two come, and nothing more");
    }

    /// After the last rename: the folder that is deleted piece by piece counts for nothing.
    #[test]
    fn what_is_left_of_the_plan_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        prepare(&data);
        commit(&data, &plan()).unwrap();
        let mut config = config(&data);
        assert!(finish(&mut config).unwrap());
        fs::create_dir_all(data.join(BUILT)).unwrap();
        fs::write(data.join(BUILT).join(PLAN), serde_json::to_vec(&plan()).unwrap()).unwrap();
        assert!(!finish(&mut config).unwrap());
        assert_eq!(read(data.join("store/wal/1")).as_deref(), Some("new"));
    }
}
