//! `kedge rollback`: the version before the last upgrade runs again, with the data as it is or as it was.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::status::wait_started;
use super::{confirm, require_root, restore};
use crate::cli::RollbackArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::origin::{self, Origin};
use crate::output::{self, Step};
use crate::snapshot::{self, Verified};
use crate::upgrade::{self, Insist};
use crate::{service, status};

/// Look, ask when data goes back, swap, start, wait. Repeating it goes forward again.
pub(crate) fn run(config: &Config, args: &RollbackArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let target = origin::binary();
    let previous = upgrade::previous(&target);
    refuse_others_files()?;
    if !previous.exists() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "{} is not there: nothing was upgraded since it was installed",
            previous.display()
        )));
    }
    let version = upgrade::version_of(&previous)?;
    let name = upgrade::snapshot_of(&version);
    let mut others = BTreeSet::new();
    if args.with_data {
        // Found out now, not when the node is stopped.
        let file = snapshot::find(&config.snapshot_dir(), name.as_ref())?;
        let verified = super::snapshot::read_whole(&file)?;
        output::write(&super::snapshot::describe(&file, &verified));
        others = other_control_planes(config, &verified)?;
        if !confirm(&question(&version, &others), args.asked.yes)? {
            output::confirm("nothing was changed");
            output::report("unchanged", &json!({}));
            return Ok(ExitCode::from(1));
        }
    } else {
        upgrade::may_restart(config, &Insist::by_flag(args.force))?;
    }
    let limit = args.ready.limit();
    let mut step = Step::begin(&format!("going back to {version}"));
    let result = (|| {
        service::stop(config)?;
        upgrade::swap(&target).with_context(|| format!("put {} in its place", previous.display()))?;
        if args.with_data {
            return upgrade::restore(config, &target, &name, limit);
        }
        service::restart(config)?;
        let status = wait_started(config, limit, &mut step)?;
        if !status.is_up() {
            anyhow::bail!("the node is not Ready\n{}", status.to_short());
        }
        Ok(())
    })();
    if let Err(error) = result {
        step.abandon();
        let ways =
            "kedge rollback goes forward again, kedge snapshot restore goes back to the data of before";
        return Err(Failure::Failed(error.context(format!("{version} does not run: {ways} ({name})"))));
    }
    let data = if args.with_data { ", with the data from before the upgrade" } else { "" };
    step.done(&format!("{version} runs again{data}; kedge rollback goes forward again"));
    restore::say_dropped(&others);
    output::report(
        "rolled back",
        &json!({ "version": version, "withData": args.with_data, "dropped": others }),
    );
    Ok(ExitCode::SUCCESS)
}

/// The other control-plane nodes: of now, if this node can tell, and of when the snapshot was saved.
fn other_control_planes(config: &Config, verified: &Verified) -> anyhow::Result<BTreeSet<String>> {
    let mut names = restore::control_planes(&restore::book(verified)?);
    if let Ok(Some(status)) = status::ask(&config.status_socket()) {
        names.extend(status.datastore.members.into_iter().map(|member| member.name));
    }
    names.remove(&config.node_name);
    Ok(names)
}

fn question(version: &str, others: &BTreeSet<String>) -> String {
    let mut text = format!("Go back to {version} and to this data? Later changes are lost.");
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(String::as_str).collect();
        text.push_str(&format!(
            " This node becomes the only control-plane node: the others ({}) must be stopped and join again.",
            names.join(", ")
        ));
    }
    text
}

/// Who owns the binary keeps the one before.
fn refuse_others_files() -> Result<(), Failure> {
    let how = match origin::origin() {
        Origin::Own => return Ok(()),
        Origin::Package { .. } => {
            "a package owns this binary: apt install kedge=VERSION (apt list -a kedge names them)".to_owned()
        }
        Origin::Snap(snap) => format!("snapd owns this binary: snap revert {}", snap.instance),
    };
    Err(Failure::Failed(anyhow::anyhow!(
        "{how}; then kedge snapshot restore before-upgrade-from-VERSION if the data must go back too"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_join_again_is_named_before_it_is_done() {
        let alone = "Go back to v1 and to this data? Later changes are lost.";
        let others = " This node becomes the only control-plane node: the others (b, c) must be stopped and join \
                      again.";
        for (names, expected) in [(&[][..], alone.to_owned()), (&["c", "b"], format!("{alone}{others}"))] {
            assert_eq!(question("v1", &names.iter().map(|name| (*name).to_owned()).collect()), expected);
        }
    }
}
