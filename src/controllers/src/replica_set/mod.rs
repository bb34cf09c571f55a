//! ReplicaSet and ReplicationController: as many pods as asked for, no more, no fewer
//! (upstream pkg/controller/replicaset; the older kind goes through the same code by [`Replicated`]).

mod kind;
mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kedge_base::Order as _;
use kedge_client::{Error, Informer, ObjectKey, Queue, reference};
use kube::api::PostParams;

use self::kind::Replicated;
use crate::adoption::{claim, controller_of, is_controlled_by, owner_reference};
use crate::context::{Context, message, namespace_is_terminating};
use crate::expectations::{EXPIRES, Expectations};
use crate::owned::note_pod;
use crate::pod_control::{PodControl, pod_from_template, slow_start, tried};
use crate::pods;

/// At most so many pods are created or deleted in one go.
const BURST: usize = 500;
const WORKERS: usize = 5;

pub(crate) fn start(ctx: &Context) {
    start_kind::<ReplicaSet>(ctx);
    start_kind::<ReplicationController>(ctx);
}

fn start_kind<K: Replicated>(ctx: &Context) {
    let controller = Arc::new(Controller::<K> {
        owners: ctx.informers.informer::<K>(),
        pods: ctx.informers.informer::<Pod>(),
        control: PodControl { client: ctx.client.clone(), recorder: ctx.recorder(K::COMPONENT) },
        expectations: Expectations::default(),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let this = controller.clone();
    ctx.on_change(&controller.owners, move |change| {
        if change.new.is_none() {
            this.expectations.forget(&change.key());
        }
        this.queue.add(change.key());
    });
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        note_pod(change, &this.owners, &this.expectations, &this.queue, |owner, labels| {
            kedge_client::selector_matches(&owner.view().selector, labels)
        });
    });
    let (owners, pods) = (controller.owners.clone(), controller.pods.clone());
    let synced = async move {
        owners.synced().await;
        pods.synced().await;
    };
    ctx.run(K::COMPONENT, controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller<K> {
    ctx: Context,
    owners: Informer<K>,
    pods: Informer<Pod>,
    control: PodControl,
    expectations: Expectations,
    queue: Queue<ObjectKey>,
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(owner) = self.owners.get_key(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let caught_up = self.expectations.satisfied(key);
        let view = owner.view();
        let api = self.ctx.api::<K>(&key.namespace);
        let fresh = async { api.get(&key.name).await.map(|live| live.meta().clone()) };
        // Finished pods are of no interest, neither to count nor to adopt.
        let candidates = self.pods.list_namespace(&key.namespace);
        let candidates: Vec<Arc<Pod>> =
            candidates.into_iter().filter(|pod| !pods::is_finished(pod)).collect();
        let claimed = claim(
            &self.ctx.client,
            owner.meta(),
            &owner_reference(&*owner),
            &view.selector,
            candidates,
            fresh,
        )
        .await?;
        let (active, terminating): (Vec<_>, Vec<_>) =
            claimed.into_iter().partition(|pod| pod.metadata.deletion_timestamp.is_none());
        let mut failure = None;
        if caught_up && owner.meta().deletion_timestamp.is_none() {
            failure = self.manage(key, &*owner, &active).await.err();
        }
        let now = Timestamp::now();
        let status =
            status::calculate(&view, &active, terminating.len(), failure.as_ref().map(|e| e.as_text()), now);
        let update = status::differs(&view.status, &status);
        if update {
            let changed = owner.with_status(status.clone());
            match api.replace_status(&key.name, &PostParams::default(), &changed).await {
                Ok(_) => {}
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(failure) = failure {
            return match failure.error {
                Some(error) => Err(error.into()),
                None => Ok(None),
            };
        }
        if !caught_up {
            // An event that never comes must not stop the work for good.
            return Ok(Some(EXPIRES + Duration::from_secs(1)));
        }
        let soonest = active
            .iter()
            .filter_map(|pod| pods::availability(pod, view.min_ready_seconds, now).err().flatten())
            .min();
        Ok(soonest)
    }

    async fn manage(&self, key: &ObjectKey, owner: &K, active: &[Arc<Pod>]) -> Result<(), Failure> {
        let view = owner.view();
        let wanted = usize::try_from(view.replicas).unwrap_or(0);
        let regarding = reference(owner);
        if active.len() < wanted {
            let Some(template) = &view.template else { return Ok(()) };
            let count = (wanted - active.len()).min(BURST);
            self.expectations.expect(key, count, []);
            let pod = pod_from_template(template, &key.namespace, &owner_reference(owner));
            let (this, regarding, pod) = (self, &regarding, &pod);
            let (done, error) = slow_start(count, |_| async move {
                let result = this.control.create(regarding, pod).await;
                if result.is_err() {
                    this.expectations.created(key);
                }
                result.map(|_| ())
            })
            .await;
            let Some(error) = error else { return Ok(()) };
            // Those of the last batch that failed were taken back above; now those never tried.
            let tried = tried(count, done);
            for _ in tried..count {
                self.expectations.created(key);
            }
            if namespace_is_terminating(&error) {
                // Nothing can be created there any more: do not come back.
                return Err(Failure { reason: "FailedCreate", text: message(&error), error: None });
            }
            return Err(Failure { reason: "FailedCreate", text: message(&error), error: Some(error) });
        }
        if active.len() > wanted {
            let count = (active.len() - wanted).min(BURST);
            let victims = self.choose(owner, active, count);
            let uids: Vec<String> =
                victims.iter().map(|pod| pod.metadata.uid.clone().unwrap_or_default()).collect();
            self.expectations.expect(key, 0, uids);
            let (this, regarding) = (self, &regarding);
            let calls = victims.into_iter().map(|pod| async move {
                let result = this.control.delete(regarding, &pod).await;
                if result.is_err() {
                    this.expectations.deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
                }
                result
            });
            let results = futures::future::join_all(calls).await;
            let error = results
                .into_iter()
                .filter_map(Result::err)
                .find(|error| !kedge_client::is_not_found(error) && !kedge_client::is_conflict(error));
            if let Some(error) = error {
                return Err(Failure { reason: "FailedDelete", text: message(&error), error: Some(error) });
            }
        }
        Ok(())
    }

    /// The `count` pods to delete. Nodes that hold many pods of the same Deployment lose theirs
    /// first: the rank counts the related active pods on a node, those of sibling sets included.
    fn choose(&self, owner: &K, active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
        if count >= active.len() {
            return active.to_vec();
        }
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let siblings: Vec<String> = match controller_of(owner.meta()) {
            Some(parent) => self
                .owners
                .list_namespace(namespace)
                .iter()
                .filter(|set| is_controlled_by(set.meta(), &parent.uid))
                .filter_map(|set| set.meta().uid.clone())
                .collect(),
            None => owner.meta().uid.clone().into_iter().collect(),
        };
        let mut on_node: HashMap<String, usize> = HashMap::new();
        for pod in self.pods.list_namespace(namespace) {
            let related = controller_of(&pod.metadata).is_some_and(|c| siblings.contains(&c.uid));
            if related && pods::is_active(&pod) {
                *on_node.entry(pods::node_name(&pod).to_owned()).or_default() += 1;
            }
        }
        let now = Timestamp::now();
        let rank = |pod: &Pod| on_node.get(pods::node_name(pod)).copied().unwrap_or(0);
        let mut order = active.to_vec();
        order.order_by(|a, b| pods::deletion_order((&**a, rank(a)), (&**b, rank(b)), now));
        order.truncate(count);
        order
    }
}

/// Creating or deleting failed: for the status, and for the caller.
struct Failure {
    reason: &'static str,
    text: String,
    /// `None`: trying again is useless.
    error: Option<kube::Error>,
}

impl Failure {
    fn as_text(&self) -> (&'static str, &str) {
        (self.reason, &self.text)
    }
}
