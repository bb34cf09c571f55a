//! `kedge secrets-encryption enable|status|rotate|disable`: asked of the running control-plane node, which
//! does it with the others; the command waits and shows how far it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kedge_cluster::{EncryptionStage, EncryptionWish};

use super::{print, require_root};
use crate::cli::{EncryptionCommand, Format};
use crate::config::Config;
use crate::control;
use crate::failure::Failure;
use crate::node::encryption::EncryptionStatus;
use crate::output::{self, Step};

const PATH: &str = "/secrets-encryption";
const SOON: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(300);

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

fn ask(config: &Config) -> anyhow::Result<EncryptionStatus> {
    control::call(&config.status_socket(), "GET", PATH, &(), SOON).context("ask how objects are stored")
}

fn show(config: &Config, format: Format) -> Result<ExitCode, Failure> {
    let status = ask(config)?;
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
    let until = Instant::now() + Duration::from_secs(timeout);
    let mut step = Step::begin(doing);
    let asked = control::call(&config.status_socket(), "POST", PATH, wish, SOON);
    let mut status: EncryptionStatus = match asked {
        Ok(status) => status,
        Err(error) => {
            step.abandon();
            return Err(Failure::Failed(anyhow::Error::from(error).context("change how objects are stored")));
        }
    };
    while status.stage != EncryptionStage::Settled {
        if Instant::now() >= until {
            step.abandon();
            return Err(Failure::Failed(anyhow::anyhow!(
                "it is not done after {timeout} s ({}); it goes on by itself: kedge secrets-encryption status shows how \
                 far it is",
                progress(&status)
            )));
        }
        step.update(&progress(&status));
        std::thread::sleep(LOOK_AGAIN);
        // The node may be starting again meanwhile; it goes on then.
        if let Ok(now) = ask(config) {
            status = now;
        }
    }
    step.abandon();
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
