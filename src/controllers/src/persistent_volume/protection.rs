//! Keeps volumes and claims that are in use from going (upstream pkg/controller/volume/pvcprotection
//! and pvprotection): a finalizer that stays as long as a pod uses the claim, or a claim the volume.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Error, Informer, ObjectKey, Queue, StorageKey};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore_not_found};
use crate::pods;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|known| known == finalizer)
}

/// It needs the finalizer and has it not, or the other way round perhaps.
fn needs_look(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() == has(meta, finalizer)
}

/// The names of the claims of a pod, those of its generic ephemeral volumes among them.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(move |volume| {
        let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        claim.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    })
}

/// A kubelet starts no pod with a claim that is going, so one without a node does not count.
fn uses(pod: &Pod, claim: &str) -> bool {
    !pods::node_name(pod).is_empty() && claims_of(pod).any(|name| name == claim)
}

pub(super) fn start(ctx: &Context) {
    let claims = ctx.informers.informer::<PersistentVolumeClaim>();
    let volumes = ctx.informers.informer::<PersistentVolume>();
    let all_pods = ctx.informers.informer::<Pod>();
    let queue: Queue<StorageKey> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&claims, move |change| {
        if change.new.as_ref().is_some_and(|claim| needs_look(&claim.metadata, CLAIM_FINALIZER)) {
            adder.add(StorageKey::Claim(change.key()));
        }
    });
    let adder = queue.clone();
    ctx.on_change(&volumes, move |change| {
        if change.new.as_ref().is_some_and(|volume| needs_look(&volume.metadata, VOLUME_FINALIZER)) {
            adder.add(StorageKey::Volume(change.key().name));
        }
    });
    let (adder, known) = (queue.clone(), claims.clone());
    ctx.on_change(&all_pods, move |change| {
        if change.new.is_some() {
            return;
        }
        let namespace = change.key().namespace;
        for name in claims_of(change.object()) {
            let key = ObjectKey::new(namespace.clone(), name);
            if known.get_key(&key).is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
                adder.add(StorageKey::Claim(key));
            }
        }
    });
    let (c, v, p) = (claims.clone(), volumes.clone(), all_pods.clone());
    let synced = async move {
        c.synced().await;
        v.synced().await;
        p.synced().await;
    };
    let ctx = ctx.clone();
    ctx.clone().run("volume-protection", queue, 1, synced, move |item: StorageKey| {
        let (ctx, claims, volumes, pods) = (ctx.clone(), claims.clone(), volumes.clone(), all_pods.clone());
        async move {
            match item {
                StorageKey::Claim(key) => protect_claim(&ctx, &claims, &pods, &key).await?,
                StorageKey::Volume(name) => protect_volume(&ctx, &volumes, &name).await?,
            }
            Ok(None::<Duration>)
        }
    });
}

fn patch(meta: &ObjectMeta, finalizer: &str, add: bool) -> Patch<serde_json::Value> {
    let field = if add { "finalizers" } else { "$deleteFromPrimitiveList/finalizers" };
    let mut metadata = json!({ "uid": meta.uid });
    metadata[field] = json!([finalizer]);
    Patch::Strategic(json!({ "metadata": metadata }))
}

async fn protect_claim(
    ctx: &Context,
    claims: &Informer<PersistentVolumeClaim>,
    all: &Informer<Pod>,
    key: &ObjectKey,
) -> Result<(), Error> {
    let Some(claim) = claims.get_key(key) else { return Ok(()) };
    let meta = &claim.metadata;
    let api = ctx.api::<PersistentVolumeClaim>(&key.namespace);
    if !needs_look(meta, CLAIM_FINALIZER) {
        return Ok(());
    }
    let add = meta.deletion_timestamp.is_none();
    if !add {
        if all.list_namespace(&key.namespace).iter().any(|pod| uses(pod, &key.name)) {
            return Ok(());
        }
        // The cache may not show the newest pod.
        let live = ctx.api::<Pod>(&key.namespace).list(&ListParams::default()).await?;
        if live.items.iter().any(|pod| uses(pod, &key.name)) {
            return Ok(());
        }
    }
    let change = patch(meta, CLAIM_FINALIZER, add);
    Ok(ignore_not_found(api.patch(&key.name, &PatchParams::default(), &change).await)?)
}

async fn protect_volume(
    ctx: &Context,
    volumes: &Informer<PersistentVolume>,
    name: &str,
) -> Result<(), Error> {
    let Some(volume) = volumes.get("", name) else { return Ok(()) };
    let meta = &volume.metadata;
    if !needs_look(meta, VOLUME_FINALIZER) {
        return Ok(());
    }
    let add = meta.deletion_timestamp.is_none();
    if !add && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound") {
        return Ok(());
    }
    let api = kube::Api::<PersistentVolume>::all(ctx.client.clone());
    let change = patch(meta, VOLUME_FINALIZER, add);
    Ok(ignore_not_found(api.patch(name, &PatchParams::default(), &change).await)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};

    #[test]
    fn claims_and_volumes_in_use_stay() {
        run(async {
            let world = World::new();
            let claim = world
                .create::<PersistentVolumeClaim>(json!({ "metadata": { "name": "c", "namespace": "ns" } }));
            let volume = world.create::<PersistentVolume>(
                json!({ "metadata": { "name": "v" }, "status": { "phase": "Bound" } }),
            );
            let pod = world.create::<Pod>(json!({ "metadata": { "name": "p", "namespace": "ns" }, "spec": { "nodeName": "n", "containers": [],
                "volumes": [{ "name": "d", "persistentVolumeClaim": { "claimName": "c" } }] } }));
            start(&world.ctx);
            world
                .until("finalizers", |w| {
                    let claim = w.get::<PersistentVolumeClaim>("ns", "c").expect("there");
                    let volume = w.get::<PersistentVolume>("", "v").expect("there");
                    has(&claim.metadata, CLAIM_FINALIZER) && has(&volume.metadata, VOLUME_FINALIZER)
                })
                .await;
            world.delete(&claim);
            world.delete(&volume);
            world.settle().await;
            assert!(
                world.get::<PersistentVolumeClaim>("ns", "c").is_some()
                    && world.get::<PersistentVolume>("", "v").is_some()
            );
            world.delete(&pod);
            world.edit(&volume, |volume| volume["status"]["phase"] = json!("Released"));
            world
                .until("both gone", |w| {
                    w.get::<PersistentVolumeClaim>("ns", "c").is_none()
                        && w.get::<PersistentVolume>("", "v").is_none()
                })
                .await;
        });
    }
}
