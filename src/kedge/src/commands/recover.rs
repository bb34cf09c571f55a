//! `kedge recover`: the cluster goes on with this node's copy alone, when most control-plane nodes are lost
//! for good.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_cluster::{Admitted, NodeId, NodeRecord, Role};
use kedge_store::backup::{self, Inspected};
use kedge_store::{Recovered, Store};
use serde_json::json;

use super::status::wait_ready;
use super::{block_on, confirm, require_root};
use crate::cli::{Failure, RecoverArgs};
use crate::config::Config;
use crate::control::{self, CallError};
use crate::node::ops::RemoveNode;
use crate::node::{self, shared};
use crate::output::{self, Step};
use crate::service;
use crate::status::State;

const SOON: Duration = Duration::from_secs(60);

/// Say what may be lost, ask, rebuild the group of this node alone, start, forget the others.
pub(crate) fn run(config: &Config, args: &RecoverArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut config = config.clone();
    if let Some(joined) = Admitted::read(&config.pki_dir())? {
        if joined.facts.role == Role::Worker {
            return Err(Failure::Failed(anyhow::anyhow!(
                "this node is a worker and holds no copy; run kedge recover on a control-plane node"
            )));
        }
        shared::adopt(&mut config, &joined.config)?;
    }
    refuse_with_majority(&config)?;
    let ran = service::stop(&config)?;
    let pki = node::open_pki(&config, &node::addresses(&config)?, Role::ControlPlane)?;
    let mut store = kedge_store::Config::new(config.store_dir());
    store.node_id = pki.node_id().get();
    drop(pki);
    let go_on =
        backup::inspect(&store).map_err(anyhow::Error::from).map_err(Failure::from).and_then(|found| {
            output::write(&explain(&config, store.node_id, &found));
            if found.members.iter().all(|member| member.id == store.node_id) {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "this node is the only member already: there is nothing to recover"
                )));
            }
            confirm("Go on with this node's copy alone? This cannot be undone.", args.yes)
        });
    if !matches!(go_on, Ok(true)) {
        if ran {
            service::start(&config)?;
        }
        go_on?;
        output::confirm("nothing was changed");
        output::report("unchanged", &json!({}));
        return Ok(ExitCode::from(1));
    }

    let mut step = Step::begin("rebuilding the datastore of this node alone");
    let result = rebuild(&config, store, args, &mut step);
    match result {
        Ok(recovered) => {
            step.done(&format!(
                "recovered at revision {}; this node is the only member and Ready",
                recovered.revision
            ));
            let names: Vec<&str> = recovered.removed.iter().map(|member| member.name.as_str()).collect();
            if !names.is_empty() {
                output::say(&format!(
                    "never start {} with the old data again: on each run kedge leave --force, then join again with \
                     what kedge add-node prints here",
                    names.join(", ")
                ));
            }
            output::report("recovered", &json!({ "revision": recovered.revision, "removed": names }));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

/// A fresh read needs a majority; that a leader is known says nothing on a standby, which never looks for
/// another one.
fn refuse_with_majority(config: &Config) -> Result<(), Failure> {
    match control::call::<Vec<NodeRecord>>(&config.status_socket(), "GET", "/nodes", &(), SOON) {
        Ok(_) => Err(Failure::Failed(anyhow::anyhow!(
            "a majority of the control-plane nodes answers: there is nothing to recover; take dead nodes off with \
             kedge remove-node NAME --force"
        ))),
        Err(CallError::Refused(text)) if text.starts_with("the node is starting") => {
            Err(Failure::Failed(anyhow::anyhow!("{text}; try again when it serves, or stop it first")))
        }
        Err(_) => Ok(()),
    }
}

fn explain(config: &Config, own: u64, found: &Inspected) -> String {
    let others: Vec<String> = found
        .members
        .iter()
        .filter(|member| member.id != own)
        .map(|member| format!("{} ({})", member.name, member.address))
        .collect();
    format!(
        "This node ({}) holds {} objects at revision {} (entry {} of term {}).\nLost is what the others \
         acknowledged after that; kept is also what they had not confirmed yet.\nThe other members are dropped: \
         {}.\nIf enough of them can still be started for a majority, start them instead of this.\n",
        config.node_name,
        found.last.objects,
        found.last.revision,
        found.last.index,
        found.last.term,
        if others.is_empty() { "none".to_owned() } else { others.join(", ") }
    )
}

fn rebuild(
    config: &Config,
    store: kedge_store::Config,
    args: &RecoverArgs,
    step: &mut Step,
) -> anyhow::Result<Recovered> {
    let recovered = match block_on(Store::recover(store)) {
        Ok(recovered) => recovered.context("rebuild the datastore")?,
        Err(Failure::Failed(error)) => return Err(error),
        Err(Failure::Usage(text)) => anyhow::bail!(text),
    };
    step.update("starting");
    service::start(config)?;
    let status = wait_ready(config, Duration::from_secs(args.timeout), step)?;
    if status.state != State::Ready {
        anyhow::bail!(
            "the datastore is recovered but the node is not Ready after {} s\n{}the log is {}",
            args.timeout,
            status.to_short(),
            service::log_place(config)
        );
    }
    step.update("taking the others off the cluster's book");
    for member in &recovered.removed {
        let wish = RemoveNode { node: NodeId::new(member.id).to_string(), force: true };
        let removed = control::call::<String>(&config.status_socket(), "POST", "/remove-node", &wish, SOON);
        if let Err(error) = removed {
            output::complain(&format!("{} is still in the cluster's book: {error}", member.name));
        }
    }
    Ok(recovered)
}
