//! What commands ask of the running node beside its status: tokens, nodes, leaving. Requests and answers
//! are JSON on the node's own socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kedge_cluster::{
    HostPort, JoinString, Leaf, Members, NodeRecord, Pki, Refusal, Registry, Role, TokenOptions, TokenSummary,
};
use kedge_store::Store;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, AuthorityStatus};
use super::backup::{Backups, Save, Saved};
use super::drain::{self, Drained, Progress};
use super::encryption::{Encryption, EncryptionStatus};
use crate::config::Config;
use crate::control::{self, Reply, Request};
use crate::failure::Remedied;

/// How long a control-plane node that leaves waits until the others do without it.
const HANDED_OVER: Duration = Duration::from_secs(30);

/// The names of the cluster's other nodes.
pub(crate) const OTHER_NODES: &str = "/other-nodes";
/// What joining another cluster would lose, in words.
pub(crate) const OBJECTS_OF_USERS: &str = "/objects-of-users";

/// `POST /add-node`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddNode {
    pub(crate) ttl_seconds: u64,
    pub(crate) reusable: bool,
    pub(crate) worker_only: bool,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Invitation {
    /// What `kedge join` takes, one for each address of this node and of the cluster.
    pub(crate) join: Vec<String>,
    pub(crate) expires: Timestamp,
    pub(crate) reusable: bool,
    /// Who joins with it says `--worker`.
    #[serde(default)]
    pub(crate) worker: bool,
    /// The token's id in the list.
    pub(crate) id: String,
}

/// `POST /remove-node`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RemoveNode {
    /// Name, id or address.
    pub(crate) node: String,
    pub(crate) force: bool,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// The name.
    pub(crate) node: String,
    /// Why its pods were not moved away to the end.
    pub(crate) lost: Option<String>,
}

/// `POST /leave`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Leave {
    pub(crate) force: bool,
}

/// The parts of a running node that these requests work on.
pub(crate) struct Ops {
    pub(crate) client: kube::Client,
    pub(crate) pki: Arc<Pki>,
    pub(crate) node_name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) cluster_port: u16,
    /// On control-plane nodes.
    pub(crate) control_plane: Option<(Registry, Store)>,
    /// On nodes that joined.
    pub(crate) members: Option<Arc<Members>>,
    /// On control-plane nodes.
    pub(crate) backups: Option<Arc<Backups>>,
    /// On control-plane nodes.
    pub(crate) authority: Option<Arc<Authority>>,
    /// On control-plane nodes.
    pub(crate) encryption: Option<Arc<Encryption>>,
    pub(crate) config: Config,
    /// What is being done for whoever waits.
    pub(crate) progress: Progress,
}

impl Ops {
    /// Answers a request; `None`: it is none of these.
    pub(crate) async fn answer(&self, request: &Request) -> Option<Reply> {
        Some(match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/add-node") => reply(with(request, async |wish| self.add_node(&wish).await).await),
            ("GET", "/tokens") => reply(self.tokens().await),
            ("POST", "/tokens/revoke") => {
                reply(with(request, async |id: String| self.revoke(&id).await).await)
            }
            ("GET", "/nodes") => reply(self.nodes().await),
            ("POST", "/remove-node") => {
                let done = with(request, async |wish| self.remove_node(&wish).await).await;
                self.progress.clear();
                reply(done)
            }
            ("POST", "/leave") => {
                let done = with(request, async |wish| self.leave(&wish).await).await;
                self.progress.clear();
                reply(done)
            }
            ("GET", control::PROGRESS) => Reply::json(&self.progress.text()),
            ("POST", "/snapshots") => {
                reply(with(request, async |wish: Save| self.save_snapshot(&wish).await).await)
            }
            ("GET", "/secrets-encryption") => reply(self.encryption_status().await),
            ("POST", "/secrets-encryption") => {
                reply(with(request, async |wish| self.encryption()?.wish(&wish).await).await)
            }
            ("GET", "/certs/authority") => reply(self.authority_status().await),
            ("POST", "/certs/authority") => {
                reply(with(request, async |wish| self.authority()?.wish(wish).await).await)
            }
            ("POST", "/certs/rotate") => reply(self.rotate().await),
            ("GET", OTHER_NODES) => reply(self.other_nodes().await),
            ("GET", OBJECTS_OF_USERS) => {
                let namespaces = [kedge_network::CONFIG_MAP_NAMESPACE];
                let found = kedge_addons::objects_of_users(&self.client, &namespaces).await;
                reply(found.context("see what was made in this cluster"))
            }
            _ => return None,
        })
    }

    fn registry(&self) -> anyhow::Result<&Registry> {
        let (registry, _) = self.control_plane.as_ref().ok_or_else(of_worker)?;
        Ok(registry)
    }

    fn authority(&self) -> anyhow::Result<&Authority> {
        self.authority.as_deref().ok_or_else(of_worker)
    }

    async fn authority_status(&self) -> anyhow::Result<AuthorityStatus> {
        self.authority()?.status().await
    }

    fn encryption(&self) -> anyhow::Result<&Encryption> {
        self.encryption.as_deref().ok_or_else(of_worker)
    }

    async fn encryption_status(&self) -> anyhow::Result<EncryptionStatus> {
        self.encryption()?.status().await
    }

    async fn add_node(&self, wish: &AddNode) -> anyhow::Result<Invitation> {
        let roles =
            if wish.worker_only { vec![Role::Worker] } else { vec![Role::ControlPlane, Role::Worker] };
        let options =
            TokenOptions { ttl: Duration::from_secs(wish.ttl_seconds), reusable: wish.reusable, roles };
        let (token, record) = self.registry()?.create_token(&options).await?;
        let join = self
            .addresses
            .iter()
            // Last: it serves only while some node leads.
            .chain(&self.config.virtual_addresses)
            .map(|address| {
                let server = HostPort { host: address.to_string(), port: self.cluster_port };
                JoinString { server, token: token.clone(), ca_hash: self.pki.ca_hash() }.to_string()
            })
            .collect();
        Ok(Invitation {
            join,
            expires: record.expires,
            reusable: record.reusable,
            worker: wish.worker_only,
            id: record.hash.id().to_owned(),
        })
    }

    async fn tokens(&self) -> anyhow::Result<Vec<TokenSummary>> {
        Ok(self.registry()?.tokens().await?)
    }

    async fn revoke(&self, id: &str) -> anyhow::Result<String> {
        Ok(self.registry()?.revoke_token(id).await?.hash.id().to_owned())
    }

    async fn nodes(&self) -> anyhow::Result<Vec<NodeRecord>> {
        Ok(self.registry()?.nodes().await?)
    }

    /// Pods are moved away first, unless the node is dead or `force` says that there is no time for it.
    async fn remove_node(&self, wish: &RemoveNode) -> anyhow::Result<Removed> {
        let registry = self.registry()?;
        let record = registry.find(&wish.node).await?;
        if record.id == self.pki.node_id() {
            return Err(Remedied::new(format!("{} is this node", record.name), "run kedge leave here").into());
        }
        // Before anything is moved for it.
        registry.check_removal(record.id).await?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let ready = nodes.get_opt(&record.name).await?.is_some_and(|node| drain::is_ready(&node));
        let mut drained = Drained::default();
        if ready && !wish.force {
            let lost = drain::until_lost(&self.client, &record.name);
            drained = drain::drain(&self.client, &record.name, &self.progress, lost).await?;
        }
        self.progress.say(format!("taking {} off the cluster", record.name));
        match registry.remove(&record.id.to_string()).await {
            Ok(record) => Ok(Removed { node: record.name, lost: drained.lost }),
            Err(refusal) => {
                if drained.cordoned {
                    drain::uncordon(&self.client, &record.name).await;
                }
                Err(refusal.into())
            }
        }
    }

    async fn leave(&self, wish: &Leave) -> anyhow::Result<String> {
        if self.is_off().await? {
            return Ok(self.node_name.clone());
        }
        let id = self.pki.node_id();
        if let Some((registry, _)) = &self.control_plane {
            registry.check_removal(id).await?;
        }
        let mut drained = Drained::default();
        if !wish.force {
            let never = std::future::pending();
            drained = drain::drain(&self.client, &self.node_name, &self.progress, never).await?;
        }
        self.progress.say("leaving the cluster".to_owned());
        let left = self.take_off().await;
        if left.is_err() && drained.cordoned {
            drain::uncordon(&self.client, &self.node_name).await;
        }
        left.map(|()| self.node_name.clone())
    }

    /// Was this node taken off the cluster already? Then there is nobody to tell and nothing to move.
    async fn is_off(&self) -> anyhow::Result<bool> {
        let id = self.pki.node_id();
        match (&self.control_plane, &self.members) {
            (Some((registry, store)), members) => {
                if store.status().borrow().removed || registry.gone(id).is_some() {
                    return Ok(true);
                }
                // It may have been down when that happened, and its own copy knows nothing of it.
                let Some(members) = members.as_ref().filter(|_| store.leader().is_none()) else {
                    return Ok(false);
                };
                Ok(matches!(
                    members.standing().await,
                    Err(kedge_cluster::Error::Refused(Refusal::Removed { .. }))
                ))
            }
            (None, Some(members)) => Ok(matches!(
                members.standing().await,
                Err(kedge_cluster::Error::Refused(Refusal::Removed { .. } | Refusal::NotAMember))
            )),
            (None, None) => Ok(false),
        }
    }

    async fn take_off(&self) -> anyhow::Result<()> {
        let id = self.pki.node_id();
        if let Some((registry, store)) = &self.control_plane {
            registry.leave(id).await?;
            // The others do without its vote by now; they need not write to it for ever.
            if tokio::time::timeout(HANDED_OVER, store.gone(id.get())).await.is_err() {
                tracing::warn!("the others did not confirm in time that they do without this node");
            }
        } else if let Some(members) = &self.members {
            members.leave().await?;
        }
        Ok(())
    }

    async fn save_snapshot(&self, wish: &Save) -> anyhow::Result<Saved> {
        self.backups.as_ref().ok_or_else(of_worker)?.save(wish).await
    }

    /// Every certificate anew: listeners and clients use them from the next handshake on.
    async fn rotate(&self) -> anyhow::Result<Vec<Leaf>> {
        let Some(members) = self.members.as_ref().filter(|_| self.control_plane.is_none()) else {
            self.pki.rotate(&Leaf::ALL)?;
            crate::kubeconfig::write(&self.config)?;
            return Ok(Leaf::ALL.to_vec());
        };
        for leaf in Leaf::WORKER {
            members.renew(leaf).await?;
        }
        Ok(Leaf::WORKER.to_vec())
    }

    async fn other_nodes(&self) -> anyhow::Result<Vec<String>> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let names = nodes.list(&ListParams::default()).await?.items.into_iter();
        Ok(names.filter_map(|node| node.metadata.name).filter(|name| *name != self.node_name).collect())
    }
}

async fn with<T: DeserializeOwned, R>(
    request: &Request,
    work: impl AsyncFnOnce(T) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    work(serde_json::from_slice(&request.body).context("read the request")?).await
}

fn of_worker() -> anyhow::Error {
    Remedied::new("this is a worker", "run the command on a control-plane node").into()
}

fn reply<T: Serialize>(result: anyhow::Result<T>) -> Reply {
    match result {
        Ok(value) => Reply::json(&value),
        Err(error) => {
            let harmful = matches!(error.downcast_ref::<Refusal>(), Some(Refusal::Unsafe { .. }));
            Reply::refused(if harmful { control::UNSAFE } else { 409 }, &error)
        }
    }
}
