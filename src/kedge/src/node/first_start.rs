//! What a new node does by itself because its configuration says so: join a cluster, enable addons. For
//! machines that are made from a file (cloud-init, an image) and that nobody types on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Backoff;
use kedge_cluster::{Admitted, Clock, JoinString, Staging};

use super::left;
use crate::addons;
use crate::config::Config;
use crate::node_status::Board;

/// The parts of `kedge status` that wait for this.
pub(crate) const JOIN: &str = "join";
pub(crate) const ADDONS: &str = "addons";
/// How long one addon may take until it is healthy; then it is tried again.
const HEALTHY: Duration = Duration::from_secs(300);

/// Is this node new, and does its configuration name a cluster?
pub(crate) fn joins(config: &Config) -> bool {
    // An attempt that was cut off between its answer and the last key goes on.
    let staged = || Staging::new(config.data_dir.join("join")).admitted().is_ok_and(|found| found.is_some());
    let new = || !config.pki_dir().join("ca.crt").exists() || staged();
    config.join.is_some() && !config.store_dir().exists() && new()
}

/// Asks until the cluster admits this node. Machines that are made together start in any order, so the
/// others may not be there yet; and a wrong token is replaced in the file without a restart being needed.
///
/// # Errors
/// When this machine's own files cannot be written.
pub(crate) async fn join(config: &Config, board: &Board) -> anyhow::Result<Admitted> {
    board.expect(JOIN);
    let staging = Staging::new(config.data_dir.join("join"));
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        match attempt(config, &staging).await {
            Ok(()) => break,
            Err(error) => {
                let error = crate::failure::text(&error);
                tracing::warn!(error, "the cluster has not admitted this node yet");
                board.failed(JOIN, &error);
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    staging.install(&config.pki_dir()).context("put the cluster's keys in place")?;
    staging.finish(&config.pki_dir()).context("tidy up after joining")?;
    board.ready(JOIN);
    tracing::info!("this node has joined the cluster that its configuration names");
    Admitted::read(&config.pki_dir())?.context("read what joining wrote")
}

async fn attempt(config: &Config, staging: &Staging) -> anyhow::Result<()> {
    // Read again: the operator may have put a new string there.
    let current = Config::load(Some(&config.file), &crate::config::Settings::default()).ok();
    let current = current.and_then(|mut current| left::pass_over(&mut current).ok().and(current.join));
    let text = current.or_else(|| config.join.clone());
    let string: JoinString = text.context("the configuration names no cluster any more")?.parse()?;
    let facts = super::facts::facts(config, config.role, &string)?;
    std::fs::create_dir_all(config.pki_dir()).context("create the folder of keys")?;
    let clock =
        Arc::new(Clock::open(&config.pki_dir().join("time-floor")).context("open the clock's floor")?);
    kedge_cluster::join(&string, &facts, staging, &clock).await.context("join the cluster")?;
    Ok(())
}

/// The addons that a new cluster gets, unless that was done already.
pub(crate) fn addons(config: &Config, joined: bool) -> Option<Vec<String>> {
    let named = config.addons.clone().filter(|addons| !addons.is_empty())?;
    (!joined && !config.first_start_mark().exists()).then_some(named)
}

/// Enables them, and keeps in mind that it was done: what somebody disables later stays so.
pub(crate) async fn enable(config: Config, addons: Vec<String>, client: kube::Client, board: Board) {
    let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
    loop {
        let words = board.clone();
        let result = async {
            let manager = addons::manager(&config, client.clone())?;
            addons::enable_all(&manager, &addons, HEALTHY, &mut |text| words.failed(ADDONS, text)).await?;
            let mark = config.first_start_mark();
            kedge_base::write_atomic(&mark, b"", 0o600).with_context(|| format!("write {}", mark.display()))
        };
        match result.await {
            Ok(()) => {
                tracing::info!(addons = addons.join(" "), "the addons of the first start are enabled");
                board.ready(ADDONS);
                return;
            }
            Err(error) => {
                let error = crate::failure::text(&error);
                tracing::warn!(error, "the addons of the first start are not all enabled yet");
                board.failed(ADDONS, &error);
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn only_a_new_node_joins_and_only_a_new_cluster_gets_addons() {
        let dir = tempfile::tempdir().unwrap();
        let mut given = Settings::default();
        given.insert("data-dir", dir.path().display().to_string());
        let load =
            |given: &Settings| Config::load(Some(std::path::Path::new("/nonexistent")), given).unwrap();
        assert!(!joins(&load(&given)));
        assert_eq!(addons(&load(&given), false), None);
        let hash = "0123456789abcdef".repeat(2);
        given.insert("join", format!("192.0.2.1:25000/{}/{hash}", "0".repeat(52)));
        given.insert("addons", "dns metrics".into());
        let config = load(&given);
        assert!(joins(&config));
        assert_eq!(addons(&config, false), Some(vec!["dns".to_owned(), "metrics".to_owned()]));
        assert_eq!(addons(&config, true), None, "a member has its cluster's");
        std::fs::write(config.first_start_mark(), "").unwrap();
        assert_eq!(addons(&config, false), None);
        std::fs::create_dir(config.pki_dir()).unwrap();
        std::fs::write(config.pki_dir().join("ca.crt"), "x").unwrap();
        assert!(!joins(&config));
    }
}
