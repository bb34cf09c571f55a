//! ResourceQuota: what is used of it (upstream pkg/controller/resourcequota). Admission refuses what
//! would go beyond; this brings the numbers down again and corrects them. Objects that are only
//! counted are counted in the garbage collector's graph: no further watch is needed.

mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kedge_api::quantity::{Format, Quantity};
use kedge_api::resources::{List, add};
use kedge_client::{Change, Error, Informer, ObjectKey, Queue, Watched};
use kube::api::PostParams;
use serde_json::Value;

use self::usage::{Charged, counted};
use crate::context::Context;
use crate::garbage::Census;

/// Changes come in bunches; a quota is counted once for all of a moment.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn start(ctx: &Context, census: Census) {
    let controller = Arc::new(Controller {
        quotas: ctx.informers.informer::<ResourceQuota>(),
        pods: ctx.informers.informer::<Pod>(),
        services: ctx.informers.informer::<Service>(),
        claims: ctx.informers.informer::<PersistentVolumeClaim>(),
        queue: Queue::new(),
        census,
        ctx: ctx.clone(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.quotas, move |change| {
        let spec = |side: &Option<Arc<ResourceQuota>>| side.as_ref().and_then(|quota| quota.spec.clone());
        let status = |side: &Option<Arc<ResourceQuota>>| side.as_ref().and_then(|quota| quota.status.clone());
        if change.new.is_some()
            && (spec(&change.old) != spec(&change.new) || status(&change.old) != status(&change.new))
        {
            queue.add(change.key());
        }
    });
    controller.clone().follow(&controller.pods);
    controller.clone().follow(&controller.services);
    controller.clone().follow(&controller.claims);
    let this = controller.clone();
    controller.census.on_change(&ctx.tasks, move |group, plural, namespace| {
        for quota in this.quotas.list_namespace(namespace) {
            this.touch(&quota, |name| counted(name) == Some((group, plural)));
        }
    });
    let this = controller.clone();
    let synced = async move {
        this.quotas.synced().await;
        this.pods.synced().await;
        this.services.synced().await;
        this.claims.synced().await;
    };
    ctx.run("resource-quota", controller.queue.clone(), 1, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    census: Census,
    queue: Queue<ObjectKey>,
}

fn hard(quota: &ResourceQuota) -> BTreeMap<String, Text> {
    quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default()
}

/// What came from the API can be written as JSON.
fn as_json(quota: &ResourceQuota) -> Value {
    serde_json::to_value(quota).unwrap_or_default()
}

impl Controller {
    /// Count again where an object's use has changed, or whether a quota's scopes hold for it.
    fn follow<K: Watched + Charged>(self: Arc<Self>, informer: &Informer<K>) {
        let this = self.clone();
        self.ctx.on_change(informer, move |change: &Change<K>| {
            let quotas = this.quotas.list_namespace(&change.key().namespace);
            if quotas.is_empty() {
                return;
            }
            let now = Timestamp::now();
            let value = |object: &Option<Arc<K>>| object.as_ref().map(|object| object.to_value());
            let (old, new) = (value(&change.old), value(&change.new));
            for quota in quotas {
                let as_json = as_json(&quota);
                let share = |object: &Option<Value>| {
                    object.as_ref().map(|object| usage::of::<K>(&as_json, object, now)).unwrap_or_default()
                };
                let (old, new) = (share(&old), share(&new));
                if old != new {
                    this.touch(&quota, |name| old.contains_key(name) || new.contains_key(name));
                }
            }
        });
    }

    fn touch(&self, quota: &ResourceQuota, affects: impl Fn(&str) -> bool) {
        if hard(quota).keys().any(|name| affects(name)) {
            self.queue.add_after(ObjectKey::of(quota), PAUSE);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(quota) = self.quotas.get_key(key) else { return Ok(None) };
        let hard = hard(&quota);
        let old = quota.status.clone().unwrap_or_default();
        let Some(used) = self.used(&quota, &hard, &old) else {
            // What is not known is not written. Listing takes a moment after the start.
            return Ok(Some(Duration::from_secs(5)));
        };
        let used: BTreeMap<String, Text> =
            used.into_iter().map(|(name, amount)| (name, Text(amount.to_string()))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if same(&old, &status) {
            return Ok(None);
        }
        let changed = ResourceQuota { status: Some(status), ..(*quota).clone() };
        match self
            .ctx
            .api::<ResourceQuota>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await
        {
            Err(error) if !kedge_client::is_not_found(&error) => Err(error.into()),
            _ => Ok(None),
        }
    }

    fn used(
        &self,
        quota: &ResourceQuota,
        hard: &BTreeMap<String, Text>,
        old: &ResourceQuotaStatus,
    ) -> Option<List> {
        let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
        let spec = quota.spec.as_ref();
        let has_scopes = spec.is_some_and(|spec| {
            let selected =
                spec.scope_selector.as_ref().and_then(|selector| selector.match_expressions.as_ref());
            spec.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty())
                || selected.is_some_and(|list| !list.is_empty())
        });
        let as_json = as_json(quota);
        let now = Timestamp::now();
        let mut all = List::new();
        for pod in self.pods.list_namespace(namespace) {
            add(&mut all, &usage::of::<Pod>(&as_json, &pod.to_value(), now));
        }
        for service in self.services.list_namespace(namespace) {
            add(&mut all, &usage::of::<Service>(&as_json, &service.to_value(), now));
        }
        for claim in self.claims.list_namespace(namespace) {
            add(&mut all, &usage::of::<PersistentVolumeClaim>(&as_json, &claim.to_value(), now));
        }
        let mut used = List::new();
        for name in hard.keys() {
            let amount = match (all.get(name), counted(name)) {
                (Some(amount), _) => *amount,
                (None, Some((group, plural))) if !has_scopes && !is_evaluated(name) => {
                    match self.census.count(group, plural, namespace) {
                        Some(count) => {
                            Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
                        }
                        None => {
                            let before = old.used.as_ref().and_then(|used| used.get(name));
                            before.and_then(|text| text.0.parse().ok())?
                        }
                    }
                }
                _ => Quantity::ZERO,
            };
            used.insert(name.clone(), amount);
        }
        Some(used)
    }
}

/// Counted from the objects themselves.
fn is_evaluated(name: &str) -> bool {
    matches!(name, "count/pods" | "count/services" | "count/persistentvolumeclaims")
}

/// Amounts are compared as numbers: users write them in many ways.
fn same(a: &ResourceQuotaStatus, b: &ResourceQuotaStatus) -> bool {
    let amounts = |list: &Option<BTreeMap<String, Text>>| -> Option<Vec<(String, Option<Quantity>)>> {
        list.as_ref()
            .map(|list| list.iter().map(|(name, text)| (name.clone(), text.0.parse().ok())).collect())
    };
    amounts(&a.hard) == amounts(&b.hard) && amounts(&a.used) == amounts(&b.used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::json;

    fn used(world: &World, name: &str) -> Option<String> {
        let quota = world.get::<ResourceQuota>("ns", "q")?;
        Some(quota.status?.used?.get(name)?.0.clone())
    }

    #[test]
    fn used_amounts_follow_the_objects() {
        run(async {
            let world = World::new();
            world.create::<ResourceQuota>(json!({ "metadata": { "name": "q", "namespace": "ns" },
                "spec": { "hard": { "pods": "3", "requests.cpu": "2", "services.nodeports": "1", "requests.storage": "1Gi" } } }));
            start(&world.ctx, Census::empty());
            world.until("nothing is used", |w| used(w, "pods").as_deref() == Some("0")).await;
            let pod = json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "500m" } } }] } });
            for (name, namespace) in [("a", "ns"), ("b", "ns"), ("c", "other")] {
                let mut pod = pod.clone();
                pod["metadata"] = json!({ "name": name, "namespace": namespace });
                world.create::<Pod>(pod);
            }
            world.create::<Service>(json!({ "metadata": { "name": "s", "namespace": "ns" }, "spec": { "type": "NodePort", "ports": [{ "port": 1 }] } }));
            world
                .until("two pods", |w| {
                    used(w, "pods").as_deref() == Some("2")
                        && used(w, "services.nodeports").as_deref() == Some("1")
                })
                .await;
            assert_eq!(used(&world, "requests.cpu").as_deref(), Some("1"));
            let ended = world.get::<Pod>("ns", "a").expect("there");
            world.edit(&ended, |pod| pod["status"] = json!({ "phase": "Succeeded" }));
            world.until("one pod", |w| used(w, "requests.cpu").as_deref() == Some("500m")).await;
            world.edit(&world.get::<ResourceQuota>("ns", "q").expect("there"), |quota| {
                quota["spec"]["hard"] = json!({ "pods": "9" });
            });
            world
                .until("the new limits", |w| {
                    let status =
                        w.get::<ResourceQuota>("ns", "q").and_then(|quota| quota.status).unwrap_or_default();
                    status.hard.is_some_and(|hard| hard.len() == 1)
                        && status.used.is_some_and(|used| used.len() == 1)
                })
                .await;
        });
    }

    #[test]
    fn a_pod_moves_from_one_scope_to_another() {
        run(async {
            let world = World::new();
            for (name, scope) in [("ends", "Terminating"), ("stays", "NotTerminating")] {
                world.create::<ResourceQuota>(json!({ "metadata": { "name": name, "namespace": "ns" },
                    "spec": { "hard": { "pods": "3" },
                        "scopeSelector": { "matchExpressions": [{ "scopeName": scope, "operator": "Exists" }] } } }));
            }
            let pod = world.create::<Pod>(json!({ "metadata": { "name": "a", "namespace": "ns" },
                "spec": { "containers": [{ "name": "c" }] } }));
            start(&world.ctx, Census::empty());
            let pods = |world: &World, name: &str| {
                let quota = world.get::<ResourceQuota>("ns", name)?;
                Some(quota.status?.used?.get("pods")?.0.clone())
            };
            let are = move |ends: &'static str, stays: &'static str| {
                move |world: &World| {
                    pods(world, "ends").as_deref() == Some(ends)
                        && pods(world, "stays").as_deref() == Some(stays)
                }
            };
            world.until("it is there to stay", are("0", "1")).await;
            world.edit(&pod, |pod| pod["spec"]["activeDeadlineSeconds"] = json!(60));
            world.until("it ends", are("1", "0")).await;
        });
    }
}
