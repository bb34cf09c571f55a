//! `kedge snapshot restore`: this node becomes the only one of a cluster with what the snapshot holds.
//!
//! Everything is built beside the present state first; then one rename puts it in place (see
//! [`crate::switch`]). What was there is kept. The new datastore's revision is above every one that a client of
//! the old one can have seen, and every object gets it, so nothing that watches or holds a version sees time go
//! backwards.
//!
//! Not brought back: the datastore's members and the control-plane nodes in the cluster's book, because the
//! group begins anew with this node; and join tokens, because one that was used since would be good again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use kedge_cluster::{Admitted, NodeId, NodeRecord, Replica, Role};
use kedge_store::backup::{self, Inspected};
use serde_json::json;

use super::snapshot::describe;
use super::status::wait_started;
use super::{confirm, install, require_root, take_down};
use crate::cli::RestoreArgs;
use crate::config::{Config, Settings, joined};
use crate::failure::Failure;
use crate::inspect::Moment;
use crate::node::{self, ops, shared};
use crate::output::{self, Step};
use crate::snapshot::{self, Verified};
use crate::status::Status;
use crate::switch::{self, Plan};
use crate::{control, preflight, service};

/// Where it is not known how far the old datastore came, clients may have seen so many more revisions:
/// at a thousand changes a second a week and a half.
const UNKNOWN: u64 = 1_000_000_000;

/// Verify, ask, replace, start, wait until the node is Ready.
pub(crate) fn run(config: &Config, given: &Settings, args: &RestoreArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut config = config.clone();
    switch::finish(&mut config)?;
    let config = &config;
    let joined = Admitted::read(&config.pki_dir()).ok().flatten();
    if joined.as_ref().is_some_and(|joined| joined.facts.role == Role::Worker) {
        return Err(Failure::Failed(anyhow::anyhow!(
            "this node is a worker; restore on a control-plane node, or run kedge leave first"
        )));
    }
    let file = snapshot::find(&config.snapshot_dir(), &args.file)?;
    let problems = preflight::check(config, Moment::Install);
    if !problems.is_empty() {
        return Err(preflight::refusal(&problems).into());
    }
    let verified = super::snapshot::read_whole(&file)?;
    output::write(&describe(&file, &verified));
    let question = format!(
        "Replace what this node ({}) has by this snapshot? Later changes are gone; other control-plane nodes \
         must be stopped and join again.",
        config.node_name
    );
    if !confirm(&question, args.asked.yes)? {
        output::confirm("nothing was changed");
        output::report("unchanged", &json!({}));
        return Ok(ExitCode::from(1));
    }
    let (config, given) = with_settings(config, given, &verified)?;
    let mut step = Step::begin("stopping kedge");
    match replace(&config, &given, &verified, args, &mut step) {
        Ok((status, done)) => {
            step.done(&format!(
                "restored {} objects at revision {}; node {} {}\nthe former state is in {}; remove it when \
                 you do not need it any more",
                done.restored.objects,
                done.restored.revision,
                status.node,
                status.how_it_is_up(),
                done.aside.display()
            ));
            say_others(&config, &done);
            output::report(
                "restored",
                &json!({
                    "node": status.node,
                    "objects": done.restored.objects,
                    "revision": done.restored.revision,
                    "aside": done.aside,
                    "dropped": done.dropped,
                }),
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

/// The cluster's settings go with its objects: Services have addresses of its range.
fn with_settings(
    config: &Config,
    given: &Settings,
    verified: &Verified,
) -> Result<(Config, Settings), Failure> {
    let (mut config, mut given) = (config.clone(), given.clone());
    let before = config.clone();
    shared::adopt(&mut config, &verified.header.cluster)?;
    for (key, old, new) in [
        ("pod-cidr", joined(&before.pod_cidrs), joined(&config.pod_cidrs)),
        ("service-cidr", joined(&before.service_cidrs), joined(&config.service_cidrs)),
        ("cluster-dns", before.cluster_dns.to_string(), config.cluster_dns.to_string()),
        ("cluster-domain", before.cluster_domain, config.cluster_domain.clone()),
    ] {
        if old == new {
            continue;
        }
        if given.get(key).is_some() {
            let what = format!("--{key} {old}: the snapshot's cluster has {new}");
            return Err(Failure::usage(what, "leave the flag out"));
        }
        if !config.owns_file() {
            let what =
                format!("the snapshot's cluster has {key} {new}, and this node no file to write it to");
            return Err(Failure::usage(what, "name one with --config"));
        }
        output::say(&format!("{key} becomes {new} (was {old})"));
        given.insert(key, new);
    }
    Ok((config, given))
}

/// What was done.
struct Done {
    restored: backup::Summary,
    aside: PathBuf,
    /// Control-plane nodes that were in the cluster.
    dropped: BTreeSet<String>,
}

fn replace(
    config: &Config,
    given: &Settings,
    verified: &Verified,
    args: &RestoreArgs,
    step: &mut Step,
) -> anyhow::Result<(Status, Done)> {
    let present = |name: &str| {
        kedge_base::read_optional(&config.pki_dir().join(name)).context("read the cluster's keys")
    };
    let ca = present("ca.crt")?;
    // The authority may have been replaced since; the key that signs tokens is the cluster's own too.
    let mut same = false;
    for name in ["ca.crt", "sa.key"] {
        let own = present(name)?;
        same |= own.is_some() && own.as_deref() == verified.keys.get(name).map(Vec::as_slice);
    }
    let ran = if same || ca.is_none() {
        service::stop(config)?
    } else {
        // Pods of another cluster have no place in this one.
        take_down::run(config)?;
        true
    };
    step.update("building the datastore");
    let mut config = config.clone();
    let done = match build(&config, given, verified, same) {
        Ok(done) => done,
        Err(error) => {
            let hint = if ran && same { service::start(&config).err() } else { None };
            if let Some(failed) = hint {
                output::complain(&format!("kedge was not started again: {failed:#}"));
            }
            return Err(error.context("the present state was left as it is"));
        }
    };
    switch::finish(&mut config).with_context(|| {
        format!("the snapshot is restored; kedge start finishes it (former state: {})", done.aside.display())
    })?;
    let config = &config;
    install::for_next_start(config, given)?;
    step.update("starting");
    service::start(config)?;
    let status = wait_started(config, args.ready.limit(), step)?;
    if !status.is_up() {
        anyhow::bail!(
            "the snapshot is restored but the node is not Ready after {} s\n{}{}\nthe log is {}; the former state \
             is in {}",
            args.ready.timeout,
            status.to_short(),
            service::log_tail(config, 10),
            service::log_place(config),
            done.aside.display()
        );
    }
    Ok((status, done))
}

/// Builds keys and datastore, and declares them the node's.
fn build(config: &Config, given: &Settings, verified: &Verified, same: bool) -> anyhow::Result<Done> {
    let built = switch::begin(&config.data_dir).context("remove what an earlier attempt left")?;
    let scratch = Config { data_dir: built, ..config.clone() };
    let present = if same { present(config) } else { None };
    let others = present.as_ref().map(|(own, found)| {
        found
            .members
            .iter()
            .filter(|member| member.id != own.get())
            .map(|member| member.name.clone())
            .collect()
    });
    let others: BTreeSet<String> = others.unwrap_or_default();
    make_keys(config, &scratch.pki_dir(), verified, others.is_empty())?;
    let pki = node::open_pki(&scratch, &node::addresses(config)?, Role::ControlPlane)?;

    let header = &verified.header;
    let above = match &present {
        Some((_, found)) => found.last.revision,
        None => header.revision + UNKNOWN,
    };
    let book = book(verified)?;
    let gone = |record: &&NodeRecord| record.role == Role::ControlPlane || record.name == config.node_name;
    let ids: BTreeSet<NodeId> = book.iter().filter(gone).map(|record| record.id).collect();
    let keep = |key: &str, bytes: &[u8]| !Replica::owns(key) || keep_record(key, bytes, &ids, pki.node_id());
    let mut store = kedge_store::Config::new(scratch.store_dir());
    store.node_id = pki.node_id().get();
    let restored = backup::restore(&store, &verified.store, above, &keep).context("rebuild the datastore")?;
    drop(pki);

    // Two restores within a second must not share a folder.
    let time = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3fZ");
    let aside = format!("before-restore-{time}");
    let mut away = vec!["store", "pki", "api-servers.json"];
    if !same {
        away.push("kubelet");
    }
    let plan = Plan {
        aside: aside.clone(),
        away: away.into_iter().map(str::to_owned).collect(),
        fresh: ["pki", "store"].map(str::to_owned).into(),
        settings: given.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        cluster: header.cluster.clone(),
    };
    switch::commit(&config.data_dir, &plan).context("put what was restored in place")?;
    let aside = config.data_dir.join(aside);
    let mut dropped = control_planes(&book);
    dropped.extend(others);
    dropped.remove(&config.node_name);
    Ok(Done { restored, aside, dropped })
}

/// The nodes that were in the snapshot's cluster.
pub(super) fn book(verified: &Verified) -> anyhow::Result<Vec<NodeRecord>> {
    let mut book = Vec::new();
    verified.store.read(&mut |key, bytes| {
        if key.starts_with("nodes.")
            && Replica::owns(key)
            && let Ok(record) = serde_json::from_slice::<NodeRecord>(bytes)
        {
            book.push(record);
        }
    })?;
    Ok(book)
}

pub(super) fn control_planes(book: &[NodeRecord]) -> BTreeSet<String> {
    let control_planes = book.iter().filter(|record| record.role == Role::ControlPlane);
    control_planes.map(|record| record.name.clone()).collect()
}

/// Tokens go; so do the nodes that are not in the new group, with their claims; and the note that this node
/// was once removed.
fn keep_record(key: &str, bytes: &[u8], gone: &BTreeSet<NodeId>, own: NodeId) -> bool {
    let id = match key.split('.').next() {
        Some("tokens") => return false,
        Some("nodes") => serde_json::from_slice::<NodeRecord>(bytes).ok().map(|record| record.id),
        Some("names" | "addresses") => serde_json::from_slice::<NodeId>(bytes).ok(),
        Some("removed") => return !key.ends_with(&format!("/{own}")),
        _ => None,
    };
    id.is_none_or(|id| !gone.contains(&id))
}

/// This node's id and what its datastore holds now, if it can be read.
fn present(config: &Config) -> Option<(NodeId, Inspected)> {
    let read = || -> anyhow::Result<(NodeId, Inspected)> {
        let pki = node::open_pki(config, &node::addresses(config)?, Role::ControlPlane)?;
        let mut store = kedge_store::Config::new(config.store_dir());
        store.node_id = pki.node_id().get();
        Ok((pki.node_id(), backup::inspect(&store, &|_| false)?))
    };
    match read() {
        Ok(found) => Some(found),
        Err(error) => {
            output::complain(&format!("the present datastore cannot be read ({error:#}); it is set aside"));
            None
        }
    }
}

/// The cluster's keys, and this node's own unless others of its old group may be there still: with a new
/// identity none of them takes this node for the old one.
fn make_keys(config: &Config, target: &Path, verified: &Verified, keep_own: bool) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o700)).context("restrict the folder of keys")?;
    for (name, bytes) in &verified.keys {
        kedge_base::write_atomic(&target.join(name), bytes, 0o600)
            .with_context(|| format!("write {name}"))?;
    }
    let own = if keep_own { vec!["node.key", "time-floor"] } else { vec!["time-floor"] };
    for name in own {
        let bytes = kedge_base::read_optional(&config.pki_dir().join(name));
        if let Some(bytes) = bytes.with_context(|| format!("read {name}"))? {
            kedge_base::write_atomic(&target.join(name), &bytes, 0o600)
                .with_context(|| format!("write {name}"))?;
        }
    }
    Ok(())
}

/// What is left to be done on the control-plane nodes that were dropped.
pub(super) fn say_dropped(dropped: &BTreeSet<String>) {
    if !dropped.is_empty() {
        let names: Vec<&str> = dropped.iter().map(String::as_str).collect();
        output::say(&format!(
            "control-plane nodes that are none any more: {}; on each run kedge leave --force (kedge reset \
             --force where that is refused), then join again",
            names.join(", ")
        ));
    }
}

/// Nodes that the snapshot knows and that may not be there.
fn say_others(config: &Config, done: &Done) {
    say_dropped(&done.dropped);
    let limit = Duration::from_secs(30);
    let others = control::call::<Vec<String>>(&config.status_socket(), "GET", ops::OTHER_NODES, &(), limit);
    if let Ok(others) = others
        && !others.is_empty()
    {
        output::say(&format!(
            "Node objects that were restored too: {}; delete those whose machines are not there (kedge kubectl \
             delete node NAME)",
            others.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_keeps_workers_and_forgets_who_is_not_in_the_new_group() {
        let (gone, worker, own) = (NodeId::new(1), NodeId::new(2), NodeId::new(3));
        let ids = BTreeSet::from([gone]);
        let id = |id: NodeId| serde_json::to_vec(&id).unwrap();
        let key = |resource: &str, name: &str| format!("{resource}.cluster.kedge.internal//{name}");
        for (key, bytes, kept) in [
            (key("names", "n1"), id(gone), false),
            (key("addresses", "192.0.2.1:25000"), id(gone), false),
            (key("names", "w"), id(worker), true),
            (key("tokens", "abc"), b"{}".to_vec(), false),
            (key("removed", &own.to_string()), b"{}".to_vec(), false),
            (key("removed", &worker.to_string()), b"{}".to_vec(), true),
        ] {
            assert_eq!(keep_record(&key, &bytes, &ids, own), kept, "{key}");
        }
    }
}
