//! Deletes what is in a namespace that is being deleted, then lets the namespace go
//! (upstream pkg/controller/namespace, namespaced_resources_deleter.go).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use kedge_client::{Error, Informer, Queue};
use kube::Resource as _;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::Status;

use crate::context::{Context, ignore_not_found, message};
use crate::discovery::{Discovered, Served, discover};
use crate::time;

const FINALIZER: &str = "kubernetes";
/// Another API server may admit an object for so long after the namespace began to go.
const SETTLE: Duration = Duration::from_secs(2);
/// How long an object with finalizers is thought to need.
const FINALIZER_ESTIMATE: i64 = 15;

pub(crate) fn start(ctx: &Context) {
    let namespaces = ctx.informers.informer::<Namespace>();
    let pods = ctx.informers.informer::<Pod>();
    let queue: Queue<String> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&namespaces, move |change| {
        if change.new.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            adder.add(change.key().name);
        }
    });
    // Pods take longest to go: do not wait out the estimate when the last one has.
    let (adder, all) = (queue.clone(), namespaces.clone());
    ctx.on_change(&pods, move |change| {
        let name = change.key().namespace;
        let going = |namespace: Arc<Namespace>| namespace.metadata.deletion_timestamp.is_some();
        if change.new.is_none() && all.get("", &name).is_some_and(going) {
            adder.add(name);
        }
    });
    let ready = namespaces.clone();
    let synced = async move { ready.synced().await };
    let ctx = ctx.clone();
    ctx.clone().run("namespace", queue, 5, synced, move |name| {
        let (ctx, namespaces) = (ctx.clone(), namespaces.clone());
        async move { reconcile(&ctx, &namespaces, &name).await }
    });
}

/// What one pass found.
#[derive(Debug, Default)]
struct Pass {
    discovery_failures: Vec<String>,
    failures: Vec<String>,
    /// `resource.group` and how many are left.
    remaining: BTreeMap<String, usize>,
    /// Finalizers and how many objects have them.
    finalizers: BTreeMap<String, usize>,
    /// Seconds until the rest may be gone.
    estimate: i64,
}

async fn reconcile(
    ctx: &Context,
    namespaces: &Informer<Namespace>,
    name: &str,
) -> Result<Option<Duration>, Error> {
    if namespaces.get("", name).is_none() {
        return Ok(None);
    }
    let api = kube::Api::<Namespace>::all(ctx.client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(None) };
    let Some(since) = namespace.metadata.deletion_timestamp.clone() else { return Ok(None) };
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(None);
    }
    if namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating") {
        namespace.status.get_or_insert_default().phase = Some("Terminating".into());
        namespace = api.replace_status(name, &PostParams::default(), &namespace).await?;
    }
    let found = discover(&ctx.client).await?;
    let pass = delete_contents(ctx, name, found).await;
    let mut status = namespace.status.clone().unwrap_or_default();
    if set_conditions(&mut status, &pass) {
        namespace.status = Some(status);
        namespace = api.replace_status(name, &PostParams::default(), &namespace).await?;
    }
    let failures = pass.discovery_failures.iter().chain(&pass.failures).cloned().collect::<Vec<_>>();
    if !failures.is_empty() {
        return Err(Error::other(format!("content of namespace {name}: {}", failures.join("; "))));
    }
    if !pass.remaining.is_empty() {
        let seconds = u64::try_from(pass.estimate / 2 + 1).unwrap_or(1);
        return Ok(Some(Duration::from_secs(seconds)));
    }
    let age = time::elapsed(since.0, Timestamp::now());
    if age < SETTLE {
        return Ok(Some(SETTLE.saturating_sub(age)));
    }
    let spec = namespace.spec.get_or_insert_default();
    spec.finalizers = Some(finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect());
    ignore_not_found(api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await)?;
    Ok(None)
}

async fn delete_contents(ctx: &Context, namespace: &str, found: Discovered) -> Pass {
    let mut pass = Pass { discovery_failures: found.failed, ..Pass::default() };
    let (pods, others): (Vec<Served>, Vec<Served>) = found
        .resources
        .into_iter()
        .filter(|resource| resource.namespaced && resource.can("list"))
        .filter(|resource| resource.can("delete") || resource.can("deletecollection"))
        .partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
    // Pods first: they must not outlive the network policies and secrets that hold them in check.
    for resource in &pods {
        delete_all(ctx, namespace, resource, &mut pass).await;
    }
    if !pass.remaining.is_empty() || !pass.failures.is_empty() {
        return pass;
    }
    for resource in &others {
        delete_all(ctx, namespace, resource, &mut pass).await;
    }
    pass
}

async fn delete_all(ctx: &Context, namespace: &str, resource: &Served, pass: &mut Pass) {
    if let Err(error) = try_delete_all(ctx, namespace, resource, pass).await {
        // A resource that has just ceased to exist has no content.
        let gone = matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 405);
        if !gone {
            pass.failures.push(format!("{}: {}", resource.api.plural, message(&error)));
        }
    }
}

/// The answer lists everything that was deleted, which may be much: it passes by unread.
async fn delete_collection(
    client: &kube::Client,
    path: &str,
    params: &DeleteParams,
) -> Result<(), kube::Error> {
    let request = kube::core::Request::new(path).delete_collection(params, &ListParams::default());
    let answer = client.send(request.map_err(kube::Error::BuildRequest)?.map(Into::into)).await?;
    let code = answer.status();
    let mut body = answer.into_body();
    if code.is_success() {
        while let Some(frame) = body.frame().await {
            frame?;
        }
        return Ok(());
    }
    let text = body.collect().await?.to_bytes();
    let status = serde_json::from_str(&String::from_utf8_lossy(&text)).unwrap_or_else(|_| {
        Status::failure(&String::from_utf8_lossy(&text), "Failed to parse error data")
            .with_code(code.as_u16())
    });
    Err(kube::Error::Api(status.boxed()))
}

async fn try_delete_all(
    ctx: &Context,
    namespace: &str,
    resource: &Served,
    pass: &mut Pass,
) -> Result<(), kube::Error> {
    let api = resource.in_namespace(&ctx.client, namespace);
    let params = DeleteParams::background();
    if resource.can("deletecollection") {
        delete_collection(&ctx.client, &DynamicObject::url_path(&resource.api, Some(namespace)), &params)
            .await?;
    } else {
        for item in &api.list_metadata(&ListParams::default()).await?.items {
            let name = item.metadata.name.as_deref().unwrap_or_default();
            ignore_not_found(api.delete(name, &params).await)?;
        }
    }
    let left = api.list_metadata(&ListParams::default()).await?;
    if left.items.is_empty() {
        return Ok(());
    }
    let group = if resource.api.group.is_empty() {
        format!("{}.", resource.api.plural)
    } else {
        format!("{}.{}", resource.api.plural, resource.api.group)
    };
    pass.remaining.insert(group, left.items.len());
    for item in &left.items {
        let finalizers = item.metadata.finalizers.as_deref().unwrap_or_default();
        for finalizer in finalizers {
            *pass.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        let grace = item.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let needed = if finalizers.is_empty() { grace } else { grace.max(FINALIZER_ESTIMATE) };
        pass.estimate = pass.estimate.max(needed);
    }
    Ok(())
}

/// The conditions of a pass; whether any changed.
fn set_conditions(status: &mut NamespaceStatus, pass: &Pass) -> bool {
    let list = |counts: &BTreeMap<String, usize>, link: &str| {
        let each = counts.iter().map(|(name, count)| format!("{name} {link} {count} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let wanted = [
        condition(
            "NamespaceDeletionDiscoveryFailure",
            ("DiscoveryFailed", failures("Discovery failed for some groups", &pass.discovery_failures)),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        // Group versions are parsed by the server here: this cannot fail.
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            ("GroupVersionParsingFailed", None),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            ("ContentDeletionFailed", failures("Failed to delete all resource types", &pass.failures)),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        condition(
            "NamespaceContentRemaining",
            (
                "SomeResourcesRemain",
                (!pass.remaining.is_empty())
                    .then(|| format!("Some resources are remaining: {}", list(&pass.remaining, "has"))),
            ),
            ("ContentRemoved", "All content successfully removed"),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            (
                "SomeFinalizersRemain",
                (!pass.finalizers.is_empty()).then(|| {
                    let finalizers = list(&pass.finalizers, "in");
                    format!("Some content in the namespace has finalizers remaining: {finalizers}")
                }),
            ),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut changed = false;
    let conditions = status.conditions.get_or_insert_default();
    for new in wanted {
        match conditions.iter_mut().find(|old| old.type_ == new.type_) {
            Some(old)
                if old.status == new.status && old.message == new.message && old.reason == new.reason => {}
            Some(old) => {
                *old = new;
                changed = true;
            }
            None => {
                conditions.push(new);
                changed = true;
            }
        }
    }
    changed
}

fn failures(what: &str, texts: &[String]) -> Option<String> {
    let count = texts.len();
    let plural = if count == 1 { "1 error".to_owned() } else { format!("{count} errors") };
    (count > 0).then(|| format!("{what}, {plural}: {}", texts.join(", ")))
}

/// `bad`: reason and, when it is so, text. `good`: reason and text when it is not.
fn condition(kind: &str, bad: (&str, Option<String>), good: (&str, &str)) -> NamespaceCondition {
    let (status, reason, message) = match bad.1 {
        Some(text) => ("True", bad.0, text),
        None => ("False", good.0, good.1.to_owned()),
    };
    NamespaceCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(time::now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let mut status = NamespaceStatus::default();
        let mut pass = Pass::default();
        pass.remaining.insert("pods.".into(), 2);
        pass.finalizers.insert("example.com/x".into(), 1);
        pass.failures.push("widgets: no".into());
        assert!(set_conditions(&mut status, &pass));
        assert!(!set_conditions(&mut status, &pass), "the same pass changes nothing");
        let texts: Vec<String> = status
            .conditions
            .iter()
            .flatten()
            .filter(|c| c.status == "True")
            .map(|c| c.message.clone().unwrap_or_default())
            .collect();
        assert_eq!(
            texts,
            [
                "Failed to delete all resource types, 1 error: widgets: no",
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances",
            ]
        );
        assert!(set_conditions(&mut status, &Pass::default()));
        assert!(status.conditions.iter().flatten().all(|c| c.status == "False"));
    }
}
