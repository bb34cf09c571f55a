//! `kedge recover`: the cluster goes on with this node's copy alone, when most control-plane nodes are lost
//! for good.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use kedge_cluster::{Admitted, Members, NodeId, NodeRecord, Peer, Pki, Refusal, Role};
use kedge_store::backup;
use kedge_store::{Member, Op, Recovered, Store, Value};
use serde_json::json;

use super::status::wait_started;
use super::{confirm, require_root};
use crate::admin::block_on;
use crate::cli::RecoverArgs;
use crate::config::{Config, Settings};
use crate::control::{self, CallError};
use crate::failure::{Failure, Remedied};
use crate::node::{self, shared};
use crate::output::{self, Step};
use crate::service;
use crate::status;
use crate::switch;

const SOON: Duration = Duration::from_secs(60);
/// Below the data folder: the store as it was before the last recovery.
const KEPT: &str = "before-recover";

/// Say what may be lost, ask, rebuild the group of this node alone, start, forget the others.
pub(crate) fn run(config: &Config, given: &Settings, args: &RecoverArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let way_back = way_back(config, given);
    let mut config = config.clone();
    switch::finish(&mut config)?;
    let mut peers = Vec::new();
    if let Some(joined) = Admitted::read(&config.pki_dir())? {
        if joined.facts.role == Role::Worker {
            return Err(Failure::Failed(anyhow::anyhow!(
                "this node is a worker and holds no copy; run kedge recover on a control-plane node"
            )));
        }
        shared::adopt(&mut config, &joined.config)?;
        peers = joined.peers;
    }
    refuse_with_majority(&config)?;
    // Asked before anything is stopped, where the node tells what it holds.
    let told = told(&config)?;
    let mut go_on = match &told {
        Some(held) => ask(&config, held, args)?,
        None => true,
    };
    let mut store = kedge_store::Config::new(config.store_dir());
    if go_on {
        let ran = service::stop(&config)?;
        let pki = node::open_pki(&config, &node::addresses(&config)?, Role::ControlPlane)?;
        store.node_id = pki.node_id().get();
        let asked = held(&store).and_then(|held| match &told {
            Some(_) => Ok(true),
            None => refuse_removed(pki, peers).and_then(|()| ask(&config, &held, args)),
        });
        if ran && !matches!(asked, Ok(true)) {
            service::start(&config)?;
        }
        go_on = asked?;
    }
    if !go_on {
        output::confirm("nothing was changed");
        output::report("unchanged", &json!({}));
        return Ok(ExitCode::from(1));
    }

    let mut step = Step::begin("rebuilding the datastore of this node alone");
    let result = rebuild(&config, store, args, &way_back, &mut step);
    match result {
        Ok(recovered) => {
            step.done(&format!(
                "recovered at revision {}; this node is the only member and Ready",
                recovered.revision
            ));
            output::say(&way_back);
            let names: Vec<&str> = recovered.removed.iter().map(|member| member.name.as_str()).collect();
            if !names.is_empty() {
                output::say(&format!(
                    "never start {} with the old data again: on each run kedge leave --force, then join again with \
                     what kedge add-node prints here",
                    names.join(", ")
                ));
            }
            output::report("recovered", &json!({ "revision": recovered.revision, "removed": names }));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

/// A fresh read needs a majority; that a leader is known says nothing on a standby, which never looks for
/// another one.
fn refuse_with_majority(config: &Config) -> Result<(), Failure> {
    match control::call::<Vec<NodeRecord>>(&config.status_socket(), "GET", "/nodes", &(), SOON) {
        Ok(_) => Err(Remedied::new(
            "a majority of the control-plane nodes answers: there is nothing to recover",
            "take dead nodes off with kedge remove-node NAME --force",
        )
        .into()),
        Err(CallError::Starting(text)) => {
            Err(Remedied::new(text, "try again when it serves, or stop it first").into())
        }
        Err(_) => Ok(()),
    }
}

/// What this node's copy is, and who else was in its group.
struct Held {
    copy: String,
    others: Vec<String>,
}

/// As the running node says it; nothing when none runs.
fn told(config: &Config) -> Result<Option<Held>, Failure> {
    let Ok(Some(status)) = status::ask(&config.status_socket()) else { return Ok(None) };
    if status.was_removed() {
        return Err(removed());
    }
    let store = status.datastore;
    // It would be among them: without its own record it has not told anything yet.
    if store.members.iter().all(|member| member.name != config.node_name) {
        return Ok(None);
    }
    let others = store.members.iter().filter(|member| member.name != config.node_name);
    Ok(Some(Held {
        copy: format!("a copy at revision {} (of term {})", store.revision, store.term),
        others: others.map(|member| format!("{} ({})", member.name, member.address)).collect(),
    }))
}

/// As the store of a stopped node says it.
fn held(store: &kedge_store::Config) -> Result<Held, Failure> {
    let found = backup::inspect(store, &|_| false).map_err(anyhow::Error::from)?;
    let own = |member: &Member| member.id == store.node_id;
    if !found.members.is_empty() && !found.members.iter().any(own) {
        return Err(removed());
    }
    let last = &found.last;
    let others: Vec<&Member> = found.members.iter().filter(|member| !own(member)).collect();
    if others.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "this node is the only member already: there is nothing to recover"
        )));
    }
    Ok(Held {
        copy: format!(
            "{} objects at revision {} (entry {} of term {})",
            last.objects, last.revision, last.index, last.term
        ),
        others: others.iter().map(|member| format!("{} ({})", member.name, member.address)).collect(),
    })
}

/// One that did not run may have been removed meanwhile: whoever of the others answers says so.
fn refuse_removed(pki: Arc<Pki>, peers: Vec<Peer>) -> Result<(), Failure> {
    let members = Members::new(pki, peers).map_err(anyhow::Error::from)?;
    match block_on(members.standing())? {
        Err(kedge_cluster::Error::Refused(Refusal::Removed { .. } | Refusal::NotAMember)) => Err(removed()),
        _ => Ok(()),
    }
}

/// Its cluster lives on without it: a second one with the same authority would stand beside it.
fn removed() -> Failure {
    Failure::Failed(anyhow::anyhow!("{}", status::REMOVED))
}

fn ask(config: &Config, held: &Held, args: &RecoverArgs) -> Result<bool, Failure> {
    output::write(&format!(
        "This node ({}) holds {}.\nLost is what the others acknowledged after that; kept is also what they had \
         not confirmed yet.\nThe other members are dropped: {}.\nIf enough of them can still be started for a \
         majority, start them instead of this.\n",
        config.node_name,
        held.copy,
        if held.others.is_empty() { "none".to_owned() } else { held.others.join(", ") }
    ));
    confirm("Go on with this node's copy alone?", args.asked.yes)
}

fn rebuild(
    config: &Config,
    store: kedge_store::Config,
    args: &RecoverArgs,
    way_back: &str,
    step: &mut Step,
) -> anyhow::Result<Recovered> {
    step.update("copying the present datastore");
    keep_copy(&config.data_dir, &config.store_dir()).with_context(|| {
        format!("copy the datastore to {}; nothing was changed", config.data_dir.join(KEPT).display())
    })?;
    step.update("rebuilding the datastore of this node alone");
    let others = Others { own: NodeId::new(store.node_id) };
    let recovered = block_on(Store::recover(store, others)).map_err(Failure::into_error)?;
    let recovered = recovered.context("rebuild the datastore")?;
    step.update("starting");
    let back = || format!("the datastore is recovered, but the node is not Ready\n{way_back}");
    service::start(config).with_context(back)?;
    let status = wait_started(config, args.ready.limit(), step).with_context(back)?;
    if !status.is_up() {
        anyhow::bail!(
            "the datastore is recovered but the node is not Ready after {} s\n{}the log is {}\n{way_back}",
            args.ready.timeout,
            status.to_short(),
            service::log_place(config)
        );
    }
    Ok(recovered)
}

/// The other control-plane nodes leave the cluster's book in the recovery itself.
struct Others {
    own: NodeId,
}

impl kedge_store::Book for Others {
    fn wants(&self, key: &str) -> bool {
        kedge_cluster::is_of_nodes(key)
    }

    fn rewrite(&self, _: &[Member], values: &BTreeMap<String, Vec<u8>>) -> Vec<Op> {
        let changes = kedge_cluster::strike_others(self.own, values, Timestamp::now());
        let deletes = changes.deletes.into_iter().map(|key| Op::Delete { key: key.into() });
        let puts = changes.puts.into_iter().map(|(key, bytes)| Op::Put {
            key: key.into(),
            value: Value { bytes: bytes.into(), splice: None },
        });
        deletes.chain(puts).collect()
    }
}

/// How a recovery that was a mistake is undone, with the flags that were typed now.
fn way_back(config: &Config, given: &Settings) -> String {
    let typed = given.iter().flat_map(|(key, value)| [format!("--{key}"), value.to_owned()]);
    let flags = config.file_flags().into_iter().chain(typed);
    let flags: String = flags.map(|flag| format!(" {}", shell_word(&flag))).collect();
    let (kept, store) = (config.data_dir.join(KEPT), config.store_dir());
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    let (kept, store) = (word(&kept), word(&store));
    format!(
        "the datastore as it was is in {kept} (the next recovery replaces it; delete it when all is well); while \
         nobody has joined since, this goes back to it:\n  kedge{flags} stop && mv {store} {store}.recovered && cp \
         -a {kept} {store} && kedge{flags} start"
    )
}

/// A word that a shell takes as it is.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Copies the store's folder. One copy is kept: a new one takes the old one's place when it is whole.
fn keep_copy(data_dir: &Path, store: &Path) -> io::Result<()> {
    let (kept, unfinished) = (data_dir.join(KEPT), data_dir.join(format!("{KEPT}.part")));
    remove(&unfinished)?;
    copy(store, &unfinished)?;
    remove(&kept)?;
    fs::rename(&unfinished, &kept)?;
    kedge_base::sync_dir(data_dir)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// With everything on the disk when it returns. Where the file system can, files share their blocks.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    kedge_base::sync_dir(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_typed_for_the_same_node() {
        let mut given = Settings::default();
        given.insert("data-dir", "/var/lib/kedge a".into());
        let config = Config::load(Some(Path::new("/etc/n1.yaml")), &given).unwrap();
        let text = way_back(&config, &given);
        let flags = "--config /etc/n1.yaml --data-dir '/var/lib/kedge a'";
        assert!(text.contains(&format!("kedge {flags} stop && mv '/var/lib/kedge a/store' ")), "{text}");
        assert!(text.ends_with(&format!("&& kedge {flags} start")), "{text}");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }

    #[test]
    fn one_copy_is_kept_and_a_half_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        fs::create_dir_all(store.join("wal")).unwrap();
        for content in ["one", "two"] {
            fs::write(store.join("wal/1"), content).unwrap();
            // What an attempt without space has left.
            fs::create_dir_all(dir.path().join("before-recover.part/wal")).unwrap();
            keep_copy(dir.path(), &store).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("before-recover/wal/1")).unwrap(), content);
            assert!(!dir.path().join("before-recover.part").exists());
        }
        assert!(keep_copy(dir.path(), &dir.path().join("none")).is_err());
        assert!(dir.path().join("before-recover/wal/1").exists(), "the old copy outlives a failure");
    }
}
