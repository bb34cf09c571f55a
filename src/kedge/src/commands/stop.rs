//! `kedge stop`: end the node's process; containers keep running.

use std::process::ExitCode;

use serde_json::json;

use super::require_root;
use crate::config::Config;
use crate::failure::Failure;
use crate::{output, service};

/// Stop, and return when the process is gone.
pub(crate) fn run(config: &Config) -> Result<ExitCode, Failure> {
    require_root()?;
    let step = output::Step::begin("stopping kedge");
    match service::stop(config) {
        Ok(true) => {
            step.done("kedge stopped; containers keep running until kedge uninstall or a reboot");
            output::report("stopped", &json!({}));
        }
        Ok(false) => {
            step.done("kedge does not run");
            output::report("not running", &json!({}));
        }
        Err(error) => {
            step.abandon();
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}
