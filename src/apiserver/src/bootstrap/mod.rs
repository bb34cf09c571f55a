//! The objects a new cluster starts with, and how they are kept right after an upgrade.

pub(crate) mod roles;
pub(crate) mod system;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kedge_api::object;
use kedge_api::status::Status;
use kedge_base::Backoff;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::authn::User;
use crate::state::State;
use crate::verbs::create::Creation;
use crate::verbs::delete::Deletion;
use crate::verbs::options::{DeleteOptions, WriteOptions};
use crate::verbs::update::{Change, Edit, Target};

/// Tries until the store takes writes: a node that comes back may be the first of its group.
pub(crate) async fn run_until_done(state: Arc<State>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        // A member that has just joined must not write what it merely has not got yet.
        let tried = match state.store.read_barrier().await {
            Ok(_) => run(&state).await.map_err(|status| status.to_string()),
            Err(error) => Err(kedge_base::Chain(&error).to_string()),
        };
        match tried {
            Ok(()) => break,
            Err(error) => tracing::warn!(%error, "the cluster's first objects are not written yet"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    state.bootstrapped.send_replace(true);
}

/// Makes what is missing and adds what a newer version needs. Safe to run at every start.
async fn run(state: &Arc<State>) -> Result<(), Status> {
    for object in system::objects() {
        ensure(state, object).await?;
    }
    for wanted in roles::objects() {
        reconcile(state, wanted).await?;
    }
    // Written at every start: the authorities may have been renewed.
    write(state, authentication(state)).await?;
    service_cidr(state).await?;
    kubernetes_service(state).await
}

/// Where aggregated API servers learn whom to believe.
fn authentication(state: &State) -> Value {
    let mut data = json!({ "client-ca-file": *state.config.cluster_ca.borrow() });
    if let Some(front) = &state.config.front_proxy {
        data["requestheader-client-ca-file"] = json!(front.ca);
        data["requestheader-allowed-names"] = json!("[\"front-proxy-client\"]");
        data["requestheader-username-headers"] = json!("[\"X-Remote-User\"]");
        data["requestheader-uid-headers"] = json!("[\"X-Remote-Uid\"]");
        data["requestheader-group-headers"] = json!("[\"X-Remote-Group\"]");
        data["requestheader-extra-headers-prefix"] = json!("[\"X-Remote-Extra-\"]");
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
        "data": data,
    })
}

/// Writes that again when the cluster's authority is replaced. One server of a cluster does so for all.
pub(crate) async fn publish_authorities(state: Arc<State>) {
    // The sender lives in the state, so the channel cannot close.
    let _ = state.bootstrapped.subscribe().wait_for(|done| *done).await;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let mut authorities = state.config.cluster_ca.clone();
    loop {
        authorities.mark_unchanged();
        match write(&state, authentication(&state)).await {
            Ok(()) => {
                backoff.reset();
                if authorities.changed().await.is_err() {
                    return;
                }
            }
            Err(status) => {
                tracing::warn!(%status, "the cluster's authorities were not written; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// The configured ranges of Services as an object, for who wants to know
/// (`pkg/controlplane/controller/defaultservicecidr`). A second family may be added to it.
async fn service_cidr(state: &Arc<State>) -> Result<(), Status> {
    let ranges = &state.config.service_ranges;
    let cidrs: Vec<String> = ranges.iter().map(|(range, prefix)| format!("{range}/{prefix}")).collect();
    let wanted = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" }, "spec": { "cidrs": cidrs },
    });
    match find(state, &wanted)? {
        None => ensure(state, wanted).await,
        Some(found) if found["spec"] == wanted["spec"] => Ok(()),
        Some(found) if found["spec"]["cidrs"][0] == wanted["spec"]["cidrs"][0] => write(state, wanted).await,
        Some(found) => {
            tracing::warn!(
                configured = cidrs.join(","), cluster = %found["spec"]["cidrs"],
                "the range of Services was changed; those that are there keep their addresses"
            );
            Ok(())
        }
    }
}

/// The Service that pods find the API server by, and where it leads
/// (`pkg/controlplane/controller/kubernetesservice`).
async fn kubernetes_service(state: &Arc<State>) -> Result<(), Status> {
    let port = state.config.listen.port();
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    // As upstream, it has the first family only, whatever the cluster has.
    let Some((first, _)) = state.config.service_ranges.first() else { return Ok(()) };
    ensure(
        state,
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "clusterIP": first_address(*first).to_string(),
                "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": port }],
            },
        }),
    )
    .await
}

/// What pods find the API servers by.
const PUBLISHED: [&str; 3] = ["services", "endpoints", "endpointslices.discovery.k8s.io"];
/// So often somebody looks whether they were changed or deleted (upstream's `EndpointReconcilerConfig.Interval`).
const LOOK: Duration = Duration::from_secs(10);

/// The revisions of those objects; none of one that is missing.
fn published(state: &State) -> [Option<u64>; 3] {
    let revision = |stored: Arc<crate::cache::Stored>| stored.modified;
    PUBLISHED.map(|resource| state.cache.bucket(resource).get("default/kubernetes").map(revision))
}

/// Keeps that Service and the list of API servers behind it (`pkg/controlplane/reconcilers`). One server of a
/// cluster does so for all.
pub(crate) async fn publish(state: Arc<State>, mut addresses: watch::Receiver<Vec<IpAddr>>) {
    // The sender lives in the state, so the channel cannot close.
    let _ = state.bootstrapped.subscribe().wait_for(|done| *done).await;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let known = addresses.borrow_and_update().clone();
        let written = async {
            kubernetes_service(&state).await?;
            endpoints(&state, &known).await
        };
        match written.await {
            Ok(()) => {
                backoff.reset();
                let seen = published(&state);
                let meddled = async {
                    loop {
                        tokio::time::sleep(LOOK).await;
                        if published(&state) != seen || seen.contains(&None) {
                            return;
                        }
                    }
                };
                tokio::select! {
                    changed = addresses.changed() => if changed.is_err() { return },
                    () = meddled => {}
                }
            }
            Err(status) => {
                tracing::warn!(%status, "the list of API servers was not written; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn endpoints(state: &Arc<State>, addresses: &[IpAddr]) -> Result<(), Status> {
    let port = state.config.listen.port();
    // One address family a slice, and the Service has just one: its own, where the servers have such addresses.
    let own = state.config.service_ranges.first().map(|(range, _)| range.is_ipv4());
    let of_service = addresses.iter().find(|address| Some(address.is_ipv4()) == own);
    let Some(first) = of_service.or(addresses.first()) else { return Ok(()) };
    let addresses: Vec<&IpAddr> = addresses.iter().filter(|one| one.is_ipv4() == first.is_ipv4()).collect();
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address.to_string()], "conditions": { "ready": true } }))
        .collect();
    write(state, json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": if first.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": [{ "name": "https", "protocol": "TCP", "port": port }],
    }))
    .await?;
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({ "ip": address.to_string() })).collect();
    write(
        state,
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{
                "addresses": addresses,
                "ports": [{ "name": "https", "protocol": "TCP", "port": port }],
            }],
        }),
    )
    .await
}

/// The address after the network's own.
fn first_address(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V4(address) => std::net::Ipv4Addr::from(u32::from(address).saturating_add(1)).into(),
        IpAddr::V6(address) => std::net::Ipv6Addr::from(u128::from(address).saturating_add(1)).into(),
    }
}

fn resource_of(state: &State, object: &Value) -> Result<Arc<kedge_api::registry::Resource>, Status> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let resource = state.registry.read().by_kind(group, version, kind);
    resource.ok_or_else(|| Status::internal(format!("no resource for {api_version} {kind}")))
}

fn find(state: &State, object: &Value) -> Result<Option<Value>, Status> {
    let resource = resource_of(state, object)?;
    let key = format!("{}/{}", object::namespace(object), object::name(object));
    let stored = state.cache.bucket(&resource.storage_key).get(&key);
    stored.map(|stored| crate::verbs::read::parse(&stored.bytes)).transpose()
}

/// Create the object unless there is one of that name.
async fn ensure(state: &Arc<State>, object: Value) -> Result<(), Status> {
    if find(state, &object)?.is_some() {
        return Ok(());
    }
    let (resource, user) = (resource_of(state, &object)?, User::component("system:apiserver"));
    let namespace = object::namespace(&object).to_owned();
    let creation = Creation { state, user: &user, resource: &resource };
    match creation.run(&namespace, object, &WriteOptions::internal()).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        result => result.map(drop),
    }
}

/// Create the object or make the existing one equal, but for what the server keeps in its metadata.
async fn write(state: &Arc<State>, object: Value) -> Result<(), Status> {
    if find(state, &object)?.is_none() {
        return ensure(state, object).await;
    }
    let (resource, user) = (resource_of(state, &object)?, User::component("system:apiserver"));
    let change = Change { state, user: &user, resource: &resource, target: Target::Main };
    let (namespace, name) = (object::namespace(&object).to_owned(), object::name(&object).to_owned());
    let mut edit = |old: &Value| {
        let mut new = object.clone();
        for (key, value) in old["metadata"].as_object().into_iter().flatten() {
            if new["metadata"][key].is_null() {
                new["metadata"][key] = value.clone();
            }
        }
        // Who has labelled it may have reasons.
        for (key, value) in old["metadata"]["labels"].as_object().into_iter().flatten() {
            if new["metadata"]["labels"][key].is_null() {
                new["metadata"]["labels"][key] = value.clone();
            }
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        Ok(Edit::replace(new))
    };
    change.run(&namespace, &name, &WriteOptions::internal(), &mut edit).await.map(drop)
}

async fn reconcile(state: &Arc<State>, wanted: Value) -> Result<(), Status> {
    let Some(existing) = find(state, &wanted)? else { return ensure(state, wanted).await };
    match roles::reconcile(&existing, &wanted) {
        roles::Reconciled::Keep => Ok(()),
        roles::Reconciled::Update(object) => write(state, object).await,
        roles::Reconciled::Recreate(object) => {
            let (resource, user) = (resource_of(state, &object)?, User::component("system:apiserver"));
            let deletion = Deletion { state, user: &user, resource: &resource };
            deletion
                .run(object::namespace(&object), object::name(&object), &DeleteOptions::default())
                .await?;
            ensure(state, object).await
        }
    }
}
