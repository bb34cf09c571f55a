//! While the pod network is somebody else's: what Kedge made for it is taken back once, and the other network's
//! CNI configuration is shown to the container runtime as soon as it is there. The Node is Ready only then.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kedge_base::{Backoff, Chain, FolderWatch};
use kedge_client::kube;
use kedge_client::kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::condition::Condition;
use super::lease::is_own_annotation;
use super::run::Inner;
use super::{CniFiles, PodNetwork, remove_rules};
use crate::{Error, host};

impl Inner {
    /// Until this node is told to read the configuration again.
    pub(super) async fn stay_out(&self, wanted: Option<&str>) {
        self.network.send_replace(None);
        self.last.lock().take();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let done = self.let_go().await;
            let Err(problem) = done else { break };
            tracing::warn!(problem, "what Kedge made for the pod network is not all taken back yet");
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.changed.notified() => {}
            }
        }
        self.state.send_replace(Some(PodNetwork { backend: "none".to_owned(), ..PodNetwork::default() }));
        let foreign = self.config.cni.as_ref().map(|files| files.foreign_dir.display().to_string());
        tracing::info!(
            folder = foreign,
            "the pod network is somebody else's; its CNI configuration is looked for"
        );
        backoff.reset();
        loop {
            if self.wanted().as_deref() != wanted {
                return;
            }
            let told = self.acknowledge(wanted).await.map_err(|error| Chain(&error).to_string());
            let watched = match &self.config.cni {
                Some(files) => follow(files).map_err(|error| Chain(&error).to_string()),
                None => Ok(None),
            };
            let again = match (told, watched) {
                (Ok(()), Ok(watch)) => {
                    backoff.reset();
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = changed(watch) => {}
                    }
                    continue;
                }
                (Err(problem), _) | (_, Err(problem)) => problem,
            };
            tracing::warn!(
                problem = again,
                "another pod network's configuration cannot be followed, trying again"
            );
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Once: the file for the CNI plugins is what says that this network was on here.
    async fn let_go(&self) -> Result<(), String> {
        let Some(files) = &self.config.cni else { return Ok(()) };
        if !host::has_cni_config(&files.dir) {
            return Ok(());
        }
        let (kernel, bridge) = (self.kernel.clone(), self.config.bridge.clone());
        let removed = tokio::task::spawn_blocking(move || {
            remove_rules().map_err(|error| Chain(&error).to_string())?;
            kernel
                .remove(&bridge)
                .map_err(|error| format!("remove the pod network's routes and devices: {error}"))
        });
        removed.await.unwrap_or_else(|error| Err(error.to_string()))?;
        self.forget().await.map_err(|error| format!("the Node was not changed: {}", Chain(&error)))?;
        *self.patched.lock() = None;
        *self.said.lock() = None;
        host::remove_cni_config(&files.dir).map_err(|error| Chain(&error).to_string())
    }

    /// Others send no packets here any more, and the scheduler asks the next network.
    async fn forget(&self) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get("", &self.config.node_name) else { return Ok(()) };
        let nodes = kube::Api::<Node>::all(self.client.clone());
        let ours: Map<String, Value> = node
            .metadata
            .annotations
            .iter()
            .flat_map(|all| all.keys())
            .filter(|key| is_own_annotation(key))
            .map(|key| (key.clone(), Value::Null))
            .collect();
        let name = &self.config.node_name;
        if !ours.is_empty() {
            let patch = json!({ "metadata": { "annotations": ours } });
            nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        if Condition::of(&node).is_some_and(|condition| condition.is_ours()) {
            nodes
                .patch_status(name, &PatchParams::default(), &Patch::Strategic(Condition::removal()))
                .await?;
        }
        Ok(())
    }
}

/// Watches first, then copies, so that nothing falls in between.
fn follow(files: &CniFiles) -> Result<Option<FolderWatch>, Error> {
    let foreign = &files.foreign_dir;
    std::fs::create_dir_all(foreign).map_err(|error| Error::file("create folder", foreign, error))?;
    let watch = FolderWatch::new(foreign).map_err(|error| Error::file("watch", foreign, error))?;
    host::show_foreign_cni(&files.dir, foreign)?;
    Ok(Some(watch))
}

async fn changed(watch: Option<FolderWatch>) {
    match watch {
        Some(mut watch) => {
            let result = watch.changed().await;
            if result.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                // The folder is made and watched again by the caller; not in a circle.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        None => std::future::pending().await,
    }
}
