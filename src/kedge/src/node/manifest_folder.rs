//! The folder of manifests on a node of the control plane: what `kedge_addons::Manifests` reports becomes
//! lines of `kedge status` and Events about the Node.

use k8s_openapi::api::core::v1::ObjectReference;
use kedge_addons::{Done, Manifests};
use kedge_base::Tasks;
use kedge_client::{EventType, Recorder};

use crate::config::Config;
use crate::node_status::Board;

/// Apply what is in the folder, now and whenever it changes.
pub(crate) fn start(config: &Config, client: &kube::Client, board: &Board, tasks: &Tasks) {
    let folder = config.manifest_dir();
    let manifests = Manifests::new(client.clone(), folder.clone(), config.node_name.clone());
    let recorder = Recorder::new(client.clone(), tasks, "kedge", &config.node_name);
    let node = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(config.node_name.clone()),
        // As the kubelet's own events have it.
        uid: Some(config.node_name.clone()),
        ..ObjectReference::default()
    };
    let board = board.clone();
    let mut told: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    tasks.spawn_until_stopped(
        "manifests",
        manifests.follow(move |file, result| {
            let place = folder.join(file).display().to_string();
            match result {
                Ok(Done { applied, pruned }) => {
                    if applied + pruned > 0 {
                        tracing::info!(file, applied, pruned, "manifest applied");
                    }
                    told.remove(file);
                    board.note(&place, None);
                }
                Err(error) => {
                    let problem = error.text();
                    board.note(&place, Some(problem.clone()));
                    // It is tried again and again; the first time is enough.
                    if told.get(file) != Some(&problem) {
                        tracing::warn!(file, error = problem, "manifest not applied");
                        let message = format!("{place}: {problem}");
                        recorder.event(node.clone(), EventType::Warning, "ManifestFailed", message);
                        told.insert(file.to_owned(), problem);
                    }
                }
            }
        }),
    );
}
