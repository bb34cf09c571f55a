//! Ranges of Service addresses: a ServiceCIDR is Ready once its finalizer holds it, and goes only when no
//! address that Services have would be without a range (upstream pkg/controller/servicecidrs).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Context, ignore_not_found};
use crate::time;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

pub(crate) fn start(ctx: &Context) {
    let ranges = ctx.informers.informer::<ServiceCIDR>();
    let addresses = ctx.informers.informer::<IPAddress>();
    let queue: Queue<ObjectKey> = Queue::new();
    let (adder, known) = (queue.clone(), ranges.clone());
    ctx.on_change(&ranges, move |change| {
        adder.add(change.key());
        // Another range may cover what one that is going still has.
        add_going(&known, &adder);
    });
    let (adder, known) = (queue.clone(), ranges.clone());
    ctx.on_change(&addresses, move |change| {
        if change.new.is_none() {
            add_going(&known, &adder);
        }
    });
    let (r, a) = (ranges.clone(), addresses.clone());
    let synced = async move {
        r.synced().await;
        a.synced().await;
    };
    let ctx = ctx.clone();
    ctx.clone().run("service-cidr", queue, 1, synced, move |key: ObjectKey| {
        let (ctx, ranges, addresses) = (ctx.clone(), ranges.clone(), addresses.clone());
        async move {
            reconcile(&ctx, &ranges, &addresses, &key).await?;
            Ok(None::<Duration>)
        }
    });
}

fn is_going(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

fn add_going(ranges: &Informer<ServiceCIDR>, queue: &Queue<ObjectKey>) {
    for range in ranges.list().iter().filter(|range| is_going(range)) {
        queue.add(ObjectKey::of(&**range));
    }
}

fn has_finalizer(range: &ServiceCIDR) -> bool {
    range.metadata.finalizers.iter().flatten().any(|known| known == FINALIZER)
}

fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.as_ref().map(|spec| spec.cidrs.iter().flatten());
    cidrs.into_iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// The address of a Service that no other range would have.
fn in_need(range: &ServiceCIDR, others: &[IpNet], addresses: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    let own = networks(range);
    let mut needed = addresses.filter(|address| own.iter().any(|network| network.contains(address)));
    needed.find(|address| !others.iter().any(|network| network.contains(address)))
}

async fn reconcile(
    ctx: &Context,
    ranges: &Informer<ServiceCIDR>,
    addresses: &Informer<IPAddress>,
    key: &ObjectKey,
) -> Result<(), Error> {
    let Some(range) = ranges.get_key(key) else { return Ok(()) };
    let api: Api<ServiceCIDR> = Api::all(ctx.client.clone());
    if !is_going(&range) {
        if !has_finalizer(&range) {
            patch(&api, &range, json!({ "metadata": { "finalizers": [FINALIZER] } }), false).await?;
        }
        return set_ready(&api, &range, "True", "", "Kubernetes Service CIDR is ready").await;
    }
    if !has_finalizer(&range) {
        return Ok(());
    }
    let others: Vec<IpNet> = ranges
        .list()
        .iter()
        .filter(|other| other.metadata.name != range.metadata.name && !is_going(other))
        .flat_map(|other| networks(other))
        .collect();
    let all = addresses.list();
    let parsed = all.iter().filter_map(|address| address.metadata.name.as_deref()?.parse().ok());
    if in_need(&range, &others, parsed).is_some() {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        return set_ready(&api, &range, "False", "Terminating", message).await;
    }
    let rest = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
    patch(&api, &range, rest, false).await
}

async fn set_ready(
    api: &Api<ServiceCIDR>,
    range: &ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
) -> Result<(), Error> {
    let mut conditions = range.status.as_ref().and_then(|status| status.conditions.as_deref()).into_iter();
    let mut conditions = conditions.by_ref().flatten();
    if conditions.any(|own| own.type_ == "Ready" && own.status == status && own.reason == reason) {
        return Ok(());
    }
    let condition = json!({
        "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": time::now(),
    });
    patch(api, range, json!({ "status": { "conditions": [condition] } }), true).await
}

async fn patch(
    api: &Api<ServiceCIDR>,
    range: &ServiceCIDR,
    mut change: Value,
    status: bool,
) -> Result<(), Error> {
    let name = range.metadata.name.as_deref().unwrap_or_default();
    change["metadata"]["uid"] = json!(range.metadata.uid);
    let (params, change) = (PatchParams::default(), Patch::Strategic(change));
    let result = if status {
        api.patch_status(name, &params, &change).await
    } else {
        api.patch(name, &params, &change).await
    };
    ignore_not_found(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_when_no_address_needs_it() {
        let range: ServiceCIDR =
            serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"cidrs": ["10.9.0.0/28"]}}))
                .unwrap();
        for (others, addresses, needed) in [
            (vec![], vec!["10.8.0.1"], None),
            (vec![], vec!["10.8.0.1", "10.9.0.5"], Some("10.9.0.5")),
            (vec!["10.9.0.0/16"], vec!["10.9.0.5"], None),
            (vec!["10.9.0.0/30"], vec!["10.9.0.1", "10.9.0.5"], Some("10.9.0.5")),
        ] {
            let others: Vec<IpNet> = others.iter().map(|text| text.parse().unwrap()).collect();
            let parsed = addresses.iter().map(|text| text.parse().unwrap());
            let wanted = needed.map(|text: &str| text.parse::<IpAddr>().unwrap());
            assert_eq!(in_need(&range, &others, parsed), wanted, "{others:?} {addresses:?}");
        }
    }
}
