//! Binds claims to volumes and reclaims volumes whose claim is gone
//! (upstream controller/volume/persistentvolume/pv_controller.go).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, StorageKey, reference};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::matching::{annotation, best, claim_class, default_class, has_no_class, is_bound_to, mismatch};
use crate::context::{Context, ignore_not_found};
use crate::{pods, time};

const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner of classes whose volumes an administrator makes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub(super) fn start(ctx: &Context) {
    let binder = Arc::new(Binder {
        claims: ctx.informers.informer::<PersistentVolumeClaim>(),
        volumes: ctx.informers.informer::<PersistentVolume>(),
        classes: ctx.informers.informer::<StorageClass>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("persistentvolume-controller"),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let this = binder.clone();
    ctx.on_change(&binder.claims, move |change| {
        this.queue.add(StorageKey::Claim(change.key()));
        for claim in [&change.old, &change.new].into_iter().flatten() {
            if let Some(name) = volume_name(claim) {
                this.queue.add(StorageKey::Volume(name.to_owned()));
            }
        }
        if change.new.is_none() {
            for volume in this.volumes.list() {
                if is_bound_to(&volume, change.object()) {
                    this.queue.add(StorageKey::Volume(volume.metadata.name.clone().unwrap_or_default()));
                }
            }
        }
    });
    let this = binder.clone();
    ctx.on_change(&binder.volumes, move |change| {
        let object = change.object();
        this.queue.add(StorageKey::Volume(change.key().name));
        if let Some(owner) = object.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            let key = ObjectKey::new(
                owner.namespace.clone().unwrap_or_default(),
                owner.name.clone().unwrap_or_default(),
            );
            this.queue.add(StorageKey::Claim(key));
        }
        // A claim may have waited for just this volume, or lost it.
        let waits = change.new.is_some() && phase(object) == "Available";
        for claim in this.claims.list() {
            let names = volume_name(&claim) == object.metadata.name.as_deref();
            if names || (waits && is_unbound(&claim)) {
                this.queue.add(StorageKey::Claim(ObjectKey::of(&*claim)));
            }
        }
    });
    let this = binder.clone();
    ctx.on_change(&binder.classes, move |_| {
        for claim in this.claims.list().iter().filter(|claim| is_unbound(claim)) {
            this.queue.add(StorageKey::Claim(ObjectKey::of(&**claim)));
        }
    });
    let this = binder.clone();
    let synced = async move {
        this.claims.synced().await;
        this.volumes.synced().await;
        this.classes.synced().await;
        this.pods.synced().await;
    };
    // One worker: no volume may be given to two claims.
    ctx.run("persistentvolume-binder", binder.queue.clone(), 1, synced, move |item: StorageKey| {
        let this = binder.clone();
        async move {
            match item {
                StorageKey::Claim(key) => {
                    if let Some(claim) = this.claims.get_key(&key) {
                        this.claim(&claim).await?;
                    }
                }
                StorageKey::Volume(name) => {
                    if let Some(volume) = this.volumes.get("", &name) {
                        this.volume(&volume).await?;
                    }
                }
            }
            Ok(None::<Duration>)
        }
    });
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn is_unbound(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata.annotations, BIND_COMPLETED).is_none()
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

struct Binder {
    ctx: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    recorder: Recorder,
    queue: Queue<StorageKey>,
}

impl Binder {
    fn api(&self) -> kube::Api<PersistentVolume> {
        kube::Api::all(self.ctx.client.clone())
    }

    fn say(&self, claim: &PersistentVolumeClaim, warning: bool, reason: &str, text: impl Into<String>) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(reference(claim), kind, reason, text);
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        match (is_unbound(claim), volume_name(claim)) {
            (true, None) => self.find_volume(claim).await,
            (true, Some(name)) => self.take_named(claim, name).await,
            (false, None) => {
                let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
                self.lost(claim, "ClaimLost", text).await
            }
            (false, Some(name)) => {
                let Some(volume) = self.find(name).await? else {
                    let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                    return self.lost(claim, "ClaimLost", text).await;
                };
                let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                if owner.is_none_or(|owner| owner.uid == claim.metadata.uid) || is_bound_to(&volume, claim) {
                    return self.bind(&volume, claim).await;
                }
                let text = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lost(claim, "ClaimMisbound", text).await
            }
        }
    }

    /// From the cache; what is missing there is looked up, because claims are lost for good.
    async fn find(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, Error> {
        match self.volumes.get("", name) {
            Some(volume) => Ok(Some(volume)),
            None => Ok(self.api().get_opt(name).await?.map(Arc::new)),
        }
    }

    async fn lost(&self, claim: &PersistentVolumeClaim, reason: &str, text: &str) -> Result<(), Error> {
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Lost") {
            self.say(claim, true, reason, text);
        }
        self.set_claim_phase(claim, "Lost", None).await.map(|_| ())
    }

    async fn find_volume(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let class = self.classes.get("", claim_class(claim));
        let mode = class.as_ref().and_then(|class| class.volume_binding_mode.as_deref());
        let delayed = mode == Some("WaitForFirstConsumer");
        let volumes = self.volumes.list();
        if let Some(volume) = best(&volumes, claim, delayed) {
            return self.bind(volume, claim).await;
        }
        if has_no_class(claim)
            && let Some(default) = default_class(&self.classes.list())
        {
            // The default came after the claim.
            let patch = json!({ "metadata": { "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version },
                "spec": { "storageClassName": default.metadata.name } });
            let api = self
                .ctx
                .api::<PersistentVolumeClaim>(claim.metadata.namespace.as_deref().unwrap_or_default());
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Ok(ignore_not_found(
                api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await,
            )?);
        }
        if delayed && annotation(&claim.metadata.annotations, SELECTED_NODE).is_none() {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            match self.unscheduled_user(claim) {
                Some(pod) => self.say(
                    claim,
                    false,
                    "WaitForPodScheduled",
                    format!("waiting for pod {pod} to be scheduled"),
                ),
                None => {
                    tracing::debug!(claim = name, "claim waits for its first consumer");
                    self.say(
                        claim,
                        false,
                        "WaitForFirstConsumer",
                        "waiting for first consumer to be created before binding",
                    );
                }
            }
        } else if claim_class(claim).is_empty() {
            self.say(
                claim,
                false,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            );
        } else {
            match class {
                Some(class) => self.provision(claim, &class).await?,
                None => {
                    let text = format!("storageclass.storage.k8s.io \"{}\" not found", claim_class(claim));
                    self.say(claim, true, "ProvisioningFailed", text);
                }
            }
        }
        self.set_claim_phase(claim, "Pending", None).await.map(|_| ())
    }

    /// A pod that waits for the claim.
    fn unscheduled_user(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref();
        let pods = self.pods.list_namespace(namespace);
        let mut users = pods.iter().filter(|pod| {
            let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
            pods::node_name(pod).is_empty()
                && volumes.iter().any(|volume| {
                    volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.as_str()) == name
                })
        });
        users.next().and_then(|pod| pod.metadata.name.clone())
    }

    /// Ask the class's provisioner for a volume; it watches for the annotation.
    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), Error> {
        let provisioner = class.provisioner.as_str();
        if provisioner == NO_PROVISIONER {
            let text = format!("no volume plugin matched name: {NO_PROVISIONER}");
            self.say(claim, true, "ProvisioningFailed", text);
            return Ok(());
        }
        let asked = |key| annotation(&claim.metadata.annotations, key) == Some(provisioner);
        if !asked(PROVISIONER) || !asked(PROVISIONER_BETA) {
            let patch = json!({ "metadata": { "uid": claim.metadata.uid,
                "annotations": { PROVISIONER: provisioner, PROVISIONER_BETA: provisioner } } });
            let api = self
                .ctx
                .api::<PersistentVolumeClaim>(claim.metadata.namespace.as_deref().unwrap_or_default());
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            ignore_not_found(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.say(claim, false, "ExternalProvisioning", text);
        Ok(())
    }

    /// The claim names a volume itself.
    async fn take_named(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<(), Error> {
        let Some(volume) = self.volumes.get("", name) else {
            return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
        };
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if is_bound_to(&volume, claim) && owner.is_some_and(|owner| owner.uid.is_some()) {
            return self.bind(&volume, claim).await;
        }
        if owner.is_none() || is_bound_to(&volume, claim) {
            if let Some(why) = mismatch(&volume, claim) {
                self.say(
                    claim,
                    true,
                    "VolumeMismatch",
                    format!("Cannot bind to requested volume \"{name}\": {why}"),
                );
                return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
            }
            return self.bind(&volume, claim).await;
        }
        self.say(
            claim,
            true,
            "FailedBinding",
            format!("volume \"{name}\" already bound to a different claim."),
        );
        self.set_claim_phase(claim, "Pending", None).await.map(|_| ())
    }

    /// Four steps, each of which may have been done before: volume to claim, its phase, claim to
    /// volume, its phase.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let mut bound = volume.clone();
        let spec = bound.spec.get_or_insert_default();
        let complete = spec
            .claim_ref
            .as_ref()
            .is_some_and(|owner| owner.uid.is_some() && owner.uid == claim.metadata.uid);
        if !complete {
            // An administrator's reservation is not ours to undo.
            if spec.claim_ref.is_none() {
                bound.metadata.annotations.get_or_insert_default().insert(BOUND_BY_US.into(), "yes".into());
            }
            spec.claim_ref = Some(reference(claim));
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            bound = self.api().replace(name, &PostParams::default(), &bound).await?;
        }
        self.set_volume_phase(&bound, "Bound", None).await?;
        let mut taken = claim.clone();
        let spec = taken.spec.get_or_insert_default();
        let annotations = taken.metadata.annotations.get_or_insert_default();
        let before = (spec.volume_name.clone(), annotations.clone());
        if spec.volume_name != bound.metadata.name {
            annotations.insert(BOUND_BY_US.into(), "yes".into());
            spec.volume_name.clone_from(&bound.metadata.name);
        }
        annotations.insert(BIND_COMPLETED.into(), "yes".into());
        if (spec.volume_name.clone(), annotations.clone()) != before {
            let api = self
                .ctx
                .api::<PersistentVolumeClaim>(claim.metadata.namespace.as_deref().unwrap_or_default());
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            taken = api.replace(name, &PostParams::default(), &taken).await?;
        }
        if self.set_claim_phase(&taken, "Bound", Some(&bound)).await? {
            tracing::info!(claim = %ObjectKey::of(claim), volume = bound.metadata.name, "claim bound");
        }
        Ok(())
    }

    /// Returns whether something changed.
    async fn set_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<bool, Error> {
        let old = claim.status.clone().unwrap_or_default();
        let mut status = PersistentVolumeClaimStatus { phase: Some(phase.to_owned()), ..old.clone() };
        match volume.and_then(|volume| volume.spec.as_ref()) {
            Some(spec) => {
                status.access_modes.clone_from(&spec.access_modes);
                // A claim that was resized says so itself: only the first capacity comes from here.
                if old.phase.as_deref() != Some("Bound") || old.capacity.is_none() {
                    status.capacity.clone_from(&spec.capacity);
                }
                status.current_volume_attributes_class_name.clone_from(&spec.volume_attributes_class_name);
            }
            None => {
                status.access_modes = None;
                status.capacity = None;
            }
        }
        if status == old {
            return Ok(false);
        }
        let changed = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        let api =
            self.ctx.api::<PersistentVolumeClaim>(claim.metadata.namespace.as_deref().unwrap_or_default());
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        ignore_not_found(api.replace_status(name, &PostParams::default(), &changed).await)?;
        Ok(true)
    }

    async fn set_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<(), Error> {
        let old = volume.status.clone().unwrap_or_default();
        if old.phase.as_deref() == Some(phase) && old.message.as_deref() == message {
            return Ok(());
        }
        let moved = old.phase.as_deref() != Some(phase);
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            message: message.map(ToOwned::to_owned),
            reason: None,
            last_phase_transition_time: if moved {
                Some(time::now())
            } else {
                old.last_phase_transition_time
            },
        };
        let changed = PersistentVolume { status: Some(status), ..volume.clone() };
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        Ok(ignore_not_found(self.api().replace_status(name, &PostParams::default(), &changed).await)?)
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let Some(spec) = &volume.spec else { return Ok(()) };
        let Some(owner) = &spec.claim_ref else {
            return self.set_volume_phase(volume, "Available", None).await;
        };
        if owner.uid.as_deref().unwrap_or_default().is_empty() {
            // Reserved; the claim may come some day.
            return self.set_volume_phase(volume, "Available", None).await;
        }
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        let name = owner.name.as_deref().unwrap_or_default();
        let is_owner = |claim: &PersistentVolumeClaim| claim.metadata.uid == owner.uid;
        let mut claim = self.claims.get(namespace, name).filter(|claim| is_owner(claim));
        if claim.is_none() {
            // Its data may be deleted next: only the server knows for certain.
            let live = self.ctx.api::<PersistentVolumeClaim>(namespace).get_opt(name).await?;
            claim = live.filter(is_owner).map(Arc::new);
        }
        let Some(claim) = claim else {
            if !matches!(phase(volume), "Released" | "Failed") {
                self.set_volume_phase(volume, "Released", None).await?;
            }
            return self.reclaim(volume).await;
        };
        match volume_name(&claim) {
            None => {
                self.queue.add(StorageKey::Claim(ObjectKey::of(&*claim)));
                Ok(())
            }
            Some(name) if Some(name) == volume.metadata.name.as_deref() => {
                self.set_volume_phase(volume, "Bound", None).await
            }
            // The claim is bound elsewhere.
            Some(_) => {
                let provisioned = annotation(&volume.metadata.annotations, PROVISIONED_BY).is_some();
                if provisioned && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
                    self.set_volume_phase(volume, "Released", None).await?;
                    return self.reclaim(volume).await;
                }
                self.unbind(volume).await
            }
        }
    }

    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let mut free = volume.clone();
        let spec = free.spec.get_or_insert_default();
        let ours = annotation(&volume.metadata.annotations, BOUND_BY_US).is_some();
        if ours {
            spec.claim_ref = None;
            free.metadata.annotations.get_or_insert_default().remove(BOUND_BY_US);
        } else if let Some(owner) = &mut spec.claim_ref {
            owner.uid = None;
            owner.resource_version = None;
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let free = self.api().replace(name, &PostParams::default(), &free).await?;
        self.set_volume_phase(&free, "Available", None).await
    }

    /// Retain: nothing. Delete: the provisioner that made the volume watches for phase Released and
    /// deletes it. Upstream's controller would itself delete a hostPath below /tmp, on the machine it
    /// happens to run on; nothing else in-tree is left, so that is refused as any other.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let provisioner = annotation(&volume.metadata.annotations, PROVISIONED_BY);
        let (reason, text) = match policy {
            Some("Delete") if provisioner.is_some_and(|by| by != NO_PROVISIONER) => return Ok(()),
            Some("Delete") => (
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched"
                ),
            ),
            Some("Recycle") => ("VolumeFailedRecycle", "no recyclable volume plugin matched".to_owned()),
            _ => return Ok(()),
        };
        if phase(volume) != "Failed" {
            self.recorder.event(reference(volume), EventType::Warning, reason, text.clone());
            let live = self.api().get_opt(name).await?;
            if let Some(live) = live {
                self.set_volume_phase(&live, "Failed", Some(&text)).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
