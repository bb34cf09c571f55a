//! `kedge secrets-encryption enable|status|rotate|disable`: asked of the running control-plane node, which
//! does it with the others; the command waits and shows how far it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use kedge_cluster::{EncryptionStage, EncryptionWish};

use super::change::{self, Change};
use super::{print, require_root};
use crate::cli::{EncryptionCommand, Format};
use crate::config::Config;
use crate::failure::Failure;
use crate::node::encryption::EncryptionStatus;
use crate::output;

const PATH: &str = "/secrets-encryption";

/// Enable, show, rotate, disable.
pub(crate) fn run(config: &Config, command: &EncryptionCommand) -> Result<ExitCode, Failure> {
    require_root()?;
    match command {
        EncryptionCommand::Status { printed } => show(config, printed.format),
        EncryptionCommand::Enable { resources, waiting } => {
            let resources: BTreeSet<String> = resources.iter().cloned().collect();
            change(config, &EncryptionWish::Enable(resources), "encrypting", "enabled", waiting.timeout)
        }
        EncryptionCommand::Rotate { waiting } => {
            change(config, &EncryptionWish::Rotate, "encrypting with a new key", "rotated", waiting.timeout)
        }
        EncryptionCommand::Disable { waiting } => {
            change(config, &EncryptionWish::Disable, "decrypting", "disabled", waiting.timeout)
        }
    }
}

fn show(config: &Config, format: Format) -> Result<ExitCode, Failure> {
    let status: EncryptionStatus = change::ask(config, PATH).context("ask how objects are stored")?;
    print(format, &text(&status), &status)?;
    Ok(ExitCode::SUCCESS)
}

fn change(
    config: &Config,
    wish: &EncryptionWish,
    doing: &str,
    done: &str,
    timeout: u64,
) -> Result<ExitCode, Failure> {
    let action = "change how objects are stored";
    let shown_by = "kedge secrets-encryption status";
    let status = Change { path: PATH, wish, doing, action, shown_by, timeout }.run(
        config,
        |status: &EncryptionStatus| status.stage == EncryptionStage::Settled,
        progress,
    )?;
    output::write(&text(&status));
    output::report(done, &status);
    Ok(ExitCode::SUCCESS)
}

fn progress(status: &EncryptionStatus) -> String {
    if status.waiting_for.is_empty() {
        format!("{} objects to be rewritten", status.to_be_rewritten)
    } else {
        format!("waiting for {} to fetch the key", status.waiting_for.join(", "))
    }
}

fn text(status: &EncryptionStatus) -> String {
    let mut text = match &status.key {
        Some(key) => format!("encryption at rest: enabled, with the key {key}\n"),
        None => "encryption at rest: disabled\n".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = match status.stage {
        EncryptionStage::Settled => Ok(()),
        EncryptionStage::Spreading | EncryptionStage::Rewriting => {
            writeln!(text, "under way: {}", progress(status))
        }
    };
    for form in &status.resources {
        let _ = writeln!(text, "{}: {} of {} encrypted", form.resource, form.encrypted, form.objects);
    }
    if !status.keys.is_empty() {
        let _ = writeln!(text, "keys on this node: {}", status.keys.join(", "));
    }
    text
}
