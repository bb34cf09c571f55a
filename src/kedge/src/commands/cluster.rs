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
use crate::node::ops::{AddNode, Invitation, RemoveNode, Removed};
use crate::output::{self, Step};

/// The store's writes are bounded by seconds; nobody waits longer.
const SOON: Duration = Duration::from_secs(30);
/// Draining a node has its own limit below this.
const DRAINED: Duration = Duration::from_secs(240);

/// Make a token and print what to type on the new node.
pub(crate) fn add_node(config: &Config, args: &AddNodeArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let wish = AddNode { ttl_seconds: args.ttl.as_secs(), reusable: args.reusable, worker_only: args.worker };
    let invitation: Invitation =
        control::call(&config.status_socket(), "POST", "/add-node", &wish, SOON).context("make a token")?;
    match args.format {
        InvitationFormat::Pretty => output::write(&pretty(&invitation)),
        InvitationFormat::Short => {
            let flag = flag(&invitation);
            invitation.join.iter().for_each(|join| output::say(&format!("kedge join {join}{flag}")));
        }
        InvitationFormat::Json => print(Format::Json, "", &invitation)?,
        InvitationFormat::Yaml => print(Format::Yaml, "", &invitation)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the token asks of whoever joins with it.
fn flag(invitation: &Invitation) -> &'static str {
    if invitation.worker { " --worker" } else { "" }
}

fn pretty(invitation: &Invitation) -> String {
    let Some((first, others)) = invitation.join.split_first() else { return String::new() };
    let flag = flag(invitation);
    let mut text = format!(
        "From the node you wish to join to this cluster, run the following:\nkedge join {first}{flag}\n"
    );
    if !invitation.worker {
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
                let state = state(token, jiff::Timestamp::now());
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

fn state(token: &TokenSummary, now: jiff::Timestamp) -> &'static str {
    let used_up = !token.reusable && token.uses > 0;
    match (token.usable, token.expires <= now) {
        (true, _) => "usable",
        (false, true) if !used_up => "expired",
        (false, _) => "spent",
    }
}

/// Take another node off the cluster.
pub(crate) fn remove_node(config: &Config, args: &RemoveNodeArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let wish = RemoveNode { node: args.node.clone(), force: args.force };
    let mut step = Step::begin(&format!("removing {}", args.node));
    let tell = |text: &str| step.update(text);
    let done =
        control::call_and_tell::<Removed>(&config.status_socket(), "/remove-node", &wish, DRAINED, tell);
    match done {
        Ok(Removed { node: name, lost }) => {
            let how = lost.as_ref().map(|why| format!("; it {why}, so its pods were deleted with it"));
            step.done(&format!("{name} was removed from the cluster{}", how.unwrap_or_default()));
            output::report("removed", &json!({ "node": name, "lost": lost }));
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
    fn a_token_is_spent_or_expired() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (usable, uses, expires, expected) in [
            (true, 0, "2026-01-02T00:00:00Z", "usable"),
            (false, 1, "2026-01-02T00:00:00Z", "spent"),
            (false, 1, "2025-12-31T00:00:00Z", "spent"),
            (false, 0, "2025-12-31T00:00:00Z", "expired"),
        ] {
            let token: TokenSummary = serde_json::from_value(json!({
                "id": "a", "created": "2025-12-01T00:00:00Z", "expires": expires, "reusable": false,
                "roles": [], "uses": uses, "usable": usable,
            }))
            .unwrap();
            assert_eq!(state(&token, now), expected);
        }
    }

    #[test]
    fn the_invitation_says_what_to_type() {
        let invitation = Invitation {
            join: vec!["192.0.2.10:25000/t/h".into(), "[2001:db8::1]:25000/t/h".into()],
            expires: "2026-01-01T00:00:00Z".parse().unwrap(),
            reusable: false,
            worker: false,
            id: "abcd".into(),
        };
        let text = pretty(&invitation);
        for part in [
            "run the following:\nkedge join 192.0.2.10:25000/t/h\n",
            "eg:\nkedge join 192.0.2.10:25000/t/h --worker\n",
            "kedge join [2001:db8::1]:25000/t/h\n",
            "used once, until 2026-01-01T00:00:00Z",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let of_worker = pretty(&Invitation { worker: true, ..invitation });
        assert!(!of_worker.contains("Use the '--worker' flag"), "{of_worker}");
        assert!(of_worker.contains("kedge join 192.0.2.10:25000/t/h --worker\n"), "{of_worker}");
    }
}
