use super::*;
use crate::fake::{World, run};
use serde_json::Value;

fn volume(world: &World, name: &str, size: &str, more: Value) -> PersistentVolume {
    let mut value = json!({ "metadata": { "name": name }, "spec": { "capacity": { "storage": size },
        "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": "/data" } } });
    for (key, field) in more.as_object().into_iter().flatten() {
        value["spec"][key] = field.clone();
    }
    world.create(value)
}

fn claim(world: &World, name: &str, more: Value) -> PersistentVolumeClaim {
    let mut spec = more;
    spec["accessModes"] = json!(["ReadWriteOnce"]);
    spec["resources"] = json!({ "requests": { "storage": "5Gi" } });
    world.create(json!({ "metadata": { "name": name, "namespace": "ns" }, "spec": spec }))
}

fn claim_phase(world: &World, name: &str) -> String {
    let claim = world.get::<PersistentVolumeClaim>("ns", name);
    claim.and_then(|claim| claim.status?.phase).unwrap_or_default()
}

fn volume_phase(world: &World, name: &str) -> String {
    world.get::<PersistentVolume>("", name).and_then(|volume| volume.status?.phase).unwrap_or_default()
}

#[test]
fn a_claim_gets_a_volume_and_leaves_it_released() {
    run(async {
        let world = World::new();
        start(&world.ctx);
        let first = claim(&world, "c", json!({ "storageClassName": "" }));
        claim(&world, "d", json!({ "storageClassName": "" }));
        world
            .until("pending", |w| claim_phase(w, "c") == "Pending" && claim_phase(w, "d") == "Pending")
            .await;
        volume(&world, "small", "1Gi", json!({}));
        volume(&world, "fit", "10Gi", json!({}));
        world.until("one is bound", |w| claim_phase(w, "c") == "Bound").await;
        world.settle().await;
        assert_eq!(
            (
                claim_phase(&world, "d").as_str(),
                volume_phase(&world, "fit").as_str(),
                volume_phase(&world, "small").as_str()
            ),
            ("Pending", "Bound", "Available")
        );
        let bound = world.get::<PersistentVolumeClaim>("ns", "c").expect("there");
        assert_eq!(volume_name(&bound), Some("fit"));
        assert_eq!(
            bound.status.and_then(|status| status.capacity).map(|all| all["storage"].0.clone()),
            Some("10Gi".into())
        );
        world.delete(&first);
        world.until("released", |w| volume_phase(w, "fit") == "Released").await;
        world.settle().await;
        assert_eq!(claim_phase(&world, "d"), "Pending", "a released volume holds another's data");
    });
}

#[test]
fn provisioners_are_asked_and_first_consumers_waited_for() {
    run(async {
        let world = World::new();
        for (name, mode) in [("now", "Immediate"), ("later", "WaitForFirstConsumer")] {
            world.create::<StorageClass>(json!({ "metadata": { "name": name }, "provisioner": "example.com/p", "volumeBindingMode": mode }));
        }
        world.create::<StorageClass>(json!({ "metadata": { "name": "std", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
            "provisioner": "example.com/std" }));
        start(&world.ctx);
        for (name, spec) in [
            ("now", json!({ "storageClassName": "now" })),
            ("later", json!({ "storageClassName": "later" })),
            ("std", json!({})),
        ] {
            claim(&world, name, spec);
        }
        let asked = |w: &World, name: &str| {
            let claim = w.get::<PersistentVolumeClaim>("ns", name).expect("there");
            annotation(&claim.metadata.annotations, PROVISIONER).map(ToOwned::to_owned)
        };
        world
            .until("asked", |w| {
                asked(w, "now").as_deref() == Some("example.com/p")
                    && asked(w, "std").as_deref() == Some("example.com/std")
            })
            .await;
        world.until("told", |w| w.events().contains(&"WaitForFirstConsumer".to_owned())).await;
        world.settle().await;
        assert_eq!(asked(&world, "later"), None);
        let later = world.get::<PersistentVolumeClaim>("ns", "later").expect("there");
        world.edit(&later, |claim| claim["metadata"]["annotations"] = json!({ SELECTED_NODE: "n1" }));
        world.until("asked as well", |w| asked(w, "later").is_some()).await;
        // The provisioner answers with a volume that is the claim's.
        volume(
            &world,
            "made",
            "5Gi",
            json!({ "storageClassName": "later", "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": { "name": "later", "namespace": "ns", "uid": later.metadata.uid } }),
        );
        world
            .until("bound", |w| claim_phase(w, "later") == "Bound" && volume_phase(w, "made") == "Bound")
            .await;
        let made = world.get::<PersistentVolume>("", "made").expect("there");
        world.delete(&made);
        world.until("lost", |w| claim_phase(w, "later") == "Lost").await;
    });
}

#[test]
fn named_and_reserved_volumes() {
    run(async {
        let world = World::new();
        start(&world.ctx);
        volume(&world, "reserved", "5Gi", json!({ "claimRef": { "name": "r", "namespace": "ns" } }));
        volume(&world, "named", "5Gi", json!({}));
        volume(&world, "tiny", "1Gi", json!({}));
        claim(&world, "r", json!({ "storageClassName": "" }));
        claim(&world, "n", json!({ "storageClassName": "", "volumeName": "named" }));
        claim(&world, "t", json!({ "storageClassName": "", "volumeName": "tiny" }));
        claim(&world, "u", json!({ "storageClassName": "", "volumeName": "reserved" }));
        world.until("bound", |w| claim_phase(w, "r") == "Bound" && claim_phase(w, "n") == "Bound").await;
        world.settle().await;
        assert_eq!(
            (claim_phase(&world, "t").as_str(), claim_phase(&world, "u").as_str()),
            ("Pending", "Pending")
        );
        assert!(
            world.events().contains(&"VolumeMismatch".to_owned())
                && world.events().contains(&"FailedBinding".to_owned())
        );
        let reserved = world.get::<PersistentVolume>("", "reserved").expect("there");
        assert_eq!(annotation(&reserved.metadata.annotations, BOUND_BY_US), None);
    });
}

#[test]
fn policies_when_the_claim_is_gone() {
    for (policy, provisioned, expected) in [
        ("Retain", false, "Released"),
        ("Delete", true, "Released"),
        ("Delete", false, "Failed"),
        ("Recycle", false, "Failed"),
    ] {
        run(async move {
            let world = World::new();
            start(&world.ctx);
            let made = volume(
                &world,
                "v",
                "5Gi",
                json!({ "persistentVolumeReclaimPolicy": policy,
                "claimRef": { "name": "gone", "namespace": "ns", "uid": "u" } }),
            );
            if provisioned {
                world.edit(&made, |volume| {
                    volume["metadata"]["annotations"] = json!({ PROVISIONED_BY: "example.com/p" });
                });
            }
            world.until(expected, |w| volume_phase(w, "v") == expected).await;
            world.settle().await;
            assert_eq!(volume_phase(&world, "v"), expected, "{policy}");
        });
    }
}
