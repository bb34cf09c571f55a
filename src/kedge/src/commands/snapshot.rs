//! `kedge snapshot save|list|verify`: the running node makes snapshots; reading them needs no node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::{print, require_root};
use crate::cli::{Format, SnapshotCommand};
use crate::config::Config;
use crate::control;
use crate::failure::Failure;
use crate::node::backup::{Save, Saved};
use crate::output::{self, Step};
use crate::snapshot::{self, Header, Listed, SCHEDULED, Verified};

/// Writing and reading back a large state on a slow card.
const WRITTEN: Duration = Duration::from_secs(3600);

/// Save, list or verify.
pub(crate) fn run(config: &Config, command: &SnapshotCommand) -> Result<ExitCode, Failure> {
    require_root()?;
    match command {
        SnapshotCommand::Save { file, name, replace, .. } => {
            save(config, file.as_deref(), name.as_deref(), *replace)
        }
        SnapshotCommand::List { printed } => list(config, printed.format),
        SnapshotCommand::Verify { file, printed } => verify(config, file, printed.format),
        SnapshotCommand::Restore(_) => {
            Err(Failure::Usage(anyhow::anyhow!("restore is a command of its own")))
        }
    }
}

fn save(
    config: &Config,
    file: Option<&Path>,
    name: Option<&str>,
    replace: bool,
) -> Result<ExitCode, Failure> {
    if let Some(name) = name {
        check_name(name).map_err(|what| Failure::Usage(anyhow::Error::msg(what)))?;
    }
    let file = file.map(std::path::absolute).transpose().context("find the folder")?;
    let wish = Save { file, name: name.map(str::to_owned), replace };
    let step = Step::begin("saving a snapshot");
    let saved = control::call::<Saved>(&config.status_socket(), "POST", "/snapshots", &wish, WRITTEN);
    let saved = match saved {
        Ok(saved) => saved,
        Err(error) => {
            step.abandon();
            return Err(Failure::Failed(anyhow::Error::from(error).context("save a snapshot")));
        }
    };
    step.abandon();
    // Its name is what a caller needs, quiet or not.
    output::say(&format!(
        "{}: {} objects at revision {}, {}, read back and counted",
        saved.file.display(),
        saved.objects,
        saved.revision,
        snapshot::size(saved.bytes)
    ));
    if !saved.confirmed {
        output::confirm("no majority of control-plane nodes answers: later changes may be missing");
    }
    output::confirm("it holds the cluster's keys and all Secrets: keep it where nobody else can read it");
    output::report("saved", &saved);
    Ok(ExitCode::SUCCESS)
}

/// A file name, and none that the schedule would remove.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(format!("--name {name:?}: up to 100 letters, digits, dots, dashes and underscores"));
    }
    if name.starts_with(SCHEDULED) {
        return Err(format!("--name {name}: names that begin with {SCHEDULED} are the schedule's"));
    }
    Ok(())
}

/// A line of the list: what the folder and the header say.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(flatten)]
    file: Listed,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn list(config: &Config, format: Format) -> Result<ExitCode, Failure> {
    let folder = config.snapshot_dir();
    let found = snapshot::list(&folder).with_context(|| format!("list {}", folder.display()))?;
    let lines: Vec<Line> = found
        .into_iter()
        .map(|mut file| match snapshot::header(&file.file) {
            Ok(header) => {
                // A copied file has another time.
                file.time = header.time;
                Line { file, revision: Some(header.revision), objects: Some(header.objects), error: None }
            }
            Err(error) => Line { file, revision: None, objects: None, error: Some(format!("{error:#}")) },
        })
        .collect();
    let width = lines.iter().map(|line| line.file.name.len()).max().unwrap_or(0).max(4);
    let mut short = format!("{:width$}  {:20}  {:>10}  {:>8}  SIZE\n", "NAME", "TIME", "REVISION", "OBJECTS");
    for line in &lines {
        let time = line.file.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let size = line.error.clone().unwrap_or_else(|| snapshot::size(line.file.bytes));
        let (revision, objects) = (number(line.revision), number(line.objects));
        short.push_str(&format!(
            "{:width$}  {time:20}  {revision:>10}  {objects:>8}  {size}\n",
            line.file.name
        ));
    }
    if lines.is_empty() {
        short = format!("no snapshots in {}\n", folder.display());
    }
    print(format, &short, &lines)?;
    Ok(ExitCode::SUCCESS)
}

/// What `verify` found.
#[derive(Serialize)]
struct Contents<'a> {
    file: PathBuf,
    bytes: u64,
    #[serde(flatten)]
    header: &'a Header,
    resources: &'a std::collections::BTreeMap<String, u64>,
}

fn verify(config: &Config, file: &Path, format: Format) -> Result<ExitCode, Failure> {
    let file = snapshot::find(&config.snapshot_dir(), file)?;
    let verified = read_whole(&file)?;
    let short = describe(&file, &verified);
    let Verified { header, resources, bytes, .. } = &verified;
    print(format, &short, &Contents { file, bytes: *bytes, header, resources })?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a snapshot to its end, which takes a while when it is large.
pub(crate) fn read_whole(file: &Path) -> anyhow::Result<Verified> {
    let step = Step::begin(&format!("reading {}", file.display()));
    let verified = snapshot::verify(file);
    step.abandon();
    verified
}

/// What a snapshot holds, in lines.
pub(crate) fn describe(file: &Path, verified: &Verified) -> String {
    let header = &verified.header;
    let mut text = format!(
        "{} is whole: {} objects at revision {}, {}\n  saved {} by node {} with {}\n  cluster {}\n",
        file.display(),
        header.objects,
        header.revision,
        snapshot::size(verified.bytes),
        header.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        header.node,
        header.kedge_version,
        header.cluster_id,
    );
    if !header.confirmed {
        text.push_str("  saved without a majority of control-plane nodes: later changes may be missing\n");
    }
    let keys: Vec<&str> = verified.keys.keys().map(String::as_str).collect();
    text.push_str(&format!("  keys: {}\n", keys.join(", ")));
    let own = |resource: &str| resource.contains("kedge.internal") || resource.starts_with("kedge.member");
    for (resource, count) in verified.resources.iter().filter(|(resource, _)| !own(resource)) {
        text.push_str(&format!("  {count:>6}  {}\n", resource.trim_end_matches('.')));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_a_name_of_the_list_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (file, named) = (dir.path().join("monday.kedge"), dir.path().join("one.snapshot"));
        std::fs::write(&file, "x").unwrap();
        std::fs::write(&named, "x").unwrap();
        assert_eq!(snapshot::find(dir.path(), &file).unwrap(), file);
        assert_eq!(snapshot::find(dir.path(), Path::new("one")).unwrap(), named);
        let error = format!("{:#}", snapshot::find(dir.path(), Path::new("two")).unwrap_err());
        assert!(
            error.contains("no snapshot of that name") && error.contains("kedge snapshot list"),
            "{error}"
        );
        let error = format!("{:#}", snapshot::find(dir.path(), &dir.path().join("none")).unwrap_err());
        assert!(!error.contains("of that name"), "{error}");
    }

    #[test]
    fn names_of_snapshots() {
        for name in ["before-upgrade", "v1.2_3"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".hidden", "a/b", "../x", "auto-1", "ä"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
