//! `kedge images`: what is in this node's containerd.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{block_on, require_root};
use crate::cli::{Failure, ImagesCommand};
use crate::config::Config;
use crate::output;

/// Import or list.
pub(crate) fn run(config: &Config, command: ImagesCommand) -> Result<ExitCode, Failure> {
    require_root()?;
    let socket = config.containerd_socket();
    if !socket.exists() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "this node's containerd does not run ({} is missing); start it with kedge start",
            socket.display()
        )));
    }
    match command {
        ImagesCommand::List { format } => {
            let mut names = block_on(kedge_kubelet::list_images(&socket))?.context("list images")?;
            names.sort();
            let short: String = names.iter().map(|name| format!("{name}\n")).collect();
            super::print(format, &short, &names)?;
        }
        ImagesCommand::Import { files } => {
            for file in &files {
                let step = output::Step::begin(&format!("importing {}", file.display()));
                let imported = block_on(kedge_kubelet::import_images(&socket, file))?
                    .with_context(|| format!("import {}", file.display()));
                match imported {
                    Ok(names) => step.done(
                        &names.iter().map(|name| format!("imported {name}")).collect::<Vec<_>>().join("\n"),
                    ),
                    Err(error) => {
                        step.abandon();
                        return Err(Failure::Failed(error));
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
