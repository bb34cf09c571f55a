use super::*;
use crate::fake::{World, run};
use serde_json::{Value, json};

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image }] } })
}

fn world(spec: Value) -> (World, StatefulSet) {
    let world = World::new();
    let mut spec = spec;
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    spec["serviceName"] = json!("web");
    spec["template"] = template("a");
    if spec["updateStrategy"].is_null() {
        spec["updateStrategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } });
    }
    let set = world
        .create::<StatefulSet>(json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec }));
    start(&world.ctx);
    (world, set)
}

fn make_ready(world: &World, name: &str) {
    let pod = world.get::<Pod>("ns", name).expect("the pod exists");
    world.edit(&pod, |pod| {
        pod["status"] = json!({ "phase": "Running", "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" }] });
    });
}

/// Names and images of the pods.
fn pods_of(world: &World) -> Vec<String> {
    let pods = world.list::<Pod>();
    let each = pods.iter().map(|pod| {
        let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
        format!("{}:{image}", pod.metadata.name.as_deref().unwrap_or_default())
    });
    each.collect()
}

async fn becomes(world: &World, expected: &[&str]) {
    world.until(&format!("{expected:?}"), |world| pods_of(world) == expected).await;
    world.settle().await;
    assert_eq!(pods_of(world), expected, "nothing more happens");
}

fn status(world: &World) -> StatefulSetStatus {
    world.get::<StatefulSet>("ns", "web").and_then(|set| set.status).unwrap_or_default()
}

#[test]
fn pods_come_and_go_in_order_and_updates_go_backwards() {
    run(async {
        let (world, set) = world(json!({ "replicas": 3, "volumeClaimTemplates": [
            { "metadata": { "name": "data" }, "spec": { "resources": { "requests": { "storage": "1Gi" } } } }] }));
        becomes(&world, &["web-0:a"]).await;
        make_ready(&world, "web-0");
        becomes(&world, &["web-0:a", "web-1:a"]).await;
        make_ready(&world, "web-1");
        becomes(&world, &["web-0:a", "web-1:a", "web-2:a"]).await;
        make_ready(&world, "web-2");
        world.until("complete", |w| status(w).ready_replicas == Some(3)).await;
        let claims: Vec<_> =
            world.list::<PersistentVolumeClaim>().into_iter().filter_map(|c| c.metadata.name).collect();
        assert_eq!(claims, ["data-web-0", "data-web-1", "data-web-2"]);
        let first = status(&world).current_revision;
        world.edit(&set, |set| set["spec"]["template"] = template("b"));
        for expected in [
            ["web-0:a", "web-1:a", "web-2:b"],
            ["web-0:a", "web-1:b", "web-2:b"],
            ["web-0:b", "web-1:b", "web-2:b"],
        ] {
            becomes(&world, &expected).await;
            for name in ["web-0", "web-1", "web-2"] {
                make_ready(&world, name);
            }
        }
        world
            .until("the new revision is the current one", |w| {
                let status = status(w);
                status.current_revision == status.update_revision && status.current_revision != first
            })
            .await;
        world.edit(&set, |set| set["spec"]["replicas"] = json!(1));
        becomes(&world, &["web-0:b"]).await;
        assert_eq!(world.list::<PersistentVolumeClaim>().len(), 3, "claims stay");
    });
}

#[test]
fn parallel_sets_start_at_once_and_a_partition_holds_pods_back() {
    run(async {
        let (world, set) = world(json!({
            "replicas": 3, "podManagementPolicy": "Parallel", "ordinals": { "start": 2 },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 1, "maxUnavailable": 2 } },
        }));
        becomes(&world, &["web-2:a", "web-3:a", "web-4:a"]).await;
        for name in ["web-2", "web-3", "web-4"] {
            make_ready(&world, name);
        }
        world.until("complete", |w| status(w).ready_replicas == Some(3)).await;
        world.edit(&set, |set| set["spec"]["template"] = template("b"));
        becomes(&world, &["web-2:a", "web-3:b", "web-4:b"]).await;
        let held = world.get::<Pod>("ns", "web-2").expect("there");
        world.delete(&held);
        world.until("it comes back as it was", |w| pods_of(w) == ["web-2:a", "web-3:b", "web-4:b"]).await;
    });
}

#[test]
fn failed_pods_come_back_and_with_on_delete_nothing_rolls() {
    run(async {
        let (world, set) = world(json!({ "replicas": 1, "updateStrategy": { "type": "OnDelete" } }));
        becomes(&world, &["web-0:a"]).await;
        make_ready(&world, "web-0");
        world.edit(&set, |set| set["spec"]["template"] = template("b"));
        becomes(&world, &["web-0:a"]).await;
        let pod = world.get::<Pod>("ns", "web-0").expect("there");
        world.edit(&pod, |pod| pod["status"]["phase"] = json!("Failed"));
        becomes(&world, &["web-0:b"]).await;
        assert!(world.events().contains(&"RecreatingFailedPod".to_owned()));
    });
}

#[test]
fn claims_belong_to_the_set_or_to_a_condemned_pod() {
    run(async {
        let (world, set) = world(json!({ "replicas": 2, "podManagementPolicy": "Parallel",
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Delete", "whenScaled": "Delete" },
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {} }] }));
        becomes(&world, &["web-0:a", "web-1:a"]).await;
        let owner = |w: &World, name: &str| {
            let claim = w.get::<PersistentVolumeClaim>("ns", name)?;
            claim.metadata.owner_references?.first().map(|owner| owner.kind.clone())
        };
        world
            .until("owned by the set", |w| {
                ["data-web-0", "data-web-1"]
                    .iter()
                    .all(|name| owner(w, name).as_deref() == Some("StatefulSet"))
            })
            .await;
        world.edit(&set, |set| set["spec"]["replicas"] = json!(1));
        becomes(&world, &["web-0:a"]).await;
        assert_eq!(owner(&world, "data-web-1").as_deref(), Some("Pod"));
        // The garbage collector has not been there yet: the new pod must wait for its own claim.
        world.edit(&set, |set| set["spec"]["replicas"] = json!(2));
        becomes(&world, &["web-0:a"]).await;
        let claim = world.get::<PersistentVolumeClaim>("ns", "data-web-1").expect("there");
        world.delete(&claim);
        becomes(&world, &["web-0:a", "web-1:a"]).await;
    });
}
