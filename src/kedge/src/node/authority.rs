//! Replacing the cluster's authority on a running node: does what [`AuthorityState`] says is next here, says so
//! in the cluster's book, and takes the cluster on when every node is that far. A control-plane node follows
//! the book itself; a worker asks over the cluster port when its Node object says that there is news.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kedge_base::{Backoff, Tasks};
use kedge_client::Informers;
use kedge_cluster::{AuthorityStage, AuthorityState, AuthorityStep, Leaf, Members, Pki, Registry, Role};
use kube::api::{Api, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::in_step::in_step;
use crate::config::Config;

/// On workers' Nodes: which state of the replacement they are to ask for.
const ANNOTATION: &str = "kedge.io/authority";
/// There are five steps.
const STEPS: u32 = 8;
/// A decision that another one came before is made again so many times.
const ATTEMPTS: u32 = 16;

/// `POST /certs/authority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AuthorityWish {
    Start,
    Finish,
    Abort,
}

/// Its answer, and that of `GET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthorityStatus {
    pub(crate) stage: AuthorityStage,
    /// The hash of the authority that goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) old: Option<String>,
    /// The hash of the one that stays.
    pub(crate) new: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    /// Nodes that have not done what the stage asks for.
    pub(crate) waiting_for: Vec<String>,
}

/// A control-plane node's part.
pub(crate) struct Authority {
    pki: Arc<Pki>,
    registry: Registry,
    others: Members,
    config: Config,
    /// Held while files are changed.
    busy: Mutex<()>,
}

impl Authority {
    /// # Errors
    /// When the certificates are of no use for TLS.
    pub(crate) fn new(pki: Arc<Pki>, registry: Registry, config: Config) -> anyhow::Result<Arc<Self>> {
        let others = Members::new(pki.clone(), Vec::new())?;
        Ok(Arc::new(Self { pki, registry, others, config, busy: Mutex::default() }))
    }

    /// Does this node's part whenever the book changes, until `tasks` stop.
    pub(crate) fn follow(self: &Arc<Self>, changes: watch::Receiver<u64>, tasks: &Tasks) {
        let own = self.clone();
        let sync = move || {
            let own = own.clone();
            async move { own.sync().await }
        };
        tasks.spawn_until_stopped("cluster authority", in_step(changes, "the authority's replacement", sync));
    }

    async fn sync(&self) -> anyhow::Result<()> {
        let Some((state, revision)) = self.registry.authority_here()? else { return Ok(()) };
        self.own_part(&state).await?;
        self.registry.report_authority(self.pki.node_id(), &self.pki.authority_report()?).await?;
        if let Some(next) = state.advanced(self.now())
            && self.registry.lacking_authority(&state).await?.is_empty()
            && self.registry.set_authority(&next, Some(revision)).await?
        {
            tracing::info!(stage = ?next.stage, "every node is that far: the authority's replacement goes on");
        }
        Ok(())
    }

    async fn own_part(&self, state: &AuthorityState) -> anyhow::Result<()> {
        let _busy = self.busy.lock().await;
        let mut changed = false;
        for _ in 0..STEPS {
            let Some(step) = state.next_step(Role::ControlPlane, &self.pki.authority_report()?) else {
                break;
            };
            tracing::info!(?step, stage = ?state.stage, "the cluster's authority is being replaced");
            match step {
                AuthorityStep::GetKey => {
                    self.others.set_peers(self.registry.control_plane());
                    let hash = state.new_hash();
                    let has = |keys: &kedge_cluster::ControlPlaneKeys| keys.authority_key(&hash).is_some();
                    let keys = self.others.keys(has).await.context("fetch the new authority's key")?;
                    self.pki.take_authority_key(state, &keys)?;
                }
                step => self.pki.authority_step(state, step)?,
            }
            changed = true;
        }
        if changed {
            crate::kubeconfig::write(&self.config)?;
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        let seconds = i64::try_from(self.pki.clock().now()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    }

    /// Starts, finishes or gives up. What is so already stays so.
    ///
    /// # Errors
    /// When it would cut somebody off, or the store does not take it.
    pub(crate) async fn wish(&self, wish: AuthorityWish) -> anyhow::Result<AuthorityStatus> {
        let busy = self.busy.lock().await;
        for _ in 0..ATTEMPTS {
            let before = self.registry.authority().await?;
            let state = before.as_ref().map(|(state, _)| state);
            let next = match wish {
                AuthorityWish::Start if state.is_none_or(|state| state.stage == AuthorityStage::Settled) => {
                    Some(self.pki.new_authority()?)
                }
                AuthorityWish::Start => None,
                AuthorityWish::Finish => {
                    let lacking = match state {
                        Some(state) => self.registry.lacking_authority(state).await?,
                        None => Vec::new(),
                    };
                    AuthorityState::finished(state, &lacking, self.now())?
                }
                AuthorityWish::Abort => AuthorityState::aborted(state, self.now())?,
            };
            let done = match next {
                None => true,
                Some(next) => {
                    self.registry.set_authority(&next, before.map(|(_, revision)| revision)).await?
                }
            };
            if done {
                drop(busy);
                return self.status().await;
            }
        }
        Err(crate::failure::Remedied::new("too many changes at the same time", "try again").into())
    }

    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn status(&self) -> anyhow::Result<AuthorityStatus> {
        let Some((state, _)) = self.registry.authority().await? else {
            return Ok(AuthorityStatus {
                stage: AuthorityStage::Settled,
                old: None,
                new: self.pki.ca_hash(),
                since: None,
                waiting_for: Vec::new(),
            });
        };
        Ok(AuthorityStatus {
            stage: state.stage,
            old: state.old_hash(),
            new: state.new_hash(),
            since: Some(state.since),
            waiting_for: self.registry.lacking_authority(&state).await?,
        })
    }
}

/// Tells the workers, by their Node objects, that there is news. Runs on the node that leads.
pub(crate) async fn tell_workers(registry: Registry, changes: watch::Receiver<u64>, client: kube::Client) {
    let nodes: Api<Node> = Api::all(client);
    in_step(changes, "workers and the new authority", || tell(&registry, &nodes)).await;
}

async fn tell(registry: &Registry, nodes: &Api<Node>) -> anyhow::Result<()> {
    let Some((state, revision)) = registry.authority_here()? else { return Ok(()) };
    if state.stage == AuthorityStage::Settled && state.old.is_empty() && state.cross.is_empty() {
        // Who has not heard of the end hears it at its start; but an abort concerns those who trust both.
        let lacking = registry.lacking_authority(&state).await?;
        if lacking.is_empty() {
            return Ok(());
        }
    }
    let wanted = revision.to_string();
    for node in registry.nodes().await?.into_iter().filter(|node| node.role == Role::Worker) {
        let Some(found) = nodes.get_opt(&node.name).await? else { continue };
        if found.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION)) == Some(&wanted) {
            continue;
        }
        let patch = serde_json::json!({ "metadata": { "annotations": { ANNOTATION: wanted } } });
        nodes.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// A worker's part: asks at its start and whenever its Node says that there is news.
pub(crate) fn follow_as_worker(
    pki: Arc<Pki>,
    members: Arc<Members>,
    name: &str,
    informers: &Informers,
    tasks: &Tasks,
) {
    let news = watch::Sender::new(None);
    let mut heard = news.subscribe();
    let informer = informers.informer_with_fields::<Node>(&format!("metadata.name={name}"));
    informer.on_change(move |change| {
        let annotations = change.new.as_ref().and_then(|node| node.metadata.annotations.as_ref());
        let now = annotations.and_then(|all| all.get(ANNOTATION)).cloned();
        news.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
    });
    tasks.spawn_until_stopped("cluster authority", async move {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        loop {
            heard.mark_unchanged();
            match ask(&pki, &members).await {
                Ok(()) => {
                    backoff.reset();
                    if heard.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "the authority's replacement waits");
                    // News may be what it waits for.
                    let _ = tokio::time::timeout(backoff.next_delay(), heard.changed()).await;
                }
            }
        }
    });
}

async fn ask(pki: &Pki, members: &Members) -> anyhow::Result<()> {
    let mut last = None;
    for _ in 0..STEPS {
        // Each question says what this node has by now.
        let Some(state) = members.authority().await? else { return Ok(()) };
        let Some(step) = state.next_step(Role::Worker, &pki.authority_report()?) else { return Ok(()) };
        anyhow::ensure!(
            last != Some(step),
            "the control-plane node that answered does not issue by the new authority yet"
        );
        tracing::info!(?step, stage = ?state.stage, "the cluster's authority is being replaced");
        match step {
            AuthorityStep::Reissue => {
                for leaf in Leaf::WORKER {
                    members.renew(leaf).await?;
                }
            }
            step => pki.authority_step(&state, step)?,
        }
        last = Some(step);
    }
    Ok(())
}
