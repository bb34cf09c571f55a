//! The way back from an upgrade: before `install` puts another version in the place of the installed one, that
//! one stays beside it, and a snapshot of the cluster which it can read. Binary and data step back together.
//!
//! ```text
//! /usr/local/bin/kedge            what the service runs
//! /usr/local/bin/kedge.previous   what it ran before the last upgrade
//! ```
//!
//! What a package manager or snapd owns, that program keeps and steps back.

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::commands::status::wait_started;
use crate::config::Config;
use crate::control::CallError;
use crate::failure::Remedied;
use crate::node::backup::{Save, Saved};
use crate::origin::{self, Origin};
use crate::output::{self, Step};
use crate::status::{self, Status};
use crate::{control, service};

/// Writing and reading back a large state on a slow card.
const SAVED_WITHIN: Duration = Duration::from_secs(3600);

/// An upgrade that is about to happen.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The version that is being replaced.
    pub(crate) from: String,
    /// The node was Ready with it: when it is not any more, that is the upgrade's doing.
    pub(crate) was_ready: bool,
    /// Of the cluster with that version; `None`: a worker has no copy to save.
    pub(crate) snapshot: Option<String>,
    /// This node alone decides about the data.
    alone: bool,
}

/// Is another version about to take the installed one's place? Then that one is kept, with the data.
///
/// # Errors
/// When it cannot be kept, or [`before`] refuses. Nothing has changed then.
pub(crate) fn prepare(config: &Config, force: bool, step: &mut Step) -> anyhow::Result<Option<Upgrade>> {
    let target = origin::binary();
    let own = std::env::current_exe().context("find the running binary")?;
    if !matches!(origin::origin(), Origin::Own) || !config.data_dir.join("pki").exists() {
        return Ok(None);
    }
    if !target.exists() || same(&own, &target).context("compare with the installed binary")? {
        return Ok(None);
    }
    // What does not even say its version is nothing to go back to.
    let Ok(from) = version_of(&target) else { return Ok(None) };
    let before = before(config, &from, &Insist::by_flag(force), step)?;
    keep(&target).with_context(|| format!("keep {}", target.display()))?;
    Ok(Some(Upgrade {
        from,
        was_ready: before.status.as_ref().is_some_and(Status::is_up),
        alone: before.is_alone(),
        snapshot: before.snapshot,
    }))
}

/// Does whoever upgrades go on, whatever is wrong? And how does one say so?
pub(crate) struct Insist {
    pub(crate) yes: bool,
    pub(crate) how: String,
}

impl Insist {
    pub(crate) fn by_flag(force: bool) -> Self {
        Self { yes: force, how: "say --force".to_owned() }
    }

    fn refusal(&self, what: impl Display) -> anyhow::Error {
        let remedy = format!("mend that first (kedge status, kedge inspect), or {}", self.how);
        Remedied::new(format!("{what}; nothing was changed"), remedy).into()
    }
}

/// How the node is before an upgrade, and the cluster that was saved.
pub(crate) struct Before {
    /// `None`: it does not run.
    pub(crate) status: Option<Status>,
    pub(crate) snapshot: Option<String>,
}

impl Before {
    /// No other node holds the data.
    pub(crate) fn is_alone(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.datastore.members.len() < 2)
    }
}

/// Asks whether the cluster would stand still, and saves it. Where the node is not Ready, the upgrade may be what
/// mends it: then it need not be saved.
///
/// # Errors
/// Why the upgrade must not be.
pub(crate) fn before(
    config: &Config,
    from: &str,
    insist: &Insist,
    step: &mut Step,
) -> anyhow::Result<Before> {
    let status = may_restart(config, insist)?;
    let snapshot = match &status {
        None => {
            let what =
                "the node does not run or does not answer: the cluster is not saved before this upgrade";
            output::complain(what);
            None
        }
        // A worker has no copy to save.
        Some(status) if status.datastore.role.is_empty() => None,
        Some(status) => {
            step.update("saving the cluster");
            match save(config, from) {
                Ok(name) => Some(name),
                Err(error) if status.is_up() && !insist.yes => {
                    return Err(insist.refusal(format!("the cluster cannot be saved: {error}")));
                }
                Err(error) => {
                    output::complain(&format!("the cluster was not saved before this upgrade: {error}"));
                    None
                }
            }
        }
    };
    Ok(Before { status, snapshot })
}

/// What the node says of itself before another version runs it; `None`: it does not run.
///
/// # Errors
/// The cluster would stand still while it restarts, and nobody insists.
pub(crate) fn may_restart(config: &Config, insist: &Insist) -> anyhow::Result<Option<Status>> {
    let status = status::ask(&config.status_socket()).ok().flatten();
    match status.as_ref().and_then(would_stand_still).filter(|_| !insist.yes) {
        Some(reason) => Err(insist.refusal(reason)),
        None => Ok(status),
    }
}

/// One node at a time: while a voter does not answer, the others are needed.
fn would_stand_still(status: &Status) -> Option<String> {
    let store = &status.datastore;
    let voters = store.members.iter().filter(|member| member.role == "voter");
    let (all, dead): (usize, Vec<&str>) = voters.fold((0, Vec::new()), |(all, mut dead), member| {
        if member.healthy == Some(false) {
            dead.push(&member.name);
        }
        (all + 1, dead)
    });
    let own = store.role == "leader" || store.role == "voter";
    (own && !dead.is_empty() && all - dead.len() - 1 < all / 2 + 1).then(|| {
        format!("{} does not answer: without this node the cluster would stand still", dead.join(", "))
    })
}

/// Saves the cluster under the name that it is found by.
fn save(config: &Config, from: &str) -> Result<String, CallError> {
    let name = snapshot_of(from);
    // One of an earlier upgrade from the same version is older than what is to be kept.
    let wish = Save { file: None, name: Some(name.clone()), replace: true };
    control::call::<Saved>(&config.status_socket(), "POST", "/snapshots", &wish, SAVED_WITHIN)?;
    Ok(name)
}

/// The snapshot of what ran with this version.
pub(crate) fn snapshot_of(version: &str) -> String {
    format!("before-upgrade-from-{version}")
}

/// Puts the previous version in its place and waits until the node is Ready with it. Its data goes back too
/// where it cannot go on with what is there, and nobody else has a say in that: then the answer is true.
///
/// # Errors
/// Neither did; with what helps.
pub(crate) fn step_back(
    config: &Config,
    upgrade: &Upgrade,
    limit: Duration,
    step: &mut Step,
) -> anyhow::Result<bool> {
    let target = origin::binary();
    step.update(&format!("going back to {}", upgrade.from));
    service::stop(config)?;
    let previous = previous(&target);
    fs::rename(&previous, &target)
        .and_then(|()| sync_folder(&target))
        .with_context(|| format!("put {} in its place", previous.display()))?;
    let error = match service::restart(config).and_then(|()| wait_started(config, limit, step)) {
        Ok(status) if status.is_up() => return Ok(false),
        Ok(status) => anyhow::anyhow!("the node is not Ready\n{}", status.to_short()),
        Err(error) => error,
    };
    let Some(snapshot) = &upgrade.snapshot else { return Err(error) };
    if !upgrade.alone {
        // A restore would make this node the only one of its cluster.
        let remedy = "kedge remove-node it on another node, kedge reset here, and join again";
        return Err(error.context(format!("{} cannot go on with this node's data ({remedy})", upgrade.from)));
    }
    step.update(&format!("going back to the data of {}", upgrade.from));
    restore(config, &target, snapshot, limit)?;
    Ok(true)
}

/// The version's own restore: it knows how it reads its data.
///
/// # Errors
/// Its words.
pub(crate) fn restore(config: &Config, binary: &Path, name: &str, limit: Duration) -> anyhow::Result<()> {
    let output = Command::new(binary)
        .args(["snapshot", "restore", name, "--yes", "--timeout", &limit.as_secs().to_string()])
        .args(config.file_flags())
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{} snapshot restore {name}: {}", binary.display(), String::from_utf8_lossy(&output.stderr).trim())
}

/// Where the version before stays.
pub(crate) fn previous(target: &Path) -> PathBuf {
    target.with_extension("previous")
}

/// What a binary says of itself.
///
/// # Errors
/// When it says nothing of the kind.
pub(crate) fn version_of(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary)
        .args(["version", "--output", "json"])
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    let parts: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} did not say its version", binary.display()))?;
    parts["version"]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("{} did not say its version", binary.display()))
}

/// Makes what is installed the previous version as well; it stays in its place until another one takes it.
fn keep(target: &Path) -> io::Result<()> {
    fs::rename(second_name(target)?, previous(target))?;
    sync_folder(target)
}

/// The installed version and the previous one change places. The service finds one of them at any time.
///
/// # Errors
/// When there is no previous one, or it cannot be moved.
pub(crate) fn swap(target: &Path) -> io::Result<()> {
    let aside = second_name(target)?;
    fs::rename(previous(target), target)?;
    fs::rename(aside, previous(target))?;
    sync_folder(target)
}

/// Gives what is installed another name beside its own; what a try that was cut off left there goes.
fn second_name(target: &Path) -> io::Result<PathBuf> {
    let name = target.with_extension("keep");
    match fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(target, &name)?;
    Ok(name)
}

fn sync_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), kedge_base::sync_dir)
}

/// Do two files hold the same bytes?
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    if one.canonicalize()? == other.canonicalize()? {
        return Ok(true);
    }
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        const PIECE: u64 = 1 << 20;
        left.clear();
        right.clear();
        io::Read::read_to_end(&mut io::Read::take(&mut one, PIECE), &mut left)?;
        io::Read::read_to_end(&mut io::Read::take(&mut other, PIECE), &mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Datastore, Member};

    #[test]
    fn what_was_installed_stays_and_they_change_places() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("kedge");
        fs::write(&target, "one").unwrap();
        // A try that was cut off.
        fs::write(target.with_extension("keep"), "half").unwrap();
        keep(&target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");
        let new = dir.path().join("new");
        fs::write(&new, "two").unwrap();
        assert!(!same(&new, &target).unwrap());
        fs::rename(&new, &target).unwrap();
        for (installed, before) in [("one", "two"), ("two", "one")] {
            swap(&target).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), installed);
            assert_eq!(fs::read_to_string(previous(&target)).unwrap(), before);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::remove_file(previous(&target)).unwrap();
        assert_eq!(swap(&target).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_to_string(&target).unwrap(), "two");
    }

    #[test]
    fn files_are_compared_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let mut bytes = vec![7; 3 << 20];
        let (one, copy) = (file("one", &bytes), file("copy", &bytes));
        *bytes.last_mut().unwrap() = 8;
        let other = file("other", &bytes);
        assert!(same(&one, &one).unwrap() && same(&one, &copy).unwrap());
        assert!(!same(&one, &other).unwrap() && !same(&one, &file("short", &bytes[1..])).unwrap());
    }

    #[test]
    fn one_node_at_a_time() {
        let member = |name: &str, role: &str, healthy| Member {
            name: name.into(),
            id: name.into(),
            address: String::new(),
            role: role.into(),
            leader: false,
            healthy,
        };
        let stands_still = |own: &str, members: Vec<Member>| {
            let datastore = Datastore { role: own.into(), members, ..Datastore::default() };
            would_stand_still(&Status { datastore, ..Status::stopped("a") })
        };
        let (yes, no, unknown) = (Some(true), Some(false), None);
        let three = |b, c| vec![member("a", "voter", yes), member("b", "voter", b), member("c", "voter", c)];
        assert_eq!(
            stands_still("leader", vec![member("a", "voter", yes)]),
            None,
            "alone it stands still anyway"
        );
        assert_eq!(stands_still("leader", three(yes, yes)), None);
        assert_eq!(stands_still("voter", three(unknown, unknown)), None, "only the leader knows");
        let reason = stands_still("leader", three(yes, no)).unwrap();
        assert!(reason.starts_with("c does not answer"), "{reason}");
        assert_eq!(stands_still("standby", three(yes, no)), None, "a standby does not vote");
        let mut five = three(yes, no);
        five.extend([member("d", "voter", yes), member("e", "voter", yes), member("f", "standby", no)]);
        assert_eq!(stands_still("leader", five), None);
    }
}
