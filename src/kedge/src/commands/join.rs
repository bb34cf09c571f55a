//! `kedge join` and `kedge leave`: this node becomes part of another cluster, or a fresh single node again.
//!
//! Joining first asks and changes nothing here until the answer is complete and on the disk. Then it
//! replaces this node's state in steps of which each may be repeated: a join that was cut off anywhere is
//! finished by the same command, or undone by `leave`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kedge_cluster::{Admitted, Clock, JoinString, LocalState, Role, Staging};
use serde_json::json;

use super::others::{self, Standing};
use super::status::wait_started;
use super::{install, require_root, take_down};
use crate::admin::block_on;
use crate::cli::{JoinArgs, LeaveArgs};
use crate::config::{Config, Settings};
use crate::control::{self, CallError};
use crate::failure::Failure;
use crate::inspect::Moment;
use crate::node::{control_plane, left, ops};
use crate::output::{self, Step};
use crate::status::{self, Status};
use crate::{preflight, service, switch};

const SOON: Duration = Duration::from_secs(30);
const LEFT: Duration = Duration::from_secs(240);

/// Join, and return when the node is Ready in its new cluster.
pub(crate) fn join(config: &Config, given: &Settings, args: &JoinArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    // A restore that was cut off is finished before anything takes its place.
    let mut config = config.clone();
    switch::finish(&mut config)?;
    let config = &config;
    let string: JoinString =
        args.string.parse().map_err(|error: kedge_cluster::Error| Failure::Usage(error.into()))?;
    let problems = preflight::check(config, Moment::Join);
    if !problems.is_empty() {
        return Err(preflight::refusal(&problems).into());
    }
    let staging = Staging::new(config.data_dir.join("join"));
    // An answer that is on the disk already: a former attempt was cut off after it.
    if staging.admitted()?.is_none() {
        local_state(config)?.check(args.force)?;
    }
    let mut step = Step::begin(&format!("asking {} to join", string.server));
    let result = replace(config, given, &string, args, &staging, &mut step);
    match result {
        Ok(status) => {
            step.done(&format!("node {} has joined the cluster and {}", status.node, status.how_it_is_up()));
            output::report("joined", &json!({ "node": status.node, "worker": args.worker }));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

fn replace(
    config: &Config,
    given: &Settings,
    string: &JoinString,
    args: &JoinArgs,
    staging: &Staging,
    step: &mut Step,
) -> anyhow::Result<Status> {
    let facts =
        crate::node::facts::facts(config, if args.worker { Role::Worker } else { config.role }, string)?;
    fs::create_dir_all(config.pki_dir()).context("create the folder of keys")?;
    let clock =
        Arc::new(Clock::open(&config.pki_dir().join("time-floor")).context("open the clock's floor")?);
    block_on(kedge_cluster::join(string, &facts, staging, &clock))
        .map_err(Failure::into_error)?
        .context("join the cluster")?;

    step.update("admitted; replacing this node's state");
    take_down::run(config)?;
    // Unless a former attempt came as far as opening the store with the new keys: the group counts on what it
    // holds since.
    if !(staging.is_installed() && control_plane::store_was_opened(config)) {
        remove(&config.store_dir())?;
    }
    remove(&config.kubeconfig())?;
    staging.install(&config.pki_dir()).context("put the cluster's keys in place")?;
    remove(&leaving(config))?;
    install::for_next_start(config, given)?;

    step.update("starting");
    let status = service::start(config)
        .and_then(|_| wait_started(config, args.ready.limit(), step))
        .map_err(|error| {
            anyhow::anyhow!(
                "{error:#}\nthe node was admitted: when the cause is gone, kedge start goes on with it; kedge leave \
                 takes it back"
            )
        })?;
    if !status.is_up() {
        anyhow::bail!(
            "the node was admitted but is not Ready after {} s\n{}{}\nit goes on trying; see kedge status and the \
             log ({}), or take it back with kedge leave",
            args.ready.timeout,
            status.to_short(),
            service::log_tail(config, 10),
            service::log_place(config)
        );
    }
    staging.finish(&config.pki_dir()).context("tidy up after joining")?;
    Ok(status)
}

/// What joining would replace, from the running node or from what a stopped one left.
fn local_state(config: &Config) -> anyhow::Result<LocalState> {
    let other_nodes = match others::of(config)? {
        Standing::With(names) => names,
        Standing::Removed => anyhow::bail!(status::REMOVED),
    };
    // Refused for those alone; and a worker does not see what its cluster holds.
    if !other_nodes.is_empty() {
        return Ok(LocalState { other_nodes, ..LocalState::default() });
    }
    let socket = config.status_socket();
    let objects = match control::call(&socket, "GET", ops::OBJECTS_OF_USERS, &(), SOON) {
        Ok(objects) => objects,
        Err(CallError::NotRunning) => pods_left(&config.data_dir, &config.log_dir),
        Err(error) => return Err(error).context("ask this node what was made on it"),
    };
    Ok(LocalState { other_nodes, objects })
}

/// Pods of a stopped node. The kubelet's folders have their uids as names, those of their logs namespaces too,
/// which tell Kedge's own.
fn pods_left(data_dir: &Path, log_dir: &Path) -> Vec<String> {
    let names = |folder: PathBuf| -> Vec<String> {
        let here = fs::read_dir(folder).into_iter().flatten().flatten();
        here.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
    };
    let logs = names(log_dir.join("pods"));
    let mut left = Vec::new();
    for uid in names(data_dir.join("kubelet/pods")) {
        let log = logs.iter().find_map(|log| log.strip_suffix(&uid)?.strip_suffix('_')?.split_once('_'));
        match log {
            Some(("kube-system", _)) => {}
            Some((namespace, name)) => left.push(format!("Pod {namespace}/{name} of the stopped node")),
            None => left.push(format!("Pod {uid} of the stopped node")),
        }
    }
    left.sort();
    left
}

/// Leave the cluster: drained, off its books, and a fresh single node again.
pub(crate) fn leave(config: &Config, args: &LeaveArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut config = config.clone();
    switch::finish(&mut config)?;
    let config = &config;
    let staging = Staging::new(config.data_dir.join("join"));
    let mut step = Step::begin("moving pods away and leaving the cluster");
    if !args.force {
        others::wait_until_it_serves(config, &mut step);
    }
    // A node that cannot tell whether there are others may be told: --force takes the operator's word.
    if !args.force
        && Admitted::read(&config.pki_dir()).is_ok_and(|joined| joined.is_none())
        && staging.admitted()?.is_none()
        && !was_told(config)
        && matches!(others::of(config), Ok(Standing::With(names)) if names.is_empty())
    {
        step.abandon();
        return Err(Failure::Failed(anyhow::anyhow!(
            "this node is in no cluster with others; kedge uninstall removes it"
        )));
    }
    let result = depart(config, args, &staging, &mut step);
    match result {
        Ok(()) => {
            step.done("this node has left the cluster and is a single node again");
            install::addons_of_new_cluster(config, &args.without, Duration::from_secs(args.timeout))?;
            output::report("left", &json!({ "node": config.node_name }));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

/// The authority of the cluster that was told: a leave that is cut off from here on goes on when it is
/// repeated, and tells nobody.
fn leaving(config: &Config) -> PathBuf {
    config.data_dir.join("leaving")
}

/// Whether this node is still what it was when the cluster was told. If it became a node of its own since, the
/// mark means nothing any more.
pub(super) fn was_told(config: &Config) -> bool {
    let Ok(told) = fs::read(leaving(config)) else { return false };
    match fs::read(config.pki_dir().join("ca.crt")) {
        Ok(authority) => authority == told,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn depart(config: &Config, args: &LeaveArgs, staging: &Staging, step: &mut Step) -> anyhow::Result<()> {
    if !was_told(config) {
        tell(config, args, staging, step)?;
        let authority = config.pki_dir().join("ca.crt");
        let authority = fs::read(&authority).with_context(|| format!("read {}", authority.display()))?;
        let mark = leaving(config);
        kedge_base::write_atomic(&mark, &authority, 0o600)
            .with_context(|| format!("write {}", mark.display()))?;
    }
    step.update("making this a single node again");
    take_down::run(config)?;
    // Before anything goes: a machine that comes back halfway would join again by its file.
    tell_left(config)?;
    for path in [config.store_dir(), config.kubeconfig()] {
        remove(&path)?;
    }
    left::discard_keys(&config.data_dir)?;
    for path in [
        config.data_dir.join("api-servers.json"),
        // The addons that the configuration names are the new cluster's too.
        config.first_start_mark(),
        config.data_dir.join("kubelet"),
    ] {
        remove(&path)?;
    }
    staging.finish(&config.pki_dir()).context("tidy up")?;
    remove(&leaving(config))?;
    service::start(config)?;
    let status = wait_started(config, Duration::from_secs(args.timeout), step)?;
    if !status.is_up() {
        anyhow::bail!("the single node is not Ready after {} s\n{}", args.timeout, status.to_short());
    }
    Ok(())
}

/// Says which settings in the node's own files are still those of the cluster that it is no part of any more.
pub(super) fn tell_left(config: &Config) -> anyhow::Result<()> {
    let keys = left::keep(config)?;
    if !keys.is_empty() {
        output::note(&format!(
            "{} in {} is of the cluster that was left: passed over until it is changed",
            keys.join(" and "),
            config.file.display()
        ));
    }
    Ok(())
}

/// Moves the pods away and has the others take this node off.
fn tell(config: &Config, args: &LeaveArgs, staging: &Staging, step: &mut Step) -> anyhow::Result<()> {
    let wish = ops::Leave { force: args.force };
    let tell = |text: &str| step.update(text);
    match control::call_and_tell::<String>(&config.status_socket(), "/leave", &wish, LEFT, tell) {
        Ok(_) => {}
        // A refusal is an answer. But while a join waits to be finished, the node that answers here may still
        // be the single one from before.
        Err(CallError::Unsafe(why))
            if !args.force || staging.admitted()?.is_none() || staging.is_installed() =>
        {
            anyhow::bail!(
                "leave the cluster: {why}{}",
                if args.force {
                    "\n--force is for a cluster that cannot be reached; to wipe this node on purpose, whatever \
                     becomes of the others, run kedge reset --force"
                } else {
                    ""
                }
            );
        }
        Err(error) if args.force => output::complain(&format!(
            "the cluster was not told ({error}); on one of its control-plane nodes run: kedge remove-node {}",
            config.node_name
        )),
        Err(error) => {
            return Err(anyhow::Error::from(error).context(
                "leave the cluster (--force goes without telling it and without moving pods away)",
            ));
        }
    }
    Ok(())
}

/// A file or a folder; what is not there is no error.
fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_stopped_node_are_told_from_kedges_own() {
        let (data, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(pods_left(data.path(), logs.path()).is_empty());
        for uid in ["u-1", "u-2", "u-3"] {
            fs::create_dir_all(data.path().join("kubelet/pods").join(uid)).unwrap();
        }
        for log in ["kube-system_dns-x_u-1", "shop_web_u-2", "kube-system_gone_u-4"] {
            fs::create_dir_all(logs.path().join("pods").join(log)).unwrap();
        }
        assert_eq!(
            pods_left(data.path(), logs.path()),
            ["Pod shop/web of the stopped node", "Pod u-3 of the stopped node"]
        );
    }
}
