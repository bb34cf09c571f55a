//! Volumes that are folders of a node (the addon hostpath-storage): a provisioner runs on every node and
//! makes the volumes of the claims whose pods the scheduler has put there. A volume carries the node's
//! affinity, so that its pods come back to their data.
//!
//! The crate talks to an API server and touches one folder of the node.

mod folder;
mod provision;
mod reclaim;

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_base::Tasks;
use kedge_client::{Error, Informer, Informers, Queue, Recorder, StorageKey, run_controller};

/// What the StorageClass names.
pub const PROVISIONER: &str = "kedge.dev/hostpath";

const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume: the name of the node that holds its folder.
const NODE: &str = "kedge.dev/node";
/// Keeps a volume until its folder is gone (sig-storage-lib-external-provisioner's).
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// What the provisioner needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of the node that it runs on.
    pub node: String,
    /// Volumes are folders in this one.
    pub root: PathBuf,
}

struct Provisioner {
    config: Config,
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    recorder: Recorder,
}

/// Starts the provisioner of one node; it runs until the tasks stop.
///
/// # Errors
/// When the folder cannot be made or written.
pub async fn start(config: Config, client: kube::Client, tasks: &Tasks) -> Result<(), Error> {
    folder::check(&config.root).await?;
    let informers = Informers::new(client.clone(), tasks);
    let component = format!("{PROVISIONER}_{}", config.node);
    let provisioner = Arc::new(Provisioner {
        recorder: Recorder::new(client.clone(), tasks, &component, &config.node),
        client,
        claims: informers.informer(),
        volumes: informers.informer(),
        classes: informers.informer(),
        config,
    });
    let queue: Queue<StorageKey> = Queue::new();
    let adds = queue.clone();
    provisioner.claims.on_change(move |change| {
        if change.new.is_some() {
            adds.add(StorageKey::Claim(change.key()));
        }
    });
    let adds = queue.clone();
    provisioner.volumes.on_change(move |change| {
        if change.new.is_some() {
            adds.add(StorageKey::Volume(change.key().name));
        }
    });
    provisioner.claims.synced().await;
    provisioner.volumes.synced().await;
    provisioner.classes.synced().await;
    tracing::info!(
        node = provisioner.config.node,
        folder = %provisioner.config.root.display(),
        "volumes are made on this node"
    );
    run_controller(tasks, "hostpath-storage", queue, 2, move |item: StorageKey| {
        let this = provisioner.clone();
        async move {
            match item {
                StorageKey::Claim(key) => this.claim(&key).await,
                StorageKey::Volume(name) => this.volume(&name).await,
            }
        }
    });
    Ok(())
}

impl Provisioner {
    async fn node(&self, name: &str) -> Result<Option<Node>, Error> {
        Ok(kube::Api::<Node>::all(self.client.clone()).get_opt(name).await?)
    }
}
