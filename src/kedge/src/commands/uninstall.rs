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
use crate::config::{self, Config};
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
    for dir in config.settings_dirs() {
        note(remove_empty(&dir));
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
        let written = if args.keep_data { Vec::new() } else { written_by_users(config) };
        if !written.is_empty() {
            let list: Vec<String> = written.iter().map(|file| file.display().to_string()).collect();
            output::confirm(&format!(
                "what you wrote stays, and a later install reads it: {}; delete it if it is not needed",
                list.join(", ")
            ));
        }
        let data = args.keep_data.then_some(&config.data_dir);
        output::report(
            "removed",
            &serde_json::json!({ "node": config.node_name, "keptData": data, "keptFiles": written }),
        );
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
    Err(Failure::Failed(anyhow::anyhow!(refusal(&config.node_name, &names.join(", "), is_worker(config)))))
}

/// A worker has no vote and no copy of the data.
fn refusal(name: &str, others: &str, worker: bool) -> String {
    let (counts, costs) = if worker {
        ("keep its Node and wait for its pods", "with --force: its pods end without being moved")
    } else {
        (
            "count on it and on its copy of the data for ever",
            "with --force: what only this node holds is lost then, and if the others have no majority without it they \
             stand still",
        )
    };
    format!(
        "this node is in a cluster with {others}, which would {counts}; run kedge leave first, which moves pods away \
         and tells the others, or uninstall {costs}. Afterwards run kedge remove-node {name} --force on one of their \
         control-plane nodes"
    )
}

fn is_worker(config: &Config) -> bool {
    Admitted::read(&config.pki_dir())
        .is_ok_and(|joined| joined.is_some_and(|joined| joined.facts.role == Role::Worker))
}

fn counted_on_by(config: &Config) -> anyhow::Result<Vec<String>> {
    // The cluster was told; only the end of kedge leave was cut off.
    if join::was_told(config) {
        return Ok(Vec::new());
    }
    let asked = if service::running(config)?.is_some() { others::of(config).ok() } else { None };
    if let Some(standing) = asked {
        return Ok(standing.names());
    }
    // It holds no copy, and nobody can be told.
    if is_worker(config) {
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

/// Settings, logins and what else the operator put beside them: not Kedge's to delete.
fn written_by_users(config: &Config) -> Vec<PathBuf> {
    // A further node of the machine reads the first one's.
    if !config.owns_file() {
        return Vec::new();
    }
    let filled = |file: &PathBuf| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0);
    let mut files: Vec<PathBuf> = config::files(&config.file).into_iter().filter(filled).collect();
    let dirs = config.settings_dirs();
    for dir in &dirs {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        // A package's file is the package's.
        let package = matches!(origin::origin(), Origin::Package { .. }).then(|| dir.join("environment"));
        files.extend(entries.filter(|path| !dirs.contains(path) && Some(path) != package.as_ref()));
    }
    files.sort();
    files.dedup();
    files
}

/// Delete a folder if nothing is in it.
fn remove_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Delete a file, or a folder with all that is in it; never across a mount.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_dir() => fs::remove_file(path),
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

    #[test]
    fn a_worker_is_not_told_of_votes_and_copies() {
        let (worker, voter) = (refusal("n4", "n1, n2", true), refusal("n3", "n1, n2", false));
        for text in [&worker, &voter] {
            assert!(text.contains("cluster with n1, n2") && text.contains("run kedge leave first"), "{text}");
            assert!(text.contains("--force") && text.contains("kedge remove-node n"), "{text}");
        }
        assert!(voter.contains("copy of the data") && voter.contains("majority"));
        assert!(!worker.contains("copy") && !worker.contains("majority"), "{worker}");
    }

    #[test]
    fn what_users_wrote_stays_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let drop_ins = dir.path().join("config.yaml.d");
        fs::create_dir(&drop_ins).unwrap();
        let config = Config::load(Some(&file), &config::Settings::default()).unwrap();
        assert!(config.settings_dirs().is_empty(), "a file elsewhere is in its user's folder");
        assert_eq!(written_by_users(&config), Vec::<PathBuf>::new());
        fs::write(&file, "port: 7443\n").unwrap();
        fs::write(drop_ins.join("a.yaml"), "node-labels: {a: b}\n").unwrap();
        assert_eq!(written_by_users(&config), [file, drop_ins.join("a.yaml")]);
        remove_empty(&drop_ins).unwrap();
        assert!(drop_ins.exists());
        fs::remove_file(drop_ins.join("a.yaml")).unwrap();
        remove_empty(&drop_ins).unwrap();
        remove_empty(&drop_ins).unwrap();
        assert!(!drop_ins.exists());
    }
}
