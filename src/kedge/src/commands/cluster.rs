//! `kedge add-node`, `token`, `remove-node`: asked of the running control-plane node.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_cluster::TokenSummary;
use serde_json::json;

use super::{print, require_root};
use crate::cli::{AddNodeArgs, Format, InvitationFormat, RemoveNodeArgs, TokenCommand};
use crate::config::Config;
use crate::control;
use crate::failure::Failure;
use crate::node::ops::{AddNode, Invitation, RemoveNode};
use crate::output::{self, Step};

/// The store's writes are bounded by seconds; nobody waits longer.
const SOON: Duration = Duration::from_secs(30);
/// Draining a node has its own limit below this.
const DRAINED: Duration = Duration::from_secs(180);

/// Make a token and print what to type on the new node.
pub(crate) fn add_node(config: &Config, args: &AddNodeArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let wish = AddNode { ttl_seconds: args.ttl.as_secs(), reusable: args.reusable, worker_only: args.worker };
    let invitation: Invitation =
        control::call(&config.status_socket(), "POST", "/add-node", &wish, SOON).context("make a token")?;
    match args.format {
        InvitationFormat::Pretty => output::write(&pretty(&invitation, args.worker)),
        InvitationFormat::Short => {
            invitation.join.iter().for_each(|join| output::say(&format!("kedge join {join}")));
        }
        InvitationFormat::Json => print(Format::Json, "", &invitation)?,
        InvitationFormat::Yaml => print(Format::Yaml, "", &invitation)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pretty(invitation: &Invitation, worker_only: bool) -> String {
    let Some((first, others)) = invitation.join.split_first() else { return String::new() };
    let flag = if worker_only { " --worker" } else { "" };
    let mut text = format!(
        "From the node you wish to join to this cluster, run the following:\nkedge join {first}{flag}\n"
    );
    if !worker_only {
        text.push_str(&format!(
            "\nUse the '--worker' flag to join a node as a worker not running the control plane, eg:\n\
             kedge join {first} --worker\n"
        ));
    }
    if !others.is_empty() {
        text.push_str(
            "\nIf the node you are adding cannot reach this node at that address, use one of the following:\n",
        );
        others.iter().for_each(|join| text.push_str(&format!("kedge join {join}{flag}\n")));
    }
    let use_of = if invitation.reusable { "It can be used again and again" } else { "It can be used once" };
    text.push_str(&format!("\n{use_of}, until {}.\n", invitation.expires));
    text
}

/// List or revoke tokens.
pub(crate) fn token(config: &Config, command: &TokenCommand) -> Result<ExitCode, Failure> {
    require_root()?;
    let socket = config.status_socket();
    match command {
        TokenCommand::List { json, printed } => {
            let tokens: Vec<TokenSummary> =
                control::call(&socket, "GET", "/tokens", &(), SOON).context("list the tokens")?;
            let format = if *json { Format::Json } else { printed.format };
            let mut short = format!("{:10}  {:20}  {:8}  {:4}  STATE\n", "ID", "EXPIRES", "REUSABLE", "USES");
            for token in &tokens {
                let id: String = token.id.chars().take(10).collect();
                let state = if token.usable { "usable" } else { "spent" };
                let reusable = if token.reusable { "yes" } else { "no" };
                let expires = token.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                short.push_str(&format!("{id:10}  {expires:20}  {reusable:8}  {:<4}  {state}\n", token.uses));
            }
            print(format, &short, &tokens)?;
        }
        TokenCommand::Revoke { id, .. } => {
            let revoked: String =
                control::call(&socket, "POST", "/tokens/revoke", id, SOON).context("revoke the token")?;
            output::confirm(&format!("token {revoked} was revoked"));
            output::report("revoked", &json!({ "id": revoked }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Take another node off the cluster.
pub(crate) fn remove_node(config: &Config, args: &RemoveNodeArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let wish = RemoveNode { node: args.node.clone(), force: args.force };
    let step = Step::begin(&format!("removing {}", args.node));
    match control::call::<String>(&config.status_socket(), "POST", "/remove-node", &wish, DRAINED) {
        Ok(name) => {
            step.done(&format!("{name} was removed from the cluster"));
            output::report("removed", &json!({ "node": name }));
        }
        Err(error) => {
            step.abandon();
            return Err(Failure::Failed(anyhow::Error::from(error).context(format!("remove {}", args.node))));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_invitation_says_what_to_type() {
        let invitation = Invitation {
            join: vec!["192.0.2.10:25000/t/h".into(), "[2001:db8::1]:25000/t/h".into()],
            expires: "2026-01-01T00:00:00Z".parse().unwrap(),
            reusable: false,
            id: "abcd".into(),
        };
        let text = pretty(&invitation, false);
        for part in [
            "run the following:\nkedge join 192.0.2.10:25000/t/h\n",
            "eg:\nkedge join 192.0.2.10:25000/t/h --worker\n",
            "kedge join [2001:db8::1]:25000/t/h\n",
            "used once, until 2026-01-01T00:00:00Z",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!pretty(&invitation, true).contains("Use the '--worker' flag"));
    }
}
