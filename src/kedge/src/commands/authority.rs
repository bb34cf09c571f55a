//! `kedge certs rotate-ca`: asked of a running control-plane node, which does it with all the others; the
//! command waits and shows how far it is.

use std::process::ExitCode;

use anyhow::Context as _;
use kedge_cluster::AuthorityStage;

use super::change::{self, Change};
use super::require_root;
use crate::cli::RotateCaArgs;
use crate::config::Config;
use crate::control::CallError;
use crate::failure::Failure;
use crate::node::authority::{AuthorityStatus, AuthorityWish};
use crate::output;

const PATH: &str = "/certs/authority";

/// How far the replacement is, if the node can say.
pub(super) fn now(config: &Config) -> Result<AuthorityStatus, CallError> {
    change::ask(config, PATH)
}

/// Start or go on, finish, give up.
pub(super) fn run(config: &Config, args: &RotateCaArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let (wish, doing, result) = match (args.finish, args.abort) {
        (true, _) => (AuthorityWish::Finish, "forgetting the old authority", "finished"),
        (_, true) => (AuthorityWish::Abort, "forgetting the new authority", "aborted"),
        _ => (AuthorityWish::Start, "replacing the cluster's authority", "issued"),
    };
    let action = "replace the authority";
    let shown_by = "kedge certs check";
    let status = Change { path: PATH, wish: &wish, doing, action, shown_by, timeout: args.timeout }.run(
        config,
        |status: &AuthorityStatus| is_done(status, wish),
        line,
    )?;
    output::write(&format!("{}\n", line(&status)));
    if status.stage == AuthorityStage::Issuing {
        output::write(
            "both authorities are trusted until kedge certs rotate-ca --finish. Before that:\n\
             - give people new kubeconfigs (kedge config); old ones work until then\n\
             - restart what read the authority at its start and talks to the API for long (kedge kubectl rollout \
             restart ...)\n",
        );
    }
    output::report(result, &status);
    Ok(ExitCode::SUCCESS)
}

fn is_done(status: &AuthorityStatus, wish: AuthorityWish) -> bool {
    let there = match wish {
        AuthorityWish::Start => status.stage >= AuthorityStage::Issuing,
        AuthorityWish::Finish | AuthorityWish::Abort => status.stage == AuthorityStage::Settled,
    };
    there && status.waiting_for.is_empty()
}

/// The state in a line.
pub(super) fn line(status: &AuthorityStatus) -> String {
    let short = |hash: &str| hash.chars().take(8).collect::<String>();
    let new = short(&status.new);
    let mut text = match (status.stage, &status.old) {
        (AuthorityStage::Trusting, Some(old)) => {
            format!(
                "the authority {old} is being replaced by {new}: every node is to trust both",
                old = short(old)
            )
        }
        (AuthorityStage::Issuing, Some(old)) if status.waiting_for.is_empty() => {
            format!("every certificate is of the new authority {new}; {old} is trusted too", old = short(old))
        }
        (AuthorityStage::Issuing, _) => {
            format!("every certificate is being issued by the new authority {new}")
        }
        (AuthorityStage::Finishing, Some(old)) => {
            format!("every node is to forget the authority {old}; {new} stays", old = short(old))
        }
        _ => format!("there is one authority: {new}"),
    };
    if !status.waiting_for.is_empty() {
        text.push_str(&format!("; waiting for {}", status.waiting_for.join(", ")));
    }
    text
}

/// For `certs check`: nothing while nothing is under way, or where the node cannot say.
pub(super) fn under_way(config: &Config) -> anyhow::Result<Option<AuthorityStatus>> {
    match now(config) {
        Ok(status) => Ok(Some(status).filter(|status| status.stage != AuthorityStage::Settled)),
        // A worker, or a node that is starting.
        Err(CallError::NotRunning | CallError::Refused(_) | CallError::Starting(_)) => Ok(None),
        Err(error) => Err(error).context("ask whether the authority is being replaced"),
    }
}
