//! `kedge uninstall`: take everything away again and check that nothing is left.
//!
//! Only what is Kedge's is touched: processes whose arguments name this node's folders and what they
//! started, mounts below these folders, this node's bridge and nftables table. Folders are deleted only
//! when nothing is mounted below them any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use kedge_cluster::{Admitted, Role};

use super::others::{self, Standing};
use super::take_down::{self, mounts_below, own_mounts, own_roots, unescape};
use super::{join, require_root};
use crate::cli::UninstallArgs;
use crate::config::{Config, DEFAULT_FILE};
use crate::failure::Failure;
use crate::origin::{self, Origin};
use crate::output::{self, Step};
use crate::process;
use crate::{service, upgrade};

/// Remove the node; exit code 1 with a list when something is left.
pub(crate) fn run(config: &Config, args: &UninstallArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    if !args.force && !args.keep_data {
        refuse_while_counted_on(config)?;
    }
    let mut step = Step::begin("stopping kedge");
    // Every step is tried even when an earlier one failed: a second call should find little to do.
    let mut failed: Vec<String> = Vec::new();
    let mut note = |result: anyhow::Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{error:#}"));
        }
    };
    note(service::stop(config).map(|_| ()));
    if service::systemd_runs() {
        note(service::uninstall(config));
    }
    take_down::run_noting(config, &mut step, &mut note);
    step.update("removing files");
    for path in owned_paths(config, args.keep_data) {
        note(remove(&path));
    }
    if config.log_dir != Path::new("/var/log") {
        // Only when empty: others may write there too.
        let _ = fs::remove_dir(&config.log_dir);
    }

    let left = left_over(config, args.keep_data);
    step.abandon();
    if left.is_empty() && failed.is_empty() {
        let kept = if args.keep_data {
            format!("; the data stays in {}", config.data_dir.display())
        } else {
            String::new()
        };
        output::confirm(&format!("kedge was removed{kept}"));
        let data = args.keep_data.then_some(&config.data_dir);
        output::report("removed", &serde_json::json!({ "node": config.node_name, "keptData": data }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("kedge was not removed completely");
    for reason in failed {
        text.push_str(&format!("\n  failed: {reason}"));
    }
    for thing in left {
        text.push_str(&format!("\n  left: {thing}"));
    }
    text.push_str("\nrun kedge uninstall again; what a process still uses goes with a reboot");
    Err(Failure::Failed(anyhow::anyhow!(text)))
}

/// With the data of a node its cluster may lose its majority, or all that it holds.
fn refuse_while_counted_on(config: &Config) -> Result<(), Failure> {
    let names = counted_on_by(config)?;
    if names.is_empty() {
        return Ok(());
    }
    let name = &config.node_name;
    Err(Failure::Failed(anyhow::anyhow!(
        "this node is in a cluster with {}, which would count on it and on its copy of the data for ever; run \
         kedge leave first, which moves pods away and tells the others, or uninstall with --force: what only this \
         node holds is lost then, and if the others have no majority without it they stand still. Afterwards run \
         kedge remove-node {name} --force on one of their control-plane nodes",
        names.join(", ")
    )))
}

fn counted_on_by(config: &Config) -> anyhow::Result<Vec<String>> {
    // The cluster was told; only the end of kedge leave was cut off.
    if join::was_told(config) {
        return Ok(Vec::new());
    }
    let worker = Admitted::read(&config.pki_dir())
        .is_ok_and(|joined| joined.is_some_and(|joined| joined.facts.role == Role::Worker));
    let asked = if service::running(config)?.is_some() { others::of(config).ok() } else { None };
    if let Some(standing) = asked {
        return Ok(standing.names());
    }
    // It holds no copy, and nobody can be told.
    if worker {
        return Ok(Vec::new());
    }
    // One that runs without saying anything has its datastore open.
    let ran = service::stop(config)?;
    // Of keys that cannot be read nobody has any use.
    let names = others::on_disk(config).map(Standing::names).unwrap_or_default();
    if ran && !names.is_empty() {
        service::start(config)?;
    }
    Ok(names)
}

/// Files and folders that go, in order.
fn owned_paths(config: &Config, keep_data: bool) -> Vec<PathBuf> {
    let mut paths = vec![config.run_dir.clone(), config.log_file()];
    if !keep_data {
        paths.push(config.data_dir.clone());
        if config.made_file() {
            paths.push(config.file.clone());
        }
        if config.file == Path::new(DEFAULT_FILE) {
            // Only when empty; see `remove`.
            paths.extend(config.file.parent().map(Path::to_path_buf));
        }
    }
    // The installed binary goes when it is the one that runs here, no package owns it and nobody else
    // uses it.
    let installed = origin::binary();
    if matches!(origin::origin(), Origin::Own)
        && std::env::current_exe().is_ok_and(|own| own == installed)
        && !other_nodes(config, &installed)
    {
        paths.push(upgrade::previous(&installed));
        paths.push(installed);
    }
    paths
}

/// Another node of this machine uses the same binary.
fn other_nodes(config: &Config, binary: &Path) -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let running = process::table().into_values().any(|entry| {
        let mut words = entry.command.split(' ');
        entry.process.pid != own
            && words.next().map(Path::new) == Some(binary)
            && entry.command.split(' ').any(|word| word == "run")
    });
    let units = fs::read_dir("/etc/systemd/system").map(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(entry.path()) != service::own_unit_file(config)
                && (name == "kedge.service" || (name.starts_with("kedge-") && name.ends_with(".service")))
        })
    });
    running || units.unwrap_or(false)
}

/// Delete a file, or a folder with all that is in it; never across a mount.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_dir() => fs::remove_file(path),
        Ok(_) if Some(path) == Path::new(DEFAULT_FILE).parent() => match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        },
        Ok(_) => {
            let table = fs::read_to_string("/proc/self/mountinfo").context("read the table of mounts")?;
            let mounts = mounts_below(&table, &[&path.to_path_buf()]);
            if let Some(mount) = mounts.first() {
                anyhow::bail!("{} is still mounted, so {} was not deleted", mount.display(), path.display());
            }
            remove_folder(path, &table)
        }
    };
    result.with_context(|| format!("remove {}", path.display()))
}

/// A folder that is itself a mount point is emptied, not removed.
fn remove_folder(path: &Path, mountinfo: &str) -> io::Result<()> {
    let is_mount = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|field| Path::new(&unescape(field)) == path);
    if !is_mount {
        return fs::remove_dir_all(path);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What an uninstalled machine must not have.
fn left_over(config: &Config, keep_data: bool) -> Vec<String> {
    let mut left: Vec<String> = own_roots(config).iter().map(|pid| format!("process {pid}")).collect();
    left.extend(own_mounts(config).iter().map(|mount| format!("mount {}", mount.display())));
    if Path::new("/sys/class/net").join(&config.bridge_name).exists() {
        left.push(format!("network device {}", config.bridge_name));
    }
    let mut paths = vec![config.run_dir.clone(), config.log_file()];
    paths.extend(service::own_unit_file(config));
    if !keep_data {
        if config.made_file() {
            paths.push(config.file.clone());
        }
        let emptied = fs::read_dir(&config.data_dir).is_ok_and(|mut entries| entries.next().is_none());
        if !emptied {
            paths.push(config.data_dir.clone());
        }
    }
    left.extend(paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_with_their_content_and_twice_is_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        fs::create_dir_all(folder.join("deep/er")).unwrap();
        fs::write(folder.join("deep/file"), "x").unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }
}
