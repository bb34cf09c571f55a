//! One module per command. Each reads top to bottom as what the command does; the parts it uses are in
//! the modules beside this one.

pub(crate) mod config;
pub(crate) mod images;
pub(crate) mod install;
pub(crate) mod kubectl;
pub(crate) mod run;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod uninstall;
pub(crate) mod version;

use crate::cli::Failure;
use crate::preflight;

/// Refuse before anything happens when the caller is not root.
fn require_root() -> Result<(), Failure> {
    match preflight::root() {
        None => Ok(()),
        Some(problem) => Err(Failure::Failed(anyhow::anyhow!("{}; {}", problem.what, problem.remedy))),
    }
}

/// A small runtime for commands that ask containerd or the kernel something.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}
