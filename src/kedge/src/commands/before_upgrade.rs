//! `kedge before-upgrade`: what the Debian package and the snap ask of the installed version before another one
//! takes its place. Standard output is for `eval` in a shell:
//!
//! ```text
//! FROM='0.1.0'                             this version
//! READY='yes'                              the node is Ready with it: when it is not any more, that is the upgrade's doing
//! SNAPSHOT='before-upgrade-from-0.1.0'     the saved cluster; empty: there is none
//! ALONE='yes'                              no other node holds the data: this one decides about them
//! ```

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::BeforeUpgradeArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::output::{self, Step};
use crate::status::State;
use crate::upgrade::{self, Insist};

/// Refuse, or save the cluster.
pub(crate) fn run(config: &Config, args: &BeforeUpgradeArgs) -> Result<ExitCode, Failure> {
    let file = args.anyway.display();
    let insist = Insist {
        yes: args.anyway.exists(),
        how: format!("touch {file}, and try again: that once the upgrade goes on all the same"),
    };
    if insist.yes {
        std::fs::remove_file(&args.anyway).with_context(|| format!("remove {file}"))?;
        output::complain(&format!("{file} was there: the upgrade goes on whatever is wrong"));
    }
    let mut step = Step::begin("asking the node");
    let before = upgrade::before(config, kedge_base::VERSION, &insist, &mut step);
    step.abandon();
    let before = before?;
    let yes = |is: bool| if is { "yes" } else { "" };
    let ready = before.status.as_ref().is_some_and(|status| status.state == State::Ready);
    output::say(&format!(
        "FROM='{}' READY='{}' SNAPSHOT='{}' ALONE='{}'",
        kedge_base::VERSION,
        yes(ready),
        before.snapshot.as_deref().unwrap_or_default(),
        yes(before.is_alone()),
    ));
    Ok(ExitCode::SUCCESS)
}
