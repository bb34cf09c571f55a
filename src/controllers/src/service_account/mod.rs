//! What every namespace gets for its workloads' identity: the ServiceAccount `default`, the
//! ConfigMap `kube-root-ca.crt`, and tokens in secrets that ask for one
//! (upstream pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher).

mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::PostParams;

use crate::context::{Context, namespace_is_terminating};

const DEFAULT_ACCOUNT: &str = "default";
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using \
    internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
    guaranteed across distributions of Kubernetes clusters.";

pub(crate) fn start(ctx: &Context) {
    start_accounts(ctx);
    start_root_ca(ctx);
    token::start(ctx);
}

fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating")
}

fn start_accounts(ctx: &Context) {
    let namespaces = ctx.informers.informer::<Namespace>();
    let accounts = ctx.informers.informer::<ServiceAccount>();
    let queue: Queue<String> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&namespaces, move |change| adder.add(change.key().name));
    let adder = queue.clone();
    ctx.on_change(&accounts, move |change| {
        if change.new.is_none() && change.key().name == DEFAULT_ACCOUNT {
            adder.add(change.key().namespace);
        }
    });
    let (n, a) = (namespaces.clone(), accounts.clone());
    let synced = async move {
        n.synced().await;
        a.synced().await;
    };
    let ctx = ctx.clone();
    ctx.clone().run("service-account", queue, 1, synced, move |name| {
        let (ctx, namespaces, accounts) = (ctx.clone(), namespaces.clone(), accounts.clone());
        async move { ensure_account(&ctx, &namespaces, &accounts, &name).await }
    });
}

async fn ensure_account(
    ctx: &Context,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    name: &str,
) -> Result<Option<Duration>, Error> {
    if !namespaces.get("", name).is_some_and(|namespace| is_active(&namespace))
        || accounts.get(name, DEFAULT_ACCOUNT).is_some()
    {
        return Ok(None);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT_ACCOUNT.into()),
            namespace: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    finish(ctx.api::<ServiceAccount>(name).create(&PostParams::default(), &account).await)
}

/// There already, or its namespace is going: done.
fn finish<T>(result: Result<T, kube::Error>) -> Result<Option<Duration>, Error> {
    match result {
        Err(error)
            if !kedge_client::is_already_exists(&error)
                && !kedge_client::is_not_found(&error)
                && !namespace_is_terminating(&error) =>
        {
            Err(error.into())
        }
        _ => Ok(None),
    }
}

fn start_root_ca(ctx: &Context) {
    let namespaces = ctx.informers.informer::<Namespace>();
    let maps = ctx.informers.informer_with_fields::<ConfigMap>("metadata.name=kube-root-ca.crt");
    let queue: Queue<String> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&namespaces, move |change| adder.add(change.key().name));
    let adder = queue.clone();
    ctx.on_change(&maps, move |change| adder.add(change.key().namespace));
    let (adder, all) = (queue.clone(), namespaces.clone());
    ctx.on_new_ca("root-ca-publisher: authorities", move || {
        all.list().iter().for_each(|namespace| adder.add(ObjectKey::of(&**namespace).name));
    });
    let (n, m) = (namespaces.clone(), maps.clone());
    let synced = async move {
        n.synced().await;
        m.synced().await;
    };
    let ctx = ctx.clone();
    ctx.clone().run("root-ca-publisher", queue, 1, synced, move |name| {
        let (ctx, namespaces, maps) = (ctx.clone(), namespaces.clone(), maps.clone());
        async move { publish(&ctx, &namespaces, &maps, &name).await }
    });
}

async fn publish(
    ctx: &Context,
    namespaces: &Informer<Namespace>,
    maps: &Informer<ConfigMap>,
    name: &str,
) -> Result<Option<Duration>, Error> {
    if !namespaces.get("", name).is_some_and(|namespace| is_active(&namespace)) {
        return Ok(None);
    }
    let api = ctx.api::<ConfigMap>(name);
    let found: Option<Arc<ConfigMap>> = maps.get(name, CA_CONFIG_MAP);
    let wanted = healed(found.as_deref(), name, &ctx.config.cluster_ca_pem.borrow().clone());
    match (found, wanted) {
        (_, None) => Ok(None),
        (None, Some(map)) => finish(api.create(&PostParams::default(), &map).await),
        (Some(_), Some(map)) => finish(api.replace(CA_CONFIG_MAP, &PostParams::default(), &map).await),
    }
}

/// The ConfigMap as it should be; `None` when it is so already.
fn healed(found: Option<&ConfigMap>, namespace: &str, ca: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([(CA_KEY.to_owned(), ca.to_owned())]);
    let mut map = found.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(CA_CONFIG_MAP.into()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    });
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.insert(DESCRIPTION_KEY.into(), DESCRIPTION.into());
    map.data = Some(data);
    map.binary_data = None;
    (found != Some(&map)).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_is_healed_only_when_changed() {
        let made = healed(None, "ns", "PEM").expect("missing");
        assert_eq!(made.data.as_ref().and_then(|d| d.get(CA_KEY)).map(String::as_str), Some("PEM"));
        assert_eq!(healed(Some(&made), "ns", "PEM"), None);
        let mut broken = made.clone();
        broken.data = None;
        assert_eq!(healed(Some(&broken), "ns", "PEM"), Some(made.clone()));
        assert!(healed(Some(&made), "ns", "NEW PEM").is_some());
    }
}
