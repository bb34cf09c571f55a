//! Deployments that follow the number of nodes: one replica for each node that their pods may run on, up to the
//! number in the annotation `kedge.dev/replicas-by-nodes`. Kedge's own, for what must not go with one node (names)
//! and should not take a single board's memory twice. It writes the scale subresource only.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kedge_client::{Change, Error, Informer, ObjectKey, Queue};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore_not_found};

const ANNOTATION: &str = "kedge.dev/replicas-by-nodes";

pub(crate) fn start(ctx: &Context) {
    let (deployments, nodes) = (ctx.informers.informer::<Deployment>(), ctx.informers.informer::<Node>());
    let queue = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&deployments, move |change: &Change<Deployment>| {
        if most(change.object()).is_some() {
            adder.add(change.key());
        }
    });
    let (all, adder) = (deployments.clone(), queue.clone());
    ctx.on_change(&nodes, move |change: &Change<Node>| {
        // Their status changes all the time.
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.metadata.labels == new.metadata.labels
        {
            return;
        }
        for deployment in all.list().iter().filter(|deployment| most(deployment).is_some()) {
            adder.add(ObjectKey::of(&**deployment));
        }
    });
    let ready = (deployments.clone(), nodes.clone());
    let synced = async move {
        ready.0.synced().await;
        ready.1.synced().await;
    };
    let client = ctx.client.clone();
    ctx.run("replicas-by-nodes", queue, 1, synced, move |key| {
        let (deployments, nodes, client) = (deployments.clone(), nodes.clone(), client.clone());
        async move { reconcile(&deployments, &nodes, client, &key).await }
    });
}

async fn reconcile(
    deployments: &Informer<Deployment>,
    nodes: &Informer<Node>,
    client: kube::Client,
    key: &ObjectKey,
) -> Result<Option<Duration>, Error> {
    let Some(deployment) = deployments.get_key(key) else { return Ok(None) };
    let Some(most) = most(&deployment) else { return Ok(None) };
    let selector = selector(&deployment);
    let fitting = nodes.list().iter().filter(|node| fits(node, &selector)).count();
    let wanted = i32::try_from(fitting).unwrap_or(i32::MAX).clamp(1, most);
    if deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(wanted) {
        return Ok(None);
    }
    let patch = Patch::Merge(json!({ "spec": { "replicas": wanted } }));
    let api = kube::Api::<Deployment>::namespaced(client, &key.namespace);
    ignore_not_found(api.patch_scale(&key.name, &PatchParams::default(), &patch).await)?;
    Ok(None)
}

/// The number of the annotation; one that is none counts as not there.
fn most(deployment: &Deployment) -> Option<i32> {
    let text = deployment.metadata.annotations.as_ref()?.get(ANNOTATION)?;
    text.parse().ok().filter(|most| *most > 0)
}

fn selector(deployment: &Deployment) -> BTreeMap<String, String> {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.and_then(|pod| pod.node_selector.clone()).unwrap_or_default()
}

/// Nodes that are cordoned or do not answer count: they come back, and pods need not move twice.
fn fits(node: &Node, selector: &BTreeMap<String, String>) -> bool {
    let labels = node.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};

    fn node(world: &World, name: &str, labels: &serde_json::Value) -> Node {
        world.create(json!({ "metadata": { "name": name, "labels": labels } }))
    }

    fn deployment(world: &World, name: &str, annotations: &serde_json::Value) {
        world.create::<Deployment>(json!({
            "metadata": { "name": name, "namespace": "default", "annotations": annotations },
            "spec": { "replicas": 1, "selector": {}, "template": { "spec": { "containers": [],
                "nodeSelector": { "own": "true" } } } },
        }));
    }

    fn replicas(world: &World, name: &str) -> Option<i32> {
        world.get::<Deployment>("default", name)?.spec?.replicas
    }

    #[test]
    fn replicas_follow_the_nodes_up_to_the_number() {
        run(async {
            let world = World::new();
            deployment(&world, "names", &json!({ ANNOTATION: "2" }));
            deployment(&world, "wrong", &json!({ ANNOTATION: "many" }));
            deployment(&world, "other", &json!({}));
            node(&world, "n1", &json!({ "own": "true" }));
            start(&world.ctx);
            world.settle().await;
            assert!(world.log().is_empty(), "one node, one replica: {:?}", world.log());

            node(&world, "strange", &json!({}));
            let second = node(&world, "n2", &json!({ "own": "true" }));
            world.until("a second replica", |world| replicas(world, "names") == Some(2)).await;
            node(&world, "n3", &json!({ "own": "true" }));
            world.settle().await;
            assert_eq!(replicas(&world, "names"), Some(2), "no more than the number");

            world.delete(&second);
            world.settle().await;
            assert_eq!(replicas(&world, "names"), Some(2), "two nodes are left");
            for name in ["n1", "n3"] {
                world.delete(&world.get::<Node>("", name).expect("a node"));
            }
            world.until("the last replica to stay", |world| replicas(world, "names") == Some(1)).await;
            assert_eq!((replicas(&world, "wrong"), replicas(&world, "other")), (Some(1), Some(1)));
        });
    }
}
