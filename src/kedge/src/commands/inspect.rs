//! `kedge inspect`: run the checks, print what they found, and pack an archive for a bug report when asked.

use std::process::ExitCode;

use crate::cli::InspectArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::inspect::{self, Moment, Verdict, bundle};
use crate::output::{self, Hue, Step};

/// Exit code 1 when a check failed.
pub(crate) fn run(config: &Config, args: &InspectArgs) -> Result<ExitCode, Failure> {
    let mut config = config.clone();
    // A member's ranges are its cluster's, whatever its own file says.
    if let Ok(Some(joined)) = kedge_cluster::Admitted::read(&config.pki_dir()) {
        crate::node::shared::adopt(&mut config, &joined.config)?;
    }
    let mut step = Step::begin("inspecting this node");
    let findings =
        inspect::run(&config, Moment::Inspect, &mut |name| step.update(&format!("checking {name}")));
    step.abandon();
    let paint = |verdict, word: &str| {
        let hue = match verdict {
            Verdict::Ok => Hue::Good,
            Verdict::Warn => Hue::Doubtful,
            Verdict::Fail => Hue::Bad,
        };
        output::paint(hue, word)
    };
    super::print(args.printed.format, &inspect::to_text(&findings, &paint), &findings)?;
    if let Some(file) = &args.tarball {
        super::require_root()?;
        let mut step = Step::begin(&format!("writing {}", file.display()));
        let written =
            bundle::write(&config, &findings, file, &mut |part| step.update(&format!("collecting {part}")));
        step.abandon();
        written?;
        output::note(&format!(
            "{} was written; known secrets were removed, but read it before you pass it on",
            file.display()
        ));
    }
    Ok(if inspect::worst(&findings) == Verdict::Fail { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
