//! `kedge reset`: a fresh single node with the same configuration. What the cluster held is gone; snapshots,
//! and folders that users fill, stay.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_cluster::Admitted;
use serde_json::json;

use super::join::tell_left;
use super::others::{self, Standing};
use super::status::wait_started;
use super::{confirm, install, require_root, take_down, uninstall};
use crate::cli::ResetArgs;
use crate::config::Config;
use crate::control;
use crate::failure::Failure;
use crate::node::{left, ops};
use crate::output::{self, Step};
use crate::service;

/// Telling the others must not hold up a reset.
const TOLD: Duration = Duration::from_secs(60);
/// What stays in the data folder: copies of the cluster, images (Kedge's own and those to import), manifests
/// and addons that users put there, which cluster the node has left, and beside the keys that are gone by then the time
/// that was seen last.
const KEPT: [&str; 7] = ["snapshots", "images", "manifests", "registries", "addons", left::FILE, "pki"];

/// Ask, take everything down, delete, start, wait until the node is Ready.
pub(crate) fn run(config: &Config, args: &ResetArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let others = others::of(config).map(Standing::names).unwrap_or_default();
    if !others.is_empty() && !args.force {
        return Err(Failure::Failed(anyhow::anyhow!(
            "this node is in a cluster with {}; run kedge leave, which moves pods away and tells the others, or \
             reset with --force",
            others.join(", ")
        )));
    }
    let question = format!(
        "Reset node {}? All pods, volumes and objects of its cluster are deleted from {}; snapshots stay.",
        config.node_name,
        config.data_dir.display()
    );
    if !confirm(&question, args.asked.yes)? {
        output::confirm("nothing was changed");
        output::report("unchanged", &json!({}));
        return Ok(ExitCode::from(1));
    }
    let mut step = Step::begin("resetting this node");
    if !others.is_empty() {
        step.update("telling the others");
        let wish = ops::Leave { force: true };
        if let Err(error) = control::call::<String>(&config.status_socket(), "POST", "/leave", &wish, TOLD) {
            output::note(&format!(
                "the cluster was not told ({error}); on one of its control-plane nodes run: kedge remove-node {} --force",
                config.node_name
            ));
        }
    }
    match replace(config, args, !others.is_empty(), &mut step) {
        Ok(()) => {
            step.done(&format!("node {} is Ready again, and empty", config.node_name));
        }
        Err(error) => {
            step.abandon();
            return Err(Failure::Failed(error));
        }
    }
    install::addons_of_new_cluster(config, &args.without, args.ready.limit())?;
    output::report("reset", &json!({ "node": config.node_name }));
    Ok(ExitCode::SUCCESS)
}

fn replace(config: &Config, args: &ResetArgs, with_others: bool, step: &mut Step) -> anyhow::Result<()> {
    step.update("stopping and ending containers");
    take_down::run(config)?;
    step.update("deleting the cluster's data");
    let was_member = Admitted::read(&config.pki_dir()).is_ok_and(|joined| joined.is_some());
    if was_member || with_others {
        tell_left(config)?;
    }
    empty(&config.data_dir, &KEPT)?;
    step.update("starting");
    service::start(config)?;
    let status = wait_started(config, args.ready.limit(), step)?;
    if !status.is_up() {
        anyhow::bail!(
            "the node was emptied but is not Ready after {} s\n{}it goes on trying; see kedge status and the log ({})",
            args.ready.timeout,
            status.to_short(),
            service::log_place(config)
        );
    }
    Ok(())
}

/// Deletes all but `kept`, the keys first.
fn empty(data_dir: &Path, kept: &[&str]) -> anyhow::Result<()> {
    left::discard_keys(data_dir)?;
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", data_dir.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", data_dir.display()))?;
        if kept.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        uninstall::remove(&entry.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_the_clocks_floor_stay() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["pki", "store/wal", "snapshots", "kubelet/pods/x", "images", "join"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("pki/time-floor"), "1800000000\n").unwrap();
        fs::write(dir.path().join("pki/ca.key"), "key").unwrap();
        fs::write(dir.path().join("snapshots/a.snapshot"), "x").unwrap();
        fs::write(dir.path().join("kubeconfig"), "x").unwrap();
        empty(dir.path(), &KEPT).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["images", "pki", "snapshots"]);
        assert_eq!(fs::read_to_string(dir.path().join("pki/time-floor")).unwrap(), "1800000000\n");
        assert!(!dir.path().join("pki/ca.key").exists());
        empty(&dir.path().join("none"), &KEPT).unwrap();
    }
}
